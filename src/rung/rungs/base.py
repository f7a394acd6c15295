"""What a rung is: one customization technique, an Artifact in, a new Artifact out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, Protocol, get_type_hints, runtime_checkable

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from rung.artifact.artifact import Artifact
from rung.data.rows import Data
from rung.errors import ConfigError
from rung.machine import Machine
from rung.progress import QUIET, Progress


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a rung applies, and if not, why; `final` if no other rung changes that, for the task itself is why."""

    applies: bool
    reason: str = ""
    final: bool = False


YES = Verdict(True)


def no(reason: str) -> Verdict:
    """Return the verdict that a rung does not apply to this artifact, with the reason as a clause."""
    return Verdict(False, reason)


def never(reason: str) -> Verdict:
    """Return the verdict that a rung applies to no artifact of this task, whatever rungs made it."""
    return Verdict(False, reason, final=True)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a rung is expected to take on this machine.

    Attributes:
        fit_tokens: tokens read while fitting, epochs counted.
        fit_flops: floating-point operations of fitting.
        fit_seconds: time of fitting.
        row_tokens: tokens read or written for one prediction.
        row_flops: floating-point operations of one prediction.
        row_seconds: time of one prediction in a batch.
        memory_bytes: peak memory, model included.
    """

    fit_tokens: int
    fit_flops: float
    fit_seconds: float
    row_tokens: float
    row_flops: float
    row_seconds: float
    memory_bytes: int


class Rung(Protocol):
    """One customization technique. Implementations are frozen dataclasses whose fields are its settings."""

    @property
    def name(self) -> str:
        """How the climb and the reports call it, settings that make it another technique included."""

    @property
    def family(self) -> str:
        """The step of the ramp it belongs to.

        One of prompting, in-context, features, soft prompts, parameter-efficient, partial, full, combination.
        """

    def applies(self, artifact: Artifact, data: Data) -> Verdict:
        """Say whether it can be put on top of `artifact`, or why not."""

    def estimate(self, artifact: Artifact, data: Data, machine: Machine) -> Cost:
        """Foresee what it takes, without loading model weights."""

    def fit(self, artifact: Artifact, data: Data, *, progress: Progress = QUIET) -> Artifact:
        """Return a new artifact; the given one is not changed."""


@runtime_checkable
class TakesLittle(Protocol):
    """A rung whose result hangs on little of the artifact it starts from, such as a head on frozen features."""

    def taken(self, artifact: Artifact) -> tuple[object, ...] | None:
        """Return what its result hangs on, comparable with `==`; None for the whole artifact."""


def taken_from(rung: Rung, artifact: Artifact) -> tuple[object, ...] | None:
    """Return what the rung's result hangs on of the artifact; None for all of it.

    From two artifacts of which the same is taken, the rung makes artifacts that answer every row alike.
    """
    return rung.taken(artifact) if isinstance(rung, TakesLittle) else None


# --------------------
# Settings of rungs from a task file: `rungs: {lora: {rank: 8}}`, checked against the fields of each rung.


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
    from rung.errors import suggest

    first = error.errors()[0]
    key = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        known = list(settable(rung))
        if not known:
            return ConfigError("unknown-key", f"the rung {rung.name} has no settings", hint=f"remove {key!r}")
        return ConfigError("unknown-key", f"the rung {rung.name} has no setting {key!r}", hint=suggest(key, known))
    return ConfigError(
        "bad-setting",
        f"{rung.name}.{key}: {first['msg']}, not {first['input']!r}",
        hint="see `rung rungs` for defaults",
    )
