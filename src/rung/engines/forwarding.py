"""What engines around another engine share: all that they do not change is that engine's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rung.engines.base import Engine, EngineInfo, Floats, GenerateRequest, Prompt
from rung.progress import QUIET, Progress


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
