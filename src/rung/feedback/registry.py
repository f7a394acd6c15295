"""The registry: which artifact of a task is served, and the history of that choice.

REGISTRY/TASK/artifacts/FINGERPRINT/   promoted artifacts, complete or absent
REGISTRY/TASK/current                  one JSON record, replaced atomically: what is served, since when, and why
REGISTRY/TASK/trial                    one JSON record of the last trial (`ABTest`)

`current` is authoritative. The store keeps every promotion as history: a promotion is entered there after the switch,
and if a kill prevented that, before the next switch.
"""

from __future__ import annotations

import logging
import shutil
import threading
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, TypeVar

from rung.artifact.artifact import Artifact
from rung.artifact.files import MANIFEST, artifact_folder, fingerprint
from rung.data.kinds import TASK_NAME
from rung.errors import ArtifactError, ConfigError, RungError
from rung.feedback.records import ABTest, Promotion, command
from rung.feedback.store import FeedbackStore
from rung.models.cache import publish
from rung.models.files import locked, write_atomically
from rung.yamlfile import read_sealed, sealed

POINTER = "current"
TRIAL = "trial"
LOG = logging.getLogger("rung.feedback")
RegistryRecord = TypeVar("RegistryRecord", Promotion, ABTest)


class Registry:
    """The promoted artifacts of one task, and the pointer to the one that is served."""

    def __init__(self, root: Path, task: str) -> None:
        self.root = root
        self.folder = root / task
        if not TASK_NAME.fullmatch(task):
            raise ConfigError("bad-value", f"{task!r} is no name of a task", hint="a task's name is also its folder")
        self.task = task

    def current(self) -> Promotion | None:
        """The record of what is served, or None before the first promotion."""
        return self._read(POINTER, Promotion, "restore it, or promote an artifact again")

    def trial(self) -> ABTest | None:
        """The record of the last trial, running or not; None before the first."""
        return self._read(TRIAL, ABTest, "remove it; a trial can be started again")

    def keep_trial(self, trial: ABTest) -> None:
        """Replace the record of the trial atomically; the caller holds `locked`."""
        self._write(TRIAL, trial)

    def path(self, record: Promotion | ABTest) -> Path:
        """The folder of the artifact in a record."""
        folder = self.folder / record.folder
        if not folder.resolve().is_relative_to(self.folder.resolve()):
            raise ArtifactError("artifact-damaged", f"{self.folder} names {record.folder}, which is outside of it")
        return folder

    def path_of(self, fingerprint: str) -> Path:
        """The folder of a promoted or tried artifact."""
        return self.folder / "artifacts" / fingerprint[:16]

    def promote(self, artifact: Path, store: FeedbackStore, *, evidence: Mapping[str, Any], reviewer: str) -> Promotion:
        """Copy an artifact into the registry, check the copy, and switch to it atomically.

        Raises:
            ArtifactError, ConfigError: as `adopt` does, and `already-served`.
        """
        mark, folder = self.adopt(artifact)
        with self.locked():
            before = self._entered(store)
            if before is not None and before.artifact == mark:
                raise ConfigError("already-served", f"{mark[:16]} is served already", hint="there is nothing to switch")
            return self._switch(
                store, kind="promote", artifact=mark, folder=folder, below=before.token if before else None,
                reviewer=reviewer, evidence=dict(evidence),
            )  # fmt: skip

    def rollback(self, store: FeedbackStore, *, reviewer: str, reason: str = "") -> Promotion:
        """Serve again what was served before the current promotion; a second rollback goes back one further.

        Raises:
            ConfigError: `nothing-to-undo`.
            ArtifactError: the artifact that was served before is missing or damaged.
        """
        with self.locked():
            now = self._entered(store)
            target = next((p for p in store.promotions(self.task) if now and p.token == now.below), None)
            if now is None or target is None:
                hint = (
                    f"serve another one: {command('rung promote', 'ARTIFACT', '--reason', '...', registry=self.root)}"
                )
                raise ConfigError("nothing-to-undo", f"nothing was served before for {self.task}", hint=hint)
            Artifact.load(self.path(target))
            return self._switch(
                store, kind="rollback", artifact=target.artifact, folder=target.folder, below=target.below,
                reviewer=reviewer, evidence={"from": now.artifact, "to": target.token, "reason": reason},
            )  # fmt: skip

    def adopt(self, artifact: Path) -> tuple[str, str]:
        """Copy an artifact into the registry and check the copy; return its fingerprint and its relative folder.

        Raises:
            ArtifactError: the folder holds no artifact, or a damaged one.
            ConfigError: `promotion-refused`.
        """
        artifact = artifact_folder(artifact)
        loaded = Artifact.load(artifact)
        if loaded.signature.task != self.task:
            problem = f"{artifact} is of the task {loaded.signature.task!r}, not of {self.task!r}"
            raise ConfigError("promotion-refused", problem, hint="promote it for its own task")
        mark = fingerprint(artifact)
        copy = self.path_of(mark)

        def write(target: Path) -> None:  # the manifest last
            shutil.copytree(artifact, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
            shutil.copyfile(artifact / MANIFEST, target / MANIFEST)

        publish(copy, write)
        if fingerprint(copy) != mark:
            raise ArtifactError("artifact-damaged", f"{copy} holds another artifact", hint="remove it first")
        Artifact.load(copy)
        return mark, str(copy.relative_to(self.folder))

    def locked(self) -> AbstractContextManager[None]:
        """A lock that keeps other processes from switching."""
        return locked(self.folder / ".lock")

    def _read(self, name: str, kind: type[RegistryRecord], hint: str) -> RegistryRecord | None:
        """Read a record; None without a file, and an ArtifactError if it is damaged."""
        file = self.folder / name
        if not file.exists():
            return None
        try:
            values = read_sealed(file, lambda what: ArtifactError("artifact-damaged", f"{file} {what}", hint=hint))
            for moment in {"at", "ended"} & values.keys():
                values[moment] = values[moment] and datetime.fromisoformat(values[moment])
            return kind(**values)
        except (ValueError, TypeError, AttributeError) as error:
            raise ArtifactError("artifact-damaged", f"{file} cannot be read: {error}", hint=hint) from error

    def _write(self, name: str, record: Promotion | ABTest) -> None:
        write_atomically(self.folder / name, sealed(asdict(record), 1, default=datetime.isoformat))

    def _entered(self, store: FeedbackStore) -> Promotion | None:
        """The current record, which is entered in the store in case a kill prevented that."""
        now = self.current()
        if now is not None:
            store.add_promotion(now)
        return now

    def _switch(self, store: FeedbackStore, **fields: Any) -> Promotion:
        promotion = Promotion(token=uuid.uuid4().hex, at=datetime.now(UTC), task=self.task, **fields)
        self._write(POINTER, promotion)
        store.add_promotion(promotion)
        return promotion


def promoted_tasks(root: Path) -> list[Registry]:
    """The registries of all tasks with a promotion, by name."""
    names = [pointer.parent.name for pointer in sorted(root.glob(f"*/{POINTER}"))]
    return [Registry(root, name) for name in names if TASK_NAME.fullmatch(name)]


class Follower:
    """Polls a registry, and makes a server load what is promoted for any task.

    `load` gets the artifact's folder and the task's name, and replaces what is served under that name. `challenge` gets
    the task's name with the challenger's folder and the trial's record, or with None when the trial has ended; the
    default runs no trials. If either refuses an artifact, the server keeps the one before; `errors` and the log say why
    for each task, until the next switch.
    """

    def __init__(
        self, root: Path, load: Callable[[Path, str], Any],
        challenge: Callable[[str, tuple[Path, ABTest] | None], Any] = lambda name, trial: None, *, every: float = 1.0,
    ) -> None:  # fmt: skip
        self.root, self.load, self.challenge, self.every = root, load, challenge, every
        self.errors: dict[str, str] = {}
        self._loaded: dict[str, str] = {}  # token of the last promotion, by task
        self._running: dict[str, str] = {}  # token of the running trial, by task
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rung-follow", daemon=True)

    def look(self, registry: Registry) -> None:
        """Load what is served for a task, unless it is loaded already."""
        now = registry.current()
        if now is None or now.token == self._loaded.get(registry.task):
            return
        self._loaded[registry.task] = now.token
        self.load(registry.path(now), registry.task)
        self.errors.pop(registry.task, None)

    def look_at_trial(self, registry: Registry) -> None:
        """Start or end a trial as the registry says."""
        trial = registry.trial()
        running = trial if trial is not None and trial.runs(registry.current()) else None
        if running is None and self._running.pop(registry.task, None) is not None:
            self.challenge(registry.task, None)
        if running is not None and running.token != self._running.get(registry.task):
            self._running[registry.task] = running.token
            self.challenge(registry.task, (registry.path(running), running))
            self.errors.pop(registry.task, None)

    def start(self) -> Self:
        """Load what is served now, then go on polling in a thread, new tasks included."""
        for registry in promoted_tasks(self.root):
            self.look(registry)
            self._logging(self.look_at_trial, registry)  # a broken challenger must not keep a server from starting
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop polling."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(self.every):
            for registry in promoted_tasks(self.root):
                self._logging(self.look, registry)
                self._logging(self.look_at_trial, registry)

    def _logging(self, look: Callable[[Registry], Any], registry: Registry) -> None:
        try:
            look(registry)
        except RungError as error:
            if self.errors.get(registry.task) != str(error):
                LOG.error("%s: %s", registry.task, error)
            self.errors[registry.task] = str(error)
