"""Models of which each of several processes holds a part of every tensor (FSDP2).

Each decoder layer is put together when it runs and taken apart again (Zhao et al. 2023,
https://arxiv.org/abs/2304.11277; torch's `fully_shard`). So a device holds one layer as a whole, and of all others its
share. Where all weights are trained, these are shares of weights, gradients and moments: they are float32, and layers
run in the base model's own precision. Where an adapter is trained, it is whole in every process, and only the base
model is in parts, in its own precision; no process ever holds more of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from rung.engines.apart import run_apart
from rung.engines.opening import forget_torch
from rung.engines.torch_decoding import preferred_dtype
from rung.engines.torch_engine import TorchEngine
from rung.engines.tree_scoring import best_attention
from rung.errors import ConfigError
from rung.machine import free_memory_bytes
from rung.models.checkpoint import text_class, verify
from rung.models.hub import loaded_weights
from rung.models.reference import ModelFiles, resolve, tensor_sizes
from rung.progress import Progress
from rung.training.changes import Change, forget_parameters, read_tensors, write_settings, write_tensors
from rung.training.distributed import checksum, current, placed
from rung.training.layers import decoder_layers
from rung.training.loss import without_split_logits

ROOM = 0.8  # of the free memory that a base model may take in each process; activations and the adapter need the rest


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


# ---- a base model in parts, on which an adapter is trained


def open_in_parts(model: str, progress: Progress) -> TorchEngine | None:
    """The torch engine of a base model that does not fit in each process's memory; None where it does.

    Every process holds a part of each tensor, and reads only that from the files. All processes call this, and
    whatever runs the model then. Nothing keeps the engine for later.

    Raises:
        ConfigError: `not-distributed`: the model's files do not have its tensors as they are in memory.
    """
    files = resolve(model)
    size, free = whole_bytes(files), free_bytes()
    if not current().any(size > ROOM * free):
        return None
    progress.start("dividing the base model")
    verify(files, "language model")
    engine = TorchEngine(files, load=load_in_parts)
    each = f"each of {current().size} processes holds a part"
    progress.finish(f"its {size / 1e9:.1f} GB do not fit beside a training in {free / 1e9:.1f} GB: {each}")
    return engine


def whole_bytes(files: ModelFiles) -> int:
    """What a base model takes as a whole."""
    itemsize: int = preferred_dtype("cuda" if torch.cuda.is_available() else "cpu").itemsize
    return itemsize * sum(tensor_sizes(files.folder).values())


def free_bytes() -> int:
    """The memory that this process may take: its device's, or its share of the machine's."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    return free_memory_bytes() // int(os.environ.get("LOCAL_WORLD_SIZE", current().size))


def load_in_parts(files: ModelFiles, config: Any, device: str, precision: torch.dtype) -> Any:
    """Load this process's part of a model, frozen.

    Rows run one by one: whether they may share a pass is found with a whole model.
    """
    with _without_memory():
        model: Any = text_class(config.model_type).from_config(
            config, dtype=precision, attn_implementation=best_attention(config), trust_remote_code=False
        )
    model.requires_grad_(False)
    mesh = init_device_mesh(device, (current().size,))
    for part in (*decoder_layers(model), model):
        fully_shard(part, mesh=mesh)
    model.load_state_dict(_own_parts(files.folder, model), strict=False, assign=True)
    run_apart(model)
    without_split_logits(model)
    return model


@contextmanager
def _without_memory() -> Iterator[None]:
    """Make modules whose parameters have shapes only; buffers, which are computed, are real."""
    register = torch.nn.Module.register_parameter

    def shapes(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:  # a tied one must stay the same object
            parameter = torch.nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        register(module, name, parameter)

    torch.nn.Module.register_parameter = shapes
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register


def _own_parts(folder: Path, model: Any) -> dict[str, torch.Tensor]:
    """The parts of this process of all parameters, and persistent buffers, read from a model's files."""
    found: dict[str, torch.Tensor] = {}
    with ExitStack() as opened:
        files = [opened.enter_context(safe_open(file, "pt")) for file in loaded_weights(folder)]
        places = {name: file for file in files for name in file.keys()}  # noqa: SIM118
        names = dict(model.named_parameters(remove_duplicate=False))
        known: dict[int, torch.nn.Parameter] = {}  # by the parameter that it replaces: tied ones stay tied
        for name in sorted(names, key=lambda name: name not in places):
            old = names[name]
            if id(old) not in known:
                if name not in places or places[name].get_slice(name).get_shape() != list(old.shape):
                    raise ConfigError(
                        "not-distributed", f"the model cannot be read in parts: its files have no tensor {name} of the "
                        f"shape {list(old.shape)}", hint="train it where it fits on one device, or with `qlora`",
                    )  # fmt: skip
                known[id(old)] = _own_part(places[name].get_slice(name), old)
            found[name] = known[id(old)]
        for name in model.state_dict().keys() - names.keys() & places.keys():
            found[name] = places[name].get_tensor(name).to(model.device)
    return found


def _own_part(rows: Any, like: Any) -> torch.nn.Parameter:
    """The rows of a tensor in a file that this process holds of it."""
    shape, offset = compute_local_shape_and_global_offset(like.shape, like.device_mesh, like.placements)
    own = rows[offset[0] : offset[0] + shape[0]] if shape[0] else torch.empty(shape)
    part = DTensor.from_local(
        own.to(like.device_mesh.device_type, like.dtype), like.device_mesh, like.placements, run_check=False,
        shape=like.shape, stride=like.stride(),
    )  # fmt: skip
    return torch.nn.Parameter(part, False)
