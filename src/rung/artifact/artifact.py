"""Artifact: a customized model as one frozen value. It predicts, shows its prompts, saves and loads."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rung.agents.agent import Agent, protocol_for
from rung.agents.calls import json_head
from rung.agents.toolbox import find_tools
from rung.agents.tools import McpServer
from rung.artifact.confidence import Calibration
from rung.artifact.lookup import Nearest
from rung.artifact.parts import BASE, Answer, Decoder, Generate, LabelScoring, Probable, Weights, unfitted
from rung.data.rows import LABELLED, Example, example_id
from rung.engines.api_server import scores_labels
from rung.engines.base import Engine
from rung.engines.opening import open_encoder, open_engine
from rung.errors import ConfigError, DataError
from rung.models.messages import Messages
from rung.models.reference import is_endpoint
from rung.progress import QUIET, Progress
from rung.prompts.demonstrations import Demonstrations
from rung.prompts.overflow import Overflow, Rendered
from rung.prompts.prompt import Prompt, block, default_template, placeholders, verbalize
from rung.retrieval.passage import Passage, cited, resolve
from rung.retrieval.retriever import Retriever

if TYPE_CHECKING:
    from rung.task import Task

LISTED_LABELS = 20  # label sets up to this size are named in the prompt; longer lists mislead small models
DEFAULT_MAX_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Shape:
    """What an artifact has to know of its task: names, columns and labels."""

    task: str
    inputs: tuple[str, ...]
    kind: str
    metric: str
    labels: tuple[str, ...] = ()
    metric_settings: Mapping[str, Any] = field(default_factory=dict)
    refusal: str = ""


@dataclass(frozen=True)
class Artifact:
    """Prompt + Demonstrations + Retriever + Weights + Decoder on a base model, frozen.

    Rungs return a changed copy (`replace`); nothing ever changes one in place. `path` names the rungs that made it,
    `settings` what they were set to. `overflow` is the policy for prompts longer than the model reads.
    """

    shape: Shape
    model: str
    prompt: Prompt
    decoder: Decoder
    demonstrations: Demonstrations | None = None
    retriever: Retriever | None = None
    weights: Weights = BASE
    overflow: Overflow = "error"
    engine: str = "auto"
    path: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    # ---- making

    @classmethod
    def zero_shot(cls, task: Task, labels: Sequence[str] = (), *, engine: str = "auto") -> Self:
        """Return the first artifact of every climb: the plain prompt on the base model.

        Args:
            task: the task.
            labels: the label set of a category task, where the task file does not give one.
            engine: which engine runs it.

        Raises:
            ConfigError: the task names several models.
        """
        if task.other_models:
            raise ConfigError(
                "bad-value",
                f"the task names {len(task.models)} models, and one is wanted here",
                hint=f"name it: --set model={task.model}, or Task.only in Python",
            )
        output = task.output
        known = tuple(output.labels or labels or (task.read().labels if output.kind in LABELLED else ()))
        texts = known if output.kind == "multilabel" else verbalize(known)  # lists of labels are written verbatim
        described = tuple(
            (t, output.descriptions[k]) for k, t in zip(known, texts, strict=True) if k in output.descriptions
        )
        prompt = Prompt(
            instruction=task.instruction,
            template=task.template or default_template(task.inputs),
            labels=texts if len(known) <= LISTED_LABELS or described else (),
            descriptions=described,
            several=output.kind == "multilabel",
            chat_column=task.inputs[0] if output.kind == "chat" else None,
        )
        decoder: Decoder = Generate(output.max_tokens or DEFAULT_MAX_TOKENS, output.schema_text(), regex=output.regex)
        if output.kind == "multilabel":
            decoder = Generate(output.max_tokens or DEFAULT_MAX_TOKENS, labels_schema(known))
        elif output.kind == "category":
            decoder = _category_decoder(task.model, engine, known, texts)
        elif output.kind == "ranking":
            decoder = _nearest(task, prompt)
        elif task.tools:
            decoder = _agent(task)
            prompt = replace(prompt, protocol=json_head(decoder.tools) if decoder.protocol == "json" else "")
        shape = Shape(
            task.name, tuple(task.inputs), output.kind, task.metric_name, known, task.metric_settings,
            output.refusal or "",
        )  # fmt: skip
        return cls(
            shape=shape, model=task.model, prompt=prompt, decoder=decoder, overflow=task.overflow, engine=engine,
            path=("zero-shot",),
        )  # fmt: skip

    def step(self, rung: str, settings: Mapping[str, Any], **parts: Any) -> Self:
        """Return a copy with `parts` replaced, one rung higher; confidence has to be fitted anew."""
        parts["decoder"] = unfitted(parts.get("decoder", self.decoder))
        return replace(self, path=(*self.path, rung), settings={**self.settings, rung: dict(settings)}, **parts)

    @property
    def name(self) -> str:
        """The rungs above zero-shot, joined: `few-shot-knn+lora`; `zero-shot` itself where there is none."""
        return "+".join(self.path[1:]) or self.path[0]

    @property
    def confidence(self) -> Calibration | None:
        """How probabilities become confidences, where that was fitted."""
        return self.decoder.confidence if isinstance(self.decoder, Probable) else None

    @property
    def abstains(self) -> bool:
        """Whether answers may be marked as abstained."""
        return self.confidence is not None and self.confidence.abstain_below is not None

    @property
    def out_of_scope(self) -> str | None:
        """The label whose rows are right to abstain on."""
        return None if self.confidence is None else self.confidence.out_of_scope

    # ---- running

    @cached_property
    def _engine(self) -> Engine:
        return open_engine(self.model, self.engine, quantization=self.weights.base)

    def open(self) -> Engine:
        """Return the engine that runs this artifact, loading it at the first call."""
        return self._engine

    def on(self, engine: Engine) -> Self:
        """Return a copy that runs on this very engine."""
        copy = replace(self)
        vars(copy)["_engine"] = engine  # where the cached property keeps it
        return copy

    def predict(
        self, rows: Sequence[Mapping[str, Any]], *, full: bool = True, progress: Progress = QUIET
    ) -> list[Answer]:
        """Answer every row. What an answer cites of the documents is in its `citations`, and its marks in `written`.

        Args:
            rows: one mapping per row with the task's input columns; other columns are not looked at.
            full: compute the probability of every label; without, only the answer is certain and much is saved.
            progress: told of every batch.

        Raises:
            DataError: a row lacks an input column.
        """
        return self.answer([self._example(row, i) for i, row in enumerate(rows)], full=full, progress=progress)

    def answer(
        self,
        examples: Sequence[Example],
        *,
        full: bool = True,
        passages: Sequence[Sequence[Passage]] | None = None,
        progress: Progress = QUIET,
    ) -> list[Answer]:
        """Answer examples of the task's data, as `predict` does; `passages` stand for what would be retrieved."""
        if not examples:
            return []
        return self.decoder.answer(self, examples, full=full, passages=passages, progress=progress)

    def finished(self, answer: Answer, rendered: Rendered) -> Answer:
        """Return an answer with what was left out of its prompt, the passages it read, and its citations resolved."""
        text, citations = resolve(answer.text, rendered.passages) if self.cites else (answer.text, ())
        return replace(
            answer,
            text=text,
            written=answer.text,
            citations=citations,
            passages=rendered.passages,
            refused=rendered.refused,
            dropped_demonstrations=rendered.dropped_demonstrations,
            dropped_passages=rendered.dropped_passages,
            shortened_passages=rendered.shortened_passages,
        )

    @property
    def cites(self) -> bool:
        """Whether answers name the passages they are from: those that are free text do."""
        return self.retriever is not None and self.decoder.free and self.shape.kind in ("text", "chat")

    def refusal(self, rendered: Rendered) -> Answer:
        """Return the answer to a row for which nothing relevant was found."""
        assert self.retriever is not None
        return Answer(self.retriever.refusal, None, None, 0, 0, 0.0, rendered.messages)

    def members(self) -> tuple[Self, ...]:
        """Return an artifact per prompt that every row is asked with: one, or as many as demonstrations have sets."""
        if self.demonstrations is None or self.demonstrations.sets == 1:
            return (self,)
        members = (replace(self, demonstrations=shown) for shown in self.demonstrations.members())
        return tuple(member.on(self.open()) for member in members)

    def render(self, examples: Sequence[Example], *, progress: Progress = QUIET) -> list[Messages]:
        """Return the exact messages of every example, demonstrations included."""
        return [one.messages for one in self.fit_to_context(examples, progress=progress)]

    def fit_to_context(
        self,
        examples: Sequence[Example],
        *,
        passages: Sequence[Sequence[Passage]] | None = None,
        progress: Progress = QUIET,
    ) -> list[Rendered]:
        """Return the exact messages of every example, and what the overflow policy left out of them.

        Args:
            examples: the rows.
            passages: what to show of the documents for each row, in this order, instead of what a search finds.
            progress: told of encoding.
        """
        return self.decoder.fit_to_context(self, examples, passages=passages, progress=progress)

    def passage_cost(self) -> Callable[[Passage], int]:
        """Return what counts the tokens of a passage, each once."""
        engine, costs = self.open(), dict[str, int]()

        def cost(passage: Passage) -> int:
            if passage.id not in costs:
                text: Messages = ({"role": "user", "content": block([passage])},)
                costs[passage.id] = engine.count(text)
            return costs[passage.id]

        return cost

    def spoken(self, output: str) -> str:
        """Return an expected output as the model should write it: the label's text, or the output itself."""
        return self.decoder.spoken(output, self.shape.labels)

    def target(self, row: Example, output: str, passages: Sequence[Passage]) -> str:
        """Return what the model should write behind a row's prompt: the answer, and the passages it is from."""
        return cited(self.spoken(output), row, passages) if self.cites else self.spoken(output)

    def messages(self, row: Mapping[str, Any]) -> Messages:
        """Return the exact messages sent for one row."""
        return self.rendered(row).messages

    def rendered(self, row: Mapping[str, Any]) -> Rendered:
        """Return the exact messages sent for one row, and what the overflow policy left out of them."""
        return self.fit_to_context([self._example(row, 0)])[0]

    def text(self, messages: Messages) -> str:
        """Return the exact final text that messages become; for a head, the text that is encoded."""
        return self.decoder.text(self, messages)

    def _example(self, row: Mapping[str, Any], index: int) -> Example:
        missing = [column for column in self.shape.inputs if column not in row]
        if missing:
            raise DataError(
                "missing-column",
                f"row {index + 1} has no column {missing[0]!r}; it has {', '.join(map(repr, row)) or 'none'}",
                hint=f"this artifact reads {', '.join(self.shape.inputs)}",
            )
        inputs = {column: row[column] for column in self.shape.inputs}
        return Example(example_id(inputs), inputs, (), f"row {index + 1}")

    # ---- keeping

    def save(self, folder: str | Path) -> Path:
        """Write the artifact into a new folder; see `rung.artifact.files`."""
        from rung.artifact.files import save

        return save(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path) -> Artifact:
        """Read an artifact back, checking every file, the base model and the prompt's fingerprint."""
        from rung.artifact.files import load

        return load(Path(folder))


def _category_decoder(model: str, engine: str, labels: tuple[str, ...], texts: tuple[str, ...]) -> Decoder:
    """Score labels wherever scores are exact and cheap; else have the model write one, held to the label set."""
    if not is_endpoint(model):
        return LabelScoring(labels, texts)
    if scores_labels(open_engine(model, engine).info.details["scoring"], len(labels), LISTED_LABELS):
        return LabelScoring(labels, texts)
    # No vocabulary of bytes needs more tokens than a text has bytes.
    return Generate(max(len(text.encode()) for text in texts) + 8, choices=texts)


def _nearest(task: Task, prompt: Prompt) -> Nearest:
    """Encode the training rows: they are the table."""
    table = task.read().train
    texts = [prompt.question(row.inputs) for row in table]
    vectors = open_encoder(task.output.encoder).embed(texts)
    rows, outputs = tuple(row.inputs for row in table), tuple(row.outputs[0] for row in table)
    return Nearest(task.output.k, task.output.encoder, rows, outputs, vectors)


def _agent(task: Task) -> Agent:
    """Find the task's tools, and how this model calls them."""
    return Agent(
        tools=find_tools(task.tools, task.folder),
        servers=tuple(one for one in task.tools if isinstance(one, McpServer)),
        folder=task.folder,
        protocol=protocol_for(task.model),
        max_tokens=task.output.max_tokens or DEFAULT_MAX_TOKENS,
        limits=task.agent,
    )


def labels_schema(labels: Sequence[str]) -> str:
    """Return the JSON Schema of a list of labels, each of which may be in it."""
    items = {"type": "string", "enum": list(labels)}
    return json.dumps({"type": "array", "items": items, "maxItems": len(labels)}, ensure_ascii=False)


def check_template(template: str, columns: Sequence[str]) -> tuple[str, ...]:
    """Return the placeholders of `template` that are not among `columns`."""
    return tuple(name for name in placeholders(template) if name not in columns)
