"""The task's specification: the sections and keys of a task file, as pydantic models that know no layer above."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator
from pydantic.json_schema import SkipJsonSchema

from rung.data.kinds import DEFAULT_METRICS, OutputKind
from rung.data.rows import LABELLED
from rung.errors import ConfigError, suggest

ENCODER = "embedded-encoder"
OBJECT_STORE_URL = re.compile(r"(s3|gs|az)://[^/?#\s][^?#\s]*")
Overflow = Literal["error", "drop_demonstrations", "shorten_passages"]
POLICIES: tuple[str, ...] = get_args(Overflow)
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


class Corpus(_Strict):
    """The documents that answers are looked up in."""

    files: str | list[str] = Field(
        description="Files, folders and globs (txt, md, html, pdf, docx; csv, tsv, jsonl, json, parquet: a row is a "
        "document), or hf:org/name[:config][#split].",
        examples=["manuals/", ["handbook.pdf", "faq.csv", "notes/**/*.md"]],
    )
    text_column: str | None = Field(
        None, description="The column of tables that holds the text; without, all columns as `name: value` lines."
    )
    title_column: str | None = Field(None, description="The column of tables that holds the title.")
    id_column: str | None = Field(None, description="The column of tables that names a row; without, its line.")
    metadata: list[str] = Field(
        default_factory=list, description="Columns of tables that searches may filter by.", examples=[["product"]]
    )
    encoding: str = Field("utf-8", description="Text encoding of the files.", examples=["utf-8", "latin-1"])
    max_megabytes: Count = Field(50, description="Larger files are left out, counted and shown.")
    encoder: str = Field(ENCODER, description="The sentence encoder: embedded-encoder, a Hub id or a folder.")
    chunk_tokens: Count | None = Field(
        None, description="Longest passage in the encoder's tokens, headings included; without, 250 or its limit."
    )
    overlap_tokens: Annotated[int, Field(ge=0)] | None = Field(
        None, description="So many tokens of a passage, whole sentences, begin the next one too; without, a third."
    )
    store: str | None = Field(
        None,
        description="URL of the index in an object store, for more than a machine: s3://, gs:// or az://; without, "
        "it lies in the cache.",
        examples=["s3://bucket/index"],
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.files:
            raise ValueError("`files` names no file")
        if (
            self.chunk_tokens is not None
            and self.overlap_tokens is not None
            and self.overlap_tokens * 2 > self.chunk_tokens
        ):
            raise ValueError("`overlap_tokens` is more than half of `chunk_tokens`")
        if self.store is not None and not OBJECT_STORE_URL.fullmatch(self.store):
            raise ValueError("`store` has to be s3://BUCKET/PATH, gs://BUCKET/PATH or az://CONTAINER/PATH")
        try:
            "a".encode(self.encoding)
        except LookupError:
            raise ValueError(f"no text encoding is named {self.encoding!r}") from None
        return self

    @property
    def sources(self) -> tuple[str, ...]:
        """`files`, always as several."""
        return (self.files,) if isinstance(self.files, str) else tuple(self.files)


class McpServer(_Strict):
    """A server of tools on this machine that speaks the Model Context Protocol over stdin and stdout."""

    mcp: list[str] = Field(
        min_length=1,
        description="The command that starts it; no shell reads it.",
        examples=[["python", "server.py"]],
    )
    only: list[str] | None = Field(None, description="The tools of it to use; without, all.", examples=[["search"]])


class AgentLimits(_Strict):
    """How far an agent may go."""

    max_steps: int = Field(8, ge=1, description="Most turns of the model for one row, the answer included.")
    max_tokens: int = Field(1024, ge=1, description="Most tokens that it may write for one row, all turns together.")
    seconds: float = Field(10.0, gt=0, description="Most time of one call of a tool.")
    result_characters: int = Field(4000, ge=16, description="Longest result shown to the model; the rest is cut.")


TEMPLATE_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


def placeholders(template: str) -> tuple[str, ...]:
    """Return the column names that `template` asks for, in order of first use.

    Raises:
        ConfigError: a brace is not closed (write `{{` and `}}` for literal braces).
    """
    names: dict[str, None] = {}
    for match in TEMPLATE_PIECE.finditer(template):
        if match.group() in "{}":
            raise ConfigError(
                "bad-template",
                f"a single `{match.group()}` at character {match.start()} of the template {template!r}",
                hint="write a column as {column}, and a literal brace twice: {{ or }}",
            )
        if match.group(1) is not None:
            names[match.group(1)] = None
    return tuple(names)


class TaskSpec(_Strict):
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
    agent: AgentLimits = Field(default_factory=AgentLimits, description="How far the model may go with `tools`.")
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
    def _template_fits(self) -> Self:
        """Check the columns that the template asks for; raises ConfigError, which names the column meant."""
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
    def _columns_fit(self) -> Self:
        if len(set(self.inputs)) < len(self.inputs):
            raise ValueError("`inputs` names a column twice")
        if self.output.column in self.inputs:
            raise ConfigError(
                "bad-value", f"the column {self.output.column!r} is both input and output",
                hint="take it out of `inputs`: the model would read its answer",
            )  # fmt: skip
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

    @property
    def models(self) -> tuple[str, ...]:
        """All models, the one that the climb starts from first."""
        return (self.model, *self.other_models)

    def fingerprint(self) -> str:
        """Return a hash of every setting of the task."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()
