"""The parts of an artifact that are plain values: its task's signature and its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rung.yamlfile import read_object


@dataclass(frozen=True, slots=True)
class Signature:
    """The task's names, columns and labels."""

    task: str
    inputs: tuple[str, ...]
    kind: str
    metric: str
    labels: tuple[str, ...] = ()
    metric_settings: Mapping[str, Any] = field(default_factory=dict)
    refusal: str = ""
    output: str | None = None  # the column of the expected answer


@dataclass(frozen=True, slots=True)
class Weights:
    """The base model's weights (`adapter` None), or a trained change of them.

    `base` is the precision of the base model: empty for its own, `nf4` for 4-bit NormalFloat (QLoRA).
    """

    method: str = "base"
    adapter: Path | None = None
    trainable_parameters: int = 0
    base: str = ""

    @property
    def reference(self) -> str | None:
        """The adapter as engines name it."""
        return None if self.adapter is None else str(self.adapter)

    @property
    def virtual_tokens(self) -> int:
        """How many tokens a soft prompt puts before every prompt; 0 for other weights."""
        if self.adapter is None or not (file := self.adapter / "adapter_config.json").is_file():
            return 0
        return int(read_object(file).get("num_virtual_tokens") or 0)


BASE = Weights()
