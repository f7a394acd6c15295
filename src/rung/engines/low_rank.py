"""LoRA's linear layers with as few operations as the mathematics needs, forward and backward.

PEFT writes the update as four operations beside the base layer, and autograd adds eight more. On a processor, where a
step has thousands of small operations, they cost a fifth of it. Here it is the products alone, and the scale rides
along in them. Used only where the result is PEFT's own: plain LoRA, one adapter, no dropout.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch


class LowRankLinear(torch.autograd.Function):  # type: ignore[misc]
    """y = x W' + b + s (x A') B' for a frozen W [out, in]; A [rank, in] and B [out, rank] are trained."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        """Return y, shape [..., out], for x of shape [..., in]."""
        rows = x.flatten(0, -2)
        hidden = rows @ down.T
        y = rows @ weight.T if bias is None else torch.addmm(bias, rows, weight.T)
        y.addmm_(hidden, up.T, alpha=scale)
        ctx.save_for_backward(rows, hidden, weight, down, up)
        ctx.scale, ctx.shape = scale, x.shape
        return y.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of x, A and B."""
        rows, hidden, weight, down, up = ctx.saved_tensors
        g = grad.reshape(-1, grad.shape[-1])
        g_hidden = (g @ up).mul_(ctx.scale)
        g_up = (g.T @ hidden).mul_(ctx.scale)
        g_down = g_hidden.T @ rows
        g_x = None
        if ctx.needs_input_grad[0]:
            g_x = (g @ weight).addmm_(g_hidden, down).view(ctx.shape)
        return g_x, None, None, g_down, g_up, None


@contextmanager
def lean(model: Any, name: str) -> Iterator[None]:
    """Run the plain LoRA layers of adapter `name` through `LowRankLinear` for the time of the block."""
    from peft.tuners.lora.layer import Linear

    # Blocks may nest (an evaluation inside training): only the outermost one changes a layer, and changes it back.
    changed = [m for m in model.modules() if isinstance(m, Linear) and "forward" not in vars(m) and _plain(m, name)]
    for module in changed:
        module.forward = partial(_forward, module, name)
    try:
        yield
    finally:
        for module in changed:
            vars(module).pop("forward")


def _plain(module: Any, name: str) -> bool:
    """Say whether the layer computes nothing but the base product and one plain update."""
    base = module.get_base_layer()
    return (
        type(base) is torch.nn.Linear
        and not base.weight.requires_grad
        and (base.bias is None or not base.bias.requires_grad)
        and list(module.active_adapters) == [name]
        and name in module.lora_A
        and name not in module.lora_variant
        and module.lora_B[name].bias is None
        and isinstance(module.lora_dropout[name], torch.nn.Identity)
        and module.lora_A[name].weight.dtype == base.weight.dtype
        and not module.merged
    )


def _forward(module: Any, name: str, x: torch.Tensor) -> torch.Tensor:
    if module.disable_adapters or list(module.active_adapters) != [name]:
        # A stream that its reader left half read keeps its block open while others use the model.
        other: torch.Tensor = type(module).forward(module, x)
        return other
    base = module.get_base_layer()
    result: torch.Tensor = LowRankLinear.apply(
        x, base.weight, base.bias, module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name]
    )
    return result
