"""A sample of a table; what its columns hold (labels, texts, records, ids, ...); and the JSON Schema of records."""

from __future__ import annotations

import datetime
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import islice, pairwise
from pathlib import Path
from random import Random
from typing import Any, Literal

from rung.data.cells import CellError, missing, text_of
from rung.data.chat import is_chat
from rung.data.examples import cell_labels
from rung.data.examples import column as read_column
from rung.data.frames import hub_splits
from rung.data.rows import Record
from rung.data.sources import COMPRESSED, FileFormat, is_hub, kind_of, read_rows
from rung.data.sources import SEPARATORS as SEPARATED
from rung.data.texts import DecimalMark, read_number
from rung.errors import DataError
from rung.yamlfile import json_value

Holds = Literal[
    "nothing", "unreadable", "mixed", "constant", "ids", "dates", "numbers", "category", "multilabel", "json", "chat",
    "text",
]  # fmt: skip
MOST = 0.9  # share of the filled cells that decides what a column holds, so that an odd cell changes nothing
MOST_LABELS = 500
LONGEST_LABEL = 80  # characters
FEW_NUMBERS = 20  # a column of at most as many different whole numbers holds labels
SEPARATORS = (";", "|", ",")
FLAGS = frozenset({"0", "1", "0.0", "1.0", "true", "false"})
_DATE = re.compile(
    r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}([T ]\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?( ?(Z|[+-]\d{2}:?\d{2}))?)?"
    r"|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}([T ]\d{1,2}:\d{2}(:\d{2})?)?"
)
_WITH_UNIT = re.compile(  # currencies, percent and units of up to three letters
    r"([A-Z]{3}\s|[$€£¥₹₽₩₺₫₪]\s?)?[-+−]?[\d.,' ]*\d(\s?(?:[^\W\d_]{1,3}|[$€£¥₹₽₩₺₫₪%°]+[A-Z]?))?"
)
_ID_NAME = re.compile(r"(^|[_\W])(id|ids|uuid|guid|uid|index|idx|key|row|rowid|hash)$|^(unnamed.*|)$|[a-z]I[dD]$")

# Usual names of columns, the most usual first.
LABEL_NAMES = (
    "label", "labels", "class", "category", "categories", "intent", "sentiment", "target", "queue", "tag", "tags",
    "topic", "topics", "genre", "genres", "team", "department", "emotion", "stance", "verdict", "type", "gold",
    "label_text", "classes", "y", "kategorie", "klasse", "etiqueta", "categoria", "catégorie",
)  # fmt: skip
TEXT_NAMES = (
    "answer", "answers", "response", "completion", "output", "outputs", "summary", "highlights", "sql", "translation",
    "reply", "solution", "record", "fields", "entities", "spans", "annotations", "antwort", "respuesta", "réponse",
)  # fmt: skip
PROMPT_NAMES = (
    "instruction", "prompt", "question", "input", "query", "context", "text", "document", "article", "source",
    "passage", "sentence", "message", "frage", "pregunta", "system",
)  # fmt: skip
OTHER_ANSWERS = (*TEXT_NAMES[:10], "target", "reference", "gold", "rejected", "explanation", "rationale")
CHOICES = ("choices", "options", "candidates")  # lists, of which the answer is one


@dataclass(frozen=True, slots=True)
class Column:
    """What a column holds.

    Attributes:
        name: its name; dots reach into records.
        holds: what most of its filled cells are.
        values: how many different values it has: labels, for several labels in a cell.
        empty: how many cells are empty.
        longest: characters of the longest cell.
        separator: between labels in a cell, if it is a text with several.
        flags: whether every cell says yes or no.
        unit: of numbers, such as EUR, if cells have one.
        decimal: the decimal mark of numbers in text; empty if every one is a number with either, and not the same one.
        problem: what the first cell that is no text holds, such as bytes or an error of Excel; empty if there is none.
    """

    name: str
    holds: Holds
    values: int = 0
    empty: int = 0
    longest: int = 0
    separator: str | None = None
    flags: bool = False
    unit: str = ""
    decimal: Literal[".", ",", ""] = "."
    problem: str = ""

    def __str__(self) -> str:
        shown = {
            "category": f"{self.values} values", "multilabel": f"several of {self.values} labels", "json": "records",
            "numbers": "numbers", "text": "text", "chat": "conversations", "ids": "ids", "dates": "dates",
            "constant": "one value only", "nothing": "empty", "unreadable": self.problem,
            "mixed": "values of several kinds",
        }  # fmt: skip
        return shown[self.holds]


def look_at(name: str, cells: Sequence[Any]) -> Column:
    """Find out what a column holds from its cells."""
    filled = [cell for cell in cells if not is_empty(cell)]
    empty = len(cells) - len(filled)
    if not filled:
        return Column(name, "nothing", empty=empty)
    try:
        texts = [text_of(cell).strip() for cell in filled]
    except CellError as error:
        good = [cell for cell in filled if is_text(cell)]
        if len(good) < MOST * len(filled):
            return Column(name, "unreadable", empty=empty, problem=str(error))
        return replace(look_at(name, [*good, *[None] * empty]), problem=str(error))
    longest, values = max(map(len, texts)), len(set(texts))
    flags = {text.lower() for text in texts} <= FLAGS

    def column(holds: Holds, values: int = values, separator: str | None = None) -> Column:
        return Column(name, holds, values, empty, longest, separator, flags)

    if _share(is_chat(cell) for cell in filled) >= MOST:
        return column("chat")
    structure = [_structure(cell) for cell in filled]
    if _share(kind == "records" for kind in structure) >= MOST:
        return column("json")
    if _share(kind != "" for kind in structure) > 0.5:  # lists, with texts between them at most
        return _lists(column, filled)
    if _share(kind != "" for kind in structure) > 1 - MOST:
        return column("mixed")
    if values == 1 and len(filled) > 1:
        return column("constant")
    if _share(_is_date(cell) for cell in filled) >= MOST:
        return column("dates")
    unit = _unit(filled)
    decimal = _decimal(filled, unit)
    numbers = [number for cell in filled if (number := as_number(cell, decimal or ".", unit)) is not None]
    if len(numbers) >= MOST * len(filled):
        if _ID_NAME.search(name) and values > len(filled) / 2:
            return column("ids")
        few = values <= min(FEW_NUMBERS, len(filled) / 2) and all(number == int(number) for number in numbers)
        counted = values == len(filled) > 2 and all(a == int(a) and b - a == 1 for a, b in pairwise(numbers[:1000]))
        holds: Holds = "ids" if counted else "category" if few else "numbers"
        return replace(column(holds), unit=unit, decimal=decimal) if holds == "numbers" else column(holds)
    words = _share(any(letter.isspace() for letter in text) for text in texts)
    if _ID_NAME.search(name) and words < 0.1:
        return column("ids")
    for separator in SEPARATORS:
        if (labels := separated(texts, separator)) is not None:
            return column("multilabel", labels, separator)
    if are_labels(texts):
        return column("category")
    wide = any(ord(letter) > 0x2E7F for letter in "".join(texts[:50]))  # scripts that put no space between words
    unspaced = words < 0.1 and longest <= LONGEST_LABEL and not wide
    return column("ids" if unspaced and values == len(filled) > 2 else "text")


def _lists(column: Any, filled: Sequence[Any]) -> Column:
    """A column of lists: several labels a row if they repeat, else sentences or answers."""
    alone = [cell for cell in filled if isinstance(cell, str) and not _structure(cell)]
    separator = next((mark for mark in SEPARATORS if any(mark in cell for cell in alone)), None)
    read = [cell_labels(cell, separator or SEPARATORS[0]) for cell in filled]
    labels = [label for each in read for label in each or ()]
    if labels and sum(each is None for each in read) == 0 and are_labels(labels):
        result: Column = column("multilabel", len(set(labels)), separator)
        return result
    lists = (cell for cell in filled if not isinstance(cell, str))
    texts = all(isinstance(each, list) and all(isinstance(item, str) for item in each) for each in lists)
    other: Column = column("text" if texts else "json")
    return other


def separated(texts: Sequence[str], separator: str) -> int | None:
    """Count the labels of cells with several, if that is what the cells are; else None.

    Parts of the cells with a separator must occur again in other cells, and there must not be more labels than cells:
    `Paris, France` and `Lyon, France` are two labels of three parts.
    """
    cells = {text: {part.strip() for part in text.split(separator) if part.strip()} for text in texts}
    several = {text: parts for text, parts in cells.items() if len(parts) > 1}
    counts = Counter(part for parts in cells.values() for part in parts)
    if not several or max(map(len, counts)) > LONGEST_LABEL / 2 or len(counts) > len(cells):
        return None
    repeated = sum(any(counts[part] > 1 for part in parts) for parts in several.values())
    occurring = sum(len(cells[text]) for text in texts)
    return len(counts) if repeated >= len(several) / 2 and len(counts) <= occurring / 2 else None


def are_labels(texts: Sequence[str]) -> bool:
    """Say whether texts are short and repeat."""
    few = len(set(texts)) <= min(MOST_LABELS, len(texts) / 2)
    return (
        few
        and _share(len(text) <= LONGEST_LABEL for text in texts) >= MOST
        and _share(len(t) <= 300 for t in texts) == 1
    )


def is_empty(cell: Any) -> bool:
    """Say whether a cell has no value: null, NaN, or blank text."""
    return missing(cell) or (isinstance(cell, str) and not cell.strip())


def is_text(cell: Any) -> bool:
    """Say whether a cell has a text; bytes and errors of Excel have none."""
    try:
        text_of(cell)
    except CellError:
        return False
    return True


def as_number(cell: Any, decimal: DecimalMark = ".", unit: str = "") -> float | None:
    """Read a cell as a number, if it is one."""
    if isinstance(cell, bool):
        return None
    if isinstance(cell, (int, float, Decimal)):
        return float(cell)
    if not isinstance(cell, str) or "/" in cell:
        return None
    try:
        return read_number(cell, decimal, unit)
    except ValueError:
        return None


def _unit(cells: Sequence[Any]) -> str:
    """The unit or currency that stands before or after every number."""
    matches = [_WITH_UNIT.fullmatch(cell.strip()) for cell in cells if isinstance(cell, str)]
    found = {"".join(filter(None, match.groups())).strip() for match in matches if match}
    return found.pop() if len(found) == 1 else ""


def _decimal(cells: Sequence[Any], unit: str) -> Literal[".", ",", ""]:
    """The decimal mark of numbers in text; empty if `1.234` may be either."""
    read = [(as_number(cell, ".", unit), as_number(cell, ",", unit)) for cell in cells if isinstance(cell, str)]
    comma, point = (sum(each[side] is None and each[1 - side] is not None for each in read) for side in (0, 1))
    if comma or point:
        return "," if comma > point else "."
    return "" if any(a != b for a, b in read) else "."


def _share(values: Iterable[bool]) -> float:
    counted = list(values)
    return sum(counted) / len(counted)


def _is_date(cell: Any) -> bool:
    return isinstance(cell, datetime.date) or (isinstance(cell, str) and _DATE.fullmatch(cell.strip()) is not None)


def _structure(cell: Any) -> str:
    """Say whether a cell is a record or a list of them (`records`), or a list of values (`list`); else empty."""
    if isinstance(cell, str) and cell.lstrip()[:1] in ("[", "{"):
        try:
            cell = json_value(cell)
        except ValueError:
            return "list" if cell_labels(cell, ";") else ""
    if isinstance(cell, Mapping):
        return "list" if list(cell) == ["choices"] else "records"
    if not isinstance(cell, list):
        return ""
    return "records" if cell and all(isinstance(item, (dict, list)) for item in cell) else "list"


# ---- tables

HEAD, SAMPLE = 2000, 4000  # the first rows, and rows drawn from the others: files are often sorted by label


class Table:
    """A sample of a table, and what its columns hold."""

    def __init__(self, file: Path, how: FileFormat) -> None:
        self.file = file
        try:
            self.rows = _sampled(read_rows(file, how))
        except DataError as error:
            if "found list" in error.message:
                error.hint = 'write an object for each row, such as {"text": "...", "entities": [...]}'
            raise
        if not self.rows:
            problem = f"{file} has no rows, only a header"
            raise DataError("too-few-rows", problem, hint="add rows with inputs and expected answers")
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        if len(names) == 1 and kind_of(file) in SEPARATED and (mark := _mark(names[0], self.cells(names[0]))):
            problem = f"{file} has one column, {names[0]!r}: {mark!r} may separate its fields"
            raise DataError("bad-csv", problem, hint=f"name the separator: --separator '{mark}'")
        self.columns = {name: look_at(name, self.cells(name)) for name in names}
        for name, column in self.columns.items():
            for row in self.rows if column.problem else ():
                row[name] = cell if is_text(cell := row.get(name)) else None

    def cells(self, name: str) -> list[Any]:
        """The cells of a column; dots reach into records."""
        if name in self.rows[0] or "." not in name:
            return [row.get(name) for row in self.rows]
        cells = []
        for row in self.rows:
            try:
                cells.append(read_column(Record(row, ""), name))
            except DataError:
                cells.append(None)
        return cells

    def named(self, names: Sequence[str], *holding: str) -> str | None:
        """The column with the first of these usual names, whatever its case, that holds one of these."""
        for name in names:
            for column in self.columns.values():
                if column.name.lower() == name and (not holding or column.holds in holding):
                    return column.name
        return None

    def quoted(self) -> list[str]:
        """The columns whose cells stand word for word in the longest texts, in most rows: what an extraction writes."""
        texts = [name for name, column in self.columns.items() if column.holds == "text"]
        if not texts:
            return []
        longest = max(texts, key=lambda name: sum(len(str(cell)) for cell in self.cells(name)))
        fields = []
        for name, column in self.columns.items():
            both = zip(map(str, self.cells(name)), map(str, self.cells(longest)), self.cells(name), strict=True)
            held = [cell.strip() in text for cell, text, raw in both if not is_empty(raw)]
            if (
                name != longest
                and column.holds in ("text", "category", "numbers", "dates")
                and 2 * sum(held) > len(held)
            ):
                fields.append(name)
        return fields

    def inside(self) -> dict[str, Column]:
        """The fields of the columns that hold one record a row, by their dotted names."""
        fields: dict[str, Column] = {}
        for name, column in self.columns.items():
            first = next((cell for cell in self.cells(name) if not is_empty(cell)), None)
            if column.holds in ("json", "constant") and isinstance(first, dict):
                fields |= {f"{name}.{key}": look_at(f"{name}.{key}", self.cells(f"{name}.{key}")) for key in first}
        return fields

    def label_inside(self) -> Column | None:
        """The only field of a column of records, if it has the usual name of a label and holds labels."""
        inside = self.inside()
        beside = Counter(name.rpartition(".")[0] for name in inside)
        for name, column in inside.items():
            home, _, own = name.rpartition(".")
            if beside[home] == 1 and own.lower() in LABEL_NAMES and column.holds in ("category", "multilabel"):
                return column
        return None


def _mark(name: str, cells: Sequence[Any]) -> str:
    """A sign that parts the only name of a header, and every cell, into as many fields; empty if there is none."""
    for mark in dict.fromkeys(sign for sign in name if not sign.isalnum() and sign not in "\"'_-. ()"):
        if all(str(cell).count(mark) == name.count(mark) for cell in cells):
            return mark
    return ""


def _sampled(records: Iterator[Record]) -> list[dict[str, Any]]:
    """The first rows, and a random sample of the others in their order (Vitter's algorithm R)."""
    rows = [record.values for record in islice(records, HEAD)]
    drawn: list[tuple[int, dict[str, Any]]] = []
    rng = Random(0)
    for number, record in enumerate(records):
        if number < SAMPLE:
            drawn.append((number, record.values))
        elif (place := rng.randrange(number + 1)) < SAMPLE:
            drawn[place] = (number, record.values)
    return [*rows, *(values for _, values in sorted(drawn, key=lambda pair: pair[0]))]


def name_parts(path: Path) -> tuple[str, str]:
    """The name of a file, and its ending with that of its compression: `rows` and `.csv.gz`."""
    ending = "".join(path.suffixes[-2:]) if path.suffix.lower() in COMPRESSED else path.suffix
    return path.name.removesuffix(ending), ending


BESIDE = {"validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


def splits_beside(file: Path) -> Iterator[tuple[str, Path]]:
    """The files beside a training file, or the other splits of a data set of the Hub, that are named like a split."""
    if is_hub(file):
        name, _, own = str(file).partition("#")
        others = hub_splits(name) if "train" in (own or "train") else ()
        for split, names in BESIDE.items():
            yield from ((split, Path(f"{name}#{each}")) for each in names if each in others)
        return
    stem, ending = name_parts(file)
    for split, names in BESIDE.items():
        for name in names:
            stems = {name} | {stem.replace(word, name) for word in ("training", "train") if word in stem}
            beside = [file.with_name(f"{each}{ending}") for each in sorted(stems) if each != stem]
            path = next((each for each in beside if each.is_file()), None)
            if path is not None and ("train" in stem or name_parts(path)[0] == name):
                yield split, path


# ---- the JSON Schema of records

CLOSED = 20  # a text field with at most as many values, each of them repeated, is closed
KEYS = 60  # objects with more different keys map names to values


def inferred_schema(values: Sequence[Any]) -> dict[str, Any]:
    """Infer a JSON Schema that all values fit: types, required and nullable fields, and the values of closed fields.

    Example:
        >>> inferred_schema([{"total": 1.5}, {"total": None}])["properties"]
        {'total': {'type': ['number', 'null']}}
    """
    kinds = {_kind(value) for value in values}
    nullable = "null" in kinds
    if kinds >= {"integer", "number"}:
        kinds.remove("integer")
    texts = [value for value in values if isinstance(value, str)]
    if kinds - {"null"} == {"string"} and (options := _closed(texts)):
        return {"enum": [*options, None]} if nullable else {"type": "string", "enum": options}
    options_of: list[dict[str, Any]] = []
    if "object" in kinds:
        options_of.append(_object_schema([value for value in values if isinstance(value, Mapping)]))
    if "array" in kinds:
        items = [item for value in values if isinstance(value, list) for item in value]
        options_of.append({"type": "array", "items": inferred_schema(items)} if items else {"type": "array"})
    scalars = [kind for kind in ("string", "integer", "number", "boolean", "null") if kind in kinds]
    if scalars:
        options_of.append({"type": scalars[0] if len(scalars) == 1 else scalars})
    return options_of[0] if len(options_of) == 1 else {"anyOf": options_of}


def _kind(value: Any) -> str:
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", type(None): "null"}
    return "object" if isinstance(value, Mapping) else names.get(type(value), "string")


def _object_schema(values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    fields: dict[str, list[Any]] = {}
    for value in values:
        for key, item in value.items():
            fields.setdefault(key, []).append(item)
    if len(fields) > KEYS and sum(map(len, fields.values())) < len(fields) * len(values) / 10:
        every = [item for items in fields.values() for item in items]
        return {"type": "object", "additionalProperties": inferred_schema(every)}
    return {
        "type": "object",
        "properties": {key: inferred_schema(items) for key, items in fields.items()},
        "required": [key for key, items in fields.items() if len(items) == len(values)],
        "additionalProperties": False,
    }


def _closed(texts: Sequence[str]) -> list[str]:
    """The values of a closed field, most frequent first; empty for an open one."""
    counts = Counter(texts)
    closed = len(counts) <= min(CLOSED, len(texts) / 4) and min(counts.values()) > 1
    return [text for text, _ in counts.most_common()] if closed and max(map(len, counts)) <= LONGEST_LABEL else []
