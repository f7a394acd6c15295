"""The number types that training computes with: float32, or fewer bits where the hardware has them; never float16."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from rung.training.config import Precision

if TYPE_CHECKING:
    import torch

MatmulDtype = Literal["bfloat16", "tf32", "float32"]
TORCH_NAMES: dict[MatmulDtype, str] = {"bfloat16": "medium", "tf32": "high", "float32": "highest"}
_lock = threading.RLock()


@contextmanager
def no_float16(model: Any) -> Iterator[None]:
    """Hold the model's float16 parameters in float32 while the block runs, and convert them back after it.

    GPUs before Ampere run models in float16, whose small gradients vanish (Micikevicius et al. 2018,
    https://arxiv.org/abs/1710.03740, section 3.2). Float32 holds every float16 number, so nothing is lost.
    """
    import torch

    converted = [p for p in model.parameters() if p.dtype == torch.float16]
    for parameter in converted:
        parameter.data = parameter.data.float()
    try:
        yield
    finally:
        for parameter in converted:
            parameter.data = parameter.data.half()


def matmul_dtype(device: str, precision: Precision = "auto") -> MatmulDtype:
    """The type in which training multiplies float32 matrices on a kind of device.

    `auto` is TF32 on CUDA and bfloat16 on processors with AMX, where it is three to four times faster than float32.
    Sums and everything between the products stay float32. Instructions for bfloat16 without AMX gain nothing.
    """
    import torch

    if precision == "float32":
        return "float32"
    if device == "cuda":  # TF32 came with Ampere
        return "float32" if torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0) else "tf32"
    return "bfloat16" if device == "cpu" and torch.cpu._is_amx_tile_supported() else "float32"


@contextmanager
def matmul_precision(dtype: MatmulDtype) -> Iterator[None]:
    """Multiply float32 matrices in this type while the block runs.

    On CUDA adapters are trained in float32 next to a base model in bfloat16, which has fewer bits than TF32. The whole
    process has one such type: trainings in several threads take turns, and predictions meanwhile use it too.
    """
    import torch

    with _lock:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(TORCH_NAMES[dtype])
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


def attention_in_float32(function: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
    """Call `function(*tensors)` with float32 products, in its backward pass too, where bfloat16 is on.

    For many small products: torch's attention on CPUs is four times slower in bfloat16.
    """
    import torch

    if torch.get_float32_matmul_precision() != TORCH_NAMES["bfloat16"]:
        return function(*tensors)
    begin, end = _switches()
    result: torch.Tensor = end(function(*begin(*tensors)))
    return result


@cache
def _switches() -> tuple[Any, Any]:
    """Two identities to put around a computation: they switch to float32 and back, in the backward pass too."""
    import torch

    def switch(dtype: MatmulDtype) -> None:
        torch.set_float32_matmul_precision(TORCH_NAMES[dtype])

    class Begin(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(_ctx: Any, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            switch("float32")
            return tuple(tensor.view_as(tensor) for tensor in tensors)

        @staticmethod
        def backward(_ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
            switch("bfloat16")
            return gradients

    class End(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(_ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
            switch("bfloat16")
            return tensor.view_as(tensor)

        @staticmethod
        def backward(_ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            switch("float32")
            return gradient

    return Begin.apply, End.apply
