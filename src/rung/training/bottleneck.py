"""Bottleneck adapters: a small network with a residual connection behind the layers' sublayers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from torch.nn.functional import gelu, linear
from torch.utils.hooks import RemovableHandle

from rung.errors import ArtifactError
from rung.training.changes import BASE_FINGERPRINT, read_into, write_tensors
from rung.training.hooked import Hooked
from rung.training.layers import attention, decoder_layers, feedforward

Placement = Literal["houlsby", "pfeiffer"]
NEAR_IDENTITY = 1e-2  # standard deviation of the first weights; Houlsby et al. find no loss up to it (section 3.6)


class Bottleneck(Hooked):
    """x + U gelu(D x + b) + c behind sublayers, before their own residual connection.

    Args:
        model: the base model.
        size: width of the bottleneck.
        placement: `houlsby` puts one behind attention and feed-forward network (Houlsby et al. 2019,
            https://arxiv.org/abs/1902.00751), `pfeiffer` behind the latter alone (Pfeiffer et al. 2021,
            https://arxiv.org/abs/2005.00247).

    Raises:
        EngineError: the sublayers of this architecture are not known.
    """

    def __init__(self, model: Any, size: int, placement: Placement) -> None:
        self.size, self.placement = size, placement
        self._places = places(model, placement)
        width = model.config.get_text_config().hidden_size
        self._parameters: dict[str, torch.nn.Parameter] = {}
        for name in self._places:
            for part, shape in (("down", (size, width)), ("up", (width, size))):
                weight = torch.nn.init.trunc_normal_(
                    torch.empty(shape), std=NEAR_IDENTITY, a=-2 * NEAR_IDENTITY, b=2 * NEAR_IDENTITY
                )
                for kind, values in (("weight", weight), ("bias", torch.zeros(shape[0]))):
                    # fp32 also on bf16 models: steps are small
                    parameter = torch.nn.Parameter(values.to(model.device), requires_grad=False)
                    self._parameters[f"{name}.{part}.{kind}"] = parameter

    @classmethod
    def from_dict(cls, model: Any, values: dict[str, Any]) -> Self:
        """Make the adapters that a bottleneck.json names."""
        size: Any = values.get("size")
        placement: Any = values.get("placement")
        if not isinstance(size, int) or size < 1 or placement not in get_args(Placement):
            raise ArtifactError(
                "adapter-mismatch",
                f"bottleneck.json asks for size {size!r} and placement {placement!r}",
                hint=f"size is a positive number, placement one of {', '.join(get_args(Placement))}",
            )
        return cls(model, size, placement)

    def hooks(self) -> Iterator[RemovableHandle]:
        """Hook the networks in."""
        for name, module in self._places.items():
            p = [self._parameters[f"{name}.{key}"] for key in ("down.weight", "down.bias", "up.weight", "up.bias")]
            yield module.register_forward_hook(_Hook(*p))

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Return weights and biases, as `layers.NUMBER.attention.down.weight`."""
        return dict(self._parameters)

    def write(self, folder: Path, fingerprint: str) -> None:
        """Write bottleneck.json and bottleneck.safetensors."""
        values = {BASE_FINGERPRINT: fingerprint, "size": self.size, "placement": self.placement}
        (folder / "bottleneck.json").write_text(json.dumps(values, indent=2), "utf-8")
        write_tensors(self._parameters, folder / "bottleneck.safetensors")

    def read(self, folder: Path) -> None:
        """Set weights and biases to those of a bottleneck.safetensors."""
        read_into(self._parameters, folder / "bottleneck.safetensors")


class _Hook:
    """What stands behind one sublayer while the adapters are on."""

    def __init__(self, *parameters: torch.nn.Parameter) -> None:
        self.parameters = parameters

    def __call__(self, module: Any, inputs: Any, output: Any) -> Any:
        del module, inputs
        if isinstance(output, tuple):  # attention gives its weights too, a mixture of experts its router's
            return (self._run(output[0]), *output[1:])
        return self._run(output)

    def _run(self, x: torch.Tensor) -> torch.Tensor:
        down, down_bias, up, up_bias = (p.to(x.dtype) for p in self.parameters)
        return x + linear(gelu(linear(x, down, down_bias)), up, up_bias)


def places(model: Any, placement: Placement) -> dict[str, torch.nn.Module]:
    """Return the sublayers that get a network, by name.

    Raises:
        EngineError: they are not known for this architecture.
    """
    found = {}
    for i, layer in enumerate(decoder_layers(model)):
        if placement == "houlsby":
            found[f"layers.{i}.attention"] = attention(model, layer)
        found[f"layers.{i}.feedforward"] = feedforward(model, layer)
    return found
