"""The tools: a calculator, and a price list to look things up in."""

import ast
import csv
import operator
from difflib import get_close_matches
from pathlib import Path

PRICES = Path(__file__).with_name("prices.csv")
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def calculate(expression: str) -> float:
    """Work out a sum of numbers that were looked up or stand in the question.

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
        item: the name of one item, in the singular.
    """
    with PRICES.open(newline="", encoding="utf-8") as rows:
        prices = {row["item"]: row for row in csv.DictReader(rows)}
    if (row := prices.get(item.strip().lower())) is None:
        close = get_close_matches(item.strip().lower(), prices, 1)
        raise LookupError(f"the price list has no {item!r}" + (f"; look up {close[0]!r}" if close else ""))
    return {"item": row["item"], "price": float(row["price"]), "stock": int(row["stock"])}
