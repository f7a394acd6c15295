"""API keys: a file of hashes, compared in constant time, and how often each key may ask.

The file holds JSON lines {"id", "name", "sha256", "created", "per_minute", "admin"}. Keys are 256 random bits, so a
plain hash cannot be searched; the file still is readable by its owner alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from rung.errors import ConfigError

PREFIX = "rung-"


@dataclass(frozen=True, slots=True)
class Key:
    """One key, without the key.

    Attributes:
        id: eight hex digits, written to logs and records.
        per_minute: most requests a minute, or None.
        admin: whether it may load and unload artifacts, review failures and promote.
    """

    id: str
    name: str
    sha256: str
    created: str
    per_minute: int | None = None
    admin: bool = False


def read_keys(file: Path) -> list[Key]:
    """Return the keys of a file.

    Raises:
        ConfigError: it cannot be read, or a line is no key.
    """
    try:
        lines = file.read_text("utf-8").splitlines()
    except OSError as error:
        raise ConfigError(
            "key-file-unreadable", f"{file} cannot be read: {error.strerror}",
            hint=f"make a key first: rung keys create --key-file {file}",
        ) from error  # fmt: skip
    keys = []
    for number, line in enumerate(lines, start=1):
        try:
            keys.append(Key(**json.loads(line)))
        except (TypeError, ValueError) as error:
            raise ConfigError(
                "key-file-damaged", f"{file}:{number} is no key: {error}", hint="remove the line, and make a new key"
            ) from error
    return keys


def create_key(file: Path, name: str, *, per_minute: int | None = None, admin: bool = False) -> tuple[str, Key]:
    """Add a key to the file; return it, which is the only time it can be seen, and what was stored."""
    secret = PREFIX + secrets.token_urlsafe(32)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    key = Key(secrets.token_hex(4), name, _hash(secret), created, per_minute, admin)
    with _locked(file):
        _write(file, [*(read_keys(file) if file.exists() else ()), key])
    return secret, key


def revoke_key(file: Path, key_id: str) -> None:
    """Take a key out of the file; a running server hears of it with the next request.

    Raises:
        ConfigError: there is no such key.
    """
    with _locked(file):
        keys = read_keys(file)
        left = [key for key in keys if key.id != key_id]
        if len(left) == len(keys):
            raise ConfigError("unknown-key-id", f"{file} has no key {key_id}", hint="`rung keys list` shows them")
        _write(file, left)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Keep other processes from changing the file meanwhile: two that add a key would lose one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_name(file.name + ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write(file: Path, keys: list[Key]) -> None:
    scratch = file.with_name(file.name + ".tmp")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as out:
        out.writelines(json.dumps(asdict(key)) + "\n" for key in keys)
        out.flush()
        os.fsync(out.fileno())
    os.replace(scratch, file)  # noqa: PTH105


class TooManyError(Exception):
    """A key asks more often than it may; `retry_after` seconds later it may again."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("this key asks more often than it may")
        self.retry_after = retry_after


class KeyRing:
    """The keys of a file as a server checks them; a changed file is read again.

    Args:
        file: the file of hashes.
        clock: seconds that only grow, for tests.
    """

    def __init__(self, file: Path, clock: object = None) -> None:
        self._file = file
        self._clock = clock if callable(clock) else time.monotonic
        self._lock = threading.Lock()
        self._seen = self._stamp()
        self._keys = read_keys(file)
        self._buckets: dict[str, tuple[float, float]] = {}  # tokens left, and when that was

    def find(self, secret: str) -> Key | None:
        """Return the key that a client gave, or None. Looks at all keys, so that time tells nothing."""
        with self._lock:
            self._refresh()
            given, found = _hash(secret), None
            for key in self._keys:
                if hmac.compare_digest(given, key.sha256):
                    found = key
            return found

    def by_id(self, key_id: str) -> Key | None:
        """Return the key with an id, or None once it is revoked."""
        with self._lock:
            self._refresh()
            return next((key for key in self._keys if key.id == key_id), None)

    def take(self, key: Key) -> None:
        """Count one request of a key: a bucket that holds a minute's worth and fills steadily.

        Raises:
            TooManyError: the bucket is empty.
        """
        if key.per_minute is None:
            return
        rate = key.per_minute / 60
        with self._lock:
            now = float(self._clock())
            left, since = self._buckets.get(key.id, (float(key.per_minute), now))
            left = min(float(key.per_minute), left + (now - since) * rate)
            if left < 1:
                self._buckets[key.id] = left, now
                raise TooManyError(max(1, round((1 - left) / rate + 0.5)))
            self._buckets[key.id] = left - 1, now

    def _refresh(self) -> None:
        if (stamp := self._stamp()) != self._seen:
            self._keys, self._seen = read_keys(self._file), stamp

    def _stamp(self) -> tuple[int, int]:
        try:
            status = self._file.stat()
        except OSError:
            return (0, 0)
        return status.st_mtime_ns, status.st_ino
