"""Types of the keys of a task file that say where rows are, and how their files are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, InstanceOf, PlainSerializer
from pydantic.json_schema import SkipJsonSchema

from rung.data.frames import MemoryRows
from rung.data.sources import encoding_problem, separator_problem


def _checked(problem: Callable[[str], str]) -> AfterValidator:
    def check(value: str) -> str:
        if found := problem(value):
            raise ValueError(found)
        return value

    return AfterValidator(check)


Encoding = Annotated[str, _checked(encoding_problem)]
Separator = Annotated[str, _checked(separator_problem)]
ENCODING = "Text encoding of the files; auto recognizes UTF-8, UTF-16 and cp1252."
SEPARATOR = "Separator of CSV files: one character, or tab; auto recognizes it."
# Rows in memory stand for a file in Python; the hash of the content stands for them in the task's fingerprint.
InMemory = SkipJsonSchema[
    Annotated[InstanceOf[MemoryRows], PlainSerializer(lambda rows: {"rows": len(rows.rows), "sha256": rows.sha256})]
]
OneSource = str | InMemory | None


def row_source(given: Any, name: str) -> Any:
    """Turn paths into names, and rows in memory into `MemoryRows`; the name of a file and what is wrong stay."""
    if isinstance(given, Path):
        return str(given)
    if isinstance(given, (list, tuple)) and given and all(isinstance(each, (str, Path)) for each in given):
        return [str(each) for each in given]
    names = isinstance(given, (str, Mapping, MemoryRows)) or not hasattr(given, "__len__") or not len(given)
    return given if names and not hasattr(given, "__next__") else MemoryRows.of(given, name)
