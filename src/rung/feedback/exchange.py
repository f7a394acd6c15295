"""Reviewed interactions as files, and back: what tuning tools, spreadsheets and other stores read.

chat        {"messages": [system, user, assistant = expected]}
completion  {"prompt", "completion" = expected}
preference  {"prompt": [messages], "chosen" = [expected], "rejected" = [actual]}, of failures only
csv         prompt template, input, actual response, expected response
jsonl       everything that is known of a case; read back whole
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal

from rung.data.examples import text_of
from rung.data.rows import Record, example_id, hash_of
from rung.data.sources import read_rows
from rung.errors import DataError
from rung.feedback.records import Interaction, ReviewCase, SplitRule
from rung.feedback.store import FeedbackStore, case_values
from rung.prompts.prompt import placeholders, substitute
from rung.task import Task

ExportFormat = Literal["chat", "completion", "preference", "csv", "jsonl"]
COLUMNS = ("prompt template", "input", "actual response", "expected response")
# A cell that begins so is a formula to a spreadsheet. It gets an apostrophe, as one that begins with apostrophes before
# such a character does, so that what is read back is what was written.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")
_GUARDED = re.compile(r"'+[=+\-@\t\r\n＝＋－＠]")


def write(cases: Iterable[ReviewCase], form: ExportFormat, out: IO[str]) -> int:
    """Write the cases that suit a form: reviewed ones, for `preference` failures, for `csv` and `jsonl` all.

    Returns:
        How many were written.
    """
    if form == "csv":
        return _write_csv(cases, out)
    count = 0
    for case in cases:
        values = _line(case, form)
        if values is not None:
            out.write(json.dumps(values) + "\n")
            count += 1
    return count


def _line(case: ReviewCase, form: ExportFormat) -> dict[str, Any] | None:
    if form == "jsonl":
        return case_values(case)
    if case.expected is None or (form == "preference" and not case.failure):
        return None
    prompt = messages(case.interaction)
    answer = {"role": "assistant", "content": case.expected}
    if form == "chat":
        return {"messages": [*prompt, answer]}
    if form == "preference":
        return {
            "prompt": prompt, "chosen": [answer],
            "rejected": [{"role": "assistant", "content": case.interaction.actual}],
        }  # fmt: skip
    return {"prompt": "\n\n".join(turn["content"] for turn in prompt), "completion": case.expected}


def messages(row: Interaction) -> list[dict[str, str]]:
    """Return what was asked as chat messages: the system message and the row; demonstrations are not kept."""
    system = [{"role": "system", "content": row.system}] if row.system else []
    if row.template:
        return [*system, {"role": "user", "content": substitute(row.template, row.inputs)}]
    for value in row.inputs.values():
        if isinstance(value, list):
            return [*system, *value]
    return [*system, {"role": "user", "content": "\n".join(text_of(value) for value in row.inputs.values())}]


def _write_csv(cases: Iterable[ReviewCase], out: IO[str]) -> int:
    writer = csv.writer(out)
    writer.writerow(COLUMNS)
    count = 0
    for case in cases:
        row = case.interaction
        system = row.system.replace("{", "{{").replace("}", "}}")  # part of a template from here on
        template = "\n\n".join(part for part in (system, row.template) if part)
        writer.writerow([guarded(c) for c in (template, _input_cell(row.inputs), row.actual, case.expected or "")])
        count += 1
    return count


def _input_cell(inputs: Mapping[str, Any]) -> str:
    """Return the text of a single input, or all of them as JSON."""
    values = list(inputs.values())
    return (
        values[0] if len(values) == 1 and isinstance(values[0], str) else json.dumps(dict(inputs), ensure_ascii=False)
    )


def guarded(cell: str) -> str:
    """Return a cell that no spreadsheet takes for a formula."""
    return f"'{cell}" if _FORMULA.match(cell) else cell


def unguarded(cell: str) -> str:
    """Return what `guarded` was given."""
    return cell[1:] if _GUARDED.match(cell) else cell


# ---- reading back


def read(file: Path, task: Task, store: FeedbackStore, reviewer: str) -> tuple[int, int]:
    """Take the cases of a CSV with the four columns, or of a JSONL file, into the store.

    Their ids are made of what they say, so that reading a file twice changes nothing; a JSONL row of a store's own
    export keeps its id. An expected response becomes a correction, unless the case has that one already.

    Returns:
        How many cases were read, and how many corrections were made.

    Raises:
        DataError: a row lacks a column, or its input does not fit the task.
    """
    made = [_from_record(record, task) for record in read_rows(file)]
    store.record([row for row, _ in made])
    corrected = 0
    for row, expected in made:
        if expected is not None and store.case(row.id).expected != expected:
            store.correct(row.id, expected, reviewer, f"from {file.name}")
            corrected += 1
    return len(made), corrected


def _from_record(record: Record, task: Task) -> tuple[Interaction, str | None]:
    values = record.values
    if set(COLUMNS) <= set(values):
        cells = [unguarded(text_of(values[name])) for name in COLUMNS]
        values = {"template": cells[0], "inputs": _inputs(cells[1], task, record), "actual": cells[2],
                  "expected": cells[3]}  # fmt: skip
    missing = [name for name in ("inputs", "actual") if name not in values]
    if missing:
        raise DataError(
            "missing-column", f"{record.source} has no column {missing[0]!r}",
            hint=f"a CSV needs {', '.join(map(repr, COLUMNS))}; JSONL is what `rung failures export --to jsonl` writes",
        )  # fmt: skip
    inputs = _checked(values["inputs"], task, record)
    unknown = [name for name in placeholders(str(values.get("template") or "")) if name not in task.inputs]
    if unknown:
        raise DataError(
            "bad-template",
            f"{record.source}: the prompt template asks for {{{unknown[0]}}}, which the task {task.name} does not read",
            hint="write literal braces twice: {{ and }}",
        )
    expected = values.get("expected")
    actual = str(values["actual"])
    return _interaction(values, inputs, actual, task), (str(expected) if expected and str(expected).strip() else None)


def _inputs(cell: str, task: Task, record: Record) -> Any:
    """Return the inputs of a cell: the text itself for a task with one column, else JSON."""
    if len(task.inputs) == 1 and task.output.kind != "chat":
        return {task.inputs[0]: cell}
    try:
        return json.loads(cell)
    except ValueError as error:
        raise DataError(
            "bad-json", f"{record.source}: the input is not valid JSON: {error}",
            hint=f"a task with several inputs needs an object with {', '.join(map(repr, task.inputs))}",
        ) from None  # fmt: skip


def _checked(inputs: Any, task: Task, record: Record) -> dict[str, Any]:
    for name in task.inputs:
        if not isinstance(inputs, Mapping) or name not in inputs:
            raise DataError(
                "missing-column", f"{record.source}: the input has no {name!r}",
                hint=f"the task {task.name} reads {', '.join(map(repr, task.inputs))}",
            )  # fmt: skip
    return {name: inputs[name] for name in task.inputs}


def _interaction(values: Mapping[str, Any], inputs: dict[str, Any], actual: str, task: Task) -> Interaction:
    made = hash_of([task.name, inputs, actual], 32)
    rule = SplitRule.of(task)
    read = inputs if task.output.kind == "chat" else {name: text_of(value) for name, value in inputs.items()}
    side = rule.side(read)
    return Interaction(
        id=str(values.get("id") or f"import-{made}"),
        at=datetime.fromisoformat(values["at"]) if values.get("at") else datetime.now(UTC),
        task=task.name,
        artifact=str(values.get("artifact") or ""),
        model=str(values.get("model") or ""),
        system=str(values.get("system") or ""),
        template=str(values.get("template") or ""),
        template_version=str(values.get("template_version") or ""),
        inputs=inputs,
        prompt_sha256=str(values.get("prompt_sha256") or ""),
        actual=actual,
        confidence=values.get("confidence"),
        prompt_tokens=int(values.get("prompt_tokens") or 0),
        completion_tokens=int(values.get("completion_tokens") or 0),
        seconds=float(values.get("seconds") or 0.0),
        key=values.get("key"),
        finish=str(values.get("finish") or "stop"),
        # What was held out where it was captured stays held out here.
        split="test" if values.get("split") == "test" else side,
        input_id=str(values.get("input_id") or example_id(read)),
        trial=str(values.get("trial") or ""),
        missed=bool(values.get("missed")),
    )
