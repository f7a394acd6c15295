"""The ladder as a table on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rung.evaluation.report.words import (
    against,
    confidence_notes,
    count_text,
    left_out,
    measured,
    overflow_notes,
    p_text,
    per_row,
    retrieval_notes,
    score_text,
)
from rung.evaluation.result import ClimbResult

WIDE, WIDEST = 100, 132


def print_climb(result: ClimbResult, console: Console) -> None:
    """Print the ladder, what was left out and why, and the decision; columns by the width there is."""
    wide, widest = console.width >= WIDE, console.width >= WIDEST
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("rung", no_wrap=True)
    table.add_column(f"{result.metric} [95 %]", justify="right", no_wrap=True)
    table.add_column("rows", justify="right", no_wrap=True)
    table.add_column(f"vs {result.rungs[0].name}", justify="right", no_wrap=True)
    if wide:
        table.add_column("fixed / broken", justify="right", no_wrap=True)
        table.add_column("p", justify="right", no_wrap=True)
    table.add_column("fit s", justify="right", no_wrap=True)
    table.add_column("ms/row", justify="right", no_wrap=True)
    if widest:
        for name in ("tokens/row", "trainable", "bytes"):
            table.add_column(name, justify="right", no_wrap=True)
    for rung in measured(result):
        best = rung.name == result.recommended
        c = against(result, rung.name)
        ms, tokens = per_row(rung)
        cells = [
            ("> " if best else "  ") + rung.name,
            score_text(rung),
            f"{rung.n}{'' if rung.split == 'test' else ' v'}",
            f"{100 * c.delta:+.1f} pp" if c else "",
        ]
        if wide:
            cells += [f"{c.fixed} / {c.broken}", p_text(c.p)] if c else ["", ""]
        cells += [f"{rung.fit_seconds:.0f}", ms]
        if widest:
            cells += [tokens, count_text(rung.trainable_parameters), count_text(rung.artifact_bytes)]
        table.add_row(*cells, style="bold" if best else "")
    console.print(table)
    if any(rung.split == "validation" for rung in measured(result)):
        console.print(Text("v: stopped in the race; scored on that many validation rows", style="dim"))
    for note in [*overflow_notes(result), *retrieval_notes(result)]:
        console.print(Text(note, style="dim"))
    for note in (*result.notes, *confidence_notes(result)):
        console.print(Text(note))
    for rung in left_out(result):
        console.print(Text(f"{rung.status}: {rung.name}: {rung.reason}", style="dim"))
    console.print()
    console.print(Text(result.decision, style="bold"))
