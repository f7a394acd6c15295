"""The tokens that end: an answer (what a model is trained to write last, and a nested label needs), and a document."""

from __future__ import annotations

from functools import lru_cache

from rung.errors import ModelError
from rung.models.messages import Message, Messages
from rung.models.tokenizer import Tokenizer

_PROBE = "answer"
TEXT_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")  # as models with a chat template name it


def end_token(tokenizer: Tokenizer) -> int | None:
    """Return the special token that the chat template puts behind an answer, else the model's first end token.

    Templates end a turn with their own token (`<|im_end|>`, `<|eot_id|>`, `<end_of_turn>`), which need not be the
    end-of-text token of the tokenizer.
    """
    if tokenizer.chat_template is not None:
        turns: tuple[Message, ...] = ({"role": "user", "content": "question"}, {"role": "assistant", "content": _PROBE})
        behind = tokenizer.render(turns, add_generation_prompt=False).rpartition(_PROBE)[2]
        for token in tokenizer.encode(behind.strip())[:1]:
            if token in tokenizer.eos_ids:
                return token
    return min(tokenizer.eos_ids, default=None)


def text_end(tokenizer: Tokenizer) -> int | None:
    """Return the special token that ends a document, as in the text that the model was pretrained on.

    It is the tokenizer's end token, unless that is what ends an answer in a chat; then the one with a usual name.
    """
    answer_end = end_token(tokenizer) if tokenizer.chat_template is not None else None
    if tokenizer.eos_id is not None and tokenizer.eos_id != answer_end:
        return tokenizer.eos_id
    for name in TEXT_ENDS:
        if len(found := tokenizer.encode(name)) == 1:
            return found[0]
    return tokenizer.eos_id


# --------------------
# Templates that know no system turn (Gemma's) read its text at the beginning of the first user turn instead.


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
