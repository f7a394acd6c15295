"""Tokens as text, one by one, and log-probabilities in OpenAI's two shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

from rung.engines.base import TokenScores
from rung.models.tokenizer import Tokenizer

FLOOR = -9999.0  # what OpenAI writes for minus infinity, which JSON lacks


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a text.

    Attributes:
        text: what it adds to the text; the last token of a character that takes several adds all of it, and the others
            are named by their number.
        start: where that begins in the text.
        logprob: None for the first token of a text.
        top: the likeliest tokens at this place, by text.
    """

    text: str
    start: int
    logprob: float | None
    top: dict[str, float]


def spelled(
    tokenizer: Tokenizer, tokens: Sequence[int], logprobs: Sequence[float], scores: TokenScores | None = None
) -> list[Token]:
    """Return tokens with their texts.

    Args:
        tokenizer: the model's.
        tokens: token ids.
        logprobs: of each token; NaN where there is none.
        scores: of these very tokens, for the likeliest others.
    """
    result = []
    begin = read = start = 0  # tokens[begin:read] is context that the next token is read behind
    for place, token in enumerate(tokens):
        context = [*tokens[begin:read]]
        before = tokenizer.decode(context)
        behind = [*tokens[read : place + 1]]
        text = tokenizer.decode([*context, *behind])[len(before) :]
        whole = not text.endswith("\ufffd")
        top: dict[str, float] = {}
        if scores is not None:
            for other, value in zip(scores.top_tokens[place], scores.top_logprobs[place], strict=True):
                if other >= 0:
                    name = tokenizer.decode([*context, *behind[:-1], int(other)])[len(before) :]
                    top.setdefault(_name(name, int(other)), _finite(float(value)))
        value = float(logprobs[place])
        result.append(Token(_name(text, token), start, None if isnan(value) else _finite(value), top))
        if whole:
            start += len(text)
            begin, read = read, place + 1
    return result


def _name(text: str, token: int) -> str:
    return f"<token {token}>" if not text or text.endswith("\ufffd") else text


def _finite(value: float) -> float:
    return max(value, FLOOR)


def chat_logprobs(tokens: Sequence[Token]) -> dict[str, Any]:
    """Return log-probabilities as chat completions hold them."""
    return {
        "content": [
            {
                **_entry(token.text, token.logprob),
                "top_logprobs": [_entry(text, value) for text, value in token.top.items()],
            }
            for token in tokens
        ],
        "refusal": None,
    }


def _entry(text: str, logprob: float | None) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def text_logprobs(tokens: Sequence[Token], offset: int = 0) -> dict[str, Any]:
    """Return log-probabilities as text completions hold them; `offset` is where the first token stands."""
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [token.top or None for token in tokens],
        "text_offset": [offset + token.start for token in tokens],
    }
