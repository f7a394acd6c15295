"""What a server serves: base models, and artifacts on them; both come and go while it runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rung.agents.agent import Agent
from rung.artifact.artifact import Artifact
from rung.artifact.files import fingerprint
from rung.artifact.parts import Generate
from rung.data.rows import Example, example_id
from rung.engines.base import Engine, Floats, GenerateRequest, Sampling
from rung.engines.opening import open_encoder, open_engine, settled
from rung.errors import ArtifactError, ConfigError
from rung.models.reference import is_endpoint, resolve
from rung.progress import QUIET, Progress
from rung.serving.scheduler import ScheduledEngine, Scheduler

if TYPE_CHECKING:
    from rung.feedback.records import ABTest

WARM_UP = "hello"


@dataclass(frozen=True, eq=False)
class Base:
    """A base model in memory, run by one thread; artifacts share it.

    Attributes:
        name: under which it is served.
        fingerprint: of the model.
        listed: whether clients may ask it without an artifact.
    """

    name: str
    fingerprint: str
    scheduler: Scheduler
    created: int
    listed: bool = True

    @property
    def engine(self) -> Engine:
        """What runs the model."""
        return self.scheduler.engine


@dataclass(frozen=True, eq=False)
class Encoder:
    """A sentence encoder, for embeddings alone."""

    name: str
    reference: str
    created: int

    def embed(self, texts: Sequence[str]) -> tuple[Floats, int]:
        """Return unit vectors, shape [texts, dimension], and how many tokens the texts have."""
        encoder = open_encoder(self.reference)
        return encoder.embed(texts), sum(len(encoder.encode(text)) for text in texts)


@dataclass(frozen=True, eq=False)
class ServedArtifact:
    """An artifact under a name.

    Attributes:
        base: runs its model; None where a sentence encoder alone answers.
        trial: the one that it takes part in.
    """

    name: str
    artifact: Artifact
    folder: Path
    fingerprint: str
    model_fingerprint: str
    base: Base | None
    created: int
    trial: OnTrial | None = None


@dataclass(frozen=True, eq=False)
class OnTrial:
    """A trial that an artifact takes part in, and what is tried beside it; None for the challenger itself."""

    record: ABTest
    challenger: ServedArtifact | None = None


class ModelNotFoundError(Exception):
    """No model is served under this name."""


@dataclass
class Served:
    """Everything that is served, by name. Reading takes no lock: the mapping is replaced, never changed."""

    _bases: dict[tuple[str, str, str], Base] = field(default_factory=dict)
    _names: dict[str, Base | Encoder | ServedArtifact] = field(default_factory=dict)
    _loading: threading.Lock = field(default_factory=threading.Lock)

    def find(self, name: str) -> Base | Encoder | ServedArtifact:
        """Return what is served under a name.

        Raises:
            ModelNotFoundError: nothing is.
        """
        found = self._names.get(name)
        if found is None:
            raise ModelNotFoundError(name)
        return found

    def all(self) -> list[Base | Encoder | ServedArtifact]:
        """Return everything that is served, in the order in which it came."""
        return list(self._names.values())

    def artifacts(self) -> list[ServedArtifact]:
        """Return the artifacts."""
        return [one for one in self.all() if isinstance(one, ServedArtifact)]

    def schedulers(self) -> list[tuple[str, Scheduler]]:
        """Return the threads that run engines, with the names of their models."""
        return [(base.name, base.scheduler) for base in self._bases.values()]

    # ---- coming and going

    def add_model(self, reference: str, *, engine: str = "auto", progress: Progress = QUIET) -> Base:
        """Serve a base model under its own name; which engine generates is settled first, so that no request waits."""
        settled(reference, engine, progress=progress)
        with self._loading:
            return self._base(reference, engine, "", progress)

    def add_engine(self, name: str, engine: Engine) -> Base:
        """Serve an engine that is open already; it must not remember answers."""
        with self._loading:
            base = Base(name, engine.info.fingerprint, Scheduler(engine, name), int(time.time()))
            self._bases = {**self._bases, (name, "", ""): base}
            self._name(name, base)
            return base

    def add_encoder(self, reference: str, *, progress: Progress = QUIET) -> Encoder:
        """Serve a sentence encoder for embeddings."""
        with self._loading:
            opened = open_encoder(reference, progress=progress)
            encoder = Encoder(reference if is_plain(reference) else opened.files.name, reference, int(time.time()))
            self._name(encoder.name, encoder)
            return encoder

    def load(
        self, folder: Path, name: str | None = None, *, replace: bool = False, progress: Progress = QUIET
    ) -> ServedArtifact:
        """Check an artifact, load what it needs, answer once to see that it runs, and only then serve it.

        Args:
            folder: the artifact's folder.
            name: under which it is served; its task's name by default.
            replace: take the place of what is served under that name, at once; requests under way end as they began.
            progress: told of what takes long.

        Raises:
            ArtifactError: the folder is damaged, or not what it says.
            ConfigError: the name is taken.
        """
        with self._loading:
            artifact = Artifact.load(folder)
            name = name or self._free_name(artifact, folder)
            if not replace and name in self._names:
                raise ConfigError(
                    "duplicate-name", f"{name!r} is served already", hint=f"give it another name: NAME={folder}"
                )
            served = self._opened(artifact, folder, name, progress)
            self._name(name, served)
            return served

    def challenge(self, name: str, folder: Path, record: ABTest, *, progress: Progress = QUIET) -> None:
        """Load a challenger of the artifact that is served under a name, answer once, and only then begin the trial.

        The trial is part of what is served under the name, so whatever takes that place ends it.

        Raises:
            ArtifactError: the challenger's folder is damaged, or not what it says.
            ConfigError: `trial-mismatch`: the trial was started against something else.
        """
        with self._loading:
            one = self._names.get(name)
            if not isinstance(one, ServedArtifact) or one.fingerprint != record.against:
                raise ConfigError(
                    "trial-mismatch", f"the trial of {name} is against {record.against[:16]}, which is not served here",
                    hint="stop it, and start it against what is served",
                )  # fmt: skip
            challenger = self._opened(Artifact.load(folder), folder, name, progress)
            challenger = replace(challenger, trial=OnTrial(record))
            self._name(name, replace(one, trial=OnTrial(record, challenger)))

    def withdraw(self, name: str) -> None:
        """End the trial under a name, if there is one; what the challenger answers already it answers."""
        with self._loading:
            one = self._names.get(name)
            if isinstance(one, ServedArtifact):
                self._name(name, replace(one, trial=None))

    def unload(self, name: str) -> None:
        """Stop serving an artifact; requests under way end as they began, and its base model stays.

        Raises:
            ModelNotFoundError: nothing is served under this name.
            ArtifactError: it is a base model or an encoder, which stay.
        """
        with self._loading:
            if not isinstance(self.find(name), ServedArtifact):
                raise ArtifactError(
                    "wrong-folder", f"{name!r} is no artifact", hint="base models stay until the server ends"
                )
            self._names = {key: one for key, one in self._names.items() if key != name}

    def close(self) -> None:
        """Finish what is under way and end the threads."""
        for base in self._bases.values():
            base.scheduler.close()

    # ---- inside

    def _opened(self, artifact: Artifact, folder: Path, name: str, progress: Progress) -> ServedArtifact:
        """Return an artifact with what it needs in memory, after it answered once."""
        base = None
        if artifact.decoder.asks_model:
            base = self._base(artifact.model, artifact.engine, artifact.weights.base, progress)
        identity = "" if is_endpoint(artifact.model) else resolve(artifact.model).fingerprint
        served = ServedArtifact(name, artifact, folder.resolve(), fingerprint(folder), identity, base, int(time.time()))
        _warm_up(served)
        return served

    def _base(self, reference: str, engine: str, quantization: str, progress: Progress) -> Base:
        """Return the base model that answers on this engine, loading it first where it is not there."""
        key = (reference, engine, quantization)
        if key not in self._bases:
            opened = open_engine(
                reference, engine, quantization=quantization, remember=False, apart=True, progress=progress
            )
            name = reference if is_plain(reference) else opened.info.model
            listed = name not in self._names
            identity = "" if is_endpoint(reference) else resolve(reference).fingerprint
            base = Base(name, identity, Scheduler(opened, name), int(time.time()), listed)
            self._bases = {**self._bases, key: base}
            if listed:
                self._name(name, base)
        return self._bases[key]

    def _name(self, name: str, one: Base | Encoder | ServedArtifact) -> None:
        self._names = {**self._names, name: one}

    def _free_name(self, artifact: Artifact, folder: Path) -> str:
        """Return the task's name; where it is taken, with the folder's behind it."""
        task = artifact.shape.task
        return task if task not in self._names else f"{task}-{folder.resolve().name}"


def is_plain(reference: str) -> bool:
    """Tell whether a reference is fit to be a name: an alias or a Hub id, no path and no address."""
    return not (is_endpoint(reference) or Path(reference).expanduser().exists())


def scheduled(served: ServedArtifact) -> tuple[Artifact, ScheduledEngine | None]:
    """Return the artifact as it answers one request, and the engine that it does so through."""
    if served.base is None:
        return served.artifact, None
    engine = ScheduledEngine(served.base.scheduler)
    return served.artifact.on(engine), engine


def ending(engine: ScheduledEngine | None) -> str:
    """Return why the one answer that an engine gave ended."""
    return "length" if engine is not None and "length" in engine.reasons else "stop"


def example(inputs: dict[str, Any]) -> Example:
    """Return a row of a request as an example."""
    return Example(example_id(inputs), inputs, (), "request")


def _warm_up(served: ServedArtifact) -> None:
    """Answer one row, so that the first client does not wait for what is loaded late."""
    artifact, _ = scheduled(served)
    chat = artifact.shape.kind == "chat"
    value: Any = [{"role": "user", "content": WARM_UP}] if chat else WARM_UP
    row = example(dict.fromkeys(artifact.shape.inputs, value))
    if isinstance(artifact.decoder, Generate):
        rendered = artifact.fit_to_context([row])[0]
        request = GenerateRequest(
            rendered.messages, Sampling(max_tokens=1), artifact.decoder.constraint, artifact.weights.reference
        )
        artifact.open().generate([request])
    elif isinstance(artifact.decoder, Agent):  # no tool is called for a row that nobody asked
        prompt = artifact.decoder.prompt(artifact.model, artifact.fit_to_context([row])[0].messages)
        artifact.open().generate([GenerateRequest(prompt, Sampling(max_tokens=1), None, artifact.weights.reference)])
    else:
        artifact.answer([row])
