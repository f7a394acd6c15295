"""The rows of a climb, a page at a time: what was measured, with the filters of the report, and one row in full.

The files of a run are read again only after they have changed. Nothing is written to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from rung.climbing.store import watch_predictions
from rung.evaluation.report.explorer import AnsweredRows, answered_rows, notes_of
from rung.evaluation.report.words import measured
from rung.serving.limits import Refused
from rung.serving.web.runs import RunFolder, report_of, run_folder
from rung.serving.web.site import page, sources_of

router = APIRouter(include_in_schema=False)
PAGE = 25  # rows shown at once
MOST_LABELS = 500  # in a list to choose from


@dataclass(frozen=True, slots=True)
class ShownAnswer:
    """One rung's answer to a row."""

    rung: str
    text: str
    score: float
    notes: str  # confidence, and the metric's reason


@dataclass(frozen=True, slots=True)
class ShownRow:
    """A row of the table: its address, and what the chosen rung answered."""

    link: str  # empty for a training row, which no rung answers
    source: str
    split: str
    text: str
    expected: str
    likely: str  # the label that it probably has, where the expected one may be wrong
    answer: ShownAnswer


@router.get("/runs/{name}/rows")
def rows(
    name: str, request: Request, pick: str = "", kind: str = "wrong", expected: str = "", given: str = "",
    find: str = "", start: Annotated[int, Query(ge=0, le=10**9)] = 0,
) -> Response:  # fmt: skip
    """Show the rows that the filters choose."""
    run = _finished(request, name)
    found = _rows_of(run)
    arm = found.arms.index(pick) if pick in found.arms else found.place
    filters = {"pick": found.arms[arm] if found.arms else "", "kind": kind, "expected": expected, "given": given,
               "find": find}  # fmt: skip
    numbers = found.chosen(arm, filters)
    start = min(start - start % PAGE, max(0, len(numbers) - 1) // PAGE * PAGE)
    shown = [_shown(found, number, arm, name) for number in numbers[start : start + PAGE]]
    labels = [each if len(each) <= MOST_LABELS else [] for each in found.labels]

    def at(first: int) -> str:
        return "?" + urlencode({key: value for key, value in filters.items() if value} | {"start": first})

    return page(
        request, "rows", f"Rows of {run.task}", run=run, found=found, filters=filters, shown=shown, labels=labels,
        many=len(numbers), start=start, back=at(start - PAGE) if start else "",
        more=at(start + PAGE) if start + PAGE < len(numbers) else "",
    )  # fmt: skip


@router.get("/runs/{name}/row")
def row(name: str, request: Request, split: str, id: str, pick: str = "") -> Response:  # noqa: A002  a name in the address
    """Show one row: every rung's answer, and the exact prompt of one."""
    run = _finished(request, name)
    found = _rows_of(run)
    values = found.rows[found.keys.index((split, id))]["a"] if (split, id) in found.keys else []
    answers = [_answer(arm, one) for arm, one in zip(found.arms, values, strict=False) if one]
    if not answers:
        raise Refused(404, "no-row", f"there is no row {id!r} among the {split} rows of {name}")
    known = [answer.rung for answer in answers]
    pick = pick if pick in known else found.arms[found.place] if found.arms[found.place] in known else known[0]
    prediction = next(each for each in watch_predictions(run.folder, pick) if (each.split, each.id) == (split, id))
    return page(
        request, "row", f"A row of {run.task}", run=run, row=prediction, answers=answers, pick=pick,
        rows=f"/runs/{quote(name)}/rows?{urlencode({'pick': pick})}",
    )  # fmt: skip


def _finished(request: Request, name: str) -> RunFolder:
    run = run_folder(sources_of(request).runs, name)
    if run is None or run.state != "finished":
        raise Refused(404, "no-run", f"there is no finished climb {name!r}")
    return run


def _rows_of(run: RunFolder) -> AnsweredRows:
    files = sorted(run.folder.glob("rungs/*/predictions.jsonl"))
    stamps = tuple((str(file), file.stat().st_mtime_ns) for file in (run.folder / "report.json", *files))
    return _read(run, stamps)


@lru_cache(maxsize=2)
def _read(run: RunFolder, stamps: tuple[tuple[str, int], ...]) -> AnsweredRows:  # noqa: ARG001  they tell changes
    result = report_of(run)
    return answered_rows(result, {rung.name: watch_predictions(run.folder, rung.name) for rung in measured(result)})


def _shown(found: AnsweredRows, number: int, arm: int, run: str) -> ShownRow:
    (split, id_), values = found.keys[number], found.rows[number]
    link = f"/runs/{quote(run)}/row?{urlencode({'split': split, 'id': id_, 'pick': found.arms[arm]})}"
    answer = _answer(found.arms[arm], values["a"][arm])
    expected = " | ".join(values["e"])
    return ShownRow(
        link if any(values["a"]) else "", values["o"], split, values["i"], expected, values.get("l", ""), answer
    )


def _answer(rung: str, values: Mapping[str, Any] | None) -> ShownAnswer:
    if values is None:
        return ShownAnswer(rung, "", 1.0, "not asked")
    return ShownAnswer(rung, values["t"], values["s"], notes_of(values))
