"""What a server serves: base models, encoders and artifacts, loaded and unloaded while it runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rung.artifact.artifact import Artifact
from rung.artifact.files import artifact_folder, fingerprint
from rung.data.examples import read_row
from rung.data.rows import Example
from rung.engines.base import Engine, FinishReason, Floats
from rung.engines.opening import open_encoder, open_engine, settled
from rung.errors import ArtifactError, ConfigError, EngineError
from rung.models.reference import is_endpoint, resolve
from rung.progress import QUIET, Progress
from rung.serving.scheduler import ScheduledEngine, Scheduler

if TYPE_CHECKING:
    from rung.feedback.records import ABTest

LongTexts = Literal["refuse", "window"]  # what an encoder does with a text that it does not read at once
WARM_UP = "hello"


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A base model in memory, run by one thread; artifacts share it."""

    name: str
    fingerprint: str
    scheduler: Scheduler
    created: int

    @property
    def engine(self) -> Engine:
        """The engine that runs the model."""
        return self.scheduler.engine

    def embed(self, texts: Sequence[str]) -> tuple[Floats, int]:
        """Embed texts as mean hidden states of unit length, shape [texts, dimension], and count their tokens."""
        return self.scheduler.embed(texts).result(), sum(len(self.engine.encode(text)) for text in texts)


@dataclass(frozen=True, eq=False)
class ServedEncoder:
    """A sentence encoder, for embeddings alone."""

    name: str
    reference: str
    created: int
    long_texts: LongTexts = "refuse"

    def check(self, texts: Sequence[str]) -> None:
        """Raise EngineError for a text that the encoder does not read at once, unless such are read in windows."""
        encoder = open_encoder(self.reference)
        for number, text in enumerate(texts):
            if self.long_texts == "refuse" and len(encoder.windows(text)) > 1:
                limits = f"{len(encoder.encode(text))} tokens; {self.name} reads {encoder.limit} at once"
                hint = "send shorter texts, or serve with `--long-texts window`: the mean of the vectors of their parts"
                raise EngineError("context-overflow", f"input[{number}] has {limits}", hint=hint)

    def embed(self, texts: Sequence[str]) -> tuple[Floats, int]:
        """Embed texts as unit vectors, shape [texts, dimension], and count their tokens."""
        encoder = open_encoder(self.reference)
        return encoder.embed(texts), sum(len(encoder.encode(text)) for text in texts)


@dataclass(frozen=True, eq=False)
class ServedArtifact:
    """An artifact under a name."""

    name: str
    artifact: Artifact
    folder: Path
    fingerprint: str
    model_fingerprint: str
    base: ServedModel | None  # runs its model; None where a sentence encoder alone answers
    created: int
    trial: ABTest | None = None  # the trial that it takes part in
    challenger: ServedArtifact | None = None  # in that trial; None for the challenger itself


Servable = ServedModel | ServedEncoder | ServedArtifact


@dataclass
class Served:
    """Everything that is served, by name. Reading takes no lock: the mapping is replaced, never changed.

    Loading takes long, and its lock is held all the while: only threads may wait for it, never an event loop. What
    changes names alone takes the other lock, which nobody holds for longer than that.
    """

    _bases: dict[tuple[str, str, str], ServedModel] = field(default_factory=dict)
    _names: dict[str, Servable] = field(default_factory=dict)
    _loading: threading.Lock = field(default_factory=threading.Lock)
    _naming: threading.RLock = field(default_factory=threading.RLock)
    aliases: dict[str, str] = field(default_factory=dict)  # more names, of what has another; see `alias`

    def find(self, name: str) -> Servable | None:
        """Look up a name or an alias."""
        return self._names.get(self.aliases.get(name, name))

    def alias(self, name: str, target: str) -> None:
        """Serve what is served as `target` under one more name, such as one that a client has built in."""
        if target not in self._names:
            known = ", ".join(map(repr, self._names))
            raise ConfigError("unknown-name", f"nothing is served as {target!r}", hint=f"there are {known}")
        if self.find(name) is not None:
            raise ConfigError("duplicate-name", f"{name!r} is already served", hint="choose another alias")
        self.aliases = {**self.aliases, name: target}

    def all(self) -> list[Servable]:
        """List everything that is served, oldest first."""
        return list(self._names.values())

    def artifacts(self) -> list[ServedArtifact]:
        """List the artifacts."""
        return [each for each in self.all() if isinstance(each, ServedArtifact)]

    def labels(self, task: str) -> tuple[str, ...]:
        """List the labels of a task, where it is served and has some."""
        served = self.labelling(task)
        return () if served is None else served.artifact.signature.labels

    def labelling(self, task: str) -> ServedArtifact | None:
        """Find an artifact that is served for a task and chooses one of its labels."""
        shapes = ((each, each.artifact.signature) for each in self.artifacts())
        return next((each for each, shape in shapes if shape.task == task and shape.kind == "category"), None)

    def schedulers(self) -> list[tuple[str, Scheduler]]:
        """List the threads that run engines, with the names of their models."""
        return [(base.name, base.scheduler) for base in self._bases.values()]

    # ---- coming and going

    def add_model(self, reference: str, *, engine: str = "auto", progress: Progress = QUIET) -> ServedModel:
        """Serve a base model under its own name; choose its engine first, so that no request waits for that."""
        settled(reference, engine, progress=progress)
        with self._loading:
            return self._base(reference, engine, "", progress)

    def add_encoder(
        self, reference: str, *, long_texts: LongTexts = "refuse", progress: Progress = QUIET
    ) -> ServedEncoder:
        """Serve a sentence encoder for embeddings; texts that it does not read at once are refused by default."""
        with self._loading:
            opened = open_encoder(reference, progress=progress)
            name = reference if is_plain(reference) else opened.files.name
            encoder = ServedEncoder(name, reference, int(time.time()), long_texts)
            self._name(name, encoder)
            return encoder

    def load(
        self, folder: Path, name: str | None = None, *, replace: bool = False, progress: Progress = QUIET
    ) -> ServedArtifact:
        """Check an artifact, load what it needs, answer one row to see that it runs, and only then serve it.

        Its name is that of its task by default. With `replace`, it takes the place of what has the name, and running
        requests end as they began. Without, it raises ConfigError if the name is taken.
        """
        with self._loading:
            folder = artifact_folder(folder)
            artifact = Artifact.load(folder, progress)
            task = artifact.signature.task
            name = name or (task if task not in self._names else f"{task}-{folder.resolve().name}")
            if not replace and name in self._names:
                hint = f"give it another name: NAME={folder}"
                raise ConfigError("duplicate-name", f"{name!r} is already served", hint=hint)
            served = self._opened(artifact, folder, name, progress)
            self._name(name, served)
            return served

    def challenge(self, name: str, folder: Path, record: ABTest, *, progress: Progress = QUIET) -> None:
        """Load a challenger of the artifact under a name, answer one row, and only then begin the trial.

        The trial belongs to the served artifact, so replacing that artifact ends it. Raises ConfigError if the trial
        was started against another artifact.
        """
        with self._loading:
            current = self.find(name)
            if not isinstance(current, ServedArtifact) or current.fingerprint != record.against:
                raise ConfigError(
                    "trial-mismatch", f"the trial of {name} is against {record.against[:16]}, which is not served here",
                    hint="stop it, and start it against what is served",
                )  # fmt: skip
            challenger = replace(self._opened(Artifact.load(folder, progress), folder, name, progress), trial=record)
            with self._naming:
                if self.find(name) is not current:
                    problem = f"what is served as {name} has changed while its challenger was loaded"
                    raise ConfigError("trial-mismatch", problem, hint="start the trial against what is served")
                self._name(name, replace(current, trial=record, challenger=challenger))

    def withdraw(self, name: str) -> None:
        """End the trial under a name, if there is one; running requests end as they began."""
        with self._naming:
            current = self.find(name)
            if isinstance(current, ServedArtifact):
                self._name(name, replace(current, trial=None, challenger=None))

    def unload(self, name: str) -> None:
        """Stop serving an artifact; running requests end as they began, and its base model stays."""
        with self._naming:
            if not isinstance(self.find(name), ServedArtifact):
                hint = "base models stay until the server ends"
                raise ArtifactError("wrong-folder", f"{name!r} is not an artifact", hint=hint)
            self._names = {other: served for other, served in self._names.items() if other != name}

    def close(self) -> None:
        """Finish all work and end the threads."""
        for base in self._bases.values():
            base.scheduler.close()

    # ---- inside

    def _opened(self, artifact: Artifact, folder: Path, name: str, progress: Progress) -> ServedArtifact:
        """Load what an artifact needs, and answer one row."""
        base, identity = None, ""
        if artifact.decoder.uses_llm:
            base = self._base(artifact.model, artifact.engine, artifact.weights.base, progress)
            identity = "" if is_endpoint(artifact.model) else resolve(artifact.model).fingerprint
        served = ServedArtifact(name, artifact, folder.resolve(), fingerprint(folder), identity, base, int(time.time()))
        value: Any = [{"role": "user", "content": WARM_UP}] if artifact.signature.kind == "chat" else WARM_UP
        bound, _ = scheduled(served)  # one row, so that the first client does not wait for lazy loading
        bound.decoder.warm_up(bound, example(bound, dict.fromkeys(artifact.signature.inputs, value)))
        return served

    def _base(self, reference: str, engine: str, quantization: str, progress: Progress) -> ServedModel:
        """Load a base model, unless it is loaded already."""
        key = (reference, engine, quantization)
        if key not in self._bases:
            opened = open_engine(
                reference, engine, quantization=quantization, remember=False, apart=True, progress=progress
            )
            name = reference if is_plain(reference) else opened.info.model
            self.add_engine(name, opened, key, "" if is_endpoint(reference) else resolve(reference).fingerprint)
        return self._bases[key]

    def add_engine(
        self, name: str, engine: Engine, key: tuple[str, str, str] | None = None, identity: str = ""
    ) -> ServedModel:
        """Serve an open engine, which must not cache answers, under a name that is free."""
        base = ServedModel(name, identity, Scheduler(engine, name), int(time.time()))
        self._bases = {**self._bases, key or (name, "", ""): base}
        if name not in self._names:
            self._name(name, base)
        return base

    def _name(self, name: str, served: Servable) -> None:
        with self._naming:
            self._names = {**self._names, name: served}


def is_plain(reference: str) -> bool:
    """Tell whether a reference can serve as a name: an alias or a Hub id, not a path or an address."""
    return not (is_endpoint(reference) or Path(reference).expanduser().exists())


def scheduled(served: ServedArtifact) -> tuple[Artifact, ScheduledEngine | None]:
    """Bind an artifact to an engine for one request; the engine is None where the artifact uses no base model."""
    if served.base is None:
        return served.artifact, None
    engine = ScheduledEngine(served.base.scheduler)
    return served.artifact.with_engine(engine), engine


def finish_reasons(engine: ScheduledEngine | None, rows: int) -> list[FinishReason]:
    """Say why the answers to `rows` rows ended; an answer of several completions is cut if one of them is."""
    reasons = [] if engine is None else engine.reasons
    if rows == 1:
        return ["length" if "length" in reasons else "stop"]
    return reasons if len(reasons) == rows else ["stop"] * rows


def example(artifact: Artifact, row: Mapping[str, Any]) -> Example:
    """Make an Example of a request's row."""
    return read_row(row, artifact.signature.inputs, artifact.signature.kind, "request")
