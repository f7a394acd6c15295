"""Settings of rungs from a task file: `rungs: {lora: {rank: 8}}`, checked against the fields of each rung."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from rung.errors import ConfigError
from rung.rungs.base import Rung

# What makes a rung another technique, or comes from elsewhere (`--seed`, the task's `system`).
FIXED = {"name", "family", "selection", "seed", "task", "texts", "systems", "make"}


def with_settings(rung: Rung, values: Mapping[str, Any]) -> Rung:
    """Return the rung with these settings over its defaults.

    Raises:
        ConfigError: a setting is unknown or of the wrong type.
    """
    if not values:
        return rung
    try:
        checked = _model(type(rung), settable(rung)).model_validate(dict(values))
    except ValidationError as error:
        raise _refused(rung, error) from None
    return replace(rung, **checked.model_dump(exclude_unset=True))  # type: ignore[type-var]


def settable(rung: Rung) -> tuple[str, ...]:
    """Return the names of a rung's settings."""
    kept = FIXED | ({"encoder"} if getattr(rung, "encoder", None) == "" else set())
    return tuple(field.name for field in fields(rung) if field.init and field.name not in kept)  # type: ignore[arg-type]


@lru_cache(maxsize=64)
def _model(kind: type[Any], names: tuple[str, ...]) -> type[BaseModel]:
    hints = get_type_hints(kind, include_extras=True)
    wanted: dict[str, Any] = {name: (hints[name], None) for name in names}  # values not given are not read
    return create_model(kind.__name__, __config__=ConfigDict(extra="forbid", strict=True), **wanted)


def _refused(rung: Rung, error: ValidationError) -> ConfigError:
    from rung.task import suggest

    first = error.errors()[0]
    key = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        known = list(settable(rung))
        if not known:
            return ConfigError("unknown-setting", f"the rung {rung.name} has no settings", hint=f"remove {key!r}")
        return ConfigError("unknown-setting", f"the rung {rung.name} has no setting {key!r}", hint=suggest(key, known))
    return ConfigError(
        "bad-setting",
        f"{rung.name}.{key}: {first['msg']}, not {first['input']!r}",
        hint="see `rung rungs` for defaults",
    )
