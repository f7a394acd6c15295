"""The loop: climb again, with what was corrected among the training rows and what is served as the incumbent.

Measured are two things, and they are kept apart. The test rows say whether the new artifact is better: they were drawn
before anybody looked at answers, so the paired test on them is honest. The reviewed failures say what became of them.
They were chosen because the served artifact got them wrong: any other artifact looks better on those, so no p-value is
made of them, and those of the training side were trained on as well.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rung.artifact.artifact import Artifact
from rung.artifact.files import fingerprint
from rung.climbing.options import ClimbOptions, chosen_rungs
from rung.climbing.run import Climb, climb
from rung.data.rows import Data
from rung.errors import ConfigError, ThresholdError
from rung.evaluation.report.words import against
from rung.evaluation.result import Comparison
from rung.evaluation.scoring import cases
from rung.feedback.interaction import Side
from rung.feedback.records import Case, Filter, Promotion
from rung.feedback.registry import Registry
from rung.feedback.store import Store
from rung.feedback.training_side import Taken, as_example, with_corrections
from rung.models.cache import write_atomically
from rung.progress import QUIET, Progress
from rung.rungs import build
from rung.task import Task

IMPROVEMENT = "improvement.json"
TUNING_FROM = 1000  # failures: below, a handful of new rows moves weights less than it moves prompts
TRAINS_WEIGHTS = ("soft prompts", "parameter-efficient", "partial", "full", "preference")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the reviewed failures under an artifact.

    Attributes:
        fixed: ids of those that it answers better than they were answered.
        of_train, of_test: how many of these stand on each side, and of how many.
        regressions: ids of those that some promoted artifact fixed before, and that this one does not.
        watched: how many had been fixed before.
    """

    fixed: tuple[str, ...]
    of_train: tuple[int, int]
    of_test: tuple[int, int]
    regressions: tuple[str, ...]
    watched: int


@dataclass(frozen=True)
class Improvement:
    """A climb on corrected data, and what it means for what is served.

    Attributes:
        climb: the climb.
        served: fingerprint of the incumbent, or None where nothing was served.
        recommended: fingerprint of what is recommended.
        better: whether that is another artifact than the one served.
        taken: what became of the reviewed interactions.
        rungs: names of those tried, and why these.
        comparison: the recommended artifact against the incumbent on the test rows, if they differ.
        outcome: of the reviewed failures under the recommended artifact.
    """

    climb: Climb
    served: str | None
    recommended: str
    better: bool
    taken: Taken
    rungs: tuple[str, ...]
    reason: str
    comparison: Comparison | None
    outcome: Outcome

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON values: the evidence of a promotion."""
        result = self.climb.result
        artifact = next(r.artifact for r in result.rungs if r.name == result.recommended)
        return {
            "task": result.task, "run": str(self.climb.folder), "served": self.served, "recommended": self.recommended,
            "name": result.recommended, "artifact": artifact,
            "better": self.better, "decision": result.decision, "rungs": self.rungs, "reason": self.reason,
            "taken": asdict(self.taken), "comparison": None if self.comparison is None else asdict(self.comparison),
            "failures": asdict(self.outcome),
        }  # fmt: skip


def improve(
    task: Task,
    store: Store,
    registry: Registry,
    *,
    options: ClimbOptions | None = None,
    progress: Progress = QUIET,
) -> Improvement:
    """Climb with the reviewed failures, against what is served.

    Args:
        task: the task.
        store: where interactions and corrections are.
        registry: knows what is served; where nothing is, zero-shot is the incumbent.
        options: of the climb; without rungs, and without `constraints.rungs` in the task, `rungs_for` chooses them.
        progress: told of every step.

    Raises:
        ConfigError: `no-failures`: nothing was reviewed and found wrong on the training side.
        DataError: a correction does not fit the task.
    """
    options = options or ClimbOptions()
    cases = store.cases(Filter(task=task.name, reviewed=True))
    data, taken = with_corrections(task, task.read(), cases)
    if not taken.failures:
        raise ConfigError(
            "no-failures",
            f"no reviewed failure of {task.name} stands on the training side ({len(cases)} reviewed in all, "
            f"{taken.held_out} held out)",
            hint="review some: `rung failures list`, then `rung failures correct`",
        )
    names, reason = tuple(options.rungs or task.constraints.rungs or ()), "as asked for"
    if not names:
        names, reason = rungs_for(task, taken.failures, options)
    current = registry.current()
    incumbent = None if current is None else Artifact.load(registry.path(current))
    found = climb(
        task, progress=progress, options=replace(options, rungs=names), incumbent=incumbent, data=data
    )  # fmt: skip
    return _summed_up(task, store, found, data, cases, taken, (names, reason), current.artifact if current else None)


def rungs_for(task: Task, failures: int, options: ClimbOptions) -> tuple[tuple[str, ...], str]:
    """Return which rungs to try for so many failures, and why."""
    names = chosen_rungs(task, options)
    if failures >= TUNING_FROM:
        return names, f"{failures:,} failures are enough to tune weights on"
    cheap = tuple(rung.name for rung in build(names, task, options.seed) if rung.family not in TRAINS_WEIGHTS)
    return cheap, f"{failures:,} failures change prompts and demonstrations; tuning weights waits for {TUNING_FROM:,}"


def _summed_up(
    task: Task, store: Store, found: Climb, data: Data, cases: Sequence[Case], taken: Taken,
    rungs: tuple[tuple[str, ...], str], served: str | None,
) -> Improvement:  # fmt: skip
    best = found.result.recommended
    folder = next(r.artifact for r in found.result.rungs if r.name == best)
    assert folder is not None
    better = best != found.result.rungs[0].name
    # The climb's copy of what is served has another name for its path, and so another fingerprint.
    recommended = fingerprint(Path(folder)) if better or served is None else served
    outcome = judge(task, store, Artifact.load(folder), data, [case for case in cases if case.failure])
    comparison = against(found.result, best) if better else None
    made = Improvement(found, served, recommended, better, taken, *rungs, comparison, outcome)
    write_atomically(found.folder / IMPROVEMENT, json.dumps(made.as_dict(), indent=1))
    return made


def promote(
    run: Path, registry: Registry, store: Store, *, reviewer: str, accept_regressions: bool = False
) -> Promotion:
    """Serve what an improvement recommends, its numbers recorded as evidence.

    Args:
        run: the run folder of `improve`.
        registry: of the improvement's task.
        store: keeps the promotion; the failures that it fixes are watched from now on.
        reviewer: who decides.
        accept_regressions: also if failures that were fixed once are wrong again.

    Raises:
        ConfigError: `no-improvement`, `nothing-to-promote` or `stale-evidence`.
        ThresholdError: `regressions`.
    """
    evidence = read_improvement(run)
    if not evidence["better"]:
        raise ConfigError("nothing-to-promote", evidence["decision"], hint="collect more failures, and improve again")
    current = registry.current()
    now = current.artifact if current else None
    if evidence["served"] != now:
        raise ConfigError(
            "stale-evidence",
            f"{run} was measured against {_short(evidence['served'])}, but {_short(now)} is served now",
            hint="improve again, against what is served",
        )
    wrong_again = evidence["failures"]["regressions"]
    if wrong_again and not accept_regressions:
        raise ThresholdError(
            "regressions",
            f"{len(wrong_again)} of {evidence['failures']['watched']} failures that were fixed once are wrong again, "
            f"such as {wrong_again[0]}",
            hint="look at them with `rung failures show`; to go on all the same: --accept-regressions",
        )
    return registry.promote(Path(evidence["artifact"]), store, evidence=evidence, reviewer=reviewer)


def read_improvement(run: Path) -> dict[str, Any]:
    """Return what `improve` wrote into its run folder.

    Raises:
        ConfigError: `no-improvement`.
    """
    file = run / IMPROVEMENT
    if not file.is_file():
        raise ConfigError(
            "no-improvement", f"{run} has no {IMPROVEMENT}", hint="give the run folder that `rung improve` named"
        )
    values: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return values


def _short(artifact: str | None) -> str:
    return artifact[:16] if artifact else "zero-shot"


def judge(task: Task, store: Store, artifact: Artifact, data: Data, failures: Sequence[Case]) -> Outcome:
    """Have an artifact answer the reviewed failures, and say which it fixes and which it breaks again.

    A failure is fixed if the answer scores above the recorded one by the task's metric.
    """
    metric = artifact.shape.scorer(task.folder)
    rows = [as_example(task, data, case) for case in failures]
    answers = artifact.answer(rows, full=False)
    now = metric.scores(cases(rows, answers))
    then = metric.scores(
        [replace(c, prediction=f.interaction.actual) for c, f in zip(cases(rows, answers), failures, strict=True)]
    )
    fixed = [case for case, a, b in zip(failures, now, then, strict=True) if a.value > b.value]
    ids = {case.interaction.id for case in fixed}
    once = store.fixed(task.name)
    watched = [case.interaction.id for case in failures if case.interaction.id in once]

    def of(side: Side) -> tuple[int, int]:
        fixed_there, there = (sum(c.interaction.split == side for c in group) for group in (fixed, failures))
        return fixed_there, there

    broken = tuple(sorted(one for one in watched if one not in ids))
    return Outcome(tuple(sorted(ids)), of("train"), of("test"), broken, len(watched))
