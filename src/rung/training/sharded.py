"""Full fine-tuning where each of several processes holds a part of every tensor (FSDP2).

Each decoder layer is put together when it runs and taken apart again (Zhao et al. 2023,
https://arxiv.org/abs/2304.11277; torch's `fully_shard`). So a device holds one layer as a whole, and of all others its
share of weights, gradients and moments. The shares are float32; layers run in the base model's own precision.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from rung.engines.opening import forget_torch
from rung.training.changes import Change, forget_parameters, read_tensors, write_settings, write_tensors
from rung.training.distributed import checksum, current, placed
from rung.training.layers import decoder_layers
from rung.training.loss import without_split_logits


class ShardedWeights(Change):
    """All weights of a model in parts. The model itself changes: nothing else in this process can use it."""

    sharded = True

    def __init__(self, model: Any) -> None:
        self._dtype = model.dtype
        mesh = init_device_mesh(model.device.type, (current().size,))
        policy = MixedPrecisionPolicy(param_dtype=model.dtype, reduce_dtype=torch.float32)
        forget_parameters(model)
        without_split_logits(model)  # layers are whole only while the model itself runs them
        for part in (*decoder_layers(model), model):  # one by one, so that few are whole in float32 at once
            fully_shard(part.float(), mesh=mesh, mp_policy=policy)
            part.set_gradient_divide_factor(1.0)  # the loop divides by the targets of the batch
            part.set_force_sum_reduction_for_comms(True)
        self._parameters: dict[str, Any] = dict(model.named_parameters())

    def enable(self) -> None:
        """Nothing: it is always on."""

    def disable(self) -> None:
        """Nothing: the base model is gone."""

    def remove(self) -> None:
        """Let the next use of the base model load it again."""
        forget_torch()

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The parts that this process holds."""
        return dict(self._parameters)

    def write(self, folder: Path, fingerprint: str) -> None:
        """Write patch.json and patch.safetensors in the first process; all of them take part."""
        tensors = {}
        for name, parameter in self._parameters.items():
            whole = parameter.detach().full_tensor()
            if current().first:
                tensors[name] = whole.to("cpu", self._dtype)
        if current().first:
            write_settings(folder / "patch.json", fingerprint, {"tensors": sorted(tensors)})
            write_tensors(tensors, folder / "patch.safetensors")

    def checksums(self, folder: Path) -> dict[str, int]:
        """What the parts of this process add to the checksum of each tensor."""
        del folder
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

        sums = {}
        for name, parameter in self._parameters.items():
            shape, mesh = parameter.shape, parameter.device_mesh
            _, first = compute_local_shape_and_global_offset(shape, mesh, parameter.placements)
            own = parameter.detach().to_local().to("cpu", self._dtype)
            row = shape[1:].numel() * self._dtype.itemsize
            sums[f"patch.safetensors: {name}"] = checksum(own, first[0] * row)
        return sums

    def read(self, folder: Path) -> None:
        """Set the parts to those of a patch.safetensors."""
        tensors = read_tensors(folder / "patch.safetensors", self._parameters)
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(placed(tensors[name], parameter))
