"""The loss of a batch: rows packed into one sequence, and logits for supervised tokens only, some at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface

from rung.engines.apart import runs_apart
from rung.engines.label_trie import common_prefix
from rung.engines.tree_scoring import attending, layer_masks
from rung.training.examples import Completions, TokenizedExample
from rung.training.precision import attention_in_float32

# ---- packed rows: no padding anywhere, and what rows share runs once
#
# The packed sequence is the prefix that all prompts share, followed by each row's own tokens: those of its prompt, then
# those of its completions (see `Layout`). Every layer but attention treats tokens one by one, so it sees exactly the
# tokens there are. Attention lets each token see the prefix, its own branch, and the trunk that the branch grows from.

ATTENTION = "rung_packed"


@dataclass(frozen=True, slots=True)
class Packed:
    """One batch as one sequence of T tokens: `shared` common ones, then those of R rows of at most L tokens."""

    ids: torch.Tensor  # [1, T]
    positions: torch.Tensor  # [1, T]
    supervised: torch.Tensor  # [S]: positions in the sequence whose output predicts an answer token
    targets: torch.Tensor  # [S]: the answer tokens
    weights: torch.Tensor | None  # [S]: of their losses; None where all count alike
    shared: int  # length of the common prefix
    lengths: torch.Tensor  # [R]: tokens of each row after the prefix
    gather: torch.Tensor  # [R * L]: position of each row's own tokens after the prefix, padded with 0
    scatter: torch.Tensor  # [T - shared]: where each packed token after the prefix is in the padded rows
    rows: int  # R
    mask: torch.Tensor  # [R, 1, L, shared + L]: what each padded token attends to

    def dense_mask(self) -> torch.Tensor:
        """What each token of the sequence attends to, shape [1, T, T]."""
        total, width, shared = self.ids.shape[1], len(self.gather) // self.rows, self.shared
        dense = torch.ones(total, total, dtype=torch.bool, device=self.ids.device).tril()
        row = self.scatter // width
        own = self.mask[:, 0, :, shared:].flatten(0, 1)[self.scatter]  # [T - shared, L]
        dense[shared:, shared:] = (row[:, None] == row[None, :]) & own[:, self.scatter % width]
        return dense[None]


def pack(part: Sequence[TokenizedExample | Completions], device: Any, *, share_prefix: bool = True) -> Packed:
    """Pack a batch.

    With `share_prefix`, the prompts' common prefix runs once: not exact where the computation is random (dropout).
    """
    prompts = [row.prompt for row in part]
    shared = common_prefix(prompts) if share_prefix and len(prompts) > 1 else 0
    layouts = [layout for row in part for layout in row.layouts()]
    own = [layout.tokens[shared:] for layout in layouts]
    lengths = torch.tensor([len(tokens) for tokens in own])
    starts = lengths.cumsum(0) - lengths
    width, column = int(lengths.max()), torch.arange(int(lengths.max()))
    real = column < lengths[:, None]
    gather = torch.where(real, starts[:, None] + column, 0)
    mask = torch.ones(len(own), 1, width, shared + width, dtype=torch.bool)
    mask[:, :, :, shared:] = torch.ones(width, width, dtype=torch.bool).tril()  # only padding reads padding
    for number, layout in enumerate(layouts):
        if layout.branches[-1]:
            branch = torch.tensor(layout.branches[shared:])
            sees = (branch[:, None] == branch) | (branch == 0)
            mask[number, 0, : len(branch), shared : shared + len(branch)] &= sees
    # A row's token t is at position start + t of the sequence.
    supervised = [
        torch.tensor(layout.predictors) + start for layout, start in zip(layouts, starts.tolist(), strict=True)
    ]
    positions = torch.tensor([*range(shared), *(at for layout in layouts for at in layout.positions[shared:])])
    return Packed(
        ids=torch.tensor([[*prompts[0][:shared], *(token for tokens in own for token in tokens)]]).to(device),
        positions=positions[None].to(device), supervised=torch.cat(supervised).to(device),
        targets=targets_of(part).to(device), weights=weights_of(part, device), shared=shared,
        lengths=lengths.to(device),
        gather=gather.flatten().to(device), scatter=torch.nonzero(real.flatten())[:, 0].to(device),
        rows=len(own), mask=mask.to(device),
    )  # fmt: skip


def targets_of(part: Sequence[TokenizedExample | Completions]) -> torch.Tensor:
    """The supervised tokens of a batch, shape [S]."""
    return torch.tensor([t for row in part for layout in row.layouts() for t in layout.targets])


def weights_of(part: Sequence[TokenizedExample | Completions], device: Any) -> torch.Tensor | None:
    """The weights of the supervised tokens' losses, shape [S]; None where all count alike."""
    rows = [row for row in part if isinstance(row, TokenizedExample)]
    if all(row.weight == 1 for row in rows):
        return None
    return torch.tensor([row.weight for row in rows for _ in range(row.supervised)], device=device)


def summed(losses: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """The sum of the losses of tokens, by the weights of their rows."""
    return losses.sum() if weights is None else (weights * losses).sum()


def packed_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None, *,
    packing: Packed, scaling: float | None = None, dropout: float = 0.0, sliding_window: int | None = None, **_: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Attend within rows and to the shared prefix, with the signature that transformers asks of attention functions.

    Query, key and value have the shape [1, heads, T, size], key and value maybe fewer heads. `packing` says which
    tokens see which, and `sliding_window` how many tokens a token sees, itself included. The output has the shape
    [1, T, heads, size]; weights are not returned.
    """
    del attention_mask
    shared, rows = packing.shared, packing.rows
    window = sliding_window if sliding_window is not None else _masked_window(module)
    grouped = query.shape[1] != key.shape[1]
    attend = partial(scaled_dot_product_attention, scale=scaling, dropout_p=dropout, enable_gqa=grouped)

    def attended(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        own_query, own_key, own_value = (_rows(states[:, :, shared:], packing) for states in (query, key, value))
        if shared:
            head_query, head_key, head_value = (states[:, :, :shared] for states in (query, key, value))
            if window is not None and shared > window:
                before = torch.arange(shared, device=query.device)
                head = attend(head_query, head_key, head_value, attn_mask=_within(before, before, window))
            else:
                head = attend(head_query, head_key, head_value, is_causal=True)
            own_key = torch.cat([head_key.expand(rows, -1, -1, -1), own_key], 2)
            own_value = torch.cat([head_value.expand(rows, -1, -1, -1), own_value], 2)
        mask = packing.mask
        if window is not None and own_key.shape[2] > window:
            position = packing.positions[0]
            own = position[shared:].index_select(0, packing.gather).view(rows, 1, -1)
            mask = mask & _within(own, torch.cat([position[:shared].expand(rows, 1, -1), own], 2), window)
        out = attend(own_query, own_key, own_value, attn_mask=mask)
        flat = out.transpose(1, 2).flatten(0, 1).index_select(0, packing.scatter)[None]
        return torch.cat([head.transpose(1, 2), flat], 1) if shared else flat

    return attention_in_float32(attended, query, key, value), None


def _masked_window(module: Any) -> int | None:
    """The window of a layer that leaves it to the mask (Phi-MoE), which is not used here."""
    config = getattr(module, "config", None)
    window: int | None = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    return window if kinds is None or kinds[module.layer_idx] == "sliding_attention" else None


def _within(queries: torch.Tensor, keys: torch.Tensor, window: int) -> torch.Tensor:
    """Which keys, at these positions, a window lets the queries see, shape [..., queries, keys]."""
    back = queries[..., :, None] - keys[..., None, :]
    return (back >= 0) & (back < window)


def _rows(states: torch.Tensor, packing: Packed) -> torch.Tensor:
    """Spread packed states [1, heads, tokens, size] over rows, [R, heads, L, size]."""
    heads, size = states.shape[1], states.shape[3]
    padded = states[0].transpose(0, 1).index_select(0, packing.gather)
    return padded.view(packing.rows, -1, heads, size).transpose(1, 2)


AttentionInterface.register(ATTENTION, packed_attention)


def packed_layers(model: Any) -> AbstractContextManager[None]:
    """Attend row by row instead of through a mask over the whole sequence, where the model can."""
    if runs_apart(model) or not model._supports_attention_backend or _attention(model) != "sdpa":
        return nullcontext()
    return attending(model, ATTENTION)


def _attention(model: Any) -> str:
    return str(model.config._attn_implementation)


# ---- the loss

Loss = Callable[[Sequence[Any]], torch.Tensor]  # of some rows, summed over their targets, with gradients
CHUNK = 512  # tokens whose logits exist at once
_SPLIT_LOGITS: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()  # whether `_logits` is right, by model


class StepLoss(ABC):
    """A loss that takes part in every step: it prepares the step's rows, and measures what the step did."""

    @abstractmethod
    def __call__(self, part: Sequence[Any]) -> torch.Tensor:
        """Compute the loss of some rows, summed over their targets."""

    def begin(self, rows: Sequence[Any], step: int) -> Sequence[Any]:
        """Give the rows to train on in a step, counted from 0, made with the weights as they are before it."""
        del step
        return rows

    @abstractmethod
    def measured(self) -> dict[str, float]:
        """Give means of what was measured since the last call."""

    def outcome(self, measures: Sequence[dict[str, float]]) -> dict[str, Any]:
        """Say what the artifact records of the run, as JSON values, given what each step measured."""
        del measures
        return {}


@dataclass(frozen=True, slots=True)
class AnswerLoss:
    """The summed negative log-likelihood of the supervised tokens, a scalar with gradients.

    Label smoothing is that of Szegedy et al. 2016 (https://arxiv.org/abs/1512.00567, section 7). The noise on the input
    embeddings is uniform, of size alpha / sqrt(tokens * hidden size) (Jain et al. 2024,
    https://arxiv.org/abs/2310.05914).
    """

    model: Any  # with the change that is trained switched on
    share_prefix: bool = True  # run the prefix that all prompts share once: exact only without dropout and noise
    label_smoothing: float = 0.0  # share of the target's probability that is spread evenly over all tokens
    neftune_alpha: float = 0.0

    def __call__(self, part: Sequence[TokenizedExample]) -> torch.Tensor:
        """Compute the loss of a batch."""
        if len(part) > 1 and runs_apart(self.model, max(len(row.tokens) for row in part)):
            return torch.stack([self([row]) for row in part]).sum()
        return self.of(pack(part, self.model.device, share_prefix=self.share_prefix))

    def of(self, packed: Packed) -> torch.Tensor:
        """Compute the loss of a packed batch."""
        # `splits_logits` may run a few tokens: before the noise is on.
        splits_logits(self.model)
        with _noise(self.model, packed, self.neftune_alpha):
            return summed(token_losses(self.model, packed, self.label_smoothing), packed.weights)


def token_losses(model: Any, packed: Packed, smoothing: float = 0.0) -> torch.Tensor:
    """The cross-entropy of every supervised token of a packed batch, shape [S]."""
    values = inputs(model, packed)
    if not splits_logits(model):
        logits = model(**values, logits_to_keep=packed.supervised).logits[0]
        if len(logits) > len(packed.targets):  # some models (xLSTM) give all logits whatever is asked for
            logits = logits.index_select(0, packed.supervised)
        return _cross_entropy(logits, packed.targets, smoothing)
    states = model.get_decoder()(**values).last_hidden_state
    return loss_of_states(model, states[0].index_select(0, packed.supervised), packed.targets, smoothing)


def inputs(model: Any, packed: Packed) -> dict[str, Any]:
    """The arguments with which the model runs a packed batch."""
    positions = packed.positions
    attend: dict[str, Any] = {"packing": packed}
    if runs_apart(model):  # one row, with the model's own masks and positions: RoBERTa's do not begin at 0
        return {"input_ids": packed.ids, "use_cache": False}
    if _attention(model) != ATTENTION:
        attend = {"attention_mask": layer_masks(model, packed.dense_mask(), positions, positions)}
    return {"input_ids": packed.ids, "position_ids": positions, "use_cache": False, **attend}


def loss_of_states(model: Any, states: torch.Tensor, targets: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Compute the cross-entropy of each of `targets` [S] given the last hidden states [S, hidden size].

    Logits are computed for some tokens at a time, and again for the gradient, so that their memory is bounded.
    """

    def chunk_loss(states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return _cross_entropy(_logits(model, states), targets, smoothing)

    if len(targets) <= CHUNK:
        return chunk_loss(states, targets)
    chunks = zip(states.split(CHUNK), targets.split(CHUNK), strict=True)
    return torch.cat([checkpoint(chunk_loss, *chunk, use_reentrant=False) for chunk in chunks])


def splits_logits(model: Any) -> bool:
    """Whether `_logits` is how this model computes logits: tried once per model on a few tokens, without randomness."""
    if model not in _SPLIT_LOGITS:
        ids, training = torch.arange(4, device=model.device)[None], model.training
        model.eval()  # dropout would make both differ, and draw random numbers that a resumed run has drawn already
        plain = attending(model, "sdpa") if _attention(model) == ATTENTION else nullcontext()
        with torch.no_grad(), plain:
            output = model.get_decoder()(input_ids=ids, use_cache=False)
            states = getattr(output, "last_hidden_state", None)
            theirs = model(input_ids=ids, use_cache=False).logits
            fit = states is not None and states.shape[-1] == model.get_output_embeddings().weight.shape[-1]
            ours = _logits(model, states) if fit else theirs[..., :0]
        model.train(training)
        _SPLIT_LOGITS[model] = ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4)
    return _SPLIT_LOGITS[model]


def without_split_logits(model: Any) -> None:
    """Compute all logits in the model's own forward pass."""
    _SPLIT_LOGITS[model] = False


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
    return cross_entropy(logits.float(), targets, reduction="none", label_smoothing=smoothing)


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
