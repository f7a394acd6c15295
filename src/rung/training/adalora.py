"""AdaLoRA: updates as singular values between learnt vectors, and a budget of them that moves to where they matter.

PEFT keeps the budget. What it does inside its own forward pass (the penalty that keeps the vectors orthogonal) and in
its own training script (the allocation after each step) is asked for by the training loop here, which runs the base
model itself. When training is over the update is a product of two matrices, so it is written as plain LoRA: the same
update, read by everything that reads LoRA.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from rung.errors import ArtifactError
from rung.training.peft import PeftAdapter, peft, quiet_peft, write_folder

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
