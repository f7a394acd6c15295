"""Artifact: a customized model as one frozen value. It predicts, renders its prompts, saves and loads."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self, cast

import numpy as np

from rung.agents.calls import json_head
from rung.agents.toolbox import find_tools
from rung.artifact import best_of, heads, records, sentences, yardsticks  # noqa: F401  # registers every decoder
from rung.artifact.agent import Agent, protocol_for
from rung.artifact.costs import tokenizer_of
from rung.artifact.decoder import Answer, ArtifactReader, ArtifactWriter, Composition, Decoder, decoder_of_kind
from rung.artifact.files import (
    FORMAT,
    artifact_folder,
    artifact_settings,
    check_manifest,
    check_new,
    damaged,
    fingerprint,
    read_arrays,
    write_manifest,
)
from rung.artifact.labels import LabelScoring
from rung.artifact.lookup import Nearest
from rung.artifact.parts import BASE, Signature, Weights
from rung.artifact.rendering import Given
from rung.artifact.text import Generate
from rung.data.examples import given_records, not_blank, read_row, whole_rows
from rung.data.kinds import TASK_NAME
from rung.data.rows import LABELLED, Example
from rung.data.sections import McpServer
from rung.data.spec import POLICIES, Output, Overflow
from rung.data.texts import number_pattern, spread
from rung.engines.api_server import scores_labels
from rung.engines.base import Engine
from rung.engines.opening import open_encoder, open_engine, settled
from rung.errors import ArtifactError, ConfigError
from rung.models.cache import publish
from rung.models.messages import Messages
from rung.models.reference import is_endpoint, resolve
from rung.models.thinking import thought_beginning
from rung.progress import QUIET, Progress, card, default_progress
from rung.prompts.answer_form import number_form, record_form
from rung.prompts.demonstrations import Demonstrations, pool_as_json, pool_from_json
from rung.prompts.overflow import Rendered
from rung.prompts.prompt import Prompt, default_template, verbalize
from rung.retrieval.retriever import LOCATION, Retriever, check_index
from rung.retrieval.store import location_of
from rung.task import Task
from rung.user_code import name_endpoint
from rung.yamlfile import read_json

LISTED_LABELS = 20  # the prompt lists label sets up to this size; longer lists mislead small models
DEFAULT_MAX_TOKENS = 256
NUMBER_TOKENS = 32  # a number of `number_pattern` has at most 26 characters
OTHER_VERSION = "run the climb again, or use the version of Rung that saved the artifact"  # hint


@dataclass(frozen=True)
class Artifact:
    """Prompt + Demonstrations + Retriever + Weights + Decoder on a base model, frozen.

    Rungs return a changed copy (`step`) and never change an artifact in place.

    Attributes:
        signature: the task's names, columns and labels.
        model: reference of the base model.
        prompt: turns a row into chat messages.
        decoder: turns rows into answers.
        demonstrations: solved rows that the prompt shows.
        retriever: finds passages in the user's documents.
        weights: the base model's weights, or a trained change of them.
        overflow: the policy for prompts that are longer than the model's context.
        engine: which engine runs the model: `auto`, `torch`, `openvino`, `openvino-int4`, `openvino-fp32`, `api`.
        path: the rungs that produced it.
        settings: the settings of those rungs.

    Example:
        >>> zero = rung.Artifact.zero_shot(rung.Task.load("task.yaml"))  # doctest: +SKIP
        >>> zero.predict([{"text": "My card has not arrived."}])[0].text  # doctest: +SKIP
        'card_arrival'
    """

    signature: Signature
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

    def __repr__(self) -> str:
        return f"Artifact({self.signature.task}: {self.name} on {self.model})"

    def _repr_html_(self) -> str:
        facts = {
            "task": self.signature.task, "rungs": ", ".join(self.path), "model": self.model,
            "decoder": self.decoder.kind, "labels": len(self.signature.labels) or None,
            "demonstrations": self.demonstrations and type(self.demonstrations).__name__,
            "instruction": self.prompt.instruction,
        }  # fmt: skip
        return card(f"Artifact {self.name}", facts)

    @classmethod
    def zero_shot(cls, task: Task, labels: Sequence[str] = (), *, engine: str = "auto") -> Self:
        """Make the first artifact of every climb: the plain prompt on the base model.

        Args:
            task: the task.
            labels: the label set of a category task, if the task file does not give one.
            engine: which engine runs it.

        Raises:
            ConfigError: the task names several models.
        """
        if task.other_models:
            hint = f"choose one: --set model={task.model}, or Task.only in Python"
            raise ConfigError("bad-value", f"the task names {len(task.models)} models, but this needs one", hint=hint)
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
            answer_form=_answer_form(output),
            thinking=task.thinking,
        )
        if task.thinking != "off" and not is_endpoint(task.model):
            with task.located("thinking"):
                thought_beginning(
                    tokenizer_of(resolve(task.model)), task.thinking
                )  # raises where there are no thoughts
        schema = labels_schema(known) if output.kind == "multilabel" else output.schema_text()
        decoder: Decoder = Generate(output.max_tokens or DEFAULT_MAX_TOKENS, schema, regex=output.regex)
        if output.kind == "number":
            pattern = number_pattern(output.minimum, output.maximum, whole=output.whole)
            decoder = Generate(NUMBER_TOKENS, regex=pattern)
        if output.kind == "category":
            decoder = _category_decoder(task.model, engine, known, texts)
        elif output.kind == "ranking":
            decoder = _nearest(task, prompt)
        elif task.tools:
            decoder = _agent(task)
            prompt = replace(prompt, protocol=json_head(decoder.tools) if decoder.protocol == "json" else "")
        signature = Signature(
            task.name, tuple(task.inputs), output.kind, task.metric_name, known, _metric_settings(task),
            output.refusal or "", output.column,
        )  # fmt: skip
        return cls(
            signature=signature, model=task.model, prompt=prompt, decoder=decoder, overflow=task.overflow,
            engine=engine, path=("zero-shot",),
        )  # fmt: skip

    def step(self, rung: str, settings: Mapping[str, Any], **parts: Any) -> Self:
        """Copy the artifact with `parts` replaced and the rung recorded; drop the fitted confidence."""
        parts["decoder"] = parts.get("decoder", self.decoder).without_confidence()
        return replace(self, path=(*self.path, rung), settings={**self.settings, rung: dict(settings)}, **parts)

    @property
    def name(self) -> str:
        """The rungs above zero-shot, joined: `few-shot-knn+lora`; `zero-shot` itself if there are none."""
        return "+".join(self.path[1:]) or self.path[0]

    # ---- running

    def open(self, progress: Progress = QUIET) -> Engine:
        """Give the engine that runs this artifact; the first call loads it."""
        if "_engine" not in vars(self):
            quantization = self.weights.base
            vars(self)["_engine"] = open_engine(self.model, self.engine, quantization=quantization, progress=progress)
        engine: Engine = vars(self)["_engine"]
        return engine

    def with_engine(self, engine: Engine) -> Self:
        """Copy the artifact with this engine, already open."""
        copy = replace(self)
        vars(copy)["_engine"] = engine
        return copy

    def prompt_variants(self) -> tuple[Self, ...]:
        """Give one artifact per prompt of a row: several if demonstrations come in sets."""
        if self.demonstrations is None or self.demonstrations.sets == 1:
            return (self,)
        variants = (replace(self, demonstrations=shown) for shown in self.demonstrations.members())
        return tuple(variant.with_engine(self.open()) for variant in variants)

    def predict(self, rows: Any, *, full: bool = True, progress: Progress | None = None) -> list[Answer]:
        """Answer every row.

        Args:
            rows: mappings with the task's input columns (other columns are not read), a frame of pandas or polars, an
                Arrow table, a `datasets.Dataset`, or the `pathlib.Path` of a file; for a task with one input also a
                text, or a list of texts. A conversation that ends with its answer is answered without it.
            full: compute the probability of every label; without it, only the answer is computed, which is faster.
            progress: reports every batch; by default where a person watches, in a terminal or a notebook.

        Raises:
            DataError: a row lacks an input column, is empty, or is no row; the message names it.
        """
        shape = self.signature
        given = whole_rows(given_records(rows, shape.inputs, shape.kind), shape.inputs, shape.kind)
        examples = [read_row(record.values, shape.inputs, shape.kind, record.source) for record in given]
        for example in examples:
            not_blank(example.inputs, example.source)
        return self.answer(examples, full=full, progress=progress or default_progress())

    def answer(
        self, examples: Sequence[Example], *, full: bool = True, passages: Given = None, progress: Progress = QUIET
    ) -> list[Answer]:
        """Answer examples of the task's data, as `predict` does; `passages` replace what a search would find."""
        if not examples:
            return []
        return self.decoder.answer(self, examples, full=full, passages=passages, progress=progress)

    def render(
        self, examples: Sequence[Example], *, passages: Given = None, progress: Progress = QUIET
    ) -> list[Rendered]:
        """Render the exact messages of every example, demonstrations and passages included."""
        return self.decoder.render(self, examples, passages=passages, progress=progress)

    def rendered(self, row: Mapping[str, Any]) -> Rendered:
        """Render the exact messages of one row, and report what the overflow policy left out of them."""
        return self.render([self._example(row, 0)])[0]

    def messages(self, row: Mapping[str, Any]) -> Messages:
        """Render the exact messages of one row."""
        return self.rendered(row).messages

    def text(self, messages: Messages) -> str:
        """Give the exact final text that messages become; for a head, the text that is encoded."""
        return self.decoder.text(self, messages)

    def _example(self, row: Mapping[str, Any], index: int) -> Example:
        return read_row(row, self.signature.inputs, self.signature.kind, f"row {index + 1}")

    # ---- saving and loading; `rung.artifact.files` describes the folder

    def save(self, folder: str | Path) -> Path:
        """Write the artifact into a new folder, completely or not at all.

        Raises:
            ArtifactError: the folder exists and is not empty.
        """
        folder = Path(folder)
        check_new(folder)
        final = folder.resolve()
        publish(folder, lambda target: _write(self, target, final, final.parent))
        return folder

    def fingerprint(self) -> str:
        """Compute the fingerprint that the artifact would have as a folder."""
        with TemporaryDirectory() as folder:
            return fingerprint(self.save(Path(folder) / "artifact"))

    @classmethod
    def load(cls, folder: str | Path, progress: Progress = QUIET) -> Self:
        """Read an artifact back, checking every file, the base model and the prompt's fingerprint.

        Args:
            folder: the artifact's folder, or the run folder of a climb, whose recommended artifact is read.
            progress: reports the download of a base model that is not here yet.

        Raises:
            ArtifactError: the folder is not an artifact, a file is missing, changed or not listed, the prompt does not
                match its fingerprint, or the base model has changed.
        """
        folder = artifact_folder(Path(folder)).resolve()
        check_manifest(folder)
        file = folder / "artifact.json"
        values = artifact_settings(folder)
        try:
            return cls._of(folder, values, progress)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as wrong:
            # Only a forged or damaged file has other keys or types than `save` writes.
            raise damaged(file, f"does not describe an artifact: {type(wrong).__name__}: {wrong}") from wrong

    @classmethod
    def _of(cls, folder: Path, values: dict[str, Any], progress: Progress) -> Self:
        """Rebuild an artifact from the contents of its artifact.json."""
        arrays = read_arrays(folder / "arrays.safetensors")
        reader = ArtifactReader(folder, arrays, lambda name: cls.load(folder / name, progress), progress)
        prompt = Prompt.from_dict(values["prompt"])
        if prompt.fingerprint != values["prompt_fingerprint"]:
            problem = f"{folder}: this version of Rung renders the prompt of the artifact differently"
            raise ArtifactError("artifact-mismatch", problem, hint=OTHER_VERSION)
        relative = values.get("model_beside")
        model = values["model"] if relative is None else str((folder / relative).resolve())
        if values["model_fingerprint"] is not None:
            reader.check_model(model, values["model_fingerprint"])
        if not TASK_NAME.fullmatch(values["shape"]["task"]):  # registries and stores make folders of it
            raise damaged(folder / "artifact.json", f"names the task {values['shape']['task']!r}")
        signature: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values["shape"].items()}
        if (policy := values.get("overflow")) not in POLICIES:
            problem = f"{folder}: artifact.json: `overflow` is {policy!r}, not one of {', '.join(POLICIES)}"
            raise ArtifactError("artifact-damaged", problem, hint=OTHER_VERSION)
        decoder, weights = dict(values["decoder"]), values["weights"]
        return cls(
            signature=Signature(**signature),
            model=model,
            engine=values["engine"],
            overflow=cast("Overflow", policy),
            path=tuple(values["path"]),
            settings=values["settings"],
            prompt=prompt,
            decoder=decoder_of_kind(decoder.pop("kind")).from_dict(decoder, reader),
            demonstrations=_demonstrations(folder, values, reader.arrays),
            retriever=load_retriever(folder, values),
            weights=Weights(**{**weights, "adapter": folder / "adapter" if weights["adapter"] else None}),
        )


def _answer_form(output: Output) -> str:
    """Say in the prompt what an answer without labels looks like, where that is known."""
    if output.kind == "json":
        return record_form(output.json_schema if isinstance(output.json_schema, dict) else {})
    if output.kind == "number":
        return number_form(output.minimum, output.maximum, output.unit, whole=output.whole)
    return ""


def _metric_settings(task: Task) -> dict[str, Any]:
    """Give the metric's settings, with the scale of errors from the task's range or its training rows."""
    settings, output = task.metric_settings, task.output
    if task.metric_name != "closeness" or settings.get("scale") is not None:
        return settings
    if output.minimum is not None and output.maximum is not None:
        return {**settings, "scale": float(output.maximum - output.minimum)}
    return {**settings, "scale": spread([float(row.outputs[0]) for row in task.read().train])}


def _category_decoder(model: str, engine: str, labels: tuple[str, ...], texts: tuple[str, ...]) -> Decoder:
    """Score labels if scores are exact and cheap; else have the model write one, constrained to the label set."""
    if not is_endpoint(model) or scores_labels(
        open_engine(model, engine).info.details["scoring"], len(labels), LISTED_LABELS
    ):
        return LabelScoring(labels, texts)
    # A text never has more tokens than bytes.
    return Generate(max(len(text.encode()) for text in texts) + 8, choices=texts)


def _nearest(task: Task, prompt: Prompt) -> Nearest:
    """Encode the training rows as the table."""
    table = task.read().train
    vectors = open_encoder(task.output.encoder).embed([prompt.question(row.inputs) for row in table])
    rows, outputs = tuple(row.inputs for row in table), tuple(row.outputs[0] for row in table)
    return Nearest(task.output.k, task.output.encoder, rows, outputs, vectors)


def _agent(task: Task) -> Agent:
    return Agent(
        tools=find_tools(task.tools, task.folder),
        servers=tuple(tool for tool in task.tools if isinstance(tool, McpServer)),
        folder=task.folder,
        protocol=protocol_for(task.model),
        max_tokens=task.output.max_tokens or DEFAULT_MAX_TOKENS,
        limits=task.agent,
    )


def labels_schema(labels: Sequence[str]) -> str:
    """Write the JSON Schema of a list of these labels."""
    items = {"type": "string", "enum": list(labels)}
    return json.dumps({"type": "array", "items": items, "maxItems": len(labels)}, ensure_ascii=False)


def _write(artifact: Artifact, folder: Path, final: Path, home: Path) -> None:
    """Write the files into `folder`, which becomes `final`; a model in `home` is saved by its relative path."""
    from safetensors.numpy import save_file

    def save_member(member: Composition, name: str) -> None:
        assert isinstance(member, Artifact)
        (folder / name).mkdir(parents=True)
        _write(member, folder / name, final / name, home)

    writer, model = ArtifactWriter(folder, save_member), Path(artifact.model).expanduser().resolve()
    # Only generated text depends on what `auto` means on this machine, so only then the choice is recorded.
    engine = artifact.engine
    if artifact.weights.base:
        engine = "torch"
    elif artifact.decoder.generates:
        engine = settled(artifact.model, engine)
    values: dict[str, Any] = {
        "format": FORMAT,
        "shape": asdict(artifact.signature),
        "model": artifact.model,
        "model_beside": os.path.relpath(model, final) if model.is_dir() and model.parent == home else None,
        "model_fingerprint": _model_fingerprint(artifact),
        "engine": engine,
        "overflow": artifact.overflow,
        "path": artifact.path,
        "settings": dict(artifact.settings),
        "prompt": artifact.prompt.as_dict(),
        "prompt_fingerprint": artifact.prompt.fingerprint,
        "decoder": {"kind": artifact.decoder.kind, **artifact.decoder.as_dict(writer)},
        "weights": {**asdict(artifact.weights), "adapter": artifact.weights.adapter is not None},
    }
    if artifact.retriever is not None:
        values["retriever"] = {**asdict(artifact.retriever), "folder": str(artifact.retriever.folder)}
    if (shown := artifact.demonstrations) is not None:
        names = ("selection", "k", "encoder", "token_budget", "diversity", "seed", "order", "sets")
        values["demonstrations"] = {name: getattr(shown, name) for name in names}
        (folder / "demonstrations.json").write_text(json.dumps(pool_as_json(shown.pool), ensure_ascii=False, indent=1))
        if shown.embeddings is not None:
            writer.arrays["demonstrations"] = shown.embeddings
    if writer.arrays:
        arrays = {name: np.ascontiguousarray(array) for name, array in writer.arrays.items()}
        save_file(arrays, folder / "arrays.safetensors")
    if artifact.weights.adapter is not None:
        shutil.copytree(artifact.weights.adapter, folder / "adapter")
    (folder / "artifact.json").write_text(json.dumps(values, ensure_ascii=False, indent=2))
    write_manifest(folder)


def _model_fingerprint(artifact: Artifact) -> str | None:
    """The fingerprint of the base model; None of an endpoint, and where answering does not run the model."""
    if is_endpoint(artifact.model) or not artifact.decoder.uses_llm:
        return None
    return resolve(artifact.model).fingerprint


def _demonstrations(folder: Path, values: Mapping[str, Any], arrays: Mapping[str, Any]) -> Demonstrations | None:
    if "demonstrations" not in values:
        return None
    file = folder / "demonstrations.json"
    pool = pool_from_json(read_json(file, partial(damaged, file)))
    return Demonstrations(pool=pool, embeddings=arrays.get("demonstrations"), **values["demonstrations"])


def load_retriever(folder: Path, values: Mapping[str, Any]) -> Retriever | None:
    """Rebuild the retriever of a saved artifact, and check its index, which is outside the folder."""
    if "retriever" not in values:
        return None
    location = values["retriever"]["folder"]
    if named := os.environ.get(LOCATION):  # by the user of this machine
        location = named
        name_endpoint(named)
    retriever = Retriever(**{**values["retriever"], "folder": location_of(location)})
    check_index(retriever, folder)
    return retriever
