"""Who may ask: Host and Origin against pages of other sites, and a key wherever one is set.

A page in the user's browser can send requests to a server on loopback, and by rebinding its own name to 127.0.0.1 read
the answers. It cannot choose the Host header, and it cannot leave out Origin.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import ipaddress
import json
import os
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from urllib.parse import quote, urlsplit

from rung.errors import ConfigError
from rung.serving.limits import Refused

# --------------------
# API keys: a file of hashes, compared in constant time, and how often each key may ask.
#
# The file holds JSON lines {"id", "name", "sha256", "created", "per_minute", "admin"}. Keys are 256 random bits, so a
# plain hash cannot be searched; the file still is readable by its owner alone.


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
            "unreadable-file", f"{file} cannot be read: {error.strerror}",
            hint=f"make a key first: rung keys create --key-file {file}",
        ) from error  # fmt: skip
    keys = []
    for number, line in enumerate(lines, start=1):
        try:
            keys.append(Key(**json.loads(line)))
        except (TypeError, ValueError) as error:
            raise ConfigError(
                "unreadable-file", f"{file}:{number} is no key: {error}", hint="remove the line, and make a new key"
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
            raise ConfigError("unknown-name", f"{file} has no key {key_id}", hint="`rung keys list` shows them")
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


LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
OPEN = frozenset({"/health", "/ready"})  # probes have no key
SIGN_IN = "/sign-in"
STATIC = "/static/"  # the pages' style and script, before anybody has signed in
API = ("/v1/", "/metrics", "/openapi.json")  # for programs: a cookie opens nothing here


@dataclass(frozen=True)
class Access:
    """The rules of one server.

    Attributes:
        keys: the keys, or None where none is asked for.
        hosts: names that the Host header may have; None where any may (then a key is what protects).
        origins: origins of other sites whose pages may ask.
        sessions: who is signed in to the pages; None where there are none.
    """

    keys: KeyRing | None = None
    hosts: frozenset[str] | None = LOOPBACK_NAMES
    origins: frozenset[str] = field(default_factory=frozenset)
    sessions: Sessions | None = None

    def check(self, path: str, headers: Mapping[str, str], scheme: str) -> Key | None:
        """Return the key of a request, or None where none is set.

        Raises:
            Refused: it may not ask.
        """
        host = headers.get("host", "")
        if self.hosts is not None and _name(host) not in self.hosts:
            raise Refused(403, "bad-host", "this server does not answer to that Host; allow it with --allow-host")
        origin = headers.get("origin")
        if origin is not None and origin not in self.origins and not _same(origin, host, scheme):
            raise Refused(403, "bad-origin", "pages of that Origin may not ask; allow it with --allow-origin")
        if self.keys is None or path in OPEN:
            return None
        if self.sessions is not None and "authorization" not in headers and not path.startswith(API):
            return self._signed_in(self.sessions, path, headers)
        return self._known(self.keys, headers.get("authorization", ""))

    def _signed_in(self, sessions: Sessions, path: str, headers: Mapping[str, str]) -> Key | None:
        """Return the key that somebody signed in with, or send him to the page where he does."""
        key = sessions.key(headers.get("cookie", ""))
        if key is not None or path == SIGN_IN or path.startswith(STATIC):
            return key
        if headers.get("hx-request"):  # a part of a page that is open asks: the page is loaded anew
            raise Refused(401, "signed-out", "the session is over", headers={"HX-Refresh": "true"})
        to = f"{SIGN_IN}?to={quote(path)}"
        raise Refused(303, "signed-out", "sign in with a key", headers={"Location": to, "Cache-Control": "no-store"})

    def _known(self, keys: KeyRing, authorization: str) -> Key:
        scheme, _, secret = authorization.partition(" ")
        key = keys.find(secret.strip()) if scheme.lower() == "bearer" and secret.strip() else None
        if key is None:
            raise Refused(
                401, "invalid-api-key", "no valid key was given: send `Authorization: Bearer KEY`",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        try:
            keys.take(key)
        except TooManyError as often:
            after = {"Retry-After": str(often.retry_after)}
            raise Refused(
                429, "rate-limit", f"this key may ask {key.per_minute} times a minute", headers=after
            ) from None
        return key


def access_rules(
    host: str, keys: KeyRing | None, *, hosts: frozenset[str] = frozenset(), origins: frozenset[str] = frozenset()
) -> Access:
    """Return the rules for a server that listens on `host`.

    Raises:
        ConfigError: others than this machine could ask, and there is no key.
    """
    loopback = is_loopback(host)
    if not loopback and keys is None:
        raise ConfigError(
            "key-needed", f"anyone who reaches {host} could ask, and no key is set",
            hint="make one: `rung keys create --key-file keys.jsonl`, then serve with `--key-file keys.jsonl`",
        )  # fmt: skip
    if loopback:
        return Access(keys, LOOPBACK_NAMES | {_name(host)} | hosts, origins)
    return Access(keys, hosts or None, origins)


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _name(host: str) -> str:
    """Return a Host header without its port, in lower case."""
    return (host[: host.index("]") + 1] if host.startswith("[") and "]" in host else host.partition(":")[0]).lower()


def _same(origin: str, host: str, scheme: str) -> bool:
    parts = urlsplit(origin)
    return parts.scheme in (scheme, "https") and parts.netloc.lower() == host.lower()


# --------------------
# Who is signed in to the pages: a key is shown once, and a cookie stands for it from then on.


COOKIE = "rung_session"
HOURS = 12  # that a session lasts
MOST = 1000  # sessions at once; the oldest end first


class Sessions:
    """The sessions of one server, in memory: they end with it, and with their key.

    Args:
        keys: the keys, or None where none is asked for; then nobody signs in.
    """

    def __init__(self, keys: KeyRing | None) -> None:
        self.keys = keys
        self._secret = secrets.token_bytes(32)
        self._known: dict[str, tuple[str, float]] = {}  # hash of the cookie's value: id of the key, and until when
        self._lock = threading.Lock()

    def sign_in(self, secret: str) -> str | None:
        """Return the value of a new session's cookie, or None if the key is unknown."""
        key = self.keys.find(secret) if self.keys is not None else None
        if key is None:
            return None
        value = secrets.token_urlsafe(32)
        with self._lock:
            while len(self._known) >= MOST:
                del self._known[next(iter(self._known))]
            self._known[_session_hash(value)] = key.id, time.monotonic() + 3600 * HOURS
        return value

    def sign_out(self, cookies: str) -> None:
        """End the session of a Cookie header."""
        with self._lock:
            self._known.pop(_session_hash(_value(cookies)), None)

    def key(self, cookies: str) -> Key | None:
        """Return the key that a Cookie header stands for; None once it is revoked or the session is over."""
        value = _value(cookies)
        if not value or self.keys is None:
            return None
        with self._lock:
            known = self._known.get(_session_hash(value))
        if known is None or known[1] < time.monotonic():
            return None
        return self.keys.by_id(known[0])

    def form_token(self, cookies: str) -> str:
        """Return what every form of this session carries: pages of other sites cannot read it."""
        return hmac.new(self._secret, _value(cookies).encode(), hashlib.sha256).hexdigest()

    def is_form_token(self, cookies: str, given: str) -> bool:
        """Tell whether a form came from a page of this session."""
        return hmac.compare_digest(self.form_token(cookies).encode(), given.encode())


def _value(cookies: str) -> str:
    try:
        found = SimpleCookie(cookies).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""


def _session_hash(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()
