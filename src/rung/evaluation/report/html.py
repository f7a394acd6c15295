"""The report as one HTML file: no network, no framework, everything escaped, a strict content policy.

Styles and the few lines of script are allowed by their hashes alone, so text from the data can never run.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any, Literal

from rung.evaluation.report import plots
from rung.evaluation.report.words import (
    TRAINING_DATA,
    against,
    confidence_notes,
    count_text,
    delta_text,
    left_out,
    measured,
    method,
    overflow_notes,
    per_row,
    retrieval_notes,
    score_text,
    training_data_lines,
)
from rung.evaluation.result import ClimbResult, Prediction, RungResult

# --------------------
# Text into HTML.


def safe(text: Any) -> str:
    """Return a value's text as HTML shows it; NUL, which HTML cannot hold, as the sign for what is unreadable."""
    return html.escape(str(text).replace("\0", "\ufffd"), quote=True)


# --------------------
# Prompt searches in the HTML report: why each ended as it did, every candidate with its score, and what it asks.


SHOWN = 70  # characters of an instruction before it is unfolded
WRITTEN = {"own": "as before", "words": "in words", "plain": "as in the data", "sentence": "as sentences"}


def searches_section(result: ClimbResult) -> str:
    """Return what the searches of the climb tried, or nothing where there was none."""
    told = {r.name: r.settings.get(r.path[-1], {}) for r in result.rungs if r.path}
    return "".join(_search(name, found) for name, found in told.items() if "candidates" in found)


def _search(name: str, found: Mapping[str, Any]) -> str:
    spent = found["spent"]
    tokens = spent["prompt_tokens"] + spent["completion_tokens"]
    cost = f", {spent['money']:.4g} in money" if spent["money"] else ""
    heads = "<tr><th>candidate<th>made by<th>rows<th>score<th>racing score<th>what it asks</tr>"
    rows = "".join(_search_row(one, best=one["name"] == found["winner"]) for one in found["candidates"])
    return (
        f"<p>{safe(name)}: {safe(found['reason'])}. {spent['calls']:,} calls, {tokens:,} tokens, "
        f"{spent['seconds']:,.0f} s{cost}; {found['search_rows']} rows to search on, {found['adoption_rows']} others "
        f"to decide by.</p><details><summary>{len(found['candidates'])} candidates, the last leader marked</summary>"
        f'<div class="scroll"><table>{heads}{rows}</table></div></details>{_refused(found["refused"])}'
    )


def _search_row(one: Mapping[str, Any], *, best: bool) -> str:
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


# --------------------
# What a climb showed of every rung alone, in one word and in numbers.


Word = Literal["helped", "hurt", "no difference", "beaten", "skipped", "failed", "incumbent"]
LEVEL = 0.05  # as in the confirmation


@dataclass(frozen=True, slots=True)
class RungOutcome:
    """What a climb showed of one rung on top of zero-shot.

    `helped` and `hurt` are significant on the test rows, after the correction over all pairs; `beaten` rungs were
    stopped in the race. `text` says it with numbers.
    """

    rung: str
    word: Word
    text: str


def outcomes(result: ClimbResult) -> dict[str, RungOutcome]:
    """Return what the climb showed of every rung that it tried on top of zero-shot, by name."""
    return {rung.name: _outcome(result, rung) for rung in result.rungs if len(rung.path) <= 2}


def _outcome(result: ClimbResult, rung: RungResult) -> RungOutcome:
    if rung.status == "skipped" or rung.status == "failed":
        return RungOutcome(rung.name, rung.status, rung.reason)
    if rung.name == result.rungs[0].name:
        return RungOutcome(rung.name, "incumbent", score_text(rung))
    comparison = against(result, rung.name)
    if comparison is None:
        return RungOutcome(rung.name, "beaten", f"{score_text(rung)} on {rung.n} validation rows")
    text = delta_text(comparison)
    if comparison.p >= LEVEL or comparison.delta == 0:
        return RungOutcome(rung.name, "no difference", text)
    return RungOutcome(rung.name, "helped" if comparison.delta > 0 else "hurt", text)


# --------------------
# The decision guide in the HTML report: its flow chart as SVG, and what it expected beside what was measured.


WIDTH, BOX, BRANCH = 860, 360, 430  # of the drawing, a question, where branches begin; in pixels
LINE, PAD, GAP = 17, 9, 22
CHARACTERS = {BOX: 50, BRANCH: 54}  # that fit beside each other at 13 pixels
TAKEN, OTHER, OPEN = "#D55E00", "#8A8A8A", "#2481BF"
WORDS = {"help": "helps", "not": "does not help", "unknown": "open"}


def guide_section(result: ClimbResult) -> str:
    """Return the guide's section, or nothing where the climb has none."""
    if result.advice is None:
        return ""
    chart = f'<div class="scroll">{chart_svg(result.advice)}</div>'
    path = f"<details><summary>the path of the rules</summary>{chart}{_sources(result.advice)}</details>"
    return path + _guide_table(result)


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


def _guide_table(result: ClimbResult) -> str:
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


ROWS_SHOWN = 100  # fixed and broken rows shown per rung
WHY = 3  # the table's column of comparisons and reasons, which may wrap
TEXT_SHOWN = 20_000  # characters of one prompt

STYLE = """
:root{color-scheme:light dark;--ink:#1c1c1e;--soft:#5f6368;--line:#d9d9de;--paper:#fff;--tint:#f5f5f7;--best:#b34a00}
@media(prefers-color-scheme:dark){
:root{--ink:#ececf0;--soft:#a5a8ad;--line:#3a3a40;--paper:#17171a;--tint:#222226;--best:#ff9d5c}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:60rem;padding:1.5rem 1rem 4rem;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,sans-serif}h1{font-size:1.6rem;margin:.2rem 0}h2{font-size:1.15rem;margin:2.2rem 0 .6rem}
.soft{color:var(--soft)}
.decision{font-size:1.15rem;border-left:4px solid var(--best);padding:.4rem 1rem;background:var(--tint)}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.92rem}
th,td{padding:.35rem .6rem;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
th:first-child,td:first-child{text-align:left}
td.why{white-space:normal;min-width:14rem;text-align:left}
tr.best td{font-weight:600;color:var(--best)}
svg{max-width:100%;min-width:32rem;height:auto}
details{border-bottom:1px solid var(--line);padding:.4rem 0}summary{cursor:pointer}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--tint);padding:.7rem;font-size:.85rem;
max-height:24rem;overflow:auto}
.pair{color:var(--soft);font-size:.92rem;overflow-wrap:anywhere}select{font:inherit;padding:.2rem .4rem;max-width:100%}
[hidden]{display:none}
"""

SCRIPT = """
const pick=document.getElementById('pick');
if(pick){const show=()=>document.querySelectorAll('[data-rung]').forEach(
e=>{e.hidden=e.dataset.rung!==pick.value});pick.addEventListener('change',show);show()}
"""


def write_html(result: ClimbResult, predictions: Mapping[str, Sequence[Prediction]], folder: Path) -> Path:
    """Write `report.html` into `folder`, at once or not at all."""
    file = folder / "report.html"
    scratch = file.with_suffix(".tmp")
    scratch.write_text(page(result, predictions), encoding="utf-8", errors="replace")
    os.replace(scratch, file)  # noqa: PTH105
    return file


def page(result: ClimbResult, predictions: Mapping[str, Sequence[Prediction]]) -> str:
    """Return the whole page."""
    allowed = f"style-src '{_hash(STYLE)}'; script-src '{_hash(SCRIPT)}'"
    policy = f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"
    best = [row for row in predictions.get(result.recommended, ()) if row.split == "test"]
    category = result.metric == "accuracy"
    sections = [
        ("The ladder", _figure(plots.ladder_svg(result)) + _table(result)),
        ("Quality against cost", _figure(plots.cost_svg(result))),
        ("Rows fixed and broken", _changes(result, predictions)),
        ("Most confused labels", _figure(plots.confusion_svg(result, best)) if category and best else ""),
        ("What the rules expected", guide_section(result)),
        ("Prompts searched", searches_section(result)),
        ("Confidence", _confidence(result)),
        ("Training", _figure(plots.loss_svg(result)) + _training_data(result)),
        ("Notes", "".join(f"<p>{safe(note)}</p>" for note in result.notes)),
        ("Left out", "".join(f"<p>{safe(r.name)} ({r.status}): {safe(r.reason)}</p>" for r in left_out(result))),
        ("Prompts that did not fit", "".join(f"<p>{safe(note)}</p>" for note in overflow_notes(result))),
        ("Retrieval", "".join(f"<p>{safe(note)}</p>" for note in retrieval_notes(result))),
        ("Data", _data(result.data)),
        ("How this was measured", "".join(f"<p>{safe(text)}</p>" for text in method(result))),
    ]
    body = "".join(f"<section><h2>{title}</h2>{content}</section>" for title, content in sections if content)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width,initial-scale=1"><title>{safe(result.task)}: report of a climb</title>
<style>{STYLE}</style></head><body><main>
<p class="soft">Rung, report of a climb</p><h1>{safe(result.task)}</h1><p class="decision">{safe(result.decision)}</p>
{body}</main><script>{SCRIPT}</script></body></html>
"""


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _figure(svg: str | None) -> str:
    """Return a plot for the page, or nothing without one."""
    if svg is None:
        return ""
    # matplotlib writes `style` attributes, which the policy would refuse; presentation attributes say the same.
    return f'<div class="scroll">{_presentation(svg)}</div>'


def _presentation(svg: str) -> str:
    """Turn style attributes into presentation attributes, and drop the style element."""

    def attributes(match: re.Match[str]) -> str:
        found = dict(part.split(":", 1) for part in match.group(1).split(";") if ":" in part)
        pairs = {key.strip(): value.strip() for key, value in found.items()}
        if "font" in pairs:  # the shorthand has no presentation attribute
            pairs |= {"font-size": re.sub(r".*?([\d.]+px).*", r"\1", pairs.pop("font")), "font-family": "sans-serif"}
        return " ".join(f'{key}="{value}"' for key, value in pairs.items())

    svg = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace("<svg ", '<svg stroke-linejoin="round" stroke-linecap="butt" role="img" ', 1)
    return re.sub(r'style="([^"]*)"', attributes, svg)


def _table(result: ClimbResult) -> str:
    heads = (
        f"<th>rung<th>{safe(result.metric)} [95 %]<th>rows<th>against {safe(result.rungs[0].name)}<th>fit s<th>ms/row"
        "<th>tokens/row<th>trainable<th>bytes"
    )
    lines = []
    for rung in measured(result):
        c = against(result, rung.name)
        ms, tokens = per_row(rung)
        rows = f"{rung.n} {rung.split}"
        cells = [
            rung.name, score_text(rung), rows, delta_text(c) if c else rung.reason, f"{rung.fit_seconds:.0f}", ms,
            tokens, count_text(rung.trainable_parameters), count_text(rung.artifact_bytes),
        ]  # fmt: skip
        mark = ' class="best"' if rung.name == result.recommended else ""
        lines.append(
            f"<tr{mark}>"
            + "".join(
                f"<td{' class=why' if place == WHY else ''}>{safe(cell)}</td>" for place, cell in enumerate(cells)
            )
            + "</tr>"
        )
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _changes(result: ClimbResult, predictions: Mapping[str, Sequence[Prediction]]) -> str:
    """Return, for every rung, the rows that it answers better or worse than the incumbent."""
    zero = result.rungs[0].name
    before = {(row.split, row.id): row for row in predictions.get(zero, ())}
    names = [rung.name for rung in measured(result) if rung.name != zero]
    if not names:
        return ""
    options = "".join(
        f'<option value="{safe(name)}"{" selected" if name == result.recommended else ""}>{safe(name)}</option>'
        for name in names
    )
    parts = [f'<p><label>Rung: <select id="pick">{options}</select></label></p>']
    for name in names:
        rows = [(before[key], row) for row in predictions.get(name, ()) if (key := (row.split, row.id)) in before]
        changed = [(old, new) for old, new in rows if old.score != new.score]
        changed.sort(key=lambda pair: pair[1].score - pair[0].score)
        fixed = sum(new.score > old.score for old, new in changed)
        note = f"{fixed} fixed, {len(changed) - fixed} broken of {len(rows)} rows answered by both"
        if len(changed) > ROWS_SHOWN:
            note += f"; {ROWS_SHOWN} are shown, broken ones first"
        shown = "".join(_row(old, new) for old, new in changed[:ROWS_SHOWN])
        parts.append(f'<div data-rung="{safe(name)}"><p class="soft">{note}</p>{shown}</div>')
    return "".join(parts)


def _row(old: Prediction, new: Prediction) -> str:
    text = " | ".join(str(value) for value in new.inputs.values())
    verdict = "fixed" if new.score > old.score else "broken"
    return (
        f"<details><summary>{verdict}: {safe(text[:300])}</summary>"
        f'<p class="pair">{safe(new.source)} ({new.split}). Expected: {safe(" | ".join(new.expected))}. '
        f"Before: {safe(old.prediction)}. Now: {safe(new.prediction)}.{_why(new)}</p>"
        f"<pre>{safe(new.prompt[:TEXT_SHOWN])}</pre></details>"
    )


def _confidence(result: ClimbResult) -> str:
    """Return how far the recommended artifact's confidence can be trusted, if that was measured."""
    notes = "".join(f"<p>{safe(note)}</p>" for note in confidence_notes(result))
    return notes + _figure(plots.reliability_svg(result)) + _figure(plots.coverage_svg(result))


def _why(row: Prediction) -> str:
    """Say whether retrieval or reading failed, where an answer from documents is wrong."""
    cause = (row.retrieval or {}).get("failure")
    return {"retrieval": " Retrieval failed.", "reading": " Found, but not used."}.get(cause or "", "")


def _training_data(result: ClimbResult) -> str:
    """Return what each tuned artifact's last step learnt from, folded up."""
    told = {r.name: r.settings.get(r.path[-1], {}).get(TRAINING_DATA) for r in result.rungs if r.path}
    return "".join(
        f"<details><summary>what {safe(name)} was trained on</summary>"
        f"<pre>{safe(chr(10).join(training_data_lines(values))[:TEXT_SHOWN])}</pre></details>"
        for name, values in told.items()
        if values
    )


def _data(data: Mapping[str, Any]) -> str:
    lines = []
    for name, split in data["splits"].items():
        dropped = ", ".join(f"{count} {reason}" for reason, count in split["dropped"].items()) or "none"
        lines.append(f"<tr><td>{safe(name)}<td>{split['read']}<td>{split['kept']}<td>{safe(dropped)}</tr>")
    table = f"<table><tr><th>split<th>read<th>kept<th>dropped</tr>{''.join(lines)}</table>"
    warnings = "".join(f"<p>Warning: {safe(text)}</p>" for text in data["warnings"])
    raw = safe(json.dumps(data, ensure_ascii=False, indent=1))
    return (
        f'<div class="scroll">{table}</div>{warnings}<details><summary>everything</summary><pre>{raw}</pre></details>'
    )
