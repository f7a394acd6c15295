"""The common part of engines with a model folder: its tokenizer and chat template, and the check that a prompt fits."""

from __future__ import annotations

from collections.abc import Iterator

from rung.engines.base import EngineInfo, GenerateRequest, ModelInput, Session
from rung.errors import EngineError
from rung.models.messages import encode_messages, end_token
from rung.models.reference import ModelFiles
from rung.models.tokenizer import Tokenizer


class LocalModel:
    """The tokenizing part of an engine, the same for every engine that runs this folder."""

    def __init__(self, files: ModelFiles) -> None:
        self.files = files
        self.tokenizer = Tokenizer.load(files.folder)
        self.end_token = end_token(self.tokenizer)  # the token that ends an answer

    def describe(self, engine: str, device: str, dtype: str, fingerprint: str, **details: str) -> EngineInfo:
        """What an engine that runs this folder says of itself."""
        files = self.files
        return EngineInfo(engine, files.name, device, dtype, files.parameters, files.context, fingerprint, details)

    def encode(self, text: str) -> tuple[int, ...]:
        """The token ids of `text`, without special tokens."""
        return self.tokenizer.encode_plain(text)

    def tokens(self, prompt: ModelInput) -> tuple[int, ...]:
        """The token ids of a prompt; chat messages are rendered by the model's own template."""
        if prompt and isinstance(prompt[0], int):
            return prompt
        return encode_messages(self.tokenizer, prompt)  # type: ignore[arg-type]

    def count(self, prompt: ModelInput) -> int:
        """How many tokens the prompt takes."""
        return len(self.tokens(prompt))

    def text(self, prompt: ModelInput) -> str:
        """The exact text that the model reads for this prompt."""
        return self.tokenizer.decode(self.tokens(prompt), skip_special=False)

    def fitting(self, prompt: ModelInput, room: int) -> tuple[int, ...]:
        """The prompt's tokens, checked to leave `room` tokens of the context.

        Raises:
            EngineError: `context-overflow`.
        """
        tokens = self.tokens(prompt)
        if len(tokens) + room > self.files.context:
            problem = f"a prompt of {len(tokens)} tokens and {room} more do not fit the context of {self.files.context}"
            hint = "show fewer demonstrations, shorten the input, or choose a model with a longer context"
            raise EngineError("context-overflow", problem, hint=hint)
        return tokens

    def session(self) -> Session:
        """A new, empty session."""
        raise NotImplementedError

    def stream(self, request: GenerateRequest) -> Iterator[str]:
        """Yield the text of one completion in pieces; joined they are the text that `generate` returns."""
        session = self.session()
        session.add(0, request)
        try:
            while session.active:
                for delta in session.step():
                    if delta.error is not None:
                        raise delta.error
                    if delta.text:
                        yield delta.text
        finally:
            session.cancel(0)
