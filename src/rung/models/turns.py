"""The tokens that end: an answer (what a model is trained to write last, and a nested label needs), and a document."""

from __future__ import annotations

from rung.engines.base import Message
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
