"""LLaMA-Adapter: learnt tokens that the upper layers attend to, through gates that are closed at first.

Written and read in PEFT's format, and equal to PEFT where PEFT's own is right, but not run by it, because PEFT

* divides by the wrong number of heads where the heads are not as wide together as the hidden state, and fails;
* adds the output projection's bias a second time, so that a closed gate changes the model;
* knows three model types, leaves out the query norms of newer ones, and cannot be switched off twice.

Here it is a hook behind each attention, so no module is replaced and every other change gets on with it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from torch.nn.functional import gelu, linear
from torch.utils.hooks import RemovableHandle

from rung.engines.changes import BASE_FINGERPRINT
from rung.errors import ArtifactError
from rung.training.changes import Hooked, read_into, write_tensors
from rung.training.layers import attention, decoder_layers, feedforward, unknown_layers
from rung.training.peft import peft, write_folder

# Their queries are known to be made as `_queries` makes them; a test compares the two for each.
MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "granite")


class AdaptionPrompt(Hooked):
    """Prompts of some length for the upper layers, attended to apart from the text and added through a gate.

    output = attention(x) + (gate * softmax(q k' / sqrt(d)) v) W_o, with k and v the layer's own projections of its
    learnt prompt. The gate is one number per layer, zero at first (Zhang et al. 2023, https://arxiv.org/abs/2303.16199;
    one gate per layer, without the tanh, as PEFT has it).

    Args:
        model: the base model.
        length: tokens of each prompt.
        layers: how many layers get one, counted from the output.
    """

    def __init__(self, model: Any, length: int, layers: int) -> None:
        check(model)
        self.model, self.length, self.layers = model, length, layers
        modules = [attention(model, layer) for layer in decoder_layers(model)][-layers:]
        names = {module: name for name, module in model.named_modules()}
        self._modules = {names[module]: module for module in modules}

        def parameter(values: torch.Tensor) -> torch.nn.Parameter:  # fp32 also on bf16 models: steps are small
            return torch.nn.Parameter(values.to(model.device), requires_grad=False)

        width = model.config.get_text_config().hidden_size
        self._prompts = {name: parameter(torch.randn(1, length, width)) for name in self._modules}
        self._gates = {name: parameter(torch.zeros(1)) for name in self._modules}

    @classmethod
    def from_dict(cls, model: Any, values: dict[str, Any]) -> Self:
        """Make the prompts that an adapter_config.json names."""
        layers, depth = int(values["adapter_layers"]), len(decoder_layers(model))
        if layers > depth:
            raise ArtifactError(
                "adapter-mismatch",
                f"the adapter has prompts for {layers} layers, the model has {depth}",
                hint="open it on the model that it was trained on",
            )
        return cls(model, int(values["adapter_len"]), layers)

    def hooks(self) -> Iterator[RemovableHandle]:
        """Hook the prompts in."""
        for name, module in self._modules.items():
            hook = _Hook(self._prompts[name], self._gates[name])
            yield module.register_forward_hook(hook, with_kwargs=True)

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Return prompts and gates by the names that PEFT gives them."""
        named = {}
        for name in self._modules:
            named[f"base_model.model.{name}.adaption_prompt"] = self._prompts[name]
            named[f"base_model.model.{name}.adaption_gate"] = self._gates[name]
        return named

    def write(self, folder: Path, fingerprint: str) -> None:
        """Write PEFT's two files."""
        target = next(iter(self._modules)).rpartition(".")[2]
        config = peft().AdaptionPromptConfig(
            adapter_len=self.length, adapter_layers=self.layers, target_modules=target, task_type="CAUSAL_LM"
        )
        write_folder(folder, config, dict(self.parameters()), fingerprint)

    def read(self, folder: Path) -> None:
        """Set prompts and gates to those of a PEFT folder."""
        read_into(self.parameters(), folder / "adapter_model.safetensors")


class _Hook:
    """What stands behind one attention while the prompts are on."""

    def __init__(self, prompt: torch.nn.Parameter, gate: torch.nn.Parameter) -> None:
        self.prompt, self.gate = prompt, gate

    def __call__(self, module: Any, args: Sequence[Any], kwargs: dict[str, Any], output: Any) -> Any:
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        query = _queries(module, hidden, kwargs["position_embeddings"])
        prompt = self.prompt.to(hidden.dtype)
        keys, values = (
            project(prompt).view(1, prompt.shape[1], -1, module.head_dim) for project in (module.k_proj, module.v_proj)
        )
        if hasattr(module, "k_norm"):
            keys = module.k_norm(keys)
        groups = query.shape[1] // keys.shape[2]
        keys, values = (t.transpose(1, 2).repeat_interleave(groups, 1) for t in (keys, values))
        weights = torch.softmax(query @ keys.transpose(2, 3) * module.scaling, -1, dtype=torch.float32)
        read = (self.gate * weights).to(query.dtype) @ values
        read = read.transpose(1, 2).reshape(*hidden.shape[:-1], -1)
        out, *rest = output
        return (out + linear(read, module.o_proj.weight), *rest)


def _queries(module: Any, hidden: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Return the queries that the layer itself makes of its input, shape [rows, heads, tokens, size].

    They are made again: attention gives back its output alone.
    """
    query = module.q_proj(hidden).view(*hidden.shape[:-1], -1, module.head_dim)
    if hasattr(module, "q_norm"):
        query = module.q_norm(query)
    query = query.transpose(1, 2)
    rotate = sys.modules[type(module).__module__].apply_rotary_pos_emb
    rotated: torch.Tensor = rotate(query, query[:, :1], *rotation)[0]
    return rotated


def check(model: Any) -> None:
    """Check that the model's attention is of a known kind.

    Raises:
        EngineError: it is not.
    """
    kind = model.config.get_text_config().model_type
    if kind not in MODEL_TYPES:
        raise unknown_layers(
            f"LLaMA-Adapter has to make the queries of a layer again, and is not known to be right for {kind} models"
        )


# --------------------
# Bottleneck adapters: a small network with a residual connection behind the layers' sublayers.


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
            yield module.register_forward_hook(_BottleneckHook(*p))

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


class _BottleneckHook:
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
