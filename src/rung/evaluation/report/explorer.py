"""The rows of a climb as a table to search: input, expected answer, and what every rung answered.

In the report the rows are embedded as JSON, and its script draws them: text from the data never becomes markup. The
pages of a server choose rows by the same filters in Python, a page at a time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from rung.evaluation.report import words
from rung.evaluation.result import ClimbResult, Prediction, SuspectLabel
from rung.progress import Markup, safe

MOST_ROWS = 5_000  # in one page
MOST_PROMPTS = 100  # of the recommended rung, wrong rows first
MOST_CHARACTERS = 2_000  # of an input or answer
PROMPT_CHARACTERS = 20_000
PAGE = 25  # rows shown at once
SURE = 0.9  # confidence from which a wrong answer deserves a look at its label
ARMS = 3  # rungs that must fail on a row before it counts as hard; all of them where there are fewer

KINDS = {
    "wrong": "wrong", "changed": "fixed or broken", "fixed": "fixed", "broken": "broken",
    "sure": f"wrong, though {100 * SURE:.0f} % sure", "suspect": "label suspect", "hard": "answered right by no rung",
    "disagree": "rungs disagree", "abstained": "abstained", "retrieval": "no passage with the answer found",
    "reading": "passage found, but not used", "all": "all",
}  # fmt: skip

CHANGES = ("changed", "fixed", "broken")  # the kinds whose rows differ from the first rung's

STYLE = """
.filters{display:flex;flex-wrap:wrap;gap:.5rem 1rem;margin:.4rem 0}
.filters label{display:flex;gap:.4rem;align-items:center;max-width:100%}.filters select{min-width:0}
.filters input{font:inherit;padding:.2rem .4rem;min-width:0;max-width:16rem;flex:1}
#rows td{white-space:normal;text-align:left;vertical-align:top;min-width:7rem;max-width:26rem}
#rows td:first-child{overflow-wrap:normal}
#rows td:nth-child(3){min-width:10rem}#rows td:nth-child(4){min-width:13.5rem}
#rows th{text-align:left}#rows .bad{color:var(--best)}#rows small{color:var(--soft);display:block}
#rows tr.more td{background:var(--tint)}#rows button,.pages button{font:inherit;padding:.1rem .5rem}
.pages{display:flex;gap:.8rem;align-items:center;margin:.6rem 0}
@media(max-width:40rem){#rows thead{display:none}#rows,#rows tbody,#rows tr,#rows td{display:block;max-width:none}
#rows tr{border-bottom:2px solid var(--line);padding:.3rem 0}#rows td{border:0;padding:.15rem 0}
#rows td::before{content:attr(data-head);color:var(--soft);font-size:.8rem;display:block}}
"""

SCRIPT = """
const held = document.getElementById('held');
if (held) {
  const all = JSON.parse(held.textContent), arms = all.arms, at = id => document.getElementById(id);
  let from = 0;
  const make = (tag, text, parent) => {
    const made = document.createElement(tag);
    made.textContent = text;
    if (parent) parent.append(made);
    return made;
  };
  const change = (row, arm) => arm && row.a[0] ? Math.abs(row.a[arm].s - row.a[0].s) : 0;
  const about = (own, first, given, row) => {
    const gain = first ? own.s - first.s : 0, wrong = own.s < 1;
    return {
      all: true, wrong, changed: gain !== 0, fixed: gain > 0, broken: gain < 0,
      sure: wrong && own.c !== null && own.c >= all.sure, abstained: own.x, retrieval: own.f === 'retrieval',
      reading: own.f === 'reading', disagree: new Set(given.map(one => one.t)).size > 1,
      hard: given.length >= Math.min(all.least, row.a.length) && !given.some(one => one.s), suspect: 'l' in row,
    };
  };
  const fits = (row, arm) => {
    const own = row.a[arm], given = row.a.filter(one => one), text = at('find').value.toLowerCase();
    const kinds = own ? about(own, arm ? row.a[0] : null, given, row) : {suspect: 'l' in row};
    return kinds[at('kind').value]
      && (!at('expected').value || row.e.includes(at('expected').value))
      && (!at('given').value || own && own.t === at('given').value)
      && (!text || [row.o, row.i, ...row.e, ...given.map(one => one.t)]
        .some(part => part.toLowerCase().includes(text)));
  };
  const notes = one => {
    const failure = [...at('kind').options].find(option => option.value === one.f);
    return [
      one.c === null ? '' : `${(100 * one.c).toFixed(0)} % sure`, one.n, one.x ? 'abstained' : '',
      failure ? failure.text : '', one.s > 0 && one.s < 1 ? `score ${one.s.toFixed(2)}` : '',
    ].filter(note => note).join('; ');
  };
  const cell = (line, head, text, small) => {
    const made = make('td', text, line);
    made.dataset.head = head;
    if (small) make('small', small, made);
    return made;
  };
  const unfold = (line, row, button) => {
    const open = line.nextSibling && line.nextSibling.className === 'more';
    button.setAttribute('aria-expanded', String(!open));
    if (open) return line.nextSibling.remove();
    const under = make('tr', '');
    under.className = 'more';
    const wide = make('td', '', under);
    wide.colSpan = 5;
    row.a.forEach((one, number) => {
      if (!one) return;
      const said = make('p', '', wide);
      make('b', arms[number] + ': ', said);
      make('span', one.t, said).className = one.s < 1 ? 'bad' : '';
      const state = one.s >= 1 ? 'right' : one.s > 0 ? '' : 'wrong';
      make('small', [state, notes(one)].filter(part => part).join('; '), said);
    });
    if (row.q) make('pre', row.q, wide).tabIndex = 0;
    line.after(under);
  };
  const show = () => {
    const arm = +at('pick').value, rows = all.rows.filter(row => fits(row, arm)), body = at('rows').tBodies[0];
    if (all.changes.includes(at('kind').value)) rows.sort((a, b) => change(b, arm) - change(a, arm));
    from = Math.max(0, Math.min(from, Math.floor((rows.length - 1) / all.page) * all.page));
    body.replaceChildren();
    at('chosen').textContent = arms[arm];
    const last = Math.min(from + all.page, rows.length);
    at('many').textContent = rows.length ? `${from + 1} to ${last} of ${rows.length} rows` : 'no rows';
    for (const row of rows.slice(from, last)) {
      const line = make('tr', '', body), own = row.a[arm];
      cell(line, 'row', row.o, row.p);
      cell(line, 'input', row.i);
      cell(line, 'expected', row.e.join(' | '), row.l && `likely ${row.l}`);
      if (own) cell(line, arms[arm], own.t, notes(own)).className = own.s < 1 ? 'bad' : '';
      else cell(line, arms[arm], '', 'not asked');
      const end = cell(line, '', '');
      if (!row.a.some(one => one)) continue;
      const more = make('button', 'all rungs', end);
      more.type = 'button';
      more.setAttribute('aria-expanded', 'false');
      more.addEventListener('click', () => unfold(line, row, more));
    }
  };
  const follow = () => {
    if (!location.hash.startsWith('#rows?')) return;
    const asked = {kind: 'wrong', expected: '', given: '', find: ''};
    for (const [name, value] of new URLSearchParams(location.hash.slice(6))) asked[name] = value;
    for (const [name, value] of Object.entries(asked)) {
      if (at(name)) at(name).value = name === 'pick' ? String(arms.indexOf(value)) : value;
    }
    from = 0;
    show();
    at('rows').scrollIntoView();
  };
  const again = step => () => { from = step ? from + step : 0; show(); };
  for (const id of ['pick', 'kind', 'expected', 'given', 'find']) at(id).addEventListener('input', again(0));
  at('back').addEventListener('click', again(-all.page));
  at('next').addEventListener('click', again(all.page));
  addEventListener('hashchange', follow);
  show();
  follow();
}
"""


Filters = Mapping[str, str]  # `kind`, `expected`, `given` and `find`, as the script reads them


@dataclass(frozen=True, slots=True)
class AnsweredRows:
    """The rows of a climb, those that the recommended rung answers worst first, as values of JSON.

    Attributes:
        arms: the names of the measured rungs.
        place: the number of the recommended one.
        keys: the split and id of each row.
        rows: what is known of it, see `_row`.
        kinds: the filters that choose any rows, by their names.
        labels: the labels that were expected, and those that were answered; empty where answers are no labels.
    """

    arms: list[str]
    place: int
    keys: Sequence[tuple[str, str]]
    rows: list[dict[str, Any]]
    kinds: dict[str, str]
    labels: tuple[list[str], list[str]]

    def chosen(self, arm: int, filters: Filters) -> list[int]:
        """The numbers of the rows that one arm answered and that the filters let pass, as the report's script does.

        Of those whose score changed, the ones that changed most come first. Rows whose label may be wrong pass their
        filter without an answer, too: most are training rows.
        """
        numbers = [number for number, row in enumerate(self.rows) if _fits(row, arm, filters)]
        if filters.get("kind") in CHANGES:
            numbers.sort(key=lambda number: -abs(_gain(self.rows[number], arm)))
        return numbers


def answered_rows(
    result: ClimbResult, predictions: Mapping[str, Sequence[Prediction]], *, prompts: int = 0
) -> AnsweredRows:
    """Put together what every rung answered to each row; the first rows have the recommended rung's prompt."""
    arms = [rung.name for rung in words.measured(result)] or [result.recommended]  # which then answered no row
    answered = {name: {(row.split, row.id): row for row in predictions.get(name, ())} for name in arms}
    keys = list(dict.fromkeys(key for name in (result.recommended, *arms) for key in answered.get(name, ())))
    best = answered.get(result.recommended, {})
    keys.sort(key=lambda key: best[key].score if key in best else 1.0)  # the worst first; stable
    suspects = {(each.split, each.id): each for each in result.suspects}
    rows = [
        _row([answered[name].get(key) for name in arms], best.get(key) if number < prompts else None, suspects.get(key))
        for number, key in enumerate(keys)
    ]
    unasked = [key for key in suspects if key not in set(keys)]
    rows += [_unasked(suspects[key], len(arms)) for key in unasked]
    retrieved = any(_failure(row) for row in best.values())
    absent = set() if retrieved else {"retrieval", "reading"}
    absent |= set() if suspects else {"suspect"}
    kinds = {kind: text for kind, text in KINDS.items() if kind not in absent}
    expected = sorted({label for row in rows for label in row["e"]}) if result.kind == "category" else []
    given = sorted({one["t"] for row in rows for one in row["a"] if one}) if expected else []
    place = arms.index(result.recommended) if result.recommended in arms else 0
    return AnsweredRows(arms, place, (*keys, *unasked), rows, kinds, (expected, given))


def _gain(row: Mapping[str, Any], arm: int) -> float:
    """What an arm that answered the row scores above the first one there."""
    first = row["a"][0] if arm else None
    return float(row["a"][arm]["s"] - first["s"]) if first else 0.0


def _fits(row: Mapping[str, Any], arm: int, filters: Filters) -> bool:
    own, answers = row["a"][arm], [one for one in row["a"] if one]
    kind, expected, given = (filters.get(name, "") for name in ("kind", "expected", "given"))
    fits = {"suspect": "l" in row}
    if own is not None:
        gain, wrong = _gain(row, arm), own["s"] < 1
        fits |= {
            "all": True, "wrong": wrong, "changed": gain != 0, "fixed": gain > 0, "broken": gain < 0,
            "sure": wrong and own["c"] is not None and own["c"] >= SURE, "abstained": own.get("x", False),
            "retrieval": own.get("f") == "retrieval", "reading": own.get("f") == "reading",
            "disagree": len({one["t"] for one in answers}) > 1,
            "hard": len(answers) >= min(ARMS, len(row["a"])) and not any(one["s"] for one in answers),
        }  # fmt: skip
    text, parts = filters.get("find", "").lower(), (row["o"], row["i"], *row["e"], *(one["t"] for one in answers))
    return (
        bool(fits.get(kind or "wrong"))
        and (not expected or expected in row["e"])
        and (not given or (own is not None and own["t"] == given))
        and (not text or any(text in part.lower() for part in parts))
    )


def notes_of(answer: Mapping[str, Any]) -> str:
    """What is to be said of an answer: confidence, the metric's reason, a partial score, a failure of retrieval."""
    notes = ["" if answer["c"] is None else f"{100 * answer['c']:.0f} % sure", answer.get("n", "")]
    notes += ["abstained" if answer.get("x") else "", KINDS.get(answer.get("f", ""), "")]
    notes.append(f"score {answer['s']:.2f}" if 0 < answer["s"] < 1 else "")
    return "; ".join(filter(None, notes))


def rows_section(result: ClimbResult, predictions: Mapping[str, Sequence[Prediction]]) -> str:
    """The rows that the recommended rung answered, with the answers of all rungs, and what filters them."""
    found = answered_rows(result, predictions, prompts=MOST_PROMPTS)
    if not found.keys:
        return ""
    rows = [row for number, row in enumerate(found.rows) if number < MOST_ROWS or "l" in row]
    held = {"arms": found.arms, "rows": rows, "page": PAGE, "sure": SURE, "least": ARMS, "changes": CHANGES}
    text = json.dumps(held, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    arms, place, kinds, (expected, given) = found.arms, found.place, found.kinds, found.labels
    more = len(found.rows) - len(rows)
    left_out = (
        f"<p>{more:,} more rows are in predictions.jsonl, and on the pages of rung serve.</p>" if more > 0 else ""
    )
    return (
        f'<div class="filters"><label>Rung <select id="pick">{_options(enumerate(arms), place)}</select></label>'
        f'<label>Rows <select id="kind">{_options(kinds.items())}</select></label>'
        f'<label{"" if expected else " hidden"}>Expected <select id="expected">{_any(expected)}</select></label>'
        f'<label{"" if given else " hidden"}>Answered <select id="given">{_any(given)}</select></label>'
        '<label>Text <input id="find" type="search"></label></div>'
        '<div class="scroll" tabindex="0" role="group" aria-label="table of rows"><table id="rows"><thead><tr><th>row'
        '<th>input<th>expected<th id="chosen"><th>more</tr></thead><tbody></tbody></table></div>'
        '<div class="pages"><button id="back" type="button">back</button>'
        f'<span id="many" role="status"></span><button id="next" type="button">next</button></div>{left_out}'
        f'<script type="application/json" id="held">{text}</script>'
    )


def rows_link(text: str, **filters: str) -> Markup:
    """A link to the rows that the filters choose: `pick` (a rung), `kind`, `expected`, `given`."""
    return Markup(f'<a href="#rows?{safe(urlencode(filters))}">{safe(text)}</a>')


def rows_links(kind: str, *arms: str) -> str:
    """A paragraph below a figure that leads to the rows behind it: one link for each rung."""
    links = ", ".join(rows_link(arm, pick=arm, kind=kind) for arm in arms)
    return f'<p class="soft">Rows that are {safe(KINDS[kind])}: {links}</p>' if arms else ""


def _options(choices: Any, selected: Any = None) -> str:
    return "".join(
        f'<option value="{safe(value)}"{" selected" if value == selected else ""}>{safe(text)}</option>'
        for value, text in choices
    )


def _any(labels: Sequence[str]) -> str:
    return _options([("", "any"), *((label, label) for label in labels)])


def _failure(row: Prediction) -> str:
    return str((row.retrieval or {}).get("failure") or "")


def plain(inputs: Mapping[str, Any]) -> str:
    """The inputs of a row as one text."""
    return " | ".join(str(value) for value in inputs.values())


def _row(
    answers: Sequence[Prediction | None], prompted: Prediction | None, suspect: SuspectLabel | None
) -> dict[str, Any]:
    """A row for the script: origin, split, input, expected answers, the rungs' answers, prompt, and likely label."""
    first = next(answer for answer in answers if answer is not None)
    return {
        "o": first.source, "p": first.split, "e": [text[:MOST_CHARACTERS] for text in first.expected],
        "i": plain(first.inputs)[:MOST_CHARACTERS],
        "a": [None if one is None else _answer(one) for one in answers],
        **({} if prompted is None else {"q": prompted.prompt[:PROMPT_CHARACTERS]}),
        **({} if suspect is None else {"l": suspect.likely}),
    }  # fmt: skip


def _unasked(row: SuspectLabel, arms: int) -> dict[str, Any]:
    """A row for the script that no rung answered: one to train on."""
    return {"o": row.source, "p": row.split, "e": [row.given], "i": row.text, "a": [None] * arms, "l": row.likely}


def _answer(row: Prediction) -> dict[str, Any]:
    """An answer for the script: text, score, confidence, and what is rare."""
    rare = {"n": row.note[:MOST_CHARACTERS], "x": row.abstained, "f": _failure(row)}
    sure = None if row.confidence is None else round(row.confidence, 4)
    kept = {key: value for key, value in rare.items() if value}
    return {"t": row.prediction[:MOST_CHARACTERS], "s": round(row.score, 4), "c": sure, **kept}
