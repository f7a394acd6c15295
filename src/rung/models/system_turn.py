"""Templates that know no system turn (Gemma's) read its text at the beginning of the first user turn instead."""

from __future__ import annotations

from functools import lru_cache

from rung.engines.base import Message, Messages
from rung.errors import ModelError
from rung.models.tokenizer import Tokenizer


def encode_messages(tokenizer: Tokenizer, messages: Messages) -> tuple[int, ...]:
    """Return the tokens of chat messages, ready for an answer; every engine and estimate encodes by this function."""
    return tokenizer.encode_chat(messages if accepts_system(tokenizer) else fold_system(messages))


@lru_cache(maxsize=16)
def accepts_system(tokenizer: Tokenizer) -> bool:
    """Say whether the model's template takes a system turn and shows its text."""
    probe: tuple[Message, ...] = ({"role": "system", "content": "probe-system"}, {"role": "user", "content": "x"})
    try:
        return "probe-system" in tokenizer.render(probe)
    except ModelError as error:
        if error.code == "chat-template-refused":
            return False
        raise


def fold_system(messages: Messages) -> Messages:
    """Return messages whose system turn was put before the first user turn's text."""
    if len(messages) < 2 or messages[0]["role"] != "system" or messages[1]["role"] != "user":
        return messages
    first: Message = {"role": "user", "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
    return (first, *messages[2:])
