"""Failures: the queue of suspicious answers, one case beside it, corrections and their undoing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Annotated, Literal
from urllib.parse import quote, unquote, urlencode

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from rung.errors import DataError
from rung.feedback.records import EVERYTHING, QUEUE, REASONS, CaseFilter, ReviewCase
from rung.feedback.store import FeedbackStore
from rung.serving.context import context_of
from rung.serving.limits import Refused
from rung.serving.web.site import form_of, page, reviewers_only, see_other, site_of

# --------------------
# What a correction changes, word by word.


Kind = Literal["same", "gone", "new"]
WORDS = 2000  # of both texts together; matching takes time with their product


def differences(actual: str, expected: str) -> list[tuple[Kind, str]]:
    """Return the pieces of both texts in order: those of the kinds `same` and `gone` joined are `actual`, those of
    `same` and `new` are `expected`. Texts that are too long to be matched differ as a whole.
    """  # noqa: D205
    if actual == expected:
        return [("same", actual)] if actual else []
    before, after = (re.findall(r"\w+|\s+|[^\w\s]", text) for text in (actual, expected))
    if len(before) + len(after) > WORDS:
        matched = [("replace", 0, len(before), 0, len(after))]
    else:
        matched = list(SequenceMatcher(None, before, after, autojunk=False).get_opcodes())
    pieces: list[tuple[Kind, str]] = []
    gone = new = ""
    for place, (tag, b0, b1, a0, a1) in enumerate(matched):
        old, now = "".join(before[b0:b1]), "".join(after[a0:a1])
        between = 0 < place < len(matched) - 1 and not re.search(r"\w", old)
        if tag != "equal" or between:  # a space or a comma that two changes share would only cut them up
            gone, new = gone + old, new + now
            continue
        pieces += [*_changed(gone, new), ("same", old)]
        gone = new = ""
    return [*pieces, *_changed(gone, new)]


def _changed(gone: str, new: str) -> list[tuple[Kind, str]]:
    pieces: list[tuple[Kind, str]] = [("gone", gone), ("new", new)]
    return [piece for piece in pieces if piece[1]]


router = APIRouter(prefix="/failures", include_in_schema=False, dependencies=[Depends(reviewers_only)])
Form = Annotated[dict[str, str], Depends(form_of)]
SHOWN = 50  # cases of one list
REVIEWER = "rung_reviewer"
VIEWS: Mapping[str, tuple[str, CaseFilter]] = {
    "queue": ("Queue", QUEUE),
    "failures": ("Corrected", CaseFilter(failure=True)),
    "right": ("Found right", CaseFilter(reviewed=True, failure=False)),
    "all": ("Everything", EVERYTHING),
}


@dataclass(frozen=True, slots=True)
class Look:
    """Which cases a reviewer looks at, as it stands in the address."""

    view: str = "queue"
    task: str = ""
    reason: str = ""
    text: str = ""
    start: int = 0

    @property
    def filter(self) -> CaseFilter:
        """The cases of the store."""
        reason = next((one for one in REASONS if one == self.reason), None)
        return replace(VIEWS[self.view][1], task=self.task or None, reason=reason, text=self.text or None)

    def query(self, **changes: str | int) -> str:
        """Return the look as a query, with changes."""
        values = {"view": self.view, "task": self.task, "reason": self.reason, "text": self.text, "start": self.start}
        left = {n: value for n, value in {**values, **changes}.items() if value and (n, value) != _DEFAULT}
        return "?" + urlencode(left) if left else ""


_DEFAULT = ("view", "queue")


def look_of(request: Request) -> Look:
    """Read the look from an address; what is unknown is left out."""
    asked = request.query_params
    view = asked.get("view", "queue")
    start = asked.get("start", "0")
    return Look(
        view if view in VIEWS else "queue", asked.get("task", ""), asked.get("reason", ""),
        asked.get("text", "")[:1000],
        int(start) if start.isascii() and start.isdigit() and len(start) < 9 else 0,
    )  # fmt: skip


Looking = Annotated[Look, Depends(look_of)]


@router.get("")
def queue(request: Request, look: Looking, done: str = "") -> Response:
    """Show the list, and its first case."""
    return _page(request, look, None, done=done)


@router.get("/{id}")
def case(id: str, request: Request, look: Looking, done: str = "") -> Response:  # noqa: A002
    """Show the list and one case."""
    return _page(request, look, id, done=done)


@router.post("/{id}/correction")
def correct(id: str, request: Request, look: Looking, form: Form) -> Response:  # noqa: A002
    """Keep a correction, and go on with the next case."""
    store, reviewer = _store(request), form.get("reviewer", "")
    found = _case(store, id)
    expected = found.interaction.actual if "right" in form else form.get("exactly", form.get("expected", ""))
    following = _following(store, look, id)
    try:
        _check_label(request, found, expected)
        store.correct(id, expected, reviewer, form.get("comment", ""))
    except DataError as error:
        return _page(request, look, id, problem=str(error), draft=expected, status=400)
    return _to(following, look, done=id, reviewer=reviewer)


@router.post("/{id}/undo")
def undo(id: str, request: Request, look: Looking, form: Form) -> Response:  # noqa: A002
    """Undo the correction that holds, and show the case."""
    store, reviewer = _store(request), form.get("reviewer", "")
    _case(store, id)
    try:
        store.undo(id, reviewer)
    except DataError as error:
        return _page(request, look, id, problem=str(error), status=400)
    return _to(id, look, reviewer=reviewer)


@router.post("/{id}/difference")
def difference(id: str, request: Request, form: Form) -> Response:  # noqa: A002
    """Show what a correction that is being written changes."""
    actual = _case(_store(request), id).interaction.actual
    return page(request, "difference", "Difference", pieces=differences(actual, form.get("expected", "")))


def _page(
    request: Request, look: Look, id: str | None, *, done: str = "", problem: str = "", draft: str | None = None,  # noqa: A002
    status: int = 200,
) -> Response:  # fmt: skip
    if site_of(request).store is None:
        return page(request, "no_store", "Failures")
    store = _store(request)
    cases, total = store.cases(look.filter, limit=SHOWN, offset=look.start), store.count(look.filter)
    chosen = _case(store, id) if id is not None else (cases[0] if cases else None)
    ids = [one.interaction.id for one in cases]
    before, after = _neighbours(ids, chosen.interaction.id if chosen else "")
    return page(
        request, "failures", "Failures", status=status, look=look, views=VIEWS, reasons=REASONS, cases=cases,
        total=total, shown=SHOWN, case=chosen, opened=id is not None, done=done, problem=problem,
        draft=_draft(chosen) if draft is None else draft,
        before=before, after=after,
        history=store.history(chosen.interaction.id) if chosen else [],
        feedback=store.feedback(chosen.interaction.id) if chosen else [],
        labels=_labels(request, chosen.interaction.task) if chosen else (),
        pieces=differences(chosen.interaction.actual, _draft(chosen)) if chosen else [],
        reviewer=reviewer_of(request),
        tasks=sorted(
            {one.artifact.shape.task for one in context_of(request).server.served.artifacts()} | {look.task} - {""}
        ),
    )  # fmt: skip


def _neighbours(ids: Sequence[str], id: str) -> tuple[str | None, str | None]:  # noqa: A002
    """Return the cases before and after one in a list; the first comes after one that is not in it."""
    if id not in ids:
        return None, next(iter(ids), None)
    place = ids.index(id)
    return (ids[place - 1] if place else None), next(iter(ids[place + 1 :]), None)


def reviewer_of(request: Request) -> str:
    """Return the name that a reviewer gave last, or that of the key."""
    key = context_of(request).key
    return unquote(request.cookies.get(REVIEWER, "")) or (key.name if key else "")


def _draft(case: ReviewCase | None) -> str:
    """Return what the field of the expected response begins with."""
    if case is None:
        return ""
    return case.expected or case.suggestion or case.interaction.actual


def _labels(request: Request, task: str) -> tuple[str, ...]:
    """Return the labels that answers of a task may be, where it is served and has some."""
    shapes = [one.artifact.shape for one in context_of(request).server.served.artifacts()]
    return next((shape.labels for shape in shapes if shape.task == task and shape.kind == "category"), ())


def _check_label(request: Request, case: ReviewCase, expected: str) -> None:
    labels = _labels(request, case.interaction.task)
    if labels and expected.strip() not in labels:
        raise DataError(
            "unknown-label", f"{expected.strip()!r} is none of the {len(labels)} labels of {case.interaction.task}",
            hint="choose one of them",
        )  # fmt: skip


def _following(store: FeedbackStore, look: Look, id: str) -> str | None:  # noqa: A002
    """Return the case after this one in the list, or the one before where it is the last."""
    ids = [one.interaction.id for one in store.cases(look.filter, limit=SHOWN, offset=look.start)]
    before, after = _neighbours(ids, id)
    return after or before


def _to(id: str | None, look: Look, *, reviewer: str, done: str = "") -> Response:  # noqa: A002
    query = look.query()
    if done:
        query += f"{'&' if query else '?'}done={quote(done, safe='')}"
    answer = see_other(f"/failures{'/' + quote(id, safe='') if id else ''}{query}")
    answer.set_cookie(REVIEWER, quote(reviewer.strip()[:200]), 365 * 86400, httponly=True, samesite="strict")
    return answer


def _store(request: Request) -> FeedbackStore:
    store = site_of(request).store
    if store is None:
        raise Refused(404, "no-store", "this server captures nothing; start it with `--capture on`")
    return store


def _case(store: FeedbackStore, id: str) -> ReviewCase:  # noqa: A002
    """Return a case.

    Raises:
        Refused: 404.
    """
    try:
        return store.case(id)
    except DataError as error:
        raise Refused(404, error.code, str(error)) from error
