"""Task: what the model must do, as one strict YAML file."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator
from pydantic.json_schema import SkipJsonSchema

from rung.agents.tools import Limits, McpServer
from rung.data.kinds import DEFAULT_METRICS, OutputKind
from rung.data.rows import LABELLED
from rung.errors import ConfigError, Location
from rung.prompts.overflow import Overflow
from rung.retrieval.corpus import Corpus
from rung.yamlfile import YamlFile, read_yaml

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from rung.data.rows import Data

Fraction = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]


def _text_or_list(schema: dict[str, Any]) -> None:
    """Let the JSON Schema of a field allow a list of texts as well."""
    del schema["type"]
    schema["anyOf"] = [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)


class Output(_Strict):
    """What the model must answer."""

    kind: OutputKind = Field(
        description="category: one of a set of labels; multilabel: any of them; text; json: a record; chat: a turn; "
        "ranking: the most similar training rows."
    )
    column: str | None = Field(
        None, description="The column of the expected answer; none for chat.", examples=["label"]
    )
    labels: list[str] | None = Field(
        None, description="The allowed labels; without, those of the rows.", examples=[["spam", "ham"]]
    )
    descriptions: dict[str, str] = Field(
        default_factory=dict,
        description="What a label means, shown in the prompt.",
        examples=[{"spam": "unwanted advertising"}],
    )
    json_schema: dict[str, Any] | str | None = Field(
        None, alias="schema", description="JSON Schema of the answer (kind json): inline, or the name of a file."
    )
    regex: str | None = Field(
        None, description="Regular expression that the whole answer matches (kind text).", examples=[r"\d{4}-\d{2}"]
    )
    max_tokens: Count | None = Field(None, description="Longest answer, in tokens.", examples=[64])
    k: Count = Field(10, description="How many rows to find (kind ranking).", examples=[5])
    encoder: str = Field("embedded-encoder", description="The sentence encoder that compares rows (kind ranking).")
    separator: str = Field(
        ";", min_length=1, description="What stands between the labels of a cell (kind multilabel).", examples=["|"]
    )
    refusal: str | None = Field(
        None,
        min_length=1,
        description="The answer where there is none (kind text): rows with an empty answer expect it.",
        examples=["not in the text"],
    )

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if self.kind != "chat" and self.column is None:
            raise ValueError(f"`column` is needed for kind {self.kind}")
        if self.kind == "chat" and self.column is not None:
            raise ValueError("`column` does not belong to kind chat: the last assistant turn is the answer")
        if self.kind not in LABELLED and (self.labels or self.descriptions):
            raise ValueError("`labels` and `descriptions` belong to the kinds category and multilabel")
        if self.kind != "multilabel" and "separator" in self.model_fields_set:
            raise ValueError("`separator` belongs to kind multilabel")
        if self.kind != "ranking" and (given := {"k", "encoder"} & self.model_fields_set):
            raise ValueError(f"`{min(given)}` belongs to kind ranking")
        if self.kind == "ranking" and self.max_tokens is not None:
            raise ValueError("`max_tokens` has no effect on kind ranking: nothing is written")
        if self.kind != "text" and self.refusal is not None:
            raise ValueError("`refusal` belongs to kind text")
        if self.kind != "json" and self.json_schema is not None:
            raise ValueError("`schema` belongs to kind json")
        if self.kind != "text" and self.regex is not None:
            raise ValueError("`regex` belongs to kind text")
        if self.labels is not None and len(self.labels) < 2:
            raise ValueError("`labels` needs two labels or more")
        if self.labels and (twice := [label for label in self.labels if self.labels.count(label) > 1]):
            raise ValueError(f"`labels` holds {twice[0]!r} twice")
        if self.labels and (bare := [label for label in self.labels if not label or label != label.strip()]):
            raise ValueError(f"`labels` holds {bare[0]!r}: empty, or with spaces at its ends")
        unknown = [label for label in self.descriptions if self.labels and label not in self.labels]
        if unknown:
            raise ValueError(f"`descriptions` names {unknown[0]!r}, which is not among `labels`")
        return self

    def schema_text(self) -> str | None:
        """Return the JSON Schema as text; a file name was replaced by its content when the task was loaded."""
        return None if self.json_schema is None else json.dumps(self.json_schema)


class Split(_Strict):
    """How splits that are not given as files are cut from the training file: by a hash of the input."""

    validation: Fraction = Field(0.2, description="Share of the rows for validation, where no file is given.")
    test: Fraction = Field(0.2, description="Share of the rows for the test, where no file is given.")
    group: str | None = Field(
        None, description="Rows with the same value in this column stay in one split.", examples=["company"]
    )
    seed: int = Field(0, description="Another number gives another split.")

    @model_validator(mode="after")
    def _leaves_rows_to_train_on(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(
                f"{self.validation:g} for validation and {self.test:g} for the test leave no row to train on"
            )
        return self


class DataSource(_Strict):
    """Where the rows are."""

    train: str | list[str] = Field(
        description="CSV, TSV, JSON, JSONL or Parquet, or hf:org/name[:config][#split].", examples=["train.csv"]
    )
    validation: str | None = Field(
        None, description="Rows to choose by; without, a share of the training file.", examples=["dev.csv"]
    )
    test: str | None = Field(
        None, description="Rows to confirm by; without, a share of the training file.", examples=["test.csv"]
    )
    split: Split = Field(default_factory=lambda: Split(), description="How missing splits are cut.")
    text: str | list[str] | None = Field(
        None,
        description="Plain text to adapt the model to the domain: .txt or .md files, or tables with a text column.",
        examples=["corpus.txt"],
    )
    text_column: str = Field("text", description="The column of the tables in `text` that holds it.")
    train_per_label: Count | None = Field(None, description="Keep so many training rows per label.")
    train_rows: Count | None = Field(None, description="Keep so many training rows.")
    validation_rows: Count | None = Field(None, description="Keep so many validation rows.")
    test_rows: Count | None = Field(None, description="Keep so many test rows.")
    spans: str | None = Field(
        None,
        description="The column that says where in the corpus the answer stands: [{document, start, end}], characters; "
        "an empty list where the documents do not answer.",
        examples=["spans"],
    )
    duplicates: Literal["error", "drop"] = Field(
        "error", description="Inputs in two splits: an error, or dropped from the training side."
    )
    encoding: str = Field("utf-8", description="Text encoding of the files.", examples=["utf-8", "latin-1"])

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.train:
            raise ValueError("`train` names no file")
        if self.text is not None and not self.text:
            raise ValueError("`text` names no file")
        if self.text is None and "text_column" in self.model_fields_set:
            raise ValueError("`text_column` has no effect without `text`")
        if self.validation is not None and self.test is not None and "split" in self.model_fields_set:
            raise ValueError("`split` has no effect: validation and test are given as files")
        try:
            "a".encode(self.encoding)
        except LookupError:
            raise ValueError(f"no text encoding is named {self.encoding!r}") from None
        return self


class Confidence(_Strict):
    """How sure an answer is, and below which confidence it is held back."""

    method: Literal["temperature", "isotonic"] = Field(
        "temperature", description="How probabilities are fitted to validation rows; isotonic needs 1,000 of them."
    )
    abstain_below: Fraction | None = Field(
        None, description="Answers with less confidence are marked as abstained.", examples=[0.6]
    )
    out_of_scope: str | None = Field(
        None, description="The label of rows that are right to abstain on.", examples=["out_of_scope"]
    )

    @model_validator(mode="after")
    def _has_an_effect(self) -> Self:
        if self.out_of_scope is not None and self.abstain_below is None:
            raise ValueError("`out_of_scope` has no effect without `abstain_below`")
        return self


class Needs(_Strict):
    """What only people know of the task; the decision guide asks for it, and nothing else reads it."""

    facts_change: Literal["never", "yearly", "monthly", "weekly", "daily"] | None = Field(
        None, description="How often the facts that answers rest on change."
    )
    knowledge: bool | None = Field(None, description="Whether answers need facts that are not in the input.")
    style: bool | None = Field(None, description="Whether answers must keep to a tone or format of their own.")
    reasoning: bool | None = Field(None, description="Whether it takes several steps of calculation or logic.")
    latency_ms: Count | None = Field(None, description="Longest time for one answer, in milliseconds.")
    rows_per_day: Count | None = Field(None, description="Answers wanted a day.")
    privacy: Literal["local", "any"] | None = Field(None, description="Whether data may leave this machine.")
    failures: int | None = Field(None, ge=0, description="Failures collected so far, with their corrections.")


class Constraints(_Strict):
    """What the climb must keep to."""

    rungs: list[str] | None = Field(None, description="Try only these rungs.", examples=[["few-shot-knn", "lora"]])
    exclude: list[str] | None = Field(None, description="Never try these rungs.", examples=[["lora"]])


class Task(_Strict):
    """What the model must do: input columns, one output, instruction, metric, data, constraints."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="Name of the task, used for folders.",
        examples=["banking77"],
    )
    instruction: str = Field(
        min_length=1,
        description="What to do, in a sentence or more.",
        examples=["Which intent does this message express?"],
    )
    system: str | list[str] | None = Field(
        None,
        description="A system prompt, or several to choose from; whether it helps is measured.",
        examples=["You are a careful clerk."],
    )
    inputs: Annotated[list[str], Field(min_length=1)] = Field(
        description="Columns that the model reads; dots reach into nested JSON.", examples=[["text"]]
    )
    output: Output = Field(description="What it must answer.")
    data: DataSource = Field(description="Where the rows are, and which of them to use.")
    corpus: Corpus | None = Field(None, description="Documents to look answers up in.")
    metric: str | dict[str, Any] | None = Field(
        None,
        description="accuracy, exact_match, rougeL, ..., or mymodule:function; {name: ..., settings} where it has any.",
        examples=["rougeL", {"name": "sql_execution", "database": "shop.sqlite"}],
    )
    model: str = Field(
        "embedded",
        description="embedded, a Hub id, a folder, a .gguf file, or an endpoint; or a list, to climb with each.",
        examples=["embedded", "org/name", ["embedded", "org/name"]],
        json_schema_extra=_text_or_list,
    )
    other_models: SkipJsonSchema[list[str]] = Field(
        default_factory=list, description="What follows the first model of a list; not written by hand."
    )
    template: str | None = Field(
        None, description="The user turn, with {column} for the inputs.", examples=["Message: {text}"]
    )
    overflow: Overflow = Field(
        "error",
        description="A prompt longer than the model reads: error, drop_demonstrations (the least similar first), or "
        "shorten_passages (the least relevant first).",
        examples=["drop_demonstrations", "shorten_passages"],
    )
    tools: list[str | McpServer] = Field(
        default_factory=list,
        description="What the model may call: Python functions as module:function, and MCP servers.",
        examples=[["mytools:look_up", {"mcp": ["python", "server.py"]}]],
    )
    agent: Limits = Field(default_factory=Limits, description="How far the model may go with `tools`.")
    rungs: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="Settings of rungs, over their defaults; `rung rungs` lists them.",
        examples=[{"lora": {"rank": 8, "learning_rate": "auto"}}],
    )
    needs: Needs | None = Field(None, description="What the decision guide cannot see: `rung advise` asks for it.")
    confidence: Confidence | None = Field(
        None, description="Fit the recommended artifact's confidence, and measure it; for category and multilabel."
    )
    constraints: Constraints = Field(default_factory=lambda: Constraints(), description="Limits of the climb.")
    _folder: Path = PrivateAttr(default=Path())

    @model_validator(mode="before")
    @classmethod
    def _first_model(cls, values: Any) -> Any:
        """Take a list of models apart: the first is where the climb starts."""
        if not isinstance(values, Mapping):
            return values
        if values.get("other_models"):
            raise ValueError("write all models as one list: `model: [a, b]`")
        if not isinstance(values.get("model"), list):
            return values
        models = values["model"]
        if not models or not all(isinstance(model, str) for model in models):
            raise ValueError("`model` must name a model, or list some")
        if len(set(models)) < len(models):
            raise ValueError("`model` names a model twice")
        return {**values, "model": models[0], "other_models": models[1:]}

    @model_validator(mode="after")
    def _columns_fit(self) -> Self:
        if len(set(self.inputs)) < len(self.inputs):
            raise ValueError("`inputs` names a column twice")
        if self.output.kind == "chat" and len(self.inputs) != 1:
            raise ValueError("kind chat reads one input column, the one that holds the messages")
        if self.output.kind == "chat" and self.template is not None:
            raise ValueError("`template` has no effect on kind chat: the messages are sent as they are")
        if self.tools and self.output.kind != "text":
            raise ValueError(f"`tools` belong to kind text, not {self.output.kind}")
        if self.tools and self.output.regex is not None:
            raise ValueError("`output.regex` has no effect with `tools`: calls have a form of their own")
        if not self.tools and "agent" in self.model_fields_set:
            raise ValueError("`agent` has no effect without `tools`")
        if isinstance(self.metric, dict) and not isinstance(self.metric.get("name"), str):
            raise ValueError("`metric` lacks a `name`: write {name: judge, model: ...}")
        if self.corpus is None and self.data.spans is not None:
            raise ValueError("`data.spans` points into documents, and there is no `corpus`")
        if self.corpus is None and self.overflow == "shorten_passages":
            raise ValueError("`overflow: shorten_passages` has no effect without a `corpus`")
        if self.output.kind != "category" and self.data.train_per_label is not None:
            raise ValueError("`data.train_per_label` belongs to kind category; use `data.train_rows`")
        if self.confidence is not None and self.output.kind not in LABELLED:
            raise ValueError("`confidence` belongs to the kinds category and multilabel: others have no labels")
        return self

    @property
    def metric_name(self) -> str:
        """The metric's name: the one given, or the usual one for the kind."""
        if isinstance(self.metric, dict):
            return str(self.metric["name"])
        return self.metric or DEFAULT_METRICS[self.output.kind]

    @property
    def metric_settings(self) -> dict[str, Any]:
        """The metric's settings, where it was given any."""
        if not isinstance(self.metric, dict):
            return {}
        return {key: value for key, value in self.metric.items() if key != "name"}

    @property
    def system_prompts(self) -> tuple[str, ...]:
        """The system prompts to try."""
        return (self.system,) if isinstance(self.system, str) else tuple(self.system or ())

    @property
    def folder(self) -> Path:
        """The task file's folder, from which relative paths resolve."""
        return self._folder

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
        parsed = read_yaml(path)
        for key, text in (overrides or {}).items():
            _override(parsed, key, text)
        try:
            task = cls.model_validate(parsed.values)
        except ValidationError as error:
            raise _config_error(error, parsed, cls) from None
        task = task._with_schema_file(path.parent, parsed)
        task._folder = path.resolve().parent
        task._check(parsed)
        return task

    def _with_schema_file(self, folder: Path, parsed: YamlFile) -> Self:
        name = self.output.json_schema
        if not isinstance(name, str):
            return self
        try:
            schema = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            where = parsed.where(("output", "schema"))
            raise ConfigError("bad-constraint", f"the schema {name!r} cannot be read: {error}", where=where) from error
        if not isinstance(schema, dict):
            where = parsed.where(("output", "schema"))
            raise ConfigError("bad-constraint", f"the schema {name!r} is no JSON object", where=where)
        return self.model_copy(update={"output": self.output.model_copy(update={"json_schema": schema})})

    def _check(self, parsed: YamlFile) -> None:
        """Check what needs more than one field: template, metric, columns."""
        from rung.evaluation.metrics import get_metric
        from rung.prompts.prompt import placeholders

        if self.template is not None:
            with _located(parsed, "template"):
                names = placeholders(self.template)
            if not names:
                raise ConfigError(
                    "bad-template", "the template asks for no input column", where=parsed.where(("template",)),
                    hint=f"write {{{self.inputs[0]}}} where its value belongs",
                )  # fmt: skip
            for name in names:
                if name not in self.inputs:
                    raise ConfigError(
                        "bad-template",
                        f"the template asks for {{{name}}}, which is not among the inputs",
                        where=parsed.where(("template",)),
                        hint=suggest(name, self.inputs),
                    )
        if self.output.column in self.inputs:
            raise ConfigError(
                "bad-value",
                f"the column {self.output.column!r} is both input and output",
                where=parsed.where(("inputs",)),
                hint="take it out of `inputs`: the model would read its answer",
            )
        if self.metric is not None:
            with _located(parsed, "metric"):
                metric = get_metric(self.metric_name, self._folder, self.metric_settings)
                if self.output.kind not in metric.kinds:
                    raise ConfigError(
                        "bad-value", f"the metric {metric.name} does not suit `kind: {self.output.kind}`",
                        hint=f"it scores answers of kind {' or '.join(metric.kinds)}",
                    )  # fmt: skip
        for number, tool in enumerate(self.tools):
            if isinstance(tool, str):
                from rung.agents.tools import function_tool

                with _located(parsed, "tools", number):
                    function_tool(tool, self._folder)
        for name in self.rungs:
            from rung.rungs import build

            with _located(parsed, "rungs", name):
                build((name,), self, 0)

    @property
    def models(self) -> tuple[str, ...]:
        """All models, the one that the climb starts from first."""
        return (self.model, *self.other_models)

    def only(self, model: str) -> Self:
        """Return the task with this model alone."""
        return self.model_copy(update={"model": model, "other_models": []})

    def read(self) -> Data:
        """Read the rows and split them once; see `rung.data.loading`."""
        from rung.data.loading import load_data

        return load_data(self)

    def fingerprint(self) -> str:
        """Return a hash of every setting of the task."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def suggest(name: str, known: Sequence[str]) -> str:
    """Return a hint for a name that is not known."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(map(repr, known)) or 'none'}"


@contextmanager
def _located(parsed: YamlFile, *path: str | int) -> Iterator[None]:
    """Point errors that know no place at a key of the task file."""
    try:
        yield
    except ConfigError as error:
        error.where = error.where or parsed.where(path)
        raise


def _override(parsed: YamlFile, key: str, text: str) -> None:
    *parents, last = key.split(".")
    values = parsed.values
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ConfigError(
                "bad-option", f"--set {key}: {parent!r} is not a mapping", hint="name a key inside a mapping"
            )
    try:
        values[last] = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # such as `instruction=Which: one?`: text, written without YAML in mind
        values[last] = text
    parsed.outside[*parents, last] = f"--set {key}={text}"


def _config_error(error: ValidationError, parsed: YamlFile, model: type[BaseModel]) -> ConfigError:
    """Turn pydantic's errors into one that points into the file; its hint names the places of the others."""
    found = error.errors()
    found.sort(key=lambda one: one["type"] != "extra_forbidden")  # a misspelled key explains a missing one
    problems: dict[str, ConfigError] = {}  # by place: of several types that a value may have, the first speaks
    for one in found:
        problem = _problem(one, parsed, model)
        problems.setdefault(f"{problem.where} {problem.message.split(':')[0]}", problem)
    first, *others = problems.values()
    first.hint = "\n".join([*([first.hint] if first.hint else []), *(f"also {other}" for other in others)])
    return first


def _problem(one: ErrorDetails, parsed: YamlFile, model: type[BaseModel]) -> ConfigError:
    # Where a field may have one of several types, pydantic adds the type to the path.
    path = tuple(part for part in one["loc"] if part not in ("str", "list[str]", "dict[str,any]", "McpServer"))
    name = ".".join(map(str, path))
    where = parsed.where(path)
    if one["type"] == "extra_forbidden":
        known = _fields_at(model, path[:-1])
        return ConfigError("unknown-key", f"unknown key {path[-1]!r}", where=where, hint=suggest(str(path[-1]), known))
    if one["type"] == "missing":
        return ConfigError(
            "missing-key", f"the key `{name}` is missing", where=where if len(path) > 1 else Location(parsed.name),
            hint="`rung schema` lists every key; `rung init data.csv` writes a file to start from",
        )  # fmt: skip
    value = one.get("input")
    message = one["msg"].removeprefix("Value error, ").removeprefix("Input ")
    is_scalar = isinstance(value, (str, int, float, bool, date))
    trapped = one["type"] == "string_type" and is_scalar
    hint = 'YAML reads unquoted yes, no, dates and numbers as such; write text in quotes: "no"' if trapped else ""
    shown = f", found {value!r}" if is_scalar and not isinstance(value, date) else ""
    return ConfigError("bad-value", f"`{name}`: {message}{shown}" if name else message, where=where, hint=hint)


def _fields_at(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """Return the keys that are allowed at `path`."""
    for part in path:
        annotation = model.model_fields[str(part)].annotation if str(part) in model.model_fields else None
        sections = [one for one in (annotation, *get_args(annotation)) if isinstance(one, type)]
        found = next((one for one in sections if issubclass(one, BaseModel)), None)
        if found is None:
            return []
        model = found
    return [field.alias or name for name, field in model.model_fields.items()]
