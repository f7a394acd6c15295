"""Which of a model's weights a PEFT adapter reaches: linear layers, experts, whole modules, single tokens."""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rung.engines.changes import pattern_problem
from rung.errors import ConfigError
from rung.models.checkpoint import OTHER_PARTS
from rung.training.changes import plain_parameters

# Settings of PEFT that say where an adapter is and how large: training that continues from one takes them from it.
PLACES = (
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern",
    "target_parameters", "modules_to_save", "trainable_token_indices", "ensure_weight_tying",
)  # fmt: skip
_UNREAD = OTHER_PARTS | {"embed_tokens_extend", "encoder_attn", "crossattention"}  # by text alone
SHOWN = 12  # names that an error lists
_LINEAR: weakref.WeakKeyDictionary[Any, tuple[list[str], list[str]]] = weakref.WeakKeyDictionary()


def linear_layers(model: Any) -> tuple[list[str], list[str]]:
    """The full names of the linear layers that adapters are put on, and of those that they are not put on.

    Left out are the output layer, what no text reaches (towers of a multimodal model, attention to what an encoder
    gives), the routers of a mixture of experts (training them unbalances the experts), layers whose weights are read
    past the adapter, and layers that only have a number (Zamba 2), which PEFT would find in every list. PEFT goes by
    last names: left out too are layers whose name it takes for that of experts, and what is no linear layer but is
    called like one. GPT-2's layers are transformers' own class, whose matrices are transposed; PEFT knows it. The first
    call remembers the names: later the modules may be PEFT's.
    """
    if model not in _LINEAR:
        from transformers.pytorch_utils import Conv1D

        head, text = model.get_output_embeddings(), set(map(id, model.get_decoder().modules()))
        routers = _experts(model)[1]
        kept: list[str] = []
        left: list[str] = []
        modules = dict(model.named_modules())
        for name, module in modules.items():
            if not isinstance(module, (torch.nn.Linear, Conv1D)) or module is head:
                continue
            numbered = name.rpartition(".")[2].isdigit()
            unread = id(module) not in text or _without_text(modules, name) or _is_read_past(modules, name)
            special = unread or name in routers or numbered
            (left if special else kept).append(name)
        taken = _taken_for_experts(model, {name.rpartition(".")[2] for name in kept})
        left += [name for name in kept if name.rpartition(".")[2] in taken]
        kept = [name for name in kept if name.rpartition(".")[2] not in taken]
        names = {name.rpartition(".")[2] for name in kept}
        left += [name for name in sorted(modules.keys() - {*kept, *left}) if name.rpartition(".")[2] in names]
        _LINEAR[model] = kept, left
    return _LINEAR[model]


def _taken_for_experts(model: Any, names: Iterable[str]) -> set[str]:
    """The names that PEFT replaces by those of all experts, which transformers 4 called so, in some mixtures of them.

    With such a name, PEFT trains every expert, and not the dense layers beside them that have it.
    """
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    taken = set()
    for name in names:
        config = LoraConfig(target_modules=[name])
        try:
            convert_peft_config_for_transformers(config, model, None)
        except ValueError:  # it is fused with others
            taken.add(name)
        else:
            taken |= {name} - config.target_modules
    return taken


def _without_text(modules: Mapping[str, Any], name: str) -> bool:
    """Whether the layer is in a tower within the decoder (Phi-4-multimodal, GIT), or attends to an encoder."""
    crossing = any("CrossAttentionDecoderLayer" in type(modules.get(above)).__name__ for above in _above(name))
    return crossing or not _UNREAD.isdisjoint(name.split("."))


def _is_read_past(modules: Mapping[str, Any], name: str) -> bool:
    """Whether the weights are read past the adapter: by the kernels of Mamba, and by Gemma 3n while it trains."""
    parent, _, last = name.rpartition(".")
    in_mamba = last == "out_proj" and hasattr(modules[parent], "A_log") and hasattr(modules[parent], "D")
    return in_mamba or last == "correction_coefs"


def _experts(model: Any) -> tuple[list[str], set[str]]:
    """The names of the tensors that hold the weights of all experts of a layer, and of the modules that route to them.

    Every family has its own names, so the shapes tell: beside a tensor of three dimensions, whose first is the number
    of experts, there is a matrix with an output for each of them. DBRX stacks its experts in two dimensions, where PEFT
    cannot reach them.
    """
    modules, tensors = dict(model.named_modules()), plain_parameters(model)
    # A matrix in 4 bits is packed; its module knows the number of outputs.
    outputs = {
        name: getattr(modules.get(name.rpartition(".")[0]), "out_features", len(p))
        for name, p in tensors.items()
        if p.dim() == 2
    }
    experts: list[str] = []
    routers: set[str] = set()
    for name, p in tensors.items():
        owner = name.rpartition(".")[0]
        count = len(p) if p.dim() == 3 else getattr(modules.get(owner), "moe_num_experts", 0)
        if not count or isinstance(modules.get(owner), torch.nn.Conv1d):
            continue
        block = owner.rpartition(".")[0]
        while block and not isinstance(modules.get(block), torch.nn.ModuleList):  # that is the list of layers
            beside = [n for n in outputs if n.startswith(f"{block}.") and not n.startswith(f"{owner}.")]
            if found := [n for n in beside if outputs[n] == count]:
                experts += [name] if p.dim() == 3 else []
                routers.update(n.rpartition(".")[0] for n in found)
                break
            block = block.rpartition(".")[0]
    return experts, routers


def all_linear(model: Any) -> dict[str, Any]:
    """PEFT's settings for an adapter on all of `linear_layers`, by the layers' last names.

    PEFT's own word `all-linear` must not be used next to another adapter: it would take that one's matrices for layers.
    """
    kept, left = linear_layers(model)
    names = sorted({name.rpartition(".")[2] for name in kept})
    shared = {above for name in kept for above in _above(f"{_without_numbers(name)}.")}
    clashing = {_pattern(name, shared) for name in left if name.rpartition(".")[2] in names}
    excluded = {"exclude_modules": "|".join(sorted(clashing))} if clashing else {}
    return {"target_modules": names, **excluded}


def _pattern(name: str, shared: Container[str]) -> str:
    """A regular expression for the whole branch of the model with this name that has no name of `shared`."""
    plain = _without_numbers(name)
    branch = next((above for above in _above(f"{plain}.") if above not in shared), None)
    if branch is None:  # it is like others in other layers
        return re.escape(name)
    escaped = re.sub(r"\\\.N(?=\\\.|$)", r"\\.\\d+", re.escape(branch))
    return escaped if branch == plain else rf"{escaped}\..*"


def _without_numbers(name: str) -> str:
    """The name with N for every number between dots, which no name of a module is."""
    return re.sub(r"\.\d+(?=\.)", ".N", name)


def expert_parameters(model: Any) -> list[str]:
    """The names, within a layer, of the tensors that hold the weights of all experts: PEFT's `target_parameters`."""
    return sorted({re.sub(r"^.*\.\d+\.", "", name) for name in _experts(model)[0]})


def chosen_places(
    model: Any, *, target_modules: Sequence[str], target_parameters: Sequence[str], modules_to_save: Sequence[str],
    patterns: Mapping[str, Mapping[str, int]],
) -> dict[str, Any]:  # fmt: skip
    """PEFT's settings for the places that a user names; by default all linear layers.

    `patterns` holds the settings whose keys are regular expressions for layers, by their names.

    Raises:
        ConfigError: `bad-setting`: a name stands for nothing in the model. The message lists those that there are.
    """
    places = all_linear(model)
    linear = linear_layers(model)[0]
    if target_modules:
        _check_names("target_modules", target_modules, linear)
        places["target_modules"] = list(target_modules)
    targeted = [name for name in linear if _ends_with(name, places["target_modules"])]
    experts = expert_parameters(model) if target_parameters else []
    if unknown := [name for name in target_parameters if name not in experts]:
        raise _unknown("target_parameters", unknown[0], experts, "the tensors of experts are")
    targeted += [name.rpartition(".")[0] for name in target_parameters]
    for setting, pattern in patterns.items():
        for key in pattern:
            if problem := pattern_problem(key):
                hint = "name the layers one by one, such as `q_proj`"
                raise ConfigError("bad-setting", f"{setting}: {key[:80]!r}: {problem}", hint=hint)
            if not any(re.match(rf"(.*\.)?({key})$", name) for name in targeted):
                raise _unknown(setting, key, _last_names(targeted), "the adapted layers are")
    modules = {module for name in plain_parameters(model) for module in _above(name)}
    modules |= {name for name, module in model.named_modules() if module is model.get_output_embeddings()}  # tied
    modules = {name for name in modules if not isinstance(model.get_submodule(name), torch.nn.ModuleList)}
    _check_names("modules_to_save", modules_to_save, sorted(modules))
    return {
        **places, **{setting: dict(pattern) for setting, pattern in patterns.items() if pattern},
        "target_parameters": list(target_parameters) or None, "modules_to_save": list(modules_to_save) or None,
        "ensure_weight_tying": bool(modules_to_save) and model.config.get_text_config().tie_word_embeddings,
    }  # fmt: skip


def places_of(folder: Path, model: Any) -> dict[str, Any]:
    """PEFT's settings for the places of the adapter in `folder`."""
    file = folder / "adapter_config.json"
    values = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    places = {key: values[key] for key in PLACES if values.get(key) is not None}
    return all_linear(model) | places if places.get("target_modules", "all-linear") == "all-linear" else places


def reached_share(model: Any, config: Any) -> float:
    """The share of the weights in the text model's matrices, embeddings and output layer aside, that it updates."""
    from peft.tuners.tuners_utils import check_target_module_exists

    embeddings = {id(layer.weight) for layer in (model.get_input_embeddings(), model.get_output_embeddings())}
    text, modules_by_name = set(map(id, model.get_decoder().parameters())), dict(model.named_modules())
    reached, whole = 0, 0
    for name, p in plain_parameters(model).items():
        if p.dim() < 2 or id(p) in embeddings or id(p) not in text or _without_text(modules_by_name, name):
            continue
        whole += p.numel()
        module = name.rpartition(".")[0]
        parameters, modules = config.target_parameters or (), config.modules_to_save or ()
        found = check_target_module_exists(config, module) if config.target_modules else False
        updated = name.endswith(".weight") and bool(found) and module in linear_layers(model)[0]
        if updated or _ends_with(name, parameters) or any(_ends_with(m, modules) for m in _above(name)):
            reached += p.numel()
    return reached / whole if whole else 0.0


def _above(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:i]) for i in range(1, len(parts)))


def _ends_with(name: str, ends: Iterable[str]) -> bool:
    return any(name == end or name.endswith(f".{end}") for end in ends)


def _check_names(setting: str, wanted: Sequence[str], names: Sequence[str]) -> None:
    for one in wanted:
        if not any(_ends_with(name, (one,)) for name in names):
            raise _unknown(setting, one, _last_names(names), "there are")


def _last_names(names: Iterable[str]) -> list[str]:
    return sorted({last for name in names if not (last := name.rpartition(".")[2]).isdigit()})


def _unknown(setting: str, wanted: str, names: Sequence[str], there: str) -> ConfigError:
    listed = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    hint = f"{there} {listed}" if names else "this model has none"
    return ConfigError("bad-setting", f"{setting}: nothing in the model is named {wanted!r}", hint=hint)
