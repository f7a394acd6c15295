"""Texts as the mean of a language model's hidden states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from rung.engines.base import Floats
from rung.engines.tree_scoring import batches

DEPTH = 2 / 3


@torch.inference_mode()
def mean_states(
    model: Any, prompts: Sequence[Sequence[int]], *, done: Callable[[int], None] = lambda rows: None
) -> Floats:
    """Return unit vectors, shape [prompts, hidden size]: hidden states averaged over tokens at two thirds of the depth.

    The layers above are not run. Rows are padded on the right; causal attention keeps padding out of real tokens.
    """
    core = model.get_decoder()
    layers = core.layers
    depth = max(1, round(len(layers) * DEPTH))
    result = np.empty((len(prompts), model.config.get_text_config().hidden_size), np.float32)
    captured: list[torch.Tensor] = []

    def stop(_module: Any, _inputs: Any, output: Any) -> None:
        captured.append(output[0] if isinstance(output, tuple) else output)
        raise _EnoughError

    handle = layers[depth - 1].register_forward_hook(stop)
    try:
        for batch in batches([len(p) for p in prompts], 0, 1):
            rows = [prompts[i] for i in batch]
            width = max(map(len, rows))
            ids = torch.tensor([[*row, *([0] * (width - len(row)))] for row in rows], device=model.device)
            try:
                core(input_ids=ids, use_cache=False)
            except _EnoughError:
                states = captured.pop().float()
            real = torch.tensor([[i < len(row) for i in range(width)] for row in rows], device=model.device)
            mean = (states * real[..., None]).sum(1) / real.sum(1, keepdim=True)
            result[batch] = torch.nn.functional.normalize(mean, dim=-1).cpu().numpy()
            done(len(batch))
    finally:
        handle.remove()
    return result


class _EnoughError(Exception):
    """Leaves the forward pass once the wanted layer has run."""
