"""The cache folder, the offline switch, and folders that appear complete or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path

from rung.errors import MachineError, ModelError
from rung.models.files import locked, os_error, write_atomically
from rung.progress import QUIET, Progress

TRUE = {"1", "true", "yes", "on"}


def cache_dir() -> Path:
    """Rung's cache folder: `$RUNG_CACHE`, else `$XDG_CACHE_HOME/rung`, else `~/.cache/rung`."""
    if own := os.environ.get("RUNG_CACHE"):
        return Path(own).expanduser().absolute()
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base).expanduser().absolute() / "rung"
    return Path.home() / ".cache" / "rung"


_training: ContextVar[Path | None] = ContextVar("training", default=None)


def training_dir() -> Path:
    """Where trainings keep their state: in the cache, or where `training_in` says."""
    return _training.get() or cache_dir() / "training"


@contextlib.contextmanager
def training_in(folder: Path) -> Iterator[None]:
    """Have trainings keep their state in another folder while the block runs."""
    token = _training.set(folder)
    try:
        yield
    finally:
        _training.reset(token)


def offline() -> bool:
    """Whether the network must not be used: `RUNG_OFFLINE` or `HF_HUB_OFFLINE` is 1, true, yes or on."""
    return any(os.environ.get(name, "").strip().lower() in TRUE for name in ("RUNG_OFFLINE", "HF_HUB_OFFLINE"))


def publish(folder: Path, build: Callable[[Path], object], progress: Progress = QUIET) -> bool:
    """Make `folder` appear complete or not at all.

    `build` fills an empty sibling folder, which is flushed to disk and then renamed. Processes that publish the same
    folder wait for each other, and say so; only the first one builds it. Remains of a killed process are removed.

    Returns:
        True if this call built the folder, False if it existed.
    """
    folder = folder.absolute()
    if folder.exists():
        return False
    lock = folder.with_name(f".{folder.name}.lock")
    with locked(lock, lambda: progress.say(f"waiting for another process that makes {folder.name} ...")):
        if folder.exists():
            return False
        prefix = f".{folder.name}."
        for stale in folder.parent.glob(f"{prefix}*.part"):
            shutil.rmtree(stale)
        partial = Path(tempfile.mkdtemp(prefix=prefix, suffix=".part", dir=folder.parent))
        try:
            build(partial)
            _open_up(partial)
            flush(partial)
            partial.rename(folder)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, Exception) and (system := os_error(error)) and system.filename is None:
                system.filename = str(folder)
                raise system from error
            raise
        _flush_one(folder.parent)
    return True


def check_space(folder: Path, needed: float, what: str) -> None:
    """Refuse to begin where what is to be written does not fit.

    Raises:
        ModelError: `write-failed`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(folder).free) < needed:
        problem = f"{what} needs {needed / 1e9:.1f} GB of disk, and {free / 1e9:.1f} GB are free in {folder}"
        raise ModelError("write-failed", problem, hint="free some space, or set RUNG_CACHE to a folder on another disk")


def remove_model(fingerprint: str, *folders: Path) -> int:
    """Remove these folders of a model and its exports to other engines; gives the bytes freed."""
    freed = 0
    for folder in (*folders, *(cache_dir() / "openvino").glob(f"{fingerprint}-*")):
        freed += size_of(folder)
        if folder.exists():
            shutil.rmtree(folder)
    return freed


def size_of(folder: Path) -> int:
    """The bytes of all files below a folder, which need not exist."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def flush(folder: Path) -> None:
    """Force every file and folder below `folder`, and itself, to disk."""
    for parent, _, files in os.walk(folder, topdown=False):
        for name in files:
            _flush_one(Path(parent) / name)
        _flush_one(Path(parent))


def recall(name: str) -> str | None:
    """What an earlier process found out under this name, see `remember`; None if nothing."""
    file = cache_dir() / "verified" / name.replace("/", "-")
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def remember(name: str, text: str) -> None:
    """Keep a finding for later processes; where the cache cannot be written, they find it out again."""
    file = cache_dir() / "verified" / name.replace("/", "-")
    with contextlib.suppress(MachineError):
        write_atomically(file, text)


def _open_up(folder: Path) -> None:
    """Give a folder the usual permissions: mkdtemp and safetensors write private ones."""
    mask = os.umask(0)
    os.umask(mask)
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def _flush_one(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folder, and writes the names in it at once
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ---- fingerprints of model files, cached so that an unchanged file is hashed once


def file_sha256(file: Path) -> str:
    """The sha256 of one file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def known_sha256(file: Path) -> str:
    """The sha256 of one file, cached while its path, size and modification time are unchanged."""
    file = file.resolve()
    status = file.stat()
    state = [str(file), status.st_size, status.st_mtime_ns]
    name = f"{hashlib.sha256(str(file).encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(ValueError, TypeError, KeyError):  # nothing is remembered, or it is damaged
        known = json.loads(recall(name) or "")
        if known["file"] == state:
            return str(known["sha256"])
    digest = file_sha256(file)
    remember(name, json.dumps({"file": state, "sha256": digest}))
    return digest


def fingerprint(files: Sequence[Path]) -> str:
    """One sha256 over the names and contents of `files`, in any order."""
    lines = sorted(f"{file.name} {known_sha256(file)}" for file in files)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
