"""The parts of an artifact that answer: Weights and the Decoders."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from rung.artifact.decoder import Answer, Decoder, Promptless
from rung.artifact.heads import Head, Mixture
from rung.artifact.labels import LabelScoring, ListScoring
from rung.artifact.text import Generate, Reasoning

__all__ = [
    "BASE",
    "Answer",
    "Decoder",
    "Generate",
    "Head",
    "LabelScoring",
    "ListScoring",
    "Mixture",
    "Probable",
    "Promptless",
    "Reasoning",
    "Weights",
    "unfitted",
]


@dataclass(frozen=True, slots=True)
class Weights:
    """The base model's weights (`adapter` None), or those with a trained change on top.

    `base` says how the base model is held: empty for its own precision, `nf4` for 4-bit NormalFloat (QLoRA).
    """

    method: str = "base"
    adapter: Path | None = None
    trainable_parameters: int = 0
    base: str = ""

    @property
    def reference(self) -> str | None:
        """How engines are told of the adapter."""
        return None if self.adapter is None else str(self.adapter)

    @property
    def virtual_tokens(self) -> int:
        """How many tokens a soft prompt puts before every prompt; 0 for other weights."""
        file = None if self.adapter is None else self.adapter / "adapter_config.json"
        if file is None or not file.is_file():
            return 0
        return int(json.loads(file.read_text("utf-8")).get("num_virtual_tokens") or 0)


BASE = Weights()


Probable = LabelScoring | Head | Mixture  # decoders that give labels probabilities


def unfitted(decoder: Decoder) -> Decoder:
    """Return the decoder without fitted confidence: it holds only for the artifact that it was fitted with."""
    return replace(decoder, confidence=None) if isinstance(decoder, Probable) else decoder
