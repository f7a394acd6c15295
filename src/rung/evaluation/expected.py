"""What the metric of a task needs, looked at before a model is asked: hours later, it would have been asked in vain."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rung.data.rows import Data
from rung.evaluation.metrics import get_metric

if TYPE_CHECKING:
    from rung.task import Task


def check_expected(task: Task, data: Data) -> None:
    """Refuse a metric whose settings or files are wrong, and expected answers by which nothing can be scored.

    Raises:
        ConfigError: the metric is unknown, or a setting or a file of it is wrong.
        DataError: an expected answer is wrong; the message names its place.
    """
    metric = get_metric(task.metric_name, task.folder, task.metric_settings, refusal=task.output.refusal or "")
    if metric.check is not None:
        metric.check((*data.train, *data.validation, *data.test))
