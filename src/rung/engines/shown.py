"""How much of a text that is being written can be given out: what may still change is held back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class Shown:
    """Counts the characters of one completion that a stream has given out."""

    sent: int = 0

    def more(self, text: str, stop: Sequence[str], *, ended: bool) -> str:
        """Return what can be shown of `text` and was not.

        Half of a character, and what may be the beginning of a stop text, wait until the text has `ended`.
        """
        safe = len(text)
        if not ended:
            safe -= max((len(one) - 1 for one in stop), default=0)
            if text.endswith("\ufffd"):
                return ""
        piece = text[self.sent : safe] if safe > self.sent else ""
        self.sent = max(self.sent, safe)
        return piece
