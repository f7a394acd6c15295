"""Who may ask: Host and Origin checks against pages of other sites, API keys, and signed-in sessions of the pages.

A page in the user's browser can send requests to a server on loopback, and by rebinding its own name to 127.0.0.1 read
the answers. It cannot choose the Host header, and it cannot leave out Origin.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from urllib.parse import quote, urlsplit

from rung.errors import ConfigError
from rung.machine import is_loopback, only_ours
from rung.models.files import locked, write_atomically
from rung.serving.limits import Refused
from rung.yamlfile import json_value

# ---- API keys: JSON lines with the fields of `ApiKey`, in a file that only its owner reads.
# A key is 256 random bits, so nobody can find it from its plain hash.

PREFIX = "rung-"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What the key file stores of one key."""

    id: str  # eight hex digits, written to logs and records
    name: str
    sha256: str
    created: str
    per_minute: int | None = None  # most requests a minute
    admin: bool = False  # whether it may load and unload artifacts, start climbs, review failures and promote
    reviewer: bool = False  # whether it may review failures, and nothing else of that


def read_keys(file: Path) -> list[ApiKey]:
    """Read a key file; raise ConfigError if it cannot be read, if others may write it, or if a line is not a key."""
    try:
        if not only_ours(file.stat()):
            hint = f"chown it to the user of the server, and: chmod 600 {file}"
            raise ConfigError("key-file-unsafe", f"others may write {file}, and so make keys", hint=hint)
        lines = file.read_text("utf-8").splitlines()
    except OSError as error:
        hint = f"make a key first: rung keys create --key-file {file}"
        raise ConfigError("unreadable-file", f"{file} cannot be read: {error.strerror}", hint=hint) from error
    keys = []
    for number, line in enumerate(lines, start=1):
        try:
            keys.append(ApiKey(**json_value(line)))
        except (TypeError, ValueError) as error:
            hint = "remove the line and create a new key"
            raise ConfigError("unreadable-file", f"{file}:{number} is not a key: {error}", hint=hint) from error
    return keys


def create_key(
    file: Path, name: str, *, per_minute: int | None = None, admin: bool = False, reviewer: bool = False
) -> tuple[str, ApiKey]:
    """Add a key to the file, and return the secret, which is shown only now, with what was stored."""
    secret = PREFIX + secrets.token_urlsafe(32)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    key = ApiKey(secrets.token_hex(4), name, _sha256(secret), created, per_minute, admin, reviewer)
    with locked(_lock(file)):
        _write(file, [*(read_keys(file) if file.exists() else ()), key])
    return secret, key


def revoke_key(file: Path, key_id: str) -> None:
    """Remove a key from the file; a running server refuses it from the next request on."""
    with locked(_lock(file)):
        keys = read_keys(file)
        remaining = [key for key in keys if key.id != key_id]
        if len(remaining) == len(keys):
            raise ConfigError("unknown-name", f"{file} has no key {key_id}", hint="`rung keys list` shows them")
        _write(file, remaining)


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _lock(file: Path) -> Path:
    """Name the lock of a key file: two processes that add a key at once would lose one."""
    return file.with_name(f".{file.name}.lock")


def _write(file: Path, keys: list[ApiKey]) -> None:
    write_atomically(file, "".join(json.dumps(asdict(key)) + "\n" for key in keys), private=True)


class KeyRing:
    """Checks keys and rates against a key file; a changed file is read again."""

    def __init__(self, file: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._file, self._clock = file, clock
        self._lock = threading.Lock()
        self._seen = self._stamp()
        if not (keys := read_keys(file)):
            hint = f"make one: rung keys create --key-file {file}"
            raise ConfigError("key-needed", f"{file} has no key, so nobody could ask", hint=hint)
        self._keys = keys
        self._buckets: dict[str, tuple[float, float]] = {}  # tokens left, and when that was

    def find(self, secret: str) -> ApiKey | None:
        """Look up a secret; every key is compared, so the time taken reveals nothing."""
        digest, match = _sha256(secret), None
        for key in self._current():
            if hmac.compare_digest(digest, key.sha256):
                match = key
        return match

    def by_id(self, key_id: str) -> ApiKey | None:
        """Look up a key by its id; None once it is revoked."""
        return next((key for key in self._current() if key.id == key_id), None)

    def take(self, key: ApiKey) -> None:
        """Count one request, or refuse it: a token bucket that holds a minute's worth and fills steadily."""
        if key.per_minute is None:
            return
        rate = key.per_minute / 60
        with self._lock:
            now = self._clock()
            left, since = self._buckets.get(key.id, (float(key.per_minute), now))
            left = min(float(key.per_minute), left + (now - since) * rate)
            self._buckets[key.id] = left - 1 if left >= 1 else left, now
        if left < 1:
            wait = {"Retry-After": str(max(1, round((1 - left) / rate + 0.5)))}
            raise Refused(429, "rate-limit", f"this key may ask {key.per_minute} times a minute", headers=wait)

    def _current(self) -> list[ApiKey]:
        with self._lock:
            if (stamp := self._stamp()) != self._seen:
                self._keys, self._seen = read_keys(self._file), stamp
            return self._keys

    def _stamp(self) -> tuple[int, int]:
        try:
            status = self._file.stat()
        except OSError:
            return (0, 0)
        return status.st_mtime_ns, status.st_ino


# ---- Sessions of the pages: somebody shows a key once, and a cookie replaces it afterwards.

COOKIE = "rung_session"
HOURS = 12  # that a session lasts
MAX_SESSIONS = 1000  # at once; the oldest end first


class Sessions:
    """The sessions of one server, in memory: they end with the server, and with their key."""

    def __init__(self, keys: KeyRing | None) -> None:
        self.keys = keys
        self._secret = secrets.token_bytes(32)
        self._known: dict[str, tuple[str, float]] = {}  # hash of the cookie's value: id of the key, and until when
        self._lock = threading.Lock()

    def sign_in(self, secret: str) -> str | None:
        """Begin a session and return the cookie's value; None if the key is unknown."""
        key = self.keys.find(secret) if self.keys is not None else None
        if key is None:
            return None
        value = secrets.token_urlsafe(32)
        with self._lock:
            while len(self._known) >= MAX_SESSIONS:
                del self._known[next(iter(self._known))]
            self._known[_sha256(value)] = key.id, time.monotonic() + 3600 * HOURS
        return value

    def sign_out(self, cookies: str) -> None:
        """End the session of a Cookie header."""
        with self._lock:
            self._known.pop(_sha256(_session_value(cookies)), None)

    def key(self, cookies: str) -> ApiKey | None:
        """Look up the key of a Cookie header; None once it is revoked or the session is over."""
        value = _session_value(cookies)
        if not value or self.keys is None:
            return None
        with self._lock:
            key_id, until = self._known.get(_sha256(value), ("", 0.0))
        return self.keys.by_id(key_id) if time.monotonic() <= until else None

    def form_token(self, cookies: str) -> str:
        """Compute what every form of this session carries; pages of other sites cannot read it."""
        return hmac.new(self._secret, _session_value(cookies).encode(), hashlib.sha256).hexdigest()

    def is_form_token(self, cookies: str, token: str) -> bool:
        """Tell whether a form came from a page of this session."""
        return hmac.compare_digest(self.form_token(cookies).encode(), token.encode())


def _session_value(cookies: str) -> str:
    try:
        morsel = SimpleCookie(cookies).get(COOKIE)
    except CookieError:
        return ""
    return morsel.value if morsel else ""


# ---- The rules of a server.

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:@/\[\]]+)(?::\d{1,5})?")  # a name or an address, and a port
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
OPEN = frozenset({"/health", "/ready"})  # probes have no key
SIGN_IN = "/sign-in"
STATIC = "/static/"  # the pages' style and script, needed before anybody has signed in
API = ("/v1/", "/metrics", "/openapi.json")  # for programs: a cookie opens nothing here
ANY_SITE = "*"


@dataclass(frozen=True)
class Access:
    """The rules of one server."""

    keys: KeyRing | None = None  # None where no key is needed
    hosts: frozenset[str] | None = LOOPBACK_NAMES  # what the Host header may name; None for any: a key protects then
    origins: frozenset[str] = frozenset()  # other sites whose pages may use the API; `*` for any
    sessions: Sessions | None = None  # who is signed in to the pages; None where there are no pages

    def check(self, path: str, headers: Mapping[str, str], scheme: str) -> ApiKey | None:
        """Refuse a request that is not allowed; return its key, or None where no key is needed."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.hosts is not None and _host_name(host) not in self.hosts:
            raise Refused(403, "bad-host", "this server does not answer to that Host; allow it with --allow-host")
        if origin is not None and not self._allows(origin, path):
            site = urlsplit(origin)
            if site.scheme not in (scheme, "https") or site.netloc.lower() != host.lower():
                raise Refused(403, "bad-origin", "pages of that Origin may not ask; allow it with --allow-origin")
        if self.keys is None or path in OPEN:
            return None
        if self.sessions is not None and "authorization" not in headers and not path.startswith(API):
            return self._signed_in(self.sessions, path, headers)
        kind, _, secret = headers.get("authorization", "").partition(" ")
        key = self.keys.find(secret.strip()) if kind.lower() == "bearer" and secret.strip() else None
        if key is None:
            message = "no valid key was given: send `Authorization: Bearer KEY`"
            raise Refused(401, "invalid-api-key", message, headers={"WWW-Authenticate": "Bearer"})
        self.keys.take(key)
        return key

    def cors(self, path: str, headers: Mapping[str, str], *, preflight: bool) -> dict[str, str]:
        """List the headers that let a page of an allowed site read the response; a preflight asks before the request.

        No cookies are allowed across sites: such a page sends a key.
        """
        origin = headers.get("origin")
        if origin is None or not self._allows(origin, path):
            return {}
        allowed = {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}
        if not preflight:
            return {**allowed, "Access-Control-Expose-Headers": "Retry-After"}
        allowed["Access-Control-Allow-Methods"] = "GET, HEAD, POST, PUT, DELETE"
        allowed["Access-Control-Allow-Headers"] = headers.get("access-control-request-headers", "")
        allowed["Access-Control-Max-Age"] = "600"
        if headers.get("access-control-request-private-network"):  # a public site asks a server on this machine
            allowed["Access-Control-Allow-Private-Network"] = "true"
        return allowed

    def _allows(self, origin: str, path: str) -> bool:
        if not (path.startswith(API) or path in OPEN):
            return False
        return origin.lower() in self.origins or ANY_SITE in self.origins

    def _signed_in(self, sessions: Sessions, path: str, headers: Mapping[str, str]) -> ApiKey | None:
        """The key of the session; without one, redirect to the page that asks for it."""
        key = sessions.key(headers.get("cookie", ""))
        if key is not None or path == SIGN_IN or path.startswith(STATIC):
            return key
        if headers.get("hx-request"):  # part of an open page: reload the page
            raise Refused(401, "signed-out", "the session is over", headers={"HX-Refresh": "true"})
        to = f"{SIGN_IN}?to={quote(path)}"
        raise Refused(303, "signed-out", "sign in with a key", headers={"Location": to, "Cache-Control": "no-store"})


def access_rules(
    host: str, keys: KeyRing | None, *, hosts: frozenset[str] = frozenset(), origins: frozenset[str] = frozenset()
) -> Access:
    """Make the rules of a server on `host`; raise ConfigError if other machines could ask without a key."""
    loopback = is_loopback(host)
    if not loopback and keys is None:
        raise ConfigError(
            "key-needed", f"anyone who reaches {host} could ask, and no key is set",
            hint="make one: `rung keys create --key-file keys.jsonl`, then serve with `--key-file keys.jsonl`",
        )  # fmt: skip
    if ANY_SITE in origins and keys is None:
        hint = "name the sites, or serve with --key-file"
        raise ConfigError("key-needed", "any page in a browser could ask, and no key is set", hint=hint)
    origins = frozenset(map(_origin, origins))
    own = f"[{host.strip('[]').lower()}]" if ":" in host else host.lower()
    return Access(keys, LOOPBACK_NAMES | {own} | hosts if loopback else hosts or None, origins)


def _origin(text: str) -> str:
    """Read a site as browsers name it in the Origin header."""
    site = urlsplit(text.rstrip("/"))
    if text != ANY_SITE and (not site.scheme or not site.netloc or site.path or site.query):
        hint = "write scheme, host and port, such as https://chat.example.org or http://localhost:3000"
        raise ConfigError("bad-option", f"{text!r} is not the origin of a site", hint=hint)
    return text.rstrip("/").lower()


def _host_name(host: str) -> str:
    """Strip the port of a Host header; a header of another form names nothing."""
    match = _HOST.fullmatch(host)
    return match[1].lower() if match else ""
