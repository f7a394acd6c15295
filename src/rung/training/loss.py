"""The loss of a batch: packed rows, and the vocabulary projected at supervised places alone, some at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface

from rung.engines.label_trie import common_prefix
from rung.engines.tree_scoring import attending, layer_masks
from rung.training.examples import TokenizedExample
from rung.training.precision import in_float32

# --------------------
# Rows packed into one sequence: no padding anywhere, and the beginning that all prompts share runs once.
#
# The packed sequence is the shared beginning and, behind it, each row's own tokens. Every layer but attention treats
# tokens one by one, so it sees exactly the tokens there are; attention lets each row see the beginning and itself.


ATTENTION = "rung_packed"


@dataclass(frozen=True, slots=True)
class Packed:
    """One batch as one sequence of T tokens, `shared` of them common, the others of R rows of at most L tokens.

    Attributes:
        ids, positions: shape [1, T].
        supervised: places whose output predicts an answer token, shape [S].
        targets: the answer tokens, shape [S].
        shared: length of the common beginning.
        lengths: tokens of each row behind the beginning, shape [R].
        gather: place of each row's tokens behind the beginning, padded with 0, shape [R * L].
        scatter: where each packed token behind the beginning lies in the padded rows, shape [T - shared].
        rows: R.
        mask: what each padded token attends to, shape [R, 1, L, shared + L].
    """

    ids: torch.Tensor
    positions: torch.Tensor
    supervised: torch.Tensor
    targets: torch.Tensor
    shared: int
    lengths: torch.Tensor
    gather: torch.Tensor
    scatter: torch.Tensor
    rows: int
    mask: torch.Tensor

    def dense_mask(self) -> torch.Tensor:
        """Return what each token of the sequence attends to, shape [1, T, T]."""
        total, width = self.ids.shape[1], len(self.gather) // self.rows
        row = torch.cat([torch.full((self.shared,), -1, device=self.ids.device), self.scatter // width])
        causal = torch.ones(total, total, dtype=torch.bool, device=self.ids.device).tril()
        return (causal & ((row[:, None] == row[None, :]) | (row[None, :] == -1)))[None]


def pack(part: Sequence[TokenizedExample], device: Any, *, share: bool = True) -> Packed:
    """Pack a batch. What stands behind a row's last supervised token, and that token itself, is never read.

    Args:
        part: the rows.
        device: where the tensors go.
        share: run the prompts' common beginning once; not exact where the computation is random (dropout).
    """
    prompts = [row.prompt for row in part]
    shared = common_prefix(prompts) if share and len(prompts) > 1 else 0
    own = [row.tokens[shared : row.spans[-1][1] - 1] for row in part]
    lengths = torch.tensor([len(tokens) for tokens in own])
    starts = lengths.cumsum(0) - lengths
    width = int(lengths.max())
    column = torch.arange(width)
    real = column < lengths[:, None]
    gather = torch.where(real, starts[:, None] + column, 0)
    mask = torch.ones(len(part), 1, width, shared + width, dtype=torch.bool)
    mask[:, :, :, shared:] = torch.ones(width, width, dtype=torch.bool).tril()  # padding is read by padding alone
    # A row's token t lies at place start + t of the sequence; the place before it predicts it.
    places = [
        torch.arange(first, last) + start - 1
        for row, start in zip(part, starts.tolist(), strict=True)
        for first, last in row.spans
    ]
    return Packed(
        ids=torch.tensor([[*prompts[0][:shared], *(token for tokens in own for token in tokens)]]).to(device),
        positions=torch.cat([torch.arange(shared), *(shared + torch.arange(len(tokens)) for tokens in own)])[None].to(
            device
        ),
        supervised=torch.cat(places).to(device),
        targets=torch.tensor([t for row in part for first, last in row.spans for t in row.tokens[first:last]]).to(
            device
        ),
        shared=shared,
        lengths=lengths.to(device),
        gather=gather.flatten().to(device),
        scatter=torch.nonzero(real.flatten())[:, 0].to(device),
        rows=len(part),
        mask=mask.to(device),
    )


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packing: Packed,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within rows and to the beginning, in the form that transformers asks of attention functions.

    Args:
        module: the attention layer, unused.
        query: shape [1, heads, T, size].
        key: like `query`, maybe with fewer heads.
        value: like `key`.
        attention_mask: unused: `packing` says who sees whom.
        packing: how the sequence is packed.
        scaling: of the scores.
        dropout: on the weights.
        sliding_window: how many tokens a token sees, itself included, where not all.

    Returns:
        The output, shape [1, T, heads, size], and no weights.
    """
    del module, attention_mask
    attend = partial(
        scaled_dot_product_attention, scale=scaling, dropout_p=dropout, enable_gqa=query.shape[1] != key.shape[1]
    )
    return in_float32(partial(_attended, attend, packing, sliding_window), query, key, value), None


def _attended(
    attend: Callable[..., torch.Tensor],
    packing: Packed,
    window: int | None,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
) -> torch.Tensor:
    """Return the output of `packed_attention`, shape [1, T, heads, size]."""
    shared, rows = packing.shared, packing.rows
    own_query, own_key, own_value = (_rows(states[:, :, shared:], packing) for states in (query, key, value))
    if shared:
        lent_query, lent_key, lent_value = (states[:, :, :shared] for states in (query, key, value))
        if window is not None and shared > window:
            head = attend(lent_query, lent_key, lent_value, attn_mask=_near(shared, shared, window, query.device))
        else:
            head = attend(lent_query, lent_key, lent_value, is_causal=True)
        own_key = torch.cat([lent_key.expand(rows, -1, -1, -1), own_key], 2)
        own_value = torch.cat([lent_value.expand(rows, -1, -1, -1), own_value], 2)
    width, total = own_query.shape[2], own_key.shape[2]
    mask = packing.mask
    if window is not None and total > window:
        mask = mask & _near(width, total, window, query.device)
    out = attend(own_query, own_key, own_value, attn_mask=mask)
    flat = out.transpose(1, 2).flatten(0, 1).index_select(0, packing.scatter)[None]
    return torch.cat([head.transpose(1, 2), flat], 1) if shared else flat


def _near(queries: int, keys: int, window: int, device: Any) -> torch.Tensor:
    """Return which of the first `keys` places the last `queries` of them see, shape [queries, keys]."""
    place = torch.arange(keys, device=device)
    back = place[keys - queries :, None] - place
    return (back >= 0) & (back < window)


def _rows(states: torch.Tensor, packing: Packed) -> torch.Tensor:
    """Spread packed states [1, heads, tokens, size] over rows, [R, heads, L, size]."""
    heads, size = states.shape[1], states.shape[3]
    padded = states[0].transpose(0, 1).index_select(0, packing.gather)
    return padded.view(packing.rows, -1, heads, size).transpose(1, 2)


AttentionInterface.register(ATTENTION, packed_attention)


Loss = Callable[[Sequence[Any]], torch.Tensor]  # of some rows, summed over their supervised places, with gradients
CHUNK = 512  # places whose logits exist at once


@dataclass(frozen=True, slots=True)
class AnswerLoss:
    """The summed negative log-likelihood of the supervised tokens, a scalar with gradients.

    Attributes:
        model: the base model, with the change that is trained switched on.
        share: run the beginning that all prompts share once. Loss and gradient are those of the plain computation, so
            long as nothing is random: with dropout or noise it has to be off.
        smoothing: share of the target's probability that goes to all tokens alike (Szegedy et al. 2016,
            https://arxiv.org/abs/1512.00567, section 7).
        noise: NEFTune's alpha: uniform noise on the input embeddings, of size alpha / sqrt(tokens * hidden size)
            (Jain et al. 2024, https://arxiv.org/abs/2310.05914).
    """

    model: Any
    share: bool = True
    smoothing: float = 0.0
    noise: float = 0.0

    def __call__(self, part: Sequence[TokenizedExample]) -> torch.Tensor:
        """Return the loss of a batch."""
        return self.of(pack(part, self.model.device, share=self.share))

    def of(self, packed: Packed) -> torch.Tensor:
        """Return the loss of a packed batch."""
        values, projecting = inputs(self.model, packed), projects(self.model)  # which may try a few tokens: noise later
        with _noise(self.model, packed, self.noise):
            if not projecting:
                logits = self.model(**values, logits_to_keep=packed.supervised).logits[0]
                return _cross_entropy(logits, packed.targets, self.smoothing)
            states = self.model.get_decoder()(**values).last_hidden_state
        return project(self.model, states[0].index_select(0, packed.supervised), packed.targets, self.smoothing)


def inputs(model: Any, packed: Packed) -> dict[str, Any]:
    """Return what the model's forward pass takes to run a packed batch."""
    places = packed.positions
    attend: dict[str, Any] = {"packing": packed}
    if _attention(model) != ATTENTION:
        attend = {"attention_mask": layer_masks(model, packed.dense_mask(), places, places)}
    return {"input_ids": packed.ids, "position_ids": places, "use_cache": False, **attend}


def project(model: Any, states: torch.Tensor, targets: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Return the summed cross-entropy of `targets` [S] behind the last hidden states [S, hidden size].

    Logits are made for some places at a time and made again for the gradient, so that their memory is bounded.
    """
    if len(targets) <= CHUNK:
        return _chunk(model, states, targets, smoothing)
    losses = [
        checkpoint(_chunk, model, some, wanted, smoothing, use_reentrant=False)
        for some, wanted in zip(states.split(CHUNK), targets.split(CHUNK), strict=True)
    ]
    return torch.stack(losses).sum()


def projects(model: Any) -> bool:
    """Say whether `_logits` is how this model makes logits; tried once per model, on a few tokens, nothing random."""
    if not hasattr(model, "rung_projects"):
        ids, training = torch.arange(4, device=model.device)[None], model.training
        model.eval()  # dropout would make both differ, and draw numbers that a run that goes on has drawn already
        with torch.no_grad(), _plain_layers(model):
            ours = _logits(model, model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state)
            theirs = model(input_ids=ids, use_cache=False).logits
        model.train(training)
        model.rung_projects = ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4)
    return bool(model.rung_projects)


def _chunk(model: Any, states: torch.Tensor, targets: torch.Tensor, smoothing: float) -> torch.Tensor:
    return _cross_entropy(_logits(model, states), targets, smoothing)


def _logits(model: Any, states: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model.get_output_embeddings()(states)
    config = model.config.get_text_config()
    if scale := getattr(config, "logits_scaling", None):  # Granite
        logits = logits / scale
    if scale := getattr(config, "logit_scale", None):  # Cohere
        logits = logits * scale
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma
        logits = torch.tanh(logits / cap) * cap
    return logits


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor, smoothing: float) -> torch.Tensor:
    return cross_entropy(logits.float(), targets, reduction="sum", label_smoothing=smoothing)


@contextmanager
def _noise(model: Any, packed: Packed, alpha: float) -> Iterator[None]:
    if not alpha:
        yield
        return
    row = packed.scatter // (len(packed.gather) // packed.rows)
    lengths = packed.lengths[row]

    def add(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        size = alpha / (lengths * output.shape[-1]).sqrt()
        return output + (torch.rand_like(output) * 2 - 1) * size[None, :, None]

    handle = model.get_input_embeddings().register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def packed_layers(model: Any) -> AbstractContextManager[None]:
    """Attend row by row instead of through a mask over the whole sequence, where the model can."""
    if not model._supports_attention_backend or _attention(model) != "sdpa":
        return nullcontext()
    return attending(model, ATTENTION)


def _plain_layers(model: Any) -> AbstractContextManager[None]:
    return attending(model, "sdpa") if _attention(model) == ATTENTION else nullcontext()


def _attention(model: Any) -> str:
    return str(model.config._attn_implementation)
