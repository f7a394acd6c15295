"""An engine made by hand: it answers by functions that a test gives, counts, and keeps what it was asked."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np

from rung.engines.base import EngineInfo, GenerateRequest, Generation, Scored, ScoreRequest
from rung.models.messages import Messages


def _text(messages: Messages) -> str:
    return "\n".join(f"{m['role']}: {m['content']}" for m in messages)


class FakeEngine:
    """A token is a character. `write(messages, sampling)` makes texts, `likes(messages, text)` log-likelihoods."""

    end_token = 0

    def __init__(
        self,
        write: Callable[..., str] = lambda messages, sampling: "",
        likes: Callable[[Messages, str], float] = lambda messages, text: 0.0,
        context: int = 0,
    ) -> None:
        self.write, self.likes, self.context = write, likes, context
        self.generated: list[GenerateRequest] = []
        self.scored: list[ScoreRequest] = []

    @property
    def info(self) -> EngineInfo:
        return EngineInfo("fake", "fake", "cpu", "none", 0, self.context, "fake")

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(map(ord, text))

    def count(self, prompt: Messages) -> int:
        return len(_text(prompt))

    def text(self, prompt: Messages) -> str:
        return _text(prompt)

    def generate(self, requests: Sequence[GenerateRequest], *, progress=None, cancelled=None) -> list[Generation]:
        self.generated += requests
        texts = [self.write(r.prompt, r.sampling) for r in requests]
        return [
            Generation(text, self.count(r.prompt), len(text), "stop", 0.0)
            for r, text in zip(requests, texts, strict=True)
        ]

    def score(self, requests: Sequence[ScoreRequest], *, progress=None) -> list[Scored]:
        self.scored += requests
        return [
            Scored(
                np.array(
                    [self.likes(r.prompt, "".join(map(chr, c)).rstrip("\0")) for c in r.continuations], np.float32
                ),
                self.count(r.prompt),
                0.0,
            )
            for r in requests
        ]


def speaker(say: Callable[[str], str]) -> FakeEngine:
    """Return an engine that answers by a function of the prompt's last message."""
    return FakeEngine(lambda messages, sampling: say(messages[-1]["content"]))


def noise(*parts: str) -> float:
    """Return a number in [0, 1) that depends on the texts alone."""
    return zlib.crc32("|".join(parts).encode()) / 2**32
