"""Trials: a challenger answers live requests next to the served artifact until one of them proves better.

In a shadow trial both artifacts answer every request, the client gets the served one's answer, and each row gives a
pair of scores. Where both gave the same answer the difference is 0 without a label, so only the rows on which they
differ need one (Karimi et al., Online active model selection for pre-trained classifiers, AISTATS 2021). In an A/B
trial a hash of the input decides which artifact answers; the k-th judged answer of one is paired with the k-th of the
other. These are two independent draws from the same traffic, so the expected difference is the same.

The registry holds the record (`ABTest`). A server that follows the registry lets the challenger answer
(`rung.serving.context`, `rung.serving.requests`), and capture marks the answers with the trial's token. Each report
computes the comparison from the store.
"""

from __future__ import annotations

import math
import uuid
from bisect import bisect_right
from collections.abc import Mapping
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
from rung.evaluation.metrics.base import Case, Metric
from rung.evaluation.racing import betting_capital, bounded_below, sign_capital
from rung.evaluation.report.words import p_text
from rung.evaluation.scoring import metric_of
from rung.evaluation.statistics import Interval
from rung.feedback.records import PAIRS, SHARE, ABTest, Interaction, TrialMode, command
from rung.feedback.registry import Registry
from rung.feedback.store import FeedbackStore

Arm = Literal["a", "b"]
Differences = npt.NDArray[np.float64]
MARGIN = 0.02  # a loss up to this is no reason against an artifact that is cheaper, as in a climb's decision


@dataclass(frozen=True, slots=True)
class SequentialDecision:
    """What the pairs of a trial show."""

    state: Literal["a", "b", "none", "open"]  # the better one, `none` within the planned pairs, or not decided yet
    n: int  # pairs so far
    delta: float  # mean score of b minus that of a
    fixed: int  # pairs in which b scored above a
    broken: int  # pairs in which b scored below a
    p: float  # two-sided, valid at every look

    @property
    def stop(self) -> bool:
        """Whether the trial is over."""
        return self.state != "open"


@dataclass
class SequentialTest:
    """Compares two artifacts by pairs of scores in [0, 1]. Once it has decided, later pairs change nothing.

    Looking after every pair is allowed: the test bets against equality (Waudby-Smith & Ramdas 2024,
    `rung.evaluation.racing`), and its p-value is valid at all looks together. Each direction is tested at half the
    level. The interval contains every difference that the same test does not reject. It is valid at all looks too, and
    excludes 0 exactly when the trial is decided.
    """

    alpha: float = 0.05  # bound on the probability, over the whole trial, of calling one of two equals better
    max_pairs: int = PAIRS  # after which it ends undecided
    binary: bool = False  # whether all scores are 0 or 1, for which there is a stronger test
    _differences: list[float] = field(default_factory=list)
    _equal: float = 0.0  # rows without a difference that are still to be added
    _waiting: dict[Arm, list[float]] = field(default_factory=lambda: {"a": [], "b": []})

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1 or self.max_pairs < 1:
            raise ValueError(f"need 0 < alpha < 1 and max_pairs >= 1, got {self.alpha} and {self.max_pairs}")
        self._enough = math.log(2 / self.alpha)  # the log of the capital that decides in one direction

    def add_pair(self, a: float, b: float) -> None:
        """Add the scores of both artifacts on one row (shadow); pairs beyond `max_pairs` are ignored."""
        for score in (a, b):
            if not 0 <= score <= 1:
                raise ValueError(f"scores must lie in [0, 1], got {score}")
            if self.binary and score not in (0, 1):
                raise ValueError(f"binary scores must be 0 or 1, got {score}")
        if len(self._differences) < self.max_pairs:
            self._differences.append(b - a)

    def add_differing(self, a: float, b: float, equal: float) -> None:
        """Add a row on which the answers differ, and the rows without a difference that come with it (shadow).

        `equal` is how many rows there are with the same answer twice for each row with two answers. They differ by 0
        and come first. A fixed bet on a block of such rows loses at least as much as if its mean came at every row, so
        the test keeps its level.
        """
        self._equal += equal
        while self._equal >= 1 - 1e-9:  # a sum of fractions
            self.add_pair(0.0, 0.0)
            self._equal -= 1
        self.add_pair(a, b)

    def add(self, arm: Arm, score: float) -> None:
        """Add the score of one answer (A/B); it waits for an answer of the other arm to form a pair."""
        self._waiting[arm].append(score)
        a, b = self._waiting["a"], self._waiting["b"]
        if a and b:
            self.add_pair(a.pop(0), b.pop(0))

    def decision(self) -> SequentialDecision:
        """The state at the first pair that decided the trial, else at the last pair."""
        difference, better, worse = self._seen()
        n = len(difference)
        if n == 0:
            return SequentialDecision("open", 0, 0.0, 0, 0, 1.0)
        p = min(1.0, 2 * math.exp(-max(better, worse)))
        winner: Arm = "b" if better > worse else "a"
        state = winner if max(better, worse) >= self._enough else "none" if n >= self.max_pairs else "open"
        fixed, broken = int((difference > 0).sum()), int((difference < 0).sum())
        return SequentialDecision(state, n, float(difference.mean()), fixed, broken, p)

    def interval(self) -> Interval:
        """The differences that the pairs do not rule out, at 1 - `alpha`; [-1, 1] without pairs."""
        difference, _, _ = self._seen()
        mean = float(difference.mean()) if len(difference) else 0.0
        low, high = (bounded_below(d, self.alpha / 2, exact=self.binary) for d in (difference, -difference))
        return Interval(min(low, mean), max(-high, mean))  # bounds of earlier pairs may have passed the mean

    def _seen(self) -> tuple[Differences, float, float]:
        """The differences up to the decision, and the log of the largest capital in either direction.

        A bet depends only on earlier rows, so later rows do not change the capital after a row.
        """
        difference = np.array(self._differences, dtype=np.float64)
        if not len(difference):
            return difference, 0.0, 0.0
        better, worse = (np.maximum.accumulate(np.maximum(0.0, self._capital(d))) for d in (difference, -difference))
        decided = np.maximum(better, worse) >= self._enough
        n = int(decided.argmax()) + 1 if decided.any() else len(difference)
        return difference[:n], float(better[n - 1]), float(worse[n - 1])

    def _capital(self, difference: Differences) -> Differences:
        return (sign_capital if self.binary else betting_capital)(difference)


def arm_of(id: str, *, share: float = 0.5, salt: str = "") -> Arm:  # noqa: A002
    """Which artifact answers: `b` for a share of the ids. An id keeps its artifact; another salt draws again."""
    return "b" if place_of([salt, id]) < share else "a"


# ---- starting and stopping


def start(
    registry: Registry, artifact: Path, *, mode: TrialMode, share: float = SHARE, max_pairs: int = PAIRS
) -> ABTest:
    """Copy an artifact into the registry and start its trial against what is served; for the options see `ABTest`.

    Raises:
        ArtifactError: the folder holds no artifact, or a damaged one.
        ConfigError: `nothing-served`, `trial-running`, `already-served`, `promotion-refused` or `trial-mismatch`.
    """
    mark, folder = registry.adopt(artifact)
    with registry.locked():
        now = registry.current()
        if now is None:
            promote = command("rung promote", artifact, "--reason", "first release", registry=registry.root)
            problem = f"nothing is served for {registry.task}, so a trial has no opponent"
            raise ConfigError("nothing-served", problem, hint=f"promote an artifact first: {promote}")
        before = registry.trial()
        if before is not None and before.runs(now):
            show, end = (
                command(f"rung trial {verb}", registry.task, registry=registry.root) for verb in ("show", "stop")
            )
            hint = f"look at it: {show}; or end it: {end}"
            raise ConfigError("trial-running", f"a trial of {before.artifact[:16]} runs for {registry.task}", hint=hint)
        if mark == now.artifact:
            raise ConfigError("already-served", f"{mark[:16]} is served already", hint="try another artifact")
        served, challenger = Artifact.load(registry.path(now)).signature, Artifact.load(artifact).signature
        for what, field in (("reads", "inputs"), ("answers with a", "kind")):
            ours, theirs = getattr(served, field), getattr(challenger, field)
            if ours != theirs:
                problem = f"the served artifact {what} {ours}, and the challenger {what} {theirs}"
                hint = "a trial compares two artifacts of one task: same inputs, same kind of output"
                raise ConfigError("trial-mismatch", problem, hint=hint)
        token, at, share = uuid.uuid4().hex, datetime.now(UTC), share if mode == "ab" else 1.0
        trial = ABTest(token, at, registry.task, mode, share, max_pairs, mark, folder, now.artifact)
        registry.keep_trial(trial)
    return trial


def stop(registry: Registry) -> ABTest:
    """End the running trial; the answers it collected stay in the store. No trial is a ConfigError, `no-trial`."""
    with registry.locked():
        trial = registry.trial()
        if trial is None or trial.ended is not None:
            raise _no_trial(registry, "no trial runs")
        ended = replace(trial, ended=datetime.now(UTC))
        registry.keep_trial(ended)
    return ended


def _no_trial(registry: Registry, problem: str) -> ConfigError:
    hint = f"start one: {command('rung trial start', registry.task, 'ARTIFACT', registry=registry.root)}"
    return ConfigError("no-trial", f"{problem} for {registry.task}", hint=hint)


# ---- judging and reporting


@dataclass(frozen=True, slots=True)
class TrialStanding:
    """The figures of a trial."""

    decision: SequentialDecision  # `b` is the challenger
    interval: Interval  # of the difference, challenger minus served, at 95 % over all looks together
    answered: Mapping[Arm, int]  # captured interactions; a shadow counts as the challenger's
    judged: Mapping[Arm, int]  # how many of these have a score
    both: int = 0  # rows that both answered (shadow)
    differing: int = 0  # rows among them with two different answers
    rated: int = 0  # answers that are judged by a user's thumb or score alone (A/B)

    @property
    def response_rates(self) -> tuple[float, float]:
        """The shares of the served artifact's and of the challenger's answers that have a score."""
        a, b = (self.judged[arm] / max(1, self.answered[arm]) for arm in ("a", "b"))
        return a, b

    @property
    def uneven(self) -> bool:
        """Whether the response rates differ by more than chance (two-sided z-test of two proportions, p < .05)."""
        n, m = self.answered["a"], self.answered["b"]
        pooled = sum(self.judged.values()) / max(1, n + m)
        spread = math.sqrt(pooled * (1 - pooled) * (1 / max(1, n) + 1 / max(1, m)))
        first, second = self.response_rates
        return n > 0 and m > 0 and abs(first - second) > 1.959964 * spread


def standing(store: FeedbackStore, trial: ABTest, metric: Metric) -> TrialStanding:
    """Compare the answers of both artifacts with what was expected, in the order in which it became known.

    In a shadow trial, rows on which both gave the same answer differ by 0. Rows with two answers give a pair once the
    expected response is known. Those that are judged stand for all of them: each brings as many rows without a
    difference as there were, when it was judged, for each row with two answers. So the difference is that over all
    traffic, whichever share of the differing rows was judged. In an A/B trial an answer is scored by its expected
    response, else by the user's thumb or score.

    Raises:
        DataError: an expected response is not valid for the task.
    """
    rows = [row for row in store.in_trial(trial.token) if row.artifact in (trial.against, trial.artifact)]
    sent = {row.id: row for row in rows if not row.shadows}
    shadows = {row.shadows: row for row in rows if row.shadows}
    answers = [answer for answer in store.judged(trial.token) if answer.interaction in sent]
    test = SequentialTest(max_pairs=trial.most, binary=metric.binary and trial.mode == "shadow")
    judged: dict[Arm, int] = {"a": 0, "b": 0}
    both = differing = rated = 0

    def scores(pairs: list[tuple[Interaction, str]]) -> list[float]:
        cases = [Case(row.actual, [expected], row.inputs) for row, expected in pairs]
        return [score.value for score in metric.scores(cases)]

    if trial.mode == "shadow":
        pairs = [(shadows[id].at, sent[id].actual != shadows[id].actual) for id in shadows if id in sent]  # noqa: A001
        known = [each for each in answers if each.expected is not None and each.interaction in shadows]
        told = [each for each in known if sent[each.interaction].actual != shadows[each.interaction].actual]
        served = scores([(sent[each.interaction], each.expected or "") for each in told])
        challenger = scores([(shadows[each.interaction], each.expected or "") for each in told])
        when = {differ: sorted(at for at, differs in pairs if differs == differ) for differ in (False, True)}
        for each, a, b in zip(told, served, challenger, strict=True):
            equal, unequal = (bisect_right(when[differ], each.at) for differ in (False, True))
            test.add_differing(a, b, equal / max(1, unequal))
        judged = {"a": len(known), "b": len(known)}
        both, differing = len(pairs), sum(differ for _, differ in pairs)
    else:
        for answer in answers:
            row = sent[answer.interaction]
            arm: Arm = "b" if row.artifact == trial.artifact else "a"
            score = answer.score if answer.expected is None else scores([(row, answer.expected)])[0]
            assert score is not None  # an answer was judged by one or the other
            test.add(arm, score)
            judged[arm] += 1
            rated += answer.expected is None
    by_challenger = sum(row.artifact == trial.artifact for row in rows)
    answered: dict[Arm, int] = {"a": len(rows) - by_challenger, "b": by_challenger}
    return TrialStanding(test.decision(), test.interval(), answered, judged, both, differing, rated)


VERDICTS = {
    "open": "undecided so far",
    "none": "the rows ran out, and neither proved better",
    "a": "the served artifact is better",
    "b": "the challenger is better",
}
NextStep = Literal["promote", "stop", "review"]


@dataclass(frozen=True, slots=True)
class TrialReport:
    """A trial with its figures and the next step, for `rung trial show` and the web page."""

    trial: ABTest
    running: bool  # it was neither stopped nor ended by a promotion
    current: bool  # the artifact it was started against is still served
    served: str  # name of the artifact: its rungs
    challenger: str
    metric: str  # the task's
    standing: TrialStanding
    registry: Registry
    store: str  # its location, without a password

    @property
    def folder(self) -> Path:
        """The challenger's folder."""
        return self.registry.path(self.trial)

    @property
    def verdict(self) -> str:
        """The decision in words."""
        decision, (low, high) = self.standing.decision, self.standing.interval
        text = VERDICTS[decision.state]
        if decision.state == "none":
            text += f": differences below {100 * low:+.1f} and above {100 * high:+.1f} points are ruled out"
            if self.no_worse:
                text += f"; it is not worse by more than {100 * MARGIN:g} points: promote it if it is cheaper"
            else:
                text += f"; that it is worse by more than {100 * MARGIN:g} points is not ruled out"
        return f"{text}{'; the trial may be stopped' if decision.stop else ''}"

    @property
    def no_worse(self) -> bool:
        """Whether the challenger is proven not to be worse by more than `MARGIN` (non-inferiority)."""
        return self.standing.interval.low > -MARGIN

    @property
    def measure(self) -> str:
        """What the difference is of: the task's metric, or the users' thumbs and scores."""
        return "mean thumb" if self.standing.rated else self.metric

    @property
    def remarks(self) -> list[str]:
        """What a reader of the figures has to know."""
        now, mode = self.standing, self.trial.mode
        if mode == "shadow":
            share = f"{now.differing} of {now.both} rows have two different answers"
            return [f"{share}; only these need a label, and the difference is that over all rows"] if now.both else []
        first, second = (100 * rate for rate in now.response_rates)
        lines = [f"judged: {first:.1f} % of the served artifact's answers, {second:.1f} % of the challenger's"]
        if now.rated:
            lines.append(
                f"{now.rated} answers are judged by users alone: this compares how often users approve among those who "
                "react, not how often answers are right"
            )
        if now.uneven:
            lines.append(
                "warning: users react to one artifact more often than to the other, so the difference may be one of "
                "who reacts; review a random sample of both"
            )
        return lines

    @property
    def delta(self) -> str:
        """`+4.0 pp`: the challenger's `measure` minus that of what is served."""
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
        """The figures in one line, as the evidence of a promotion."""
        return f"trial {self.trial.token[:8]}: {self.measure} {self.delta} {self.interval}, {self.p}"

    @property
    def step(self) -> NextStep | None:
        """What comes next; None where there is nothing to do."""
        if self.standing.decision.state == "b":
            return "promote" if self.current else None
        return None if not self.running else "stop" if self.standing.decision.stop else "review"

    @property
    def next(self) -> str:
        """The command of the next step, or an empty text."""
        task, root = self.trial.task, self.registry.root
        if self.step == "promote":
            return command("rung promote", self.folder, "--reason", self.evidence, registry=root, store=self.store)
        if self.step == "stop":
            return command("rung trial stop", task, registry=root)
        if self.step == "review":
            which = ["--reason", "disagreement"] if self.trial.mode == "shadow" else ["--all"]
            return command("rung failures list", "--task", task, *which, store=self.store)
        return ""


def trial_report(store: FeedbackStore, registry: Registry) -> TrialReport:
    """The report of the last trial; without one, a ConfigError, `no-trial`. For other errors see `standing`."""
    trial, now = registry.trial(), registry.current()
    if trial is None:
        raise _no_trial(registry, "no trial was started")
    challenger, metric = _name_and_metric(registry.path(trial).absolute())
    served, _ = _name_and_metric(registry.path_of(trial.against).absolute())
    current, figures = now is not None and now.artifact == trial.against, standing(store, trial, metric)
    names = served, challenger, metric.of_rows
    return TrialReport(trial, trial.runs(now), current, *names, figures, registry, store.name)


@lru_cache(64)
def _name_and_metric(folder: Path) -> tuple[str, Metric]:
    """The name and metric of an artifact; cached, as a folder of the registry never changes."""
    artifact = Artifact.load(folder)
    return artifact.name, metric_of(artifact)
