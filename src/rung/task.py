"""Task: what the model must do, as one strict YAML file.

`rung.data.spec` defines the keys. This module reads the file and gives errors their line and column.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, get_args

import yaml
from pydantic import BaseModel, PrivateAttr, ValidationError

from rung.data.loading import load_data
from rung.data.rows import Data
from rung.data.sources import READERS, kind_of
from rung.data.spec import DataSource, TaskSpec
from rung.errors import ConfigError, Location, RungError, suggest
from rung.progress import card
from rung.yamlfile import YamlFile, read_object, read_yaml

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


class Task(TaskSpec):
    """What the model must do: input columns, one output, instruction, metric, data, constraints.

    Example:
        >>> task = rung.Task.load("examples/banking77/task.yaml")  # doctest: +SKIP
        >>> len(task.read().train)  # doctest: +SKIP
        385
    """

    _file: YamlFile | None = PrivateAttr(default=None)

    def __init__(self, **values: Any) -> None:
        """Check the keys of a task file, given as arguments; `data` may be rows in memory.

        Raises:
            ConfigError: a value is wrong; DataError if it is a row.
        """
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _config_error(error, YamlFile("Task(...)", values, {}, ()), type(self)) from error

    def __repr__(self) -> str:
        return f"Task({self.name}: {', '.join(self.inputs)} -> {self.output.column or self.output.kind})"

    def _repr_html_(self) -> str:
        facts = {
            "instruction": self.instruction, "inputs": ", ".join(self.inputs), "kind": self.output.kind,
            "answer": self.output.column, "metric": self.metric, "model": self.model,
        }  # fmt: skip
        return card(f"Task {self.name}", facts)

    @classmethod
    def load(cls, path: str | Path, overrides: Mapping[str, str] | None = None) -> Self:
        """Read a task file.

        Args:
            path: the YAML file.
            overrides: dotted keys and YAML values that replace those of the file: `{"data.train_per_label": "5"}`.

        Raises:
            ConfigError: with file, line and column, if anything is wrong.
        """
        path = Path(path)
        if kind_of(path) in READERS and kind_of(path) != ".json":  # which is YAML, too
            hint = f"give a task file here; `rung init {path}` makes one from rows"
            raise ConfigError("bad-yaml", f"{path} holds rows, and is no task file", hint=hint)
        parsed = read_yaml(path)
        for key, text in (overrides or {}).items():
            _override(parsed, key, text)
        try:
            task = cls.model_validate(parsed.values)
        except ConfigError as error:
            if isinstance(error.__cause__, ValidationError):
                raise _config_error(error.__cause__, parsed, cls) from None
            keys = {"bad-template": "template", "missing-key": "data" if "`data" in error.message else "instruction"}
            error.where = parsed.where((keys.get(error.code, "inputs"),))
            raise
        task = task._with_schema_file(path.parent, parsed)
        task._folder = path.resolve().parent
        task._file = parsed
        return task

    def _with_schema_file(self, folder: Path, parsed: YamlFile) -> Self:
        name, where = self.output.json_schema, parsed.where(("output", "schema"))
        if not isinstance(name, str):
            return self
        schema = read_object(
            folder / name,
            lambda what: ConfigError("bad-constraint", f"the schema {name!r} {what}", where=where),
        )
        return self.model_copy(update={"output": self.output.model_copy(update={"json_schema": schema})})

    @contextmanager
    def located(self, *key: str | int) -> Iterator[None]:
        """A context that gives errors without a location that of a key of the task file."""
        try:
            yield
        except RungError as error:
            if self._file is not None:
                error.where = error.where or self._file.where(key)
            raise

    @property
    def source(self) -> tuple[Path, dict[str, str]]:
        """The task file, and what `--set` replaced in it, for another process to load.

        Raises:
            ConfigError: `no-such-file`: the task was not read from a file.
        """
        if self._file is None:
            hint = "write it into a file and load that: Task.load('task.yaml')"
            raise ConfigError("no-such-file", f"the task {self.name} is not in a file, which workers need", hint=hint)
        texts = [text.removeprefix("--set ").partition("=") for text in self._file.outside.values()]
        return Path(self._file.name).absolute(), {key: value for key, _, value in texts}

    def only(self, model: str) -> Self:
        """Copy the task with this model as its only one."""
        return self.model_copy(update={"model": model, "other_models": []})

    def held_out(self) -> Self:
        """Copy the task with validation and test rows cut off, where `split.method: auto` would choose folds."""
        if self.data.split.method != "auto":
            return self
        split = self.data.split.model_copy(update={"method": "holdout"})
        return self.model_copy(update={"data": self.data.model_copy(update={"split": split})})

    def read(self, rows: Any = None) -> Data:
        """Read and split the rows; see `rung.data.loading`.

        Args:
            rows: rows to read instead of those that the task names: what `data` may be, also in memory.

        Raises:
            DataError: rows are wrong; the message names file and line, or the row.
        """
        if rows is None:
            return load_data(self)
        try:
            given = DataSource.model_validate(rows)
        except ValidationError as error:
            raise _config_error(error, YamlFile("rows", {}, {}, ()), DataSource) from error
        sources = {name: getattr(given, name) for name in ("train", "validation", "test", "preferences")}
        return load_data(self.model_copy(update={"data": self.data.model_copy(update=sources)}))


def _override(parsed: YamlFile, key: str, text: str) -> None:
    *parents, last = key.split(".")
    values = parsed.values
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            problem = f"--set {key}: {parent!r} is not a mapping"
            raise ConfigError("bad-option", problem, hint="name a key inside a mapping")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # plain text such as `instruction=Which: one?`
        value = text
    if not isinstance(value, str) and _is_text(TaskSpec, key.split(".")):
        value = text  # `instruction=Answer: yes or no` is a sentence, `name=2024` a name
    values[last] = value
    parsed.outside[*parents, last] = f"--set {key}={text}"


def _is_text(model: type[BaseModel], path: Sequence[str]) -> bool:
    """Say whether a key takes text alone."""
    # A field whose JSON Schema is changed by hand takes lists as well.
    plain = {name: field for name, field in model.model_fields.items() if field.json_schema_extra is None}
    fields = {field.alias or name: field.annotation for name, field in plain.items()}
    if path[0] not in fields:
        return False
    types = [option for option in (fields[path[0]], *get_args(fields[path[0]])) if isinstance(option, type)]
    if path[1:]:
        section = next((option for option in types if issubclass(option, BaseModel)), None)
        return section is not None and _is_text(section, path[1:])
    return fields[path[0]] is str


def _config_error(error: ValidationError, parsed: YamlFile, model: type[BaseModel]) -> ConfigError:
    """Turn pydantic's errors into one with its location in the file; its hint lists the others."""
    details = error.errors()
    details.sort(key=lambda detail: detail["type"] != "extra_forbidden")  # a misspelled key explains a missing one
    problems: dict[str, ConfigError] = {}  # by location: if a value may have several types, the first is reported
    for detail in details:
        problem = _problem(detail, parsed, model)
        problems.setdefault(f"{problem.where} {problem.message.split(':')[0]}", problem)
    first, *others = problems.values()
    first.hint = "\n".join([*([first.hint] if first.hint else []), *(f"also {other}" for other in others)])
    return first


def _problem(detail: ErrorDetails, parsed: YamlFile, model: type[BaseModel]) -> ConfigError:
    # For a field of several types, pydantic adds the type to the path.
    types = ("str", "list[str]", "dict[str,any]", "McpServer")
    path = tuple(part for part in detail["loc"] if part not in types and "MemoryRows" not in str(part))
    name = ".".join(map(str, path))
    where = parsed.where(path)
    if detail["type"] == "extra_forbidden":
        known = _fields_at(model, path[:-1])
        return ConfigError("unknown-key", f"unknown key {path[-1]!r}", where=where, hint=suggest(str(path[-1]), known))
    if detail["type"] == "missing":
        return ConfigError(
            "missing-key", f"the key `{name}` is missing", where=where if len(path) > 1 else Location(parsed.name),
            hint="`rung schema` lists every key; `rung init data.csv` writes a file to start from",
        )  # fmt: skip
    value = detail.get("input")
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    is_scalar = isinstance(value, (str, int, float, bool, date))
    unquoted = detail["type"] == "string_type" and is_scalar and parsed.positions
    hint = 'YAML does not read unquoted yes, no, dates and numbers as text; use quotes: "no"' if unquoted else ""
    if detail["type"] == "list_type" and isinstance(value, str):
        hint = f"write a list: [{value}]"
    shown = f", found {value!r}" if is_scalar and not isinstance(value, date) else ""
    return ConfigError("bad-value", f"`{name}`: {message}{shown}" if name else message, where=where, hint=hint)


def _fields_at(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """List the keys that are allowed at `path`."""
    for part in path:
        annotation = model.model_fields[str(part)].annotation if str(part) in model.model_fields else None
        types = [option for option in (annotation, *get_args(annotation)) if isinstance(option, type)]
        section = next((option for option in types if issubclass(option, BaseModel)), None)
        if section is None:
            return []
        model = section
    return [field.alias or name for name, field in model.model_fields.items()]
