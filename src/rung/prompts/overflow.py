"""What happens to a prompt that is longer than the model can read: an explicit policy, and never a silent cut.

    error                  the engine refuses the row (`context-overflow`)
    drop_demonstrations    demonstrations give way, the first shown (the least similar) first, until prompt and answer
                           fit; a row that does not fit without any is refused

The policy is the task's and is frozen in the artifact, so that training, measuring and serving cut alike. What was
dropped is counted with every answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from rung.engines.base import Messages
    from rung.prompts.prompt import Prompt, Turn

Overflow = Literal["error", "drop_demonstrations"]
POLICIES: tuple[str, ...] = get_args(Overflow)


@dataclass(frozen=True, slots=True)
class Rendered:
    """The messages of one row, and how many of its demonstrations were left out so that it fits."""

    messages: Messages
    dropped_demonstrations: int = 0


def fitted(
    policy: Overflow,
    prompt: Prompt,
    inputs: Mapping[str, Any],
    demonstrations: Sequence[Turn],
    count: Callable[[Messages], int],
    limit: int,
) -> Rendered:
    """Render one row under a policy.

    Args:
        policy: what may give way.
        prompt: the renderer.
        inputs: the row.
        demonstrations: solved rows in the order in which they are shown.
        count: returns the number of tokens of messages.
        limit: most tokens that the prompt may have: the model's context less the room for the answer.
    """
    messages = prompt.messages(inputs, demonstrations)
    if policy == "error":
        return Rendered(messages)
    dropped = 0
    while dropped < len(demonstrations) and count(messages) > limit:
        dropped += 1
        messages = prompt.messages(inputs, demonstrations[dropped:])
    return Rendered(messages, dropped)
