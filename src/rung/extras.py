"""Libraries that come with an extra: what cannot be imported is told with what to install."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rung.errors import MachineError


@contextmanager
def needed_by(what: str, *, extra: str = "local", error: type[MachineError] = MachineError) -> Iterator[None]:
    """Import in this context what `what` needs and `extra` brings.

    Raises:
        MachineError: `missing-extra`, of the class `error`: something cannot be imported.
    """
    try:
        yield
    except ImportError as missing:
        raise error(
            "missing-extra", f"{what} needs {missing.name}", hint=f"uv pip install 'rung[{extra}]'"
        ) from missing
