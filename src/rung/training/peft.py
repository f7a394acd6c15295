"""PEFT adapters as changes of a base model: LoRA and its kin, and IA3."""

from __future__ import annotations

import itertools
import json
import math
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Self

import torch

from rung.engines.changes import BASE_FINGERPRINT
from rung.errors import ArtifactError, EngineError, needed_by
from rung.training.changes import Change, cannot_merge, plain_parameters, read_tensors, write_tensors

_numbers = itertools.count()
PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")  # ways to begin that leave the base model as it is
WHERE = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")  # which layers have an adapter


@contextmanager
def quiet_peft() -> Iterator[None]:
    """PEFT warns about things that Rung checks itself, such as a second adapter on the same model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def peft() -> Any:
    """Import PEFT, or say what to install."""
    with needed_by("an adapter", error=EngineError), quiet_peft():
        import peft as library
    return library


def linear_layers(model: Any) -> list[str]:
    """Return the last names of all linear layers but the output layer: what PEFT calls `all-linear`.

    GPT-2's are transformers' own class, whose matrices lie the other way round; PEFT's LoRA knows it.

    PEFT's own word must not be used beside another adapter: it would take that one's matrices for linear layers.
    """
    if not hasattr(model, "rung_linear_layers"):
        import torch
        from transformers.pytorch_utils import Conv1D

        head, linear = model.get_output_embeddings(), (torch.nn.Linear, Conv1D)
        kinds = [(name, m) for name, m in model.named_modules() if isinstance(m, linear) and m is not head]
        model.rung_linear_layers = sorted({name.rsplit(".", 1)[-1] for name, _ in kinds})
    return list(model.rung_linear_layers)


def places(model: Any, start: Path | None) -> dict[str, Any]:
    """Return which layers get an adapter, as PEFT's settings: all linear ones, or those of an adapter to go on from.

    Args:
        model: the base model.
        start: folder of the weights that training goes on from, if any.
    """
    file = None if start is None else start / "adapter_config.json"
    values = json.loads(file.read_text("utf-8")) if file is not None and file.is_file() else {}
    found = {key: values[key] for key in WHERE if values.get(key) is not None}
    if found.get("target_modules", "all-linear") == "all-linear":
        found["target_modules"] = linear_layers(model)
    return found


class PeftAdapter(Change):
    """One PEFT adapter on a model, beside others of its type.

    PEFT changes the base model's modules in place, so the base model itself runs the adapter; its wrapper (one for
    all adapters of a model, kept as its attribute `rung_peft`) only switches.

    Args:
        model: the base model.
        config: a PEFT configuration; the adapter starts as PEFT initializes it.

    Raises:
        ArtifactError: the model has none of the layers that the adapter updates.
    """

    def __init__(self, model: Any, config: Any) -> None:
        self.base, self.name = model, f"a{next(_numbers)}"  # a name must not be an attribute of modules
        self.family = str(config.peft_type.value)
        plain_parameters(model)
        linear_layers(model)
        try:
            with quiet_peft():
                if hasattr(model, "rung_peft"):
                    self.wrapper.add_adapter(self.name, config)
                else:
                    model.rung_peft = [peft().get_peft_model(model, config, adapter_name=self.name)]
        except ValueError as error:
            if "not found in the base model" not in str(error):
                raise
            wanted = config.target_modules
            raise ArtifactError(
                "adapter-mismatch",
                f"the model has no layer {wanted if isinstance(wanted, str) else ' or '.join(sorted(wanted))}",
                hint="open it on the model that it was trained on",
            ) from error
        model.requires_grad_(False)
        self.disable()

    @classmethod
    def from_dict(cls, model: Any, values: dict[str, Any]) -> Self:
        """Put on a fresh adapter with the configuration of an adapter_config.json.

        Raises:
            EngineError: it is one that PEFT does not take off a model cleanly (see `check_leaves_the_base`).
            ArtifactError: the model has none of the layers that it updates.
        """
        check_leaves_the_base(values)
        config = peft().PeftConfig.from_peft_type(**values)
        config.inference_mode = True
        return cls(model, config)

    @property
    def wrapper(self) -> Any:
        """PEFT's own model around the base model."""
        return self.base.rung_peft[0]

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
        wrapper = self.wrapper
        with quiet_peft():
            if len(wrapper.peft_config) == 1:
                wrapper.unload()
                del self.base.rung_peft
                return
            wrapper.delete_adapter(self.name)
        wrapper.set_adapter(next(iter(wrapper.peft_config)))  # PEFT would go on naming the deleted one as active
        self.disable()

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Return the adapter's own parameters."""
        return {name: p for name, p in self.base.named_parameters() if self.name in name.split(".")}

    def write(self, folder: Path, fingerprint: str) -> None:
        """Write PEFT's two files."""
        write_folder(folder, self.wrapper.peft_config[self.name], self._state(), fingerprint)

    def read(self, folder: Path) -> None:
        """Set the adapter's tensors to those of a PEFT folder."""
        tensors = read_tensors(folder / "adapter_model.safetensors", self._state())
        with quiet_peft():
            peft().set_peft_model_state_dict(self.wrapper, tensors, adapter_name=self.name)

    def _state(self) -> dict[str, torch.Tensor]:
        state: dict[str, torch.Tensor] = peft().get_peft_model_state_dict(self.wrapper, adapter_name=self.name)
        return state

    def merged(self) -> dict[str, torch.Tensor]:
        """Return the base model's tensors with the adapter in them, as PEFT merges them; nothing is changed."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        config = self.wrapper.peft_config[self.name]
        if getattr(config, "modules_to_save", None) or getattr(config, "trainable_token_indices", None):
            raise cannot_merge("beside updates of layers it holds whole modules or tokens")
        if getattr(self.base, "is_quantized", False):
            raise cannot_merge("the base model is quantized, and the update would be lost in its rounding")
        names = {id(p): name for name, p in plain_parameters(self.base).items()}
        found = {}
        for layer in self.base.modules():
            if not isinstance(layer, BaseTunerLayer) or not layer.get_base_layer()._parameters:
                continue
            own = {id(p): p for p in layer.get_base_layer().parameters(recurse=False)}
            before = {key: p.data for key, p in own.items()}
            try:
                layer.merge(safe_merge=True, adapter_names=[self.name])  # into a copy of the tensors' contents
                for key, p in own.items():
                    if p.data_ptr() != before[key].data_ptr():
                        found[names[key]] = p.data
            except ValueError as broken:
                raise cannot_merge(f"the merged weights are not finite ({broken})") from broken
            finally:
                layer.merged_adapters.clear()
                for key, p in own.items():
                    p.data = before[key]
        return found

    def lean(self) -> AbstractContextManager[None]:
        """Run plain LoRA layers without PEFT's detours."""
        from rung.training.kernels import lean

        return lean(self.base, self.name)


def check_leaves_the_base(values: dict[str, Any]) -> None:
    """Refuse an adapter that changes the base model itself, which others share and which must come back unchanged.

    Args:
        values: the contents of its adapter_config.json.

    Raises:
        EngineError: it holds whole modules or biases, adds layers, or starts (PiSSA, OLoRA, CorDA, LoftQ) from a part
            of the weights that PEFT takes out of the base model for it.
    """
    if whole := values.get("modules_to_save"):
        raise _unsupported(f"holds whole modules beside its updates: {', '.join(whole)}")
    if (biases := values.get("bias", "none")) != "none":
        raise _unsupported(f"holds the base model's biases beside its updates (bias: {biases})")
    if values.get("layer_replication"):
        raise _unsupported("repeats layers of the base model (layer_replication)")
    if (start := values.get("init_lora_weights", True)) not in PLAIN_STARTS:
        raise _unsupported(f"takes its start out of the base model's weights (init_lora_weights: {start})")


def _unsupported(does: str) -> EngineError:
    return EngineError(
        "adapter-unsupported",
        f"the adapter {does}",
        hint="merge it with PEFT's merge_and_unload, and use the merged folder as the model",
    )


def write_folder(folder: Path, config: Any, tensors: dict[str, torch.Tensor], fingerprint: str) -> None:
    """Write a PEFT folder whose configuration also names the base model's fingerprint."""
    with tempfile.TemporaryDirectory() as scratch, quiet_peft():
        config.save_pretrained(scratch)
        values = json.loads((Path(scratch) / "adapter_config.json").read_text("utf-8"))
    values[BASE_FINGERPRINT] = fingerprint
    values["base_model_name_or_path"] = ""  # a local path means nothing elsewhere; the fingerprint tells
    values["inference_mode"] = True
    (folder / "adapter_config.json").write_text(json.dumps(values, indent=2, sort_keys=True), "utf-8")
    write_tensors(tensors, folder / "adapter_model.safetensors")


# --------------------
# AdaLoRA: updates as singular values between learnt vectors, and a budget of them that moves to where they matter.
#
# PEFT keeps the budget. What it does inside its own forward pass (the penalty that keeps the vectors orthogonal) and in
# its own training script (the allocation after each step) is asked for by the training loop here, which runs the base
# model itself. When training is over the update is a product of two matrices, so it is written as plain LoRA: the same
# update, read by everything that reads LoRA.


UNREAD = ("use_dora", "lora_bias", "modules_to_save", "trainable_token_indices", "layer_replication")


class AdaLora(PeftAdapter):
    """An adapter W + B diag(E) A whose singular values E are given up where they matter least.

    Zhang et al. 2023, https://arxiv.org/abs/2303.10512.

    Args:
        model: the base model.
        config: a PEFT AdaLoraConfig; its schedule is set here, when the number of steps is known.
        start: share of the steps before the budget falls.
        end: share of the steps after it has fallen.
    """

    def __init__(self, model: Any, config: Any, *, start: float, end: float) -> None:
        super().__init__(model, config)
        self.start, self.end = start, end
        self._config = self.wrapper.peft_config[self.name]
        names = dict(super().parameters())
        self._parameters = {name: p for name, p in names.items() if ".ranknum." not in name}  # that is a constant
        self._layers = {name: m for name, m in model.named_modules() if self.name in getattr(m, "lora_E", {})}

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Return vectors and singular values of every layer."""
        return dict(self._parameters)

    def penalty(self) -> torch.Tensor:
        """Return how far the vectors are from orthogonal, as PEFT's forward pass adds it to the loss."""
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
        allocator = self.wrapper.base_model.rankallocator
        if step == steps - self._config.tfinal and not allocator.exp_avg_ipt:
            # In a run of one or two steps the budget is settled before PEFT has weighed anything.
            allocator.update_ipt(self.wrapper.base_model.model)
        self.wrapper.base_model.update_and_allocate(step)

    def state(self) -> dict[str, torch.Tensor]:
        """Return the running importance of every parameter, and which singular values are kept."""
        allocator = self.wrapper.base_model.rankallocator
        pattern = self._config.rank_pattern or {}
        tensors = {}
        for i, name in enumerate(self._parameters):
            for kind in ("exp_avg_ipt", "exp_avg_unc"):
                if name in (found := getattr(allocator, kind)):
                    tensors[f"{kind}.{i}"] = found[name]
            if name in pattern:
                tensors[f"kept.{i}"] = torch.tensor(pattern[name])
        return tensors

    def set_state(self, state: dict[str, torch.Tensor]) -> None:
        """Go on with that importance."""
        allocator = self.wrapper.base_model.rankallocator
        allocator.reset_ipt()
        pattern = {}
        for i, (name, p) in enumerate(self._parameters.items()):
            for kind in ("exp_avg_ipt", "exp_avg_unc"):
                if (tensor := state.get(f"{kind}.{i}")) is not None:
                    getattr(allocator, kind)[name] = tensor.to(p.device)
                    allocator.ipt[name] = torch.zeros_like(p)  # made anew at every step; its key says "not the first"
            if (kept := state.get(f"kept.{i}")) is not None:
                pattern[name] = kept.tolist()
        self._config.rank_pattern = pattern or None

    # ---- as plain LoRA

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
        most = max(ranks.values())
        config = peft().LoraConfig(  # alpha = rank: the scale is in the matrices
            r=most, lora_alpha=most, rank_pattern=ranks, alpha_pattern=dict(ranks), task_type="CAUSAL_LM",
            target_modules=sorted(self._config.target_modules),
        )  # fmt: skip
        write_folder(folder, config, tensors, fingerprint)

    def read(self, folder: Path) -> None:
        """Start from a LoRA adapter of at most the initial rank: its singular value decomposition."""
        from peft.utils.other import get_pattern_key
        from safetensors.torch import load_file

        with quiet_peft():
            config = peft().PeftConfig.from_pretrained(folder)
        extras = [key for key in UNREAD if getattr(config, key, None)]
        if config.peft_type.value != "LORA" or extras:
            what = ", ".join(extras) or config.peft_type.value
            raise _mismatch(folder, f"AdaLoRA starts from a plain LoRA adapter, not {what}")
        tensors = load_file(folder / "adapter_model.safetensors")
        wanted = {f"base_model.model.{name}.lora_{part}.weight" for name in self._layers for part in "AB"}
        if wanted != tensors.keys():
            raise _mismatch(folder, f"it has other layers, first {min(wanted ^ tensors.keys())}")
        for name, layer in self._layers.items():
            down, up = (tensors[f"base_model.model.{name}.lora_{part}.weight"].float() for part in "AB")
            rank, most = len(down), layer.r[self.name]
            if down.shape[1] != layer.in_features or up.shape != (layer.out_features, rank) or rank > most:
                raise _mismatch(folder, f"{name} has other sizes, or rank {rank} above {most}")
            alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern, name), config.lora_alpha)
            scale = alpha / (math.sqrt(rank) if config.use_rslora else rank)
            (left, between), (right, other) = torch.linalg.qr(up), torch.linalg.qr(down.T)
            turn, values, back = torch.linalg.svd(between @ other.T)
            with torch.no_grad():
                layer.lora_B[self.name][:, : len(values)] = left @ turn
                layer.lora_A[self.name][: len(values)] = back @ right.T
                layer.lora_E[self.name].zero_()
                layer.lora_E[self.name][: len(values), 0] = values * scale / self._scale(layer).cpu()

    def _scale(self, layer: Any) -> torch.Tensor:
        """Return what PEFT multiplies the layer's update with."""
        scale: torch.Tensor = layer.scaling[self.name] / (layer.ranknum[self.name].detach() + 1e-5)
        return scale


def _mismatch(folder: Path, why: str) -> ArtifactError:
    return ArtifactError(
        "adapter-mismatch", f"the adapter in {folder} does not fit: {why}", hint="start from another adapter, or none"
    )
