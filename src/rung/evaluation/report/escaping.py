"""Text into HTML."""

import html
from typing import Any


def safe(text: Any) -> str:
    """Return a value's text as HTML shows it; NUL, which HTML cannot hold, as the sign for what is unreadable."""
    return html.escape(str(text).replace("\0", "\ufffd"), quote=True)
