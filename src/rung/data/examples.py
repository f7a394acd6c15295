"""Records to examples: the task's columns out of a row, as text, checked."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rung.data.kinds import metric_column
from rung.data.rows import NOT_IN_DOCUMENTS, Example, Record, Span, SplitReport, example_id
from rung.data.spec import TaskSpec
from rung.errors import DataError


def in_schema_order(value: Any, schema: Mapping[str, Any]) -> Any:
    """Return `value` with the keys of objects in the schema's order, then the others by name.

    Engines that constrain text to a schema write keys in its order; training on another order would fight them.
    """
    if isinstance(value, dict):
        known = schema.get("properties", {})
        keys = [key for key in known if key in value] + sorted(key for key in value if key not in known)
        return {key: in_schema_order(value[key], _part(known.get(key))) for key in keys}
    if isinstance(value, list):
        return [in_schema_order(item, _part(schema.get("items"))) for item in value]
    return value


def _part(schema: Any) -> Mapping[str, Any]:
    return schema if isinstance(schema, Mapping) else {}


ROLES = ("system", "user", "assistant", "tool")


def examples(records: Iterable[Record], task: TaskSpec, report: SplitReport) -> tuple[list[Example], list[str]]:
    """Turn records into examples, and return the value of the split's group column beside each.

    Rows with an empty input or output are dropped and counted in `report`.

    Raises:
        DataError: a column is missing, or a value is of the wrong type.
    """
    made, groups = [], []
    group = task.data.split.group
    for record in records:
        report.read += 1
        example = _chat(record, task) if task.output.kind == "chat" else _row(record, task)
        if isinstance(example, str):
            report.drop(example, record.source)
            continue
        made.append(example)
        groups.append(str(column(record, group)) if group else "")
    return made, groups


def read_inputs(values: Mapping[str, Any], columns: Sequence[str], kind: str, source: str) -> dict[str, Any]:
    """Read the input columns of a raw row: training, evaluation, prediction and serving all call this.

    Text stays as it is, lists of sentences are joined, other values become JSON. The one column of a chat holds the
    messages up to the answer.

    Args:
        values: the row; other columns are ignored.
        columns: the task's input columns; dots reach into nested JSON.
        kind: of the task's output.
        source: where the row is from, for errors.

    Raises:
        DataError: `missing-column`, or `bad-row` for a malformed conversation.
    """
    record = Record(dict(values), source)
    if kind == "chat":
        turns = conversation(column(record, columns[0]), columns[0], source)
        if not turns:
            raise DataError("bad-row", f"{source}: {columns[0]!r} has no messages", hint="write at least a user's turn")
        return {columns[0]: turns}
    return {name: text_of(column(record, name)) for name in columns}


def read_row(values: Mapping[str, Any], columns: Sequence[str], kind: str, source: str) -> Example:
    """Turn a raw row without an expected answer into an Example; see `read_inputs`."""
    inputs = read_inputs(values, columns, kind, source)
    return Example(example_id(inputs), inputs, (), source)


def conversation(turns: Any, name: str, source: str) -> list[dict[str, str]]:
    """Check a list of messages, and keep the role and content of each.

    Raises:
        DataError: `bad-row`.
    """
    if not isinstance(turns, list) or not all(
        isinstance(t, dict) and t.get("role") in ROLES and isinstance(t.get("content"), str) for t in turns
    ):
        raise DataError(
            "bad-row",
            f"{source}: {name!r} is not a list of messages",
            hint='write [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]',
        )
    return [{"role": t["role"], "content": t["content"]} for t in turns]


def column(record: Record, name: str) -> Any:
    """Return the value of a column; dots go into nested JSON.

    Raises:
        DataError: there is no such column.
    """
    if name in record.values:
        return record.values[name]
    value: Any = record.values
    above: list[str] = []
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise _missing(record, name, above, part, value)
        value = value[part]
        above.append(part)
    return value


def _missing(record: Record, name: str, above: list[str], part: str, found: Any) -> DataError:
    """Return the error of a column that is not there, which says how far down the record goes."""
    from rung.errors import suggest

    if not above:
        return DataError(
            "missing-column", f"{record.source} has no column {name!r}", hint=suggest(part, list(record.values))
        )
    keys = list(map(str, found)) if isinstance(found, Mapping) else []
    parent = ".".join(above)
    lacks = f"its {parent!r} has no {part!r}" if keys else f"its {parent!r} is a {type(found).__name__}, not an object"
    hint = suggest(part, keys) if keys else f"correct the row, or read {parent!r} itself"
    return DataError("missing-column", f"{record.source} has no column {name!r}: {lacks}", hint=hint)


def _row(record: Record, task: TaskSpec) -> Example | str:
    inputs = read_inputs(record.values, task.inputs, task.output.kind, record.source)
    if not any(value.strip() for value in inputs.values()):
        return "empty input"
    assert task.output.column is not None
    outputs = _outputs(column(record, task.output.column), task, record)
    spans = None if task.data.spans is None else _spans(column(record, task.data.spans), record)
    if not outputs and spans == ():
        outputs = (NOT_IN_DOCUMENTS,)
    if not outputs:
        return "empty output"
    return Example(example_id(inputs), inputs, outputs, record.source, _extra(record, task), spans)


def _extra(record: Record, task: TaskSpec) -> dict[str, Any]:
    """Return the columns that only the metric reads."""
    name = metric_column(task.metric_name, task.metric_settings)
    return {} if name is None or name in task.inputs else {name: column(record, name)}


def _spans(value: Any, record: Record) -> tuple[Span, ...] | None:
    """Return the places of the answer: a list of {document, start, end}, or its JSON text; None where empty."""
    try:
        places = json.loads(value) if isinstance(value, str) and value.strip() else value or None
        if value == []:
            places = []
        spans = None if places is None else tuple(Span(p["document"], p["start"], p["end"]) for p in places)
        if not all(isinstance(s.document, str) and 0 <= s.start < s.end for s in spans or ()):
            raise ValueError("a span begins before it ends, in a document")
    except (ValueError, TypeError, KeyError):
        raise DataError(
            "bad-row",
            f"{record.source}: not a list of places in documents: {str(value)[:80]}",
            hint='write [{"document": "manual.md", "start": 120, "end": 180}]; [] where the documents do not answer it',
        ) from None
    return spans


def text_of(value: Any) -> str:
    """Return a value as the text that a prompt holds: sentences joined, other structures as JSON."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return " ".join(value)
    return json.dumps(value, ensure_ascii=False)


def _outputs(value: Any, task: TaskSpec, record: Record) -> tuple[str, ...]:
    kind = task.output.kind
    if kind == "json":
        schema = task.output.json_schema
        return _json_output(value, schema if isinstance(schema, dict) else {}, record)
    if kind == "multilabel":
        return (_label_list(value, task, record),)
    if kind == "text" and isinstance(value, list):
        texts = tuple(item.strip() for item in value if isinstance(item, str) and item.strip())
        return texts or _refused(task)
    if isinstance(value, (dict, list)):
        raise DataError(
            "bad-row",
            f"{record.source}: {task.output.column!r} is a {type(value).__name__}, not a {kind}",
            hint="for structured answers use `kind: json`",
        )
    text = text_of(value)
    if not text.strip():
        return _refused(task)
    return (text,) if kind == "category" else (text.strip(),)


def _refused(task: TaskSpec) -> tuple[str, ...]:
    """Return what a row without an answer expects: the refusal where the task has one, else nothing."""
    return (task.output.refusal,) if task.output.refusal else ()


def _label_list(value: Any, task: TaskSpec, record: Record) -> str:
    """Return labels as a canonical JSON list: each once, sorted. An empty cell is a row without labels."""
    if isinstance(value, str):
        value = _split_labels(value, task.output.separator, record)
    labels = [] if value is None else value
    if not isinstance(labels, list) or not all(isinstance(label, str) and label.strip() for label in labels):
        raise DataError(
            "bad-row", f"{record.source}: {task.output.column!r} is no list of labels: {str(value)[:80]!r}",
            hint=f'write ["one", "another"], or "one{task.output.separator} another"; nothing for no label',
        )  # fmt: skip
    return json.dumps(sorted({label.strip() for label in labels}), ensure_ascii=False)


def _split_labels(text: str, separator: str, record: Record) -> Any:
    if not text.lstrip().startswith("["):
        return [part.strip() for part in text.split(separator) if part.strip()]
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(
            "bad-json", f"{record.source}: the list of labels is not valid JSON: {error}",
            hint='write ["one", "another"], or labels with the separator between them',
        ) from None  # fmt: skip


def _json_output(value: Any, schema: Mapping[str, Any], record: Record) -> tuple[str, ...]:
    """Return the answer as canonical JSON text: keys in the schema's order, then by name."""
    if isinstance(value, str):
        if not value.strip():
            return ()
        try:
            value = json.loads(value)
        except ValueError as error:
            raise DataError(
                "bad-json",
                f"{record.source}: the expected answer is not valid JSON: {error}",
                hint='kind json needs one JSON value per row, such as {"total": 12.5}; for others use `kind: text`',
            ) from None
    if value is None:
        return ()
    from rung.engines.constraints import schema_problem  # costs time, and few tasks have a schema

    if problem := schema_problem(value, json.dumps(schema)):
        raise DataError(
            "bad-reference",
            f"{record.source}: the expected answer does not fit `output.schema`: {problem}",
            hint="correct the row or the schema: a model held to the schema could never give this answer",
        )
    try:
        return (json.dumps(in_schema_order(value, schema), ensure_ascii=False, allow_nan=False),)
    except ValueError:
        raise DataError(
            "bad-json", f"{record.source}: the expected answer holds NaN or Infinity, which JSON lacks", hint="use null"
        ) from None


def _chat(record: Record, task: TaskSpec) -> Example | str:
    """Take the last assistant turn as the answer to those before it."""
    name = task.inputs[0]
    turns = conversation(column(record, name), name, record.source)
    if len(turns) < 2 or turns[-1]["role"] != "assistant" or not turns[-1]["content"].strip():
        return "no assistant turn at the end"
    inputs = {name: turns[:-1]}
    return Example(example_id(inputs), inputs, (turns[-1]["content"].strip(),), record.source)
