"""LLaMA-Adapter and bottleneck adapters: trained parts that forward hooks add to a model's sublayers.

LLaMA-Adapter is written and read in PEFT's format, and equal to PEFT where PEFT's own is right. PEFT does not run it,
because its own version

* divides by the wrong number of heads where the heads together are not as wide as the hidden state, and fails;
* adds the output projection's bias a second time, so that a closed gate changes the model;
* knows three model types, leaves out the query norms of newer ones, and cannot be switched off twice.
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, cast, get_args

import torch
from torch.nn.functional import gelu, linear
from torch.utils.hooks import RemovableHandle

from rung.errors import ArtifactError
from rung.training.changes import Hooked, mismatch, read_into, write_settings, write_tensors
from rung.training.layers import decoder_layers, sublayer, unknown_layers
from rung.training.peft import count_setting, peft, write_peft_folder

# `_queries` is known to compute the queries of these as they do themselves; a test compares the two for each.
MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "granite")
Placement = Literal["houlsby", "pfeiffer"]
Parts = dict[str, torch.Tensor]  # of one module, by name
NEAR_IDENTITY = 1e-2  # standard deviation of the first weights; Houlsby et al. see no loss up to it (section 3.6)


class AddedParts(Hooked):
    """Trained parts whose output forward hooks add to that of some modules.

    `modules` are named by what begins their parameters' names. `initial` makes the initial values of one module's
    parts, by name.
    """

    file: str  # safetensors

    def __init__(self, model: Any, modules: dict[str, torch.nn.Module], initial: Callable[[], Parts]) -> None:
        self._modules = modules
        self._parts = {  # fp32 also on bf16 models: steps are small
            name: {part: torch.nn.Parameter(value.to(model.device), False) for part, value in initial().items()}
            for name in modules
        }

    @abstractmethod
    def added(self, parts: Parts, module: Any, args: Any, kwargs: dict[str, Any], output: torch.Tensor) -> torch.Tensor:
        """Compute what is added to the output of a module that was called with `args` and `kwargs`."""

    def hooks(self) -> Iterator[RemovableHandle]:
        """Hook the parts in."""
        for name, module in self._modules.items():
            yield module.register_forward_hook(partial(self._hook, self._parts[name]), with_kwargs=True)

    def _hook(self, parts: Parts, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        if isinstance(output, tuple):  # attention returns its weights too, a mixture of experts its router's
            return (output[0] + self.added(parts, module, args, kwargs, output[0]), *output[1:])
        return output + self.added(parts, module, args, kwargs, output)

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The parts, as MODULE.PART."""
        return {f"{name}.{part}": p for name, parts in self._parts.items() for part, p in parts.items()}

    def read(self, folder: Path) -> None:
        """Set the parts to those of a folder."""
        read_into(self.parameters(), folder / self.file)


class AdaptionPrompt(AddedParts):
    """Prompts for the upper layers, attended to separately from the text and added through a gate.

    output = attention(x) + (gate * softmax(q k' / sqrt(d)) v) W_o, with k and v the layer's own projections of its
    trained prompt. The gate is one number per layer, zero at first (Zhang et al. 2023,
    https://arxiv.org/abs/2303.16199; one gate per layer, without the tanh, as PEFT has it). The last `layers` layers
    each get a prompt of `length` tokens.
    """

    file = "adapter_model.safetensors"

    def __init__(self, model: Any, length: int, layers: int) -> None:
        check(model)
        self.length, self.layers = length, layers
        modules = [sublayer(model, layer, "attention") for layer in decoder_layers(model)][-layers:]
        names = {module: name for name, module in model.named_modules()}
        width = model.config.get_text_config().hidden_size
        super().__init__(
            model, {f"base_model.model.{names[module]}": module for module in modules},  # as PEFT names them
            lambda: {"adaption_prompt": torch.randn(1, length, width), "adaption_gate": torch.zeros(1)},
        )  # fmt: skip

    @classmethod
    def from_dict(cls, model: Any, values: dict[str, Any]) -> Self:
        """Make the prompts that an adapter_config.json names."""
        layers, depth = count_setting(values, "adapter_layers"), len(decoder_layers(model))
        if layers > depth:
            raise mismatch(f"the adapter has prompts for {layers} layers, the model has {depth}")
        return cls(model, count_setting(values, "adapter_len"), layers)

    def added(self, parts: Parts, module: Any, args: Any, kwargs: dict[str, Any], output: torch.Tensor) -> torch.Tensor:
        """Attend from the layer's queries to its prompt."""
        del output
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        query = _queries(module, hidden, kwargs["position_embeddings"])
        prompt = parts["adaption_prompt"].to(hidden.dtype)
        keys, values = (
            project(prompt).view(1, prompt.shape[1], -1, module.head_dim) for project in (module.k_proj, module.v_proj)
        )
        if hasattr(module, "k_norm"):
            keys = module.k_norm(keys)
        groups = query.shape[1] // keys.shape[2]
        keys, values = (t.transpose(1, 2).repeat_interleave(groups, 1) for t in (keys, values))
        weights = torch.softmax(query @ keys.transpose(2, 3) * module.scaling, -1, dtype=torch.float32)
        read = (parts["adaption_gate"] * weights).to(query.dtype) @ values
        return linear(read.transpose(1, 2).reshape(*hidden.shape[:-1], -1), module.o_proj.weight)

    def write(self, folder: Path, fingerprint: str) -> None:
        """Write PEFT's two files."""
        target = next(iter(self._modules)).rpartition(".")[2]
        config = peft().AdaptionPromptConfig(
            adapter_len=self.length, adapter_layers=self.layers, target_modules=target, task_type="CAUSAL_LM"
        )
        write_peft_folder(folder, config, dict(self.parameters()), fingerprint)


def _queries(module: Any, hidden: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Compute the queries of a layer again, shape [rows, heads, tokens, size]: attention returns only its output."""
    query = module.q_proj(hidden).view(*hidden.shape[:-1], -1, module.head_dim)
    if hasattr(module, "q_norm"):
        query = module.q_norm(query)
    query = query.transpose(1, 2)
    rotate = sys.modules[type(module).__module__].apply_rotary_pos_emb
    rotated: torch.Tensor = rotate(query, query[:, :1], *rotation)[0]
    return rotated


def check(model: Any) -> None:
    """Raise an EngineError unless the model's attention is of a known kind."""
    kind = model.config.get_text_config().model_type
    if kind not in MODEL_TYPES:
        raise unknown_layers(
            f"LLaMA-Adapter has to compute the queries of a layer again, and is not known to be right for {kind} models"
        )


class Bottleneck(AddedParts):
    """Small networks of width `size` after sublayers, before their residual connection: x + U gelu(D x + b) + c.

    The placement `houlsby` puts one after attention and feed-forward network (Houlsby et al. 2019,
    https://arxiv.org/abs/1902.00751), `pfeiffer` only after the latter (Pfeiffer et al. 2021,
    https://arxiv.org/abs/2005.00247).
    """

    file = "bottleneck.safetensors"

    def __init__(self, model: Any, size: int, placement: Placement) -> None:
        self.size, self.placement = size, placement
        width = model.config.get_text_config().hidden_size

        def weight(*shape: int) -> torch.Tensor:
            bound = 2 * NEAR_IDENTITY
            return torch.nn.init.trunc_normal_(torch.empty(shape), std=NEAR_IDENTITY, a=-bound, b=bound)

        def initial() -> Parts:
            down = {"down.weight": weight(size, width), "down.bias": torch.zeros(size)}
            return down | {"up.weight": weight(width, size), "up.bias": torch.zeros(width)}

        super().__init__(model, sublayers(model, placement), initial)

    @classmethod
    def from_dict(cls, model: Any, values: dict[str, Any]) -> Self:
        """Make the networks that a bottleneck.json names."""
        size, placement = values.get("size"), values.get("placement")
        if not isinstance(size, int) or size < 1 or placement not in get_args(Placement):
            raise ArtifactError(
                "adapter-mismatch", f"bottleneck.json asks for size {size!r} and placement {placement!r}",
                hint=f"size is a positive number, placement one of {', '.join(get_args(Placement))}",
            )  # fmt: skip
        return cls(model, size, cast("Placement", placement))

    def added(self, parts: Parts, module: Any, args: Any, kwargs: dict[str, Any], output: torch.Tensor) -> torch.Tensor:
        """Run the network on the sublayer's output."""
        del module, args, kwargs
        p = {name: value.to(output.dtype) for name, value in parts.items()}
        return linear(gelu(linear(output, p["down.weight"], p["down.bias"])), p["up.weight"], p["up.bias"])

    def write(self, folder: Path, fingerprint: str) -> None:
        """Write bottleneck.json and bottleneck.safetensors."""
        write_settings(folder / "bottleneck.json", fingerprint, {"size": self.size, "placement": self.placement})
        write_tensors(self.parameters(), folder / self.file)


def sublayers(model: Any, placement: Placement) -> dict[str, torch.nn.Module]:
    """The sublayers that get a network, by name; an EngineError if this architecture's are not known."""
    modules = {}
    for i, layer in enumerate(decoder_layers(model)):
        if placement == "houlsby":
            modules[f"layers.{i}.attention"] = sublayer(model, layer, "attention")
        modules[f"layers.{i}.feedforward"] = sublayer(model, layer, "feed-forward network")
    return modules
