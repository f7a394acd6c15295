"""Types of the keys of a task file that say where rows are, and how their files are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    InstanceOf,
    PlainSerializer,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema

from rung.data.frames import MemoryRows, is_lazy, is_table
from rung.data.sources import encoding_problem, separator_problem

STRICT = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)


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
    """Turn paths into names, and rows in memory into `MemoryRows`; the name of a file and what is wrong stay.

    Raises:
        ValueError: there is no file and no row.
    """
    if isinstance(given, Path):
        return str(given)
    if isinstance(given, (list, tuple)) and given and all(isinstance(each, (str, Path)) for each in given):
        return [str(each) for each in given]
    if isinstance(given, Mapping):
        return MemoryRows.of(_rows_of_columns(given), name)
    names = isinstance(given, (str, MemoryRows)) or not hasattr(given, "__len__")
    if not names and not len(given):
        raise ValueError(f"`{name}` names no file, and holds no row")
    return given if names and not hasattr(given, "__next__") and not is_lazy(given) else MemoryRows.of(given, name)


def is_column(given: Any) -> bool:
    """Whether what is given holds the cells of one column: a list, an array, a Series."""
    sized = hasattr(given, "__len__") and hasattr(given, "__getitem__")
    return sized and not isinstance(given, (str, bytes, Mapping)) and not is_table(given)


def _rows_of_columns(given: Mapping[Any, Any]) -> Any:
    """The rows of a dict of columns; what is none stays."""
    columns = list(given.values())
    if not columns or not all(is_column(each) and len(each) == len(columns[0]) for each in columns):
        return given
    return [dict(zip(given, cells, strict=True)) for cells in zip(*columns, strict=True)]


class PreferenceSource(BaseModel):
    """Where preferences are: pairs of answers, single answers that people liked or not, or rated answers.

    Columns that are not named here are found by their usual names.
    """

    model_config = STRICT

    files: str | list[str] | InMemory = Field(description="The file, or a list of files.", examples=["pairs.jsonl"])
    chosen: str | None = Field(None, description="Column of the better answer.", examples=["chosen"])
    rejected: str | None = Field(None, description="Column of the worse answer.", examples=["rejected"])
    first: str | None = Field(None, description="Column of one of two answers.", examples=["response1"])
    second: str | None = Field(None, description="Column of the other answer.", examples=["response2"])
    preferred: str | list[str] | None = Field(
        None,
        description="Column, or one for each rater, that says which is better: first, second or tie, or 1, 2 or 0.",
        examples=["preference", ["annotator1", "annotator2"]],
    )
    answer: str | None = Field(None, description="Column of a single answer.", examples=["completion"])
    good: str | None = Field(
        None, description="Column that says whether it is good: true or false.", examples=["label"]
    )
    rating: str | None = Field(None, description="Column of a number that is higher for better answers.")
    good_from: float | None = Field(None, description="With `rating`: answers from this rating on are good.")
    margin: float | None = Field(
        None,
        gt=0,
        description="With `rating`, without `good_from`: by how much the best and the worst answer to an input must "
        "differ to be a pair; default: at all.",
    )

    @model_validator(mode="before")
    @classmethod
    def _files(cls, values: Any) -> Any:
        """Take a file, a list of files, or rows in memory in place of the section."""
        values = dict(values) if isinstance(values, Mapping) else {"files": values}
        return {**values, "files": row_source(values["files"], "preference")} if "files" in values else values

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        given = {name for name in self.model_fields_set if getattr(self, name) is not None} - {"files"}
        forms = {"chosen": {"chosen", "rejected"}, "first": {"first", "second", "preferred"}}
        forms |= {"answer": {"answer", "good", "rating", "good_from", "margin"}}
        used = [form for form in forms.values() if form & given]
        if len(used) > 1:
            pair = " and ".join(f"`{min(form & given)}`" for form in used[:2])
            raise ValueError(f"{pair} do not go together: they belong to different forms of preferences")
        for form in forms.values():
            if form & given and "answer" not in form and (lacking := form - given):
                raise ValueError(f"`{min(form & given)}` has no effect without `{min(lacking)}`")
        if {"good", "rating"} <= given:
            raise ValueError("`good` and `rating` do not go together")
        if "answer" in given and not {"good", "rating"} & given:
            raise ValueError("`answer` has no effect without `good` or `rating`")
        if "rating" not in given and (lost := {"good_from", "margin"} & given):
            raise ValueError(f"`{min(lost)}` has no effect without `rating`")
        if {"good_from", "margin"} <= given:
            raise ValueError("`good_from` and `margin` do not go together: ratings make either verdicts or pairs")
        return self


# A task file may name the files alone.
Preferences = Annotated[
    PreferenceSource | None,
    WithJsonSchema({"anyOf": [
        PreferenceSource.model_json_schema(), {"type": "string"}, {"type": "array", "items": {"type": "string"}},
    ]}),
]  # fmt: skip
