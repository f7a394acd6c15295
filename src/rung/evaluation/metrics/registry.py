"""The registry of metrics: those without settings, those with settings, and functions of the user."""

from __future__ import annotations

import difflib
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rung import user_code
from rung.data.kinds import BALANCED, OutputKind
from rung.errors import ConfigError
from rung.evaluation.metrics import text
from rung.evaluation.metrics.base import Metric, MetricFunction
from rung.evaluation.metrics.execution import code_metric, program_limits, sql_metric
from rung.evaluation.metrics.judge import RUBRIC, judge_metric
from rung.evaluation.metrics.labels import (
    LabelStatistic,
    accuracy,
    at_k_metric,
    label_costs_metric,
    labels_exact,
    labels_f1,
    recall_at_1,
    recall_at_k,
    reciprocal_rank,
)
from rung.evaluation.metrics.numbers import closeness_metric, within_metric
from rung.evaluation.metrics.records import (
    json_exact,
    json_field_f1,
    json_field_precision,
    json_field_recall,
    read_record,
)
from rung.user_code import Permit, allowed, program_permit

_TEXTS: tuple[OutputKind, ...] = ("text", "chat")
_EVERY: tuple[OutputKind, ...] = ("category", "multilabel", "text", "json", "number", "chat", "ranking")
_RANKING: tuple[OutputKind, ...] = ("ranking",)

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", accuracy, "the answer is the expected label", ("category",), binary=True),
        Metric(BALANCED, accuracy, "accuracy on as many rows of each label", ("category",), binary=True),
        Metric("labels_f1", labels_f1, "F1 over the labels of a row", ("multilabel",)),
        Metric("labels_exact", labels_exact, "exactly the expected labels", ("multilabel",), binary=True),
        Metric("exact_match", text.exact_match, "the same text, every character", ("category", *_TEXTS), binary=True),
        Metric(
            "quasi_exact_match",
            text.quasi_exact_match,
            "the same words; case, punctuation and articles aside",
            ("category", *_TEXTS),
            binary=True,
        ),
        Metric("token_f1", text.token_f1, "F1 over shared words, as in SQuAD", _TEXTS),
        Metric(
            "final_number",
            text.final_number,
            "the last number is that of the expected answer",
            _TEXTS,
            binary=True,
            check=text.check_final_numbers,
            reading=text.read_final_number,
        ),
        Metric("rouge1", text.rouge1, "F1 over shared stemmed words", _TEXTS),
        Metric("rouge2", text.rouge2, "F1 over shared pairs of stemmed words", _TEXTS),
        Metric("rougeL", text.rouge_l, "F1 over the longest common subsequence of stemmed words", _TEXTS),
        Metric("chrf", text.chrf, "chrF2: F2 over shared runs of characters", _TEXTS),
        Metric("bleu", text.bleu, "BLEU of each text: shared runs of one to four words", _TEXTS),
        Metric("edit_similarity", text.edit_similarity, "1 - edit distance / length, in characters", _TEXTS),
        Metric("json_exact", json_exact, "the same JSON value", ("json",), binary=True, reading=read_record),
        Metric("json_field_f1", json_field_f1, "F1 over the fields of the JSON value", ("json",), reading=read_record),
        Metric(
            "json_field_precision",
            json_field_precision,
            "share of the fields found that are right",
            ("json",),
            reading=read_record,
        ),
        Metric(
            "json_field_recall", json_field_recall, "share of the expected fields found", ("json",), reading=read_record
        ),
        Metric("mrr", reciprocal_rank, "1 / rank of the first row with the expected output", _RANKING),
        Metric("recall_at_k", recall_at_k, "a row found has the expected output", _RANKING, binary=True),
        Metric("recall_at_1", recall_at_1, "the first row found has the expected output", _RANKING, binary=True),
    )
}


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class LabelCostSettings(_Settings):
    """Settings of `label_costs`."""

    costs: dict[str, dict[str, float]] = Field(description="Cost of answering a label where another is expected: "
                                               "{expected: {answered: cost}}.")  # fmt: skip
    other: float = Field(1.0, gt=0, description="Cost of every other wrong answer.")


class FBetaSettings(_Settings):
    """Settings of `f_beta`."""

    beta: float = Field(1, gt=0, description="Above 1, recall counts more; below 1, precision.")
    label: str | None = Field(None, description="The only label that counts; default: the mean over all labels.")


class LabelRecallSettings(_Settings):
    """Settings of `label_recall`."""

    label: str = Field(description="The label whose rows count.")


class ClosenessSettings(_Settings):
    """Settings of `closeness`."""

    scale: float | None = Field(None, gt=0, description="The error that scores 0; default: the spread of the answers.")
    power: Literal[1, 2] = Field(1, description="1 ranks by absolute errors (MAE), 2 by squared ones (RMSE, kappa).")


class WithinSettings(_Settings):
    """Settings of `within`."""

    tolerance: float | None = Field(None, ge=0, description="Largest error that is right.")
    share: float | None = Field(None, ge=0, description="The same as a share of the expected number.")

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.tolerance is None) == (self.share is None):
            raise ValueError("give `tolerance` or `share`")
        return self


class SariSettings(_Settings):
    """Settings of `sari`."""

    source: str = Field(description="The column with the text to rewrite.")


class SqlSettings(_Settings):
    """Settings of `sql_execution`."""

    database: str = Field(description="A SQLite file, or an .sql script, relative to the task file.")
    seconds: float = Field(5.0, gt=0, description="Time limit of one query.")
    rows: int = Field(10_000, ge=1, description="Row limit of one result.")


class CodeSettings(_Settings):
    """Settings of `code`."""

    allow_execution: bool = Field(False, description="Run programs that a model wrote on this machine.")
    tests: str | None = Field(
        None, description="Column with Python to run after the program; by default, outputs count."
    )
    seconds: float = Field(10.0, gt=0, description="Time limit of one program.")
    memory_mb: int = Field(512, ge=64, description="Memory limit of one program.")
    network: bool = Field(False, description="Let programs use the network.")


class JudgeSettings(_Settings):
    """Settings of `judge`."""

    model: str = Field(description="The model that judges: any reference that `model:` accepts.")
    rubric: str = Field(RUBRIC, min_length=1, description="What makes an answer better.")
    max_unreadable: float = Field(0.1, ge=0, le=1, description="Tolerated share of unreadable verdicts.")


_Make = Callable[[Mapping[str, Any], Path | None], Metric]

WITH_SETTINGS: dict[str, tuple[type[_Settings], _Make]] = {
    "label_costs": (LabelCostSettings, lambda settings, folder: label_costs_metric(settings)),
    "f_beta": (FBetaSettings, lambda settings, folder: _f_beta(settings)),
    "label_recall": (
        LabelRecallSettings,
        lambda settings, folder: _of_labels("label_recall", f"recall:{settings['label']}"),
    ),
    "closeness": (ClosenessSettings, lambda settings, folder: closeness_metric(settings)),
    "within": (WithinSettings, lambda settings, folder: within_metric(settings)),
    "sari": (SariSettings, lambda settings, folder: text.sari_metric(settings)),
    "sql_execution": (SqlSettings, sql_metric),
    "code": (CodeSettings, code_metric),
    "judge": (JudgeSettings, lambda settings, folder: judge_metric(settings)),
}


AT_K = re.compile(r"accuracy@([1-9]\d*)")
# Statistics that people name as metrics, and the metric whose mean ranks alike.
OF_SETS = {
    "mae": "closeness", "rmse": "{name: closeness, power: 2}", "mse": "{name: closeness, power: 2}",
    "quadratic_kappa": "{name: closeness, power: 2}", "macro_recall": BALANCED, "f1": "macro_f1",
}  # fmt: skip


def get_metric(
    name: str, folder: Path | None = None, settings: Mapping[str, Any] | None = None, *, refusal: str = ""
) -> Metric:
    """Look up a metric of `METRICS` or `WITH_SETTINGS`, or load a function of the user, written `module:function`.

    The module is in `folder` (that of the task file), in the current folder, or installed, and the function takes
    (prediction, references). `refusal` is the answer to give where there is none: see `refusing`.

    Raises:
        ConfigError: `unknown-name`, `bad-setting` if a setting is missing, unknown or wrong, or `function-not-found`.
    """
    if name in WITH_SETTINGS:
        return _with_settings(name, settings or {}, folder)
    metric = METRICS.get(name) or _own(name, folder)
    if settings:
        raise ConfigError(
            "bad-setting", f"the metric {name} has no setting {next(iter(settings))!r}",
            hint=f"write `metric: {name}`; metrics with settings: {', '.join(WITH_SETTINGS)}",
        )  # fmt: skip
    if refusal and name in METRICS:
        assert metric.function is not None
        return replace(metric, function=text.refusing(metric.function, refusal))
    return metric


def _with_settings(name: str, settings: Mapping[str, Any], folder: Path | None) -> Metric:
    model, make = WITH_SETTINGS[name]
    try:
        checked = model.model_validate(dict(settings))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        known = "; ".join(f"{key}: {field.description}" for key, field in model.model_fields.items())
        raise ConfigError(
            "bad-setting", f"the metric {name}: `{key}`: {first['msg']}",
            hint=f"write `metric: {{name: {name}, ...}}` with {known}",
        ) from None  # fmt: skip
    return make(checked.model_dump(), folder)


def _f_beta(settings: Mapping[str, Any]) -> Metric:
    beta, label = f"{settings['beta']:g}", settings["label"]
    return _of_labels("f_beta", f"macro_f{beta}" if label is None else f"f{beta}:{label}")


def _of_labels(name: str, statistic: str) -> Metric:
    found = LabelStatistic.named(statistic)
    assert found is not None
    return found.metric(name, f"{statistic} of all rows together")


def _own(name: str, folder: Path | None) -> Metric:
    if name.startswith("macro_f") and LabelStatistic.named(name) is not None:
        return _of_labels(name, name)
    if ranked := AT_K.fullmatch(name):
        return at_k_metric(int(ranked[1]))
    if ":" in name:
        return Metric(name, _load(name, folder), "the task's own metric", _EVERY)
    if name.lower() in OF_SETS:
        raise ConfigError(
            "unknown-name", f"{name} is a statistic of a whole set, and a climb needs a score for each row",
            hint=f"use `metric: {OF_SETS[name.lower()]}`, which decides alike; `rung eval` reports {name}",
        )  # fmt: skip
    names = [*METRICS, "macro_f1", "accuracy@3", *WITH_SETTINGS]
    by_lower = {known.lower(): known for known in names}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    guess = f"did you mean {by_lower[close[0]]!r}? " if close else ""
    raise ConfigError(
        "unknown-name", f"there is no metric {name!r}",
        hint=f"{guess}metrics: {', '.join(names)}; or your own function as module:function",
    )  # fmt: skip


# ---- a metric of the user: `metric: mymodule:score`

_EXAMPLE = "def score(prediction: str, references: list[str]) -> float: ...  # from 0 to 1"
_METRIC = user_code.FunctionKind("metric", _EXAMPLE)


def metric_permits(name: str, folder: Path, settings: Mapping[str, Any]) -> list[Permit]:
    """What the user has to allow before a metric scores."""
    if name == "code":
        checked = CodeSettings.model_validate(dict(settings)).model_dump()
        return [program_permit(program_limits(checked), folder)] if checked["allow_execution"] else []
    return [user_code.permit(name, [folder, Path.cwd()], _METRIC)] if ":" in name else []


def _load(spec: str, folder: Path | None) -> MetricFunction:
    """Load a function, wrapped so that a bad score is an error: `metric-failed`."""
    folders = [folder or Path.cwd(), Path.cwd()]
    if not allowed(user_code.permit(spec, folders, _METRIC)):
        user_code.check(spec, folders, _METRIC)
        return lambda *_: user_code.load(spec, folders, _METRIC)  # the first score asks for consent
    function = user_code.load(spec, folders, _METRIC)
    try:
        inspect.signature(function).bind("prediction", ["reference"])
    except (TypeError, ValueError) as error:
        raise ConfigError(
            "function-not-found", f"the metric {spec!r} cannot be called with (prediction, references): {error}",
            hint=f"its signature must be: {_EXAMPLE}",
        ) from error  # fmt: skip

    def score(prediction: str, references: Sequence[str]) -> float:
        try:
            value = function(prediction, references)
        except Exception as error:
            raise ConfigError(
                "metric-failed",
                f"the metric {spec!r} raised {type(error).__name__}: {error} for the prediction {prediction[:80]!r}",
                hint="a metric must score any text; return 0.0 for text that it cannot read",
            ) from error
        try:
            number = math.nan if isinstance(value, str) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not 0 <= number <= 1:
            raise ConfigError(
                "metric-failed", f"the metric {spec!r} returned {value!r}, not a number from 0 to 1",
                hint="scale the score to lie between 0 (wrong) and 1 (right)",
            )  # fmt: skip
        return number

    return score
