"""Trials on a server: one artifact beside the one that is served, started and stopped in the registry, judged here.

A server that follows the registry has the challenger answer (`rung.serving.shadow`, `rung.serving.served`), and capture
marks what both answered with the trial's token. How the two compare is computed anew from the store whenever asked.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from rung.artifact.artifact import Artifact
from rung.data.rows import place_of
from rung.errors import ConfigError
from rung.evaluation.metrics import Case, Metric
from rung.evaluation.racing import betting_capital, sign_capital
from rung.evaluation.report.words import p_text
from rung.evaluation.scoring import metric_of
from rung.evaluation.statistics import Interval
from rung.feedback.records import PAIRS, SHARE, ABTest, Interaction, JudgedAnswer, TrialMode, command
from rung.feedback.registry import Registry
from rung.feedback.store import FeedbackStore

# --------------------
# A trial in production: two artifacts answer live requests until one is shown to be better, or the rows run out.
#
# Shadow: both answer every request, the client gets the first's answer, and each row gives a pair of scores. A/B: each
# request is answered by one, chosen by a hash of its id; the k-th scored answer of one is paired with the k-th of the
# other, which are two independent draws from the same traffic, so the mean difference is the same.
#
# Looking after every row is allowed: the test is by betting (Waudby-Smith & Ramdas 2024, `rung.evaluation.racing`);
# its p-value holds at all looks together. Both directions are tested, each at half the level. The interval holds all
# differences that the same test would not reject, so it leaves out 0 just where the trial is decided, and it too holds
# at
# all looks together. `rung.feedback.trials` runs one on a server.


Arm = Literal["a", "b"]
Floats = npt.NDArray[np.float64]
PRECISION = 1e-4  # of an interval's ends


@dataclass(frozen=True, slots=True)
class SequentialDecision:
    """How a trial stands.

    Attributes:
        state: `a` or `b` is better, `none` was shown to be within the rows planned, or it is still `open`.
        n: pairs so far.
        delta: mean score of b less that of a over these.
        fixed, broken: pairs in which b scored above a, and below.
        p: two-sided, valid at every look.
    """

    state: Literal["a", "b", "none", "open"]
    n: int
    delta: float
    fixed: int
    broken: int
    p: float

    @property
    def stop(self) -> bool:
        """Whether the trial is over."""
        return self.state != "open"


@dataclass
class SequentialTest:
    """Collects scores in [0, 1] and decides by a fixed rule. Once decided, a trial stays so, whatever is added.

    Attributes:
        alpha: bound on the probability of calling one better where they are equally good, over the whole trial.
        most: pairs after which it ends undecided.
        binary: whether scores are 0 or 1 only, for which there is a stronger test.
    """

    alpha: float = 0.05
    most: int = PAIRS
    binary: bool = False
    _differences: list[float] = field(default_factory=list)
    _waiting: dict[Arm, list[float]] = field(default_factory=lambda: {"a": [], "b": []})

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1 or self.most < 1:
            raise ValueError(f"need 0 < alpha < 1 and most >= 1, got {self.alpha} and {self.most}")

    def add_pair(self, a: float, b: float) -> None:
        """Add the scores of both on one row (shadow); those beyond `most` are not looked at."""
        for score in (a, b):
            if not 0 <= score <= 1:
                raise ValueError(f"scores must lie in [0, 1], got {score}")
            if self.binary and score not in (0, 1):
                raise ValueError(f"binary scores must be 0 or 1, got {score}")
        if len(self._differences) < self.most:
            self._differences.append(b - a)

    def add(self, arm: Arm, score: float) -> None:
        """Add the score of one answer (A/B); it waits for one of the other arm to be paired with."""
        other = self._waiting["b" if arm == "a" else "a"]
        if not other:
            self._waiting[arm].append(score)
        elif arm == "a":
            self.add_pair(score, other.pop(0))
        else:
            self.add_pair(other.pop(0), score)

    def decision(self) -> SequentialDecision:
        """Return how the trial stands: at the first pair that decided it, else at the last one."""
        difference, better, worse = self._seen()
        n = len(difference)
        if n == 0:
            return SequentialDecision("open", 0, 0.0, 0, 0, 1.0)
        p = min(1.0, 2 * math.exp(-max(better, worse)))
        winner: Arm = "b" if better > worse else "a"
        state = winner if max(better, worse) >= self._enough else "none" if n >= self.most else "open"
        fixed, broken = int((difference > 0).sum()), int((difference < 0).sum())
        return SequentialDecision(state, n, float(difference.mean()), fixed, broken, p)

    def interval(self) -> Interval:
        """Return the differences that these pairs do not rule out, at 1 - `alpha`; [-1, 1] without pairs."""
        difference, _, _ = self._seen()
        return Interval(self._least(difference), -self._least(-difference))

    @property
    def _enough(self) -> float:
        """The log of the capital that decides: each direction is tested at half the level."""
        return math.log(2 / self.alpha)

    def _seen(self) -> tuple[Floats, float, float]:
        """Return the differences until the trial was decided, and the log of the largest capital in either direction.

        A bet knows only the rows before its own, so what was won after each row is the same however many follow.
        """
        difference = np.array(self._differences, dtype=np.float64)
        if not len(difference):
            return difference, 0.0, 0.0
        better, worse = (np.maximum.accumulate(np.maximum(0.0, self._capital(d))) for d in (difference, -difference))
        decided = np.maximum(better, worse) >= self._enough
        n = int(decided.argmax()) + 1 if decided.any() else len(difference)
        return difference[:n], float(better[n - 1]), float(worse[n - 1])

    def _capital(self, difference: Floats, mean: float = 0.0) -> Floats:
        return (sign_capital if self.binary else betting_capital)(difference, mean)

    def _least(self, difference: Floats) -> float:
        """Return the smallest mean that betting on more does not reject; 0 is tried first, as the trial does."""

        def rejected(mean: float) -> bool:
            return len(difference) > 0 and float(self._capital(difference, mean)[-1]) >= self._enough

        low, high = (0.0, 1.0) if rejected(0.0) else (-1.0, 0.0)
        while high - low > PRECISION:
            middle = (low + high) / 2
            low, high = (middle, high) if rejected(middle) else (low, middle)
        return low


def arm_of(id: str, *, share: float = 0.5, salt: str = "") -> Arm:  # noqa: A002
    """Return which artifact answers a request: `b` for a share of the ids, always the same for the same one.

    Args:
        id: of the request, or of whatever shall always see the same artifact.
        share: of the requests that `b` answers.
        salt: another one draws anew; give each trial its own.
    """
    return "b" if place_of([salt, id]) < share else "a"


def start(registry: Registry, artifact: Path, *, mode: TrialMode, share: float = SHARE, most: int = PAIRS) -> ABTest:
    """Copy an artifact into the registry and try it beside what is served there.

    Args:
        registry: of the task.
        artifact: the challenger's folder.
        mode: `shadow` or `ab`.
        share: of the inputs that the challenger answers, where the mode is `ab`.
        most: pairs after which the trial ends undecided.

    Raises:
        ArtifactError: the folder is no artifact, or a damaged one.
        ConfigError: `nothing-served`, `trial-running`, `already-served`, `promotion-refused` or `trial-mismatch`.
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
        made = ABTest(
            token, at, registry.task, mode, share if mode == "ab" else 1.0, most, mark, folder, now.artifact
        )  # fmt: skip
        registry.keep_trial(made)
    return made


def stop(registry: Registry) -> ABTest:
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
class TrialStanding:
    """How a trial stands.

    Attributes:
        decision: of the sequential test; `b` is the challenger.
        interval: of the difference, challenger less served, at 95 % over all looks together.
        answered: interactions captured by who answered; a shadow's count as the challenger's.
        judged: of those, answers with a score that the test read.
    """

    decision: SequentialDecision
    interval: Interval
    answered: Mapping[Arm, int]
    judged: Mapping[Arm, int]


def standing(store: FeedbackStore, trial: ABTest, metric: Metric) -> TrialStanding:
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
    judge = SequentialTest(most=trial.most, binary=metric.binary and trial.mode == "shadow")
    if trial.mode == "shadow":
        judged = _pair(judge, metric, said, sent, behind)
    else:
        judged = _alternate(judge, metric, said, sent, trial)
    by_challenger = sum(row.artifact == trial.artifact for row in rows)
    return TrialStanding(
        judge.decision(), judge.interval(), {"a": len(rows) - by_challenger, "b": by_challenger}, judged
    )


def _pair(
    judge: SequentialTest,
    metric: Metric,
    said: Iterable[JudgedAnswer],
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
    judge: SequentialTest, metric: Metric, said: Iterable[JudgedAnswer], sent: Mapping[str, Interaction], trial: ABTest
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


# --------------------
# What there is to say of a trial, the same for `rung trial show` and for the page: figures, verdict, what next.


VERDICTS = {
    "open": "undecided so far",
    "none": "the rows ran out, and neither was shown to be better",
    "a": "what is served is better",
    "b": "the challenger is better",
}
NextStep = Literal["promote", "stop", "review"]


@dataclass(frozen=True, slots=True)
class TrialReport:
    """A trial, how it stands, and what to do next.

    Attributes:
        running: whether it was neither stopped nor overtaken by a promotion.
        beside: whether what it was started against is still served.
        served, challenger: names of the two artifacts: their rungs.
        standing: the figures.
        registry: of the task.
        store: the place of the store, as it may be shown.
    """

    trial: ABTest
    running: bool
    beside: bool
    served: str
    challenger: str
    standing: TrialStanding
    registry: Registry
    store: str

    @property
    def folder(self) -> Path:
        """Where the challenger lies."""
        return self.registry.path(self.trial)

    @property
    def verdict(self) -> str:
        """What the figures say."""
        decision = self.standing.decision
        return f"{VERDICTS[decision.state]}{'; the trial may be stopped' if decision.stop else ''}"

    @property
    def delta(self) -> str:
        """`+4.0 pp`: the challenger's mean score less that of what is served."""
        return f"{100 * self.standing.decision.delta:+.1f} pp"

    @property
    def interval(self) -> str:
        """`[+0.6, +7.5]`."""
        low, high = self.standing.interval
        return f"[{100 * low:+.1f}, {100 * high:+.1f}]"

    @property
    def p(self) -> str:
        """`p = 0.020`."""
        return p_text(self.standing.decision.p)

    @property
    def evidence(self) -> str:
        """What the trial says for its challenger, in one line."""
        return f"trial {self.trial.token[:8]}: {self.delta} {self.interval}, {self.p}"

    @property
    def step(self) -> NextStep | None:
        """What comes next; None where there is nothing to do."""
        decision = self.standing.decision
        if decision.state == "b":
            return "promote" if self.beside else None
        if not self.running:
            return None
        return "stop" if decision.stop else "review"

    @property
    def next(self) -> str:
        """The command of the next step, or an empty text."""
        task, root = self.trial.task, self.registry.root
        if self.step == "promote":
            why = ("--reason", self.evidence)
            return command("rung promote", self.folder, *why, registry=root, store=self.store)
        if self.step == "stop":
            return command("rung trial stop", task, registry=root)
        if self.step == "review":
            which = ["--reason", "disagreement"] if self.trial.mode == "shadow" else ["--all"]
            return command("rung failures list", "--task", task, *which, store=self.store)
        return ""


def trial_report(store: FeedbackStore, registry: Registry) -> TrialReport:
    """Return what there is to say of the trial that was started last.

    Raises:
        ConfigError: `no-trial`.
        ArtifactError: the registry or one of the artifacts is damaged.
        DataError: an expected response is none of the task's.
    """
    trial, now = registry.trial(), registry.current()
    if trial is None:
        raise no_trial(registry, "no trial was started")
    challenger, metric = _read(registry.path(trial).absolute())
    served, _ = _read(registry.path_of(trial.against).absolute())
    beside = now is not None and now.artifact == trial.against
    found = standing(store, trial, metric)
    return TrialReport(trial, trial.runs(now), beside, served, challenger, found, registry, store.name)


@lru_cache(64)
def _read(folder: Path) -> tuple[str, Metric]:
    """Return the name of an artifact and its task's metric; a folder of the registry never holds another one."""
    artifact = Artifact.load(folder)
    return artifact.name, metric_of(artifact)
