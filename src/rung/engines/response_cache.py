"""A cache of answers: the same tokens and weights give the same result, so they run once.

One SQLite file in Rung's cache, in write-ahead mode, safe for many processes. A key covers everything that may change a
result: engine fingerprint (weights, precision), adapter contents, exact tokens, continuations, sampling. Random
sampling without a seed is never cached.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from rung._version import __version__
from rung.engines.base import (
    CANCELLED,
    Cancelled,
    Engine,
    EngineWrapper,
    GenerateRequest,
    Generation,
    Incremental,
    Scored,
    ScoreRequest,
)
from rung.engines.changes import adapter_fingerprint
from rung.errors import MachineError
from rung.models.cache import cache_dir
from rung.progress import QUIET, Progress

MAX_BYTES = 512 * 2**20
SAVED_TOGETHER = 32  # completions of a remote engine that are saved at once; a kill loses at most this many
PRUNE_TO = 0.8  # a full store is cut to this share, so that it is not cut again at every write


class ResponseStore:
    """Key to bytes; the least recently used entries are dropped first.

    A store that cannot be read or written (damaged, full disk, no permission) stops nothing: it is left out with one
    line on stderr.
    """

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES) -> None:
        self.path, self.max_bytes = path, max_bytes
        self._lock, self._failed = threading.Lock(), False
        with self._optional():
            self._create()

    def _create(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):  # answers hold the user's data: only the owner may read them
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        with self._open() as db:
            columns = "key BLOB PRIMARY KEY, value BLOB, used REAL"
            db.execute(f"CREATE TABLE IF NOT EXISTS response ({columns}) WITHOUT ROWID")

    @contextmanager
    def _optional(self) -> Iterator[None]:
        """Go on without the store where it fails inside the block."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            self._failed = True
            hint = "`rung cache clear` makes a new one, and RUNG_CACHE names another folder"
            print(f"answers are not remembered: {self.path}: {error}; {hint}", file=sys.stderr)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        # A connection per call: connections must not cross threads or forks, and opening one costs 0.1 ms.
        db = sqlite3.connect(self.path, timeout=60)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            with db:
                yield db
        finally:
            db.close()

    def get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The cached values of `keys`, which are marked as used."""
        values: dict[bytes, bytes] = {}
        if self._failed:
            return values
        with self._lock, self._optional(), self._open() as db:
            for first in range(0, len(keys), 500):
                part = keys[first : first + 500]
                marks = ",".join("?" * len(part))
                values.update(db.execute(f"SELECT key, value FROM response WHERE key IN ({marks})", part))  # noqa: S608
            db.executemany("UPDATE response SET used = ? WHERE key = ?", [(time.time(), key) for key in values])
        return values

    def put(self, items: Iterable[tuple[bytes, bytes]]) -> None:
        """Save `items`; drop the least recently used entries beyond the size limit."""
        if self._failed:
            return
        with self._lock, self._optional(), self._open() as db:
            now = time.time()
            db.executemany("INSERT OR REPLACE INTO response VALUES (?, ?, ?)", [(k, v, now) for k, v in items])
            total = db.execute("SELECT COALESCE(SUM(LENGTH(value) + 64), 0) FROM response").fetchone()[0]
            if total <= self.max_bytes:
                return
            surplus = total - int(self.max_bytes * PRUNE_TO)
            for key, size in db.execute("SELECT key, LENGTH(value) + 64 FROM response ORDER BY used").fetchall():
                if surplus <= 0:
                    return
                db.execute("DELETE FROM response WHERE key = ?", (key,))
                surplus -= size

    def size(self) -> tuple[int, int]:
        """Entries, and bytes on disk.

        Raises:
            MachineError: `unreadable-file`: the file is damaged.
        """
        try:
            with self._open() as db:
                count = db.execute("SELECT COUNT(*) FROM response").fetchone()[0]
        except (sqlite3.Error, OSError) as error:
            problem, hint = f"{self.path} cannot be read: {error}", "`rung cache clear` makes a new one"
            raise MachineError("unreadable-file", problem, hint=hint) from error
        files = [self.path, self.path.with_name(self.path.name + "-wal")]
        return count, sum(file.stat().st_size for file in files if file.exists())

    def clear(self) -> None:
        """Delete every entry and free the disk space; a damaged file is replaced."""
        with self._lock:
            try:
                with self._open() as db:
                    db.execute("DELETE FROM response")
                with closing(sqlite3.connect(self.path, timeout=60)) as db:
                    db.execute("VACUUM")
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError) and self.path.exists():
                    raise MachineError(
                        "write-failed", f"{self.path} cannot be cleared: {error}",
                        hint="end the processes that use it, and look whether the disk is full",
                    ) from error  # fmt: skip
                for suffix in ("", "-wal", "-shm"):
                    self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
                self._create()
            self._failed = False


def store_path() -> Path:
    """The file of the cache."""
    return cache_dir() / "responses.sqlite"


@lru_cache(maxsize=4)
def open_store(path: Path) -> ResponseStore:
    """The store at `path`, opened once per process."""
    return ResponseStore(path)


class CachedEngine(EngineWrapper):
    """An engine that looks into the store first; it does not cache streams and vectors."""

    def __init__(self, engine: Engine, store: ResponseStore | None = None) -> None:
        super().__init__(engine)
        self.store = store or open_store(store_path())

    def generate(
        self, requests: Sequence[GenerateRequest], *, progress: Progress = QUIET, cancelled: Cancelled | None = None
    ) -> list[Generation]:
        """Complete every request that is not cached."""
        random = [r.sampling.temperature > 0 and r.sampling.seed is None for r in requests]
        keys = [None if drawn else self._key("generate", r) for drawn, r in zip(random, requests, strict=True)]
        known = self.store.get([key for key in keys if key is not None])
        missing = [i for i, key in enumerate(keys) if key is None or key not in known]
        wanted = [requests[i] for i in missing]
        generations = dict.fromkeys(missing, CANCELLED)
        unsaved: list[tuple[bytes, bytes]] = []
        completed: Iterable[tuple[int, Generation]] = ()
        if not isinstance(self.engine, Incremental):
            completed = enumerate(self.engine.generate(wanted, progress=progress, cancelled=cancelled))
        elif wanted:
            completed = self.engine.each(wanted, progress=progress, cancelled=cancelled)
        try:
            for position, generation in completed:
                generations[missing[position]] = generation
                key = keys[missing[position]]
                if key is not None and generation.finish_reason != "cancelled":
                    unsaved.append((key, json.dumps(asdict(generation)).encode()))
                if len(unsaved) >= SAVED_TOGETHER and isinstance(self.engine, Incremental):
                    self.store.put(unsaved)
                    unsaved = []
        finally:
            self.store.put(unsaved)  # also when a later request failed
        return [generations[i] if i in generations else _generation(known[key]) for i, key in enumerate(keys)]  # type: ignore[index]

    def score(self, requests: Sequence[ScoreRequest], *, progress: Progress = QUIET) -> list[Scored]:
        """Score every request that is not cached; a full row of scores also answers a search for the best."""
        exact = [self._key("score", r) for r in requests]
        full = [self._key("score", ScoreRequest(r.prompt, r.continuations, r.adapter)) for r in requests]
        known = self.store.get(list({*exact, *full}))
        hits = {i: full[i] if full[i] in known else exact[i] for i in range(len(requests))}
        results = {i: _scored(known[key]) for i, key in hits.items() if key in known}
        missing = [i for i in range(len(requests)) if i not in results]
        size = SAVED_TOGETHER if isinstance(self.engine, Incremental) else max(1, len(missing))
        for first in range(0, len(missing), size):
            part = missing[first : first + size]
            results.update(zip(part, self.engine.score([requests[i] for i in part], progress=progress), strict=True))
            saved = {i: full[i] if np.isfinite(results[i].logprobs).all() else exact[i] for i in part}
            self.store.put((key, _pack(results[i])) for i, key in saved.items())
        return [results[i] for i in range(len(requests))]

    def _key(self, call: str, request: GenerateRequest | ScoreRequest) -> bytes:
        values: dict[str, Any] = asdict(request)
        values["adapter"] = adapter_fingerprint(request.adapter) if request.adapter else None
        return hashlib.sha256(json.dumps([call, __version__, self.info.fingerprint, values]).encode()).digest()


def _pack(scored: Scored) -> bytes:
    head = np.array([scored.prompt_tokens, scored.seconds], np.float64)
    return head.tobytes() + scored.logprobs.astype(np.float32).tobytes()


def _scored(value: bytes) -> Scored:
    tokens, seconds = np.frombuffer(value[:16], np.float64)
    return Scored(np.frombuffer(value[16:], np.float32), int(tokens), float(seconds))


def _generation(value: bytes) -> Generation:
    values = json.loads(value)
    return Generation(**{**values, **{key: tuple(values.get(key, ())) for key in ("logprobs", "tokens")}})
