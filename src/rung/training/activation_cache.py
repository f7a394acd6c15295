"""Frozen layers run once: what they make of the training rows is kept, and every step runs only what lies above.

Layers that are not trained, and have none that is trained below them, turn a row into the same hidden states at every
step of every epoch. So they run once, and what is kept of them stands in for them: behind the last frozen layer the
states of every token that is read, or, where only the output layer is trained, the final states at supervised places
alone, and training is a softmax regression on them. Loss and gradient are those of the whole model.

The kept states lie where the model is, or, where they are too many for its memory, in a file that is mapped.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from rung.engines.label_trie import common_prefix
from rung.engines.torch_engine import states_behind
from rung.models.reference import layer_list
from rung.progress import QUIET, Progress
from rung.training.changes import plain_parameters
from rung.training.examples import TokenizedExample
from rung.training.loop import Schedule, has_dropout
from rung.training.loss import AnswerLoss, Loss, Packed, inputs, pack, packed_layers, project, projects
from rung.training.memory import free_bytes
from rung.training.precision import multiplying, products

ROOM = 0.3  # share of the free memory that kept states may take; the rest is for training
TOKENS = 2048  # run at once


@dataclass(frozen=True, slots=True)
class Trunk:
    """The loss of rows whose states behind `depth` frozen layers are kept.

    Attributes:
        model: the base model.
        depth: how many layers are frozen, counted from the first.
        states: shape [tokens, hidden size]: first those of the beginning that all rows share, then each row's own.
        shared: length of that beginning.
        starts: where each row's own states begin.
        smoothing: label smoothing.
    """

    model: Any
    depth: int
    states: torch.Tensor
    shared: int
    starts: dict[TokenizedExample, int]
    smoothing: float

    def __call__(self, part: Sequence[TokenizedExample]) -> torch.Tensor:
        """Return the summed loss of a batch, a scalar with gradients, running only the layers above."""
        packed = pack(part, self.model.device)
        pieces = [*self._states(part[0], 0, packed.shared)]
        for row in part:
            pieces += self._states(row, packed.shared, _read(row))
        states = torch.cat(pieces).to(self.model.device)[None]
        with _standing_in(_layers(self.model)[: self.depth], states):
            return AnswerLoss(self.model, smoothing=self.smoothing).of(packed)

    def _states(self, row: TokenizedExample, first: int, last: int) -> Iterator[torch.Tensor]:
        """Yield the states of the row's tokens from `first` to `last`: those of the beginning, and its own."""
        yield self.states[min(first, self.shared) : min(last, self.shared)]
        own = self.starts[row] - self.shared
        yield self.states[own + max(first, self.shared) : own + max(last, self.shared)]


@dataclass(frozen=True, slots=True)
class Regression:
    """The loss of rows whose final states at supervised places are kept.

    Attributes:
        model: the base model.
        states: shape [supervised tokens, hidden size].
        starts: where each row's states begin.
        smoothing: label smoothing.
    """

    model: Any
    states: torch.Tensor
    starts: dict[TokenizedExample, int]
    smoothing: float

    def __call__(self, part: Sequence[TokenizedExample]) -> torch.Tensor:
        """Return the summed loss of a batch, a scalar with gradients, running only the output layer."""
        states = torch.cat([self.states[self.starts[row] : self.starts[row] + row.supervised] for row in part])
        targets = torch.tensor([t for row in part for first, last in row.spans for t in row.tokens[first:last]])
        device = self.model.device
        return project(self.model, states.to(device), targets.to(device), self.smoothing)


def loss_above(
    model: Any,
    depth: int | None,
    rows: Sequence[TokenizedExample],
    schedule: Schedule,
    *,
    free: int | None = None,
    progress: Progress = QUIET,
) -> Loss | None:
    """Run the frozen layers on all rows and return the loss that starts behind them.

    Args:
        model: the base model, nothing switched on.
        depth: how many layers are frozen, counted from the first; None: all of them, and the final norm.
        rows: training rows.
        schedule: how they will be trained on.
        free: bytes of memory that are free; by default what the device says.
        progress: told of the rows, and why where the whole model has to run.

    Returns:
        The loss, or None where the whole model has to run at every step.
    """
    progress.start("running the frozen layers once", len(rows))
    reason = _reason_against(model, depth, schedule)
    loss: Loss | None = None
    if not reason:
        room = int(ROOM * (free_bytes(model) if free is None else free))
        try:
            with multiplying(products(model.device.type, schedule.precision)):
                if depth is None:
                    loss = _regression(model, rows, schedule.smoothing, room, progress)
                else:
                    loss = _trunk(model, depth, rows, schedule.smoothing, room, progress)
        except OSError as full:
            reason = f"there is no room to keep what they return ({full})"
    progress.finish(f"the whole model runs at every step: {reason}" if reason else "")
    return loss


def _reason_against(model: Any, depth: int | None, schedule: Schedule) -> str:
    if schedule.noise > 0:
        return "noise on the embeddings differs from step to step"
    if has_dropout(model):
        return "the model has dropout"
    if depth == 0:
        return "no layer is frozen"
    if depth is None and not projects(model):
        return "this architecture's logits are not a product of its last states and the output layer"
    if depth is not None and (trouble := _cannot_stand_in(model, depth)):
        return f"this architecture's layers cannot run alone ({trouble})"
    return ""


def _trunk(
    model: Any, depth: int, rows: Sequence[TokenizedExample], smoothing: float, room: int, progress: Progress
) -> Trunk:
    shared = common_prefix([row.prompt for row in rows]) if len(rows) > 1 else 0
    *starts, total = accumulate((_read(row) - shared for row in rows), initial=shared)
    projects(model)  # tried once a model, now that all of it runs
    states = _store(model, total, room)
    for batch, packed in _batches(model, rows, progress):
        found = _behind(model, depth, inputs(model, packed))[0]
        for i, own in zip(batch, found[packed.shared :].split(packed.lengths.tolist()), strict=True):
            whole = torch.cat([found[: packed.shared], own])
            states[starts[i] : starts[i] + len(whole) - shared] = whole[shared:]
        states[:shared] = whole[:shared]
    return Trunk(model, depth, states, shared, dict(zip(rows, starts, strict=True)), smoothing)


def _regression(
    model: Any, rows: Sequence[TokenizedExample], smoothing: float, room: int, progress: Progress
) -> Regression:
    *starts, total = accumulate((row.supervised for row in rows), initial=0)
    states = _store(model, total, room)
    for batch, packed in _batches(model, rows, progress):
        found = model.get_decoder()(**inputs(model, packed)).last_hidden_state[0].index_select(0, packed.supervised)
        for i, own in zip(batch, found.split([rows[i].supervised for i in batch]), strict=True):
            states[starts[i] : starts[i] + len(own)] = own
    return Regression(model, states, dict(zip(rows, starts, strict=True)), smoothing)


def _batches(model: Any, rows: Sequence[TokenizedExample], progress: Progress) -> Iterator[tuple[list[int], Packed]]:
    """Yield all rows packed, rows of like length together, ready to run without gradients."""
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


def _store(model: Any, count: int, room: int) -> torch.Tensor:
    """Return where `count` states can be kept: memory if they fit in `room` bytes, else a mapped file.

    The file has no name any more, so that nothing is left of it whatever ends the process.

    Raises:
        OSError: there is no room for the file.
    """
    size, dtype = model.config.get_text_config().hidden_size, model.dtype
    if count * size * dtype.itemsize <= room:
        return torch.empty(count, size, dtype=dtype, device=model.device)
    with tempfile.TemporaryDirectory(prefix="rung-") as folder:
        file = Path(folder) / "states"
        with file.open("wb") as out:
            os.posix_fallocate(out.fileno(), 0, count * size * dtype.itemsize)  # a full disk is met here, not later
        return torch.from_file(str(file), shared=True, size=count * size, dtype=dtype).view(count, size)


def _read(row: TokenizedExample) -> int:
    """Return how many of the row's tokens are read."""
    return row.spans[-1][1] - 1


# ---- layers


def _layers(model: Any) -> Any:
    name, _ = layer_list({name: p.numel() for name, p in plain_parameters(model).items()})
    return model.get_submodule(name)


def _behind(model: Any, depth: int, values: dict[str, Any]) -> Any:
    return states_behind(model.get_decoder(), _layers(model)[depth - 1], values)


@contextmanager
def _standing_in(layers: Any, states: torch.Tensor) -> Iterator[None]:
    """Let these first layers do nothing, and the last of them return `states`.

    What the model does around its layers (positions, masks, norms) stays its own.
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


def _cannot_stand_in(model: Any, depth: int) -> str:
    """Return why the states behind the frozen layers are not all that the others need, or nothing.

    Tried on a few tokens: some architectures' layers return more than states, or read what lower layers left behind.
    """
    values = {"input_ids": torch.arange(8, device=model.device)[None], "use_cache": False}
    layers = _layers(model)[:depth]
    with torch.no_grad():
        theirs = model.get_decoder()(**values).last_hidden_state
        states = _behind(model, depth, values)
        if not isinstance(states, torch.Tensor):
            return f"they return a {type(states).__name__}"
        try:
            with _standing_in(layers, states):
                ours = model.get_decoder()(**values).last_hidden_state
        except Exception as error:  # whatever an architecture that was never seen may raise: the whole model will do
            return f"{type(error).__name__}: {error}"
    return "" if torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4) else "they read more than the states below them"
