"""Who may ask: Host and Origin against pages of other sites, and a key wherever one is set.

A page in the user's browser can send requests to a server on loopback, and by rebinding its own name to 127.0.0.1 read
the answers. It cannot choose the Host header, and it cannot leave out Origin.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from rung.errors import ConfigError
from rung.serving.errors import Refused
from rung.serving.keys import Key, KeyRing, TooManyError

if TYPE_CHECKING:
    from rung.serving.web.sessions import Sessions

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
