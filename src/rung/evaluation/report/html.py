"""The report as one HTML file: no network, no framework, everything escaped, a strict content policy.

The policy allows the style and the script by their hashes alone, so text from the data can never run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from rung.evaluation.metrics.labels import confusion
from rung.evaluation.report import explorer, plots, words
from rung.evaluation.report.explorer import rows_link, rows_links
from rung.evaluation.result import ClimbResult, Prediction
from rung.evaluation.scoring import REWARDED_BY
from rung.models.files import write_atomically
from rung.progress import Markup, safe, table_html

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAIRS_SHOWN = 8  # of labels that are confused
TEXT_SHOWN = 20_000  # characters of one prompt
INSTRUCTION_SHOWN = 70  # characters of an instruction before it is unfolded
VERBALIZERS = {"own": "as before", "words": "in words", "plain": "as in the data", "sentence": "as sentences"}
TERMS = {  # heads and titles whose words the glossary has under another name
    "per 1,000": "price of 1,000", "tokens in": "token", "tokens out": "token", "over yardstick": "yardstick",
    "left the race": "stopped early", "Confidence": "confidence", "The ladder": "rung",
    "Quality against price": "price of 1,000", "Where the time went": "climb", "difference": "pp",
}  # fmt: skip
NO_CURVE = (
    "There is no learning curve: it takes 40 training rows, time that other work leaves, and labels and an encoder, or "
    "a recommended arm that is made in seconds. To see what more rows bring here, climb again on half of the rows."
)
EXPECTATIONS = {"help": "helps", "not": "does not help", "unknown": "open"}

STYLE = """
:root{color-scheme:light dark;--ink:#1c1c1e;--soft:#5f6368;--line:#d9d9de;--paper:#fff;--tint:#f5f5f7;--best:#b34a00;
--span:#2070b0}
@media(prefers-color-scheme:dark){
:root{--ink:#ececf0;--soft:#a5a8ad;--line:#3a3a40;--paper:#17171a;--tint:#222226;--best:#ff9d5c;--span:#6cb2ee}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:60rem;padding:1.5rem 1rem 4rem;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.6rem;margin:.2rem 0}h2{font-size:1.15rem;margin:2.2rem 0 .6rem}
.soft{color:var(--soft)}
.decision{font-size:1.15rem;border-left:4px solid var(--best);padding:.4rem 1rem;background:var(--tint)}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.92rem}
th,td{padding:.35rem .6rem;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
th:first-child,td:first-child{text-align:left}
th.why,td.why{white-space:normal;min-width:22rem;text-align:left}
tr.best td{font-weight:600;color:var(--best)}
.plot svg{max-width:100%;height:auto}.plot.wide svg{min-width:32rem}
.ladder{list-style:none;margin:0 0 1rem;padding:0}
.ladder li{display:grid;grid-template-columns:12rem 1fr 13rem;gap:.1rem .8rem;padding:.35rem 0;
border-bottom:1px solid var(--line);align-items:center}
.ladder .score{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
.ladder .why{grid-column:1/-1;color:var(--soft);font-size:.85rem}
.ladder svg{width:100%;height:16px;overflow:visible;stroke:var(--span);fill:var(--span);stroke-width:2}
.ladder .zero{stroke:var(--line);stroke-width:1}.ladder .raced{stroke:var(--soft);fill:var(--paper)}
.ladder .best{font-weight:600;color:var(--best)}.ladder .best .why{font-weight:400}
.ladder .best svg{stroke:var(--best);fill:var(--best)}
@media(max-width:40rem){.ladder li{grid-template-columns:1fr auto}.ladder svg{grid-column:1/-1;grid-row:2}}
dt{font-weight:600}dd{margin:0 0 .5rem}
details{border-bottom:1px solid var(--line);padding:.4rem 0}summary{cursor:pointer}
pre{white-space:pre-wrap;background:var(--tint);padding:.7rem;font-size:.85rem;
max-height:24rem;overflow:auto}
.term{border:0;background:none;padding:0;font:inherit;color:inherit;text-decoration:underline dotted;
text-underline-offset:.25em;cursor:help}
[popover]{max-width:min(24rem,calc(100vw - 2rem));border:1px solid var(--line);border-radius:8px;
background:var(--paper);color:var(--ink);padding:.7rem .9rem}
:focus-visible{outline:2px solid var(--best);outline-offset:2px}
select{font:inherit;padding:.2rem .4rem;max-width:100%}a{color:var(--span)}
[hidden]{display:none !important}
"""


def write_html(result: ClimbResult, predictions: Mapping[str, Sequence[Prediction]], folder: Path) -> Path:
    """Write `report.html` into `folder` atomically."""
    file = folder / "report.html"
    write_atomically(file, page(result, predictions).encode(errors="replace").decode())
    return file


def page(result: ClimbResult, predictions: Mapping[str, Sequence[Prediction]]) -> str:
    """The whole page; a section without content is left out."""
    policy = content_policy()
    split = next((rung.split for rung in result.rungs if rung.name == result.recommended), "test")
    best = [row for row in predictions.get(result.recommended, ()) if row.split == split]
    confused = plots.confusions(result, best) if best else None
    confidence = _figure(plots.reliability(result)) + _figure(plots.coverage(result))
    if confidence:
        sure = (rows_links(kind, result.recommended) for kind in ("sure", "abstained"))
        confidence += "".join(sure)
    trained = [rung.name for rung in words.measured(result) if rung.losses]
    read = [rung.name for rung in words.measured(result) if rung.retrieval]
    sections = [
        ("What to do next", _next(result)),
        ("The ladder", _ladder(result)),
        ("Quality against price", _priced(result)),
        ("All figures", _figures_table(result)),
        ("Rows", explorer.rows_section(result, predictions)),
        ("Most confused labels", _figure(confused) + (_confusions(result, best) if confused else "")),
        ("What the rules expected", guide_section(result)),
        ("Prompts searched", searches_section(result)),
        ("Confidence", _paragraphs(words.confidence_notes(result)) + confidence),
        (
            "Training",
            _figure(plots.loss(result)) + rows_links("wrong", *trained) + _rewarded(result) + _training_data(result),
        ),
        ("Where the time went", _spent(result)),
        ("Notes", _paragraphs(result.notes)),
        ("Left out", _paragraphs(f"{r.name} ({r.status}): {r.reason}" for r in words.left_out(result))),
        ("Prompts that did not fit", _paragraphs(words.overflow_notes(result))),
        (
            "Retrieval",
            _paragraphs(words.retrieval_notes(result)) + rows_links("retrieval", *read) + rows_links("reading", *read),
        ),
        ("Data", _data(result.data)),
        ("How this was measured", _paragraphs(words.method(result)) + _folded("what the words mean", _glossary())),
    ]
    body = "".join(f"<section><h2>{_termed(title)}</h2>{content}</section>" for title, content in sections if content)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width,initial-scale=1"><title>{safe(result.task)}: report of a climb</title>
<style>{STYLE}{explorer.STYLE}</style></head><body><main>
<p class="soft">Rung, report of a climb</p><h1>{safe(result.task)}</h1><p class="decision">{safe(result.decision)}</p>
{body}{words.meanings()}</main><script>{explorer.SCRIPT}</script></body></html>
"""


# ---- building blocks


def _paragraphs(texts: Iterable[str]) -> str:
    return "".join(f"<p>{safe(text)}</p>" for text in texts)


def _folded(summary: str, content: str) -> Markup:
    """Content that unfolds at a click."""
    return Markup(f"<details><summary>{safe(summary)}</summary>{content}</details>")


def _termed(head: str) -> Markup:
    """A title or the head of a column, with what the glossary says of it."""
    parts = [TERMS.get(part, part) for part in head.split(" / ")]
    known = zip(head.split(" / "), parts, strict=True)
    return Markup(" / ".join(words.term(t, w) if w in words.glossary() else safe(t) for t, w in known))


def _pre(text: str, most: int | None = TEXT_SHOWN) -> str:
    """A text in its lines; the keyboard can scroll a long one."""
    return f'<pre tabindex="0">{safe(text[:most])}</pre>'


def content_policy() -> str:
    """What a browser may do with a report: nothing but show it, with its own style and script."""
    allowed = f"style-src '{_hash(STYLE + explorer.STYLE)}'; script-src '{_hash(explorer.SCRIPT)}'"
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _figure(drawn: Figure | None, *, wide: bool = True) -> str:
    """A plot for the page, or nothing without one.

    matplotlib writes `style` attributes and a style element, which the policy refuses; presentation attributes replace
    them.
    """
    if (svg := plots.svg(drawn)) is None:
        return ""

    def attributes(match: re.Match[str]) -> str:
        styles = dict(part.split(":", 1) for part in match.group(1).split(";") if ":" in part)
        pairs = {key.strip(): value.strip() for key, value in styles.items()}
        if "font" in pairs:  # the shorthand has no presentation attribute
            pairs |= {"font-size": re.sub(r"\A.*?([\d.]+px).*", r"\1", pairs.pop("font")), "font-family": "sans-serif"}
        return " ".join(f'{key}="{value}"' for key, value in pairs.items())

    svg = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace("<svg ", '<svg stroke-linejoin="round" stroke-linecap="butt" role="img" ', 1)
    styled = re.sub(r'style="([^"]*)"', attributes, svg)
    kind = " wide" if wide else ""
    return f'<div class="scroll plot{kind}" tabindex="0" role="group" aria-label="figure">{styled}</div>'


# ---- sections


def _confusions(result: ClimbResult, rows: Sequence[Prediction]) -> str:
    """The most confused pairs of labels, each with a link to its rows."""
    expected, answered = [row.expected[0] for row in rows], [row.prediction for row in rows]
    pairs = confusion(answered, expected, sorted({*expected, *answered}))
    links = (
        rows_link(
            f"{pair.expected} as {pair.predicted}", pick=result.recommended, kind="all", expected=pair.expected,
            given=pair.predicted,
        )
        for pair in pairs[:PAIRS_SHOWN]
    )  # fmt: skip
    return _paragraphs((Markup("; ".join(links)),))


def _priced(result: ClimbResult) -> str:
    drawn = _figure(plots.price(result), wide=False)
    return drawn and drawn + rows_links("wrong", *(rung.name for rung in words.measured(result)))


def _rewarded(result: ClimbResult) -> str:
    """Where something was rewarded, what to read: its rows that gained most, the largest gains first."""
    learnt = [r for r in words.measured(result) if any(REWARDED_BY in each for each in r.settings.values())]
    links = rows_links("fixed", *(rung.name for rung in learnt))
    advice = "A reward can be won in a way that nobody wants: read the rows that gained most before you trust it."
    return links and _paragraphs((advice,)) + links


def _spent(result: ClimbResult) -> str:
    drawn, names = _figure(plots.budget(result)), {span.name for span in result.spending}
    return drawn and drawn + rows_links("wrong", *(rung.name for rung in words.measured(result) if rung.name in names))


def _next(result: ClimbResult) -> str:
    """The next steps, each with a link to its rows where it is about rows; an earlier report does not say which are."""
    texts: list[str] = []
    for text, kind in zip_longest(result.next_steps, result.step_rows, fillvalue=""):
        link = f". {rows_link('Show the rows', pick=result.recommended, kind=kind)}" if kind else ""
        texts.append(Markup(safe(text) + link))
    texts += words.unfinished_notes(result)
    curve = _figure(plots.learning_curve(result), wide=False)
    return _paragraphs(texts) + (curve or _paragraphs((NO_CURVE,) if words.measured(result) else ()))


def _ladder(result: ClimbResult) -> str:
    """The rungs on one axis: score and interval, price, and how each compares; the incumbent is the thin line."""
    rungs = words.measured(result)
    ends = [value for r in rungs for value in (r.low, r.score, r.high) if value is not None]
    if not ends:
        return _paragraphs(words.spent_lines(result))
    low, span = min(ends), (max(ends) - min(ends)) or 1.0

    def place(value: float) -> str:
        return f"{2 + 96 * (value - low) / span:.2f}%"

    zero = result.rungs[0].score  # None where the budget ended before the incumbent
    items = []
    for r in rungs:
        score = place(r.score or 0.0)
        at = place(low if zero is None else zero)
        line = "" if zero is None else f'<line class="zero" x1="{at}" x2="{at}" y1="0" y2="16"/>'
        if r.low is not None and r.high is not None:
            line += f'<line x1="{place(r.low)}" x2="{place(r.high)}" y1="8" y2="8"/>'
        mark = f'<circle{"" if r.stopped is None else " class=raced"} cx="{score}" cy="8" r="4"/>'
        comparison = words.against(result, r.name)
        parts = [words.rows_text(r), f"{words.money_text(r.price_per_1000)} per 1,000"]
        if comparison is not None:
            parts += [f"{words.delta_text(comparison)} against {comparison.a}", words.outcome_text(comparison)]
        if r.stopped is not None:
            parts.append(f"stopped: {words.gap_text(r.stopped)} against {r.stopped.a} on {r.stopped.n} rows")
        if r.yardstick is not None:
            parts.append(f"{words.gap_text(r.yardstick)} over {r.yardstick.a}, the best yardstick")
        why = "; ".join(filter(None, parts))
        items.append(
            f"<li{' class=best' if r.name == result.recommended else ''}><span>{rows_link(r.name, pick=r.name)}</span>"
            f'<svg role="img" aria-label="{safe(words.score_text(r))}">{line}{mark}</svg>'
            f'<span class="score">{safe(words.score_text(r))}</span><span class="why">{safe(why)}</span></li>'
        )
    axis = f"{result.metric} with 95 % intervals, from {100 * low:.1f} to {100 * (low + span):.1f} %"
    notes = [axis, *words.worth_notes(result), *words.spent_lines(result)]
    return f'<ol class="ladder">{"".join(items)}</ol>' + _paragraphs(notes)


def _figures_table(result: ClimbResult) -> str:
    rungs = words.measured(result)
    score = Markup(f"{safe(result.metric)} {words.term('[95 %]', 'interval')}")
    own = map(_termed, (*words.QUALITY, *words.COSTS, "left the race"))
    heads = (_termed("rung"), score, *own)
    rows = [
        (rows_link(r.name, pick=r.name), words.score_text(r), *words.quality(result, r), *words.costs(r), r.reason)
        for r in rungs
    ]  # fmt: skip
    if not rungs:
        return ""
    best = next((i for i, rung in enumerate(rungs) if rung.name == result.recommended), None)
    return table_html(heads, rows, best=best, why=(len(heads) - 1,)) + _paragraphs(words.quality_notes(result))


def _last_settings(result: ClimbResult) -> dict[str, Mapping[str, Any]]:
    """The settings of each artifact's last rung."""
    return {rung.name: rung.settings.get(rung.path[-1], {}) for rung in result.rungs if rung.path}


def _training_data(result: ClimbResult) -> str:
    """The data that the last rung of each tuned artifact was trained on, folded."""
    data = {name: settings.get(words.TRAINING_DATA) for name, settings in _last_settings(result).items()}
    return "".join(
        _folded(f"what {name} was trained on", _pre("\n".join(words.training_data_lines(values))))
        for name, values in data.items()
        if values
    )


def _glossary() -> str:
    return "<dl>" + "".join(f"<dt>{safe(word)}<dd>{safe(text)}" for word, text in words.glossary().items()) + "</dl>"


def _data(data: Mapping[str, Any]) -> str:
    rows = []
    for name, split in data["splits"].items():
        dropped = ", ".join(f"{count} {reason}" for reason, count in split["dropped"].items()) or "none"
        rows.append((name, split["read"], split["kept"], dropped))
    warnings = _paragraphs(
        f"{name}: {text}" for name in ("Problem", "Warning") for text in data.get(f"{name.lower()}s", ())
    )
    everything = _folded("everything", _pre(json.dumps(data, ensure_ascii=False, indent=1), None))
    return table_html(("split", "read", "kept", "dropped"), rows) + warnings + everything


def searches_section(result: ClimbResult) -> str:
    """The prompt searches of the climb: why each ended, and every candidate with its score; empty without any."""
    searches = {name: last for name, last in _last_settings(result).items() if "candidates" in last}
    return "".join(_search(name, search) for name, search in searches.items())


def _search(name: str, search: Mapping[str, Any]) -> str:
    spent, candidates, refused = search["spent"], search["candidates"], search["refused"]
    tokens = spent["prompt_tokens"] + spent["completion_tokens"]
    cost = f", {spent['money']:.4g} in money" if spent["money"] else ""
    summary = (
        f"{name}: {search['reason']}. {spent['calls']:,} calls, {tokens:,} tokens, {spent['seconds']:,.0f} s{cost}; "
        f"{search['search_rows']} rows to search on, {search['adoption_rows']} others to decide by."
    )
    heads = ("candidate", "made by", "rows", "score", "racing score", "what it asks")
    rows = [
        (c["name"], c["origin"], c["rows"], _percent(c["score"]), _percent(c["racing_score"]), _prompt_of(c))
        for c in candidates
    ]
    best = next((i for i, c in enumerate(candidates) if c["name"] == search["winner"]), None)
    table = _folded(
        f"{len(candidates)} candidates, the last leader marked", table_html(heads, rows, best=best, why=(5,))
    )
    items = "".join(f"<li>{safe(text['text'])} ({safe(text['reason'])})</li>" for text in refused)
    rejected = _folded(f"texts refused: {len(refused)}", f"<ul>{items}</ul>") if refused else ""
    return _paragraphs([summary]) + table + rejected


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _prompt_of(candidate: Mapping[str, Any]) -> Markup:
    """A candidate's prompt in words, folded under the beginning of its instruction."""
    listed, shots = "listed" if candidate["listed"] else "not listed", candidate["shots"]
    demonstrations = shots and f"{shots['k']} {shots['selection']}, seed {shots['seed']}, order {shots['order']}"
    lines = [
        f"system: {candidate['system']}" if candidate["system"] else "",
        f"instruction: {candidate['instruction']}",
        f"template: {candidate['template']}",
        f"labels: {VERBALIZERS[candidate['verbalizer']]}, {listed} in the prompt",
        f"demonstrations: {demonstrations or 'none'}",
        f"failed: {candidate['failed']}" if candidate.get("failed") else "",
    ]
    text = " ".join(candidate["instruction"].split())
    short = text if len(text) <= INSTRUCTION_SHOWN else text[: INSTRUCTION_SHOWN - 1] + "…"
    return _folded(short, _pre("\n".join(filter(None, lines)), None))


# ---- the decision guide: its flow chart as SVG, and its expectations next to what was measured

WIDTH, BOX, BRANCH = 860, 360, 430  # of the drawing, of a question; where branches begin; in pixels
LINE, PAD, GAP = 17, 9, 22
CHARACTERS = {BOX: 50, BRANCH: 54}  # that fit on a line at 13 pixels
TAKEN, OTHER, OPEN = "#D55E00", "#8A8A8A", "#2481BF"


def guide_section(result: ClimbResult) -> str:
    """The guide's flow chart with its sources, and its expectations next to the outcomes; empty without a guide."""
    if result.advice is None:
        return ""
    sources = {
        step["source"]["url"]: f"{step['question']} {step['source']['citation']}: {step['source']['url']}"
        for step in result.advice["steps"]
        if step["source"]
    }
    items = "".join(f"<li>{safe(source)}</li>" for source in sources.values())
    drawn = chart_svg(result.advice)
    chart = f'<div class="scroll plot wide" tabindex="0" role="group" aria-label="flow chart">{drawn}</div>'
    chart += f'<ul class="soft">{items}</ul>'
    outcome_of = words.outcomes(result)
    rows = []
    for expectation in result.advice["expectations"]:
        if (outcome := outcome_of.get(expectation["rung"])) is not None:
            expected, reasons = EXPECTATIONS[expectation["expect"]], "; ".join(expectation["reasons"])
            name = expectation["rung"]
            link = name if outcome.word in ("skipped", "failed") else rows_link(name, pick=name)
            rows.append((link, expected, reasons, f"{outcome.word}: {outcome.text}"))
    heads = ("rung", "the rules expect that it", "because", "measured")
    return _folded("the path of the rules", chart) + table_html(heads, rows, why=(1, 2, 3))


def chart_svg(advice: Mapping[str, Any]) -> str:
    """The flow chart: questions down the left, both answers to the right of each, the path taken in orange."""
    parts, top = [], 4
    for number, step in enumerate(advice["steps"], start=1):
        drawn, height = _step(step, top, last=number == len(advice["steps"]))
        parts.append(drawn)
        top += height + GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" height="{top}" '
        f'role="img" font-family="sans-serif" font-size="13" fill="currentColor"><title>The path of the rules</title>'
        f"{''.join(parts)}</svg>"
    )


def _step(step: Mapping[str, Any], top: int, *, last: bool) -> tuple[str, int]:
    """Draw one question with its answers; also return its height."""
    question = wrap(step["question"], CHARACTERS[BOX])
    observed = wrap(step["observed"] or (f"not known: {step['ask']}" if step["ask"] else ""), CHARACTERS[BOX])
    answers = {name: wrap(f"{name}: {step[name]}", CHARACTERS[BRANCH]) for name in ("yes", "no")}
    left = 2 * PAD + LINE * (len(question) + len(observed))
    right = sum(LINE * len(lines) + PAD for lines in answers.values()) + PAD
    height = max(left, right)
    colour = OPEN if step["answer"] == "unknown" else TAKEN
    box = f'width="{BOX}" height="{height}" rx="6" fill="none" stroke="{colour}" stroke-width="1.5"'
    parts = [
        f'<rect x="1" y="{top}" {box}/>',
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
