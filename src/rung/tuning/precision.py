"""The number types that training computes with: float32, or bfloat16 where the hardware has it; never float16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def no_float16(model: Any) -> Iterator[None]:
    """Hold the model's float16 parameters in float32 for the time of the block, and change them back after it.

    GPUs before Ampere run models in float16, whose small gradients vanish (Micikevicius et al. 2018,
    https://arxiv.org/abs/1710.03740, section 3.2). Float32 holds every float16 number, so nothing is lost on the way
    there and back.
    """
    held = [p for p in model.parameters() if p.dtype == torch.float16]
    for parameter in held:
        parameter.data = parameter.data.float()
    try:
        yield
    finally:
        for parameter in held:
            parameter.data = parameter.data.half()


@contextmanager
def tensor_float(device: str) -> Iterator[None]:
    """Let products of float32 run as TF32 on CUDA for the time of the block.

    Adapters are trained in float32 beside a base model in bfloat16, which has fewer bits than TF32.
    """
    if device != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
