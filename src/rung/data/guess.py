"""Guess a task from a table or a folder for `rung init`: the answer, its kind, and the inputs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from math import ceil, isclose
from pathlib import Path
from typing import Any, cast, get_args

from rung.data.cells import plain, text_of
from rung.data.chat import ROLES, is_chat
from rung.data.columns import (
    CHOICES,
    HEAD,
    LABEL_NAMES,
    OTHER_ANSWERS,
    PROMPT_NAMES,
    TEXT_NAMES,
    Column,
    Holds,
    Table,
    as_number,
    inferred_schema,
    is_empty,
    look_at,
    name_parts,
    splits_beside,
)
from rung.data.examples import answer_cell, read_row
from rung.data.kinds import OutputKind
from rung.data.preferences import CHOSEN, RATINGS, REJECTED, VERDICTS, refuse_comparisons
from rung.data.quality import determines
from rung.data.sources import READERS, FileFormat, detected, is_hub, kind_of, read_rows
from rung.errors import ConfigError, DataError, suggest
from rung.yamlfile import json_value

ABOUT = re.compile(r"(^|[\W_])(readme|licen[cs]e|changelog|citation|notice)(?![a-z])", re.IGNORECASE)  # files on data
DOCUMENTS = (  # read as a corpus
    ".txt", ".text", ".md", ".markdown", ".html", ".htm", ".xhtml", ".pdf", ".docx", ".docm", ".pptx", ".pptm", ".epub",
    ".eml",
)  # fmt: skip
KINDS: tuple[OutputKind, ...] = get_args(OutputKind)
DEFAULT_TOKENS = 256  # the longest answer of a task that names no `max_tokens`


@dataclass(frozen=True, slots=True)
class Guess:
    """A task's columns and kind, and why.

    Attributes:
        name: the task's name.
        kind: of its answers.
        inputs: the columns that the model reads.
        output: the keys of the task file's `output` besides `kind`.
        reason: why the answer is this one.
        data: the training file; None for a folder of documents without questions.
        splits: the files for `validation` and `test` beside it.
        corpus: the folder of documents.
        others: columns that could be the answer instead, with what they hold.
        left_out: columns that are neither inputs nor answers, with the reason.
        notes: what else a person should know.
        schema: of records, inferred from all rows.
        instruction: what to do, if the rows say it; empty for a question of the kind.
        how: how the files are written, as far as it was given.
        format: what is unusual about how the training file is written.
        duplicates: whether inputs are in two of the files.
        preferences: the columns of `data.preferences` that the training file also has; None if it has none.
    """

    name: str
    kind: OutputKind
    inputs: tuple[str, ...]
    output: Mapping[str, Any]
    reason: str
    data: Path | None = None
    splits: Mapping[str, Path] = field(default_factory=dict)
    corpus: Path | None = None
    others: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    schema: Mapping[str, Any] | None = None
    instruction: str = ""
    how: FileFormat = FileFormat()  # noqa: RUF009  frozen
    format: str = ""
    duplicates: bool = False
    preferences: Mapping[str, Any] | None = None

    @property
    def schema_file(self) -> str:
        """The file for the inferred schema."""
        return f"{self.name}.answer.schema.json"


def guess_task(
    file: Path,
    output: str | None = None,
    kind: OutputKind | None = None,
    inputs: Sequence[str] | None = None,
    how: FileFormat | None = None,
) -> Guess:
    """Guess from a sample of rows; what is given is taken.

    Args:
        file: a table, or a folder with a training table or with documents.
        output: the column of the answer, or with commas the columns of labels or of the fields of a record.
        kind: the kind of the answer.
        inputs: the columns that the model reads.
        how: how the files are written; default: recognized.

    Raises:
        DataError: the file cannot be read, has no rows, no column for an answer, or not these columns.
        ConfigError: the kind does not suit.
    """
    if file.is_dir():
        chosen = _table_in(file)
        return (
            _documents(file, how or FileFormat()) if chosen is None else guess_task(chosen, output, kind, inputs, how)
        )
    how = how or FileFormat()
    table = Table(file, how)
    for name in [*(output.split(",") if output and output not in table.columns else [output]), *(inputs or ())]:
        if name and name not in table.columns and all(is_empty(cell) for cell in table.cells(name)):
            raise DataError("missing-column", f"{file} has no column {name!r}", hint=suggest(name, list(table.columns)))
    guess = _guess(table, output, kind, inputs)
    guess = replace(guess, name=_name(file), data=file, how=how)
    written = "" if is_hub(file) else detected(file, how).describe()
    guess = replace(guess, format=written, **_beside(file, guess))
    if guess.kind == "json":
        guess = replace(guess, schema=_schema(guess))
    return replace(guess, output={**guess.output, **_longest(guess)})


def _name(path: Path) -> str:
    name = path.resolve().name if path.is_dir() else name_parts(path)[0]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "task"


def _guess(table: Table, output: str | None, kind: OutputKind | None, inputs: Sequence[str] | None) -> Guess:
    """Guess the parts that the columns decide."""
    special = None
    if output is None and kind in (None, "text", "chat"):
        special = _pairs(table) or (_conversation(table) if kind in (None, "chat") else None)
    if special is not None:
        kept = {*special.inputs, *(special.preferences or {}).values(), special.output.get("column")}
        left_out = {name: str(column) for name, column in table.columns.items() if name not in kept}
        left_out = {name: why for name, why in left_out.items() if name not in ("tools", "functions", "system")}
        guess = replace(special, left_out=left_out)
        return guess if inputs is None else replace(guess, inputs=tuple(inputs))
    if kind == "chat":
        hint = 'a conversation is a list such as [{"role": "user", "content": "..."}], or ShareGPT\'s'
        raise ConfigError("bad-option", f"--kind chat: no column of {table.file} holds conversations", hint=hint)
    answer, keys = _answer(table, output)
    chosen = kind or _kind(answer)
    _check_kind(table, answer, chosen)
    if chosen == "multilabel" and answer.separator and answer.separator != ";":
        keys["separator"] = answer.separator
    if chosen == "number":
        keys |= {
            name: value for name, value in (("unit", answer.unit), ("decimal", answer.decimal.strip("."))) if value
        }
    own = set(keys.get("columns", ()))
    read, left_out = _inputs(table, answer, own) if inputs is None else (list(inputs), {})
    notes = [
        f"{name!r} says the answer in every row: leave it out with --inputs, unless it is known when the task is done"
        for name in read if _determines(table, name, answer.name)
    ]  # fmt: skip
    notes += [f"{name!r} {table.columns[name].problem}: `rung check` names all such rows"
              for name in (*read, answer.name) if name in table.columns and table.columns[name].problem]  # fmt: skip
    others = {
        name: str(column) for name, column in table.columns.items()
        if column.holds in ("category", "multilabel", "json", "text", "numbers") and name not in {answer.name, *own}
        and not (column.holds == "text" and name in read and len(read) == 1)
    }  # fmt: skip
    if len(flags := _flags(table)) >= 3 and not own:
        shown = ",".join(flags)
        notes.append(f"{', '.join(flags)} say yes or no: if each is a label, add `--output {shown}`")
    if chosen == "category" and any(text_of(cell).strip() == answer.name for cell in table.cells(answer.name)):
        notes.append(f"{answer.name!r} is the column's name and one of its values: is the first line really a header?")
    verdict, instruction, preferences = _verdict(table, answer, chosen, read), "", None
    keys |= verdict
    if constant := table.named(("instruction", "prompt"), "constant"):
        instruction = next(text_of(cell) for cell in table.cells(constant) if not is_empty(cell))
        left_out[constant] = "the same in all rows: it is the task's instruction"
    if own:
        names, what = keys["columns"], "say 0 or 1" if chosen == "multilabel" else "make one record of a row"
        reason = f"{', '.join(map(repr, names)) if len(names) < 4 else f'{len(names)} columns'} {what}"
    else:
        reason = f"{answer.name!r} holds {_held(answer)}"
    if verdict:
        good = f"is at least {verdict['approved_from']}" if "approved_from" in verdict else "is true"
        notes.append(f"only rows whose {verdict['approved']!r} {good} are learned; `data.preferences` keeps the others")
        rated = {"rating": verdict["approved"], "good_from": verdict.get("approved_from")}
        preferences = {
            "answer": answer.name,
            **(rated if "approved_from" in verdict else {"good": verdict["approved"]}),
        }
    numbers = [as_number(cell, answer.decimal or ".", answer.unit) for cell in table.cells(answer.name)]
    if chosen == "number" and any(number is not None and not isclose(round(number, 9), number) for number in numbers):
        notes.append(f"{answer.name!r} has numbers of more than nine decimals, which `rung check` refuses: round them")
    if chosen == "number" and not answer.decimal:
        cell = next(cell for cell in map(text_of, table.cells(answer.name)) if "." in cell or "," in cell)
        notes.append(f"{cell} is read with the decimal mark `.`; if that is wrong, add `decimal: ','` to the output")
    if chosen == "json" and _counts_characters(table.cells(answer.name)):
        notes.append("models count characters badly: records with the quoted text are learned better than positions")
    if chosen in ("text", "category") and (
        empty := sum(cell == [] or is_empty(cell) for cell in table.cells(answer.name))
    ):
        notes.append(f"rows without an answer are left out: {empty:,} of {len(table.rows):,} rows looked at")
    order = sorted(others, key=lambda name: (table.columns[name].holds == "text", table.columns[name].holds == "json"))
    left_out = {name: why for name, why in left_out.items() if name not in verdict.values()}
    return Guess(
        "", chosen, tuple(read), keys, reason, others={name: others[name] for name in order}, left_out=left_out,
        notes=tuple(notes), instruction=instruction, preferences=preferences,
    )  # fmt: skip


def _held(column: Column) -> str:
    return {
        "category": f"{column.values} short values that repeat", "text": "free text", "json": "records",
        "multilabel": f"several of {column.values} labels in a cell", "numbers": "numbers",
    }.get(column.holds, str(column))  # fmt: skip


# ---- the answer


def _answer(table: Table, output: str | None) -> tuple[Column, dict[str, Any]]:
    """Choose the answer's column, and the keys that name it."""
    columns = table.columns
    if output is not None and output not in columns and "," in output:
        names = output.split(",")
        holds: Holds = "multilabel" if set(names) <= set(_flags(table)) else "json"
        return Column(output, holds, len(names)), {"columns": names}
    if output is not None:
        return columns.get(output) or look_at(output, table.cells(output)), {"column": output}
    if (name := table.named(("answers", "answer"), "json")) and f"{name}.text" in (inside := table.inside()):
        return replace(inside[f"{name}.text"], holds="text"), {"column": f"{name}.text"}  # SQuAD's {"text": [...]}
    if (name := table.named(("annotations",), "json")) and '"result"' in text_of(table.cells(name)[0]):
        hint = "export it as JSON-MIN or CSV in Label Studio (Export), which has a column for each label"
        raise DataError("bad-row", f"{table.file} is a full export of Label Studio, with nested results", hint=hint)
    usable = ("category", "multilabel", "json", "text", "numbers")
    asked = table.named(PROMPT_NAMES[:6])
    written = table.named(TEXT_NAMES, *usable)
    label = next((n for n in (table.named(LABEL_NAMES, *usable), _ending(table, LABEL_NAMES, usable)) if n), None)
    flags = _flags(table)
    if written and asked and written != asked:
        name = written
    elif label or written:
        name = label or written
    elif len(flags) >= 3 and any(column.holds == "text" for column in columns.values()):
        return Column(",".join(flags), "multilabel", len(flags)), {"columns": flags}
    elif len(fields := table.quoted()) >= 2:
        return Column(",".join(fields), "json", len(fields)), {"columns": fields}
    elif found := table.label_inside():
        return found, {"column": found.name}
    else:
        labels = [n for n, column in columns.items() if column.holds in ("category", "multilabel", "json")]
        texts = [n for n, column in columns.items() if column.holds in ("text", "numbers")]
        if asked and texts and texts[-1] != asked:
            labels = []
        possible = labels or (texts if len(texts) > 1 else [])
        last = columns[[*columns][-1]]
        if last.holds == "numbers" and not any(column.holds == "text" for column in columns.values()):
            possible = [last.name]  # a table of numbers, the last of which is wanted
        name = possible[-1] if possible else None
    if name is None:
        held = ", ".join(f"{column.name} ({column})" for column in columns.values())
        more = "" if len(columns) == 1 else " that could be the answer"
        problem = f"{table.file} has no column{more}: it has {held}"
        if len(columns) == 1:
            problem = f"{table.file} has only the column {held}, and a task needs an input and an expected answer"
        hint = "add a column with answers, or name it: --output COLUMN; `rung cluster` groups texts without answers"
        raise DataError("missing-column", problem, hint=hint)
    return columns[name], {"column": name}


def _ending(table: Table, names: Sequence[str], usable: Sequence[str]) -> str | None:
    """The last column whose name ends in a usual one: `ticket_queue`, `goldLabel`."""
    words = {column.name: re.split(r"[\W_]+|(?<=[a-z])(?=[A-Z])", column.name) for column in table.columns.values()}
    found = [n for n, parts in words.items() if parts[-1].lower() in names and table.columns[n].holds in usable]
    return found[-1] if found else None


def _flags(table: Table) -> list[str]:
    """The columns that say yes or no in every row, and not always the same."""
    return [
        c.name
        for c in table.columns.values()
        if c.flags and c.holds != "constant" and c.name.lower() not in LABEL_NAMES
    ]


def _kind(column: Column) -> OutputKind:
    """The kind of answers that a column holds."""
    if column.holds == "numbers":
        return "number"
    if column.holds in ("category", "multilabel", "json"):
        return cast("OutputKind", column.holds)
    named = column.name.lower() in LABEL_NAMES
    return "category" if named and column.longest <= 80 and column.holds == "constant" else "text"


def _check_kind(table: Table, answer: Column, kind: OutputKind) -> None:
    for name in table.columns if kind == "multilabel" else ():
        pairs = list(zip(table.cells(name), table.cells(answer.name), strict=True)) if name != answer.name else []
        lists = [(a, b) for a, b in pairs if isinstance(a, list) and isinstance(b, list)]
        repeated = any(len(set(map(text_of, tags))) < len(tags) for _, tags in lists)
        if repeated and len(lists) == len(pairs) and all(len(words) == len(tags) for words, tags in lists):
            problem = f"{table.file}: {answer.name!r} has a tag for each of the {name!r}, which no kind answers with"
            hint = 'write what is tagged as records, for kind json: [{"text": "Ann", "type": "PER"}]'
            raise DataError("bad-row", problem, hint=hint)
    if kind == "json" and answer.holds != "json":
        hint = 'kind json needs JSON in every cell, such as {"total": 12.5}'
        raise ConfigError("bad-option", f"--kind json: {answer.name!r} of {table.file} holds {answer}", hint=hint)
    if kind in ("text", "category") and answer.holds == "json":
        hint = "use --kind json: such a cell is no text and no label"
        raise ConfigError("bad-option", f"--kind {kind}: {answer.name!r} of {table.file} holds records", hint=hint)


def _verdict(table: Table, answer: Column, kind: OutputKind, read: Sequence[str]) -> dict[str, Any]:
    """The keys for a column that says whether the answer of a prompt is good: true or false, or a rating."""
    asked = [name for name in read if name.lower() in PROMPT_NAMES[:5]]
    if kind != "text" or not asked or answer.name.lower() not in (*TEXT_NAMES, *CHOSEN):
        return {}
    verdict, rating = table.named(VERDICTS), table.named(RATINGS, "category", "numbers")
    if verdict and table.columns[verdict].flags and verdict != answer.name:
        return {"approved": verdict}
    numbers = [] if rating is None else [float(cell) for cell in table.cells(rating) if _number(cell)]
    if not numbers:
        return {}
    least = max(numbers) - (max(numbers) - min(numbers)) / 4
    lowest = min(number for number in numbers if number >= least)
    return {"approved": rating, "approved_from": int(lowest) if lowest == int(lowest) else lowest}


def _number(cell: Any) -> bool:
    try:
        return float(cell) == float(cell)
    except (TypeError, ValueError):
        return False


def _counts_characters(cells: Sequence[Any]) -> bool:
    """Whether records name positions in the text: `start` and `end`, or lists of them, without the quoted text."""
    first = next((cell for cell in cells if cell), None)
    item = first[0] if isinstance(first, list) else None
    if isinstance(item, dict):
        return {"start", "end"} <= item.keys() and "text" not in item
    return isinstance(item, list) and len(item) > 1 and all(isinstance(part, int) for part in item[:2])


def _conversation(table: Table) -> Guess | None:
    """A column of conversations; where they wait for an answer, it is in another column."""
    chats = [name for name, column in table.columns.items() if column.holds == "chat"]
    if not chats:
        return None
    reason = f"{chats[0]!r} holds conversations"
    roles = [_last_role(cell) for cell in table.cells(chats[0]) if not is_empty(cell)]
    answer = chats[1] if len(chats) > 1 else table.named(TEXT_NAMES, "text", "category", "numbers", "ids")
    keys: dict[str, Any] = {}
    if roles.count("assistant") < len(roles) / 2 and answer is not None:
        keys, reason = {"column": answer}, f"{reason}, and {answer!r} their answers"
    verdict = table.named(VERDICTS)
    if verdict is None or not table.columns[verdict].flags or verdict == answer:
        return Guess("", "chat", (chats[0],), keys, reason)
    notes = (f"only conversations whose {verdict!r} is true are learned; `data.preferences` keeps the others",)
    judged = {**({"answer": answer} if keys else {}), "good": verdict}
    return Guess("", "chat", (chats[0],), {**keys, "approved": verdict}, reason, notes=notes, preferences=judged)


def _last_role(cell: Any) -> str:
    turn = _turns(cell)[-1]
    role = turn.get("role", turn.get("from")) if isinstance(turn, Mapping) else "assistant"
    return ROLES.get(str(role).lower(), "")


def _pairs(table: Table) -> Guess | None:
    """Preference pairs: the chosen answer is the one to learn, the rejected one is kept beside it."""
    held = [name for name, column in table.columns.items() if column.holds != "nothing"]
    chosen, rejected = table.named(CHOSEN), table.named(REJECTED)
    if chosen not in held or rejected not in held:
        cells = {name: [text_of(cell) for cell in table.cells(name) if not is_empty(cell)] for name in held}
        refuse_comparisons(table.file, cells)
        return None
    named = [table.named((name,)) for name in PROMPT_NAMES]
    asked = [name for name in named if name in held and table.columns[name].holds != "constant"]
    reason = f"{chosen!r} and {rejected!r} are preference pairs: the chosen answer is expected"
    notes = (f"the task learns {chosen!r}; {rejected!r} is kept in `data.preferences`, for preference training",)
    keys = {"chosen": chosen, "rejected": rejected}
    if table.columns[chosen].holds == "chat":
        whole = all(len(_turns(cell)) > 1 for cell in table.cells(chosen) if not is_empty(cell))
        if whole:
            return Guess("", "chat", (chosen,), {}, reason, notes=notes, preferences=keys)
        if asked and table.columns[asked[0]].holds == "chat":
            return Guess("", "chat", (asked[0],), {"column": chosen}, reason, notes=notes, preferences=keys)
        hint = f"write the whole conversation into {chosen!r} and {rejected!r}, from the first turn to the answer"
        raise DataError("bad-row", f"{table.file}: {chosen!r} holds messages without the prompt", hint=hint)
    if not asked:
        hint = f"name the columns that the model reads: --output {chosen} --inputs COLUMN"
        raise DataError("missing-column", f"{table.file} has preference pairs, but no prompt", hint=hint)
    return Guess("", "text", tuple(asked), {"column": chosen}, reason, notes=notes, preferences=keys)


def _turns(cell: Any) -> list[Any]:
    if isinstance(cell, str):
        try:
            cell = json_value(cell)
        except ValueError:
            return [cell, cell] if is_chat(cell) else [cell]  # a text with `Human:` and `Assistant:`
    if isinstance(cell, Mapping):
        cell = cell.get("messages") or cell.get("conversations") or [cell]
    return cell if isinstance(cell, list) and cell else [cell]


# ---- the inputs


def _inputs(table: Table, answer: Column, own: set[str]) -> tuple[list[str], dict[str, str]]:
    """Choose the columns that the model reads; say why others are left out."""
    taken = {answer.name, answer.name.partition(".")[0], *own}
    others = {name: column for name, column in table.columns.items() if name not in taken}
    chosen = [
        name for name, column in others.items()
        if column.holds == "text" or (name.lower() in PROMPT_NAMES[:7] and column.holds in ("category", "numbers"))
    ]  # fmt: skip
    given = {text_of(cell).strip() for cell in table.cells(answer.name) if not is_empty(cell)}
    named = given if len(given) > 1 and given <= others.keys() else set()  # the columns A, B, C of the answers A, B, C
    lists = {name for name in others if name.lower() in CHOICES and others[name].holds == "multilabel"}
    chosen += [name for name in others if name in named | lists and name not in chosen]
    answers = [name for name in chosen if name.lower() in OTHER_ANSWERS]
    chosen = [name for name in chosen if name not in answers] or chosen
    repeats = [name for name in chosen if _ends_with(table, name, answer.name)] if len(chosen) > 1 else []
    chosen = [name for name in chosen if name not in repeats]
    if not chosen:
        chosen = [
            name
            for name, column in table.inside().items()
            if column.holds == "text" and name.partition(".")[0] not in taken
        ]
    if not chosen:
        usable = ("category", "multilabel", "numbers", "json", "chat")
        chosen = [name for name, column in others.items() if column.holds in usable]
    if not chosen:  # single words
        chosen = [name for name, c in others.items() if c.holds == "ids" and any(map(_has_letter, table.cells(name)))][
            :1
        ]
    if not chosen:
        held = ", ".join(f"{name} ({column})" for name, column in others.items()) or "no other column"
        hint = "name the columns that the model reads: --inputs COLUMN,COLUMN"
        if len(inside := [name for name in table.inside() if name.startswith(f"{answer.name}.")]) > 1:
            hint = f"both may be in it: --inputs {inside[0]} --output {inside[1]}"
        raise DataError("missing-column", f"{table.file} has no input for {answer.name!r}: {held}", hint=hint)
    left_out = {name: str(column) for name, column in others.items() if name not in chosen}
    left_out |= dict.fromkeys(repeats, "contains the answer")
    left_out = {name: why for name, why in left_out.items() if not any(c.startswith(f"{name}.") for c in chosen)}
    return chosen, left_out


def _has_letter(cell: Any) -> bool:
    return isinstance(cell, str) and any(letter.isalpha() for letter in cell)


def _ends_with(table: Table, name: str, answer: str) -> bool:
    """Whether the text of a column ends with the answer, as whole training texts beside their parts do."""
    pairs = [(text_of(a).strip(), text_of(b).strip())
             for a, b in zip(table.cells(name), table.cells(answer), strict=True) if not is_empty(b)]  # fmt: skip
    long = [(text, end) for text, end in pairs if len(end) > 12]
    return bool(long) and sum(text.endswith(end) and len(text) > len(end) for text, end in long) >= 0.9 * len(long)


def _determines(table: Table, name: str, answer: str) -> bool:
    """Whether the values of a column repeat, and each has one answer only."""
    both = zip(table.cells(name), table.cells(answer), strict=True)
    pairs = [(text_of(cell), text_of(own)) for cell, own in both if not is_empty(cell) and not is_empty(own)]
    return determines([value for value, _ in pairs], [own for _, own in pairs], repeated=2)


# ---- files beside the table, all rows, folders


def _beside(file: Path, guess: Guess) -> dict[str, Any]:
    """Find files or splits for validation and test beside a training file, with the task's columns in them."""
    found, notes = dict[str, Path](), list(guess.notes)
    needed = [*guess.inputs, *(v for k, v in guess.output.items() if k in ("column", "approved"))]
    for split, path in splits_beside(file):
        if split in found:
            continue
        cells = [record.values for record in islice(read_rows(path, guess.how), HEAD)]
        missing = [column for column in needed if column.partition(".")[0] not in (cells[0] if cells else {})]
        answer = str(guess.output.get("column", "")).partition(".")[0]
        if missing:
            notes.append(f"{path.name} beside it is not used: it has no column {missing[0]!r}")
        elif answer and all(is_empty(row.get(answer)) for row in cells):
            notes.append(f"{path.name} beside it is not used: its {answer!r} is empty")
        else:
            found[split] = path
    twice = _in_two_files([file, *found.values()], guess) if found else 0
    if twice:
        notes.append(
            f"{twice:,} inputs are in two of the files: `duplicates: drop` leaves them out of the training side"
        )
    return {"splits": found, "notes": tuple(notes), "duplicates": bool(twice)}


def _in_two_files(files: Sequence[Path], guess: Guess) -> int:
    """Count the rows whose input is in an earlier file, too."""
    seen: dict[str, int] = {}
    twice = 0
    for number, file in enumerate(files):
        for record in read_rows(file, guess.how):
            row = read_row(record.values, guess.inputs, guess.kind, record.source)
            twice += seen.setdefault(row.id, number) != number
    return twice


def _answers(guess: Guess) -> Iterator[Any]:
    """The answers of all rows of all files."""
    for file in [file for file in (guess.data, *guess.splits.values()) if file is not None]:
        for record in read_rows(file, guess.how):
            with suppress(DataError):  # `rung check` names the row
                yield plain(answer_cell(record, guess.kind, guess.output.get("column"), guess.output.get("columns")))


def _schema(guess: Guess) -> dict[str, Any]:
    """Infer the schema of the records in all rows."""
    values = []
    for cell in _answers(guess):
        value = cell
        if isinstance(cell, str) and cell.strip():
            try:
                value = json_value(cell)
            except ValueError:
                continue  # `rung check` names the row
        if not is_empty(value):
            values.append(value)
    return inferred_schema(values)


def _longest(guess: Guess) -> dict[str, int]:
    """The key `max_tokens`, if answers are longer than the default; a token has about three bytes."""
    if guess.kind not in ("text", "json"):
        return {}
    longest = max((len(text_of(cell).encode()) for cell in _answers(guess)), default=0)
    return {"max_tokens": 64 * ceil(longest / 2.5 / 64)} if longest / 2.5 > DEFAULT_TOKENS else {}


def _table_in(folder: Path) -> Path | None:
    """The training table of a folder; None for a folder of documents."""
    schemas = set(folder.glob("*.schema.json"))  # what an earlier `rung init` wrote
    tables = sorted(path for path in {*folder.iterdir()} - schemas if kind_of(path) in READERS and path.is_file())
    train = [path for path in tables if name_parts(path)[0].lower() in ("train", "training")]
    if train:
        return train[0]
    documents = list(documents_in(folder))
    if any(ABOUT.search(path.name) is None for path in documents) or (documents and not tables):
        return None
    if len(tables) == 1:
        return tables[0]
    if not tables:
        kinds = ", ".join((*READERS, *DOCUMENTS))
        raise DataError("unreadable-file", f"{folder} has no tables and no documents", hint=f"it may hold {kinds}")
    names = ", ".join(path.name for path in tables)
    raise DataError("unreadable-file", f"{folder} has several tables: {names}", hint=f"name one: rung init {tables[0]}")


def documents_in(folder: Path) -> Iterator[Path]:
    """The documents of a folder and its subfolders."""
    return (path for path in folder.rglob("*") if path.suffix.lower() in DOCUMENTS and path.is_file())


def documents_guess(folder: Path) -> Guess:
    """A task that answers questions from the documents of a folder, without rows."""
    count = sum(1 for _ in documents_in(folder))
    documents = "1 document" if count == 1 else f"{count:,} documents"
    return Guess(
        _name(folder), "text", ("question",), {"column": "answer"}, f"{folder} holds {documents}",
        corpus=folder, instruction="Answer the question from the documents.",
    )  # fmt: skip


def _documents(folder: Path, how: FileFormat) -> Guess:
    """A task that answers questions from the documents of a folder; a table with questions in it has the rows."""
    guess = documents_guess(folder)
    for path in sorted(folder.iterdir()):
        if kind_of(path) in READERS and path.is_file():
            table = Table(path, how)
            asked, answer = table.named(("question", "prompt", "query", "input")), table.named(TEXT_NAMES[:5])
            if asked and answer:
                return replace(guess, data=path, inputs=(asked,), output={"column": answer}, how=how)
    notes = (
        "there are no questions with answers yet, so nothing can be measured; to measure, write a table with the "
        "columns question and answer, and name it in `data: {train: questions.csv}`",
    )
    return replace(guess, notes=notes)
