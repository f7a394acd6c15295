"""Who may ask: Host and Origin against pages of other sites, and a key wherever one is set.

A page in the user's browser can send requests to a server on loopback, and by rebinding its own name to 127.0.0.1 read
the answers. It cannot choose the Host header, and it cannot leave out Origin.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from rung.errors import ConfigError
from rung.serving.errors import Refused
from rung.serving.keys import Key, KeyRing, TooManyError

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
OPEN = frozenset({"/health", "/ready"})  # probes have no key


@dataclass(frozen=True)
class Access:
    """The rules of one server.

    Attributes:
        keys: the keys, or None where none is asked for.
        hosts: names that the Host header may have; None where any may (then a key is what protects).
        origins: origins of other sites whose pages may ask.
    """

    keys: KeyRing | None = None
    hosts: frozenset[str] | None = LOOPBACK_NAMES
    origins: frozenset[str] = field(default_factory=frozenset)

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
        return self._known(self.keys, headers.get("authorization", ""))

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
