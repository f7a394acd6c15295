"""Files that are written whole or not at all, and errors of the system that name the place and the way on."""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from rung.errors import ConfigError, MachineError, RungError
from rung.machine import lock_file

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
_SPACE = "free some space, or set RUNG_CACHE to a folder on another disk, and run the same command again: it resumes"
_HINTS = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: _SPACE,
    errno.ENAMETOOLONG: "use a shorter name",
    errno.EMFILE: "let the process open more files: ulimit -n 4096",
    errno.ENOENT: "check the path",
    errno.EEXIST: "a file is where a folder is needed: name another place",
    errno.ENOTDIR: "a file is where a folder is needed: name another place",
}
_PERMISSIONS = "check the permissions, or name another folder; RUNG_CACHE names that of Rung's cache"
_OS_ERROR = re.compile(r"os error (\d+)")  # in errors of libraries written in Rust


def system_error(error: OSError) -> RungError:
    """Turn an error of the operating system into one with a code, a place and a hint."""
    place = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    reason = error.strerror or str(error)
    problem = f"{place}: {reason}" if place else reason
    hint = _HINTS.get(error.errno or 0, _PERMISSIONS)
    if isinstance(error, FileNotFoundError):
        return ConfigError("no-such-file", problem, hint=hint)
    return MachineError("write-failed" if error.errno in _FULL else "system-error", problem, hint=hint)


def os_error(error: Exception) -> OSError | None:
    """The error of the system behind an error of a library; None if it is of another kind."""
    if isinstance(error, OSError):
        return error
    number = _OS_ERROR.search(str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else None


@contextmanager
def writing(what: str, place: Path, hint: str = "") -> Iterator[None]:
    """Turn an error of the system into one that says what could not be written, and where.

    Raises:
        MachineError: `write-failed`: the disk is full or not writable.
    """
    try:
        yield
    except Exception as error:  # safetensors reports a full disk as an error of its own
        if isinstance(error, RungError) or (system := os_error(error)) is None:
            raise
        problem = f"{what} could not be written to {place.absolute()}: {system.strerror or system}"
        hint = hint or _HINTS.get(system.errno or 0, _PERMISSIONS)
        raise MachineError("write-failed", problem, hint=hint) from error


@contextmanager
def replacing(file: Path, *, private: bool = False) -> Iterator[Path]:
    """A scratch file beside `file` that takes its place when the block ends well: readers see the old one or the new.

    With `private`, only the owner may read it.

    Raises:
        MachineError: `write-failed`; the old file stays.
    """
    with writing(file.name, file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        scratch = file.parent / f".{file.name[:200]}.{secrets.token_hex(8)}"
        try:
            handle = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666)
            with os.fdopen(handle, "wb") as made:
                yield scratch
                os.fsync(made.fileno())
            scratch.replace(file)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise


def write_atomically(file: Path, text: str, *, private: bool = False) -> None:
    """Replace `file` by `text` as `replacing` does."""
    with replacing(file, private=private) as scratch, scratch.open("w", encoding="utf-8", newline="") as out:
        out.write(text)


def lock_alone(file: IO[Any], problem: str, hint: str) -> None:
    """Keep other processes from writing an open file until it is closed.

    Raises:
        ConfigError: `file-in-use`: another process has it; `problem` and `hint` say what that means.
    """
    try:
        lock_file(file.fileno(), wait=False)
    except BlockingIOError as busy:
        raise ConfigError("file-in-use", problem, hint=hint) from busy


@contextmanager
def locked(file: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a lock that other processes wait for; `waiting` is called if another process holds it.

    The file is removed afterwards. That of a killed process stays, and holds nobody up.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with file.open("a") as lock:
            try:
                lock_file(lock.fileno(), wait=False)
            except BlockingIOError:
                waiting()
                lock_file(lock.fileno())
            try:
                if not os.path.samestat(os.fstat(lock.fileno()), file.stat()):
                    continue
            except FileNotFoundError:  # the one before has removed it: another process may hold a new one
                continue
            try:
                yield
            finally:
                with suppress(PermissionError):  # Windows keeps a file while it is open, and that holds nobody up
                    file.unlink(missing_ok=True)
            return
