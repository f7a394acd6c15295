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
from rung.data.examples import examples
from rung.data.rows import Data, Example, Record, SplitReport, hash_of
from rung.errors import ConfigError, DataError, ThresholdError
from rung.evaluation.report.words import against
from rung.evaluation.result import Comparison
from rung.evaluation.scoring import cases, metric_of
from rung.feedback.records import CaseFilter, Promotion, ReviewCase, Side, SplitRule
from rung.feedback.registry import Registry
from rung.feedback.store import FeedbackStore
from rung.models.cache import write_atomically
from rung.progress import QUIET, Progress
from rung.rungs import build
from rung.task import Task, suggest

# --------------------
# Reviewed interactions as training rows: checked like rows of a file, and never one that is held out.


@dataclass(frozen=True, slots=True)
class CorrectionCounts:
    """What became of the reviewed interactions.

    Attributes:
        failures: training rows made of answers that were wrong.
        confirmed: training rows made of answers that a reviewer found right.
        replaced: rows of the training file that a correction of the same input took the place of.
        held_out: left out because their input stands on the test side, or among the validation rows.
        superseded: left out because a later interaction has the same input.
    """

    failures: int = 0
    confirmed: int = 0
    replaced: int = 0
    held_out: int = 0
    superseded: int = 0


def with_corrections(task: Task, data: Data, cases: Sequence[ReviewCase]) -> tuple[Data, CorrectionCounts]:
    """Return the task's data with the reviewed interactions of the training side among the training rows.

    An interaction is held out if it was captured on the test side, if the task's own rule puts its input there, or if
    its input is that of a test or validation row: whichever says so first, it is never trained on.

    Raises:
        DataError: an expected response does not fit the task, such as a label that it does not have.
    """
    rule = SplitRule.of(task) if task.data.test is None else None
    aside = {row.id for row in (*data.validation, *data.test)}
    chosen: dict[str, tuple[ReviewCase, Example]] = {}
    held_out = superseded = 0
    for case in sorted(cases, key=lambda one: one.interaction.at):
        example = as_example(task, data, case)
        row = case.interaction
        # The inputs may have been redacted since; `input_id` is of those that came.
        apart = row.split == "test" or row.input_id in aside or example.id in aside
        if apart or (rule is not None and rule.side(example.inputs) == "test"):
            held_out += 1
            continue
        superseded += row.input_id in chosen
        chosen[row.input_id] = (case, example)
    ids = {example.id for _, example in chosen.values()} | set(chosen)
    kept = [row for row in data.train if row.id not in ids]
    added = [example for _, example in chosen.values()]
    failures = sum(case.failure for case, _ in chosen.values())
    taken = CorrectionCounts(failures, len(chosen) - failures, len(data.train) - len(kept), held_out, superseded)
    made = hash_of([data.fingerprint, [[row.id, *row.outputs] for row in added]], digits=64)
    return replace(data, train=(*kept, *added), fingerprint=made), taken


def as_example(task: Task, data: Data, case: ReviewCase) -> Example:
    """Return a reviewed interaction as a row of the task, its expected response as the answer.

    Raises:
        DataError: the expected response does not fit the task; the message names the interaction.
    """
    assert case.expected is not None
    row = case.interaction
    values: dict[str, Any] = dict(row.inputs)
    if task.output.kind == "chat":
        column = task.inputs[0]
        values[column] = [*values[column], {"role": "assistant", "content": case.expected}]
    else:
        assert task.output.column is not None
        values[task.output.column] = case.expected
    expected = case.expected
    if task.output.kind == "category":
        labels = data.labels or tuple(task.output.labels or ())
        values[task.output.column or ""] = expected = expected.strip()
        if expected not in labels:
            raise DataError(
                "unknown-label",
                f"interaction {row.id}: the label {expected!r} is not among those of the task",
                hint=f"{suggest(expected, labels)}; correct it with `rung failures correct`, or add rows of that label",
            )
    report = SplitReport()
    made, _ = examples([Record(values, f"interaction {row.id}")], task, report)
    if not made:
        reason = next(iter(report.dropped))
        raise DataError(
            "bad-row", f"interaction {row.id} is no row of the task {task.name}: {reason}",
            hint="undo the correction with `rung failures undo`",
        )  # fmt: skip
    return made[0]


IMPROVEMENT = "improvement.json"
TUNING_FROM = 1000  # failures: below, a handful of new rows moves weights less than it moves prompts
TRAINS_WEIGHTS = ("soft prompts", "parameter-efficient", "partial", "full", "preference")


@dataclass(frozen=True, slots=True)
class FailureOutcome:
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
    taken: CorrectionCounts
    rungs: tuple[str, ...]
    reason: str
    comparison: Comparison | None
    outcome: FailureOutcome

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
    store: FeedbackStore,
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
        ConfigError: `too-few-rows`: nothing was reviewed and found wrong on the training side.
        DataError: a correction does not fit the task.
    """
    options = options or ClimbOptions()
    cases = store.cases(CaseFilter(task=task.name, reviewed=True))
    data, taken = with_corrections(task, task.read(), cases)
    if not taken.failures:
        raise ConfigError(
            "too-few-rows",
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
    task: Task, store: FeedbackStore, found: Climb, data: Data, cases: Sequence[ReviewCase], taken: CorrectionCounts,
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
    run: Path, registry: Registry, store: FeedbackStore, *, reviewer: str, accept_regressions: bool = False
) -> Promotion:
    """Serve what an improvement recommends, its numbers recorded as evidence.

    Args:
        run: the run folder of `improve`.
        registry: of the improvement's task.
        store: keeps the promotion; the failures that it fixes are watched from now on.
        reviewer: who decides.
        accept_regressions: also if failures that were fixed once are wrong again.

    Raises:
        ConfigError: `wrong-folder`, `already-served` or `promotion-refused`.
        ThresholdError: `regressions`.
    """
    evidence = read_improvement(run)
    if not evidence["better"]:
        raise ConfigError("already-served", evidence["decision"], hint="collect more failures, and improve again")
    current = registry.current()
    now = current.artifact if current else None
    if evidence["served"] != now:
        raise ConfigError(
            "promotion-refused",
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
        ConfigError: `wrong-folder`.
    """
    file = run / IMPROVEMENT
    if not file.is_file():
        raise ConfigError(
            "wrong-folder", f"{run} has no {IMPROVEMENT}", hint="give the run folder that `rung improve` named"
        )
    values: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return values


def _short(artifact: str | None) -> str:
    return artifact[:16] if artifact else "zero-shot"


def judge(
    task: Task, store: FeedbackStore, artifact: Artifact, data: Data, failures: Sequence[ReviewCase]
) -> FailureOutcome:
    """Have an artifact answer the reviewed failures, and say which it fixes and which it breaks again.

    A failure is fixed if the answer scores above the recorded one by the task's metric.
    """
    metric = metric_of(artifact, task.folder)
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
    return FailureOutcome(tuple(sorted(ids)), of("train"), of("test"), broken, len(watched))
