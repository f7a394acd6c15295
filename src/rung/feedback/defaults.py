"""Where things are, and how long a trial lasts, unless something else is said; nothing is loaded to know it."""

from __future__ import annotations

from pathlib import Path

STORE = "failures.db"
REGISTRY = Path("registry")
SHARE = 0.1  # of the inputs that a challenger answers in an A/B trial
PAIRS = 10_000  # after which a trial ends undecided
