"""The decision guide in the HTML report: its flow chart as SVG, and what it expected beside what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import wrap
from typing import Any

from rung.evaluation.report.escaping import safe
from rung.evaluation.report.outcomes import outcomes
from rung.evaluation.result import ClimbResult

WIDTH, BOX, BRANCH = 860, 360, 430  # of the drawing, a question, where branches begin; in pixels
LINE, PAD, GAP = 17, 9, 22
CHARACTERS = {BOX: 50, BRANCH: 54}  # that fit beside each other at 13 pixels
TAKEN, OTHER, OPEN = "#D55E00", "#8A8A8A", "#2481BF"
WORDS = {"help": "helps", "not": "does not help", "unknown": "open"}


def section(result: ClimbResult) -> str:
    """Return the guide's section, or nothing where the climb has none."""
    if result.advice is None:
        return ""
    chart = f'<div class="scroll">{chart_svg(result.advice)}</div>'
    return (
        f"<details><summary>the path of the rules</summary>{chart}{_sources(result.advice)}</details>{_table(result)}"
    )


def chart_svg(advice: Mapping[str, Any]) -> str:
    """Return the flow chart: questions down the left, both answers to the right of each, the path taken in orange."""
    parts, top = [], 4
    for place, step in enumerate(advice["steps"], start=1):
        drawn, height = _step(step, top, last=place == len(advice["steps"]))
        parts.append(drawn)
        top += height + GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" height="{top}" '
        f'role="img" font-family="sans-serif" font-size="13" fill="currentColor"><title>The path of the rules</title>'
        f"{''.join(parts)}</svg>"
    )


def _step(step: Mapping[str, Any], top: int, *, last: bool) -> tuple[str, int]:
    """Return the drawing of one question with its answers, and its height."""
    question = wrap(step["question"], CHARACTERS[BOX])
    observed = wrap(step["observed"] or (f"not known: {step['ask']}" if step["ask"] else ""), CHARACTERS[BOX])
    answers = {name: wrap(f"{name}: {step[name]}", CHARACTERS[BRANCH]) for name in ("yes", "no")}
    left = 2 * PAD + LINE * (len(question) + len(observed))
    right = sum(LINE * len(lines) + PAD for lines in answers.values()) + PAD
    height = max(left, right)
    colour = OPEN if step["answer"] == "unknown" else TAKEN
    parts = [
        f'<rect x="1" y="{top}" width="{BOX}" height="{height}" rx="6" fill="none" stroke="{colour}" '
        'stroke-width="1.5"/>',
        _lines(question, 12, top + PAD, weight="bold"),
        _lines(observed, 12, top + PAD + LINE * len(question), opacity="0.75"),
        "" if last else f'<path d="M{BOX // 2} {top + height}v{GAP}" stroke="{OTHER}" stroke-width="1.5"/>',
    ]
    y = top + PAD
    for name, lines in answers.items():
        taken = step["answer"] == name
        middle = y + LINE // 2 + 2
        stroke = f'stroke="{TAKEN if taken else OTHER}" stroke-width="{3 if taken else 1}"'
        dashes = "" if taken else ' stroke-dasharray="3 3"'
        parts.append(f'<path d="M{BOX + 1} {middle}H{BRANCH - 14}" fill="none" {stroke}{dashes}/>')
        parts.append(f'<path d="M{BRANCH - 14} {middle - 4}l8 4l-8 4z" fill="{TAKEN if taken else OTHER}"/>')
        parts.append(_lines(lines, BRANCH, y, weight="bold" if taken else "normal", opacity="1" if taken else "0.65"))
        y += LINE * len(lines) + PAD
    return "".join(parts), height


def _lines(lines: list[str], x: int, y: int, *, weight: str = "normal", opacity: str = "1") -> str:
    return "".join(
        f'<text x="{x}" y="{y + LINE * (row + 1) - 4}" font-weight="{weight}" opacity="{opacity}">{safe(line)}</text>'
        for row, line in enumerate(lines)
    )


def _sources(advice: Mapping[str, Any]) -> str:
    items = {
        step["source"]["url"]: f"<li>{safe(step['question'])} {safe(step['source']['citation'])}: "
        f"{safe(step['source']['url'])}</li>"
        for step in advice["steps"]
        if step["source"]
    }
    return f'<ul class="soft">{"".join(items.values())}</ul>'


def _table(result: ClimbResult) -> str:
    assert result.advice is not None
    found = outcomes(result)
    rows = []
    for one in result.advice["expectations"]:
        if (outcome := found.get(one["rung"])) is None:
            continue
        cells = [WORDS[one["expect"]], "; ".join(one["reasons"]), f"{outcome.word}: {outcome.text}"]
        rows.append(f"<tr><td>{safe(one['rung'])}" + "".join(f"<td class=why>{safe(cell)}" for cell in cells) + "</tr>")
    heads = "<tr><th>rung<th>the rules expect that it<th>because<th>measured</tr>"
    return f'<div class="scroll"><table>{heads}{"".join(rows)}</table></div>'
