"""How many rows fit in memory at once while training, foreseen from the model's shapes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rung.engines.label_trie import common_prefix
from rung.machine import free_memory_bytes
from rung.training.examples import TokenizedExample
from rung.training.kernels import gated
from rung.training.optimizers import OptimizerName, embeddings, moment_bytes

# Floats kept per layer and token for the backward pass, as multiples of the hidden and the intermediate size; upper
# bounds of what Llama, Qwen and Gemma keep (norms, queries, keys, values, attention, residuals; gate, up, and, in
# networks that `lean_gates` does not know, what becomes of them).
KEPT_HIDDEN, KEPT_INTERMEDIATE, KEPT_GATED = 8, 4, 2
KEPT_CHECKPOINTED = 1  # with gradient checkpointing: one hidden state per layer
SHARE = 0.6  # of the memory that is free
# Tokens of the rows' own per forward pass: a processor gains nothing from more, as its caches hold less. A beginning
# that rows share is read anew in each pass, which is not to be its larger part.
CPU_TOKENS, OF_SHARED = 2_048, 4
GRADIENT_BYTES = 4  # of a trained parameter


@dataclass(frozen=True, slots=True)
class Fit:
    """What fits.

    Attributes:
        rows: rows that fit in one forward pass.
        micro_batch: rows per forward pass: those, or fewer where more at once are no faster.
        checkpointing: whether layers have to be run again for the backward pass.
    """

    rows: int
    micro_batch: int
    checkpointing: bool


def fitting(model: Any, rows: Sequence[TokenizedExample], batch_size: int, *, free: int | None = None) -> Fit:
    """Return the largest forward pass that fits in memory, checkpointing only if not even one row does without.

    Args:
        model: the base model, in memory.
        rows: training rows.
        batch_size: rows per optimizer step, at most which run at once.
        free: bytes that are free; by default what the device says.
    """
    longest = max(map(len, rows))
    room = SHARE * (free_bytes(model) if free is None else free)
    for checkpointing in (False, True):
        most = int(room // (bytes_per_token(model, checkpointing=checkpointing) * longest))
        if most >= 1:
            fit = min(batch_size, most)
            passes = 1 if model.device.type == "cuda" else math.ceil(fit / _gaining(rows))
            return Fit(fit, math.ceil(fit / passes), checkpointing)
    return Fit(1, 1, checkpointing=True)


def _gaining(rows: Sequence[TokenizedExample]) -> int:
    """Return how many rows at once a processor reads faster than fewer."""
    shared = common_prefix([row.prompt for row in rows])
    own = max(map(len, rows)) - shared
    return max(1, max(CPU_TOKENS, OF_SHARED * shared) // own)


def bytes_per_token(model: Any, *, checkpointing: bool = False) -> int:
    """Return the bytes that one token's activations keep for the backward pass."""
    config = model.config.get_text_config()
    size = torch.tensor([], dtype=model.dtype).element_size()
    if checkpointing:
        return int(config.num_hidden_layers * KEPT_CHECKPOINTED * config.hidden_size * size)
    wide = KEPT_GATED if any(map(gated, model.modules())) else KEPT_INTERMEDIATE
    layer = KEPT_HIDDEN * config.hidden_size + wide * config.intermediate_size
    return int(config.num_hidden_layers * layer * size)


def free_bytes(model: Any) -> int:
    """Return the bytes that are free where the model is."""
    if model.device.type == "cuda":
        return int(torch.cuda.mem_get_info(model.device)[0])
    return free_memory_bytes()


def free_beside(model: Any, trained: Iterable[torch.Tensor], optimizer: OptimizerName = "adamw") -> int:
    """Return the bytes that are free once the trained parameters have their gradients and the optimizer's moments."""
    trained = tuple(trained)
    gradients: int = GRADIENT_BYTES * sum(p.numel() for p in trained)
    return max(0, free_bytes(model) - gradients - moment_bytes(optimizer, trained, embeddings(model)))
