"""A job as a file and its result as a folder, on any storage that fsspec reads.

A job is JSON. It holds addresses, names and fingerprints, no rows, weights or secrets: of a secret it holds the name of
the environment variable. Its result is in the folder `out`:

    attempt-1-5f0c/...     the files of one attempt
    alive-1                what the worker of an attempt rewrites as long as it lives, where it was asked to
    failed-1.json          the error of an attempt that failed
    manifest.json          written last: which attempt counts, the hashes of its files, what it took

A folder with a manifest is done, any other is not. Attempts do not share files, so two that run at once do no harm.
"""

from __future__ import annotations

import json
import platform
import posixpath
import re
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from rung._version import __version__
from rung.data.rows import hash_of
from rung.errors import ConfigError, MachineError, install_command, needed_by
from rung.models.cache import file_sha256
from rung.progress import Progress

MANIFEST = "manifest.json"
FLAT = {"s3", "s3a", "gs", "gcs", "az", "abfs"}  # stores without folders, where making one may make a bucket
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


PASSWORD = re.compile(r"://[^/?#@:]*:[^/?#]*@")  # also in the later parts of a chain: simplecache::ftp://me:secret@host


def _without_password(uri: str) -> str:
    if PASSWORD.search(uri):
        raise ValueError("an address must not hold a password: set the storage's own environment variables")
    return uri


def refuse_password(uri: str) -> None:
    """Refuse an address with a password, which jobs and the commands of workers would show to others.

    Raises:
        ConfigError: `bad-option`; it does not repeat the address.
    """
    if PASSWORD.search(uri):
        hint = "leave it out, and set the environment variables that the storage reads on all workers"
        raise ConfigError("bad-option", "--jobs: an address must not hold a password", hint=hint)


Address = Annotated[str, AfterValidator(_without_password)]


class Resources(BaseModel):
    """What a job needs: cores and GPUs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpus: float = 1
    gpus: float = 0


class Job(BaseModel):
    """One piece of work.

    Attributes:
        kind: make an artifact (`fit`), answer and score rows of the task (`answer`), answer a part of a file
            (`predict`), or make an artifact with other settings and race it (`trial`).
        out: the folder of the result.
        task: the task file; `overrides` are its `--set` options, `held_out` that its rows are always split.
        task_fingerprint, data_fingerprint, artifact_fingerprint: what the worker must find; empty: not compared. The
            data are those of the task, or the rows of the part.
        version: the version of Rung that must do it.
        artifact: the folder of the artifact to start from or to answer with, or of the result of the job that makes it.
        rung, settings, fold, seed: what is fitted, without the rows of which fold.
        split, ids: the rows of the task to answer.
        data: the rows of a part of a file, and in `options` how they are written.
        options: what only one kind reads.
        seconds, money: the most that the job may take of the budget.
        environment: names of the variables that must be set on the worker.
        beat: seconds after which the worker gives another sign of life; 0 for none.
        attempt: counted from 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["fit", "answer", "predict", "trial"]
    out: Address
    task: str = ""
    overrides: Mapping[str, str] = {}
    held_out: bool = False
    task_fingerprint: str = ""
    data_fingerprint: str = ""
    artifact: Address = ""
    artifact_fingerprint: str = ""
    version: str = __version__
    rung: str = ""
    settings: Mapping[str, Any] = {}
    fold: int | None = None
    seed: int = 0
    split: Literal["", "validation", "test", "folds"] = ""
    ids: tuple[str, ...] = ()
    data: Address = ""
    options: Mapping[str, Any] = {}
    resources: Resources = Resources()
    seconds: float | None = None
    money: float | None = None
    environment: tuple[VariableName, ...] = ()
    beat: float = Field(0.0, ge=0)
    attempt: int = Field(1, ge=1)

    @property
    def id(self) -> str:
        """The hash of what is to be done, whoever does it, with whatever budget, at whichever attempt."""
        other = {"out", "resources", "seconds", "money", "environment", "beat", "attempt"}
        return hash_of(self.model_dump(mode="json", exclude=other))

    @classmethod
    def read(cls, uri: str) -> Job:
        """Read a job's file.

        Raises:
            ConfigError: `no-such-file` or `bad-value`.
        """
        text = Storage(uri).read()
        if text is None:
            raise ConfigError("no-such-file", f"there is no job {uri}", hint="give the address of a job's JSON file")
        try:
            return cls.model_validate_json(text)
        except ValidationError as wrong:
            first = wrong.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            hint = "jobs are written by `rung climb`, `rung predict` and `rung tune` with --workers or --on"
            raise ConfigError("bad-value", f"{uri} is no job: {where}: {first['msg']}", hint=hint) from None


class Storage:
    """A file or folder by its path or URI, such as `s3://bucket/folder`.

    `uri` is what workers get. A path in it is absolute, since they run in other folders, with `/` on all systems.
    """

    def __init__(self, uri: str | Path) -> None:
        refuse_password(str(uri))
        with needed_by("work on several workers", extra="cluster"):
            from fsspec import filesystem
            from fsspec.core import url_to_fs

        self.uri = str(uri)
        with self._reached("opened"):
            if self.local:  # not by fsspec's reading of addresses, to which `::` in a path means something else
                self.uri = self.path = Path(self.uri).absolute().as_posix()
                self.fs = filesystem("file")
            else:
                try:
                    self.fs, self.path = url_to_fs(self.uri)
                except ImportError as missing:  # fsspec says what to install
                    hint = install_command("cluster") if self._scheme in ("s3", "s3a") else str(missing)
                    problem = f"{self._scheme}:// needs a library that is not installed"
                    raise MachineError("missing-extra", problem, hint=hint) from missing

    def __truediv__(self, name: str) -> Storage:
        return Storage(f"{self.uri.rstrip('/')}/{name}")

    @property
    def local(self) -> bool:
        """Whether it is a path of this machine, or of a file system that all machines have mounted."""
        return "://" not in self.uri

    def read(self) -> str | None:
        """The text of the file; None if there is none."""
        with self._reached("read"):
            try:
                return str(self.fs.cat_file(self.path).decode())
            except FileNotFoundError:
                return None

    @property
    def _scheme(self) -> str:
        return self.uri.partition("://")[0]

    def _make_folder_of(self, path: str) -> None:
        if self._scheme not in FLAT:
            self.fs.makedirs(posixpath.dirname(path), exist_ok=True)

    def write(self, text: str) -> None:
        """Write the file, whole or not at all."""
        with self._reached("written"):
            self._make_folder_of(self.path)
            if not self.local:
                self.fs.pipe_file(self.path, text.encode())
                return
            scratch = f"{self.path}.{secrets.token_hex(4)}"
            self.fs.pipe_file(scratch, text.encode())
            Path(scratch).replace(self.path)

    def put(self, folder: Path) -> None:
        """Copy the files of a folder of this machine here, the manifest last: with it, the copy is complete."""
        with self._reached("written"):
            for file in sorted(folder.rglob("*"), key=lambda each: (each == folder / MANIFEST, each)):
                if file.is_file():
                    target = posixpath.join(self.path, file.relative_to(folder).as_posix())
                    self._make_folder_of(target)
                    self.fs.put_file(str(file), target)

    def get(self, folder: Path) -> None:
        """Copy the files of the folder to one of this machine."""
        with self._reached("read"):
            self.fs.invalidate_cache()
            for path in self.fs.find(self.path):
                target = folder / posixpath.relpath(path, self.path)
                target.parent.mkdir(parents=True, exist_ok=True)
                self.fs.get_file(path, str(target))

    def folders(self) -> list[str]:
        """The names of what is in the folder, sorted; nothing if it does not exist."""
        with self._reached("read"):
            self.fs.invalidate_cache()
            entries = self.fs.ls(self.path, detail=False) if self.fs.exists(self.path) else []
            return sorted(posixpath.basename(str(each).rstrip("/")) for each in entries)

    def remove(self) -> None:
        """Remove the file or folder, if it exists."""
        with self._reached("removed"):
            self.fs.invalidate_cache()
            if self.fs.exists(self.path):
                self.fs.rm(self.path, recursive=True)

    def remove_or_say(self, progress: Progress) -> None:
        """Remove it when all is done: what cannot be removed is said, and loses no result."""
        try:
            self.remove()
        except MachineError as error:
            progress.say(f"{error}; everything else is done, so remove it yourself")

    def probe(self) -> None:
        """Write, read and remove a file, so that storage that refuses is known before any work starts.

        Raises:
            MachineError: `storage-refused`.
        """
        file, text = self / f"probe-{secrets.token_hex(4)}", secrets.token_hex(8)
        file.write(text)
        if file.read() != text:
            raise self.refused("read back: it holds something else than was written")
        file.remove()

    def refused(self, what: str) -> MachineError:
        """The error that says what the storage did not allow."""
        hint = "check the address, its permissions and the storage's environment variables; or name another: --jobs"
        return MachineError("storage-refused", f"{self.uri} cannot be {what}", hint=hint)

    @contextmanager
    def _reached(self, what: str) -> Iterator[None]:
        try:
            yield
        except MachineError:
            raise
        except Exception as error:  # each storage has errors of its own
            raise self.refused(f"{what}: {type(error).__name__}: {error}") from error


class Result(BaseModel):
    """The manifest of a finished job.

    Attributes:
        job: the id of the job.
        folder: the attempt's folder, below `out`.
        sha256: the hashes of its files.
        machine: a hash of what its speed and its answers depend on.
        seconds: what the work took.
        spent: what it used at endpoints.
        values: what else the kind of job tells.
    """

    model_config = ConfigDict(frozen=True)

    job: str
    folder: str
    sha256: Mapping[str, str]
    machine: str
    seconds: float
    spent: Mapping[str, int | float]
    values: Mapping[str, Any] = {}


def result_of(out: Storage) -> Result | None:
    """The result in a folder; None while it is not complete."""
    text = (out / MANIFEST).read()
    try:
        return None if text is None else Result.model_validate_json(text)
    except ValidationError:  # a kill cut it short
        return None


def done(job: Job) -> Result | None:
    """The result of this very job; None while it is not complete, or where a changed job's result is in its place."""
    result = result_of(Storage(job.out))
    return result if result is not None and result.job == job.id else None


def hashes(folder: Path) -> dict[str, str]:
    """The sha256 of every file in a folder, by its path in it."""
    found = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            found[file.relative_to(folder).as_posix()] = file_sha256(file)
    return found


def fetch(out: Storage, result: Result, scratch: Path) -> Path:
    """The files of a result as a folder of this machine, compared with their hashes; `scratch` holds copies.

    Raises:
        MachineError: `storage-refused`: a file is missing or was changed.
    """
    place = out / result.folder
    folder = Path(place.path) if place.local else scratch / result.job
    if not place.local and not folder.exists():
        place.get(folder)
    if hashes(folder) != dict(result.sha256):
        raise MachineError(
            "storage-refused", f"{place.uri} cannot be read: its files are not those of its manifest",
            hint=f"remove {out.uri}, then run the same command with --resume: it makes them again",
        )  # fmt: skip
    return folder


def shared(storage: Storage, folder: Path, fingerprint: str) -> str:
    """The address of an artifact for workers: its own, or with storage that is no path that of a copy there."""
    if storage.local:
        return str(folder.resolve())
    copy = storage / f"artifact-{fingerprint[:16]}"
    if MANIFEST not in copy.folders():
        copy.put(folder)
    return copy.uri


def own_name(out: Path) -> str:
    """The name of the folder that the jobs for a file or a run folder have below a shared one."""
    return f"{out.name}-{hash_of(str(out.resolve()), 8)}"


def installation() -> str:
    """The machine and the Python environment of this process."""
    return f"{platform.node()}:{sys.prefix}"


def sign_file(out: Storage, attempt: int) -> Storage:
    """Where the worker of an attempt gives signs of life."""
    return out / f"alive-{attempt}"


def error_file(out: Storage, attempt: int) -> Storage:
    """Where an attempt's error is."""
    return out / f"failed-{attempt}.json"


def error_of(out: Storage, attempt: int) -> dict[str, Any] | None:
    """The error of an attempt that failed; None if it left none."""
    text = error_file(out, attempt).read()
    try:
        found: dict[str, Any] | None = None if text is None else json.loads(text)
    except ValueError:
        return None
    return found
