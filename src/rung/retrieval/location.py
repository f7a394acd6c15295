"""Where an index lies, a folder or the URL of an object store: what it holds, and who may build it.

In a folder `index.json` says what the index holds, and a lock of the file system, which ends with its process, keeps
two builds apart. An object store has neither. There the LanceDB table `index` has one row with the same text and the
name of who builds. An update of it is one conditional write, so that of two that take the lock at once one does.
"""

from __future__ import annotations

import re
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock

from rung.data.rows import hash_of
from rung.errors import ArtifactError
from rung.models.cache import cache_dir, lock_file, write_atomically
from rung.progress import Progress
from rung.retrieval.store import connected, names, reached

MANIFEST = "index.json"
TABLES = "passages.lance"
STATE = "index"  # the table of an object store that holds what index.json does, and the lock
KEPT = timedelta(days=1)  # that older states stay, for who reads meanwhile
TRIES = 5  # of a write that met another one
CONFLICT = re.compile("commit conflict|incompatible with concurrent")
URL = re.compile(r"(s3|gs|az)://[^/?#\s][^?#\s]*")

Place = Path | str  # a folder, or the URL of an object store


class IndexPlace(Protocol):
    """What a build and a reader need of the place of an index."""

    @property
    def tables(self) -> str:
        """Where LanceDB keeps the passages."""

    def read(self) -> str | None:
        """Return what was published last; None where nothing is."""

    def building(self, progress: Progress, *, unlock: bool = False) -> Any:
        """Return a context in which no other process builds here; `unlock` takes the lock of a build that died."""

    def check(self) -> None:
        """Check that this build still has the lock; to be called in `building`, before every write."""

    def publish(self, text: str) -> None:
        """Replace what `read` returns, at once."""

    def withdraw(self) -> None:
        """Make `read` return None."""


def place_of(text: str | Path) -> Place:
    """Return a folder as a path, and a URL as it is, without a slash at its end."""
    return text.rstrip("/") if isinstance(text, str) and URL.fullmatch(text) else Path(text).expanduser()


def open_place(place: Place) -> IndexPlace:
    """Return the place at a folder or URL."""
    return _bucket(place) if isinstance(place, str) else _Folder(place.absolute())


class _Folder:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.tables = str(folder / TABLES)

    def read(self) -> str | None:
        file = self._folder / MANIFEST
        return file.read_text("utf-8") if file.exists() else None

    @contextmanager
    def building(self, progress: Progress, *, unlock: bool = False) -> Iterator[None]:
        del unlock  # the lock of a process that died is free
        with _alone_here(str(self._folder), progress):
            yield

    def check(self) -> None:
        """The lock cannot be lost."""

    def publish(self, text: str) -> None:
        write_atomically(self._folder / MANIFEST, text)

    def withdraw(self) -> None:
        (self._folder / MANIFEST).unlink(missing_ok=True)


class _Bucket:
    def __init__(self, url: str) -> None:
        self.tables = url
        self._seen: tuple[int, str | None] = (0, None)  # version of the state, and its text

    @cached_property
    def _database(self) -> Any:
        return connected(self.tables)

    @cached_property
    def _state(self) -> Any:
        return self._database.open_table(STATE)

    @cached_property
    def _me(self) -> str:
        """The machine and its cache, whose lock files keep its own processes apart."""
        return f"{socket.gethostname()}/{_cache_id()}"

    def read(self) -> str | None:
        with reached(self.tables):
            if "_state" not in vars(self) and STATE not in names(self._database):
                return None
            self._state.checkout_latest()
            if (version := self._state.version) != self._seen[0]:
                self._seen = (version, self._row()["text"] or None)
            return self._seen[1]

    def _row(self) -> dict[str, str]:
        (row,) = self._state.to_arrow().to_pylist()
        return dict(row)

    @contextmanager
    def building(self, progress: Progress, *, unlock: bool = False) -> Iterator[None]:
        with _alone_here(self.tables, progress):
            self._take(unlock=unlock)
            try:
                yield
            finally:
                self._update(f"owner = '{self._me}'", owner="", since="")

    def _take(self, *, unlock: bool) -> None:
        """Take the lock. One with this machine's name was left by a process that died: `_alone_here` says so.

        Raises:
            ArtifactError: another machine has it.
        """
        with reached(self.tables):
            if STATE not in names(self._database):
                self._begin()
        free = "true" if unlock else f"owner IN ('', '{self._me}')"
        if not self._update(free, owner=self._me, since=datetime.now(UTC).isoformat(" ", "seconds")):
            row = self._row()
            raise ArtifactError(
                "index-locked",
                f"{row['owner'].partition('/')[0]} builds the index {self.tables}, since {row['since']}",
                hint="wait until it is done; if that build has died, `rung index build TASK --unlock` goes on with it",
            )

    def _begin(self) -> None:
        import pyarrow as pa

        try:
            empty = pa.table({"owner": [""], "since": [""], "text": [""]})
            self._database.create_table(STATE, empty, exist_ok=True)
        except RuntimeError as problem:
            if not CONFLICT.search(str(problem)):
                raise  # else another machine made it at the same time

    def _update(self, where: str, **values: str) -> int:
        """Change the row if the condition holds; return 1 if it did, else 0."""
        with reached(self.tables):
            for _ in range(TRIES - 1):
                try:
                    return self._update_once(where, values)
                except RuntimeError as problem:
                    if not CONFLICT.search(str(problem)):
                        raise
            return self._update_once(where, values)

    def _update_once(self, where: str, values: dict[str, str]) -> int:
        self._state.checkout_latest()
        return int(self._state.update(where=where, values=values).rows_updated)

    def check(self) -> None:
        with reached(self.tables):
            self._state.checkout_latest()
            owner = self._row()["owner"]
        if owner != self._me:
            raise self._lost()

    def publish(self, text: str) -> None:
        with reached(self.tables):
            self._state.optimize(cleanup_older_than=KEPT)
        if not self._update(f"owner = '{self._me}'", text=text):
            raise self._lost()

    def withdraw(self) -> None:
        self.publish("")

    def _lost(self) -> ArtifactError:
        return ArtifactError(
            "index-lock-lost",
            f"another build took the lock of {self.tables} meanwhile",
            hint="let that one finish, then run `rung index build TASK` again: it keeps what is there",
        )


@lru_cache(maxsize=8)
def _bucket(url: str) -> _Bucket:
    return _Bucket(url)


@contextmanager
def _alone_here(address: str, progress: Progress) -> Iterator[None]:
    """Wait for other builds on this machine."""
    progress.start("waiting for another build of this index")
    with FileLock(lock_file(Path(address))):
        progress.finish()
        yield


def _cache_id() -> str:
    """Return a random name of this cache, made at the first call."""
    file = cache_dir() / "locks" / "id"
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock_file(file)):
        if not file.exists():
            write_atomically(file, secrets.token_hex(16))
        return file.read_text("utf-8")


def stamp(place: Place) -> str:
    """Return what changes when an index was published anew."""
    if isinstance(place, str):
        return hash_of([open_place(place).read()], 16)
    file = place / MANIFEST
    return str(file.stat().st_mtime_ns) if file.exists() else ""
