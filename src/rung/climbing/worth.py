"""What a rung is worth trying: the points that it may gain over the leader, and the seconds that it takes.

Every rung has a prior of how much it closes of the gap between its base's score and a perfect one: from 0, nothing, to
1, all of it. `worth.json` has the figures of Rung's own results (benchmarks/worth.py makes it), `ASSUMED` a wide guess
for each family without results. Earlier climbs of the same kind of task, and what this climb has measured of the same
rung or family, move it. The next rung is the one with the largest expected improvement over the leader a second
(Jones, Schonlau & Welch, Efficient global optimization of expensive black-box functions, 1998; a second's price as in
FLAML: Wang et al., FLAML: A fast and lightweight AutoML library, 2021).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

from rung.data.rows import LABELLED
from rung.errors import ConfigError
from rung.rungs.base import Rung
from rung.yamlfile import read_sealed

_NORMAL = NormalDist()
# Mean and standard deviation of the share of the gap that a family closes, for labels and for written answers.
ASSUMED = {
    "prompting": ((0.05, 0.12), (0.05, 0.12)),
    "in-context": ((0.25, 0.25), (0.3, 0.25)),
    "retrieval": ((0.3, 0.3), (0.4, 0.3)),
    "features": ((0.6, 0.25), (0.4, 0.3)),
    "prompt-learning": ((0.1, 0.15), (0.15, 0.15)),
    "parameter-efficient": ((0.6, 0.25), (0.4, 0.25)),
    "soft prompts": ((0.45, 0.25), (0.2, 0.25)),
    "partial": ((0.5, 0.25), (0.3, 0.25)),
    "full": ((0.6, 0.25), (0.4, 0.25)),
    "combination": ((0.65, 0.2), (0.3, 0.25)),
    "model": ((0.2, 0.3), (0.2, 0.3)),
}
UNKNOWN = (0.3, 0.3)  # of other families
UNSEEN = (0.3, 0.25)  # score of a base that has answered nothing yet
# How far a measured share is from that of another task, of another rung of the family, of the rung on another base.
OTHER_TASK, OTHER_RUNG, OTHER_BASE = 0.25, 0.2, 0.1
# Where a task has documents, the share of its usual gain that a rung which reads none closes, and of the spread of the
# guess. In the documents example, sentence selection closed 0.36 of the gap and retrieval 0.07, with LoRA on top 0.11;
# without documents LoRA closed 0.03 and demonstrations 0.01.
CLOSED_BOOK, CLOSED_BOOK_SD = 0.15, 0.5
STACKED = 0.35  # of its usual share is what a rung closes on top of another rung
PAIRED = 0.5  # of the noise in two scores is left in their difference on the same rows
PAST_RUNS = 50


class Belief(NamedTuple):
    """Mean and standard deviation of a normal distribution."""

    mean: float
    sd: float

    def seen(self, value: float, sd: float) -> Belief:
        """Update by an observation with this standard deviation."""
        weight = self.sd**2 / (self.sd**2 + sd**2)
        return Belief(self.mean + weight * (value - self.mean), self.sd * math.sqrt(1 - weight))


class Promise(NamedTuple):
    """What is expected of an arm: the probability that it beats the leader by the margin, the gain, and its score."""

    chance: float
    gain: float  # expected improvement over the leader, a share
    score: float


@dataclass(frozen=True, slots=True)
class Experience:
    """What was measured of a rung: the share that it closed of the gap to a perfect score, and where."""

    rung: str
    family: str
    share: float
    here: bool  # in this climb


@dataclass
class Worth:
    """Beliefs about the rungs on tasks of one kind."""

    kind: str
    experience: list[Experience] = field(default_factory=list)

    def share(
        self, name: str, family: str, depth: int = 1, *, closed_book: bool = False, variant_of: str = ""
    ) -> Belief:
        """The share of its base's gap that a rung is expected to close, as the `depth`-th above zero-shot.

        A variant of a rung is expected to do what that rung does. `closed_book` says that the task has documents and
        neither the rung nor its base reads them.
        """
        known = _learnt().get(self.kind, {}).get(variant_of or name)
        guess = ASSUMED.get(family, (UNKNOWN, UNKNOWN))[self.kind not in LABELLED]
        belief = Belief(*(known or guess))
        if closed_book:
            belief = Belief(CLOSED_BOOK * belief.mean, CLOSED_BOOK_SD * belief.sd)
        for each in self.experience:
            if each.rung == name:
                belief = belief.seen(each.share, OTHER_BASE if each.here else OTHER_TASK)
            elif each.here and each.family == family:
                belief = belief.seen(each.share, OTHER_RUNG)
        return belief if depth <= 1 else Belief(STACKED * belief.mean, belief.sd)

    def promise(
        self, rung: Rung, depth: int, base: Belief, leader: Belief, margin: float, *, closed_book: bool = False
    ) -> Promise:
        """What is expected of a rung on top of a base with this score, against a leader with that."""
        share = self.share(rung.name, rung.family, depth, closed_book=closed_book, variant_of=rung.variant_of)
        gap = max(0.0, 1 - base.mean)
        mean = base.mean + share.mean * gap
        noise = PAIRED * math.hypot((1 - share.mean) * base.sd, leader.sd)
        spread = math.hypot(share.sd * gap, noise, 1e-6)
        return Promise(
            _NORMAL.cdf((mean - leader.mean - margin) / spread), improvement(mean - leader.mean, spread), mean
        )  # fmt: skip

    def learn(self, name: str, family: str, score: float, base: float, *, here: bool = True) -> None:
        """Remember what a rung did to the score of its base."""
        if base < 1:
            share = max(-1.0, (score - base) / (1 - base))
            self.experience.append(Experience(name, family, share, here))

    def learn_from_runs(self, root: Path) -> None:
        """Remember the rungs of earlier climbs of the same kind of task; what cannot be read is left out."""
        reports = sorted(root.glob("*/report.json"), key=lambda file: file.stat().st_mtime)[-PAST_RUNS:]
        for name, family, score, base in _measured(reports, self.kind):
            self.learn(name, family, score, base, here=False)


def improvement(mean: float, sd: float) -> float:
    """The expected value of the positive part of a normal variable."""
    z = mean / sd
    return sd * _NORMAL.pdf(z) + mean * _NORMAL.cdf(z)


def score_belief(scores: Sequence[float]) -> Belief:
    """What the scores on some rows say about the mean; two imagined rows, 0 and 1, keep few rows from saying much."""
    if not scores:
        return Belief(*UNSEEN)
    n = len(scores) + 2
    mean = (sum(scores) + 1) / n
    variance = (sum(score**2 for score in scores) + 1) / n - mean**2
    return Belief(mean, math.sqrt(variance / n))


def _measured(reports: Iterable[Path], kind: str) -> Iterable[tuple[str, str, float, float]]:
    """The rungs of earlier climbs: name, family, score, and that of their base."""
    for file in reports:
        try:
            identity = read_sealed(file.parent / "climb.json")
            rungs: list[dict[str, Any]] = read_sealed(file)["rungs"]
            if identity.get("kind") != kind:
                continue
            scores = {tuple(rung["path"]): rung["score"] for rung in rungs if rung["score"] is not None}
            for rung in rungs:
                path = tuple(rung["path"])
                if len(path) == 2 and path[:1] in scores and path in scores:
                    yield path[-1], rung["family"], scores[path], scores[path[:1]]
        except (ConfigError, KeyError, TypeError, AttributeError):
            continue


@cache
def _learnt() -> dict[str, dict[str, tuple[float, float]]]:
    """Kind, rung, and the share that it closed in Rung's own results: mean and standard deviation."""
    values = json.loads(files("rung.climbing").joinpath("worth.json").read_text("utf-8"))
    return {kind: {name: (m, sd) for name, (m, sd) in rungs.items()} for kind, rungs in values.items()}
