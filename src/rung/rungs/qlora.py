"""QLoRA: LoRA on a base model held in 4 bits (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314).

The base is quantized to 4-bit NormalFloat with double quantization, and what is trained runs on that base ever after:
the artifact answers with the weights it was measured on. Worth it where a model does not fit in memory otherwise; a
model that fits is faster and a little better with `lora`. Settings are those of `lora`: the paper finds that the rank
hardly matters once every linear layer is adapted.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import ClassVar

from rung.artifact.artifact import Artifact
from rung.data.rows import Data
from rung.rungs.lora import LoRA

NEEDED = ("bitsandbytes", "accelerate")


@dataclass(frozen=True, kw_only=True)
class QLoRA(LoRA):
    """Train low-rank updates of every linear layer on a base model in 4 bits."""

    name: ClassVar[str] = "qlora"
    quantization: ClassVar[str] = "nf4"

    def reason_against(self, artifact: Artifact, data: Data) -> str:
        """Say what is missing for a base in 4 bits."""
        del data
        if missing := [name for name in NEEDED if find_spec(name) is None]:
            return f"a base model in 4 bits needs {' and '.join(missing)}: uv pip install {' '.join(missing)}"
        if artifact.engine not in ("auto", "torch"):
            return f"only the torch engine runs a base model in 4 bits, and the artifact asks for {artifact.engine}"
        return ""
