"""The techniques, one file a family, and the registry that names them. No other package knows their names.

Classes are imported when they are used: `rung.rungs.LoRA`.
"""

from __future__ import annotations

import difflib
import pkgutil
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from rung.errors import ConfigError
from rung.rungs.base import REGISTERED, Applicability, Cost, Registration, Rung, rung, variants, with_settings
from rung.task import Task

__all__ = [
    "Applicability", "Cost", "Registration", "Rung", "build", "default_names", "get", "names", "registered", "rung",
]  # fmt: skip

ENTRY_POINTS = "rung.rungs"  # the group in which other packages name modules or classes with rungs


def registered() -> list[Registration]:
    """List all rungs in the order of the ramp, those of other packages included.

    Raises:
        ConfigError: `rung-not-loaded`: a rung of another package fails to import.
    """
    _discover()
    return sorted(REGISTERED.values(), key=lambda entry: entry.order)


@cache
def _discover() -> None:
    for module in pkgutil.iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")
    for point in entry_points(group=ENTRY_POINTS):
        try:
            point.load()
        except Exception as error:
            package = point.dist.name if point.dist else point.value
            raise ConfigError(
                "rung-not-loaded",
                f"the rung {point.name!r} of the package {package} fails to import: {type(error).__name__}: {error}",
                hint=f"mend it, or uninstall it: uv pip uninstall {package}",
            ) from error


def names() -> tuple[str, ...]:
    """Name all rungs in the order of the ramp."""
    return tuple(entry.name for entry in registered())


def default_names(task: Task | None = None) -> tuple[str, ...]:
    """Name the rungs that a climb tries by default; of a task with preferences, also those that learn from them."""
    judged = task is not None and task.data.preferences is not None
    return tuple(entry.name for entry in registered() if entry.default or (judged and entry.rung_type.with_preferences))


def build(chosen: Iterable[str], task: Task, seed: int) -> tuple[Rung, ...]:
    """Make the chosen rungs in the order of the ramp, with the task's settings for them.

    Where the task gives a setting several values, a name stands for all of the rungs that they make; see
    `base.variants`. The name of one of these rungs stands for that rung.

    Raises:
        ConfigError: a name or a setting is unknown, or a setting has a bad value.
    """
    wanted: dict[str, set[str]] = {}  # registered names, and the variants that were named
    for name in chosen:
        plain = name if name in names() else next((own for own in task.rungs if name.startswith(f"{own}-")), name)
        wanted.setdefault(_known(plain), set()).add(name)
    made: list[Rung] = []
    for plain in sorted(wanted, key=names().index):
        found = variants(REGISTERED[plain].make(task, seed), task.rungs.get(plain, {}))
        picked = found if plain in wanted[plain] else [one for one in found if one.name in wanted[plain]]
        if unknown := wanted[plain] - {plain} - {one.name for one in found}:
            _known(min(unknown))
        made += picked
    return tuple(made)


def get(name: str, task: Task | None = None, seed: int = 0, **settings: Any) -> Rung:
    """Make one rung by its name: `get("lora", rank=8)`.

    Args:
        name: a name that `names()` lists.
        task: the task, for rungs that read more of it than its rows: its system prompts, its documents.
        seed: seed of everything random.
        settings: the rung's settings; those of `task.rungs` are not read.

    Raises:
        ConfigError: the name or a setting is unknown, or a setting has a bad value.
    """
    return with_settings(REGISTERED[_known(name)].make(task, seed), settings)


def _known(name: str) -> str:
    _discover()
    if name not in REGISTERED:
        near = difflib.get_close_matches(name, REGISTERED, n=1)
        raise ConfigError(
            "unknown-name",
            f"no rung is named {name!r}",
            hint=f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(names())}",
        )
    return name


def __getattr__(name: str) -> Any:
    for entry in registered() if name[:1].isupper() else ():
        if entry.rung_type.__name__ == name:
            return entry.rung_type
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *(entry.rung_type.__name__ for entry in registered())})
