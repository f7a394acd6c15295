"""How many rows fit in memory at once while training, calculated from the model's shapes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from rung.engines.label_trie import common_prefix
from rung.machine import free_memory_bytes
from rung.training.config import OptimizerName
from rung.training.examples import TokenizedExample
from rung.training.kernels import is_gated
from rung.training.optimizers import embeddings, moment_bytes

# Floats kept per layer and token for the backward pass, as multiples of the hidden and the intermediate size: upper
# bounds of what Llama, Qwen and Gemma keep (norms, queries, keys, values, attention, residuals; gate and up projection,
# and, in networks that `recomputed_gates` does not know, their activations).
KEPT_HIDDEN, KEPT_INTERMEDIATE, KEPT_GATED = 8, 4, 2
KEPT_CHECKPOINTED = 1  # with gradient checkpointing: one hidden state per layer
SHARE = 0.6  # of the free memory
# Tokens per forward pass, without the shared prefix. A processor gains nothing from more, as they exceed its caches.
# Each pass reads the shared prefix again, so a pass also has at least four times as many tokens as the prefix.
CPU_TOKENS, OF_SHARED = 2_048, 4
GRADIENT_BYTES = 4  # of a trained parameter


@dataclass(frozen=True, slots=True)
class Fit:
    """What fits in memory."""

    rows: int  # that fit in one forward pass
    micro_batch_size: int  # rows per forward pass: those, or fewer where more at once are no faster
    checkpointing: bool  # whether gradient checkpointing is needed
    free: int = field(default=0, compare=False)  # bytes of memory that were free


def fit_memory(model: Any, rows: Sequence[TokenizedExample], batch_size: int, *, free: int | None = None) -> Fit:
    """Find the largest forward pass that fits in memory, with gradient checkpointing only if one row needs it.

    At most the `batch_size` rows of an optimizer step run at once. By default the device says how many bytes are free.
    """
    longest = max(map(len, rows))
    free = free_bytes(model) if free is None else free
    for checkpointing in (False, True):
        largest = int(SHARE * free // (bytes_per_token(model, checkpointing=checkpointing) * longest))
        if largest >= 1:
            fit = min(batch_size, largest)
            passes = 1
            if model.device.type != "cuda":
                shared = common_prefix([row.prompt for row in rows])
                passes = math.ceil(fit / max(1, max(CPU_TOKENS, OF_SHARED * shared) // (longest - shared)))
            return Fit(fit, math.ceil(fit / passes), checkpointing, free)
    return Fit(1, 1, checkpointing=True, free=free)


def bytes_per_token(model: Any, *, checkpointing: bool = False) -> int:
    """The bytes that one token's activations take until the backward pass."""
    config = model.config.get_text_config()
    layer = KEPT_CHECKPOINTED * config.hidden_size
    if not checkpointing:
        wide = KEPT_GATED if any(map(is_gated, model.modules())) else KEPT_INTERMEDIATE
        layer = KEPT_HIDDEN * config.hidden_size + wide * config.intermediate_size
    return int(config.num_hidden_layers * layer * model.dtype.itemsize)


def free_bytes(model: Any) -> int:
    """The bytes that are free where the model is."""
    return int(torch.cuda.mem_get_info(model.device)[0]) if model.device.type == "cuda" else free_memory_bytes()


def free_beside(model: Any, trained: Iterable[torch.Tensor], optimizer: OptimizerName = "adamw") -> int:
    """The bytes that stay free once the trained parameters have gradients and the optimizer's moments."""
    trained = tuple(p.to_local() if hasattr(p, "to_local") else p for p in trained)  # the parts of this process
    gradients: int = GRADIENT_BYTES * sum(p.numel() for p in trained)
    return max(0, free_bytes(model) - gradients - moment_bytes(optimizer, trained, embeddings(model)))
