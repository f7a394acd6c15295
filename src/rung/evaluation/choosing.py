"""Questions to a model that may only answer with one of a few words, as judges do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rung.engines.base import Constraint, GenerateRequest, Messages, Sampling
from rung.errors import EngineError

if TYPE_CHECKING:
    from rung.engines.base import Engine

_LONGEST = 4  # tokens of an answer


@dataclass(frozen=True, slots=True)
class Chosen:
    """An answer: its text, and the choice that it is; None where it cannot be read, never guessed at."""

    text: str
    choice: str | None


def choose(engine: Engine, prompts: Sequence[Messages], choices: tuple[str, ...]) -> list[Chosen]:
    """Return the model's answer to every prompt, all asked in one call of the engine.

    Engines hold an answer to the choices where they can; those that cannot may say anything, and are read whatever
    their case and with a full stop behind.
    """
    if not prompts:
        return []
    constraint, sampling = Constraint("choices", choices), Sampling(max_tokens=_LONGEST)
    known = {choice.lower(): choice for choice in choices}
    texts = [made.text for made in engine.generate([GenerateRequest(one, sampling, constraint) for one in prompts])]
    return [Chosen(text, known.get(text.strip().strip(".").lower())) for text in texts]


def check_readable(
    bad: Sequence[str], asked: int, most: float, *, judge: str, what: str, choices: tuple[str, ...], hint: str
) -> None:
    """Check that no more than the share `most` of what was asked came back unreadable; one alone is no share.

    Args:
        bad: an unreadable answer of each that has one.
        asked: how many were asked.
        most: share of them that may be unreadable.
        judge: who was asked, for the message.
        what: what was asked, in the plural.
        choices: what would have been readable.
        hint: how to go on.

    Raises:
        EngineError: `judge-unreadable`.
    """
    if len(bad) > max(1, most * asked):
        raise EngineError(
            "judge-unreadable",
            f"{judge} answered {len(bad)} of {asked} {what} with something other than {_either(choices)}, such as "
            f"{bad[0]!r}",
            hint=hint,
        )


def _either(choices: tuple[str, ...]) -> str:
    return f"{', '.join(choices[:-1])} or {choices[-1]}"
