"""Bottleneck adapters: small networks with a residual connection behind the sublayers.

They are 64 wide as in Houlsby et al. 2019 (https://arxiv.org/abs/1902.00751), and behind the feed-forward networks
alone, as Pfeiffer et al. 2021 (https://arxiv.org/abs/2005.00247) found to be enough at half the cost. The rate is the
middle of Houlsby's range for that width (3e-4 to 3e-3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from rung.artifact.artifact import Artifact
from rung.data.rows import Data
from rung.models.reference import resolve
from rung.rungs.tuned import Auto, Tuned

if TYPE_CHECKING:
    from rung.engines.torch_engine import TorchEngine
    from rung.training.changes import Change
    from rung.training.examples import TokenizedExample


@dataclass(frozen=True, kw_only=True)
class BottleneckAdapter(Tuned):
    """Train small networks behind the layers' sublayers.

    Attributes:
        size: width of each network.
        placement: `houlsby`: behind attention and feed-forward networks; `pfeiffer`: behind the latter.
    """

    name: ClassVar[str] = "bottleneck"

    size: int = 64
    placement: Literal["houlsby", "pfeiffer"] = "pfeiffer"
    learning_rate: float | Auto = 1e-3

    def reason_against(self, artifact: Artifact, data: Data) -> str:
        """Say if it is not known where the sublayers are in the model."""
        del data
        from rung.training.bottleneck import places
        from rung.training.layers import reason_unknown

        return reason_unknown(resolve(artifact.model), lambda model: places(model, self.placement))

    def change(self, engine: TorchEngine, artifact: Artifact, rows: Sequence[TokenizedExample]) -> Change:
        """Put fresh networks behind the sublayers; they change next to nothing at first."""
        del artifact, rows
        from rung.training.bottleneck import Bottleneck

        return Bottleneck(engine.model, self.size, self.placement)
