"""The task's specification: the sections and keys of a task file, as pydantic models."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, Field, PrivateAttr, field_validator, model_validator
from pydantic.json_schema import SkipJsonSchema

from rung.data.frames import MemoryRows
from rung.data.kinds import DEFAULT_METRICS, TASK_NAME, OutputKind
from rung.data.rows import LABELLED
from rung.data.sections import (
    AgentLimits,
    Confidence,
    Constraints,
    Count,
    Fraction,
    MachineSpec,
    McpServer,
    Needs,
    Section,
)
from rung.data.source_keys import ENCODING, SEPARATOR, Encoding, InMemory, OneSource, Preferences, Separator, is_column
from rung.data.source_keys import row_source as _row_source
from rung.data.sources import AUTO, FileFormat, Quoting
from rung.data.texts import DecimalMark
from rung.errors import ConfigError, suggest

ENCODER = "embedded-encoder"
OBJECT_STORE_URL = re.compile(r"(s3|gs|az)://[^/?#\s][^?#\s]*")
Overflow = Literal["error", "drop_demonstrations", "shorten_passages", "truncate_input"]
POLICIES: tuple[str, ...] = get_args(Overflow)


def _text_or_list(schema: dict[str, Any]) -> None:
    """Let the JSON Schema of a field allow a list of texts as well."""
    del schema["type"]
    schema["anyOf"] = [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]


# The only kinds that have each of these keys of `output`.
_KINDS_OF = {
    "separator": ("multilabel",), "columns": ("multilabel", "json"), "k": ("ranking",), "encoder": ("ranking",),
    "refusal": ("text",), "json_schema": ("json",), "regex": ("text",), "approved": ("text", "chat"),
    "minimum": ("number",), "maximum": ("number",), "whole": ("number",), "unit": ("number",), "decimal": ("number",),
}  # fmt: skip


class Output(Section):
    """What the model must answer."""

    kind: OutputKind = Field(
        description="category: one of a set of labels; multilabel: any of them; text; json: a record; number; chat: a "
        "turn; ranking: the most similar training rows."
    )
    column: str | None = Field(
        None,
        description="Column of the expected answer. Kind chat needs none: the last assistant turn is the answer.",
        examples=["label"],
    )
    columns: list[str] | None = Field(
        None,
        min_length=2,
        description="Instead of `column`: a column per label, with 1 where it applies (kind multilabel), or a column "
        "per field of the record, null where the cell is empty (kind json).",
        examples=[["toxic", "threat"]],
    )
    approved: str | None = Field(
        None,
        description="Column that says whether the answer is good, true or false (kinds text and chat). Others are "
        "left out.",
        examples=["thumbs_up"],
    )
    approved_from: float | None = Field(
        None, description="With `approved`: the column holds numbers, and from this one the answer is good."
    )
    labels: list[str] | None = Field(
        None, description="Allowed labels; default: the rows'.", examples=[["spam", "ham"]]
    )
    descriptions: dict[str, str] = Field(
        default_factory=dict,
        description="What a label means, shown in the prompt.",
        examples=[{"spam": "unwanted advertising"}],
    )
    json_schema: dict[str, Any] | str | None = Field(
        None, alias="schema", description="JSON Schema of the answer (kind json): inline, or a file name."
    )
    regex: str | None = Field(None, description="Pattern of the whole answer (kind text).", examples=[r"\d{4}-\d{2}"])
    max_tokens: Count | None = Field(None, description="Longest answer, in tokens.", examples=[64])
    k: Count = Field(10, description="How many rows to find (kind ranking).", examples=[5])
    encoder: str = Field("embedded-encoder", description="The sentence encoder that compares rows (kind ranking).")
    separator: str = Field(
        ";", min_length=1, description="Separates labels in a cell (kind multilabel).", examples=["|"]
    )
    minimum: float | None = Field(None, description="Least answer (kind number).", examples=[1])
    maximum: float | None = Field(None, description="Greatest answer (kind number).", examples=[5])
    whole: bool = Field(False, description="Answers have no decimals (kind number).")
    unit: str = Field("", description="Unit of the answers, in the prompt and perhaps in cells.", examples=["EUR"])
    decimal: DecimalMark = Field(".", description="Decimal mark of the numbers in cells (kind number).", examples=[","])
    refusal: str | None = Field(
        None,
        min_length=1,
        description="The expected answer of rows with an empty answer (kind text).",
        examples=["not in the text"],
    )

    @field_validator("kind", mode="before")
    @classmethod
    def _no_pairs(cls, kind: Any) -> Any:
        if kind == "preference":
            raise ValueError("write `kind: text` or `chat`, and the file of pairs as `data.preferences`")
        return kind

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if self.kind != "chat" and self.column is None and self.columns is None:
            raise ValueError(f"`column` is needed for kind {self.kind}")
        if self.columns is not None and self.column is not None:
            raise ValueError("`column` and `columns` do not go together")
        if self.columns is not None and self.labels is not None:
            raise ValueError("`labels` has no effect with `columns`, whose names are the labels")
        if self.approved_from is not None and self.approved is None:
            raise ValueError("`approved_from` has no effect without `approved`")
        if self.kind not in LABELLED and (self.labels or self.descriptions):
            raise ValueError("`labels` and `descriptions` belong to the kinds category and multilabel")
        for name, kinds in _KINDS_OF.items():
            if self.kind not in kinds and name in self.model_fields_set and getattr(self, name) is not None:
                raise ValueError(f"`{name.removeprefix('json_')}` belongs to kind {' or '.join(kinds)}")
        if self.kind == "ranking" and self.max_tokens is not None:
            raise ValueError("`max_tokens` has no effect on kind ranking, which writes no text")
        if self.kind == "number" and self.max_tokens is not None:
            raise ValueError("`max_tokens` has no effect on kind number, whose answers are short")
        if self.minimum is not None and self.maximum is not None and self.minimum >= self.maximum:
            raise ValueError("`minimum` must be less than `maximum`")
        if self.labels is not None and len(self.labels) < 2:
            raise ValueError("`labels` needs two labels or more")
        if self.labels and (twice := [label for label in self.labels if self.labels.count(label) > 1]):
            raise ValueError(f"`labels` lists {twice[0]!r} twice")
        if self.labels and (bare := [label for label in self.labels if not label or label != label.strip()]):
            raise ValueError(f"`labels` lists {bare[0]!r}: empty, or with spaces at its ends")
        if unknown := [label for label in self.descriptions if self.labels and label not in self.labels]:
            raise ValueError(f"`descriptions` names {unknown[0]!r}, which is not among `labels`")
        return self

    def schema_text(self) -> str | None:
        """Write the JSON Schema as text; loading the task has replaced a file name by its content."""
        return None if self.json_schema is None else json.dumps(self.json_schema)


class Split(Section):
    """How splits without a file are cut from the training file: stratified by label, by a hash of the input."""

    method: Literal["auto", "holdout", "folds"] = Field(
        "auto",
        description="holdout: cut validation and test rows off; folds: answer every row out of 5 folds; auto: folds "
        "below 1,000 rows with labels or numbers, below 400 with written answers, unless shares, `time` or files are "
        "given.",
    )
    validation: Fraction = Field(0.2, description="Share of the rows for validation, if it has no file.")
    test: Fraction = Field(0.2, description="Share of the rows for the test, if it has no file.")
    group: str | None = Field(None, description="Rows with equal values here stay in one split.", examples=["company"])
    time: str | None = Field(
        None, description="Column of a date or number: the latest rows are the test.", examples=["created"]
    )
    seed: int = Field(0, description="Another number gives another split.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.validation + self.test >= 1:
            shares = f"{self.validation:g} for validation and {self.test:g} for the test"
            raise ValueError(f"{shares} leave no row to train on")
        if self.time is not None and "seed" in self.model_fields_set:
            raise ValueError("`seed` has no effect with `time`, which decides the order")
        if self.method == "folds" and self.time is not None:
            raise ValueError("`method: folds` does not go with `time`: folds would train on later rows than they test")
        if self.method == "folds" and (given := {"validation", "test"} & self.model_fields_set):
            raise ValueError(f"`{min(given)}` has no effect with `method: folds`, which cuts no shares")
        return self


def _has_columns(values: Mapping[Any, Any]) -> bool:
    """Whether what is given as the section `data` holds columns of equal length, not keys of the section."""
    columns = list(values.values())
    if len(columns) < 2 or not all(map(is_column, columns)) or {"train", "validation", "test"} & values.keys():
        return False
    lengths = {name: len(each) for name, each in values.items()}
    if len({*lengths.values()}) > 1 and values.keys() - DataSource.model_fields.keys():
        raise ValueError(f"its columns differ in length: {', '.join(f'{name} {n}' for name, n in lengths.items())}")
    return len({*lengths.values()}) == 1


class DataSource(Section):
    """Where the rows are."""

    train: str | list[str] | InMemory | None = Field(
        None,
        description="CSV, TSV, JSON, JSONL, Excel, Parquet, Arrow, or hf:org/name[:config][#split].",
        examples=["train.csv"],
    )
    validation: OneSource = Field(None, description="Rows to choose by; else cut from `train`.", examples=["dev.csv"])
    test: OneSource = Field(None, description="Rows to confirm by; else cut from `train`.", examples=["test.csv"])
    preferences: Preferences = Field(
        None, description="Answers that people preferred, liked or rated: a file, or a section.", examples=["pairs.csv"]
    )
    split: Split = Field(default_factory=lambda: Split(), description="How missing splits are cut.")
    text: str | list[str] | None = Field(
        None,
        description="Plain text of the domain to adapt the model to: .txt or .md files, or tables.",
        examples=["corpus.txt"],
    )
    text_column: str = Field("text", description="The text column of the tables in `text`.")
    train_per_label: Count | None = Field(None, description="Keep at most this many training rows per label.")
    train_rows: Count | None = Field(None, description="Keep at most this many training rows.")
    validation_rows: Count | None = Field(None, description="Keep at most this many validation rows.")
    test_rows: Count | None = Field(None, description="Keep at most this many test rows.")
    weight: str | None = Field(None, description="Column of a row's weight, for the heads and models that are trained.")
    spans: str | None = Field(
        None,
        description="Column with the answer's locations in the corpus: [{document, start, end}], in characters; an "
        "empty list if the documents do not answer.",
        examples=["spans"],
    )
    duplicates: Literal["error", "drop"] = Field(
        "error", description="Inputs in two splits: an error, or dropped from `train`."
    )
    encoding: Encoding = Field(AUTO, description=ENCODING, examples=["utf-8", "cp1252"])
    separator: Separator = Field(AUTO, description=SEPARATOR, examples=[";", "tab"])
    quoting: Quoting = Field("auto", description='Quotes in CSV fields: double (""), backslash (\\"), or none at all.')
    sheet: str | None = Field(None, description="Sheet of Excel files; default: the first shown one with cells.")

    @model_validator(mode="before")
    @classmethod
    def _in_memory(cls, values: Any) -> Any:
        """Take rows in memory, and paths, in place of file names: of all splits, or as `data` itself."""
        values = dict(values) if isinstance(values, Mapping) and not _has_columns(values) else {"train": values}
        for name in ("train", "validation", "test"):
            if name in values:
                values[name] = _row_source(values[name], name)
        return values

    def given(self) -> dict[str, list[str | MemoryRows]]:
        """The sources of each split that has any."""
        sources = (("train", self.train), ("validation", self.validation), ("test", self.test))
        return {name: [*each] if isinstance(each, list) else [each] for name, each in sources if each is not None}

    @property
    def format(self) -> FileFormat:
        """How the files are written."""
        return FileFormat(self.encoding, self.separator, self.quoting, self.sheet)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.text is not None and not self.text:
            raise ValueError("`text` names no file")
        if self.text is None and "text_column" in self.model_fields_set:
            raise ValueError("`text_column` has no effect without `text`")
        checked = {"group"}  # across given files, too
        if self.validation is not None and self.test is not None and self.split.model_fields_set - checked:
            raise ValueError("`split` has no effect: validation and test are given as files")
        if self.split.method == "folds":
            unused = ["validation", "validation_rows", *(["test_rows"] if self.test is None else [])]
            if given := [name for name in unused if getattr(self, name) is not None]:
                raise ValueError(f"`{given[0]}` has no effect with `split.method: folds`, which has no such split")
        return self

    def may_use_folds(self) -> bool:
        """Whether `split.method: auto` may choose folds: nothing else in the task file asks for a cut."""
        cut = {"validation", "test", "time"} & self.split.model_fields_set
        limited = self.validation_rows is not None or (self.test is None and self.test_rows is not None)
        return self.validation is None and not cut and not limited


class Corpus(Section):
    """The documents in which answers are looked up."""

    files: str | list[str] = Field(
        description="Files, folders and globs (txt, md, html, pdf, docx, pptx, epub, eml; csv, tsv, xlsx, jsonl, json, "
        "parquet: a row is a document), or hf:org/name[:config][#split].",
        examples=["manuals/", ["handbook.pdf", "faq.csv", "notes/**/*.md"]],
    )
    text_column: str | None = Field(None, description="Text column of tables; default: all, as `name: value` lines.")
    title_column: str | None = Field(None, description="Title column of tables.")
    id_column: str | None = Field(None, description="Column of tables that names a row; default: its line.")
    metadata: list[str] = Field(default_factory=list, description="Columns to filter by.", examples=[["product"]])
    encoding: Encoding = Field(AUTO, description=ENCODING, examples=["utf-8", "cp1252"])
    separator: Separator = Field(AUTO, description=SEPARATOR, examples=[";", "tab"])
    max_megabytes: Count = Field(50, description="Larger files are left out and reported.")
    encoder: str = Field(ENCODER, description="The sentence encoder: embedded-encoder, a Hub id or a folder.")
    precision: Literal["fp32", "int8"] = Field(
        "fp32",
        description="Of the encoder's weights; int8 builds large corpora about twice as fast on processors.",
    )
    chunk_tokens: Count | None = Field(
        None, description="Longest passage in encoder tokens, with headings; default: 250 or the encoder's limit."
    )
    overlap_tokens: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Tokens, in whole sentences, that a passage shares with the next; default: a third."
    )
    store: str | None = Field(
        None,
        description="URL of the index in an object store, for several machines: s3://, gs:// or az://; default: cache.",
        examples=["s3://bucket/index"],
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.files:
            raise ValueError("`files` names no file")
        if self.chunk_tokens is not None and 2 * (self.overlap_tokens or 0) > self.chunk_tokens:
            raise ValueError("`overlap_tokens` is more than half of `chunk_tokens`")
        if self.store is not None and not OBJECT_STORE_URL.fullmatch(self.store):
            raise ValueError("`store` must be s3://BUCKET/PATH, gs://BUCKET/PATH or az://CONTAINER/PATH")
        return self

    @property
    def sources(self) -> tuple[str, ...]:
        """`files` as a tuple."""
        return (self.files,) if isinstance(self.files, str) else tuple(self.files)


TEMPLATE_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


def placeholders(template: str) -> tuple[str, ...]:
    """List the columns of a template in order of first use; raise ConfigError for a single brace."""
    names: dict[str, None] = {}
    for match in TEMPLATE_PIECE.finditer(template):
        if match.group() in "{}":
            problem = f"a single `{match.group()}` at character {match.start()} of the template {template!r}"
            hint = "write a column as {column}, and a literal brace twice: {{ or }}"
            raise ConfigError("bad-template", problem, hint=hint)
        if match.group(1) is not None:
            names[match.group(1)] = None
    return tuple(names)


class TaskSpec(Section):
    """What the model must do: input columns, one output, instruction, metric, data, constraints."""

    name: str = Field(
        pattern=TASK_NAME.pattern, description="Name of the task and its folders.", examples=["banking77"]
    )
    instruction: str = Field(
        "",
        description="What to do, in a sentence or more; kind chat needs none.",
        examples=["Which intent does this message express?"],
    )
    system: str | list[str] | None = Field(
        None,
        description="A system prompt, or several; the climb measures whether they help.",
        examples=["You are a careful clerk."],
    )
    inputs: Annotated[list[str], Field(min_length=1)] = Field(
        description="Columns that the model reads; dots reach into JSON.", examples=[["text"]]
    )
    output: Output = Field(description="What it must answer.")
    data: DataSource = Field(
        default_factory=lambda: DataSource(),
        description="Where the rows are, and which of them to use; not needed to ask a `corpus`.",
    )
    corpus: Corpus | None = Field(None, description="Documents in which answers are looked up.")
    metric: str | dict[str, Any] | None = Field(
        None,
        description="accuracy, exact_match, rougeL, ..., or mymodule:function; {name: ..., settings} for settings.",
        examples=["rougeL", {"name": "sql_execution", "database": "shop.sqlite"}],
    )
    model: str = Field(
        "embedded",
        description="embedded, a Hub id, a folder, a .gguf file, or an endpoint; or a list, to climb with each.",
        examples=["embedded", "org/name", ["embedded", "org/name"]],
        json_schema_extra=_text_or_list,
    )
    other_models: SkipJsonSchema[list[str]] = Field(
        default_factory=list, description="The models after the first of a list; set by Rung."
    )
    thinking: Annotated[
        Literal["off", "on", "low", "medium", "high"],
        BeforeValidator(lambda value: {True: "on", False: "off"}[value] if isinstance(value, bool) else value),
    ] = Field(  # YAML reads `on` as true
        "off", description="Whether the model thinks before it answers, and how much; for models trained to think."
    )
    template: str | None = Field(None, description="User turn; {column} inserts a value.", examples=["Message: {text}"])
    overflow: Overflow = Field(
        "error",
        description="A prompt longer than the context: error, drop_demonstrations (least similar first), "
        "shorten_passages (least relevant first), or truncate_input (after all demonstrations and passages).",
        examples=["drop_demonstrations", "shorten_passages", "truncate_input"],
    )
    tools: list[str | McpServer] = Field(
        default_factory=list,
        description="Tools of the model: Python functions as module:function, and MCP servers.",
        examples=[["mytools:look_up", {"mcp": ["python", "server.py"]}]],
    )
    agent: AgentLimits = Field(default_factory=AgentLimits, description="Limits of a model with `tools`.")
    rungs: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="Settings of rungs that replace their defaults; `rung rungs` lists them. A list of values "
        "`[a, b]` for a setting makes one rung for each value.",
        examples=[{"lora": {"rank": 8, "learning_rate": "auto"}}],
    )
    needs: Needs | None = Field(None, description="What the decision guide cannot measure: `rung advise` asks for it.")
    machine: MachineSpec | None = Field(None, description="The machine that runs models, for their price.")
    confidence: Confidence | None = Field(
        None, description="Calibrate the recommended artifact's confidence; for category and multilabel."
    )
    constraints: Constraints = Field(default_factory=lambda: Constraints(), description="Limits of the climb.")
    _folder: Path = PrivateAttr(default=Path())

    @model_validator(mode="before")
    @classmethod
    def _first_model(cls, values: Any) -> Any:
        """Split a list of models: the climb starts from the first."""
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
    def _template_fits(self) -> Self:
        """Check the columns of the template; raise ConfigError, which suggests the column meant."""
        if self.template is None:
            return self
        names = placeholders(self.template)
        if not names:
            hint = f"write {{{self.inputs[0]}}} where its value belongs"
            raise ConfigError("bad-template", "the template asks for no input column", hint=hint)
        for name in names:
            if name not in self.inputs:
                problem = f"the template asks for {{{name}}}, which is not among the inputs"
                raise ConfigError("bad-template", problem, hint=suggest(name, self.inputs))
        return self

    @model_validator(mode="after")
    def _has_rows(self) -> Self:
        if self.data.train is None and self.corpus is None:
            missing = "data" if "data" not in self.model_fields_set else "data.train"
            hint = "`rung schema` lists every key; `rung init data.csv` writes a file to start from"
            raise ConfigError("missing-key", f"the key `{missing}` is missing", hint=hint)
        return self

    @model_validator(mode="after")
    def _has_an_instruction(self) -> Self:
        if not self.instruction.strip() and self.output.kind != "chat":
            hint = "say what to do, in a sentence or more; only kind chat needs no instruction"
            raise ConfigError("missing-key", "the key `instruction` is missing or empty", hint=hint)
        return self

    @model_validator(mode="after")
    def _columns_fit(self) -> Self:
        if len(set(self.inputs)) < len(self.inputs):
            raise ValueError("`inputs` names a column twice")
        answers = (self.output.column, *(self.output.columns or ()))
        if both := [name for name in self.inputs if name in answers]:
            raise ConfigError(
                "bad-value", f"the column {both[0]!r} is both input and output",
                hint="take it out of `inputs`: the model would read its answer",
            )  # fmt: skip
        if self.output.kind == "chat" and len(self.inputs) != 1:
            raise ValueError("kind chat reads one input column, which contains the messages")
        if self.output.kind == "chat" and self.template is not None:
            raise ValueError("`template` has no effect on kind chat: the messages are sent unchanged")
        if self.tools and self.output.kind != "text":
            raise ValueError(f"`tools` belong to kind text, not {self.output.kind}")
        if self.tools and self.thinking != "off":
            raise ValueError("`thinking` has no effect with `tools`: an agent acts without written thoughts")
        if self.tools and self.output.regex is not None:
            raise ValueError("`output.regex` has no effect with `tools`, whose calls it does not allow")
        if not self.tools and "agent" in self.model_fields_set:
            raise ValueError("`agent` has no effect without `tools`")
        if isinstance(self.metric, dict) and not isinstance(self.metric.get("name"), str):
            raise ValueError("`metric` lacks a `name`: write {name: judge, model: ...}")
        if self.corpus is None and self.data.spans is not None:
            raise ValueError("`data.spans` refers to documents, but there is no `corpus`")
        if self.corpus is None and self.overflow == "shorten_passages":
            raise ValueError("`overflow: shorten_passages` has no effect without a `corpus`")
        if self.output.kind == "chat" and self.overflow == "truncate_input":
            raise ValueError("`overflow: truncate_input` has no effect on kind chat: a conversation is not cut")
        if self.output.kind != "category" and self.data.train_per_label is not None:
            raise ValueError("`data.train_per_label` belongs to kind category; use `data.train_rows`")
        if self.confidence is not None and self.output.kind not in LABELLED:
            raise ValueError("`confidence` belongs to the kinds category and multilabel: others have no labels")
        return self

    @property
    def metric_name(self) -> str:
        """The metric's name: the given one, or the default of the kind."""
        if isinstance(self.metric, dict):
            return str(self.metric["name"])
        return self.metric or DEFAULT_METRICS[self.output.kind]

    @property
    def metric_settings(self) -> dict[str, Any]:
        """The metric's settings."""
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

    @property
    def models(self) -> tuple[str, ...]:
        """All models; the climb starts from the first."""
        return (self.model, *self.other_models)

    def fingerprint(self) -> str:
        """Hash every setting of the task."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()
