"""Names of responses: what a client reports a failure by."""

from __future__ import annotations

import secrets


def new_id(kind: str) -> str:
    """Return a new id, such as `chatcmpl-...`; nobody can guess another's."""
    return f"{kind}-{secrets.token_hex(16)}"
