"""PEFT adapters as changes of a base model: LoRA and its variants, AdaLoRA, and IA3."""

from __future__ import annotations

import itertools
import json
import math
import tempfile
import warnings
import weakref
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Self

import torch

from rung.engines.changes import BASE_FINGERPRINT, stands_alone
from rung.errors import ArtifactError, EngineError, needed_by, suggest
from rung.training.changes import (
    OUTPUT,
    Change,
    cannot_merge,
    check_supported,
    is_set,
    load_tensors,
    mismatch,
    plain_parameters,
    read_tensors,
    tied_output,
    unsupported_adapter,
    write_tensors,
)
from rung.training.kernels import lean_lora
from rung.training.targets import linear_layers

_numbers = itertools.count()
LORA_VARIANTS = ("use_dora", "velora_config")  # those that compute the same here as in PEFT (VeLoRA: backward only)
OTHER_WRAPPERS = ("POLY", "SHADOW", "XLORA")  # types of which PEFT's own wrapper computes a part
# PEFT's wrapper of each model that has adapters on it; the adapters themselves keep it alive.
_WRAPPERS: weakref.WeakKeyDictionary[Any, weakref.ref[Any]] = weakref.WeakKeyDictionary()


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Ignore PEFT's warnings about what Rung checks itself, such as a second adapter on the same model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def peft() -> Any:
    """Import PEFT, or say what to install."""
    with needed_by("an adapter", error=EngineError), quiet_peft():
        import peft as library
    return library


class PeftAdapter(Change):
    """One PEFT adapter on a model, next to others of its type, or alone where it holds more than updates of layers.

    PEFT changes the base model's modules in place, so the base model itself runs the adapter. PEFT's wrapper, which all
    adapters of a model share, only switches. The adapter starts as PEFT initializes it.

    Raises:
        ArtifactError: the model has none of the layers that the adapter updates.
    """

    def __init__(self, model: Any, config: Any) -> None:
        self.base, self.name = model, f"a{next(_numbers)}"  # a name must not be an attribute of modules
        self.family = self.name if stands_alone(vars(config)) else str(config.peft_type.value)
        plain_parameters(model)
        linear_layers(model)
        wrapper = _WRAPPERS[model]() if model in _WRAPPERS else None
        before = [(module, dict(module._modules)) for module in model.modules()]
        try:
            with quiet_peft():
                if wrapper is not None:
                    wrapper.add_adapter(self.name, config)
                else:
                    wrapper = peft().get_peft_model(model, config, adapter_name=self.name)
        except (ValueError, TypeError, NotImplementedError) as error:
            for module, children in before:  # PEFT may have changed some of the layers
                module._modules.clear()
                module._modules.update(children)
            if "not found in the base model" not in str(error):
                raise unsupported_adapter(f"does not go on the model: PEFT says {error}") from error
            targets = config.target_modules
            names = targets if isinstance(targets, str) else " or ".join(sorted(targets))
            raise mismatch(f"the model has no layer {names}") from error
        self.wrapper: Any = wrapper
        _WRAPPERS[model] = weakref.ref(wrapper)
        self._whole = _whole_modules(model)
        model.requires_grad_(False)
        self.disable()

    @classmethod
    def from_dict(cls, model: Any, values: dict[str, Any]) -> Self:
        """Put on a fresh adapter with the configuration of an adapter_config.json.

        Raises:
            EngineError: PEFT does not take it off a model cleanly, or Rung does not run it (see `check_supported`).
            ArtifactError: the model has none of the layers that it updates.
        """
        check_supported(values)
        config = peft_config(values)
        if config.is_prompt_learning or config.peft_type.value in OTHER_WRAPPERS:
            raise unsupported_adapter(f"works outside the model's layers (peft_type: {config.peft_type.value})")
        config.inference_mode = True
        return cls(model, config)

    def enable(self) -> None:
        """Make this adapter the active one."""
        trained = {name: p.requires_grad for name, p in self.base.named_parameters()}
        self.wrapper.base_model.enable_adapter_layers()
        self.wrapper.set_adapter(self.name)
        for name, parameter in self.base.named_parameters():
            parameter.requires_grad_(trained[name])  # PEFT trains what is active and freezes what is not

    def disable(self) -> None:
        """Let no adapter be active."""
        self.wrapper.base_model.disable_adapter_layers()

    def remove(self) -> None:
        """Take the adapter off; with the last one, PEFT's layers go too."""
        with quiet_peft():
            if len(self.wrapper.peft_config) == 1:
                for parent, key, wrapper in self._whole:  # PEFT would leave the trained module in the base model
                    setattr(parent, key, wrapper.original_module)
                self.wrapper.unload()
                del _WRAPPERS[self.base]
                return
            self.wrapper.delete_adapter(self.name)
        # PEFT still names the deleted one as active.
        self.wrapper.set_adapter(next(iter(self.wrapper.peft_config)))
        self.disable()

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The adapter's own parameters."""
        return {name: p for name, p in self.base.named_parameters() if self.name in name.split(".")}

    def write(self, folder: Path, fingerprint: str) -> None:
        """Write PEFT's two files."""
        write_peft_folder(folder, self.wrapper.peft_config[self.name], self._state(), fingerprint)

    def read(self, folder: Path) -> None:
        """Set the adapter's tensors to those of a PEFT folder."""
        base = {name.replace(".base_layer.", "."): tensor for name, tensor in self.base.state_dict().items()}
        tensors = read_tensors(folder / "adapter_model.safetensors", self._state(), base)
        with quiet_peft():
            peft().set_peft_model_state_dict(self.wrapper, tensors, adapter_name=self.name)

    def _state(self) -> dict[str, torch.Tensor]:
        # Without the base model's embeddings, which PEFT would add from layers that other adapters update, too.
        state: dict[str, torch.Tensor] = peft().get_peft_model_state_dict(
            self.wrapper, adapter_name=self.name, save_embedding_layers=False
        )
        return state

    def merged(self) -> dict[str, torch.Tensor]:
        """The base model's tensors with the adapter in them, as PEFT merges them; nothing is changed."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        if getattr(self.base, "is_quantized", False):
            raise cannot_merge("the base model is quantized, and the update would be lost in its rounding")
        names = {id(p): name for name, p in plain_parameters(self.base).items()}
        places = Counter(id(p) for module in self.base.modules() for p in module._parameters.values())
        found: dict[int, list[torch.Tensor]] = defaultdict(list)
        for layer in self.base.modules():
            if not isinstance(layer, BaseTunerLayer) or not layer.get_base_layer()._parameters:
                continue
            own = {id(p): p for p in layer.get_base_layer().parameters(recurse=False)}
            before = {key: p.data for key, p in own.items()}
            try:
                layer.merge(safe_merge=True, adapter_names=[self.name])  # into a copy of the tensors' contents
                for key, p in own.items():
                    if p.data_ptr() != before[key].data_ptr():
                        found[key].append(p.data)
            except ValueError as broken:
                raise cannot_merge(f"the merged weights are not finite ({broken})") from broken
            finally:
                layer.merged_adapters.clear()
                for key, p in own.items():
                    p.data = before[key]
        for key, values in found.items():  # Zamba's layers share the weights of one, and each has its own update
            if len(values) < places[key] or not all(torch.equal(values[0], one) for one in values[1:]):
                raise cannot_merge(f"{places[key]} layers share {names[key]}, and it updates each in its own way")
        return {names[key]: values[0] for key, values in found.items()} | self._whole_tensors(names)

    def _whole_tensors(self, names: dict[int, str]) -> dict[str, torch.Tensor]:
        """The tensors of the modules that are trained as a whole, by the base model's names."""
        tied, whole = tied_output(self.base), {}
        output, own_output = self.base.get_output_embeddings(), False
        for _, _, wrapper in self._whole:
            if self.name in getattr(wrapper, "modules_to_save", {}):
                module = wrapper.modules_to_save[self.name]
                for key, p in wrapper.original_module.named_parameters():
                    name = OUTPUT if tied and wrapper is output else names[id(p)]
                    own_output |= name == OUTPUT
                    whole[name] = module.get_parameter(key).data
        if tied and not own_output and names[id(self.base.get_input_embeddings().weight)] in whole:
            whole[OUTPUT] = output.weight.data  # it keeps the old embeddings
        return whole

    def lean(self) -> AbstractContextManager[None]:
        """Run plain LoRA layers without PEFT's extra operations."""
        return lean_lora(self.base, self.name)


def peft_config(values: dict[str, Any]) -> Any:
    """PEFT's configuration of an adapter_config.json; what it does not set has PEFT's default.

    Raises:
        EngineError: `adapter-unsupported`: it has a type or settings that the installed PEFT does not know, or a
            variant of LoRA that Rung does not.
        ArtifactError: `artifact-damaged`: a setting has a value that it cannot have.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    if (kind := PEFT_TYPE_TO_CONFIG_MAPPING.get(values["peft_type"])) is None:
        problem = f"the adapter's peft_type is {values['peft_type']!r}, which PEFT {peft().__version__} lacks"
        hint = suggest(values["peft_type"].upper(), [one.value for one in PEFT_TYPE_TO_CONFIG_MAPPING])
        raise EngineError("adapter-unsupported", problem, hint=hint)
    known = {field.name for field in fields(kind)}
    if unknown := sorted(key for key, value in values.items() if key not in known and value):
        problem = (
            f"the adapter has the setting {unknown[0]}: {values[unknown[0]]!r}, which PEFT {peft().__version__} lacks"
        )
        hint = "merge it with the PEFT that made it (merge_and_unload), and use the merged folder as the model"
        raise EngineError("adapter-unsupported", problem, hint=hint)
    for field in fields(kind):
        value = values.get(field.name, field.default)
        if type(field.default) in (int, float) and type(value) not in (int, float):
            raise _bad_setting(f"{field.name} is {json.dumps(value)}, not a number such as {field.default}")
        if is_set(value) and field.metadata.get("is_lora_variant") and field.name not in LORA_VARIANTS:
            raise unsupported_adapter(f"is a variant of LoRA that Rung does not run ({field.name})")
    try:
        return kind(**{key: value for key, value in values.items() if key in known})
    except (TypeError, ValueError, AttributeError) as error:
        raise _bad_setting(f"PEFT does not take its settings: {error}") from error


def count_setting(values: dict[str, Any], key: str) -> int:
    """A setting of an adapter_config.json that must be a positive whole number, as PEFT has no default for it."""
    value = values.get(key)
    if type(value) is not int or value < 1:
        raise _bad_setting(f"{key} is {json.dumps(value)}, not a positive whole number")
    return value


def _bad_setting(problem: str) -> ArtifactError:
    hint = "correct adapter_config.json, or save the adapter again with PEFT's save_pretrained"
    return ArtifactError("artifact-damaged", problem, hint=hint)


def _whole_modules(model: Any) -> list[tuple[Any, str, Any]]:
    """Where PEFT has put a wrapper around a module or around tokens: the module above it, its name there, itself."""
    from peft.utils.other import AuxiliaryTrainingWrapper

    return [
        (parent, key, child)
        for parent in list(model.modules())
        for key, child in parent._modules.items()
        if isinstance(child, AuxiliaryTrainingWrapper)
    ]


def write_peft_folder(folder: Path, config: Any, tensors: dict[str, torch.Tensor], fingerprint: str) -> None:
    """Write a PEFT folder whose configuration also names the base model's fingerprint."""
    with tempfile.TemporaryDirectory() as scratch, quiet_peft():
        config.save_pretrained(scratch)
        values = json.loads((Path(scratch) / "adapter_config.json").read_text("utf-8"))
    # The fingerprint identifies the base model; a local path means nothing elsewhere.
    values |= {BASE_FINGERPRINT: fingerprint, "base_model_name_or_path": "", "inference_mode": True}
    (folder / "adapter_config.json").write_text(json.dumps(values, indent=2, sort_keys=True), "utf-8")
    # Copies: embeddings that are trained with the output layer that they are tied to are written twice, as by PEFT.
    write_tensors({name: tensor.clone() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")


# ---- AdaLoRA
#
# PEFT keeps the budget. What it does inside its own forward pass (the penalty that keeps the vectors orthogonal) and in
# its own training script (the allocation after each step), the training loop here asks for, as it runs the base model
# itself. When training is over the update is a product of two matrices, so it is written as plain LoRA: the same
# update, read by everything that reads LoRA.

NOT_PLAIN = ("use_dora", "lora_bias", "modules_to_save", "trainable_token_indices", "layer_replication")
MOMENTS = ("exp_avg_ipt", "exp_avg_unc")  # of PEFT's allocator: importance and its uncertainty, averaged


class AdaLora(PeftAdapter):
    """An adapter W + B diag(E) A that gives up the singular values E that matter least.

    The budget of singular values moves to the layers that need it (Zhang et al. 2023,
    https://arxiv.org/abs/2303.10512). It falls after the share `start` of the steps, and has fallen for the share `end`
    of them; the configuration's own schedule is set here, when the number of steps is known.
    """

    def __init__(self, model: Any, config: Any, *, start: float, end: float) -> None:
        super().__init__(model, config)
        self.start, self.end = start, end
        self._config = self.wrapper.peft_config[self.name]
        self._allocator = self.wrapper.base_model.rankallocator
        names = super().parameters()
        self._parameters = {name: p for name, p in names.items() if ".ranknum." not in name}  # that is a constant
        self._layers = {name: m for name, m in model.named_modules() if self.name in getattr(m, "lora_E", {})}

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Vectors and singular values of every layer."""
        return dict(self._parameters)

    def penalty(self) -> torch.Tensor:
        """How far the vectors are from orthogonal, as PEFT's forward pass adds it to the loss."""
        parts = []
        for name, p in self._parameters.items():
            if ".lora_E." not in name:
                covariance = p @ p.T if ".lora_A." in name else p.T @ p
                identity = torch.eye(len(covariance), dtype=p.dtype, device=p.device)
                parts.append(torch.linalg.matrix_norm(covariance - identity))
        mean: torch.Tensor = self._config.orth_reg_weight * torch.stack(parts).mean()
        return mean

    def stepped(self, step: int, steps: int) -> None:
        """Let PEFT weigh the singular values by their gradients, and give up what is beyond the budget."""
        self._config.total_step = steps
        self._config.tinit, self._config.tfinal = int(self.start * steps), int(self.end * steps)
        if step == steps - self._config.tfinal and not self._allocator.exp_avg_ipt:
            # In a run of one or two steps the budget is final before PEFT has weighed anything.
            self._allocator.update_ipt(self.wrapper.base_model.model)
        self.wrapper.base_model.update_and_allocate(step)

    def state(self) -> dict[str, torch.Tensor]:
        """The averaged importance of every parameter, and which singular values are kept."""
        pattern = self._config.rank_pattern or {}
        tensors = {}
        for i, name in enumerate(self._parameters):
            for moment in MOMENTS:
                if name in (values := getattr(self._allocator, moment)):
                    tensors[f"{moment}.{i}"] = values[name]
            if name in pattern:
                tensors[f"kept.{i}"] = torch.tensor(pattern[name])
        return tensors

    def set_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restore that importance."""
        self._allocator.reset_ipt()
        pattern = {}
        for i, (name, p) in enumerate(self._parameters.items()):
            for moment in MOMENTS:
                if (tensor := state.get(f"{moment}.{i}")) is not None:
                    getattr(self._allocator, moment)[name] = tensor.to(p.device)
                    self._allocator.ipt[name] = torch.zeros_like(p)  # its key says that this is not the first step
            if (kept := state.get(f"kept.{i}")) is not None:
                pattern[name] = kept.tolist()
        self._config.rank_pattern = pattern or None

    def write(self, folder: Path, fingerprint: str) -> None:
        """Write the update as a LoRA adapter whose rank is, layer by layer, the number of singular values kept."""
        tensors, ranks = {}, {}
        for name, layer in self._layers.items():
            values = layer.lora_E[self.name].detach()
            kept = values.flatten() != 0
            kept[0] |= not kept.any()  # a LoRA layer has at least rank 1
            ranks[name] = int(kept.sum())
            down = layer.lora_A[self.name].detach() * values * self._scale(layer)
            tensors[f"base_model.model.{name}.lora_A.weight"] = down[kept]
            tensors[f"base_model.model.{name}.lora_B.weight"] = layer.lora_B[self.name].detach()[:, kept]
        largest = max(ranks.values())
        config = peft().LoraConfig(  # alpha = rank: the scale is in the matrices
            r=largest, lora_alpha=largest, rank_pattern=ranks, alpha_pattern=dict(ranks), task_type="CAUSAL_LM",
            target_modules=sorted(self._config.target_modules), exclude_modules=self._config.exclude_modules,
        )  # fmt: skip
        write_peft_folder(folder, config, tensors, fingerprint)

    def read(self, folder: Path) -> None:
        """Start from a LoRA adapter of at most the initial rank: its singular value decomposition."""
        from peft.utils.other import get_pattern_key

        with quiet_peft():
            config = peft().PeftConfig.from_pretrained(folder)
        extras = [key for key in NOT_PLAIN if getattr(config, key, None)]
        if config.peft_type.value != "LORA" or extras:
            what = ", ".join(extras) or config.peft_type.value
            raise _cannot_start(folder, f"AdaLoRA starts from a plain LoRA adapter, not {what}")
        tensors = load_tensors(folder / "adapter_model.safetensors")
        expected = {f"base_model.model.{name}.lora_{part}.weight" for name in self._layers for part in "AB"}
        if expected != tensors.keys():
            raise _cannot_start(folder, f"it has other layers, first {min(expected ^ tensors.keys())}")
        for name, layer in self._layers.items():
            down, up = (tensors[f"base_model.model.{name}.lora_{part}.weight"].float() for part in "AB")
            rank, largest = len(down), layer.r[self.name]
            if down.shape[1] != layer.in_features or up.shape != (layer.out_features, rank) or rank > largest:
                raise _cannot_start(folder, f"{name} has other sizes, or rank {rank} above {largest}")
            alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern, name), config.lora_alpha)
            scale = alpha / (math.sqrt(rank) if config.use_rslora else rank)
            (left, between), (right, other) = torch.linalg.qr(up), torch.linalg.qr(down.T)
            u, values, v = torch.linalg.svd(between @ other.T)
            with torch.no_grad():
                layer.lora_B[self.name][:, : len(values)] = left @ u
                layer.lora_A[self.name][: len(values)] = v @ right.T
                layer.lora_E[self.name].zero_()
                layer.lora_E[self.name][: len(values), 0] = values * scale / self._scale(layer).cpu()

    def _scale(self, layer: Any) -> torch.Tensor:
        """What PEFT multiplies the layer's update with."""
        scale: torch.Tensor = layer.scaling[self.name] / (layer.ranknum[self.name].detach() + 1e-5)
        return scale


def _cannot_start(folder: Path, why: str) -> ArtifactError:
    return ArtifactError(
        "adapter-mismatch", f"the adapter in {folder} does not fit: {why}", hint="start from another adapter, or none"
    )
