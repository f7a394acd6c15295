"""Learning from a checker alone: RLOO on top of fine-tuning with the embedded model, and a control.

    python benchmarks/rewards.py

The task is to sort four words. `lora` learns it from 200 solved rows; then `rl` samples eight answers to each of 16
fresh rows a step, and a program says which are right. 500 rows that nothing saw measure both, paired (mid-p McNemar,
one-sided). The control is the same training with the rewards of a step shuffled over its answers: what it gains, if
anything, comes from something else than the rewards. Every line is printed as it comes out. The goals are ten points
with p < .01, a control that gains nothing that is beyond chance, and 20 minutes for fine-tuning and RL on two cores.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from typing import TYPE_CHECKING, Any

from _common import EXAMPLES, finish

sys.path.insert(0, str(EXAMPLES / "sorting"))
from make import rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rung.artifact.artifact import Artifact
    from rung.data.rows import Example

GOALS = {"points": 10.0, "one_in": 100.0, "control_one_in_at_most": 1.0, "minutes_left": 1.0}
MINUTES, CHANCE = 20.0, 0.05


def task_of(train: Sequence[dict[str, str]], test: Sequence[dict[str, str]], model: str) -> Any:
    from rung.task import Task

    return Task(
        name="sorting", instruction="Sort the words alphabetically.", inputs=["words"],
        output={"kind": "text", "column": "sorted", "max_tokens": 16}, metric="quasi_exact_match",
        data={"train": list(train), "test": list(test)}, model=model,
    )  # fmt: skip


def shuffled(seed: int) -> Any:
    """Return a `RewardLoss.__init__` after which rewards say nothing of the answers."""
    from rung.training.rewards import RewardLoss

    made, rng = RewardLoss.__init__, random.Random(seed)

    def init(self: Any, *arguments: Any, **options: Any) -> None:
        made(self, *arguments, **options)
        real = self.reward

        def reward(asked: Sequence[Example], texts: Sequence[str]) -> list[float]:
            values = list(real(asked, texts))
            rng.shuffle(values)
            return values

        self.reward = reward

    return init


def print_course(learned: Artifact) -> None:
    """Print the mean reward of every tenth of the steps: rows differ from step to step; the control has the same."""
    curve = [each["reward"] for each in learned.settings["rl"]["measures"]]
    tenth = max(1, len(curve) // 10)
    parts = [curve[i : i + tenth] for i in range(0, len(curve), tenth)]
    print(f"  rewards of {tenth} steps each: " + " ".join(f"{sum(p) / len(p):.2f}" for p in parts), flush=True)


class Scores:
    """Scores of artifacts on the same rows, printed as they come out."""

    def __init__(self, test: Sequence[Example]) -> None:
        self.test, self.began, self.base = test, time.perf_counter(), list[float]()

    def measure(self, name: str, artifact: Artifact) -> list[float]:
        """Score an artifact, and compare it with the first one."""
        from rung.evaluation.scoring import evaluate
        from rung.evaluation.statistics import mcnemar_midp, mean_interval

        spent = time.perf_counter() - self.began
        found = [row.score for row in evaluate(artifact, self.test, "test")]
        low, high = mean_interval(found, seed=0)
        line = f"{name:22} {100 * sum(found) / len(found):5.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
        if self.base:
            fixed = sum(a > b for a, b in zip(found, self.base, strict=True))
            broken = sum(a < b for a, b in zip(found, self.base, strict=True))
            line += f"  {fixed} fixed, {broken} broken, p = {mcnemar_midp(fixed, broken):.2g}"
        print(f"{line}   after {spent / 60:.1f} min", flush=True)
        self.base = self.base or found
        return found


def main() -> None:
    from rung.artifact.artifact import Artifact
    from rung.evaluation.statistics import mcnemar_midp
    from rung.rungs import RL, LoRA
    from rung.training.rewards import RewardLoss

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--solved", type=int, default=200, help="rows to fine-tune on")
    parser.add_argument("--steps", type=int, default=100, help="of RL, 16 rows each")
    parser.add_argument("--test", type=int, default=500, help="fresh rows that measure")
    parser.add_argument("--learning-rate", type=float, default=5e-4, help="of RL")
    parser.add_argument("--epochs", type=int, default=3, help="of fine-tuning")
    chosen = parser.parse_args()
    count = 16 * chosen.steps
    every = rows(chosen.solved + count + chosen.test)
    solved, fresh, test = (
        every[: chosen.solved], every[chosen.solved : chosen.solved + count], every[chosen.solved + count :]
    )  # fmt: skip
    task, asked = task_of(solved, test, chosen.model), task_of(fresh, test, chosen.model).read()
    data = task.read()
    scores = Scores(data.test)
    began = time.perf_counter()
    tuned = LoRA(epochs=chosen.epochs).fit(Artifact.zero_shot(task, engine="torch"), data)
    tuning = time.perf_counter() - began
    base = scores.measure(f"lora on {chosen.solved} rows", tuned)
    began = time.perf_counter()
    rung = RL(epochs=1, learning_rate=chosen.learning_rate, patience=None, max_tokens=16)
    learned = rung.fit(tuned, asked)
    spent = time.perf_counter() - began
    gained = scores.measure("rl on top", learned)
    print_course(learned)
    told = learned.settings["rl"]["rewards"]
    for name, values in (("first steps", told["first"]), ("last steps", told["last"])):
        print(f"  {name}: " + ", ".join(f"{key} {value:.3g}" for key, value in values.items()), flush=True)
    print(f"  warnings: {'; '.join(told['warnings']) or 'none'}; {spent / chosen.steps:.1f} s a step", flush=True)
    real = RewardLoss.__init__
    RewardLoss.__init__ = shuffled(1)  # type: ignore[method-assign]
    unrewarded = rung.fit(tuned, asked)
    RewardLoss.__init__ = real  # type: ignore[method-assign]
    control = scores.measure("rl, shuffled rewards", unrewarded)
    print_course(unrewarded)

    def chance(other: Sequence[float]) -> float:
        fixed, broken = (sum(s * (a - b) > 0 for a, b in zip(other, base, strict=True)) for s in (1, -1))
        return mcnemar_midp(fixed, broken)

    n = len(base)
    finish("rewards", {
        "points": 100 * (sum(gained) - sum(base)) / n, "one_in": 1 / max(chance(gained), 1e-12),
        "control_one_in_at_most": float(chance(control) > CHANCE), "minutes_left": MINUTES / ((tuning + spent) / 60),
        "control_points": 100 * (sum(control) - sum(base)) / n,
    }, GOALS)  # fmt: skip


if __name__ == "__main__":
    main()
