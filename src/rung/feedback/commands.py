"""Commands as they are shown: such that they work when they are pasted."""

from __future__ import annotations

import shlex
from pathlib import Path

from rung.feedback.defaults import REGISTRY, STORE


def command(words: str, *arguments: str | Path, registry: Path = REGISTRY, store: str = STORE) -> str:
    """Return a command line for a shell.

    Args:
        words: the command, such as `rung trial show`.
        arguments: what follows, each of which is quoted where it has to be.
        registry: the folder of promoted artifacts, named where it is not the default.
        store: the store, likewise, as `Store.name`: where that hides a password, RUNG_STORE has to hold the URL.
    """
    named = [*arguments]
    if registry != REGISTRY:
        named += ["--registry", registry]
    hidden = ":***@" in store
    if store not in (STORE, str(Path(STORE).absolute())) and not hidden:
        named += ["--store", store]
    line = f"{words} {shlex.join(map(str, named))}"
    return f'{line} --store "$RUNG_STORE"' if hidden else line
