"""The plan: which rungs apply on an artifact, why the others do not, and what each is expected to take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rung.artifact.artifact import Artifact
from rung.data.rows import Data
from rung.machine import Machine
from rung.rungs.base import Cost, Rung


@dataclass(frozen=True, slots=True)
class PlannedRung:
    """One line of the plan. `rows` are the validation rows it may have to answer, `seconds` fitting and answering."""

    rung: Rung
    applies: bool
    reason: str
    rows: int
    cost: Cost | None

    @property
    def seconds(self) -> float:
        """Expected time to fit it and to answer the validation rows."""
        return self.cost.fit_seconds + self.rows * self.cost.row_seconds if self.cost else 0.0


def plan(artifact: Artifact, rungs: Sequence[Rung], data: Data, machine: Machine) -> list[PlannedRung]:
    """Plan one stage: every rung on top of `artifact`, the ones that apply first, cheapest first."""
    lines = []
    for rung in rungs:
        if rung.name in artifact.path:
            continue
        verdict = rung.applies(artifact, data)
        cost = rung.estimate(artifact, data, machine) if verdict.applies else None
        if cost is not None and cost.memory_bytes > machine.memory_bytes:
            reason = (
                f"it needs about {cost.memory_bytes / 2**30:.1f} GiB and {machine.memory_bytes / 2**30:.1f} are there"
            )
            lines.append(PlannedRung(rung, False, reason, 0, cost))
            continue
        lines.append(PlannedRung(rung, verdict.applies, verdict.reason, len(data.validation), cost))
    return sorted(lines, key=lambda line: (not line.applies, line.seconds))
