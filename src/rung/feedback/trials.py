"""Trials on a server: one artifact beside the one that is served, started and stopped in the registry, judged here.

A server that follows the registry has the challenger answer (`rung.serving.shadow`, `rung.serving.served`), and capture
marks what both answered with the trial's token. How the two compare is computed anew from the store whenever asked.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from rung.artifact.artifact import Artifact
from rung.errors import ConfigError
from rung.evaluation.metrics import Case, Metric
from rung.evaluation.statistics import Interval
from rung.feedback.commands import command
from rung.feedback.defaults import PAIRS, SHARE
from rung.feedback.interaction import Interaction
from rung.feedback.records import Challenge, Mode, Verdict
from rung.feedback.registry import Registry
from rung.feedback.store import Store
from rung.feedback.trial import Arm, Decision, Trial


def start(registry: Registry, artifact: Path, *, mode: Mode, share: float = SHARE, most: int = PAIRS) -> Challenge:
    """Copy an artifact into the registry and try it beside what is served there.

    Args:
        registry: of the task.
        artifact: the challenger's folder.
        mode: `shadow` or `ab`.
        share: of the inputs that the challenger answers, where the mode is `ab`.
        most: pairs after which the trial ends undecided.

    Raises:
        ArtifactError: the folder is no artifact, or a damaged one.
        ConfigError: `nothing-served`, `trial-running`, `already-served`, `wrong-task` or `trial-mismatch`.
    """
    mark, folder = registry.adopt(artifact)
    with registry.locked():
        now = registry.current()
        if now is None:
            raise ConfigError(
                "nothing-served", f"nothing is served for {registry.task}, so there is nothing to try against",
                hint="promote an artifact first: "
                + command("rung promote", artifact, "--reason", "first release", registry=registry.root),
            )  # fmt: skip
        before = registry.trial()
        if before is not None and before.runs(now):
            raise ConfigError(
                "trial-running", f"a trial of {before.artifact[:16]} runs for {registry.task}",
                hint=f"look at it: {command('rung trial show', registry.task, registry=registry.root)}; "
                f"or end it: {command('rung trial stop', registry.task, registry=registry.root)}",
            )  # fmt: skip
        if mark == now.artifact:
            raise ConfigError("already-served", f"{mark[:16]} is served already", hint="try another artifact")
        _check_shapes(Artifact.load(registry.path(now)), Artifact.load(artifact))
        token, at = uuid.uuid4().hex, datetime.now(UTC)
        made = Challenge(
            token, at, registry.task, mode, share if mode == "ab" else 1.0, most, mark, folder, now.artifact
        )  # fmt: skip
        registry.keep_trial(made)
    return made


def stop(registry: Registry) -> Challenge:
    """End the trial that runs; what was collected stays in the store.

    Raises:
        ConfigError: `no-trial`.
    """
    with registry.locked():
        trial = registry.trial()
        if trial is None or trial.ended is not None:
            raise no_trial(registry, "no trial runs")
        ended = replace(trial, ended=datetime.now(UTC))
        registry.keep_trial(ended)
    return ended


def no_trial(registry: Registry, what: str) -> ConfigError:
    """Return the error that a task has no trial to speak of; `what` says which."""
    return ConfigError(
        "no-trial", f"{what} for {registry.task}",
        hint=f"start one: {command('rung trial start', registry.task, 'ARTIFACT', registry=registry.root)}",
    )  # fmt: skip


def _check_shapes(served: Artifact, challenger: Artifact) -> None:
    for what, one, other in (
        ("reads", served.shape.inputs, challenger.shape.inputs),
        ("answers with a", served.shape.kind, challenger.shape.kind),
    ):
        if one != other:
            raise ConfigError(
                "trial-mismatch", f"what is served {what} {one}, and the challenger {what} {other}",
                hint="a trial compares two artifacts of one task: same inputs, same kind of output",
            )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Standing:
    """How a trial stands.

    Attributes:
        decision: of the sequential test; `b` is the challenger.
        interval: of the difference, challenger less served, at 95 % over all looks together.
        answered: interactions captured by who answered; a shadow's count as the challenger's.
        judged: of those, answers with a score that the test read.
    """

    decision: Decision
    interval: Interval
    answered: Mapping[Arm, int]
    judged: Mapping[Arm, int]


def standing(store: Store, trial: Challenge, metric: Metric) -> Standing:
    """Compare what both answered with what was expected, in the order in which it became known.

    In a shadow trial each answer that has an expected response gives a pair, as soon as the challenger answered too. In
    an A/B trial an answer has the score of its expected response, else that of the user's thumb or score.

    Args:
        store: where both were captured.
        trial: which one.
        metric: of the task.

    Raises:
        DataError: an expected response is none of the task's.
    """
    rows = [row for row in store.in_trial(trial.token) if row.artifact in (trial.against, trial.artifact)]
    sent = {row.id: row for row in rows if not row.shadows}
    behind = {row.shadows: row for row in rows if row.shadows}
    said = [verdict for verdict in store.verdicts(trial.token) if verdict.interaction in sent]
    judge = Trial(most=trial.most, binary=metric.binary and trial.mode == "shadow")
    if trial.mode == "shadow":
        judged = _pair(judge, metric, said, sent, behind)
    else:
        judged = _alternate(judge, metric, said, sent, trial)
    by_challenger = sum(row.artifact == trial.artifact for row in rows)
    return Standing(judge.decision(), judge.interval(), {"a": len(rows) - by_challenger, "b": by_challenger}, judged)


def _pair(
    judge: Trial,
    metric: Metric,
    said: Iterable[Verdict],
    sent: Mapping[str, Interaction],
    behind: Mapping[str, Interaction],
) -> dict[Arm, int]:
    told = [(one.interaction, one.expected) for one in said if one.expected is not None and one.interaction in behind]
    ours = metric.scores([_case(sent[id], expected) for id, expected in told])  # noqa: A001
    theirs = metric.scores([_case(behind[id], expected) for id, expected in told])  # noqa: A001
    for a, b in zip(ours, theirs, strict=True):
        judge.add_pair(a.value, b.value)
    return {"a": len(told), "b": len(told)}


def _alternate(
    judge: Trial, metric: Metric, said: Iterable[Verdict], sent: Mapping[str, Interaction], trial: Challenge
) -> dict[Arm, int]:
    judged: dict[Arm, int] = {"a": 0, "b": 0}
    for one in said:
        row = sent[one.interaction]
        arm: Arm = "b" if row.artifact == trial.artifact else "a"
        score = one.score if one.expected is None else metric.scores([_case(row, one.expected)])[0].value
        assert score is not None  # a verdict has one or the other
        judge.add(arm, score)
        judged[arm] += 1
    return judged


def _case(row: Interaction, expected: str) -> Case:
    return Case(row.actual, [expected], row.inputs)
