"""Failures: the queue of suspicious answers with one case beside it, corrections, and undoing them."""

from __future__ import annotations

import getpass
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from difflib import SequenceMatcher
from typing import Annotated, Any, Literal
from urllib.parse import quote, unquote, urlencode

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from rung.errors import DataError, RungError
from rung.feedback.corrections import matched_label
from rung.feedback.records import EVERYTHING, QUEUE, REASONS, CaseFilter, DayCount, ReviewCase
from rung.feedback.store import FeedbackStore, in_force
from rung.serving.context import context_of, reviewers_only
from rung.serving.endpoints import ranked
from rung.serving.limits import Refused
from rung.serving.web.site import FormValues, page, see_other, sources_of

DifferenceKind = Literal["same", "gone", "new"]
LIKELIEST = 5  # labels on the keys 1 to 5
MAX_WORDS = 2000  # of both texts together; the time of matching grows with their product
SHOWN = 50  # cases of one list
DAYS, CHART = 60, (600.0, 80.0)  # of the chart of failures; its width and height
REVIEWER = "rung_reviewer"  # the cookie with the reviewer's name
VIEWS: Mapping[str, tuple[str, CaseFilter]] = {
    "queue": ("Queue", QUEUE),
    "failures": ("Corrected", CaseFilter(failure=True)),
    "right": ("Found right", CaseFilter(reviewed=True, failure=False)),
    "contested": ("Contradicting", CaseFilter(contested=True)),
    "all": ("Everything", EVERYTHING),
}
router = APIRouter(prefix="/failures", include_in_schema=False, dependencies=[Depends(reviewers_only)])


# ---- what a correction changes, word by word


def differences(actual: str, expected: str) -> list[tuple[DifferenceKind, str]]:
    """Compare two texts: the pieces `same` and `gone` join to `actual`, `same` and `new` to `expected`.

    Texts that are too long to match differ as a whole.
    """
    if actual == expected:
        return [("same", actual)] if actual else []
    before, after = (re.findall(r"\w+|\s+|[^\w\s]", text) for text in (actual, expected))
    if len(before) + len(after) > MAX_WORDS:
        matched = [("replace", 0, len(before), 0, len(after))]
    else:
        matched = list(SequenceMatcher(None, before, after, autojunk=False).get_opcodes())
    pieces: list[tuple[DifferenceKind, str]] = []
    gone = new = ""
    for i, (tag, b0, b1, a0, a1) in enumerate(matched):
        old, now = "".join(before[b0:b1]), "".join(after[a0:a1])
        between = 0 < i < len(matched) - 1 and not re.search(r"\w", old)
        if tag != "equal" or between:  # a space or comma between two changes would only split them
            gone, new = gone + old, new + now
            continue
        pieces += [("gone", gone), ("new", new), ("same", old)]
        gone = new = ""
    return [piece for piece in [*pieces, ("gone", gone), ("new", new)] if piece[1]]


# ---- the cases that a reviewer looks at


@dataclass(frozen=True, slots=True)
class ReviewQuery:
    """Which cases a reviewer looks at, as in the page's address."""

    view: str = "queue"
    task: str = ""
    reason: str = ""
    text: str = ""
    start: int = 0

    @property
    def filter(self) -> CaseFilter:
        """The filter for the store."""
        reason = next((known for known in REASONS if known == self.reason), None)
        return replace(VIEWS[self.view][1], task=self.task or None, reason=reason, text=self.text or None)

    def query(self, **changes: str | int) -> str:
        """Format the query of an address, with changes; defaults are left out."""
        values = {**asdict(self), **changes}
        shown = {name: value for name, value in values.items() if value and (name, value) != ("view", "queue")}
        return "?" + urlencode(shown) if shown else ""


def query_of(request: Request) -> ReviewQuery:
    """Read the query of an address; unknown values are left out."""
    values = request.query_params
    view, start = values.get("view", "queue"), values.get("start", "0")
    return ReviewQuery(
        view if view in VIEWS else "queue", values.get("task", ""), values.get("reason", ""),
        values.get("text", "")[:1000],
        int(start) if start.isascii() and start.isdigit() and len(start) < 9 else 0,
    )  # fmt: skip


def store_of(request: Request) -> FeedbackStore:
    """Get the store of captured answers; where nothing is captured, refuse with 404."""
    store = sources_of(request).store
    if store is None:
        raise Refused(404, "no-store", "this server captures nothing; start it with `--capture on`")
    return store


Query = Annotated[ReviewQuery, Depends(query_of)]
Store = Annotated[FeedbackStore, Depends(store_of)]


@router.get("")
def queue(request: Request, look: Query, done: str = "") -> Response:
    """Show the list, and its first case."""
    return _page(request, look, None, done=done)


@router.get("/{identity}")
def case(identity: str, request: Request, look: Query, done: str = "") -> Response:
    """Show the list and one case."""
    return _page(request, look, identity, done=done)


@router.post("/{identity}/correction")
def correct(identity: str, request: Request, look: Query, store: Store, form: FormValues) -> Response:
    """Store a correction, and go to the next case."""
    reviewed, reviewer = _case(store, identity), signature(request, form)
    interaction = reviewed.interaction
    expected = interaction.actual if "right" in form else form.get("exactly", form.get("expected", ""))
    before, after = _neighbours([each.interaction.id for each in _cases(store, look)], identity)
    labels = context_of(request).server.served.labels(interaction.task)
    try:
        if labels:
            expected = matched_label(expected, labels, interaction.task)
        store.correct(identity, expected, reviewer, form.get("comment", ""))
    except DataError as error:
        problem = f"{error}: {error.hint}" if error.hint.startswith("did you mean") else str(error)
        return _page(request, look, identity, problem=problem, draft=expected, status=400, reviewer=reviewer)
    return _to(after or before, look, done=identity, reviewer=reviewer)


@router.post("/{identity}/undo")
def undo(identity: str, request: Request, look: Query, store: Store, form: FormValues) -> Response:
    """Undo the reviewer's own last correction, and show the case."""
    _case(store, identity)
    reviewer = signature(request, form)
    try:
        store.undo(identity, reviewer)
    except DataError as error:
        return _page(request, look, identity, problem=str(error), status=400, reviewer=reviewer)
    return _to(identity, look, reviewer=reviewer)


@router.post("/{identity}/difference")
def difference(identity: str, request: Request, store: Store, form: FormValues) -> Response:
    """Show what a correction changes while it is typed."""
    actual = _case(store, identity).interaction.actual
    return page(request, "difference", "Difference", pieces=differences(actual, form.get("expected", "")))


@router.get("/{identity}/labels")
async def likeliest(identity: str, request: Request, store: Store) -> Response:
    """Show the likeliest labels of a case's inputs as buttons, as the artifact that is served for the task answers."""
    context, interaction = context_of(request), _case(store, identity).interaction
    served, top, problem = context.server.served.labelling(interaction.task), list[tuple[str, float]](), ""
    if served is not None:
        context.admit(1)
        try:
            ((answer, _),) = await context.answer_rows(served, [dict(interaction.inputs)])
            top = ranked(served, answer.probabilities)[:LIKELIEST] if answer.probabilities else []
        except RungError as error:
            problem = str(error)
    if not top and not problem:
        return Response(status_code=204)
    return page(request, "labels", "Labels", served=served, top=top, problem=problem)


def _page(
    request: Request, look: ReviewQuery, identity: str | None, *, done: str = "", problem: str = "",
    draft: str | None = None, status: int = 200, reviewer: str = "",
) -> Response:  # fmt: skip
    store = sources_of(request).store
    if store is None:
        return page(request, "no_store", "Failures")
    cases = _cases(store, look)
    chosen = _case(store, identity) if identity is not None else next(iter(cases), None)
    tasks = {served.artifact.signature.task for served in context_of(request).server.served.artifacts()}
    reviewer = reviewer or reviewer_of(request)
    values = {
        "look": look, "views": VIEWS, "reasons": REASONS, "tasks": sorted(tasks | {look.task} - {""}), "cases": cases,
        "total": store.count(look.filter), "shown": SHOWN, "case": chosen, "opened": identity is not None,
        "days": _days(store, look), "done": done, "problem": problem, "reviewer": reviewer, "own": False,
    }  # fmt: skip
    if chosen is not None:
        interaction = chosen.interaction
        if draft is None:
            draft = chosen.expected or chosen.suggestion or interaction.actual
        before, after = _neighbours([each.interaction.id for each in cases], interaction.id)
        history, about = store.history(interaction.id), (interaction.task, interaction.input_id)
        values |= {
            "before": before, "after": after, "draft": draft, "pieces": differences(interaction.actual, draft),
            "labels": context_of(request).server.served.labels(interaction.task),
            "history": history, "own": in_force(history, reviewer) is not None,
            "opinions": store.opinions(*about).get(about), "feedback": store.feedback(interaction.id),
        }  # fmt: skip
    return page(request, "failures", "Failures", status=status, **values)


def _days(store: FeedbackStore, look: ReviewQuery) -> list[dict[str, Any]]:
    """Lay out the answers of the last days, with those on which none were asked; nothing for a single day.

    Each has its `count`, and its place and the heights of its bars in units of the view box.
    """
    counts = store.daily(look.task or None, days=DAYS)
    if len(counts) < 2:
        return []
    known, last = {each.day: each for each in counts}, counts[-1].day
    first = max(counts[0].day, last - timedelta(days=DAYS - 1))
    days = [first + timedelta(days=number) for number in range((last - first).days + 1)]
    most, step = max(each.answers for each in counts), CHART[0] / len(days)
    shown = [known.get(day, DayCount(day, 0, 0, 0)) for day in days]
    return [
        {"count": each, "x": round(step * place, 1),
         "heights": [_height(number, most) for number in (each.answers, each.suspicious, each.wrong)]}
        for place, each in enumerate(shown)
    ]  # fmt: skip


def _height(count: int, most: int) -> float:
    return round(CHART[1] * count / most, 1)


def _cases(store: FeedbackStore, look: ReviewQuery) -> list[ReviewCase]:
    return store.cases(look.filter, limit=SHOWN, offset=look.start)


def _neighbours(ids: Sequence[str], identity: str) -> tuple[str | None, str | None]:
    """Find the cases before and after one in a list; the first comes after one that is not in it."""
    if identity not in ids:
        return None, next(iter(ids), None)
    i = ids.index(identity)
    return (ids[i - 1] if i else None), next(iter(ids[i + 1 :]), None)


def reviewer_of(request: Request) -> str:
    """The name of who is signed in; without keys, the name given last, or that of the user who runs the server."""
    key = context_of(request).key
    return (key.name or key.id) if key else unquote(request.cookies.get(REVIEWER, "")) or getpass.getuser()


def signature(request: Request, form: Mapping[str, str]) -> str:
    """Whose name goes below what a form decides: who is signed in, and only without keys the name in the form."""
    return reviewer_of(request) if context_of(request).key else form.get("reviewer", "").strip()


def _to(identity: str | None, look: ReviewQuery, *, reviewer: str, done: str = "") -> Response:
    query = look.query()
    if done:
        query += f"{'&' if query else '?'}done={quote(done, safe='')}"
    response = see_other(f"/failures{'/' + quote(identity, safe='') if identity else ''}{query}")
    response.set_cookie(REVIEWER, quote(reviewer.strip()[:200]), 365 * 86400, httponly=True, samesite="strict")
    return response


def _case(store: FeedbackStore, identity: str) -> ReviewCase:
    """Look up a case; refuse with 404 if there is none."""
    try:
        return store.case(identity)
    except DataError as error:
        raise Refused(404, error.code, str(error)) from error
