"""Domain adaptation: LoRA on plain text of the domain, before any task.

Gururangan et al. 2020 (https://arxiv.org/abs/2004.10964); with LoRA, Biderman et al. 2024
(https://arxiv.org/abs/2405.09673).

The adapter is that of the rung `lora`, which goes on from it when it is put on top.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from rung.artifact.artifact import Artifact
from rung.data.rows import Data, Example
from rung.errors import ConfigError
from rung.machine import Machine
from rung.progress import Progress
from rung.rungs.base import Cost, Verdict, never
from rung.rungs.costs import inference_cost, sizes, text_tokens
from rung.rungs.lora import ADAPTATION, LoRA
from rung.rungs.tuned import Auto
from rung.training.examples import Overlong, Supervise

if TYPE_CHECKING:
    from rung.engines.torch_engine import TorchEngine
    from rung.training.examples import TokenizedExample
    from rung.training.report import TrainingReport


@dataclass(frozen=True, kw_only=True)
class DomainAdaptation(LoRA):
    """Train low-rank updates of every linear layer to continue the text of `data.text`.

    The rate is lower than a task's: it is between those that Biderman et al. search for continued pretraining
    (1e-5 to 5e-4), as there is far more to read, and more to forget.

    Attributes:
        block_tokens: the text is cut into blocks of so many tokens, at most the context.
    """

    name: ClassVar[str] = ADAPTATION

    learning_rate: float | Auto = 2e-4
    epochs: int = 1
    block_tokens: int = 512

    # All of a block is learnt, and every block fits.
    supervise: Supervise = field(default="auto", init=False, repr=False)
    overlong: Overlong = field(default="error", init=False, repr=False)

    def __post_init__(self) -> None:
        if self.block_tokens < 2:
            raise ConfigError(
                "bad-setting",
                f"{self.name}.block_tokens is {self.block_tokens}",
                hint="give 2 or more: the first token of a block is not learnt",
            )

    def applies(self, artifact: Artifact, data: Data) -> Verdict:
        """It needs text."""
        return super().applies(artifact, data) if data.text else never("the task names no plain text: set `data.text`")

    def training_rows(
        self,
        artifact: Artifact,
        engine: TorchEngine,
        rows: Sequence[Example],
        data: Data,
        report: TrainingReport,
        progress: Progress,
    ) -> list[TokenizedExample]:
        """Return the blocks of the text; training rows are not read."""
        del artifact, rows, progress
        from rung.training.blocks import blocks

        report.rows = len(data.text)
        return blocks(engine, data.text, self.block_tokens)

    def estimate(self, artifact: Artifact, data: Data, machine: Machine) -> Cost:
        """Four operations per parameter and token of the text; predicting costs what it did."""
        use, s = inference_cost(artifact, data, machine), sizes(artifact, data)
        tokens = text_tokens(artifact, data)
        blocks = math.ceil(tokens / self.block_tokens)
        return self._training_cost(artifact, machine, use, s, tokens / blocks, blocks)
