"""What `rung check` finds out about a task without running its model: its data, and what tuning would learn from it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rung.agents.tools import function_tool
from rung.artifact.artifact import Artifact
from rung.data.json_schema import check_schema
from rung.data.rows import Data
from rung.engines.local import LocalModel
from rung.errors import ConfigError, MachineError
from rung.evaluation.metrics.registry import get_metric
from rung.evaluation.scoring import validate_references
from rung.models.reference import is_endpoint, resolve
from rung.models.tokenizer import Tokenizer
from rung.rungs import build
from rung.task import Task
from rung.training.config import BLOCK_TOKENS
from rung.training.examples import TOO_LONG, TrainingReport, text_blocks, tokenize


@dataclass(frozen=True, slots=True)
class TaskCheck:
    """What a check found."""

    data: Data  # the rows, with a report on them
    unit: str  # of the lengths in the report, `tokens` or `characters`
    training: Mapping[str, Any] = field(default_factory=dict)  # what tuning would learn from: `rows` and `text`

    def training_warnings(self) -> Iterator[str]:
        """Yield what would stop a tuning rung with default settings."""
        for report in self.training.values():
            if count := report["dropped"].get(TOO_LONG):
                yield f"{count:,} training rows are {TOO_LONG}: tuning stops at them unless `truncation` allows it"


def validate_task(task: Task) -> None:
    """Check the metric, tools, rungs and settings that a task names; a ConfigError has the place in the task file."""
    if task.metric is not None:
        with task.located("metric"):
            metric = get_metric(task.metric_name, task.folder, task.metric_settings)
            if task.output.kind not in metric.kinds:
                raise ConfigError(
                    "bad-value", f"the metric {metric.name} does not suit `kind: {task.output.kind}`",
                    hint=f"it scores answers of kind {' or '.join(metric.kinds)}",
                )  # fmt: skip
    if isinstance(task.output.json_schema, dict):
        with task.located("output", "schema"):
            check_schema(task.output.json_schema, guaranteed=not is_endpoint(task.model))
    for number, tool in enumerate(task.tools):
        if isinstance(tool, str):
            with task.located("tools", number):
                function_tool(tool, task.folder)
    for name in task.rungs:
        with task.located("rungs", name):
            build((name,), task, 0)


def check_task(task: Task, *, tuning: bool = False) -> TaskCheck:
    """Read a task's data, raise DataError for a wrong row or expected answer, and measure the texts.

    With `tuning`, also report what tuning would learn from, which needs the model's tokenizer.
    """
    data = task.read()
    validate_references(task, data)
    count = _token_counter(task)
    if count is not None:
        for name, rows in (("train", data.train), ("validation", data.validation), ("test", data.test)):
            data.report.measure(name, rows, kind=task.output.kind, count=count)
        if data.text:
            data.report.measure_text(data.text, count=count)
    return TaskCheck(data, "tokens" if count else "characters", _training_reports(task, data) if tuning else {})


def _training_reports(task: Task, data: Data) -> dict[str, Any]:
    """What tuning learns from on top of zero-shot; rows that are too long are counted, where training would stop."""
    model, reports = LocalModel(resolve(task.model)), {}
    report = reports["rows"] = TrainingReport()
    rows = tokenize(Artifact.zero_shot(task, data.labels), model, data.train, truncation="drop", report=report)
    report.measure(rows, model.tokenizer)
    if data.text:
        report = reports["text"] = TrainingReport(rows=len(data.text))
        report.measure(text_blocks(model, data.text, BLOCK_TOKENS), model.tokenizer)
    return {name: report.as_dict() for name, report in reports.items()}


def _token_counter(task: Task) -> Callable[[str], int] | None:
    """A token counter of the task's model if its files are here already; a count is not worth a download."""
    if is_endpoint(task.model):
        return None
    before = os.environ.get("RUNG_OFFLINE")
    os.environ["RUNG_OFFLINE"] = "1"
    try:
        tokenizer = Tokenizer.load(resolve(task.model).folder)
    except MachineError:
        return None  # the report then gives lengths in characters, and says so
    finally:
        if before is None:
            del os.environ["RUNG_OFFLINE"]
        else:
            os.environ["RUNG_OFFLINE"] = before
    return lambda text: len(tokenizer.encode_plain(text))
