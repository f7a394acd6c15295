"""Simulated climbs: how good is the recommended arm, by the number of labelled rows?

    python benchmarks/decision.py [--runs 200] [--shapes ladder,steep] [--markdown]

Each run draws scores of 0 and 1 for every arm of a shape on n labelled rows, correlated through the rows' difficulty,
and decides as a climb does: out of fold below 1,000 rows, else on a fifth of the rows for the race and a fifth for the
confirmation; race with futility, looks at the confirmation until all comparisons are settled, gate, choice. Out of
fold, trained arms lose two points because they learn from four fifths of the rows; the truth is without that loss.
Arm 0 is zero-shot, and costs are relative to it.

Peers on the same draws: `former`, the rule before (a fifth of the rows for the race and a fifth for the test at every
size, capital shared by 18 arms, exact McNemar with Holm's correction over all pairs, the cheapest arm that beats
zero-shot and that nothing beats); `all pairs`, the same rule on our rows; `argmax`, the best mean on our rows.

Then recorded scores of real prompts (benchmarks/matrices): rows are drawn, and the truth is the mean over all rows.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from _common import finish
from _races import race
from rung.data.splitting import FOLD_BELOW
from rung.evaluation.decision import decide, settled
from rung.evaluation.racing import looks, sign_capital
from rung.evaluation.statistics import compare, holm

Matrix = npt.NDArray[np.float64]
FOLDER = Path(__file__).parent / "matrices"
SIZES = (40, 60, 100, 200, 400, 600, 1000)
LEARNING = 0.02  # what trained arms lose out of fold
SHARED = 18  # arms among which the former race shared its capital


@dataclass(frozen=True)
class Shape:
    """Arms with their true accuracies, costs, and whether they learn from the rows."""

    accuracies: tuple[float, ...]
    costs: tuple[float, ...]
    trained: tuple[int, ...] = ()


SHAPES = {
    "ladder": Shape((0.60, 0.66, 0.70, 0.74, 0.78, 0.80), (1, 1.1, 2.5, 0.1, 1.2, 3), (3, 4)),
    "steep": Shape((0.60, 0.62, 0.68, 0.72, 0.80, 0.85), (1, 1.1, 0.1, 2.5, 1.2, 3), (2, 4)),
    "cheap-ok": Shape((0.60, 0.75, 0.80, 0.80, 0.80, 0.79), (1, 0.1, 2.5, 1.2, 3, 4), (1, 3)),
    "close": Shape((0.70, 0.72, 0.73, 0.74, 0.75, 0.76), (1, 0.1, 1.1, 2.5, 1.2, 3), (1, 4)),
    "quickstart": Shape((0.20, 0.86, 0.52, 0.40, 0.06, 0.69, 0.81), (1, 0.02, 0.9, 1, 1.2, 1.6, 1.05), (1, 6)),
    "null": Shape((0.70,) * 6, (1, 0.1, 1.1, 2.5, 1.2, 3)),
    "worse": Shape((0.70, 0.68, 0.66, 0.68, 0.64, 0.69), (1, 0.1, 1.1, 2.5, 1.2, 3)),
}
GAINS = ("ladder", "steep", "cheap-ok", "quickstart")  # shapes whose best arm is 20 points or more above zero-shot
GOALS = {"loss_at_100": 1.0, "loss_at_200": 1.0, "never_worse": 1.0, "decided_at_100": 1.0}


def draw(generator: np.random.Generator, accuracies: Sequence[float], n: int, rho: float = 0.6) -> Matrix:
    """Draw scores [arms, rows]; `rho` is the share of a row's difficulty that all arms share."""
    noise = generator.standard_normal((len(accuracies), n))
    z = math.sqrt(rho) * generator.standard_normal(n) + math.sqrt(1 - rho) * noise
    return (z < np.array([NormalDist().inv_cdf(a) for a in accuracies])[:, None]).astype(float)


@dataclass(frozen=True)
class Rows:
    """The rows of one run: those of the race, and those of the confirmation; the same ones out of fold."""

    search: Matrix
    confirm: Matrix
    folds: bool


# ---- the climb's procedure


def climb(rows: Rows, costs: Sequence[float]) -> tuple[int, float, bool]:
    """Decide; return the arm, the share of evaluations, and whether the answer is more than "cannot tell"."""
    names = [str(arm) for arm in range(len(costs))]
    cost = dict(zip(names, costs, strict=True))
    binary = bool(np.isin(rows.search, (0, 1)).all())
    searched: dict[str, list[float]] = {}

    def ask(name: str, until: int) -> list[float]:
        searched[name] = rows.search[int(name), :until].tolist()
        return searched[name]

    survivors = race(names, ask, rows.search.shape[1], binary=binary, margin=0.01, costs=cost).survivors
    finalists = list(dict.fromkeys(["0", *survivors]))
    # Out of fold, all arms of the race were compared on these rows, so all of them count.
    scores = dict(searched) if rows.folds else {}
    earlier = {} if rows.folds else searched
    waiting, n = set(finalists), rows.confirm.shape[1]
    for until in looks(n):
        for name in waiting:
            if len(scores.get(name, ())) < until:
                scores[name] = rows.confirm[int(name), :until].tolist()
        if until < n:
            waiting -= settled(scores, cost, "0", earlier=earlier, binary=binary, seed=0)
        if not waiting:
            break
    whole = {name for name, own in scores.items() if len(own) == n == len(scores["0"])}
    found = decide(scores, cost, "0", earlier=earlier, looked=True, complete=whole, binary=binary, seed=0)
    spent = sum(map(len, scores.values())) + (0 if rows.folds else sum(map(len, searched.values())))
    sizes = rows.confirm.shape[1] + (0 if rows.folds else rows.search.shape[1])
    decided = found.recommended != "0" or found.best == "0"
    return int(found.recommended), spent / (len(costs) * sizes), decided


# ---- peers


def former(rows: Rows, costs: Sequence[float]) -> int:
    """Race and recommend by the rule before this one."""
    alive = list(range(len(costs)))
    n = rows.search.shape[1]
    until = 20
    while len(alive) > 1:
        seen = rows.search[alive, : min(until, n)]
        totals = seen.sum(1)
        keep = []
        for i, arm in enumerate(alive):
            others = [j for j in range(len(alive)) if j != i]
            capital = np.logaddexp.reduce(sign_capital(seen[others] - seen[i]), axis=0) - math.log(SHARED - 1)
            if totals[i] == totals.max() or capital.max() < math.log(20):
                keep.append(arm)
        alive = keep
        if until >= n:
            break
        until = math.ceil(1.4 * until)
    return all_pairs(rows.confirm, costs, list(dict.fromkeys([0, *alive])))


def all_pairs(matrix: Matrix, costs: Sequence[float], finalists: Sequence[int]) -> int:
    """Recommend the cheapest finalist that beats arm 0 and that none beats, corrected over all pairs."""
    pairs = list(combinations(finalists, 2))
    tested = [compare(matrix[a], matrix[b], seed=0, resamples=2000) for a, b in pairs]
    ps = holm([one.p for one in tested])
    beats = {(b, a) if one.delta > 0 else (a, b) for (a, b), one, p in zip(pairs, tested, ps, strict=True) if p < 0.05}
    better = [arm for arm in finalists if (arm, 0) in beats]
    unbeaten = [arm for arm in better if not any((other, arm) in beats for other in better)]
    return min(unbeaten, key=lambda arm: costs[arm], default=0)


def argmax(matrix: Matrix, costs: Sequence[float]) -> int:
    """Take the best mean, of equals the cheapest."""
    return max(range(len(costs)), key=lambda arm: (matrix[arm].mean(), -costs[arm]))


# ---- the simulation


@dataclass(frozen=True)
class Summary:
    """What one rule did in all runs of one shape and size; losses in points."""

    loss: float
    wrong: float  # share with an arm more than two points below the best
    worse: float  # share with an arm below zero-shot
    stays: float
    decided: float = 1.0
    spent: float = 1.0


def summarize(
    arms: Sequence[int], truth: Sequence[float], decided: Sequence[bool] = (), spent: Sequence[float] = ()
) -> Summary:
    lost = 100 * (max(truth) - np.array(truth)[list(arms)])
    zero = 100 * (max(truth) - truth[0])
    return Summary(
        float(lost.mean()), float((lost > 2.01).mean()), float((lost > zero + 0.01).mean()),
        float(np.mean([arm == 0 for arm in arms])),
        float(np.mean(decided)) if decided else 1.0, float(np.mean(spent)) if spent else 1.0,
    )  # fmt: skip


def simulate(shape: Shape, n: int, runs: int, seed: int) -> dict[str, Summary]:
    """Run all rules on the same draws."""
    generator = np.random.default_rng([seed, n])
    arms = range(len(shape.costs))
    chosen: dict[str, list[int]] = {"rung": [], "former": [], "all pairs": [], "argmax": []}
    decided, spent = [], []
    lowered = [a - LEARNING * (arm in shape.trained) for arm, a in enumerate(shape.accuracies)]
    fifth = round(n / 5)
    for _ in range(runs):
        whole = draw(generator, shape.accuracies, n)
        held = Rows(whole[:, :fifth], whole[:, fifth : 2 * fifth], folds=False)
        rows = held
        if n < FOLD_BELOW["category"]:
            fold = draw(generator, lowered, n)
            rows = Rows(fold, fold, folds=True)
        arm, share, sure = climb(rows, shape.costs)
        decided.append(sure)
        spent.append(share)
        seen = rows.confirm if rows.folds else np.concatenate([rows.search, rows.confirm], axis=1)
        chosen["rung"].append(arm)
        chosen["former"].append(former(held, shape.costs))
        chosen["all pairs"].append(all_pairs(rows.confirm, shape.costs, arms))
        chosen["argmax"].append(argmax(seen, shape.costs))
    return {
        rule: summarize(found, shape.accuracies, *((decided, spent) if rule == "rung" else ()))
        for rule, found in chosen.items()
    }  # fmt: skip


def recorded(file: Path, rows: int, runs: int, seed: int) -> dict[str, Summary]:
    """Decide on rows drawn from a recorded matrix; prompts with demonstrations are two and a half times dearer."""
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    matrix = np.array([line["scores"] for line in lines])
    costs = [2.5 if line["candidate"]["shots"] else 1.0 for line in lines]
    generator = np.random.default_rng(seed)
    chosen: dict[str, list[int]] = {"rung": [], "former": [], "all pairs": [], "argmax": []}
    decided, spent = [], []
    for _ in range(runs):
        drawn = matrix[:, generator.permutation(matrix.shape[1])[:rows]]
        arm, share, sure = climb(Rows(drawn, drawn, folds=True), costs)
        chosen["rung"].append(arm)
        decided.append(sure)
        spent.append(share)
        half = rows // 2
        chosen["former"].append(former(Rows(drawn[:, :half], drawn[:, half:], folds=False), costs))
        chosen["all pairs"].append(all_pairs(drawn, costs, range(len(costs))))
        chosen["argmax"].append(argmax(drawn, costs))
    truth = matrix.mean(1).tolist()
    return {
        rule: summarize(found, truth, *((decided, spent) if rule == "rung" else ())) for rule, found in chosen.items()
    }  # fmt: skip


def show(name: str, n: int, found: Mapping[str, Summary]) -> None:
    """Print one line of the table."""
    own = found["rung"]
    peers = " | ".join(f"{one.loss:.1f}" for rule, one in found.items() if rule != "rung")
    print(
        f"| {name} | {n} | {own.loss:.1f} | {own.wrong:.0%} | {own.stays:.0%} | {own.worse:.1%} | {own.spent:.2f} | "
        f"{peers} | {found['former'].stays:.0%} |",
        flush=True,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    print(
        "| shape | labelled rows | mean loss | over 2 points below the best | stays | worse than zero-shot | "
        "evaluations | former: loss | all pairs: loss | argmax: loss | former: stays |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    found: dict[tuple[str, int], Summary] = {}
    for name in chosen.shapes.split(","):
        for n in map(int, chosen.sizes.split(",")):
            result = simulate(SHAPES[name], n, chosen.runs, chosen.seed)
            found[name, n] = result["rung"]
            show(name, n, result)
    for file in sorted(FOLDER.glob("*.jsonl")):
        rows = len(json.loads(file.read_text("utf-8").splitlines()[0])["scores"])
        for n in (round(0.4 * rows), round(0.7 * rows)):
            show(file.stem, n, recorded(file, n, chosen.runs, chosen.seed))

    def most(value: Callable[[Summary], float], n: int | None = None, only: Sequence[str] = tuple(SHAPES)) -> float:
        return max((value(s) for (name, size), s in found.items() if name in only and n in (None, size)), default=0.0)

    losing = [name for name in SHAPES if name != "close"]
    undecided = most(lambda s: 1 - s.decided, 100, GAINS)
    ratios = {
        "loss_at_100": 1.0 / max(most(lambda s: s.loss, 100, losing), 1e-9),
        "loss_at_200": 0.5 / max(most(lambda s: s.loss, 200, losing), 1e-9),
        "never_worse": 0.05 / max(most(lambda s: s.worse), 1e-9),
        "decided_at_100": 0.05 / max(undecided, 1e-9),
    }
    finish("decision", {name: min(ratio, 100.0) for name, ratio in ratios.items()}, GOALS)


if __name__ == "__main__":
    main()
