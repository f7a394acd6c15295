"""What an agent did, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Outcome = Literal["result", "failed", "timeout", "malformed", "answer"]


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that the model wrote and what came of it.

    Attributes:
        outcome: `result` of a tool; it `failed` (raised, or refused the arguments) or ran into its `timeout`; the
            model's text was `malformed`; or it is the `answer`.
        text: what the model was told: the tool's result, or what was wrong; of an answer, the answer.
        written: what the model wrote.
        tool: the tool called, or empty.
        arguments: its arguments, JSON text.
        tokens: tokens that the model wrote; 0 for further calls of the same turn.
        seconds: time of the tool's call.
    """

    outcome: Outcome
    text: str
    written: str
    tool: str = ""
    arguments: str = ""
    tokens: int = 0
    seconds: float = 0.0


def trace(steps: Sequence[Step], stopped: str) -> dict[str, Any]:
    """Return what an answer's JSON says of its steps and the limit it ran into; nothing where no agent answered."""
    return {"steps": [asdict(step) for step in steps], "stopped": stopped or None} if steps or stopped else {}
