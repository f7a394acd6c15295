"""HTTP: POST /v1/feedback for clients, and /v1/failures for reviewers. Routers; the server includes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from pydantic import BaseModel, ConfigDict, Field, model_validator

from rung.errors import ConfigError, RungError
from rung.feedback.capture import Capture, CaptureMode, Redactor
from rung.feedback.records import ABTest, CaseFilter, Feedback, Reason, Thumb
from rung.feedback.registry import Follower
from rung.feedback.store import FeedbackStore, case_values, details

Result = TypeVar("Result")
PAGE = 100
InteractionId = Annotated[str, Field(min_length=1, max_length=80)]
Text = Annotated[str, Field(max_length=100_000)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class FeedbackBody(_Body):
    """What a client says of a response; at least one of thumb, score, comment and expected."""

    id: InteractionId = Field(description="The response's id.")
    thumb: Thumb | None = None
    score: Annotated[float, Field(ge=0, le=1)] | None = None
    comment: Annotated[str, Field(max_length=10_000)] = ""
    expected: Text | None = Field(None, description="What should have been answered.")

    @model_validator(mode="after")
    def _says_something(self) -> FeedbackBody:
        if self.thumb is None and self.score is None and not self.comment.strip() and not (self.expected or "").strip():
            raise ValueError("give at least one of thumb, score, comment and expected")
        return self


class FeedbackGiven(BaseModel):
    """The feedback's number."""

    feedback: int


class CorrectionBody(_Body):
    """What was expected, and who says so."""

    expected: Annotated[str, Field(min_length=1, max_length=100_000)]
    reviewer: Annotated[str, Field(min_length=1, max_length=200)]
    comment: Annotated[str, Field(max_length=10_000)] = ""


class UndoBody(_Body):
    """Who undoes the correction that holds."""

    reviewer: Annotated[str, Field(min_length=1, max_length=200)]
    comment: Annotated[str, Field(max_length=10_000)] = ""


def feedback_router(
    store: FeedbackStore,
    *,
    capture: Capture | None = None,
    redact: Redactor | None = None,
    key_of: Callable[[Request], str | None] = lambda request: None,
) -> APIRouter:
    """Return POST /v1/feedback.

    Args:
        store: where feedback is kept.
        capture: what records the responses; one that still waits to be written is waited for.
        redact: what is taken out of comments and expected responses; None for the built-in patterns.
        key_of: returns the id of the API key that a request came with.
    """
    router = APIRouter(prefix="/v1", tags=["feedback"])
    clean = redact or Redactor()

    @router.post("/feedback", status_code=201, responses=_RESPONSES)
    def feedback(body: FeedbackBody, request: Request) -> FeedbackGiven:
        """Say whether a response was good, or what was expected."""
        expected = None if body.expected is None else clean.text(body.expected).strip() or None
        given = Feedback(
            body.id, body.thumb, body.score, clean.text(body.comment), expected, "user", key_of(request)
        )  # fmt: skip
        if capture is not None and capture.counts.waiting:
            capture.flush(timeout=5.0)
        return FeedbackGiven(feedback=_told(lambda: store.add_feedback(given)))

    return router


def failures_router(store: FeedbackStore, *, allowed: Callable[[Request], None] = lambda request: None) -> APIRouter:
    """Return the endpoints of review: list, look at, correct, undo.

    Args:
        store: where cases are kept.
        allowed: raises an HTTPException if a request may not review; what is corrected is trained on.
    """

    def guard(request: Request) -> None:
        allowed(request)

    router = APIRouter(prefix="/v1/failures", tags=["failures"], dependencies=[Depends(guard)])

    @router.get("", responses=_RESPONSES)
    def cases(
        task: str | None = None,
        artifact: str | None = None,
        split: Literal["train", "test"] | None = None,
        reason: Reason | None = None,
        suspicious: bool | None = None,
        reviewed: bool | None = None,
        failure: bool | None = None,
        text: Annotated[str | None, Query(max_length=1000)] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = PAGE,
        offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
    ) -> dict[str, Any]:
        """List cases, the most suspicious first; `suspicious=true&reviewed=false` is the queue."""
        which = CaseFilter(task, artifact, split, reason, suspicious, reviewed, failure, text)
        found = _told(lambda: store.cases(which, limit=limit, offset=offset))
        return {"cases": [case_values(case) for case in found], "count": _told(lambda: store.count(which))}

    @router.get("/{id}", responses=_RESPONSES)
    def case(id: str) -> dict[str, Any]:  # noqa: A002
        """Return one case with its feedback and its history."""
        return _told(lambda: details(store, id))

    @router.post("/{id}/correction", status_code=201, responses=_RESPONSES)
    def correct(id: str, body: CorrectionBody) -> dict[str, Any]:  # noqa: A002
        """Say what was expected."""
        number = _told(lambda: store.correct(id, body.expected, body.reviewer, body.comment))
        return {"correction": number, "case": case_values(_told(lambda: store.case(id)))}

    @router.post("/{id}/undo", status_code=201, responses=_RESPONSES)
    def undo(id: str, body: UndoBody) -> dict[str, Any]:  # noqa: A002
        """Undo the correction that holds; the one before it holds again."""
        number = _told(lambda: store.undo(id, body.reviewer, body.comment))
        return {"correction": number, "case": case_values(_told(lambda: store.case(id)))}

    return router


_RESPONSES: dict[int | str, dict[str, Any]] = {
    400: {"description": "The request is wrong."},
    404: {"description": "No interaction has this id."},
    503: {"description": "The store does not answer."},
}


def _told(work: Callable[[], Result]) -> Result:
    """Do something with the store; its errors become answers with the fitting status."""
    try:
        return work()
    except RungError as error:
        status = 404 if error.code == "no-such-interaction" else 400 if isinstance(error, ConfigError) else 503
        raise HTTPException(status, f"{error}; {error.hint}" if error.hint else str(error)) from error


# --------------------
# What a server needs of this package, put together: a recorder, routers, and a follower of the registry.


@dataclass(frozen=True)
class FeedbackService:
    """Parts of a running server; `close` it when the server has answered its last request."""

    store: FeedbackStore
    capture: Capture
    routers: tuple[APIRouter, ...]
    follower: Follower | None = None

    def close(self) -> None:
        """Stop following, write what waits, close the store."""
        if self.follower is not None:
            self.follower.close()
        self.capture.close()
        self.store.close()


def build_capture(
    place: str | Path,
    *,
    mode: CaptureMode = "on",
    rate: float = 1.0,
    redact: Redactor | None = None,
    key_of: Callable[[Request], str | None] = lambda request: None,
    allowed: Callable[[Request], None] = lambda request: None,
    registry: Path | None = None,
    load: Callable[[Path, str], Any] = lambda folder, name: None,
    challenge: Callable[[str, tuple[Path, ABTest] | None], Any] = lambda name, what: None,
) -> FeedbackService:
    """Open a store and put everything together.

    Args:
        place: of the store.
        mode: of capture: off, sampled or on.
        rate: of the sample.
        redact: what is taken out of stored text; None for the built-in patterns.
        key_of: returns the id of a request's API key.
        allowed: raises an HTTPException for requests that may not review.
        registry: folder of promoted artifacts to follow; those in it are loaded before this returns.
        load: serves the artifact of a folder under a name, in place of what is served under it.
        challenge: begins the trial of a folder's artifact beside what is served under a name, or ends the one there.
    """
    redact = redact or Redactor()
    store = FeedbackStore(place)
    capture = Capture(store, mode, rate, redact)
    routers = (
        feedback_router(store, capture=capture, redact=redact, key_of=key_of),
        failures_router(store, allowed=allowed),
    )

    def tried(name: str, what: tuple[Path, ABTest] | None) -> None:
        if what is not None and mode == "off":
            raise ConfigError(
                "server-option-missing", f"a trial runs for {name}, and what is answered is not captured",
                hint="serve with --capture on, or with --capture sampled",
            )  # fmt: skip
        challenge(name, what)

    return FeedbackService(store, capture, routers, Follower(registry, load, tried).start() if registry else None)
