"""IA3: infused adapter by inhibiting and amplifying inner activations (Liu et al. 2022, https://arxiv.org/abs/2205.05638).

Learnt vectors, ones at first, scale the keys, the values and the inner activations of the feed-forward networks: a few
hundredths of a percent of the parameters. The rate is that of the paper's recipe (T-Few), 3e-3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rung.artifact.artifact import Artifact
from rung.data.rows import Data
from rung.models.reference import resolve
from rung.rungs.tuned import Auto, Tuned

if TYPE_CHECKING:
    from rung.engines.torch_engine import TorchEngine
    from rung.training.changes import Change
    from rung.training.examples import TokenizedExample


@dataclass(frozen=True, kw_only=True)
class IA3(Tuned):
    """Train vectors that scale keys, values and inner activations."""

    name: ClassVar[str] = "ia3"

    learning_rate: float | Auto = 3e-3

    def reason_against(self, artifact: Artifact, data: Data) -> str:
        """Say if it is not known where these activations are in the model."""
        del data
        from rung.training.layers import ia3_targets, reason_unknown

        return reason_unknown(resolve(artifact.model), ia3_targets)

    def change(self, engine: TorchEngine, artifact: Artifact, rows: Sequence[TokenizedExample]) -> Change:
        """Put fresh vectors on the model, all ones at first."""
        del artifact, rows
        from rung.training.layers import ia3_targets
        from rung.training.peft import PeftAdapter, peft

        targets, inner = ia3_targets(engine.model)
        config = peft().IA3Config(target_modules=targets, feedforward_modules=inner, task_type="CAUSAL_LM")
        engine.make_room(str(config.peft_type.value))
        return PeftAdapter(engine.model, config)
