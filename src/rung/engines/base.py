"""The one protocol that every engine speaks: generate, score, embed.

An engine runs a base model and knows nothing of tasks. Requests carry chat messages (rendered by
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

Prompt = Messages | tuple[int, ...]  # chat messages, or token ids that are already rendered
FinishReason = Literal["stop", "length", "cancelled"]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. The default is greedy; `temperature` above 0 samples and wants a `seed`."""

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Constraint:
    """What the text must match: one of `choices`, a `regex`, or a `json_schema` (its JSON text)."""

    kind: Literal["choices", "regex", "json_schema"]
    value: str | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One completion to make."""

    prompt: Prompt
    sampling: Sampling = Sampling()
    constraint: Constraint | None = None
    adapter: str | None = None
    logprobs: bool = False


@dataclass(frozen=True, slots=True)
class Generation:
    """One completion made. `logprobs` holds one value per completion token, or nothing when not asked for."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: FinishReason
    seconds: float
    logprobs: tuple[float, ...] = ()


CANCELLED = Generation("", 0, 0, "cancelled", 0.0)  # a completion that was not begun


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Ask for the log-likelihood of every continuation, or only for the best one.

    With `best`, the engine may return early: the winner by `value = logprob / divisor - bias` is exact, the other
    entries may be `-inf`. `divisor` and `bias` have one entry per continuation (None: ones and zeros).
    """

    prompt: Prompt
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
    seconds: float


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What runs where. `fingerprint` changes when results may: model, precision and engine are part of it."""

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
        """Say what runs where."""

    def generate(
        self,
        requests: Sequence[GenerateRequest],
        *,
        progress: Progress = QUIET,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[Generation]:
        """Complete every request. A cancelled call returns what was made, marked `cancelled`."""

    def stream(self, request: GenerateRequest) -> Iterator[str]:
        """Yield the text of one completion in pieces as it is made."""

    def score(self, requests: Sequence[ScoreRequest], *, progress: Progress = QUIET) -> list[Scored]:
        """Score the continuations of every request."""

    def embed(self, texts: Sequence[str], *, progress: Progress = QUIET) -> Floats:
        """Return one vector per text, shape [texts, dimension], unit length."""

    @property
    def end_token(self) -> int | None:
        """The token that ends an answer, where the engine knows tokens."""

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the token ids of `text`, no special tokens added."""

    def count(self, prompt: Prompt) -> int:
        """Return the number of tokens that the prompt will occupy."""

    def text(self, prompt: Prompt) -> str:
        """Return the exact text that the model reads for this prompt."""


@runtime_checkable
class Incremental(Protocol):
    """An engine whose completions come one by one, so that each can be kept before the others are made."""

    def each(
        self,
        requests: Sequence[GenerateRequest],
        *,
        progress: Progress = QUIET,
        cancelled: Callable[[], bool] | None = None,
    ) -> Iterator[tuple[int, Generation]]:
        """Yield completions with the index of their request; a cancelled call leaves some out."""


@dataclass(frozen=True, slots=True)
class Delta:
    """What one step added to one completion of a session.

    Attributes:
        key: of the completion, as given to `Session.add`.
        text: what can be shown of it now; all pieces joined are the text that `generate` returns.
        tokens, logprobs: the new tokens, the one that ends included, and their log-probabilities.
        completion_tokens: how many there are so far.
        reason: why it ended, or None while it goes on.
        error: why it failed; then it has ended as well.
    """

    key: int
    text: str = ""
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reason: FinishReason | None = None
    error: RungError | None = None


class Session(Protocol):
    """Completions that come and go while others run. One thread at a time may use it."""

    @property
    def active(self) -> int:
        """How many completions have not ended."""

    def add(self, key: int, request: GenerateRequest) -> None:
        """Take a completion in; raises what `generate` raises of a request that cannot run."""

    def step(self) -> list[Delta]:
        """Go on with all completions by about one token, and return what came of it."""

    def cancel(self, key: int) -> None:
        """Drop a completion; nothing more comes of it. A key that is not there is no error."""


@runtime_checkable
class Continuous(Protocol):
    """An engine that takes new completions while others run."""

    def session(self) -> Session:
        """Return a new, empty session."""


@runtime_checkable
class Closes(Protocol):
    """An engine that holds what has to be given back."""

    def close(self) -> None:
        """Give it back; the engine is not used any more."""


@dataclass(frozen=True, slots=True)
class TokenScores:
    """How likely every token of a text is behind those before it; the first has nothing before it, so NaN.

    Attributes:
        logprobs: shape [tokens], natural logarithm.
        top_tokens, top_logprobs: the likeliest tokens at every place, likeliest first, shape [tokens, top].
    """

    logprobs: Floats
    top_tokens: npt.NDArray[np.int64]
    top_logprobs: Floats

    def behind(self, tokens: int) -> TokenScores:
        """Return the scores without those of the first `tokens` tokens."""
        return TokenScores(self.logprobs[tokens:], self.top_tokens[tokens:], self.top_logprobs[tokens:])


@runtime_checkable
class Reads(Protocol):
    """An engine that says how likely a given text is, token by token."""

    def read(self, texts: Sequence[tuple[int, ...]], *, top: int = 1, adapter: str | None = None) -> list[TokenScores]:
        """Score every token of every text, given as token ids."""


# --------------------
# What engines around another engine share: all that they do not change is that engine's.


class Forwarding:
    """Passes calls on to `engine`, but for `generate` and `score`, which each subclass has its own way with."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @property
    def info(self) -> EngineInfo:
        """Say what runs where."""
        return self.engine.info

    @property
    def end_token(self) -> int | None:
        """The token that ends an answer."""
        return self.engine.end_token

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the token ids of `text`."""
        return self.engine.encode(text)

    def count(self, prompt: Prompt) -> int:
        """Return the number of tokens that the prompt will occupy."""
        return self.engine.count(prompt)

    def text(self, prompt: Prompt) -> str:
        """Return the exact text that the model reads for this prompt."""
        return self.engine.text(prompt)

    def stream(self, request: GenerateRequest) -> Iterator[str]:
        """Yield the text of one completion in pieces as it is made."""
        return self.engine.stream(request)

    def embed(self, texts: Sequence[str], *, progress: Progress = QUIET) -> Floats:
        """Return one vector per text."""
        return self.engine.embed(texts, progress=progress)


# --------------------
# How much of a text that is being written can be given out: what may still change is held back.


@dataclass(slots=True)
class Shown:
    """Counts the characters of one completion that a stream has given out."""

    sent: int = 0

    def more(self, text: str, stop: Sequence[str], *, ended: bool) -> str:
        """Return what can be shown of `text` and was not.

        Half of a character, and what may be the beginning of a stop text, wait until the text has `ended`.
        """
        safe = len(text)
        if not ended:
            safe -= max((len(one) - 1 for one in stop), default=0)
            if text.endswith("\ufffd"):
                return ""
        piece = text[self.sent : safe] if safe > self.sent else ""
        self.sent = max(self.sent, safe)
        return piece
