"""The registry: which artifact of a task is served, and how that came about.

REGISTRY/TASK/artifacts/FINGERPRINT/   promoted artifacts, complete or absent
REGISTRY/TASK/current                  one JSON record, replaced at once: what is served, since when, and why
REGISTRY/TASK/trial                    one JSON record of the same kind: what is tried beside it; see `challenge`

The pointer is the truth. The store keeps every promotion as history: each is written there once the switch is made, and
a switch that a kill cut from its entry is entered before the next one.
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, TypeVar

from rung.artifact.artifact import Artifact
from rung.artifact.files import MANIFEST, fingerprint
from rung.errors import ArtifactError, ConfigError, RungError
from rung.feedback.records import ABTest, Promotion, command
from rung.feedback.store import FeedbackStore
from rung.models.cache import lock_file, publish, write_atomically

POINTER = "current"
TRIAL = "trial"
LOG = logging.getLogger("rung.feedback")
Record = TypeVar("Record", Promotion, ABTest)


class Registry:
    """The artifacts of one task that were promoted, and the pointer to the one that is served."""

    def __init__(self, root: Path, task: str) -> None:
        self.root = root
        self.folder = root / task
        self.task = task

    def current(self) -> Promotion | None:
        """Return the record of what is served, or None before the first promotion.

        Raises:
            ArtifactError: `artifact-damaged`.
        """
        return self._read(POINTER, Promotion, "restore it, or promote an artifact again")

    def trial(self) -> ABTest | None:
        """Return the record of the trial that was started last, whether it runs or not; None before the first.

        Raises:
            ArtifactError: `artifact-damaged`.
        """
        return self._read(TRIAL, ABTest, "remove it: a trial can be started again")

    def keep_trial(self, trial: ABTest) -> None:
        """Replace the record of the trial, at once; `locked` must be held."""
        write_atomically(self.folder / TRIAL, json.dumps(asdict(trial), indent=1, default=datetime.isoformat))

    def path(self, record: Promotion | ABTest) -> Path:
        """Return the folder of an artifact that a record names."""
        return self.folder / record.folder

    def path_of(self, mark: str) -> Path:
        """Return the folder of the artifact with a fingerprint, whether it was promoted or tried."""
        return self.folder / _place(mark)

    def promote(self, artifact: Path, store: FeedbackStore, *, evidence: Mapping[str, Any], reviewer: str) -> Promotion:
        """Copy an artifact into the registry, check it there, and switch to it at once.

        Raises:
            ArtifactError: the folder is no artifact, or a damaged one.
            ConfigError: `promotion-refused`, or `already-served`.
        """
        mark, folder = self.adopt(artifact)
        with self.locked():
            before = self._entered(store)
            if before is not None and before.artifact == mark:
                raise ConfigError("already-served", f"{mark[:16]} is served already", hint="there is nothing to switch")
            below = before.token if before else None
            return self._switch(store, "promote", mark, folder, below, reviewer, evidence)

    def rollback(self, store: FeedbackStore, *, reviewer: str, reason: str = "") -> Promotion:
        """Go back to what was served before the current promotion; done again, it goes back further.

        Raises:
            ConfigError: `nothing-to-undo`.
            ArtifactError: what was served before is not there any more, or damaged.
        """
        with self.locked():
            now = self._entered(store)
            target = next((p for p in store.promotions(self.task) if now and p.token == now.below), None)
            if now is None or target is None:
                raise ConfigError(
                    "nothing-to-undo", f"nothing was served before for {self.task}",
                    hint="serve another one: "
                    + command("rung promote", "ARTIFACT", "--reason", "...", registry=self.root),
                )  # fmt: skip
            Artifact.load(self.path(target))
            evidence = {"from": now.artifact, "to": target.token, "reason": reason}
            return self._switch(store, "rollback", target.artifact, target.folder, target.below, reviewer, evidence)

    def adopt(self, artifact: Path) -> tuple[str, str]:
        """Copy an artifact into the registry and check it there; return its fingerprint and its folder in here.

        Raises:
            ArtifactError: the folder is no artifact, or a damaged one.
            ConfigError: `promotion-refused`.
        """
        loaded = Artifact.load(artifact)
        if loaded.shape.task != self.task:
            raise ConfigError(
                "promotion-refused", f"{artifact} is of the task {loaded.shape.task!r}, not of {self.task!r}",
                hint="promote it for its own task",
            )  # fmt: skip
        mark = fingerprint(artifact)
        folder = _place(mark)
        publish(self.folder / folder, lambda target: _copy(artifact, target))
        if fingerprint(self.folder / folder) != mark:
            raise ArtifactError(
                "artifact-damaged", f"{self.folder / folder} is another artifact", hint="remove it first"
            )
        Artifact.load(self.folder / folder)
        return mark, str(folder)

    def locked(self) -> Any:
        """Return what keeps other processes from switching meanwhile."""
        from filelock import FileLock

        return FileLock(lock_file(self.folder.absolute()))

    # ---- inside

    def _read(self, name: str, kind: type[Record], hint: str) -> Record | None:
        file = self.folder / name
        try:
            values = json.loads(file.read_text("utf-8"))
            for moment in {"at", "ended"} & values.keys():
                values[moment] = values[moment] and datetime.fromisoformat(values[moment])
            return kind(**values)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ArtifactError("artifact-damaged", f"{file} cannot be read: {error}", hint=hint) from error

    def _entered(self, store: FeedbackStore) -> Promotion | None:
        """Return the current record, entered in the store if a kill kept it from being so."""
        now = self.current()
        if now is not None:
            store.add_promotion(now)
        return now

    def _switch(
        self, store: FeedbackStore, kind: Any, artifact: str, folder: str, below: str | None, reviewer: str,
        evidence: Mapping[str, Any],
    ) -> Promotion:  # fmt: skip
        token = uuid.uuid4().hex
        made = Promotion(token, datetime.now(UTC), self.task, kind, artifact, folder, below, reviewer, dict(evidence))
        write_atomically(self.folder / POINTER, json.dumps(asdict(made), indent=1, default=datetime.isoformat))
        store.add_promotion(made)
        return made


def promoted_tasks(root: Path) -> list[Registry]:
    """Return the registries of every task that something was promoted for, by name."""
    return [Registry(root, pointer.parent.name) for pointer in sorted(root.glob(f"*/{POINTER}"))]


class Follower:
    """Looks at a registry again and again, and has a server load what is promoted, whichever task it is for.

    `load` gets the artifact's folder and the task's name, and puts it in the place of what is served under that name at
    once. `challenge` gets the task's name with the folder and the record of a trial that runs beside it, or None when
    none does any more; by default trials are not run. An artifact that either refuses stays out, the one before goes
    on, and `errors` says why, by task, until the next switch; so does the log.
    """

    def __init__(
        self,
        root: Path,
        load: Callable[[Path, str], Any],
        challenge: Callable[[str, tuple[Path, ABTest] | None], Any] = lambda name, what: None,
        *,
        every: float = 1.0,
    ) -> None:
        self.root, self.load, self.challenge, self.every = root, load, challenge, every
        self.errors: dict[str, str] = {}
        self._served: dict[str, str] = {}  # token of the promotion seen last, by task
        self._tried: dict[str, str] = {}  # that of the trial that runs
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rung-follow", daemon=True)

    def look(self, registry: Registry) -> bool:
        """Load what is current of a task, if it is not what was loaded last; return whether something was."""
        now = registry.current()
        if now is None or now.token == self._served.get(registry.task):
            return False
        self._served[registry.task] = now.token
        self.load(registry.path(now), registry.task)
        self.errors.pop(registry.task, None)
        return True

    def look_at_trial(self, registry: Registry) -> None:
        """Begin or end what the registry says of a trial."""
        trial, now = registry.trial(), registry.current()
        running = trial if trial is not None and trial.runs(now) else None
        if running is None and self._tried.pop(registry.task, None) is not None:
            self.challenge(registry.task, None)
        if running is not None and running.token != self._tried.get(registry.task):
            self._tried[registry.task] = running.token
            self.challenge(registry.task, (registry.path(running), running))
            self.errors.pop(registry.task, None)

    def start(self) -> Self:
        """Load what is current now, then go on looking in a thread of its own, also for tasks that are new."""
        for registry in promoted_tasks(self.root):
            self.look(registry)
            self._noting(self.look_at_trial, registry)  # a challenger that fails keeps no server from starting
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop looking."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(self.every):
            for registry in promoted_tasks(self.root):
                self._noting(self.look, registry)
                self._noting(self.look_at_trial, registry)

    def _noting(self, look: Callable[[Registry], Any], registry: Registry) -> None:
        try:
            look(registry)
        except RungError as error:
            if self.errors.get(registry.task) != str(error):
                LOG.error("%s: %s", registry.task, error)
            self.errors[registry.task] = str(error)


def _place(mark: str) -> Path:
    return Path("artifacts") / mark[:16]


def _copy(source: Path, target: Path) -> None:
    """Copy an artifact, its manifest last."""
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
    shutil.copyfile(source / MANIFEST, target / MANIFEST)
