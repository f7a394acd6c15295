"""The optimizers that training may use, and what a checkpoint keeps of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Literal

from rung.errors import TrainingError

if TYPE_CHECKING:
    import torch

OptimizerName = Literal["adamw", "adamw-8bit"]
STATE_BYTES: Mapping[str, int] = {"adamw": 8, "adamw-8bit": 2}  # of a trained parameter's two moments
EIGHT_BITS = "bitsandbytes"
SINCE = (0, 50)  # its 8-bit AdamW runs on processors too
TABLES = ("qmap1", "qmap2")  # what 8 bits stand for: constants that all parameters share


def lacks(name: OptimizerName) -> str:
    """Return what is not installed that an optimizer needs, as a clause, or nothing."""
    if name == "adamw":
        return ""
    try:
        found = tuple(int(part) for part in version(EIGHT_BITS).split(".")[:2])
    except PackageNotFoundError:
        found = (0, 0)
    needed = f"{EIGHT_BITS}>={'.'.join(map(str, SINCE))}"
    return "" if found >= SINCE else f"an optimizer in 8 bits needs {needed}: uv pip install '{needed}'"


def embeddings(model: Any) -> tuple[torch.nn.Parameter, ...]:
    """Return the input embeddings, whose moments stay in float32: each row has a gradient in few steps alone."""
    return tuple(model.get_input_embeddings().parameters())


def moment_bytes(name: OptimizerName, trained: Iterable[torch.Tensor], whole: Iterable[torch.Tensor]) -> int:
    """Return the bytes that the moments of the trained parameters take; those of `whole` are float32."""
    kept = {id(parameter) for parameter in whole}
    return sum(STATE_BYTES["adamw" if id(p) in kept else name] * p.numel() for p in trained)


def optimizer(
    name: OptimizerName,
    parameters: Sequence[torch.nn.Parameter],
    *,
    learning_rate: float,
    weight_decay: float,
    whole: Iterable[torch.nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """Return AdamW over the parameters; biases and norms, which are vectors, do not decay.

    `adamw` is torch's, fused. `adamw-8bit` keeps both moments in 8 bits, in blocks of 256 with a scale each (Dettmers
    et al. 2022, https://arxiv.org/abs/2110.02861); those of tensors below 4,096 elements, and of the parameters in
    `whole`, stay in float32: in 8 bits embeddings train badly (section 2.3 there).

    Raises:
        TrainingError: `missing-extra`: its library is not installed.
    """
    import torch

    if reason := lacks(name):
        raise TrainingError("missing-extra", reason, hint="install it, or leave `optimizer` at adamw")
    parts = [[p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]]
    groups = [
        {"params": part, "weight_decay": decay} for part, decay in zip(parts, (weight_decay, 0.0), strict=True) if part
    ]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, fused=True)
    from bitsandbytes.optim import AdamW8bit

    kept = {id(parameter) for parameter in whole}

    class Optimizer(AdamW8bit):  # type: ignore[misc]
        # The library's own way is a register of ids for the whole process, which outlives the parameters.
        def get_config(self, gindex: int, pindex: int, group: dict[str, Any]) -> dict[str, Any]:
            config: dict[str, Any] = super().get_config(gindex, pindex, group)
            return config | {"optim_bits": 32} if id(group["params"][pindex]) in kept else config

    made: torch.optim.Optimizer = Optimizer(groups, lr=learning_rate)
    return made


def kept_state(made: torch.optim.Optimizer, parameter: torch.nn.Parameter) -> dict[str, torch.Tensor]:
    """Return what is to be kept of one parameter's state; nothing before its first step."""
    import torch

    return {key: torch.as_tensor(value) for key, value in made.state[parameter].items() if key not in TABLES}


def set_state(made: Any, parameter: torch.nn.Parameter, kept: Mapping[str, torch.Tensor]) -> None:
    """Set one parameter's state to what was kept of it."""
    import torch

    state: dict[str, Any] = {key: value.to(parameter.device) for key, value in kept.items()}
    if "state1" in state:  # that of bitsandbytes
        state["step"] = int(state["step"])
        if state["state1"].dtype == torch.uint8:
            for table, name in zip(TABLES, ("dynamic", "udynamic"), strict=True):
                made.name2qmap[name] = state[table] = made.name2qmap[name].to(parameter.device)
    made.state[parameter] = state
