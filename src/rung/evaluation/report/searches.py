"""Prompt searches in the HTML report: why each ended as it did, every candidate with its score, and what it asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rung.evaluation.report.escaping import safe
from rung.evaluation.result import ClimbResult

SHOWN = 70  # characters of an instruction before it is unfolded
WRITTEN = {"own": "as before", "words": "in words", "plain": "as in the data", "sentence": "as sentences"}


def section(result: ClimbResult) -> str:
    """Return what the searches of the climb tried, or nothing where there was none."""
    told = {r.name: r.settings.get(r.path[-1], {}) for r in result.rungs if r.path}
    return "".join(_search(name, found) for name, found in told.items() if "candidates" in found)


def _search(name: str, found: Mapping[str, Any]) -> str:
    spent = found["spent"]
    tokens = spent["prompt_tokens"] + spent["completion_tokens"]
    cost = f", {spent['money']:.4g} in money" if spent["money"] else ""
    heads = "<tr><th>candidate<th>made by<th>rows<th>score<th>racing score<th>what it asks</tr>"
    rows = "".join(_row(one, best=one["name"] == found["winner"]) for one in found["candidates"])
    return (
        f"<p>{safe(name)}: {safe(found['reason'])}. {spent['calls']:,} calls, {tokens:,} tokens, "
        f"{spent['seconds']:,.0f} s{cost}; {found['search_rows']} rows to search on, {found['adoption_rows']} others "
        f"to decide by.</p><details><summary>{len(found['candidates'])} candidates, the last leader marked</summary>"
        f'<div class="scroll"><table>{heads}{rows}</table></div></details>{_refused(found["refused"])}'
    )


def _row(one: Mapping[str, Any], *, best: bool) -> str:
    cells = [one["name"], one["origin"], str(one["rows"]), _score(one["score"]), _score(one["racing_score"])]
    asked = f"<details><summary>{safe(_short(one['instruction']))}</summary><pre>{safe(asks(one))}</pre></details>"
    mark = " class=best" if best else ""
    return f"<tr{mark}>{''.join(f'<td>{safe(cell)}' for cell in cells)}<td class=why>{asked}</tr>"


def asks(one: Mapping[str, Any]) -> str:
    """Return the genes of a candidate in words, one a line or more."""
    lines = [f"system: {one['system']}"] if one["system"] else []
    lines += [f"instruction: {one['instruction']}", f"template: {one['template']}"]
    lines.append(f"labels: {WRITTEN[one['verbalizer']]}, {'listed' if one['listed'] else 'not listed'} in the prompt")
    shots = one["shots"]
    lines.append(
        "demonstrations: none"
        if shots is None
        else f"demonstrations: {shots['k']} {shots['selection']}, seed {shots['seed']}, order {shots['order']}"
    )
    return "\n".join([*lines, *([f"failed: {one['failed']}"] if one.get("failed") else [])])


def _refused(refused: list[Mapping[str, str]]) -> str:
    if not refused:
        return ""
    items = "".join(f"<li>{safe(one['text'])} ({safe(one['reason'])})</li>" for one in refused)
    return f"<details><summary>texts refused: {len(refused)}</summary><ul>{items}</ul></details>"


def _score(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else line[: SHOWN - 1] + "…"
