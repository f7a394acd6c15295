"""Guess a task from a table for `rung init`, the answer column and its kind, and write its task file."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from rung.data.chat import is_chat
from rung.data.kinds import OutputKind
from rung.data.sources import read_rows
from rung.errors import DataError, suggest
from rung.task import Task

SAMPLE = 2000
ANSWER_NAMES = (
    "label", "category", "class", "intent", "target", "output", "answer", "summary", "completion", "response", "sql",
)  # fmt: skip
MOST_LABELS = 500
LONGEST_LABEL = 80  # characters
SCHEMA_FILE = "task.schema.json"


@dataclass(frozen=True, slots=True)
class Guess:
    """A task's columns and kind, and why."""

    name: str
    inputs: tuple[str, ...]
    output: str | None
    kind: OutputKind
    reason: str


def guess_task(file: Path, output: str | None = None) -> Guess:
    """Guess from a sample of rows.

    Raises:
        DataError: the file cannot be read, has one column, or has no column `output`.
    """
    rows = [record.values for record in islice(read_rows(file), SAMPLE)]
    columns = list(rows[0]) if rows else []
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem).strip("-._") or "task"
    messages = next((c for c in columns if is_chat(rows[0][c])), None)
    if messages is not None and output is None:
        return Guess(name, (messages,), None, "chat", f"{messages!r} holds conversations")
    if len(columns) < 2:
        raise DataError(
            "missing-column", f"{file} has only the column {', '.join(columns) or '(none)'}",
            hint="a task needs an input column and a column with the expected answer",
        )  # fmt: skip
    if output is not None and output not in columns:
        raise DataError("missing-column", f"{file} has no column {output!r}", hint=suggest(output, columns))
    answer = output or _answer_column(columns, rows)
    others = tuple(c for c in columns if c != answer)
    inputs = tuple(c for c in others if _is_text([row.get(c) for row in rows])) or others
    kind, reason = _kind([row.get(answer) for row in rows])
    return Guess(name, inputs, answer, kind, f"{answer!r} {reason}")


def _answer_column(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    """Choose the column with a typical name, else the category with the fewest values, else the last column."""
    by_name = {column.lower(): column for column in reversed(columns)}  # the first of equal names
    for name in ANSWER_NAMES:
        if name in by_name:
            return by_name[name]
    few = [c for c in columns if _kind([row.get(c) for row in rows])[0] == "category"]
    return min(few, key=lambda c: len({str(row.get(c)) for row in rows}), default=columns[-1])


def _kind(values: Sequence[Any]) -> tuple[OutputKind, str]:
    if all(isinstance(v, dict) or (isinstance(v, str) and _is_object(v)) for v in values):
        return "json", "holds JSON objects"
    if values and all(isinstance(v, list) and all(isinstance(item, str) for item in v) for v in values):
        items = [item for v in values for item in v]
        if items and _are_labels(items):
            return "multilabel", f"holds lists of {len(set(items))} short values that repeat"
    texts = [str(v) for v in values if isinstance(v, (str, int))]  # labels in JSON may be numbers or booleans
    if len(texts) == len(values) and _are_labels(texts):
        return "category", f"holds {len(set(texts))} short values that repeat"
    return "text", "holds free text"


def _are_labels(texts: Sequence[str]) -> bool:
    few = len(set(texts)) <= min(MOST_LABELS, len(texts) / 2)
    return few and max(map(len, texts)) <= LONGEST_LABEL


def _is_object(text: str) -> bool:
    if not text.lstrip().startswith("{"):
        return False
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _is_text(values: Sequence[Any]) -> bool:
    """Say whether a column looks like text, not ids or numbers."""
    texts = [v for v in values if isinstance(v, (str, list))]
    if len(texts) < len(values) / 2:
        return False
    words = sum(" " in v if isinstance(v, str) else True for v in texts)
    return words >= len(texts) / 2


def task_schema() -> str:
    """The JSON Schema of task files, for editors."""
    return json.dumps(Task.model_json_schema(by_alias=True), indent=2)


def task_text(guess: Guess, data: Path, folder: Path) -> str:
    """Write a commented task file for `folder` from a guess about `data`."""
    path = str(data.relative_to(folder)) if data.is_relative_to(folder) else str(data)
    quoted = partial(json.dumps, ensure_ascii=False)  # JSON strings are YAML strings
    instruction = {
        "category": f"Which {(guess.output or 'label').replace('_', ' ')} does this text belong to?",
        "multilabel": f"Which {(guess.output or 'labels').replace('_', ' ')} apply to this text?",
        "text": f"Write the {(guess.output or 'answer').replace('_', ' ')} for this input.",
        "json": "Extract the fields from this text as JSON.",
        "chat": "Continue the conversation helpfully.",
    }[guess.kind]
    column = "" if guess.output is None else f"\n  column: {quoted(guess.output)}"
    limit = "\n  # train_per_label: 10     # use at most this many training rows of each label"
    return f"""# yaml-language-server: $schema={SCHEMA_FILE}
name: {quoted(guess.name)}

# What to do, as you would explain it to a person. Be precise: every technique builds on it.
instruction: {quoted(instruction)}
# system: a persona or rules; Rung measures whether it helps

# The columns that the model reads.
inputs: [{", ".join(quoted(name) for name in guess.inputs)}]

# The answer. Guessed: {guess.reason}.
output:
  kind: {guess.kind}             # text, category, multilabel, json or chat{column}

data:
  train: {quoted(path)}
  # test: test.csv          # default: a share of the rows, chosen by a hash of the input
  # split: {{validation: 0.2, test: 0.2}}{limit if guess.kind == "category" else ""}
  # text: corpus.txt        # plain text of the domain, or a list of files, to adapt the model to

# metric: accuracy          # default: the usual one for the kind
# overflow: drop_demonstrations  # for prompts longer than the model reads; default: such a row is an error
model: embedded             # or a Hub id, a folder, a .gguf file; a list of models is raced
"""
