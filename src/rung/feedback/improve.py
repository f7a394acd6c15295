"""The improvement loop: climb with the corrections among the training rows, and with the served artifact as incumbent.

Two measurements are kept apart. The test rows were drawn before anybody looked at answers, so the paired test on them
decides fairly whether the new artifact is better. The reviewed failures show what the new artifact fixes. They were
chosen because the served artifact got them wrong, so any other artifact looks better on them: they get no p-value. The
failures on the training side were also trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rung.artifact.artifact import Artifact
from rung.artifact.files import fingerprint
from rung.climbing.next_steps import shift
from rung.climbing.options import ClimbOptions, chosen_rungs
from rung.climbing.run import Climb, climb
from rung.data.rows import Data
from rung.errors import ConfigError, ThresholdError
from rung.evaluation.report.words import against
from rung.evaluation.result import Comparison
from rung.evaluation.scoring import cases, metric_of
from rung.feedback.corrections import CorrectionCounts, as_example, contradictions, with_corrections
from rung.feedback.records import CaseFilter, Promotion, ReviewCase, Side
from rung.feedback.registry import Registry
from rung.feedback.store import FeedbackStore
from rung.models.files import write_atomically
from rung.progress import QUIET, Progress
from rung.rungs import build, registered
from rung.task import Task
from rung.yamlfile import read_sealed, sealed

IMPROVEMENT = "improvement.json"
CAPTURED = 1000  # of the newest requests, which are compared with the test rows
TUNING_FROM = 1000  # failures: below, a handful of new rows moves weights less than it moves prompts
JUDGED_FROM = 100  # pairs and thumbs from which weights learn what people prefer of texts


@dataclass(frozen=True, slots=True)
class FailureOutcome:
    """How an artifact answers the reviewed failures."""

    fixed: tuple[str, ...]  # ids of those that it answers better than the recorded answer
    of_train: tuple[int, int]  # how many of these are on the training side, and how many failures that side has
    of_test: tuple[int, int]
    regressions: tuple[str, ...]  # ids of those that some promoted artifact fixed before, and this one gets wrong
    watched: int  # how many had been fixed before


@dataclass(frozen=True)
class Improvement:
    """A climb on corrected data, compared with what is served."""

    climb: Climb
    served: str | None  # fingerprint of the incumbent; None where nothing was served
    recommended: str  # fingerprint
    better: bool  # whether the recommended artifact is another than the served one
    taken: CorrectionCounts
    rungs: tuple[str, ...]  # those tried
    reason: str  # why these
    comparison: Comparison | None  # the recommended artifact against the incumbent on the test rows, if they differ
    outcome: FailureOutcome  # of the recommended artifact
    shift: str = ""  # whether the captured requests differ from the test rows; empty where they are too few to tell

    def as_dict(self) -> dict[str, Any]:
        """JSON values: the evidence of a promotion."""
        result = self.climb.result
        artifact = next(r.artifact for r in result.rungs if r.name == result.recommended)
        return {
            "task": result.task, "run": str(self.climb.folder), "served": self.served, "recommended": self.recommended,
            "name": result.recommended, "artifact": artifact,
            "better": self.better, "decision": result.decision, "rungs": self.rungs, "reason": self.reason,
            "taken": asdict(self.taken), "comparison": None if self.comparison is None else asdict(self.comparison),
            "failures": asdict(self.outcome), "shift": self.shift,
        }  # fmt: skip


def improve(
    task: Task, store: FeedbackStore, registry: Registry,
    *, options: ClimbOptions | None = None, progress: Progress = QUIET,
) -> Improvement:  # fmt: skip
    """Climb with the reviewed failures, against what is served; if nothing is, zero-shot is the incumbent.

    `rungs_for` chooses the rungs, unless `options` or the task's `constraints.rungs` name them.

    Raises:
        ConfigError: `contested-corrections`.
        ConfigError: `too-few-rows`: no answer of the training side was found wrong by a reviewer, or got a thumb.
        DataError: a correction does not fit the task.
    """
    options = options or ClimbOptions()
    if contested := contradictions(task, store):
        problem = f"reviewers contradict each other about {len(contested)} inputs of {task.name}, first {contested[0]}"
        hint = "`rung failures list --contested` shows them: agree, undo, or let a third decide; the majority holds"
        raise ConfigError("contested-corrections", problem, hint=hint)
    reviewed = store.cases(CaseFilter(task=task.name, reviewed=True))
    opinions, thumbs = store.opinions(task.name), store.thumbs(task.name)
    data, taken = with_corrections(task, task.held_out().read(), reviewed, opinions, thumbs)
    if not taken.failures and not taken.thumbs:
        counts = f"({len(reviewed)} reviewed in all, {taken.held_out} held out)"
        problem = f"{task.name} has no reviewed failure on the training side {counts}"
        raise ConfigError(
            "too-few-rows", problem, hint="review some: `rung failures list`, then `rung failures correct`"
        )
    requested = tuple(options.rungs or task.constraints.rungs or ())
    names, reason = (requested, "as requested") if requested else rungs_for(task, taken, options)
    current = registry.current()
    incumbent = None if current is None else Artifact.load(registry.path(current))
    run = climb(task, progress=progress, options=replace(options, rungs=names), incumbent=incumbent, data=data)
    best = run.result.recommended
    folder = next(r.artifact for r in run.result.rungs if r.name == best)
    assert folder is not None
    better = best != run.result.rungs[0].name
    # The fingerprint of the climb's copy of the served artifact differs, as it has another name for its path.
    recommended = fingerprint(Path(folder)) if better or current is None else current.artifact
    outcome = _judge(task, store, Artifact.load(folder), data, [case for case in reviewed if case.failure])
    comparison = against(run.result, best) if better else None
    served = current.artifact if current else None
    prompt = Artifact.load(folder).prompt
    # The store names the suspicious ones first; of all requests, those of the test side are a share by hash.
    asked = [case.interaction for case in store.cases(CaseFilter(task=task.name, split="test"))]
    captured = [row.inputs for row in sorted(asked, key=lambda row: row.at)[-CAPTURED:]]
    texts, test = ([prompt.question(row) for row in rows] for rows in (captured, [row.inputs for row in data.test]))
    moved = shift(texts, test, seed=options.seed)
    improvement = Improvement(run, served, recommended, better, taken, names, reason, comparison, outcome, moved)
    write_atomically(run.folder / IMPROVEMENT, sealed(improvement.as_dict(), indent=1))
    return improvement


def rungs_for(task: Task, taken: CorrectionCounts, options: ClimbOptions) -> tuple[tuple[str, ...], str]:
    """Choose the rungs to try for what was reviewed, and say why.

    Where each row has one right answer, the corrections are training rows like any other. Of texts, which may be good
    and bad in many ways, the pairs and the thumbs say more than the corrections alone.
    """
    names, failures, judged = chosen_rungs(task, options), taken.failures, taken.pairs + taken.thumbs
    preferring: tuple[str, ...] = ()
    if task.output.kind in ("text", "chat") and judged >= JUDGED_FROM:
        preferring = tuple(
            each.name for each in registered() if each.rung_type.with_preferences and each.name not in names
        )
    why = (
        f"; {taken.pairs:,} pairs and {taken.thumbs:,} thumbs are enough to learn preferences from"
        if preferring
        else ""
    )
    if failures >= TUNING_FROM:
        return (*names, *preferring), f"{failures:,} failures are enough to tune weights on{why}"
    cheap = tuple(rung.name for rung in build(names, task, options.seed) if not rung.trains_weights)
    reason = f"{failures:,} failures change prompts and demonstrations; tuning weights waits for {TUNING_FROM:,}"
    return (*cheap, *preferring), reason + why


def _judge(
    task: Task, store: FeedbackStore, artifact: Artifact, data: Data, failures: Sequence[ReviewCase]
) -> FailureOutcome:
    """Let an artifact answer the reviewed failures; it fixes those for which it scores above the recorded answer."""
    metric = metric_of(artifact, task.folder)
    rows = [as_example(task, data, case) for case in failures]
    answered = cases(rows, artifact.answer(rows, full=False))
    recorded = [replace(c, prediction=f.interaction.actual) for c, f in zip(answered, failures, strict=True)]
    scores = zip(failures, metric.scores(answered), metric.scores(recorded), strict=True)
    fixed = [case.interaction for case, now, before in scores if now.value > before.value]
    ids = {row.id for row in fixed}
    watched = {case.interaction.id for case in failures} & store.fixed(task.name)

    def of(side: Side) -> tuple[int, int]:
        return sum(row.split == side for row in fixed), sum(case.interaction.split == side for case in failures)

    return FailureOutcome(tuple(sorted(ids)), of("train"), of("test"), tuple(sorted(watched - ids)), len(watched))


def promote(
    run: Path, registry: Registry, store: FeedbackStore, *, reviewer: str, accept_regressions: bool = False
) -> Promotion:
    """Serve what `improve` recommends in its run folder, and record its figures as evidence.

    Later improvements are checked on the failures that this one fixes. `accept_regressions` promotes even if failures
    that were fixed before are wrong again.

    Raises:
        ConfigError: `wrong-folder`, `already-served` or `promotion-refused`.
        ThresholdError: `regressions`.
    """
    evidence, current = read_improvement(run), registry.current()
    if not evidence["better"]:
        raise ConfigError("already-served", evidence["decision"], hint="collect more failures, and improve again")
    now = current.artifact if current else None
    if evidence["served"] != now:
        before, after = (mark[:16] if mark else "zero-shot" for mark in (evidence["served"], now))
        problem = f"{run} was measured against {before}, but {after} is served now"
        raise ConfigError("promotion-refused", problem, hint="improve again, against what is served")
    wrong_again = evidence["failures"]["regressions"]
    if wrong_again and not accept_regressions:
        count = f"{len(wrong_again)} of {evidence['failures']['watched']}"
        problem = f"{count} failures that were fixed once are wrong again, such as {wrong_again[0]}"
        hint = "look at them with `rung failures show`; to promote anyway: --accept-regressions"
        raise ThresholdError("regressions", problem, hint=hint)
    return registry.promote(Path(evidence["artifact"]), store, evidence=evidence, reviewer=reviewer)


def read_improvement(run: Path) -> dict[str, Any]:
    """Read what `improve` wrote into its run folder; any other folder is a ConfigError, `wrong-folder`."""
    file = run / IMPROVEMENT
    if not file.is_file():
        hint = "give the run folder that `rung improve` named"
        raise ConfigError("wrong-folder", f"{run} has no {IMPROVEMENT}", hint=hint)
    return read_sealed(file)
