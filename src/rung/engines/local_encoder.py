"""What sentence encoders on this machine share: the model's own facts and its tokenizer."""

from __future__ import annotations

from rung.models.reference import ModelFiles
from rung.models.tokenizer import Tokenizer


class LocalEncoder:
    """The part of a sentence encoder that is the same whatever runs the folder."""

    def __init__(self, files: ModelFiles) -> None:
        self.files = files
        self.tokenizer = Tokenizer.load(files.folder)

    @property
    def fingerprint(self) -> str:
        """Changes when vectors may; backends agree to rounding, so which one runs is no part of it."""
        return self.files.fingerprint

    @property
    def parameters(self) -> int:
        """Number of weights, for cost estimates."""
        return self.files.parameters

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the token ids of `text`, no special tokens added."""
        return self.tokenizer.encode_plain(text)
