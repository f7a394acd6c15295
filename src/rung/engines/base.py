"""The protocol of every engine: generate, score, embed.

An engine runs a base model and knows nothing about tasks. Requests carry chat messages (rendered by
`rung.models.chat`, the only renderer) or token ids; results carry text, token counts and seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from rung.errors import RungError
from rung.models.messages import Messages
from rung.progress import QUIET, Progress

ModelInput = Messages | tuple[int, ...]  # chat messages, or token ids that are already rendered
Cancelled = Callable[[], bool]  # asked from time to time: true ends a call early
FinishReason = Literal["stop", "length", "cancelled"]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. The default is greedy; a `temperature` above 0 samples, repeatably with a `seed`."""

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    call_marks: bool = False  # the text keeps special tokens that mark calls of tools


@dataclass(frozen=True, slots=True)
class Constraint:
    """What the text must match: one of `choices`, a `regex`, or a `json_schema` (its JSON text)."""

    kind: Literal["choices", "regex", "json_schema"]
    value: str | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """A request for one completion."""

    prompt: ModelInput
    sampling: Sampling = Sampling()
    constraint: Constraint | None = None
    adapter: str | None = None
    logprobs: bool = False


@dataclass(frozen=True, slots=True)
class Generation:
    """One completion. `logprobs` has one value per completion token, where the request asked for them.

    Then the torch engine also gives the `tokens`, the end token included, as vLLM does for prompts of tokens.

    A text that was cut ends with a whole character: half of one, which its last token may be, is left out. `seconds` is
    its share of the time in which all requests of the call were answered, not how long it took alone.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: FinishReason
    seconds: float
    logprobs: tuple[float, ...] = ()
    cached_tokens: int = 0  # of the prompt tokens: read from an endpoint's cache, at its own price
    reasoning: str = ""  # what an endpoint's model thought before the text
    tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.finish_reason != "stop":
            object.__setattr__(self, "text", whole_characters(self.text))


def whole_characters(text: str) -> str:
    """Leave out half a character at the end of a text that was cut, which decoders write as U+FFFD."""
    return text.rstrip("\ufffd")


CANCELLED = Generation("", 0, 0, "cancelled", 0.0)  # a completion that was never started


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Ask for the log-likelihood of every continuation, or only for the best one.

    With `best`, the engine may return early: the winner by `value = logprob / divisor - bias` is exact, the other
    entries may be `-inf`. `divisor` and `bias` have one entry per continuation (None: ones and zeros).
    """

    prompt: ModelInput
    continuations: tuple[tuple[int, ...], ...]
    adapter: str | None = None
    best: bool = False
    divisor: tuple[float, ...] | None = None
    bias: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """Log-likelihoods, natural logarithm, one per continuation, shape [continuations]."""

    logprobs: Floats
    prompt_tokens: int
    seconds: float  # share of this request in the time that all requests of the call took


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Which model runs where. `fingerprint` changes when results may: it covers model, precision and engine."""

    engine: str
    model: str
    device: str
    dtype: str
    parameters: int
    context: int
    fingerprint: str
    details: dict[str, Any] = field(default_factory=dict)


class Engine(Protocol):
    """Runs one base model. All calls take many requests and return results in the same order."""

    @property
    def info(self) -> EngineInfo:
        """Which model runs on which device."""

    def generate(
        self, requests: Sequence[GenerateRequest], *, progress: Progress = QUIET, cancelled: Cancelled | None = None
    ) -> list[Generation]:
        """Complete every request. A cancelled call marks the completions that it did not finish as `cancelled`."""

    def stream(self, request: GenerateRequest) -> Iterator[str]:
        """Yield the text of one completion in pieces as it is made."""

    def score(self, requests: Sequence[ScoreRequest], *, progress: Progress = QUIET) -> list[Scored]:
        """Score the continuations of every request."""

    def embed(self, texts: Sequence[str], *, progress: Progress = QUIET) -> Floats:
        """One unit vector per text, shape [texts, dimension]."""

    @property
    def end_token(self) -> int | None:
        """The token that ends an answer; None where the engine knows no tokens."""

    def encode(self, text: str) -> tuple[int, ...]:
        """The token ids of `text`, without special tokens."""

    def count(self, prompt: ModelInput) -> int:
        """How many tokens the prompt takes."""

    def text(self, prompt: ModelInput) -> str:
        """The exact text that the model reads for this prompt."""


@runtime_checkable
class Incremental(Protocol):
    """An engine that yields completions one by one, so that each can be saved before the next is finished."""

    def each(
        self, requests: Sequence[GenerateRequest], *, progress: Progress = QUIET, cancelled: Cancelled | None = None
    ) -> Iterator[tuple[int, Generation]]:
        """Yield completions with the index of their request; a cancelled call leaves some out."""


@dataclass(frozen=True, slots=True)
class Delta:
    """What one step of a session added to one completion."""

    key: int  # of the completion, as given to `Session.add`
    text: str = ""  # the next piece of its text; all pieces joined are the text that `generate` returns
    tokens: tuple[int, ...] = ()  # the new ones, the end token included
    logprobs: tuple[float, ...] = ()  # of the new tokens
    prompt_tokens: int = 0
    completion_tokens: int = 0  # how many it has so far
    reason: FinishReason | None = None  # why it ended, or None while it runs
    error: RungError | None = None  # why it failed, which also ends it


class Session(Protocol):
    """Completions that start and end while others run. One thread at a time may use it."""

    @property
    def active(self) -> int:
        """How many completions are unfinished."""

    def add(self, key: int, request: GenerateRequest) -> None:
        """Start a completion; raises what `generate` raises for a request that cannot run."""

    def step(self) -> list[Delta]:
        """Advance every completion by about one token."""

    def cancel(self, key: int) -> None:
        """Drop a completion. An unknown key is ignored."""


@runtime_checkable
class Continuous(Protocol):
    """An engine that can start completions while others run."""

    def session(self) -> Session:
        """A new, empty session."""


@runtime_checkable
class Closes(Protocol):
    """An engine that holds resources, such as a process."""

    def close(self) -> None:
        """Release the resources; the engine cannot be used afterwards."""


@dataclass(frozen=True, slots=True)
class TokenScores:
    """How likely every token of a text is after the tokens before it; NaN for the first token."""

    logprobs: Floats  # shape [tokens], natural logarithm
    top_tokens: npt.NDArray[np.int64]  # the likeliest tokens at every position, likeliest first, shape [tokens, top]
    top_logprobs: Floats  # shape [tokens, top]

    def after(self, tokens: int) -> TokenScores:
        """The scores without those of the first `tokens` tokens."""
        return TokenScores(self.logprobs[tokens:], self.top_tokens[tokens:], self.top_logprobs[tokens:])


@runtime_checkable
class Reads(Protocol):
    """An engine that scores a given text token by token."""

    def read(self, texts: Sequence[tuple[int, ...]], *, top: int = 1, adapter: str | None = None) -> list[TokenScores]:
        """Score every token of every text, given as token ids."""


class EngineWrapper:
    """Passes every call on to `engine`, except `generate` and `score`, which each subclass defines."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @property
    def info(self) -> EngineInfo:
        """Which model runs on which device."""
        return self.engine.info

    @property
    def end_token(self) -> int | None:
        """The token that ends an answer."""
        return self.engine.end_token

    def encode(self, text: str) -> tuple[int, ...]:
        """The token ids of `text`."""
        return self.engine.encode(text)

    def count(self, prompt: ModelInput) -> int:
        """How many tokens the prompt takes."""
        return self.engine.count(prompt)

    def text(self, prompt: ModelInput) -> str:
        """The exact text that the model reads for this prompt."""
        return self.engine.text(prompt)

    def stream(self, request: GenerateRequest) -> Iterator[str]:
        """Yield the text of one completion in pieces as it is made."""
        return self.engine.stream(request)

    def embed(self, texts: Sequence[str], *, progress: Progress = QUIET) -> Floats:
        """One unit vector per text."""
        return self.engine.embed(texts, progress=progress)


@dataclass(slots=True)
class StreamBuffer:
    """Holds back the end of a growing text that may still change; `sent` counts the characters already streamed."""

    sent: int = 0

    def more(self, text: str, stop: Sequence[str], *, ended: bool) -> str:
        """The part of `text` that can be streamed and was not.

        Half a character, and what may be the beginning of a stop text, wait until the text has `ended`.
        """
        safe = len(text)
        if not ended:
            if text.endswith("\ufffd"):
                return ""
            safe -= max((len(stop_text) - 1 for stop_text in stop), default=0)
        piece = text[self.sent : safe] if safe > self.sent else ""
        self.sent = max(self.sent, safe)
        return piece


@dataclass(slots=True)
class RunningRow:
    """One unfinished completion of an engine on this machine."""

    index: int  # of its request, or its key in a session
    prompt_tokens: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    text: str = ""  # of its tokens, without those that end it; not always up to date before the end
    reason: FinishReason | None = None  # why it ended, or None while it runs
    buffer: StreamBuffer = field(default_factory=StreamBuffer)
    reported: int = 0  # how many of its tokens were in a delta

    def end_at(self, stop: Sequence[str]) -> None:
        """End the text where the first of the stop texts begins."""
        ends = [start for start in (self.text.find(stop_text) for stop_text in stop) if start >= 0]
        if ends:
            self.text, self.reason = self.text[: min(ends)], "stop"

    def delta(self, stop: Sequence[str]) -> Delta:
        """What was added since the last delta."""
        first, self.reported = self.reported, len(self.tokens)
        text = whole_characters(self.text) if self.reason in ("length", "cancelled") else self.text
        return Delta(
            key=self.index, text=self.buffer.more(text, stop, ended=self.reason is not None),
            tokens=tuple(self.tokens[first:]), logprobs=tuple(self.logprobs[first:]), prompt_tokens=self.prompt_tokens,
            completion_tokens=len(self.tokens), reason=self.reason,
        )  # fmt: skip
