"""Who is signed in to the pages: a key is shown once, and a cookie stands for it from then on."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from http.cookies import CookieError, SimpleCookie

from rung.serving.keys import Key, KeyRing

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
            self._known[_hash(value)] = key.id, time.monotonic() + 3600 * HOURS
        return value

    def sign_out(self, cookies: str) -> None:
        """End the session of a Cookie header."""
        with self._lock:
            self._known.pop(_hash(_value(cookies)), None)

    def key(self, cookies: str) -> Key | None:
        """Return the key that a Cookie header stands for; None once it is revoked or the session is over."""
        value = _value(cookies)
        if not value or self.keys is None:
            return None
        with self._lock:
            known = self._known.get(_hash(value))
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


def _hash(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()
