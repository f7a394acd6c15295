"""What endpoints work with: the state of the server, and the context of one request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from fastapi import Depends
from starlette.requests import Request

from rung.artifact.decoder import Answer
from rung.data.rows import hash_of
from rung.engines.base import FinishReason
from rung.feedback.records import DEFAULT_RULE, Interaction, interaction_of
from rung.serving.access import Access, ApiKey
from rung.serving.conversations import ConversationPolicy
from rung.serving.limits import Gate, Refused, RequestLimits
from rung.serving.metrics import SHADOW, Metrics
from rung.serving.requests import answers_of
from rung.serving.scheduler import Completion
from rung.serving.served import Servable, Served, ServedArtifact, ServedModel, finish_reasons, scheduled
from rung.serving.shadows import Shadow, Shadows

if TYPE_CHECKING:
    from rung.feedback.capture import Capture
    from rung.serving.on_demand import Loader

_Result = TypeVar("_Result")
RENDERERS = 4  # threads that render and tokenize
LONG = 20_000  # characters of rows that are answered one after the other where no engine bounds their length
STATE = "rung.context"  # the key of a request's context in its ASGI scope


class ServerContext:
    """The state of one server; artifacts may be loaded over HTTP from folders below `load_from`."""

    def __init__(
        self, served: Served, access: Access, limits: RequestLimits, recorder: Capture | None, load_from: Path | None,
        conversation: ConversationPolicy = "last", on_demand: Loader | None = None,
    ) -> None:  # fmt: skip
        self.on_demand = on_demand
        self.served, self.access, self.limits = served, access, limits
        self.recorder, self.load_from, self.conversation = recorder, load_from, conversation
        self.ready = True  # until the server is asked to end
        self.gate = gate = Gate(limits.queue)
        self.metrics = Metrics(served, gate)
        self.shadows = shadows = None if recorder is None else Shadows(recorder, lambda: gate.inside > 0)
        if shadows is not None:
            self.metrics.watch("rung_shadow", SHADOW, lambda: shadows.counts)
        self._renderers = ThreadPoolExecutor(RENDERERS, "rung-render")
        self._answerers = ThreadPoolExecutor(limits.queue, "rung-answer")  # begins threads when they are needed
        # Counting the terms of a long row takes the interpreter for as much as a second, and memory for each of its
        # letters: side by side, a few such rows would leave the others no time.
        self._long_answerer = ThreadPoolExecutor(1, "rung-answer-long")

    def find(self, name: str) -> Servable:
        """Look up a name; one under which nothing is served is refused."""
        servable = self.served.find(name)
        if servable is None:
            known = ", ".join(repr(each.name) for each in self.served.all())
            raise Refused(404, "model_not_found", f"no model is served as {name!r}; there are {known}", param="model")
        return servable

    async def need(self, name: str) -> Servable:
        """Look up a name, after loading the artifact of that name where artifacts are loaded on demand."""
        found = None if self.on_demand is None else await self.on_demand.need(self.served, name)
        return found or self.find(name)

    async def render(self, work: Callable[..., _Result], *arguments: Any, **options: Any) -> _Result:
        """Run short work (rendering, tokenizing) off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._renderers, partial(work, *arguments, **options))

    async def answer(self, work: Callable[..., _Result], *arguments: Any, long: bool = False) -> _Result:
        """Run work that waits for an engine in a thread; there are enough for a full queue, but one for `long` work."""
        workers = self._long_answerer if long else self._answerers
        return await asyncio.get_running_loop().run_in_executor(workers, partial(work, *arguments))

    def close(self) -> None:
        """End threads and engines when their work is done."""
        if self.shadows is not None:
            self.shadows.close()
        self._renderers.shutdown()
        self._answerers.shutdown()
        self._long_answerer.shutdown()
        self.served.close()


@dataclass(slots=True)
class RequestContext:
    """One HTTP request from its first byte to its last."""

    server: ServerContext
    key: ApiKey | None = None  # that it came with; None where none is needed
    started: float = field(default_factory=time.monotonic)
    exits: ExitStack = field(default_factory=ExitStack)  # what happens when the request ends, for any reason

    @property
    def seconds(self) -> float:
        """Time since the request began."""
        return time.monotonic() - self.started

    @property
    def key_id(self) -> str | None:
        """The id of the API key."""
        return self.key.id if self.key else None

    @property
    def may_review(self) -> bool:
        """Whether this request may correct answers: any where no key is needed, else with a reviewer's key."""
        return self.may_decide or (self.key is not None and self.key.reviewer)

    @property
    def may_decide(self) -> bool:
        """Whether this request may change what is served: any where no key is needed, else with an admin's key."""
        return self.server.access.keys is None or (self.key is not None and self.key.admin)

    def admit(self, answers: int) -> None:
        """Take places in the queue until the request ends; a full queue refuses it."""
        since = self.server.gate.enter(answers)
        self.exits.callback(self.server.gate.leave, answers, since)

    async def answer_rows(
        self, served: ServedArtifact, rows: Sequence[Mapping[str, Any]]
    ) -> list[tuple[Answer, FinishReason]]:
        """Answer rows as `Artifact.predict` does, each with its finish reason; stops when the client leaves."""
        artifact, engine = scheduled(served)
        if engine is not None:
            self.exits.callback(engine.leave)
        long = engine is None and sum(len(str(value)) for row in rows for value in row.values()) > LONG
        answers = await self.server.answer(answers_of, artifact, rows, served.base, long=long)
        return list(zip(answers, finish_reasons(engine, len(rows)), strict=True))

    def record(
        self, served: ServedArtifact, row: Mapping[str, Any], answer: Answer, *, identity: str, finish: str
    ) -> None:
        """Record an artifact's answer under the id that the client gets; its shadow answers after the response."""
        recorder, trial = self.server.recorder, served.trial
        if recorder is None:
            return
        interaction = interaction_of(
            served.artifact, row, answer, id=identity, artifact_fingerprint=served.fingerprint,
            model_fingerprint=served.model_fingerprint, finish=finish, seconds=self.seconds, key=self.key_id,
            trial="" if trial is None else trial.token,
        )  # fmt: skip
        recorder.offer(interaction)
        challenger, shadows = served.challenger, self.server.shadows
        if trial is not None and trial.mode == "shadow" and challenger and shadows and recorder.takes(identity):
            self.exits.callback(shadows.offer, Shadow(challenger, row, identity, self.key_id))

    def record_plain(
        self, base: ServedModel, inputs: Mapping[str, Any], completion: Completion, *, identity: str
    ) -> None:
        """Record the answer of a bare base model."""
        if self.server.recorder is None:
            return
        interaction = Interaction(
            id=identity, at=datetime.now(UTC), task="", artifact="", model=base.fingerprint, system="", template="",
            template_version="", inputs=inputs, prompt_sha256=hash_of(dict(inputs), digits=64), actual=completion.text,
            confidence=None, prompt_tokens=completion.prompt_tokens, completion_tokens=completion.completion_tokens,
            seconds=self.seconds, key=self.key_id, finish=completion.finish, split=DEFAULT_RULE.side(inputs),
        )  # fmt: skip
        self.server.recorder.offer(interaction)


def context_of(request: Request) -> RequestContext:
    """Get the context that the middleware made for a request."""
    context = request.scope[STATE]
    assert isinstance(context, RequestContext)
    return context


def key_of(request: Request) -> str | None:
    """Get the id of the API key that a request came with."""
    return context_of(request).key_id


def reviewers_only(request: Request) -> None:
    """Refuse requests that may not review, because corrections become training data."""
    if not context_of(request).may_review:
        raise Refused(403, "forbidden", "this key may not review: make one with `rung keys create --reviewer`")


def administrators_only(request: Request) -> None:
    """Refuse requests that may not change what is served or what runs."""
    if not context_of(request).may_decide:
        raise Refused(403, "forbidden", "this key may not decide: make one with `rung keys create --admin`")


async def _context(request: Request) -> RequestContext:
    return context_of(request)  # asynchronous, because FastAPI runs other dependencies in threads


Context = Annotated[RequestContext, Depends(_context)]  # of an endpoint's argument
