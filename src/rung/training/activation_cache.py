"""Cache the frozen layers' activations, so that each step runs only the trained layers.

Frozen layers with no trained layer below them turn a row into the same hidden states at every step of every epoch. So
they run once per row. Above the last frozen layer, training starts from the cached states of all tokens. Where only the
output layer is trained, it starts from the final states of the supervised tokens, and is a softmax regression on them.
Loss and gradient are those of the whole model.

The states are cached where the model is, or in a memory-mapped file if they do not fit there.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from rung.engines.apart import runs_apart
from rung.engines.label_trie import common_prefix
from rung.engines.torch_engine import end_size, run_to_layer
from rung.models.reference import layer_list
from rung.progress import QUIET, Progress
from rung.training.changes import plain_parameters
from rung.training.config import TrainConfig
from rung.training.examples import TokenizedExample
from rung.training.loop import has_dropout
from rung.training.loss import (
    AnswerLoss,
    Loss,
    Packed,
    inputs,
    loss_of_states,
    pack,
    packed_layers,
    splits_logits,
    summed,
    targets_of,
    weights_of,
)
from rung.training.memory import free_bytes
from rung.training.precision import matmul_dtype, matmul_precision

CACHE_SHARE = 0.3  # share of the free memory that cached states may take; the rest is for training
TOKENS = 2048  # run at once


def cached_loss(
    model: Any, depth: int | None, rows: Sequence[TokenizedExample], config: TrainConfig, *,
    free: int | None = None, progress: Progress = QUIET,
) -> Loss | None:  # fmt: skip
    """Run the frozen layers of a model with nothing switched on over all rows; the loss starts from their states.

    The first `depth` layers are frozen; None: all of them, and the final norm. By default the device reports the `free`
    bytes of memory. Where the whole model has to run at every step, there is no loss, and `progress` shows why.
    """
    progress.start("running the frozen layers once", len(rows))
    reason = _reason_against(model, depth, config, max((len(row.tokens) for row in rows), default=0))
    loss: Loss | None = None
    if not reason:
        memory = int(CACHE_SHARE * (free_bytes(model) if free is None else free))
        build = _output_layer_loss if depth is None else _loss_above_layers
        try:
            with matmul_precision(matmul_dtype(model.device.type, config.precision)):
                loss = build(model, depth or 0, rows, config.label_smoothing, memory, progress)
        except OSError as full:
            reason = f"there is no room to keep what they return ({full})"
    progress.finish(f"the whole model runs at every step: {reason}" if reason else "")
    return loss


def _reason_against(model: Any, depth: int | None, config: TrainConfig, longest: int) -> str:
    if config.neftune_alpha > 0:
        return "noise on the embeddings differs from step to step"
    if has_dropout(model):
        return "the model has dropout"
    if runs_apart(model, longest):
        return "each of its rows needs a pass of its own"
    if depth == 0:
        return "no layer is frozen"
    if depth is None and not splits_logits(model):
        return "this architecture's logits are not a product of its last states and the output layer"
    if depth is not None and (reason := _cannot_skip(model, depth)):
        return f"this architecture's layers cannot run alone ({reason})"
    return ""


def _loss_above_layers(
    model: Any, depth: int, rows: Sequence[TokenizedExample], smoothing: float, memory: int, progress: Progress
) -> Loss:
    """Cache the states after `depth` frozen layers: those of the prefix that all rows share, then each row's own."""
    shared = common_prefix([row.prompt for row in rows]) if len(rows) > 1 else 0
    *starts, total = accumulate((_tokens_read(row) - shared for row in rows), initial=shared)
    splits_logits(model)  # now, while all of the model runs
    size = model.config.get_text_config().hidden_size
    cache, layers = _allocate(model, total, size, memory), _layers(model)[:depth]
    for batch, packed in _batches(model, rows, progress):
        states = run_to_layer(model.get_decoder(), layers[-1], inputs(model, packed))[0]
        for i, own in zip(batch, states[packed.shared :].split(packed.lengths.tolist()), strict=True):
            whole = torch.cat([states[: packed.shared], own])
            cache[starts[i] : starts[i] + len(whole) - shared] = whole[shared:]
        cache[:shared] = whole[:shared]
    start_of = dict(zip(rows, starts, strict=True))

    def cached(row: TokenizedExample, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The states of the row's tokens from `first` to `last`: those of the shared prefix, and its own."""
        own = start_of[row] - shared
        return cache[min(first, shared) : min(last, shared)], cache[own + max(first, shared) : own + max(last, shared)]

    def loss(part: Sequence[TokenizedExample]) -> torch.Tensor:
        packed = pack(part, model.device)
        pieces = [*cached(part[0], 0, packed.shared)]
        for row in part:
            pieces += cached(row, packed.shared, _tokens_read(row))
        with _skipping(layers, torch.cat(pieces).to(model.device)[None]):
            return AnswerLoss(model, label_smoothing=smoothing).of(packed)

    return loss


def _output_layer_loss(
    model: Any, _depth: int, rows: Sequence[TokenizedExample], smoothing: float, memory: int, progress: Progress
) -> Loss:
    """Cache the final states at supervised tokens: the loss runs only the output layer."""
    *starts, total = accumulate((row.supervised for row in rows), initial=0)
    cache = _allocate(model, total, end_size(model), memory)
    for batch, packed in _batches(model, rows, progress):
        states = model.get_decoder()(**inputs(model, packed)).last_hidden_state[0].index_select(0, packed.supervised)
        for i, own in zip(batch, states.split([rows[i].supervised for i in batch]), strict=True):
            cache[starts[i] : starts[i] + len(own)] = own
    start_of = dict(zip(rows, starts, strict=True))

    def loss(part: Sequence[TokenizedExample]) -> torch.Tensor:
        states = torch.cat([cache[start_of[row] : start_of[row] + row.supervised] for row in part])
        losses = loss_of_states(model, states.to(model.device), targets_of(part).to(model.device), smoothing)
        return summed(losses, weights_of(part, model.device))

    return loss


def _batches(model: Any, rows: Sequence[TokenizedExample], progress: Progress) -> Iterator[tuple[list[int], Packed]]:
    """All rows packed, rows of similar length together, ready to run without gradients."""
    model.eval()
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    with torch.no_grad(), packed_layers(model):
        while order:
            batch = [order.pop()]  # the longest first: if memory runs out, it does so at once
            tokens = len(rows[batch[0]])
            while order and (tokens := tokens + len(rows[order[-1]])) <= TOKENS:
                batch.append(order.pop())
            yield batch, pack([rows[i] for i in batch], model.device)
            progress.advance(len(batch))


def _allocate(model: Any, count: int, size: int, memory: int) -> torch.Tensor:
    """Allocate `count` states [count, size]: in memory if they fit in `memory` bytes, else memory-mapped.

    The file's name is removed at once, so that nothing is left of it however the process ends. An OSError means that
    there is no room for it.
    """
    dtype = model.dtype
    if count * size * dtype.itemsize <= memory:
        return torch.empty(count, size, dtype=dtype, device=model.device)
    with tempfile.TemporaryDirectory(prefix="rung-") as folder:
        file = Path(folder) / "states"
        with file.open("wb") as out:
            os.posix_fallocate(out.fileno(), 0, count * size * dtype.itemsize)  # a full disk shows here, not later
        return torch.from_file(str(file), shared=True, size=count * size, dtype=dtype).view(count, size)


def _tokens_read(row: TokenizedExample) -> int:
    return row.spans[-1][1] - 1


# ---- layers


def _layers(model: Any) -> Any:
    name, _ = layer_list({name: p.numel() for name, p in plain_parameters(model).items()})
    return model.get_submodule(name)


@contextmanager
def _skipping(layers: Any, states: torch.Tensor) -> Iterator[None]:
    """Let these first layers do nothing, and the last of them return `states`.

    What the model does around its layers (positions, masks, norms) stays the same.
    """

    def skip(hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return hidden_states

    for layer in layers[:-1]:
        layer.forward = skip
    layers[-1].forward = lambda *_, **__: states
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _cannot_skip(model: Any, depth: int) -> str:
    """Why the states after the frozen layers are not all that the others need; empty if they are.

    Tried on a few tokens: some architectures' layers return more than states, or read what lower layers stored.
    """
    values = {"input_ids": torch.arange(8, device=model.device)[None], "use_cache": False}
    layers = _layers(model)[:depth]
    with torch.no_grad():
        theirs = model.get_decoder()(**values).last_hidden_state
        states = run_to_layer(model.get_decoder(), layers[-1], values)
        if not isinstance(states, torch.Tensor):
            return f"they return a {type(states).__name__}"
        try:
            with _skipping(layers, states):
                ours = model.get_decoder()(**values).last_hidden_state
        except Exception as error:  # an unknown architecture may raise anything: the whole model runs then
            return f"{type(error).__name__}: {error}"
    return "" if torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4) else "they read more than the states below them"
