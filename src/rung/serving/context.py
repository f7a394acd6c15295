"""What the endpoints of one server share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from starlette.requests import Request

from rung.serving.errors import Refused
from rung.serving.limits import Limits
from rung.serving.metrics import Metrics
from rung.serving.recording import Recorder
from rung.serving.served import Base, Encoder, ModelNotFoundError, Served, ServedArtifact
from rung.serving.shadows import Shadows

_Result = TypeVar("_Result")
RENDERERS = 4  # threads that render and tokenize


@dataclass
class Context:
    """The state behind the endpoints.

    Attributes:
        served: what is served.
        recorder: takes what was answered, or None.
        shadows: answers of challengers behind the responses; there where there is a recorder.
        load_from: below it lie artifacts that may be loaded over HTTP; None for no loading.
        keyed: whether requests need a key.
        ready: false from the moment when the server is told to end.
    """

    served: Served
    limits: Limits
    metrics: Metrics
    recorder: Recorder | None = None
    shadows: Shadows | None = None
    load_from: Path | None = None
    keyed: bool = False
    ready: bool = True
    _renderers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(RENDERERS, "rung-render"))
    _answerers: ThreadPoolExecutor | None = None

    def find(self, name: str) -> Base | Encoder | ServedArtifact:
        """Return what is served under a name.

        Raises:
            Refused: nothing is.
        """
        try:
            return self.served.find(name)
        except ModelNotFoundError:
            known = ", ".join(repr(one.name) for one in self.served.all())
            raise Refused(
                404, "model_not_found", f"no model is served as {name!r}; there are {known}", param="model"
            ) from None

    async def render(self, work: Callable[..., _Result], *arguments: Any, **options: Any) -> _Result:
        """Run short work (rendering, tokenizing) off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._renderers, partial(work, *arguments, **options))

    async def answer(self, work: Callable[..., _Result], *arguments: Any, **options: Any) -> _Result:
        """Run work that waits for an engine in a thread; there are enough for a full queue."""
        if self._answerers is None:
            self._answerers = ThreadPoolExecutor(self.limits.queue, "rung-answer")
        return await asyncio.get_running_loop().run_in_executor(self._answerers, partial(work, *arguments, **options))

    def close(self) -> None:
        """End threads and engines, once their work is done."""
        if self.shadows is not None:
            self.shadows.close()
        self._renderers.shutdown()
        if self._answerers is not None:
            self._answerers.shutdown()
        self.served.close()


def context_of(request: Request) -> Context:
    """Return the context of the application that serves a request."""
    context = request.app.state.rung
    assert isinstance(context, Context)
    return context
