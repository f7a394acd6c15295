"""Chat messages, as the chat APIs write them, and how a model's template reads them and ends them."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, TypedDict

from rung.errors import ModelError
from rung.models.tokenizer import Tokenizer

_PROBE = "answer"
TEXT_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")  # their usual names in models with a chat template


class Message(TypedDict):
    """One chat turn."""

    role: Literal["system", "user", "assistant"]
    content: str


Messages = tuple[Message, ...]


def encode_messages(tokenizer: Tokenizer, messages: Messages) -> tuple[int, ...]:
    """The tokens of chat messages, ready for an answer; every engine and estimate encodes by this function."""
    return tokenizer.encode_chat(messages if accepts_system(tokenizer) else fold_system(messages))


@lru_cache(maxsize=16)
def accepts_system(tokenizer: Tokenizer) -> bool:
    """Whether the model's template takes a system turn and shows its text (Gemma's does not)."""
    probe: Messages = ({"role": "system", "content": "probe-system"}, {"role": "user", "content": "x"})
    try:
        return "probe-system" in tokenizer.render(probe)
    except ModelError as error:
        if error.code == "chat-template-refused":
            return False
        raise


def fold_system(messages: Messages) -> Messages:
    """Put the text of a system turn before that of the first user turn, for templates without system turns."""
    if len(messages) < 2 or messages[0]["role"] != "system" or messages[1]["role"] != "user":
        return messages
    first: Message = {"role": "user", "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
    return (first, *messages[2:])


def end_token(tokenizer: Tokenizer) -> int | None:
    """The token that ends an answer: the special token that the chat template adds, else the model's first end token.

    Templates end a turn with their own token (`<|im_end|>`, `<|eot_id|>`, `<end_of_turn>`), which need not be the
    end-of-text token of the tokenizer.
    """
    if tokenizer.chat_template is not None:
        turns: Messages = ({"role": "user", "content": "question"}, {"role": "assistant", "content": _PROBE})
        after = tokenizer.render(turns, add_generation_prompt=False).rpartition(_PROBE)[2]
        for token in tokenizer.encode(after.strip())[:1]:
            if token in tokenizer.eos_ids:
                return token
    return min(tokenizer.eos_ids, default=None)


def text_end(tokenizer: Tokenizer) -> int | None:
    """The special token that ends a document, as in the text that the model was pretrained on.

    It is the tokenizer's end token, unless that one ends an answer in a chat; then the one with a usual name.
    """
    answer_end = end_token(tokenizer) if tokenizer.chat_template is not None else None
    if tokenizer.eos_id is not None and tokenizer.eos_id != answer_end:
        return tokenizer.eos_id
    for name in TEXT_ENDS:
        if len(ids := tokenizer.encode(name)) == 1:
            return ids[0]
    return tokenizer.eos_id
