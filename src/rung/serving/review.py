"""What the endpoints of `rung.feedback` need of this server: who asks, who may review, and what capture dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException
from starlette.requests import Request

from rung.serving.visit import visit_of

if TYPE_CHECKING:
    from fastapi import FastAPI

    from rung.feedback.capture import Capture


def key_of(request: Request) -> str | None:
    """Return the id of the key that a request came with."""
    key = visit_of(request).key
    return None if key is None else key.id


def reviewers_only(request: Request) -> None:
    """Refuse requests whose key may not review: what is corrected is trained on.

    Raises:
        HTTPException: it may not.
    """
    key = visit_of(request).key
    if key is None or not key.admin:
        raise HTTPException(403, "this key may not review: make one with `rung keys create --admin`")


def watch_capture(app: FastAPI, capture: Capture) -> None:
    """Show among the metrics what became of the interactions that were offered to a capture."""
    told = {
        "offered": "Interactions offered to capture.",
        "left_out": "Interactions that the mode of capture leaves out.",
        "dropped": "Interactions lost: the queue was full, or the store could not be written.",
        "waiting": "Interactions that wait to be written.",
        "written": "Interactions in the store.",
    }
    app.state.rung.metrics.watch("rung_capture", told, lambda: capture.counts)
