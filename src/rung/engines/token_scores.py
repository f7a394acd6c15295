"""How likely a text is, token by token: the log-likelihoods that evaluation harnesses ask completion servers for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from rung.engines.base import TokenScores
from rung.engines.tree_scoring import batches

PLACES = 64  # rows of logits that are normalized at once


@torch.inference_mode()
def token_scores(model: Any, texts: Sequence[tuple[int, ...]], top: int) -> list[TokenScores]:
    """Score every token of every text, with the `top` likeliest at each place.

    Rows are padded on the right; causal attention keeps padding out of real tokens.
    """
    vocabulary = model.config.get_text_config().vocab_size
    results: dict[int, TokenScores] = {}
    # `batches` plans for one row of logits per tree node; here every token of a text needs one.
    longest = max(map(len, texts))
    for batch in batches([len(text) for text in texts], 0, vocabulary * longest):
        rows = [texts[i] for i in batch]
        width = max(map(len, rows))
        ids = torch.tensor([[*row, *([0] * (width - len(row)))] for row in rows], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits
        for index, row, own in zip(batch, rows, logits, strict=True):
            results[index] = _scores(own[: len(row)], row, top)
    return [results[i] for i in range(len(texts))]


def _scores(logits: torch.Tensor, tokens: tuple[int, ...], top: int) -> TokenScores:
    """Read the scores of one text off its logits, shape [tokens, vocabulary]."""
    own = np.full(len(tokens), np.nan, np.float32)
    best = np.full((len(tokens), top), -1, np.int64)
    values = np.full((len(tokens), top), np.nan, np.float32)
    following = torch.tensor(tokens[1:], device=logits.device)
    for first in range(0, len(tokens) - 1, PLACES):
        part = torch.log_softmax(logits[first : min(first + PLACES, len(tokens) - 1)].float(), -1)
        places = slice(first + 1, first + 1 + len(part))
        own[places] = part.gather(1, following[first : first + len(part), None])[:, 0].cpu().numpy()
        if top:
            likeliest = part.topk(top, -1)
            best[places], values[places] = likeliest.indices.cpu().numpy(), likeliest.values.cpu().numpy()
    return TokenScores(own, best, values)
