"""A climb whose rungs, scores and times are planted, so that what it does is seen without any model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rung.artifact.artifact import Artifact
from rung.climbing.options import ClimbOptions
from rung.climbing.run import Climb, climb
from rung.data.rows import Data, Example, example_id
from rung.evaluation.result import Prediction
from rung.rungs.base import OK, Applicability, Cost, Rung

ZERO_SHOT = "zero-shot"


@dataclass(frozen=True)
class Planted(Rung):
    """A rung with a planted score and planted times; `parts` are its scores after shares of its training."""

    label: str
    right: float = 0.5  # share of the rows that it answers right, in place of what its base does
    row: float = 0.01  # seconds of a row
    takes: float = 1.0  # seconds of a fit
    parts: tuple[tuple[float, float], ...] = ()
    fails: bool = False
    opens: bool = False
    reads: bool = True
    encoder: str = ""

    family = "planted"

    @property
    def name(self) -> str:
        return self.label

    @property
    def opens_ramp(self) -> bool:  # type: ignore[override]
        return self.opens

    @property
    def encoders(self) -> tuple[str, ...]:
        return (self.encoder,) if self.encoder else ()

    @property
    def learns(self) -> bool:  # type: ignore[override]
        return self.reads

    @property
    def trains_weights(self) -> bool:  # type: ignore[override]
        return bool(self.parts)

    def applies(self, artifact: Artifact, data: Data) -> Applicability:
        return OK

    def estimate(self, artifact: Artifact, data: Data, machine: Any) -> Cost:
        return Cost(0, 0.0, self.takes, 0.0, 0.0, self.row, 0)

    def fit(self, artifact: Artifact, data: Data, *, progress: Any = None) -> Artifact:
        *_, (_, made) = self.fit_in_parts(artifact, data, progress=progress)
        return made

    def fit_in_parts(
        self, artifact: Artifact, data: Data, *, after: float = 0.0, progress: Any = None
    ) -> Iterator[tuple[float, Artifact]]:
        if self.fails:
            raise ValueError("planted")
        done = after
        for share, right in [part for part in (*self.parts, (1.0, self.right)) if part[0] > after]:
            Stage.now.fitted.append((artifact.step(self.name, {}).name, len(data.train), share))
            progress.start(f"training {self.name}")
            for _ in range(10):
                Stage.now.clock += self.takes * (share - done) / 10
                progress.advance()
            progress.finish()
            done = share
            ids = [row.id for row in data.train] if self.reads else []
            yield share, artifact.step(self.name, {"right": right, "row": self.row, "rows": ids})


@dataclass
class Stage:
    """Plays a climb: `rungs` by name, the share of rows that zero-shot has right, and its seconds a row."""

    task: Any
    data: Data
    folder: Path
    rungs: dict[str, Planted] = field(default_factory=dict)
    zero: float = 0.3
    zero_row: float = 0.5
    clock: float = 0.0
    fitted: list[tuple[str, int, float]] = field(default_factory=list)
    answered: list[tuple[str, str, str]] = field(default_factory=list)  # arm, split, row
    stop_after: int | None = None  # answers, after which the climb is killed

    now: Any = None

    def add(self, *rungs: Planted) -> Stage:
        self.rungs |= {rung.name: rung for rung in rungs}
        return self

    def climb(self, budget: float | None = None, **options: Any) -> Climb:
        Stage.now = self
        how = ClimbOptions(rungs=options.pop("rungs", ()), out=self.folder, resume=options.pop("resume", False))
        return climb(self.task, budget, options=how, data=self.data, **options)

    def rows(self, arm: str, split: str) -> list[str]:
        return [row for name, where, row in self.answered if (name, where) == (arm, split)]

    def evaluate(self, artifact: Artifact, rows: Sequence[Example], split: Any, **options: Any) -> list[Prediction]:
        made, right, pace = artifact.settings, self.zero, self.zero_row
        for settings in made.values():
            right, pace = settings["right"], settings["row"]
            if split in ("folds", "validation"):
                assert not {row.id for row in rows} & set(settings["rows"])
        self.clock += pace * len(rows)
        self.answered += [(artifact.name, split, row.id) for row in rows]
        if self.stop_after is not None and len(self.answered) >= self.stop_after:
            raise KeyboardInterrupt
        options["progress"].advance(0)
        return [
            Prediction(
                id=row.id, source=row.source, split=split, inputs=dict(row.inputs), prompt="", expected=row.outputs,
                prediction="", score=score(artifact.name, row, right), confidence=None, prompt_tokens=1, seconds=pace,
            )
            for row in rows
        ]  # fmt: skip


def score(name: str, row: Example, right: float) -> float:
    """Whether an arm is right on a row; arms agree on most rows, since hard rows are hard for all."""
    hard = int(row.id[-8:], 16) / 16**8
    luck = np.random.default_rng([int(row.id[-8:], 16), *name.encode()]).normal(0, 0.1)
    return float(hard + luck < right)


def examples(count: int, name: str) -> tuple[Example, ...]:
    labels = ("age_limit", "exchange_rate")
    texts = [f"{name} {i}" for i in range(count)]
    return tuple(
        Example(example_id({"text": text}), {"text": text}, (labels[i % 2],), f"{name}:{i}")
        for i, text in enumerate(texts)
    )
