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
    for batch in batches([len(p) for p in prompts], 0, 1):
        rows = [prompts[i] for i in batch]
        width = max(map(len, rows))
        ids = torch.tensor([[*row, *([0] * (width - len(row)))] for row in rows], device=model.device)
        output = states_behind(core, layers[depth - 1], {"input_ids": ids, "use_cache": False})
        states = (output[0] if isinstance(output, tuple) else output).float()
        real = torch.tensor([[i < len(row) for i in range(width)] for row in rows], device=model.device)
        mean = (states * real[..., None]).sum(1) / real.sum(1, keepdim=True)
        result[batch] = torch.nn.functional.normalize(mean, dim=-1).cpu().numpy()
        done(len(batch))
    return result


def states_behind(core: Any, layer: Any, values: dict[str, Any]) -> Any:
    """Run a decoder on `values` up to this layer and return the layer's output; those above are not run."""
    found = []

    def stop(_module: Any, _inputs: Any, output: Any) -> None:
        found.append(output)
        raise _EnoughError

    handle = layer.register_forward_hook(stop)
    try:
        core(**values)
    except _EnoughError:
        return found[0]
    finally:
        handle.remove()
    raise AssertionError("the layer did not run")


class _EnoughError(Exception):
    """Leaves the forward pass once the wanted layer has run."""
