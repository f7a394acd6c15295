"""Fit a prompt that is too long to the model's context by an explicit policy; nothing is cut silently.

    error                  the engine refuses the row (`context-overflow`)
    drop_demonstrations    demonstrations are dropped, the first shown (the least similar) first, until prompt and
                           answer fit; a row that does not fit without any is refused
    shorten_passages       retrieved passages are dropped: first those of demonstrations, then the row's own, the least
                           relevant first; the last one is cut at a word; a row that does not fit then is refused
    truncate_input         demonstrations are dropped, then all passages, and then the longest input column is cut at
                           its end, after a word, until prompt and answer fit; a row that does not fit then is refused

The task sets the policy and the artifact keeps it, so training, measuring and serving cut alike. Every answer counts
what was dropped or shortened.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rung.data.spec import Overflow
from rung.prompts.prompt import Grounding
from rung.retrieval.passage import Passage

if TYPE_CHECKING:
    from rung.models.messages import Messages
    from rung.prompts.prompt import Prompt, SolvedRow

_WORD_END = re.compile(r"(?<!\S)\S++(?=\s)")  # a word that others follow


@dataclass(frozen=True, slots=True)
class Rendered:
    """The messages of one row, and what was left out to make them fit."""

    messages: Messages  # the prompt
    dropped_demonstrations: int = 0  # demonstrations left out
    dropped_passages: int = 0  # passages left out, those of demonstrations included
    shortened_passages: int = 0  # passages cut
    passages: tuple[Passage, ...] = ()  # the passages shown, [1] first
    truncated_characters: int = 0  # cut from the end of the longest input column
    refused: bool = False  # nothing relevant was found, so the answer is a refusal without a call of the model


def fitted(
    policy: Overflow, prompt: Prompt, inputs: Mapping[str, Any], demonstrations: Sequence[SolvedRow],
    count: Callable[[Messages], int], limit: int, grounding: Grounding | None = None,
) -> Rendered:  # fmt: skip
    """Render one row under a policy, with demonstrations in the order shown and the retrieved passages, if any.

    `count` counts the tokens of messages; `limit` is the most of the prompt: the model's context minus the answer.
    """
    messages = prompt.messages(inputs, demonstrations, grounding)
    shown = grounding.passages if grounding else ()
    if policy == "error":
        return Rendered(messages, passages=shown)
    if policy in ("drop_demonstrations", "truncate_input"):
        dropped = 0
        while dropped < len(demonstrations) and count(messages) > limit:
            dropped += 1
            fewer = replace(grounding, demonstrations=grounding.demonstrations[dropped:]) if grounding else None
            messages = prompt.messages(inputs, demonstrations[dropped:], fewer)
        if policy == "truncate_input" and count(messages) > limit:
            bare = replace(grounding, passages=(), relevance=(), demonstrations=()) if grounding else None
            messages, cut = _truncated(prompt, inputs, bare, lambda made: count(made) <= limit)
            return Rendered(messages, dropped, len(shown), truncated_characters=cut)
        return Rendered(messages, dropped, passages=shown)
    if grounding is None or count(messages) <= limit:
        return Rendered(messages, passages=shown)

    def render(kept: Grounding) -> Messages:
        return prompt.messages(inputs, demonstrations, kept)

    return _with_less(grounding, render, lambda kept: count(render(kept)) <= limit)


def _truncated(
    prompt: Prompt, inputs: Mapping[str, Any], grounding: Grounding | None, fits: Callable[[Messages], bool]
) -> tuple[Messages, int]:
    """Cut the longest text among the inputs after the last word, or character, with which the prompt fits."""
    texts = {name: value for name, value in inputs.items() if isinstance(value, str)}
    if prompt.chat_column is not None or not texts:
        return prompt.messages(inputs, (), grounding), 0  # a conversation has no column to cut
    longest = max(texts, key=lambda name: len(texts[name]))
    text = texts[longest]
    ends = [match.end() for match in _WORD_END.finditer(text)] if _WORD_END.search(text) else [*range(1, len(text) + 1)]

    def made(kept: int) -> Messages:
        return prompt.messages({**inputs, longest: text[: ends[kept - 1]] if kept else ""}, (), grounding)

    low, high = 0, len(ends)  # words kept
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(made(middle)) else (low, middle - 1)
    return made(low), len(text) - (ends[low - 1] if low else 0)


def _with_less(
    grounding: Grounding, render: Callable[[Grounding], Messages], fits: Callable[[Grounding], bool]
) -> Rendered:
    """Drop passages until the prompt fits, and cut the last one if it still does not."""
    kept, dropped = grounding, 0
    for i, passages in enumerate(grounding.demonstrations):
        if fits(kept):
            break
        rest = kept.demonstrations
        kept = replace(kept, demonstrations=(*rest[:i], (), *rest[i + 1 :]))
        dropped += len(passages)
    while len(kept.passages) > 1 and not fits(kept):
        least, passages, relevance = kept.relevance.index(min(kept.relevance)), kept.passages, kept.relevance
        kept = replace(
            kept,
            passages=passages[:least] + passages[least + 1 :],
            relevance=relevance[:least] + relevance[least + 1 :],
        )
        dropped += 1
    shortened = 0
    if kept.passages and not fits(kept):
        kept, shortened = _shortened(kept, fits), 1
    return Rendered(render(kept), 0, dropped, shortened, kept.passages)


def _shortened(grounding: Grounding, fits: Callable[[Grounding], bool]) -> Grounding:
    """Cut the one passage left after the last word with which the prompt fits; its first word always remains."""
    (passage,) = grounding.passages
    ends = [i for i, letter in enumerate(passage.text) if letter.isspace() and i] or [len(passage.text)]

    def cut(words: int) -> Grounding:
        text = passage.text[: ends[words - 1]]
        return replace(grounding, passages=(replace(passage, text=text, end=passage.start + len(text)),))

    low, high = 1, len(ends)  # words kept; one word remains even if it does not fit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(cut(middle)) else (low, middle - 1)
    return cut(low)
