"""The token that ends an answer: what a model is trained to write last, and a nested label needs."""

from __future__ import annotations

from rung.engines.base import Message
from rung.models.tokenizer import Tokenizer

_PROBE = "answer"


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
