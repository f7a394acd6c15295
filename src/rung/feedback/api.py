"""HTTP: POST /v1/feedback for clients, /v1/failures for reviewers, and the parts that a server with capture needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from pydantic import BaseModel, Field, model_validator

from rung.errors import ConfigError, RungError
from rung.feedback.capture import Capture, CaptureMode, Redactor
from rung.feedback.corrections import matched_label
from rung.feedback.records import ABTest, CaseFilter, Feedback, Reason, Side, Thumb
from rung.feedback.registry import Follower
from rung.feedback.store import FeedbackStore

PAGE = 100
Comment = Annotated[str, Field(max_length=10_000)]
Reviewer = Annotated[str, Field(min_length=1, max_length=200)]
_RESPONSES: dict[int | str, dict[str, Any]] = {
    400: {"description": "The request is wrong."},
    404: {"description": "No interaction has this id."},
    503: {"description": "The store does not answer."},
}


def _http_errors() -> Iterator[None]:
    """Turn an endpoint's errors into HTTP errors with the right status."""
    try:
        yield
    except RungError as error:
        status = 404 if error.code == "no-such-interaction" else 400 if isinstance(error, ConfigError) else 503
        raise HTTPException(status, f"{error}; {error.hint}" if error.hint else str(error)) from error


class FeedbackBody(BaseModel, extra="forbid"):
    """A client's opinion of a response; at least one of thumb, score, comment and expected."""

    id: Annotated[str, Field(min_length=1, max_length=80, description="The response's id.")]
    thumb: Thumb | None = None
    score: Annotated[float, Field(ge=0, le=1, strict=True)] | None = None  # `true` is no score
    comment: Comment = ""
    expected: Annotated[str | None, Field(max_length=100_000, description="The response that was expected.")] = None

    @model_validator(mode="after")
    def _not_empty(self) -> FeedbackBody:
        if self.thumb is None and self.score is None and not self.comment.strip() and not (self.expected or "").strip():
            raise ValueError("give at least one of thumb, score, comment and expected")
        return self


class FeedbackGiven(BaseModel):
    """The feedback's number."""

    feedback: int


class UndoBody(BaseModel, extra="forbid"):
    """Who undoes a correction."""

    reviewer: Reviewer
    comment: Comment = ""


class CorrectionBody(UndoBody):
    """The expected response, and who gives it."""

    expected: Annotated[str, Field(min_length=1, max_length=100_000)]


def feedback_router(
    store: FeedbackStore, *, capture: Capture | None = None, redact: Redactor | None = None,
    key_of: Callable[[Request], str | None] = lambda request: None,
) -> APIRouter:  # fmt: skip
    """POST /v1/feedback.

    Feedback waits until `capture` has written a queued response. `redact` removes secrets from what users and reviewers
    write into the store (None: the built-in patterns). `key_of` returns the id of a request's API key.
    """
    router = APIRouter(prefix="/v1", tags=["feedback"], dependencies=[Depends(_http_errors)])
    store.redact = (redact or Redactor()).text

    @router.post("/feedback", status_code=201, responses=_RESPONSES)
    def feedback(body: FeedbackBody, request: Request) -> FeedbackGiven:
        """Say whether a response was good, or what was expected."""
        given = Feedback(body.id, body.thumb, body.score, body.comment, body.expected, "user", key_of(request))
        if capture is not None and capture.counts.waiting:
            capture.flush(timeout=5.0)
        return FeedbackGiven(feedback=store.add_feedback(given))

    return router


def failures_router(
    store: FeedbackStore, *, allowed: Callable[[Request], None] = lambda request: None,
    labels: Callable[[str], Sequence[str]] = lambda task: (),
) -> APIRouter:  # fmt: skip
    """The endpoints of review: list, show, correct, undo.

    `labels` lists those of a task, where they are known: no other label is accepted. `allowed` raises an HTTPException
    if a request may not review; corrections become training data.
    """

    def guard(request: Request) -> None:
        allowed(request)

    dependencies = [Depends(guard), Depends(_http_errors)]
    router = APIRouter(prefix="/v1/failures", tags=["failures"], dependencies=dependencies)

    @router.get("", responses=_RESPONSES)
    def cases(
        task: str | None = None,
        artifact: str | None = None,
        split: Side | None = None,
        reason: Reason | None = None,
        suspicious: bool | None = None,
        reviewed: bool | None = None,
        failure: bool | None = None,
        contested: bool = False,
        text: Annotated[str | None, Query(max_length=1000)] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = PAGE,
        offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
    ) -> dict[str, Any]:
        """List cases, the most suspicious first; `suspicious=true&reviewed=false` is the queue."""
        which = CaseFilter(task, artifact, split, reason, suspicious, reviewed, failure, text, contested=contested)
        cases = [case.as_dict() for case in store.cases(which, limit=limit, offset=offset)]
        return {"cases": cases, "count": store.count(which)}

    @router.get("/{id}", responses=_RESPONSES)
    def case(id: str) -> dict[str, Any]:  # noqa: A002
        """Show one case with its feedback and its history."""
        return store.details(id)

    @router.post("/{id}/correction", status_code=201, responses=_RESPONSES)
    def correct(id: str, body: CorrectionBody) -> dict[str, Any]:  # noqa: A002
        """Say what was expected."""
        expected, known = body.expected, labels(store.case(id).interaction.task)
        if known:
            expected = matched_label(expected, known, id)
        number = store.correct(id, expected, body.reviewer, body.comment)
        return {"correction": number, "case": store.case(id).as_dict()}

    @router.post("/{id}/undo", status_code=201, responses=_RESPONSES)
    def undo(id: str, body: UndoBody) -> dict[str, Any]:  # noqa: A002
        """Undo the reviewer's own last correction; the one before it is in force again."""
        number = store.undo(id, body.reviewer, body.comment)
        return {"correction": number, "case": store.case(id).as_dict()}

    return router


@dataclass(frozen=True)
class FeedbackService:
    """What `build_capture` opened; `close` it after the server has answered its last request."""

    store: FeedbackStore
    capture: Capture
    routers: tuple[APIRouter, ...]
    follower: Follower | None = None

    def close(self) -> None:
        """Stop following the registry, write what is queued, close the store."""
        if self.follower is not None:
            self.follower.close()
        self.capture.close()
        self.store.close()


def build_capture(
    location: str | Path, *, mode: CaptureMode = "on", rate: float = 1.0, redact: Redactor | None = None,
    key_of: Callable[[Request], str | None] = lambda request: None,
    allowed: Callable[[Request], None] = lambda request: None,
    labels: Callable[[str], Sequence[str]] = lambda task: (),
    registry: Path | None = None,
    load: Callable[[Path, str], Any] = lambda folder, name: None,
    challenge: Callable[[str, tuple[Path, ABTest] | None], Any] = lambda name, trial: None,
) -> FeedbackService:  # fmt: skip
    """Open a store and build what a server needs: capture, routers, and a follower of the registry.

    The promoted artifacts in `registry` are loaded before this returns. For the other arguments see `Capture`,
    `feedback_router`, `failures_router` and `Follower`.
    """
    redact = redact or Redactor()
    store = FeedbackStore(location)
    capture = Capture(store, mode, rate, redact)
    routers = (
        feedback_router(store, capture=capture, redact=redact, key_of=key_of),
        failures_router(store, allowed=allowed, labels=labels),
    )

    def begin(name: str, trial: tuple[Path, ABTest] | None) -> None:
        if trial is not None and mode == "off":
            problem = f"a trial runs for {name}, but answers are not captured"
            hint = "serve with --capture on, or with --capture sampled"
            raise ConfigError("server-option-missing", problem, hint=hint)
        challenge(name, trial)

    return FeedbackService(store, capture, routers, Follower(registry, load, begin).start() if registry else None)
