"""Races on score matrices: how many evaluations they take, and whether they find a winner as good.

    python benchmarks/racing.py

The peer scores every candidate on every row and takes the best mean. `halving` is the race of the prompt search: it may
spend 0.3 of those evaluations. A run counts as won when the candidate found is the best one, or is not significantly
worse than it (paired test over all rows, p >= 0.05). Few rows prove little, so the mean gap to the best is printed
beside it, and what a choice by chance would reach. `elimination` is the race of the climb: it drops what is proven
worse, and what is futile. Each of 100 runs shuffles rows and candidates by its seed.

The matrices of prompts are recorded with the embedded model (benchmarks/matrices/README.md). A climb's arms differ more
than prompts do; so the climb's race also runs on drawn matrices of 300 rows with the accuracies of whole climbs (the
shapes of benchmarks/decision.py). There the gap is to the best true accuracy, beside that of the best mean of all
evaluations.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from _common import finish
from _races import race
from decision import SHAPES, Shape, draw
from rung.evaluation.racing import halve
from rung.evaluation.statistics import compare

FOLDER = Path(__file__).parent / "matrices"
SHARE = 0.3
LEVEL = 0.05
MIN_ROWS = 12  # rows that every candidate answers, as in prompt search, where they are not half of what may be spent
CLIMBS = ("quickstart", "ladder", "steep", "cheap-ok")  # shapes with arms that differ
ROWS = 300
# The climb's race: at most 0.35 of all evaluations, at a regret at most 0.15 points above that of all evaluations.
GOALS = {"evaluations_saved": 1 / SHARE, "winner_within_noise": 0.95, "climb_evaluations": 1.0, "climb_regret": 1.0}
Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Recorded:
    """One task: scores by the metric and racing scores, both [candidates, rows]."""

    name: str
    scores: Matrix
    racing: Matrix

    @cached_property
    def as_good(self) -> list[bool]:
        """Whether each arm is the best by all rows, or not significantly worse."""
        best = self.scores[int(self.scores.mean(1).argmax())]
        found = [compare(best, arm, seed=0) for arm in self.scores]
        return [one.p >= LEVEL or one.delta >= 0 for one in found]

    def gap(self, arm: int) -> float:
        """Return how far an arm is behind the best, in points."""
        means = self.scores.mean(1)
        return 100 * float(means.max() - means[arm])


def load(file: Path) -> Recorded:
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    return Recorded(
        file.stem, np.array([line["scores"] for line in lines]), np.array([line["racing"] for line in lines])
    )  # fmt: skip


def raced(task: Recorded, seed: int) -> tuple[int, float]:
    """Race once; return the winner and the share of evaluations."""
    generator = np.random.default_rng(seed)
    arms, rows = generator.permutation(len(task.racing)), generator.permutation(task.racing.shape[1])
    matrix = task.racing[:, rows]
    names, min_rows = [str(arm) for arm in arms], min(MIN_ROWS, int(SHARE * len(rows) / 2))

    def ask(name: str, until: int) -> list[float]:
        return matrix[int(name), :until].tolist()

    found = halve(names, ask, len(rows), int(SHARE * matrix.size), min_rows=min_rows)
    return int(found.winner), found.evaluations / matrix.size


def eliminated(task: Recorded, seed: int) -> tuple[int, float]:
    """Race once by significance alone."""
    rows = np.random.default_rng(seed).permutation(task.scores.shape[1])
    matrix = task.scores[:, rows]
    answered = np.zeros(len(matrix), int)

    def ask(name: str, until: int) -> list[float]:
        answered[int(name)] = until
        return matrix[int(name), :until].tolist()

    result = race([str(arm) for arm in range(len(matrix))], ask, len(rows), margin=0.01)
    return max(map(int, result.survivors), key=lambda arm: matrix[arm].mean()), answered.sum() / matrix.size


def drawn(shape: Shape, seed: int) -> tuple[float, float, float]:
    """Race the arms of a climb; return the gap of the winner, that of the best mean, and the share of evaluations."""
    matrix = draw(np.random.default_rng(seed), shape.accuracies, ROWS)
    arm, share = eliminated(Recorded("", matrix, matrix), seed)
    lost = 100 * (max(shape.accuracies) - np.array(shape.accuracies))
    return float(lost[arm]), float(lost[int(matrix.mean(1).argmax())]), share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--matrices", type=Path, default=FOLDER)
    chosen = parser.parse_args()
    won, saved = [], []
    files = sorted(chosen.matrices.glob("*.jsonl"))
    if not files:
        raise SystemExit(f"there is no matrix in {chosen.matrices}: record some with benchmarks/record_matrices.py")
    print("| task | candidates x rows | race | evaluations | as good as best | best itself | mean gap | by chance |")
    print("|---|---|---|---|---|---|---|---|")
    for file in files:
        task = load(file)
        arms, rows = task.scores.shape
        chance = np.mean(task.as_good)
        for name, method in (("halving", raced), ("elimination", eliminated)):
            results = [method(task, seed) for seed in range(chosen.runs)]
            good = float(np.mean([task.as_good[arm] for arm, _ in results]))
            exact = float(np.mean([task.gap(arm) == 0 for arm, _ in results]))
            gap, share = np.mean([task.gap(arm) for arm, _ in results]), np.mean([share for _, share in results])
            print(
                f"| {task.name} | {arms} x {rows} | {name} | {share:.2f} | {good:.2f} | {exact:.2f} | "
                f"{gap:.1f} points | {chance:.2f} |",
                flush=True,
            )
            if name == "halving":
                won.append(good)
                saved.append(1 / max(spent for _, spent in results))
    print(
        "\n| climb | arms x rows | evaluations | gap | gap of the best mean of all evaluations |\n|---|---|---|---|---|"
    )
    shares, excess = [], []
    for name in (*CLIMBS, "close", "null"):
        gap, best, share = np.mean([drawn(SHAPES[name], seed) for seed in range(chosen.runs)], axis=0)
        arms = len(SHAPES[name].costs)
        print(f"| {name} | {arms} x {ROWS} | {share:.2f} | {gap:.2f} points | {best:.2f} |", flush=True)
        if name in CLIMBS:
            shares.append(share)
            excess.append(gap - best)
    ratios = {"climb_evaluations": 0.35 / np.mean(shares), "climb_regret": 0.15 / max(np.mean(excess), 0.0015)}
    finish("racing", {"evaluations_saved": min(saved), "winner_within_noise": min(won), **ratios}, GOALS)


if __name__ == "__main__":
    main()
