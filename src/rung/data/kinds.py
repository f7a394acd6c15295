"""The kinds of output of a task, and the facts about metrics that layers below `evaluation` need."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

OutputKind = Literal["text", "category", "multilabel", "json", "number", "chat", "ranking"]

TASK_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")  # also the name of folders

# The metric of a task that does not name one.
DEFAULT_METRICS: dict[OutputKind, str] = {
    "category": "accuracy",
    "multilabel": "labels_f1",
    "text": "rougeL",
    "json": "json_field_f1",
    "number": "closeness",
    "chat": "rougeL",
    "ranking": "mrr",
}

# The metric for which rows are measured on as many rows of each label.
BALANCED = "balanced_accuracy"

# Metrics that read a column of the data besides the answer and the expected answer, and the setting that names it.
METRIC_COLUMNS = {"sari": "source", "code": "tests"}


def metric_column(name: str, settings: Mapping[str, Any]) -> str | None:
    """Find the column that a metric reads besides the answer and the expected answer, if any."""
    column = settings.get(METRIC_COLUMNS.get(name, ""))
    return column if isinstance(column, str) else None
