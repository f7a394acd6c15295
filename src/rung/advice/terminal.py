"""The guide on the terminal: the flow chart with its path, and the table of expectations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from textwrap import wrap

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rung.advice import Advice
from rung.advice.rules import Source, Step
from rung.evaluation.report.html import RungOutcome

NARROWEST, WIDEST = 60, 100
TAKEN, OTHER, OPEN = "bold", "dim", "yellow"
MARKS = {"help": "+ help", "not": "- not", "unknown": "? open"}


def print_advice(advice: Advice, console: Console, found: Mapping[str, RungOutcome] | None = None) -> None:
    """Print the chart, the open questions, and the expectations, beside what a climb showed where there was one."""
    width = max(NARROWEST, min(WIDEST, console.width))
    console.print(Text(f"{advice.task}: what the rules expect before anything is measured", style=TAKEN))
    cited = list(dict.fromkeys(step.source for step in advice.steps if step.source))
    for line in chart(advice.steps, width, cited):
        console.print(line, no_wrap=True, overflow="crop", crop=True)
    for number, source in enumerate(cited, start=1):
        console.print(Text(f"[{number}] {source.citation}, {source.url}", style=OTHER))
    if advice.open_questions:
        keys = ", ".join(advice.open_questions)
        console.print(Text(f"Not known yet; say it in the task file: {keys}", style=OPEN))
    console.print()
    console.print(_table(advice, found))
    console.print(Text("Rules expect, a climb measures: rung climb TASK", style=OTHER))


def chart(steps: tuple[Step, ...], width: int, cited: Sequence[Source] = ()) -> Iterator[Text]:
    """Yield the lines of the flow chart: every question in a box, its two branches below, the one taken marked.

    Args:
        steps: the questions.
        width: columns to fill.
        cited: sources in the order of their numbers.
    """
    for place, step in enumerate(steps):
        last = place == len(steps) - 1
        number = f" [{cited.index(step.source) + 1}]" if step.source in cited else ""
        yield from _question(step, number, width, first=place == 0)
        yield from _branch(step, "yes", step.yes, width, last=False)
        yield from _branch(step, "no", step.no, width, last=last)


def _question(step: Step, number: str, width: int, *, first: bool) -> Iterator[Text]:
    style = OPEN if step.answer == "unknown" else TAKEN
    inside = width - 4
    observed = step.observed or (f"not known: {step.ask}" if step.ask else "")
    yield Text("┏" + ("━" if first else "┻") + "━" * (inside + 1) + "┓", style=style)
    question = step.question + number
    space = inside - len(question) - len(observed)
    lines = [(question + " " * space + observed)] if space > 1 else [*wrap(question, inside), *wrap(observed, inside)]
    for line in lines:
        yield Text(f"┃ {line:<{inside}} ┃", style=style)
    yield Text("┗" + "┳" + "━" * (inside + 1) + "┛", style=style)


def _branch(step: Step, name: str, meaning: str, width: int, *, last: bool) -> Iterator[Text]:
    taken = step.answer == name
    style = TAKEN if taken else OTHER
    joint = ("┗" if last else "┣") if taken else ("└" if last else "├")
    stroke = "━" if taken else "─"
    head = f" {joint}{stroke * 2} {name} {stroke * (4 - len(name))}{'▶' if taken else '▷'} "
    lines = wrap(meaning, width - len(head))
    yield Text(head + lines[0], style=style)
    spine = " " if last else "┃"
    for line in lines[1:]:
        yield Text(f" {spine}" + " " * (len(head) - 2) + line, style=style)


def _table(advice: Advice, found: Mapping[str, RungOutcome] | None) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("rung", no_wrap=True)
    table.add_column("expected", no_wrap=True)
    table.add_column("because")
    if found is not None:
        table.add_column("measured")
    styles = {"help": "green", "not": "red", "unknown": ""}
    for one in advice.expectations:
        cells: list[str | Text] = [one.rung, Text(MARKS[one.expect], style=styles[one.expect]), "; ".join(one.reasons)]
        if found is not None:
            showed = found.get(one.rung)
            cells.append(Text("not measured", style=OTHER) if showed is None else f"{showed.word}: {showed.text}")
        table.add_row(*cells)
    return table
