"""What a climb showed of every rung alone, in one word and in numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rung.evaluation.report.words import against, delta_text, score_text
from rung.evaluation.result import ClimbResult, RungResult

Word = Literal["helped", "hurt", "no difference", "beaten", "skipped", "failed", "incumbent"]
LEVEL = 0.05  # as in the confirmation


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a climb showed of one rung on top of zero-shot.

    `helped` and `hurt` are significant on the test rows, after the correction over all pairs; `beaten` rungs were
    stopped in the race. `text` says it with numbers.
    """

    rung: str
    word: Word
    text: str


def outcomes(result: ClimbResult) -> dict[str, Outcome]:
    """Return what the climb showed of every rung that it tried on top of zero-shot, by name."""
    return {rung.name: _outcome(result, rung) for rung in result.rungs if len(rung.path) <= 2}


def _outcome(result: ClimbResult, rung: RungResult) -> Outcome:
    if rung.status == "skipped" or rung.status == "failed":
        return Outcome(rung.name, rung.status, rung.reason)
    if rung.name == result.rungs[0].name:
        return Outcome(rung.name, "incumbent", score_text(rung))
    comparison = against(result, rung.name)
    if comparison is None:
        return Outcome(rung.name, "beaten", f"{score_text(rung)} on {rung.n} validation rows")
    text = delta_text(comparison)
    if comparison.p >= LEVEL or comparison.delta == 0:
        return Outcome(rung.name, "no difference", text)
    return Outcome(rung.name, "helped" if comparison.delta > 0 else "hurt", text)
