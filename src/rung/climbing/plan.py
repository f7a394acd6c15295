"""The plan: which rungs apply to an artifact, why the others do not, and the expected cost of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rung.artifact.artifact import Artifact
from rung.climbing.check import validate_task
from rung.climbing.options import ClimbOptions, chosen_rungs
from rung.data.rows import Data
from rung.engines.opening import explain
from rung.evaluation.scoring import validate_references
from rung.machine import Machine, this_machine
from rung.models.reference import is_endpoint
from rung.rungs import build
from rung.rungs.base import Cost, Rung
from rung.rungs.costs import inference_cost
from rung.rungs.models import other_models
from rung.task import Task


@dataclass(frozen=True, slots=True)
class PlannedRung:
    """One line of the plan; `rows` are the validation rows that the rung's artifact may have to answer."""

    rung: Rung
    applies: bool
    reason: str
    rows: int
    cost: Cost | None

    @property
    def seconds(self) -> float:
        """The expected time to fit the rung and to answer the validation rows."""
        return self.cost.fit_seconds + self.rows * self.cost.row_seconds if self.cost else 0.0


def plan(artifact: Artifact, rungs: Sequence[Rung], data: Data, machine: Machine) -> list[PlannedRung]:
    """Plan one stage: every rung on top of `artifact`, those that apply first, the cheapest first."""
    lines = []
    for rung in rungs:
        if rung.name in artifact.path:
            continue
        verdict = rung.applies(artifact, data)
        cost = rung.estimate(artifact, data, machine) if verdict.applies else None
        if cost is not None and cost.memory_bytes > machine.memory_bytes:
            needed, available = cost.memory_bytes / 2**30, machine.memory_bytes / 2**30
            reason = f"it needs about {needed:.1f} GiB of memory, and {available:.1f} GiB are available"
            lines.append(PlannedRung(rung, False, reason, 0, cost))
            continue
        lines.append(PlannedRung(rung, verdict.applies, verdict.reason, len(data.validation), cost))
    return sorted(lines, key=lambda line: (not line.applies, line.seconds))


def plan_rows(task: Task, options: ClimbOptions) -> tuple[list[dict[str, Any]], list[str]]:
    """Plan the first stage for `rung climb --plan`: a record per rung, zero-shot first, and notes on the figures."""
    validate_task(task)
    data, machine = task.read(), this_machine()
    validate_references(task, data)
    zero = Artifact.zero_shot(task.only(task.model), data.labels, engine=options.engine)
    rungs = (*other_models(task), *build(chosen_rungs(task, options), task, options.seed))
    lines = plan(zero, rungs, data, machine)
    cost = inference_cost(zero, data, machine)
    test_seconds = len(data.test) * cost.row_seconds
    alone = not any(line.applies for line in lines)
    asked = 0 if alone else len(data.validation)
    rows = [
        {
            "name": "zero-shot", "applies": True, "reason": "", "rows": asked, "fit_tokens": 0,
            "tokens_per_row": round(cost.row_tokens), "seconds": round(asked * cost.row_seconds, 1),
            "memory_bytes": cost.memory_bytes,
        },
        *(_row(line) for line in lines),
    ]  # fmt: skip
    several, scored = bool(task.other_models), task.output.kind == "category" and not is_endpoint(task.model)
    reopening = [line.rung.name for line in lines if line.applies and line.rung.opens_ramp]
    total = sum(row["seconds"] or 0 for row in rows)
    notes = [
        f"{len(data.train)} training, {len(data.validation)} validation and {len(data.test)} test rows",
        _race_note(task, alone, total, test_seconds),
        f"{machine.cores} cores at {machine.flops / 1e9:.0f} GFLOP/s, {machine.memory_bytes / 2**30:.0f} GiB of memory",
        f"engine: {'torch scores the labels' if scored else explain(task.model, options.engine)}",
        *(["the models are raced with the plain prompt first, and the rungs start from the winner"] if several else []),
        "on top of the winner, what still applies is planned and raced again",
        *[f"on top of {name}, the other rungs are fitted and raced from the start" for name in reopening],
    ]
    if options.budget_seconds is not None:
        notes.append(f"rungs that do not fit the budget of {options.budget_seconds:.0f} s are skipped")
    return rows, notes


def _race_note(task: Task, alone: bool, total: float, test_seconds: float) -> str:
    if not alone:
        return (
            f"about {total:.0f} s if every rung answers all validation rows (clear losers stop early, and the "
            f"race ends when one candidate remains), and up to {test_seconds:.0f} s per finalist on the test rows"
        )
    fitted = ", except to fit its confidence" if task.confidence is not None else ""
    return (
        f"no rung applies, so nothing is raced: zero-shot answers no validation rows{fitted}, and the test rows in "
        f"about {test_seconds:.0f} s"
    )


def _row(line: PlannedRung) -> dict[str, Any]:
    cost = line.cost
    return {
        "name": line.rung.name, "applies": line.applies, "reason": line.reason, "rows": line.rows,
        "fit_tokens": cost.fit_tokens if cost else None,
        "tokens_per_row": round(cost.row_tokens) if cost else None,
        "seconds": round(line.seconds, 1) if cost else None,
        "memory_bytes": cost.memory_bytes if cost else None,
    }  # fmt: skip


STAGES = 3  # of the ramp, each one rung higher
