"""Turn records into examples: read the task's columns of a row as text, and check them."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from math import isclose, isfinite
from pathlib import Path
from typing import Any

from rung.data.cells import CellError, plain, text_of
from rung.data.chat import Conversation, answer_text, answer_turns, read_conversation
from rung.data.frames import MemoryRows, is_table
from rung.data.kinds import metric_column
from rung.data.rows import NOT_IN_DOCUMENTS, SHOWN, Example, Record, Span, SplitReport, example_id
from rung.data.sources import read_rows
from rung.data.spec import TaskSpec
from rung.data.splitting import Place, is_dated, time_of
from rung.data.texts import number_text, read_number
from rung.errors import DataError, suggest
from rung.yamlfile import json_value, unique_keys

NOT_APPROVED, EMPTY_INPUT = "not approved", "empty input"


def examples(records: Iterable[Record], task: TaskSpec, report: SplitReport) -> tuple[list[Example], list[Place]]:
    """Turn records into examples, and read the split's group and time columns of each.

    Rows with an empty input or output are dropped and counted in `report`.

    Raises:
        DataError: a column is missing, or a value is of the wrong type; of several rows with wrong values, the message
            is that of the first and names the others.
    """
    rows: list[Example] = []
    wrong: dict[str, DataError] = {}
    places: list[Place] = []
    group, time = task.data.split.group, task.data.split.time
    output = task.output
    answer = [name for name in (output.column, output.approved, task.data.spans, *(output.columns or ())) if name]
    for record in whole_rows(records, (*task.inputs, *answer), output.kind):
        report.read += 1
        read = _chat if task.output.kind == "chat" else _row
        try:
            example = _disapproved(record, task) or read(record, task)
        except DataError as error:
            if error.code not in ("bad-row", "bad-reference", "bad-json"):
                raise
            wrong[record.source] = error
            continue
        if isinstance(example, str):
            report.drop(example, record.source)
            continue
        if task.data.weight is not None:
            weight = _weight(record, task.data.weight)
            if weight == 0:
                report.drop("weight 0", record.source)
                continue
            example = replace(example, weight=weight)
        rows.append(example)
        own = text_of(column(record, group)).strip() if group else ""
        when = column(record, time) if time else None
        places.append(Place(own, time_of(when, time, record.source), is_dated(when)) if time else Place(own))
    if wrong:
        (first, problem), *others = wrong.items()
        if others:
            shown = ", ".join(source.removeprefix(first.rpartition(":")[0] + ":") for source, _ in others[:SHOWN])
            more = ", ..." if len(others) > SHOWN else ""
            rows_too = "rows have" if len(others) > 1 else "row has"
            problem.message += f" ({len(others):,} more {rows_too} wrong values: {shown}{more})"
        raise problem
    return rows, places


def given_records(rows: Any, columns: Sequence[str], kind: str) -> Iterator[Record]:
    """Yield the rows to answer: a file, rows in memory, or texts for a task with one input.

    Raises:
        DataError: `bad-row`, with the number of what is no row.
    """
    if isinstance(rows, Path):
        return read_rows(rows)
    if isinstance(rows, str):
        rows = [rows]
    if not is_table(rows) and isinstance(rows, Iterable) and not isinstance(rows, Mapping):
        rows = [_text_row(row, number, columns, kind) for number, row in enumerate(rows, start=1)]
    return MemoryRows.of(rows).records()


def _text_row(row: Any, number: int, columns: Sequence[str], kind: str) -> Any:
    if not isinstance(row, str):
        return row
    if len(columns) > 1:
        hint = 'give mappings: {"' + columns[0] + '": ...}'
        raise DataError("bad-row", f"row {number} is a text, but the task reads {', '.join(columns)}", hint=hint)
    return {columns[0]: [{"role": "user", "content": row}] if kind == "chat" else row}


WAITING = 1000  # rows to look at for a column that the first ones lack


def whole_rows(records: Iterable[Record], columns: Sequence[str], kind: str) -> Iterator[Record]:
    """Give the rows of a table nothing where they lack a column that other rows have, as rows of JSON may.

    A row keeps its lack, which is an error when it is read, if no row near the beginning has the column, or if the row
    has a key with nearly its name that the first row with the column does not have. So does a conversation.
    """
    if kind == "chat":
        yield from records
        return
    known: dict[str, frozenset[str]] = {}  # by column: the keys of the first row that has it
    waiting: list[Record] = []
    everything = False
    for record in records:
        if not everything:
            known = {name: frozenset(record.values) for name in columns if _lack(record, name) is None} | known
            everything = len(known) == len(set(columns))
        waiting.append(record)
        if everything or len(waiting) > WAITING:
            yield from (_whole(each, known) for each in waiting)
            waiting = []
    yield from (_whole(each, known) for each in waiting)


def _whole(record: Record, known: Mapping[str, frozenset[str]]) -> Record:
    nothing = []
    for name in known:
        if (lack := _lack(record, name)) is not None:
            part, keys = lack
            others = [key for key in keys if key not in known[name] or part != name]
            nothing += [] if get_close_matches(part, others) else [name]
    return Record({**record.values, **dict.fromkeys(nothing)}, record.source) if nothing else record


def _lack(record: Record, name: str) -> tuple[str, list[str]] | None:
    """The part of a dotted name that a row lacks, and the keys that it has there; None if it has the column.

    A text or a number where an object should be is wrong, not a lack.
    """
    value: Any = record.values
    if name in value:
        return None
    for part in name.split("."):
        if value is None:
            return part, []
        if not isinstance(value, Mapping):
            return None
        if part not in value:
            return part, list(map(str, value))
        value = value[part]
    return None


def read_inputs(values: Mapping[str, Any], columns: Sequence[str], kind: str, source: str) -> dict[str, Any]:
    """Read the input columns of a raw row: training, evaluation, prediction and serving all call this.

    Text is not changed, lists of sentences are joined, other values become JSON. The one column of a chat holds the
    messages: those before the answer, if the last turn is the assistant's. `tools` beside it are read, too.

    Args:
        values: the row; other columns are ignored.
        columns: the task's input columns; dots reach into nested JSON.
        kind: the kind of the task's output.
        source: the file and line of the row, for errors.

    Raises:
        DataError: `missing-column`, or `bad-row` for a malformed conversation.
    """
    record = Record(dict(values), source)
    if kind == "chat":
        conversation = read_conversation(column(record, columns[0]), columns[0], source, values)
        inputs = conversation.inputs(columns[0])
        if not inputs[columns[0]]:
            raise DataError("bad-row", f"{source}: {columns[0]!r} has no messages", hint="write at least a user's turn")
        return inputs
    return {name: text_of(column(record, name)) for name in columns}


def read_row(values: Mapping[str, Any], columns: Sequence[str], kind: str, source: str) -> Example:
    """Turn a raw row without an expected answer into an Example; see `read_inputs`."""
    inputs = read_inputs(values, columns, kind, source)
    return Example(example_id(inputs), inputs, (), source)


def is_blank(inputs: Mapping[str, Any]) -> bool:
    """Whether a row says nothing: all its input columns are empty. Such a row is not learned from and not answered."""
    return not any(value.strip() if isinstance(value, str) else value for value in inputs.values())


def not_blank(inputs: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Give back the inputs of a row that is to be answered; raise DataError `bad-row` if it says nothing."""
    if is_blank(inputs):
        hint = f"fill {' or '.join(map(repr, inputs))}, or leave the row out"
        raise DataError("bad-row", f"{source}: {EMPTY_INPUT}", hint=hint)
    return dict(inputs)


def column(record: Record, name: str) -> Any:
    """Read a column as JSON values; dots reach into nested JSON.

    Raises:
        DataError: `missing-column`: there is none; `bad-row`: it holds bytes or an object, which is no text.
    """
    try:
        return plain(_cell(record, name))
    except CellError as error:
        hint = "leave the column out, or turn its values into text first"
        if "bytes, not" in str(error):
            hint = "if it is text in bytes, name its encoding: `data.encoding: utf-8`, or --encoding utf-8"
        raise DataError("bad-row", f"{record.source}: the column {name!r} {error}", hint=hint) from None


def _cell(record: Record, name: str) -> Any:
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


def _missing(record: Record, name: str, above: list[str], part: str, parent_value: Any) -> DataError:
    """Make the error of a missing column, which names the part of the dotted name that is missing."""
    problem = f"{record.source} has no column {name!r}"
    if not above:
        return DataError("missing-column", problem, hint=suggest(part, list(record.values)))
    parent = ".".join(above)
    if isinstance(parent_value, Mapping) and parent_value:
        hint = suggest(part, list(map(str, parent_value)))
        return DataError("missing-column", f"{problem}: its {parent!r} has no {part!r}", hint=hint)
    problem += f": its {parent!r} is a {type(parent_value).__name__}, not an object"
    return DataError("missing-column", problem, hint=f"correct the row, or read {parent!r} itself")


def _row(record: Record, task: TaskSpec) -> Example | str:
    inputs = read_inputs(record.values, task.inputs, task.output.kind, record.source)
    if is_blank(inputs):
        return EMPTY_INPUT
    cell = answer_cell(record, task.output.kind, task.output.column, task.output.columns)
    outputs = outputs_of(cell, task, record)
    spans = None if task.data.spans is None else _spans(column(record, task.data.spans), record)
    if not outputs and spans == ():
        outputs = (NOT_IN_DOCUMENTS,)
    if not outputs:
        return "empty output"
    if task.output.regex is not None:
        _check_written(outputs[0], task.output.regex, record.source)
    name = metric_column(task.metric_name, task.metric_settings)
    extra = {} if name is None or name in task.inputs else {name: column(record, name)}
    return Example(example_id(inputs), inputs, outputs, record.source, extra, spans)


def _check_written(answer: str, regex: str, source: str) -> None:
    """Refuse the answer that is trained on and shown, if a model held to the pattern cannot write it."""
    from rung.engines.base import Constraint
    from rung.engines.constraints import unwritable  # slow imports, and few tasks have a pattern

    if problem := unwritable(answer, Constraint("regex", regex)):
        problem = f"{source}: the expected answer {answer[:80]!r} does not fit `output.regex`, {regex!r}: {problem}"
        hint = "correct the row or the pattern: a model held to the pattern cannot give this answer"
        raise DataError("bad-reference", problem, hint=hint)


def answer_cell(record: Record, kind: str, name: str | None, names: Sequence[str] | None) -> Any:
    """Read the cell of the answer; of a column per label, those that apply; of a column per field, the record."""
    if names is None:
        assert name is not None
        return column(record, name)
    if kind == "multilabel":
        return [each for each in names if is_true(column(record, each), each, record)]
    cells = {each: column(record, each) for each in names}
    fields = {each: cell.strip() or None if isinstance(cell, str) else cell for each, cell in cells.items()}
    return fields if any(value is not None for value in fields.values()) else None


_TRUE, _FALSE = ("1", "1.0", "true", "yes", "y"), ("0", "0.0", "false", "no", "n", "", "none", "nan")


def is_true(value: Any, name: str, record: Record) -> bool:
    """Read a cell that says yes or no; an empty one says no."""
    text = str(value).strip().lower()
    if text not in (*_TRUE, *_FALSE):
        hint = "write 1 or true where it applies, else 0 or false"
        raise DataError("bad-row", f"{record.source}: {name!r} is {str(value)[:80]!r}, not yes or no", hint=hint)
    return text in _TRUE


def _disapproved(record: Record, task: TaskSpec) -> str:
    """Say why a row's answer must not be learned, by `output.approved`; empty if it may."""
    name, least = task.output.approved, task.output.approved_from
    if name is None:
        return ""
    value = column(record, name)
    if least is None:
        return "" if is_true(value, name, record) else NOT_APPROVED
    try:
        return "" if value is not None and float(value) >= least else NOT_APPROVED
    except (TypeError, ValueError):
        problem = f"{record.source}: {name!r} is {str(value)[:80]!r}, not a number"
        raise DataError("bad-row", problem, hint="leave out `output.approved_from` for true and false") from None


def _weight(record: Record, name: str) -> float:
    """Read a row's weight; raise DataError `bad-row` unless it is a number of 0 or more."""
    value = column(record, name)
    try:
        weight = float("nan" if value is None or isinstance(value, bool) else value)
    except (TypeError, ValueError):
        weight = float("nan")
    if not (isfinite(weight) and weight >= 0):
        problem = f"{record.source}: {name!r} is {str(value)[:80]!r}, which is no weight"
        raise DataError("bad-row", problem, hint="write a number of 0 or more in every row")
    return weight


def _spans(value: Any, record: Record) -> tuple[Span, ...] | None:
    """Read the answer's spans: a list of {document, start, end}, or its JSON text; None if the cell is empty."""
    try:
        values = json_value(value) if isinstance(value, str) and value.strip() else value or None
        if value == []:
            values = []
        spans = None if values is None else tuple(Span(v["document"], v["start"], v["end"]) for v in values)
        if not all(isinstance(s.document, str) and 0 <= s.start < s.end for s in spans or ()):
            raise ValueError("a span begins before it ends, in a document")
    except (ValueError, TypeError, KeyError):
        hint = 'write [{"document": "manual.md", "start": 120, "end": 180}]; [] if the documents do not answer it'
        problem = f"{record.source}: not a list of spans in documents: {str(value)[:80]}"
        raise DataError("bad-row", problem, hint=hint) from None
    return spans


def outputs_of(value: Any, task: TaskSpec, record: Record) -> tuple[str, ...]:
    """Read the cell of an answer as text, by the task's kind; nothing for an empty one without a `refusal`."""
    kind = task.output.kind
    refusal = (task.output.refusal,) if task.output.refusal else ()  # what a row without an answer expects
    if kind == "json":
        schema = task.output.json_schema
        return _json_output(value, schema if isinstance(schema, dict) else {}, record)
    if kind == "multilabel":
        return (_label_list(value, task, record),)
    if kind == "text" and isinstance(value, list) and all(isinstance(item, str) or item is None for item in value):
        return tuple(item.strip() for item in value if item and item.strip()) or refusal
    if kind == "number" and not isinstance(value, (dict, list)):
        return _number(value, task, record)
    if isinstance(value, (dict, list)):
        problem = f"{record.source}: {task.output.column!r} is a {type(value).__name__}, not a {kind}"
        raise DataError("bad-row", problem, hint="for structured answers use `kind: json`")
    text = text_of(value)
    if not text.strip():
        return refusal
    return (text,) if kind == "category" else (text.strip(),)


def _number(value: Any, task: TaskSpec, record: Record) -> tuple[str, ...]:
    """Write an expected number plainly: `1234.5`. An empty cell has none."""
    text, output = text_of(value).strip(), task.output
    if not text:
        return ()
    try:
        # Numbers of JSON and Parquet have a decimal point, whatever the cells of a CSV have.
        number = read_number(text, output.decimal if isinstance(value, str) else ".", output.unit)
        if output.whole and not number.is_integer():
            raise ValueError("it is not whole, and `output.whole` is true")
        if output.minimum is not None and number < output.minimum:
            raise ValueError(f"it is less than `output.minimum`, {output.minimum:g}")
        if abs(number) >= 1e15:
            raise ValueError("it has more than 15 digits before the decimal point, more than a model may write")
        if not isclose(rounded := round(number, 9), number, rel_tol=1e-9):
            raise ValueError("it has more than nine decimals, more than a model may write; use another unit")
        if output.maximum is not None and number > output.maximum:
            raise ValueError(f"it is more than `output.maximum`, {output.maximum:g}")
    except ValueError as error:
        raise DataError(
            "bad-row", f"{record.source}: {output.column!r} is {text[:80]!r}: {error}",
            hint="write 1234.5, set `output.decimal` or `output.unit`, or correct the row",
        ) from None  # fmt: skip
    return (number_text(rounded + 0.0),)  # without the sign of a zero


def _label_list(value: Any, task: TaskSpec, record: Record) -> str:
    """Write labels as a canonical JSON list: each once, sorted. An empty cell is a row without labels."""
    labels = cell_labels(value, task.output.separator)
    if labels is None:
        raise DataError(
            "bad-row", f"{record.source}: {task.output.column!r} is not a list of labels: {str(value)[:80]!r}",
            hint=f'write ["one", "another"], or "one{task.output.separator} another"; nothing for no label',
        )  # fmt: skip
    return json.dumps(sorted(set(labels)), ensure_ascii=False)


def cell_labels(value: Any, separator: str) -> list[str] | None:
    """Read the labels of a cell; None if it holds something else.

    A cell is a list, its JSON or Python text, Label Studio's `{"choices": [...]}`, or text with separators.
    """
    if isinstance(value, str):
        if value.lstrip()[:1] not in ("[", "{"):
            return [part.strip() for part in value.split(separator) if part.strip()]
        value = _literal(value)
    elif value is None or (isinstance(value, float) and value != value):
        return []
    if isinstance(value, Mapping):
        value = value.get("choices")
        value = [value] if isinstance(value, str) else value
    if not isinstance(value, list | tuple):
        return None
    if not all(isinstance(label, str | int) and str(label).strip() for label in value):
        return None
    return [text_of(label).strip() for label in value]


def _literal(text: str) -> Any:
    """Read the JSON or Python text of a list; None if it is neither."""
    try:
        return json_value(text)
    except ValueError:
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _from_json(text: str, record: Record, what: str, hint: str) -> Any:
    try:
        return json_value(text, unique_keys)
    except ValueError as error:
        raise DataError("bad-json", f"{record.source}: {what} is not valid JSON: {error}", hint=hint) from None


def _json_output(value: Any, schema: Mapping[str, Any], record: Record) -> tuple[str, ...]:
    """Write the answer as canonical JSON text: keys in the schema's order, then by name."""
    if isinstance(value, str):
        if not value.strip():
            return ()
        hint = 'kind json needs one JSON value per row, such as {"total": 12.5}; for others use `kind: text`'
        value = _from_json(value, record, "the expected answer", hint)
    if value is None:
        return ()
    from rung.data.json_schema import expected_text  # slow imports, and few tasks have a schema

    try:
        return (expected_text(value, schema, record.source),)
    except ValueError:
        problem = f"{record.source}: the expected answer contains NaN or Infinity, which JSON lacks"
        raise DataError("bad-json", problem, hint="use null") from None


def _chat(record: Record, task: TaskSpec) -> Example | str:
    """Take the last assistant turn as the answer to the turns before it."""
    name, output = task.inputs[0], task.output
    conversation = read_conversation(column(record, name), name, record.source, record.values)
    if output.column is not None:
        conversation = conversation.answered(answer_turns(column(record, output.column), output.column, record.source))
    return answered(conversation, name, record.source)


def answered(conversation: Conversation, name: str, source: str) -> Example | str:
    """The example of a conversation that ends with its answer; else say why there is none."""
    if (answer := conversation.answer) is None:
        turns = conversation.turns
        every = bool(turns) and turns[-1]["role"] == "assistant" and len(turns) > 1
        return "every assistant turn has weight 0" if every else "no assistant turn at the end"
    turn, inputs = conversation.turns[answer], conversation.inputs(name)
    if not (text := answer_text(turn)):
        return "empty answer"
    masked = tuple(i for i in conversation.masked if i < answer)
    return Example(
        example_id(inputs), inputs, (text,), source, turn=turn if len(turn) > 2 else None, masked=masked
    )  # fmt: skip
