"""What engines with a model folder share: its tokenizer, its one chat template, and the check that a prompt fits."""

from __future__ import annotations

from rung.engines.base import ModelInput
from rung.errors import EngineError
from rung.models.reference import ModelFiles
from rung.models.tokenizer import Tokenizer
from rung.models.turns import encode_messages, end_token


class LocalModel:
    """The tokens' side of an engine: the same for every engine that runs this folder."""

    def __init__(self, files: ModelFiles) -> None:
        self.files = files
        self.tokenizer = Tokenizer.load(files.folder)
        self._end = end_token(self.tokenizer)

    @property
    def end_token(self) -> int | None:
        """The token that ends an answer."""
        return self._end

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the token ids of `text`, no special tokens added."""
        return self.tokenizer.encode_plain(text)

    def tokens(self, prompt: ModelInput) -> tuple[int, ...]:
        """Return the token ids of a prompt; chat messages are rendered by the model's own template."""
        if prompt and isinstance(prompt[0], int):
            return prompt
        return encode_messages(self.tokenizer, prompt)  # type: ignore[arg-type]

    def count(self, prompt: ModelInput) -> int:
        """Return the number of tokens that the prompt will occupy."""
        return len(self.tokens(prompt))

    def text(self, prompt: ModelInput) -> str:
        """Return the exact text that the model reads for this prompt."""
        return self.tokenizer.decode(self.tokens(prompt), skip_special=False)

    def fitting(self, prompt: ModelInput, room: int) -> tuple[int, ...]:
        """Return the prompt's tokens.

        Raises:
            EngineError: they leave less than `room` tokens of the context.
        """
        tokens = self.tokens(prompt)
        if len(tokens) + room > self.files.context:
            raise EngineError(
                "context-overflow",
                f"a prompt of {len(tokens)} tokens and {room} more do not fit the context of {self.files.context}",
                hint="show fewer demonstrations, shorten the input, or choose a model with a longer context",
            )
        return tokens
