"""The results of a climb as plain records: `report.json` stores them, and the reports read nothing else."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from rung.data.kinds import OutputKind
from rung.evaluation.decision import LEVEL, Verdict
from rung.evaluation.statistics import PairedComparison
from rung.models.files import write_atomically
from rung.progress import card
from rung.yamlfile import read_sealed, sealed, unreadable

# `confirmed` on the rows of the confirmation; `beaten` in the race; `stopped` before its training was done; the others
# have no score.
Status = Literal["confirmed", "beaten", "stopped", "failed", "skipped"]
Split = Literal["test", "validation", "folds"]  # `folds`: answered by an artifact made without the row's fold
# What `rung climb --json` prints of a rung and of a comparison.
RUNG_KEYS = (
    "name", "family", "uses_llm", "metric", "score", "low", "high", "n", "split", "status", "reason", "price_per_1000",
    "seconds_per_row", "expected_seconds", "expected_gain", "seconds", "fit_seconds", "fit_money", "tokens",
    "prompt_tokens", "completion_tokens", "cached_tokens", "trainable_parameters", "artifact_bytes",
    "artifact", "overflow_rows", "dropped_demonstrations", "retrieval",
    "yardstick", "stopped", "errors",
)  # fmt: skip
COMPARISON_KEYS = (
    "a", "b", "delta", "low", "high", "p", "fixed", "broken", "n", "outcome", "shrunken", "rows_needed",
)  # fmt: skip
SUMMARY_KEYS = (
    "task", "recommended", "decision", "level", "seconds", "money", "endpoint_money", "endpoint_tokens", "next_steps",
)  # fmt: skip


THIN = 0.001  # p above which a gain is shown with what is left of it after shrinkage
YARDSTICK = "yardstick"  # the family of rungs that everything else is held against


@dataclass(frozen=True, slots=True)
class RungResult:
    """One artifact of the climb."""

    name: str
    family: str
    metric: str
    status: Status
    split: Split = "validation"
    reason: str = ""  # of `failed` and `skipped`
    path: tuple[str, ...] = ()
    score: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0  # rows of the score; of a beaten rung, the validation rows seen
    validation_score: float | None = None  # over the validation rows that its race reached; None for none
    seconds: float = 0.0  # of prediction, over the n rows
    fit_seconds: float = 0.0  # of training and search, of this rung alone
    fit_money: float = 0.0  # spent at endpoints while this rung was fitted
    prompt_tokens: int = 0  # that the model read for the n rows
    completion_tokens: int = 0  # that it wrote
    cached_tokens: int = 0  # of the prompt tokens: read from an endpoint's cache
    trainable_parameters: int = 0
    artifact_bytes: int = 0
    price_per_1000: float | None = None  # of 1,000 predictions, training's share included; None where not known
    cost: float = 0.0  # order of "cheaper", see `rung.evaluation.prices.order_of_cheaper`
    artifact: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    losses: tuple[tuple[int, float], ...] = ()  # the training curve as (step, loss)
    overflow_rows: int = 0  # of the n rows: they fit the context only with fewer demonstrations
    dropped_demonstrations: int = 0  # over all rows
    retrieval: dict[str, float] | None = None  # `rung.evaluation.rag_metrics.summary` of the rows
    uses_llm: bool = True  # whether answering runs a language model
    yardstick: Comparison | None = None  # with the best yardstick, on the rows that both answered
    stopped: Comparison | None = None  # of a beaten rung: with the recommended one; the interval is valid at the stop
    errors: dict[str, float] = field(default_factory=dict)  # `number_statistics` of the n rows, of kind number
    expected_fit_seconds: float = 0.0  # to make it once, as expected when it was chosen
    expected_row_seconds: float = 0.0  # to answer a row, likewise
    expected_gain: float = 0.0  # of what was put off or not tried: a share, over the leader

    def __repr__(self) -> str:
        score = self.status if self.score is None else f"{self.metric} {self.score:.3f} on {self.n} {self.split} rows"
        return f"RungResult({self.name}: {score})"

    @property
    def tokens(self) -> int:
        """The tokens that the model read or wrote for the n rows."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def expected_seconds(self) -> float | None:
        """What its fit and its n rows were expected to take, of what was not tried all of it; None for no estimate."""
        expected = self.expected_fit_seconds + self.n * self.expected_row_seconds
        return expected if expected else None

    @property
    def seconds_per_row(self) -> float | None:
        """The measured time of one prediction at the batch size that was used; None without rows."""
        return self.seconds / self.n if self.n else None


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
    outcome: str = ""  # of `rung.evaluation.decision`: better, worse, equivalent, unclear; empty if not decided
    shrunken: float | None = None  # the delta shrunken towards 0, where the evidence is thin
    rows_needed: int | None = None  # further rows that would likely settle an unclear comparison

    def __str__(self) -> str:
        percent = [f"{100 * value:+.1f}" for value in (self.delta, self.low, self.high)]
        p = "p < 0.001" if self.p < 0.001 else f"p = {self.p:.3f}"
        return (
            f"{self.b} against {self.a}: {percent[0]} pp [{percent[1]}, {percent[2]}], {self.fixed} fixed / "
            f"{self.broken} broken of {self.n} rows, {p}"
        )

    def _repr_html_(self) -> str:
        return card(str(self), {})

    @classmethod
    def of(cls, a: str, b: str, metric: str, tested: PairedComparison, p: float | None = None) -> Comparison:
        """Name a comparison of scores; `p` is the corrected p-value, if there is one."""
        t = tested
        p = t.p if p is None else p
        return cls(a, b, metric, t.n, t.delta, t.low, t.high, p, t.fixed, t.broken, t.method)

    @classmethod
    def judged(cls, a: str, b: str, metric: str, verdict: Verdict) -> Comparison:
        """Name the verdict on `b` against the incumbent `a`; a gain with p above .001 gets its shrunken value."""
        v = verdict
        thin = v.shrunken if v.delta > 0 and v.p > THIN else None
        figures = (v.n, v.delta, v.low, v.high, v.p, v.fixed, v.broken, v.method)
        return cls(a, b, metric, *figures, v.outcome, thin, v.rows_needed)


@dataclass(frozen=True, slots=True)
class Prediction:
    """One row answered by one artifact: a line of `predictions.jsonl`."""

    id: str
    source: str
    split: Split
    inputs: dict[str, Any]
    prompt: str
    expected: tuple[str, ...]
    prediction: str
    score: float
    confidence: float | None
    prompt_tokens: int
    seconds: float  # the row's share of the time that its batch took
    dropped_demonstrations: int = 0
    abstained: bool = False
    note: str = ""  # the metric's reason for the score
    retrieval: dict[str, Any] | None = None  # `rung.evaluation.rag_metrics.measure` of an answer from documents
    steps: tuple[dict[str, Any], ...] = ()  # of an agent, see `rung.agents.tools`
    stopped: str = ""  # the limit that ended the agent
    completion_tokens: int = 0
    cached_tokens: int = 0  # of the prompt tokens: read from an endpoint's cache
    money: float | None = 0.0  # what an endpoint bills for the tokens; None where its prices are not set
    probs: tuple[float, ...] | None = None  # of the task's labels, in their order, to 4 digits; None where not computed

    def __repr__(self) -> str:
        return f"Prediction({self.id}: {self.prediction!r}, score {self.score:g})"

    @property
    def tokens(self) -> int:
        """The tokens that the model read or wrote."""
        return self.prompt_tokens + self.completion_tokens

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """Rebuild a prediction from its line of JSON."""
        probs = values["probs"]
        return cls(**{
            **values, "expected": tuple(values["expected"]), "steps": tuple(values["steps"]),
            "probs": None if probs is None else tuple(probs),
        })  # fmt: skip


@dataclass(frozen=True, slots=True)
class TimeSpan:
    """What an arm spent in one go, of the climb's time and money."""

    name: str  # of the arm
    work: Literal["making", "answering"]
    start: float  # seconds after the climb began, earlier processes included
    seconds: float
    money: float = 0.0  # that endpoints billed


@dataclass(frozen=True, slots=True)
class SuspectLabel:
    """A row whose label is likely wrong. It holds the text, because no arm answers training rows."""

    split: Literal[Split, "train"]
    id: str
    source: str
    given: str
    likely: str
    text: str  # the input, shortened


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
    money: float | None = None  # what the climb spent: at endpoints, and this machine's hours; None where not known
    endpoint_money: float = 0.0  # the part of it that endpoints billed
    endpoint_tokens: tuple[int, int] = (0, 0)  # read and written at endpoints
    prices: dict[str, Any] | None = None  # `rung.evaluation.prices.Prices`
    next_steps: tuple[str, ...] = ()  # what the reader may do next, most useful first
    step_rows: tuple[str, ...] = ()  # by next step, the kind of rows that it is about; empty where it is about none
    rows: Split = "test"  # those that the decision was made on
    level: float = LEVEL  # of the gate, for this decision on these rows
    unfinished: tuple[str, ...] = ()  # names of what more budget, or asking for it, would try
    curve: tuple[tuple[int, float, float, float], ...] = ()  # of learning: training rows, score, its 95 % interval
    curve_of: str = ""  # what learnt from so many rows: the recommended arm, or "a head on an encoder"
    doubled: tuple[int, float] | None = None  # twice the rows of the curve, and the score that it expects there
    spending: tuple[TimeSpan, ...] = ()  # what took the time, in its order
    kind: OutputKind = "text"  # what the task answers with
    suspects: tuple[SuspectLabel, ...] = ()  # labels that may be wrong, the measured rows first

    def __repr__(self) -> str:
        return f"ClimbResult({self.task}: {self.decision})"

    @property
    def recommends(self) -> bool:
        """Whether the recommendation was measured: a climb whose budget ended before has none."""
        return any(rung.score is not None for rung in self.rungs if rung.name == self.recommended)

    def summary(self) -> dict[str, Any]:
        """What programs read: task, recommendation, rungs and comparisons."""
        return {
            **{key: getattr(self, key) for key in SUMMARY_KEYS},
            "rungs": [{key: _plain(getattr(rung, key)) for key in RUNG_KEYS} for rung in self.rungs],
            "comparisons": [{key: getattr(c, key) for key in COMPARISON_KEYS} for c in self.comparisons],
        }

    def write(self, folder: Path) -> None:
        """Write `report.json`, atomically."""
        write_atomically(folder / "report.json", sealed(asdict(self), indent=1))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read `report.json`; a damaged one is a ConfigError."""
        damaged = unreadable(folder / "report.json", "climb again with `--resume`: what was measured is kept")
        values = read_sealed(folder / "report.json", damaged)
        try:
            rungs = tuple(
                RungResult(**{
                    **r, "path": tuple(r["path"]), "losses": tuple(map(tuple, r["losses"])),
                    **{key: Comparison(**r[key]) for key in ("yardstick", "stopped") if r[key] is not None},
                })
                for r in values["rungs"]
            )  # fmt: skip
            comparisons = tuple(Comparison(**c) for c in values["comparisons"])
            spending = tuple(TimeSpan(**span) for span in values.get("spending", ()))
            curve = tuple(map(tuple, values.get("curve", ())))
            doubled = tuple(values["doubled"]) if values.get("doubled") else None
            several = {key: tuple(values[key]) for key in ("notes", "next_steps", "endpoint_tokens", "unfinished")}
            several["step_rows"] = tuple(values.get("step_rows", ()))
            suspects = tuple(SuspectLabel(**each) for each in values.get("suspects", ()))
            drawn = {"spending": spending, "curve": curve, "doubled": doubled, "suspects": suspects}
            # Reports of an earlier layout do not say the kind; accuracy was then taken as the sign of labels.
            kind = {"kind": "category" if values["metric"] == "accuracy" else "text"}
            return cls(**{**kind, **values, **several, **drawn, "rungs": rungs, "comparisons": comparisons})
        except (LookupError, TypeError, AttributeError) as wrong:
            raise damaged(f"is not a report of a climb: {type(wrong).__name__}: {wrong}") from wrong


def _plain(value: Any) -> Any:
    return asdict(value) if isinstance(value, Comparison) else value
