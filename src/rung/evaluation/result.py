"""The results of a climb as plain records: `report.json` stores them, and the reports read nothing else."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from rung.evaluation.statistics import PairedComparison
from rung.models.cache import write_atomically

Status = Literal["confirmed", "beaten", "failed", "skipped"]
# What `rung climb --json` prints of a rung and of a comparison.
RUNG_KEYS = (
    "name", "metric", "score", "low", "high", "n", "split", "status", "reason", "seconds", "fit_seconds", "tokens",
    "trainable_parameters", "artifact_bytes", "artifact", "overflow_rows", "dropped_demonstrations", "retrieval",
)  # fmt: skip
COMPARISON_KEYS = ("a", "b", "delta", "low", "high", "p", "fixed", "broken", "n")


@dataclass(frozen=True, slots=True)
class RungResult:
    """One artifact of the climb."""

    name: str
    family: str
    metric: str
    status: Status  # `confirmed` on the whole test split, or `beaten` in the race; `failed`, `skipped` without a score
    split: Literal["test", "validation"] = "validation"
    reason: str = ""  # of `failed` and `skipped`
    path: tuple[str, ...] = ()
    score: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0  # rows of the score; of a beaten rung, the validation rows seen
    validation_score: float | None = None  # over the validation rows that its race reached; None for none
    seconds: float = 0.0  # of prediction, over the n rows
    fit_seconds: float = 0.0  # of training
    tokens: int = 0  # that the model read or wrote for the n rows
    trainable_parameters: int = 0
    artifact_bytes: int = 0
    cost: float = 0.0  # order of "cheaper": operations of a prediction, and training's share over 10,000 predictions
    artifact: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    losses: tuple[tuple[int, float], ...] = ()  # the training curve as (step, loss)
    overflow_rows: int = 0  # of the n rows: they fit the context only with fewer demonstrations
    dropped_demonstrations: int = 0  # over all rows
    retrieval: dict[str, float] | None = None  # `rung.evaluation.rag_metrics.summary` of the rows


@dataclass(frozen=True, slots=True)
class Comparison:
    """`b` against `a` on the same rows: delta = score(b) - score(a), its interval, and p after Holm's correction."""

    a: str
    b: str
    metric: str
    n: int
    delta: float
    low: float
    high: float
    p: float
    fixed: int
    broken: int
    method: str

    @classmethod
    def of(cls, a: str, b: str, metric: str, tested: PairedComparison, p: float | None = None) -> Comparison:
        """Name a comparison of scores; `p` is the corrected p-value, if there is one."""
        t = tested
        p = t.p if p is None else p
        return cls(a, b, metric, t.n, t.delta, t.low, t.high, p, t.fixed, t.broken, t.method)


@dataclass(frozen=True, slots=True)
class Prediction:
    """One row answered by one artifact: a line of `predictions.jsonl`."""

    id: str
    source: str
    split: Literal["test", "validation"]
    inputs: dict[str, Any]
    prompt: str
    expected: tuple[str, ...]
    prediction: str
    score: float
    confidence: float | None
    tokens: int
    seconds: float
    dropped_demonstrations: int = 0
    abstained: bool = False
    note: str = ""  # the metric's reason for the score
    retrieval: dict[str, Any] | None = None  # `rung.evaluation.rag_metrics.measure` of an answer from documents
    steps: tuple[dict[str, Any], ...] = ()  # of an agent, see `rung.agents.tools`
    stopped: str = ""  # the limit that ended the agent


@dataclass(frozen=True, slots=True)
class ClimbResult:
    """The whole climb."""

    task: str
    metric: str
    model: str
    engine: str
    seed: int
    version: str
    created: str
    seconds: float
    budget_seconds: float | None
    recommended: str
    decision: str  # the recommendation in one sentence, with its numbers
    rungs: tuple[RungResult, ...]
    comparisons: tuple[Comparison, ...]
    data: dict[str, Any]
    notes: tuple[str, ...] = ()  # further facts that the reader needs
    # `rung.evaluation.calibration.describe` of the recommended artifact, where the task asks for it.
    confidence: dict[str, Any] | None = None
    advice: dict[str, Any] | None = None  # what the decision guide expected before the climb

    def summary(self) -> dict[str, Any]:
        """What programs read: task, recommendation, rungs and comparisons."""
        return {
            **{key: getattr(self, key) for key in ("task", "recommended", "decision", "seconds")},
            "rungs": [{key: getattr(rung, key) for key in RUNG_KEYS} for rung in self.rungs],
            "comparisons": [{key: getattr(c, key) for key in COMPARISON_KEYS} for c in self.comparisons],
        }

    def write(self, folder: Path) -> None:
        """Write `report.json`, atomically."""
        write_atomically(folder / "report.json", json.dumps(asdict(self), ensure_ascii=False, indent=1))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read `report.json`."""
        values = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        rungs = tuple(
            RungResult(**{**r, "path": tuple(r["path"]), "losses": tuple(map(tuple, r["losses"]))})
            for r in values["rungs"]
        )
        comparisons = tuple(Comparison(**c) for c in values["comparisons"])
        return cls(**{**values, "rungs": rungs, "comparisons": comparisons, "notes": tuple(values["notes"])})
