"""What a server needs of this package, put together: a recorder, routers, and a follower of the registry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rung.errors import ConfigError
from rung.feedback.api import failures_router, feedback_router
from rung.feedback.capture import Capture, Mode
from rung.feedback.records import Challenge
from rung.feedback.redact import Redactor
from rung.feedback.registry import Follower
from rung.feedback.store import Store

if TYPE_CHECKING:
    from fastapi import APIRouter, Request


@dataclass(frozen=True)
class Wiring:
    """Parts of a running server; `close` it when the server has answered its last request."""

    store: Store
    capture: Capture
    routers: tuple[APIRouter, ...]
    follower: Follower | None = None

    def close(self) -> None:
        """Stop following, write what waits, close the store."""
        if self.follower is not None:
            self.follower.close()
        self.capture.close()
        self.store.close()


def wired(
    place: str | Path,
    *,
    mode: Mode = "on",
    rate: float = 1.0,
    redact: Redactor | None = None,
    key_of: Callable[[Request], str | None] = lambda request: None,
    allowed: Callable[[Request], None] = lambda request: None,
    registry: Path | None = None,
    load: Callable[[Path, str], Any] = lambda folder, name: None,
    challenge: Callable[[str, tuple[Path, Challenge] | None], Any] = lambda name, what: None,
) -> Wiring:
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
    store = Store(place)
    capture = Capture(store, mode, rate, redact)
    routers = (
        feedback_router(store, capture=capture, redact=redact, key_of=key_of),
        failures_router(store, allowed=allowed),
    )

    def tried(name: str, what: tuple[Path, Challenge] | None) -> None:
        if what is not None and mode == "off":
            raise ConfigError(
                "trial-uncaptured", f"a trial runs for {name}, and what is answered is not captured",
                hint="serve with --capture on, or with --capture sampled",
            )  # fmt: skip
        challenge(name, what)

    return Wiring(store, capture, routers, Follower(registry, load, tried).start() if registry else None)
