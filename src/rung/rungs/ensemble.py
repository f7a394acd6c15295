"""An ensemble: the weighted average of the label probabilities of several artifacts.

Members that err on different rows are better together than each alone, even if they differ only by their seed
(Lakshminarayanan et al. 2017, https://arxiv.org/abs/1612.01474). Each member's temperature and weight maximize the
likelihood of the labels of held-out training rows; then the members are fitted again, on all training rows. Validation
rows are not used: the race compares rungs on them.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from rung._version import __version__
from rung.artifact.artifact import Artifact
from rung.artifact.files import MANIFEST
from rung.artifact.heads import EnsembleDecoder, label_probabilities, tempered
from rung.data.rows import Data, Example, hash_of, place_of
from rung.engines.base import Floats
from rung.errors import ConfigError
from rung.machine import Machine
from rung.models.cache import cache_dir
from rung.progress import QUIET, Progress
from rung.rungs import build, get
from rung.rungs.base import OK, Applicability, Cost, CountOrZero, PartialShare, Rung, rung, settable, skip
from rung.task import Task

Labels = npt.NDArray[np.int64]
TEMPERATURES = tuple(float(t) for t in np.geomspace(0.25, 8.0, 41))
STEPS = 200  # of expectation maximization; weights hardly move after fifty
SMALLEST = 0.02  # members with less weight are dropped: they cost as much as the others
# The priors, so that a few rows do not decide alone: each member got one row right, and two thirds of the temperatures
# are between a half and two.
ROWS_BEFORE, TEMPERATURE_SPREAD = 1.0, float(np.log(2))


@rung("ensemble", family="combination", order=1000, topics=("single label", "averaging"))
@dataclass(frozen=True, kw_only=True)
class Ensemble(Rung):
    """Fit several rungs on the same artifact and average their label probabilities.

    Fitted members stay in the cache until all are done, so that a killed run does not fit them again.

    Attributes:
        members: names of the rungs. A repeated name is fitted again, with the next seed.
        holdout: share of the training rows that the weights are chosen on.
        refit: fit the members again on all training rows, at twice the cost.
        seed: seed of the members and of the rows held out.
        task: the task, whose settings the members have.
    """

    members: Annotated[tuple[str, ...], Field(strict=False)] = ("features", "fine-tuned-encoder")
    holdout: PartialShare = 0.1
    refit: bool = True
    seed: CountOrZero = 0
    task: Task | None = None

    def rungs(self) -> list[Rung]:
        """Make the members' rungs; raise ConfigError for an unknown name, the ensemble's own, or fewer than two."""
        if len(self.members) < 2 or self.name in self.members:
            message = f"an ensemble needs two other rungs or more, not {', '.join(self.members) or 'none'}"
            hint = "rungs: {ensemble: {members: [features, fine-tuned-encoder]}}"
            raise ConfigError("bad-setting", message, hint=hint)
        seeds = [self.seed + self.members[:i].count(name) for i, name in enumerate(self.members)]
        pairs, task = zip(self.members, seeds, strict=True), self.task
        return [get(name, seed=seed) if task is None else build((name,), task, seed)[0] for name, seed in pairs]

    def suits(self, artifact: Artifact, data: Data) -> Applicability:
        """It applies where all members do and there are training rows to weigh them."""
        if artifact.signature.kind != "category":
            return skip("only the probabilities of one label a row can be averaged", final=True)
        if not held_apart(data.train, self.holdout, self.seed)[1]:
            reason = f"its weights are chosen on {self.holdout:.0%} of the training rows, which here is none"
            return skip(reason, final=True)
        for member in self.rungs():
            verdict = member.applies(artifact, data)
            if not verdict.applies:
                return replace(verdict, reason=f"{member.name}: {verdict.reason}")
        return OK

    def cache_key(self, artifact: Artifact) -> tuple[object, ...] | None:
        """The keys of all members."""
        parts = [rung.cache_key(artifact) for rung in self.rungs()]
        return None if None in parts else tuple(parts)

    def estimate(self, artifact: Artifact, data: Data, machine: Machine) -> Cost:
        """All members, once on most and once on all training rows, and their answers to those held out."""
        costs = [rung.estimate(artifact, data, machine) for rung in self.rungs()]
        row_flops, row_seconds = sum(c.row_flops for c in costs), sum(c.row_seconds for c in costs)
        held_out = self.holdout * len(data.train)
        times = 1 - self.holdout + self.refit
        return Cost(
            fit_tokens=round(times * sum(c.fit_tokens for c in costs)),
            fit_flops=times * sum(c.fit_flops for c in costs) + row_flops * held_out,
            fit_seconds=times * sum(c.fit_seconds for c in costs) + row_seconds * held_out,
            row_tokens=sum(c.row_tokens for c in costs), row_flops=row_flops, row_seconds=row_seconds,
            memory_bytes=max(c.memory_bytes for c in costs),
        )  # fmt: skip

    def fit(self, artifact: Artifact, data: Data, *, progress: Progress = QUIET) -> Artifact:
        """Replace the decoder by the members; raise EngineError (`no-probabilities`) if a member gives none."""
        rungs, cache = self.rungs(), _MemberCache(artifact)
        most, held_out = held_apart(data.train, self.holdout, self.seed)
        made = [cache.fitted(rung, replace(data, train=most), progress) for rung in rungs]
        truth = np.array([data.labels.index(example.outputs[0]) for example in held_out])
        probs = [label_probabilities(one.answer(held_out, full=True, progress=progress)) for one in made]
        temperatures = [best_temperature(one, truth) for one in probs]
        calm = [tempered(one, temperature) for one, temperature in zip(probs, temperatures, strict=True)]
        kept = np.flatnonzero(mixture_weights(calm, truth) >= SMALLEST)
        weights = mixture_weights([calm[i] for i in kept], truth)
        chosen = tuple(made[i] for i in kept)
        mixture = EnsembleDecoder(chosen, tuple(weights.tolist()), tuple(temperatures[i] for i in kept))
        settings = {
            "members": list(self.members), "kept": [int(i) for i in kept], "weights": list(mixture.weights),
            "temperatures": list(mixture.temperatures),
            "log_loss": log_loss(mixture.mixed([probs[i] for i in kept]), truth),
            "member_log_loss": [log_loss(one, truth) for one in calm], "rows": len(truth), "refit": self.refit,
        }  # fmt: skip
        if self.refit:
            mixture = replace(mixture, artifacts=tuple(cache.fitted(rungs[i], data, progress) for i in kept))
        cache.clear()
        return artifact.step(self.name, settings, decoder=mixture)


class _MemberCache:
    """Members fitted on one artifact, in the cache under the hash of all that their result depends on."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact, self.base = artifact, artifact.fingerprint()
        self.made: list[Path] = []

    def fitted(self, rung: Rung, data: Data, progress: Progress) -> Artifact:
        """Load the member that a killed run left, or fit and keep it."""
        identity = {
            "base": self.base, "rung": rung.name, "seed": getattr(rung, "seed", None), "version": __version__,
            "settings": {name: getattr(rung, name) for name in settable(rung)}, "labels": data.labels,
            "rows": hash_of([(row.id, row.outputs) for row in data.train], digits=64),
        }  # fmt: skip
        folder = cache_dir() / "members" / hash_of(identity, digits=32)
        if (folder / MANIFEST).exists():
            return Artifact.load(folder)  # the folder stays, since the artifact reads from it until it is saved
        member = rung.fit(self.artifact, data, progress=progress)
        self.made.append(member.save(folder))
        return member

    def clear(self) -> None:
        """Remove the members that this run kept."""
        for folder in self.made:
            shutil.rmtree(folder)


def held_apart(rows: Sequence[Example], share: float, seed: int) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Split rows by their hash into those to train on and those to choose the weights on; each label keeps a row."""
    position = {row.id: place_of([row.id, "weigh", seed]) for row in rows}
    last = {row.outputs[0]: row.id for row in sorted(rows, key=lambda row: position[row.id])}
    stay = set(last.values())  # a text with two labels may be the only row of one of them
    held_out = {row.id for row in rows if position[row.id] < share and row.id not in stay}
    return tuple(r for r in rows if r.id not in held_out), tuple(r for r in rows if r.id in held_out)


def log_loss(probs: Floats, truth: Labels) -> float:
    """The mean negative log-probability of the true labels, in nats."""
    return float(-np.log(np.maximum(probs[np.arange(len(truth)), truth], 1e-12)).mean())


def best_temperature(probs: Floats, truth: Labels) -> float:
    """The most likely of `TEMPERATURES`, given these rows and the prior."""

    def negative_log_posterior(temperature: float) -> float:
        far = float(np.log(temperature)) / TEMPERATURE_SPREAD
        return len(truth) * log_loss(tempered(probs, temperature), truth) + far**2 / 2

    return min(TEMPERATURES, key=negative_log_posterior)


def mixture_weights(probs: Sequence[Floats], truth: Labels) -> npt.NDArray[np.float64]:
    """The most likely weights of the average, given these rows and the prior; they add up to 1.

    The negative log-likelihood is convex in the weights, so expectation maximization (Dempster et al. 1977) finds the
    optimum.
    """
    given = np.stack([one[np.arange(len(truth)), truth] for one in probs], axis=1).astype(np.float64) + 1e-12
    weights = np.full(len(probs), 1 / len(probs))
    for _ in range(STEPS):
        shares = weights * given
        counts = (shares / shares.sum(1, keepdims=True)).sum(0) + ROWS_BEFORE
        weights = counts / counts.sum()
    return weights
