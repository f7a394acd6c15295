"""What each layer's tokens attend to, and attention whose scores are capped.

Rung runs several rows behind one shared beginning, so it makes its own masks; models whose layers see only the last
tokens (Gemma 2 and 3, Mistral, Cohere 2) get a narrower one for those layers. Capped scores (Gemma 2) are what torch's
fast attention does not know, and transformers leaves out without a word when it is chosen.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

CAPPED = "rung_capped"


def layer_masks(model: Any, mask: torch.Tensor, queries: torch.Tensor, keys: torch.Tensor) -> Any:
    """Return the attention mask as the model takes it: one, or one for each kind of its layers.

    Args:
        model: the model that will run.
        mask: whom each token may attend to, shape [rows, queries, keys].
        queries: positions of the tokens that run, shape [rows, queries].
        keys: positions of all tokens they may attend to, shape [rows, keys]; what stands in columns that `mask` hides
            does not matter.
    """
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    whole = mask[:, None].to(model.device)
    if window is None or (kinds is not None and "sliding_attention" not in kinds):
        return whole
    near = (queries[:, :, None] - keys[:, None, :]) < window
    narrow = (mask & near)[:, None].to(model.device)
    return narrow if kinds is None else {"full_attention": whole, "sliding_attention": narrow}


@contextmanager
def attending(model: Any, name: str) -> Iterator[None]:
    """Switch the model to the attention implementation of this name for a while."""
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def best_attention(config: Any) -> str:
    """Return the name of the fastest attention that computes what the model's configuration asks for."""
    if getattr(config.get_text_config(), "attn_logit_softcapping", None) is None:
        return "sdpa"
    _register()
    return CAPPED


def capped_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend with scores capped to `softcap * tanh(scores / softcap)`, in the form that transformers asks for.

    Args:
        module: the attention layer.
        query: shape [rows, heads, tokens, size].
        key: like `query`, maybe with fewer heads and more tokens.
        value: like `key`.
        attention_mask: true where a token attends, or None for all tokens before it.
        dropout: on the weights.
        scaling: of the scores.
        softcap: the cap, or None.

    Returns:
        The output, shape [rows, tokens, heads, size], and no weights.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    tokens, seen = scores.shape[-2:]
    if attention_mask is None:
        attention_mask = torch.ones(tokens, seen, dtype=torch.bool, device=scores.device).tril(seen - tokens)
    scores = scores.masked_fill(~attention_mask[..., :seen], torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype)
    weights = torch.nn.functional.dropout(weights, dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), None


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(CAPPED, capped_attention)
    AttentionMaskInterface.register(CAPPED, sdpa_mask)
