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
    """One artifact of the climb.

    `status` is `confirmed` (scored on the whole test split), `beaten` (stopped early in the race; the score is over
    the `n` validation rows seen), `failed` or `skipped` (no score; `reason` says why).
    `validation_score` is over the validation rows that its race reached; None for none. `seconds` is prediction time
    over the `n` rows, `fit_seconds` training time, `tokens` all tokens that the model read or wrote for them. `cost`,
    the order of "cheaper", is the floating-point operations of one prediction plus the training's share over 10,000
    predictions. `losses` is the training curve as (step, loss). Of the `n` rows, `overflow_rows` fit the context only
    after `dropped_demonstrations` (all rows together) were left out. `retrieval` summarizes what was found, cited and
    supported over the rows (`rung.evaluation.rag_metrics.summary`).
    """

    name: str
    family: str
    metric: str
    status: Status
    split: Literal["test", "validation"] = "validation"
    reason: str = ""
    path: tuple[str, ...] = ()
    score: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    validation_score: float | None = None
    seconds: float = 0.0
    fit_seconds: float = 0.0
    tokens: int = 0
    trainable_parameters: int = 0
    artifact_bytes: int = 0
    cost: float = 0.0
    artifact: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    losses: tuple[tuple[int, float], ...] = ()
    overflow_rows: int = 0
    dropped_demonstrations: int = 0
    retrieval: dict[str, float] | None = None


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
    """One row answered by one artifact: a line of `predictions.jsonl`.

    `note` is the metric's reason for the score, `retrieval` the values of `rung.evaluation.rag_metrics.measure` for an
    answer from documents. For an agent, `steps` are those of `rung.agents.tools`, and `stopped` is the limit that ended
    it.
    """

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
    note: str = ""
    retrieval: dict[str, Any] | None = None
    steps: tuple[dict[str, Any], ...] = ()
    stopped: str = ""


@dataclass(frozen=True, slots=True)
class ClimbResult:
    """The whole climb.

    `decision` is the recommendation in one sentence, with its numbers. `confidence` is
    `rung.evaluation.calibration.describe` of the recommended artifact, where the task asks for it. `advice` is what the
    decision guide expected before the climb. `notes` are further facts that the reader needs.
    """

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
    decision: str
    rungs: tuple[RungResult, ...]
    comparisons: tuple[Comparison, ...]
    data: dict[str, Any]
    notes: tuple[str, ...] = ()
    confidence: dict[str, Any] | None = None
    advice: dict[str, Any] | None = None

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
