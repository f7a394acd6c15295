"""Import and export of reviewed interactions, for fine-tuning tools, spreadsheets and other stores.

chat        {"messages": [system, user, assistant = expected]}
completion  {"prompt", "completion" = expected}
preference  {"prompt": [messages], "chosen" = [expected], "rejected" = [actual]}, of failures only
csv         prompt template, input, actual response, expected response
jsonl       everything known about a case; importing it restores the case
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal, get_args

from rung.data.cells import json_text, text_of
from rung.data.examples import column, read_inputs
from rung.data.rows import Record, example_id, hash_of
from rung.data.sources import FileFormat, detected, read_rows
from rung.data.spec import placeholders
from rung.errors import DataError
from rung.feedback.corrections import folded, labels_of_task, matched_label
from rung.feedback.records import Interaction, ReviewCase, Side, SplitRule
from rung.feedback.store import FeedbackStore
from rung.prompts.prompt import substitute
from rung.task import Task
from rung.yamlfile import json_value

CaseFormat = Literal["chat", "completion", "preference", "csv", "jsonl"]
COLUMNS = ("prompt template", "input", "actual response", "expected response")
# A spreadsheet takes a cell that begins so for a formula. Such a cell gets an apostrophe, and so does one that begins
# with apostrophes before such a character: reading it back restores the text exactly.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")
_GUARDED = re.compile(r"'+[=+\-@\t\r\n＝＋－＠]")


def write(cases: Iterable[ReviewCase], form: CaseFormat, out: IO[str]) -> int:
    """Write the cases that a format can hold, and count them.

    Those are failures for `preference`, all for `csv` and `jsonl`, else the reviewed ones.
    """
    if form == "csv":
        rows = [_csv_row(case) for case in cases]
        csv.writer(out).writerows([COLUMNS, *rows])
        return len(rows)
    lines = [json.dumps(values) + "\n" for case in cases if (values := _json_values(case, form)) is not None]
    out.writelines(lines)
    return len(lines)


def _json_values(case: ReviewCase, form: CaseFormat) -> dict[str, Any] | None:
    if form == "jsonl":
        return case.as_dict()
    if case.expected is None or (form == "preference" and not case.failure):
        return None
    prompt = messages(case.interaction)
    expected = {"role": "assistant", "content": case.expected}
    if form == "chat":
        return {"messages": [*prompt, expected]}
    if form == "preference":
        actual = {"role": "assistant", "content": case.interaction.actual}
        return {"prompt": prompt, "chosen": [expected], "rejected": [actual]}
    return {"prompt": "\n\n".join(turn["content"] for turn in prompt), "completion": case.expected}


def messages(row: Interaction) -> list[dict[str, str]]:
    """The request as chat messages: the system message and the row; demonstrations are not stored."""
    system = [{"role": "system", "content": row.system}] if row.system else []
    if row.template:
        return [*system, {"role": "user", "content": substitute(row.template, row.inputs)}]
    for value in row.inputs.values():
        if isinstance(value, list):
            return [*system, *value]
    return [*system, {"role": "user", "content": "\n".join(text_of(value) for value in row.inputs.values())}]


def _csv_row(case: ReviewCase) -> list[str]:
    row = case.interaction
    system = row.system.replace("{", "{{").replace("}", "}}")  # in this file it is part of a template
    template = "\n\n".join(part for part in (system, row.template) if part)
    values = list(row.inputs.values())
    single = len(values) == 1 and isinstance(values[0], str)
    inputs = values[0] if single else json.dumps(dict(row.inputs), ensure_ascii=False)
    return [guarded(cell) for cell in (template, inputs, row.actual, case.expected or "")]


def guarded(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{cell}" if _FORMULA.match(cell) else cell


def unguarded(cell: str) -> str:
    """The inverse of `guarded`."""
    return cell[1:] if _GUARDED.match(cell) else cell


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import took from a file.

    Attributes:
        cases: rows read.
        corrections: rows whose expected response was new.
        blank: rows without any text, which are no cases.
        ignored: columns that are not read.
        format: what is unusual about the format of the file.
    """

    cases: int
    corrections: int
    blank: int = 0
    ignored: tuple[str, ...] = ()
    format: str = ""

    def __str__(self) -> str:
        text = f"{self.cases} cases read, {self.corrections} corrections made"
        if self.blank:
            text += f", {self.blank} blank rows left out"
        return f"{text}; columns not read: {', '.join(self.ignored)}" if self.ignored else text


def read(file: Path, task: Task, store: FeedbackStore, reviewer: str, form: FileFormat | None = None) -> Imported:
    """Import the cases of a CSV file (or another table) with the four columns, or of a JSONL file.

    A row's id is a hash of its content (a JSONL row keeps its own id), so importing a file twice changes nothing. An
    expected response becomes a correction, unless the case has that correction already.

    Raises:
        DataError: a row lacks a column, its input or label does not fit the task, or two rows contradict each other.
    """
    form, labels = detected(file, form or FileFormat()), labels_of_task(task)
    imported: list[tuple[Interaction, str | None]] = []
    expected_of: dict[str, tuple[str, str]] = {}  # by input: the expected response, and where it is
    blank, ignored = 0, dict[str, None]()
    for record in read_rows(file, form):
        if not any(text_of(column(record, name)).strip() for name in record.values):
            blank += 1
            continue
        values, unread = _four_columns(record)
        ignored |= dict.fromkeys(unread)
        row, expected = _from_record(record, values, task)
        if expected is not None and labels:
            expected = matched_label(expected, labels, record.source)
            before, where = expected_of.setdefault(row.input_id, (expected, record.source))
            if before != expected:
                problem = f"{record.source} expects {expected!r}, and {where} expects {before!r} for the same input"
                raise DataError("contested-corrections", problem, hint="leave one of the two rows out")
        imported.append((row, expected))
    store.record([row for row, _ in imported])
    corrected = 0
    for row, expected in imported:
        if expected is not None and store.case(row.id).expected != expected:
            store.correct(row.id, expected, reviewer, f"from {file.name}")
            corrected += 1
    return Imported(len(imported), corrected, blank, tuple(ignored), form.describe())


NAMES = {  # of a column, as `folded` gives them
    "prompt template": ("prompt template", "template", "prompt"), "input": ("input", "inputs"),
    "actual response": ("actual response", "actual", "actual output", "response", "model response", "model output"),
    "expected response": ("expected response", "expected", "expected output", "correction", "correct response",
                          "ground truth"),
}  # fmt: skip
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")  # the places between the words of `expectedOutput`


def _four_columns(record: Record) -> tuple[dict[str, str] | None, list[str]]:
    """Find the four columns in a row by their names as people write them, and the columns that are none of them.

    Only the template and the expected response may be missing. None for a row that has the form of an exported case.
    """
    if "inputs" in record.values and "actual" in record.values:
        return None, []
    by_name: dict[str, str] = {}
    for name in record.values:
        by_name.setdefault(folded(_CAMEL.sub(" ", name).rstrip(" :")), name)
    found = {name: next((by_name[each] for each in names if each in by_name), None) for name, names in NAMES.items()}
    if found["actual response"] is None and found["expected response"] is not None:
        found["actual response"] = by_name.get("output")  # alone, it may be either
    if missing := [name for name in ("input", "actual response") if found[name] is None]:
        wanted, there = ", ".join(map(repr, COLUMNS)), ", ".join(map(repr, record.values))
        hint = f"it has {there}; a table needs {wanted}; JSONL is what `rung failures export --to jsonl` writes"
        raise DataError("missing-column", f"{record.source} has no column {missing[0]!r}", hint=hint)
    values = {name: "" if own is None else unguarded(text_of(column(record, own))) for name, own in found.items()}
    return values, [name for name in record.values if name not in found.values()]


def _from_record(record: Record, four: dict[str, str] | None, task: Task) -> tuple[Interaction, str | None]:
    """The interaction in a row of a file, and its expected response, if it has one."""
    values: dict[str, Any] = record.values
    if four is not None:
        template, cell, actual, expected = four.values()
        if not cell.strip():
            hint = "write what the model was asked into the column input; the template alone is not the input"
            raise DataError("bad-row", f"{record.source}: the input is empty", hint=hint)
        template = own_template(template, task.inputs)
        inputs = {task.inputs[0]: cell}  # the cell of a task with one column is plain text, else JSON
        if len(task.inputs) > 1 or task.output.kind == "chat":
            try:
                inputs = json_value(cell)
            except ValueError as error:
                hint = f"a task with several inputs needs an object with {', '.join(map(repr, task.inputs))}"
                problem = f"{record.source}: the input is not valid JSON: {error}"
                raise DataError("bad-json", problem, hint=hint) from None
        values = {"template": template, "inputs": inputs, "actual": actual, "expected": expected}
    if not isinstance(values["inputs"], Mapping):
        problem = f"{record.source}: 'inputs' is {str(values['inputs'])[:80]!r}, not an object"
        raise DataError(
            "bad-row", problem, hint='write {"' + task.inputs[0] + '": ...}; a text is read from a column `input`'
        )
    as_read = read_inputs(values["inputs"], task.inputs, task.output.kind, record.source)
    unknown = [name for name in placeholders(str(values.get("template") or "")) if name not in task.inputs]
    if unknown:
        problem = f"the prompt template asks for {{{unknown[0]}}}, which is not an input of {task.name}"
        hint = "write literal braces twice: {{ and }}"
        raise DataError("bad-template", f"{record.source}: {problem}", hint=hint)
    expected = _answer(values.get("expected"))
    return _interaction(values, as_read, task, record.source), expected if expected.strip() else None


_MUSTACHE = re.compile(r"\{\{([^{}]*+)\}\}")
_COLUMN = re.compile(r"(?<!\{)\{([^{}]*)\}(?!\})")
_LONE = re.compile(r"(?<!\{)\{(?!\{)|(?<!\})\}(?!\})")


def own_template(text: str, inputs: Sequence[str]) -> str:
    """Write a template with the columns as `{column}` and literal braces doubled, whatever its author's habit.

    `{{ column }}` is a column where no column stands in single braces. In a task with one input, the only name in
    braces is that input. Names are compared as `folded` gives them; an unknown one stays.
    """
    known = {folded(name): name for name in inputs}
    single, double = ({folded(name) for name in form.findall(text)} for form in (_COLUMN, _MUSTACHE))
    mustache = bool(double & set(known)) and not single & set(known)
    names = [name for name in (double if mustache else single) if re.fullmatch(r"\w+( \w+)*", name)]
    if len(inputs) == len(names) == 1:
        known = {names[0]: inputs[0]}
    form, literals, columns, end = _MUSTACHE if mustache else _COLUMN, [], [], 0
    for match in form.finditer(text):
        if (name := folded(match[1])) in names:
            literals.append(text[end : match.start()])
            columns.append("{" + known.get(name, match[1].strip() if mustache else match[1]) + "}")
            end = match.end()
    literals.append(text[end:])
    if mustache or any(map(_LONE.search, literals)):  # its author doubles no braces
        literals = [literal.replace("{", "{{").replace("}", "}}") for literal in literals]
    return "".join(literal + column for literal, column in zip(literals, [*columns, ""], strict=True))


def _answer(value: Any) -> str:
    return json_text(value) if isinstance(value, list) else text_of(value)  # a list of labels is JSON


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


def _count(value: Any) -> int:
    if isinstance(value, bool) or float(value) not in range(2**31):
        raise ValueError
    return int(float(value))


def _amount(value: Any) -> float:
    if isinstance(value, bool) or not 0 <= float(value) < math.inf:
        raise ValueError
    return float(value)


def _share(value: Any) -> float:
    if (share := _amount(value)) > 1:
        raise ValueError
    return share


def _flag(value: Any) -> bool:
    return {"true": True, "false": False}[str(value).lower()]


def _time(value: Any) -> datetime:
    if (time := datetime.fromisoformat(value)).tzinfo is None:
        raise ValueError
    return time


def _side(value: Any) -> Side:
    sides: dict[Any, Side] = {side: side for side in get_args(Side)}
    return sides[value]


_AMOUNT, _COUNT = (_amount, "a number of 0 or more"), (_count, "a whole number of 0 or more")
READS: dict[str, tuple[Callable[[Any], Any], str]] = {  # how values are read that are not texts, and what is right
    "at": (_time, "a time with its zone, such as 2026-01-31T12:00:00+00:00"), "split": (_side, "train or test"),
    "confidence": (_share, "a number from 0 to 1"), "seconds": _AMOUNT, "prompt_tokens": _COUNT,
    "completion_tokens": _COUNT, "missed": (_flag, "true or false"),
}  # fmt: skip


def _stored(values: Mapping[str, Any], name: str, default: Any, source: str) -> Any:
    """Read what is known about a case; `default` where the file says nothing.

    Raises:
        DataError: `bad-row`: the value is of another kind.
    """
    value, (reading, right) = values.get(name), READS.get(name, (_text, "a text"))
    if value is None or value == "":
        return default
    try:
        return reading(value)
    except (ValueError, TypeError, KeyError, OverflowError):
        problem = f"{source}: {name!r} is {str(value)[:80]!r}, not {right}"
        raise DataError("bad-row", problem, hint="correct it, or leave it out where it is not known") from None


def _interaction(values: Mapping[str, Any], as_read: Mapping[str, Any], task: Task, source: str) -> Interaction:
    tools = ["tools"] if "tools" in as_read else []
    inputs, actual = {name: values["inputs"][name] for name in [*task.inputs, *tools]}, _answer(values["actual"])
    # What was held out where it was captured stays held out here.
    held_out = _stored(values, "split", None, source) == "test"
    defaults: dict[str, Any] = {
        "at": datetime.now(UTC), "confidence": None, "key": None,
        "id": f"import-{hash_of([task.name, inputs, actual], 32)}", "artifact": "", "model": "", "system": "",
        "template": "", "template_version": "", "prompt_sha256": "", "prompt_tokens": 0, "completion_tokens": 0,
        "seconds": 0.0, "finish": "stop", "input_id": example_id(as_read), "trial": "", "missed": False,
    }  # fmt: skip
    return Interaction(
        task=task.name, inputs=inputs, actual=actual,
        split="test" if held_out else SplitRule.of(task).side(as_read),
        **{name: _stored(values, name, default, source) for name, default in defaults.items()},
    )  # fmt: skip
