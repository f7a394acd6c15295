"""What the user lets run on this machine: functions, commands, programs and endpoints that a file names.

A task file, an artifact or an index may come from somebody else, so naming code in one is not enough to run it. What
was allowed is kept by a hash of everything that says what would run: one private file for each in the user's
configuration folder. A changed file is not allowed any more. `rung trust` allows.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from rung.errors import MachineError

FOLDERS = "RUNG_TRUST"  # environment variable: folders whose code may run, with `:` between them
HOSTS = "RUNG_API_HOSTS"  # environment variable: hosts to which texts and keys may go, with commas between them


@dataclass(frozen=True, slots=True)
class Permit:
    """One thing that needs the user's consent.

    Attributes:
        kind: what it is.
        what: the function, the command, the limits of programs, or the endpoint's address.
        folder: the folder in which it runs; empty for an endpoint.
        files: the files in that folder which it runs, each with its sha256.
    """

    kind: Literal["metric", "tool", "command", "programs", "endpoint"]
    what: str
    folder: str = ""
    files: tuple[tuple[str, str], ...] = ()

    @property
    def key(self) -> str:
        """A hash of everything that says what would run."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def __str__(self) -> str:
        if self.kind == "endpoint":
            return f"endpoint {self.what}: your texts, and the key of the environment, are sent there"
        if self.kind == "programs":
            return f"programs that a model writes, in {self.folder} ({self.what})"
        if self.kind == "command":
            return f"command  {self.what}   in {self.folder}{self._listed()}"
        files = self._listed() or " of an installed package"
        return f"{self.kind:8} {self.what}   in {self.folder}{files}"

    def _listed(self) -> str:
        return "".join(f"\n           {name}  sha256 {digest[:16]}" for name, digest in self.files)


def command_permit(command: Sequence[str], folder: Path) -> Permit:
    """The permit of a command; files of the folder among its arguments count with their contents."""
    files = {}
    for word in command:
        file = folder / word
        if file.is_file():
            with file.open("rb") as stream:
                files[word] = hashlib.file_digest(stream, "sha256").hexdigest()
    return Permit("command", shlex.join(command), str(folder.resolve()), tuple(sorted(files.items())))


def program_permit(settings: Mapping[str, Any], folder: Path) -> Permit:
    """The permit to run programs that a model writes, within limits."""
    limits = ", ".join(f"{name}: {value}" for name, value in sorted(settings.items()))
    return Permit("programs", limits, str(folder.resolve()))


def endpoint_permit(address: str) -> Permit:
    """The permit to send texts and a key to the host of an address."""
    parts = urlsplit(address)
    return Permit("endpoint", f"{parts.scheme}://{parts.netloc.rpartition('@')[2].lower()}")


_named: set[str] = set()


def name_endpoint(address: str) -> None:
    """Allow an endpoint that the command line names, in this process alone."""
    _named.add(endpoint_permit(address).key)


def allowed(permit: Permit) -> bool:
    """Whether the user allowed it: by `rung trust`, on the command line, or in the environment."""
    if permit.kind == "endpoint":
        hosts = {name.strip().lower() for name in os.environ.get(HOSTS, "").split(",")}
        netloc, host = urlsplit(permit.what).netloc, urlsplit(permit.what).hostname
        if permit.key in _named or netloc in hosts or host in hosts:
            return True
    elif any(Path(permit.folder).is_relative_to(folder) for folder in _trusted_folders()):
        return True
    file = _records() / permit.key
    try:
        status = file.lstat()
    except OSError:
        return False
    private = not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return stat.S_ISREG(status.st_mode) and private and status.st_uid in (os.geteuid(), 0)


def missing(permits: Iterable[Permit]) -> list[Permit]:
    """Those that the user has not allowed, each once."""
    return [permit for permit in dict.fromkeys(permits) if not allowed(permit)]


def require(permit: Permit) -> None:
    """Refuse what the user has not allowed.

    Raises:
        MachineError: `not-trusted`.
    """
    if not allowed(permit):
        raise refusal([permit])


def refusal(permits: Sequence[Permit], place: str | Path = "") -> MachineError:
    """The error that names what is not allowed; `place` is the file or folder that names it."""
    listed = "\n".join(f"  {permit}" for permit in permits)
    place = place or permits[0].folder or "TASK"
    return MachineError(
        "not-trusted", f"this would run or reach what you have not allowed on this machine:\n{listed}",
        hint=f"read what it is, then allow it: rung trust {shlex.quote(str(place))}",
    )  # fmt: skip


def allow(permits: Iterable[Permit]) -> None:
    """Keep the user's consent.

    Raises:
        MachineError: `write-failed`.
    """
    records = _records()
    try:
        records.mkdir(mode=0o700, parents=True, exist_ok=True)
        for permit in permits:
            (records / permit.key).unlink(missing_ok=True)
            handle = os.open(records / permit.key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w", encoding="utf-8") as out:
                json.dump(asdict(permit), out, ensure_ascii=False, indent=1)
    except OSError as error:
        hint = f"name trusted folders in {FOLDERS} and hosts in {HOSTS} where nothing can be written"
        raise MachineError("write-failed", f"cannot write to {records}: {error.strerror}", hint=hint) from error


def revoke(permits: Iterable[Permit]) -> None:
    """Take the user's consent back."""
    for permit in permits:
        (_records() / permit.key).unlink(missing_ok=True)


def _records() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "rung" / "trust"


def _trusted_folders() -> list[Path]:
    return [Path(text).expanduser().resolve() for text in os.environ.get(FOLDERS, "").split(os.pathsep) if text]
