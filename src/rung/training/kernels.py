"""Layers computed with less memory or fewer operations, and the same result.

Gated feed-forward networks: y = down(act(gate(x)) * up(x)) keeps four tensors as wide as the intermediate size for the
backward pass: gate(x), up(x), act(gate(x)) and the product that `down` reads. Here the last two are computed again from
the first two, which takes elementwise operations only (Chen et al. 2016, https://arxiv.org/abs/1604.06174, section 3)
and no longer than reading them from memory took.

LoRA: PEFT writes the update as four operations next to the base layer, and autograd adds eight more. On a processor,
where a step has thousands of small operations, they cost a fifth of it. Here only the matrix products are left, and
they apply the scale too. Used only where the result is PEFT's own: plain LoRA, one adapter, no dropout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FunctionType
from typing import Any

import torch


@contextmanager
def _forward_replaced(modules: Iterable[Any], forward: Callable[..., torch.Tensor]) -> Iterator[None]:
    # Blocks may nest (an evaluation during training): only the outermost one changes a module, and changes it back.
    modules = [module for module in modules if "forward" not in vars(module)]
    for module in modules:
        module.forward = partial(forward, module)
    try:
        yield
    finally:
        for module in modules:
            vars(module).pop("forward")


# ---- gated feed-forward networks


@contextmanager
def recomputed_gates(model: Any) -> Iterator[None]:
    """Let the model's gated networks keep only gate(x) and up(x) for the backward pass while the block runs.

    Not with gradient checkpointing, which keeps nothing of them anyway.
    """
    modules = () if model.is_gradient_checkpointing else model.modules()
    with _forward_replaced(filter(is_gated, modules), _gated_forward):
        yield


def is_gated(module: Any) -> bool:
    """Whether the module's forward pass is the very code of Llama's: Mistral's, Qwen's and Gemma's are."""
    from transformers.models.llama.modeling_llama import LlamaMLP

    forward = type(module).forward
    return isinstance(forward, FunctionType) and _code(forward) == _code(LlamaMLP.forward)


def _code(function: FunctionType) -> tuple[bytes, tuple[str, ...], tuple[Any, ...]]:
    code = function.__code__
    return code.co_code, code.co_names, code.co_consts


def _gated_forward(module: Any, x: torch.Tensor) -> torch.Tensor:
    gate, up = module.gate_proj(x), module.up_proj(x)
    if not gate.requires_grad or not up.requires_grad:  # neither would be kept: the product alone, at most
        product = module.act_fn(gate) * up
        down: torch.Tensor = module.down_proj(product)
        return down
    recompute = _Recompute(module.act_fn, gate.detach(), up.detach())
    with torch.autograd.graph.saved_tensors_hooks(recompute.pack, recompute.unpack):
        recompute.activated = recompute.storage(activated := module.act_fn(gate))
        product = activated * up
        recompute.product = recompute.storage(product)
        out: torch.Tensor = module.down_proj(product)
    return out


class _Recompute:
    """What one forward pass of a gated network keeps, and how the rest is computed from it."""

    def __init__(self, act: Any, gate: torch.Tensor, up: torch.Tensor) -> None:
        self.act, self.gate, self.up = act, gate, up
        self.activated = self.product = -1  # where the tensors' contents are
        self.again: torch.Tensor | None = None  # act(gate): the backward pass needs it for the product, then alone

    @staticmethod
    def storage(tensor: torch.Tensor) -> int:
        return int(tensor.untyped_storage().data_ptr())

    def pack(self, tensor: torch.Tensor) -> torch.Tensor | tuple[str, torch.Size]:
        """Keep the name and shape of a tensor that can be computed again; keep any other tensor."""
        if tensor.numel() == self.gate.numel() and tensor.is_contiguous():
            if self.storage(tensor) == self.activated:
                return "activated", tensor.shape
            if self.storage(tensor) == self.product:
                return "product", tensor.shape
        return tensor

    def unpack(self, kept: torch.Tensor | tuple[str, torch.Size]) -> torch.Tensor:
        """Give back the tensor that was packed."""
        if isinstance(kept, torch.Tensor):
            return kept
        name, shape = kept
        activated, self.again = self.act(self.gate) if self.again is None else self.again, None
        if name == "product":
            self.again, activated = activated, activated * self.up
        return activated.view(shape)


# ---- LoRA's linear layers


class LowRankLinear(torch.autograd.Function):  # type: ignore[misc]
    """y = x W' + b + s (x A') B' for a frozen W [out, in]; A [rank, in] and B [out, rank] are trained."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, down: torch.Tensor,
        up: torch.Tensor, scale: float,
    ) -> torch.Tensor:  # fmt: skip
        """Compute y, shape [..., out], for x of shape [..., in]."""
        rows = x.flatten(0, -2)
        hidden = rows @ down.T
        y = torch.nn.functional.linear(x, weight, bias)  # in its final shape: what follows may change it in place
        y.view(-1, weight.shape[0]).addmm_(hidden, up.T, alpha=scale)
        ctx.save_for_backward(rows, hidden, weight, down, up)
        ctx.scale, ctx.shape = scale, x.shape
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Compute the gradients of x, A and B."""
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
def lean_lora(model: Any, name: str) -> Iterator[None]:
    """Run the plain LoRA layers of adapter `name` through `LowRankLinear` while the block runs."""
    from peft.tuners.lora.layer import Linear

    layers = [m for m in model.modules() if isinstance(m, Linear) and _plain(m, name)]
    with _forward_replaced(layers, partial(_lora_forward, name)):
        yield


def _plain(module: Any, name: str) -> bool:
    """Whether the layer computes nothing but the base product and one plain update."""
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


def _lora_forward(name: str, module: Any, x: torch.Tensor) -> torch.Tensor:
    if module.disable_adapters or list(module.active_adapters) != [name]:
        # A stream that its reader left half read keeps its block open while others use the model.
        other: torch.Tensor = type(module).forward(module, x)
        return other
    base = module.get_base_layer()
    result: torch.Tensor = LowRankLinear.apply(
        x, base.weight, base.bias, module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name]
    )
    return result
