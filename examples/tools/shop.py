"""The tools: a calculator, and a price list to look things up in."""

import ast
import csv
import operator
from pathlib import Path

PRICES = Path(__file__).with_name("prices.csv")
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def calculate(expression: str) -> float:
    """Work out a sum such as 3 * (2.5 + 1).

    Args:
        expression: numbers, + - * / and brackets.
    """
    return round(_value(ast.parse(expression, mode="eval").body), 2)


def _value(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    raise ValueError("only numbers, + - * / and brackets can be worked out")


def look_up(item: str) -> dict[str, str | float]:
    """Look up what one piece of an item costs, in euros, and how many are in stock.

    Args:
        item: its name, in the singular.
    """
    with PRICES.open(newline="", encoding="utf-8") as rows:
        for row in csv.DictReader(rows):
            if row["item"] == item.strip().lower():
                return {"item": row["item"], "price": float(row["price"]), "stock": int(row["stock"])}
    raise LookupError(f"the price list has no {item!r}")
