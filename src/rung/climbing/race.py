"""The race: candidates answer the same validation rows in growing batches; the clearly beaten stop early."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rung.artifact.artifact import Artifact
from rung.climbing.store import RunStore
from rung.data.rows import Example
from rung.evaluation.elimination import Elimination, eliminate, looks
from rung.evaluation.result import Prediction
from rung.evaluation.scoring import evaluate
from rung.progress import QUIET, Progress

BATCH = 32  # rows answered between two writes: what a kill may cost


@dataclass(frozen=True, slots=True)
class RaceResult:
    """Who is left in the end, and who was beaten by whom."""

    survivors: tuple[str, ...]
    beaten: dict[str, Elimination]


def race(
    candidates: Sequence[Artifact],
    rows: Sequence[Example],
    store: RunStore,
    *,
    arms: int,
    folder: Path | None = None,
    progress: Progress = QUIET,
) -> RaceResult:
    """Race `candidates` over `rows`; see `rung.evaluation.elimination` for the rule and its error rate.

    It is over when one is left, for the rows that remain cannot change that; one alone answers none.

    Args:
        candidates: artifacts with different names.
        rows: validation rows in race order.
        store: where answers are kept, and found again after an interruption.
        arms: how many candidates the whole climb may ever compare: the error rate is shared among them.
        folder: of the task file, where a metric of the user's own may lie.
        progress: told of every batch.
    """
    alive = {artifact.name: artifact for artifact in candidates}
    beaten: dict[str, Elimination] = {}
    schedule = looks(len(rows))
    binary = candidates[0].shape.scorer(folder).binary
    for until in schedule:
        if len(alive) == 1:
            break
        for artifact in alive.values():
            answer_rows(artifact, rows[:until], "validation", store, folder=folder, progress=progress)
        scores = {name: [store.predictions(name)["validation", row.id].score for row in rows[:until]] for name in alive}
        out = eliminate(scores, arms=arms, binary=binary)
        beaten.update(out)
        alive = {name: artifact for name, artifact in alive.items() if name not in out}
    return RaceResult(tuple(alive), beaten)


def answer_rows(
    artifact: Artifact,
    rows: Sequence[Example],
    split: Literal["test", "validation"],
    store: RunStore,
    *,
    folder: Path | None = None,
    progress: Progress = QUIET,
) -> list[Prediction]:
    """Return the artifact's answers to `rows`, computing only those that the store does not have."""
    known = store.predictions(artifact.name)
    missing = [row for row in rows if (split, row.id) not in known]
    if missing:
        progress.start(f"{artifact.name} on {split}", len(missing))
        for first in range(0, len(missing), BATCH):
            part = missing[first : first + BATCH]
            store.add(artifact.name, evaluate(artifact, part, split, folder=folder))
            progress.advance(len(part))
        progress.finish()
    return [store.predictions(artifact.name)[split, row.id] for row in rows]
