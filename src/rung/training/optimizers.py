"""The optimizers that training may use, and what a checkpoint keeps of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from rung.errors import TrainingError
from rung.training.config import OptimizerName

if TYPE_CHECKING:
    import torch

STATE_BYTES: Mapping[str, int] = {"adamw": 8, "adamw-8bit": 2}  # of a trained parameter's two moments
BITSANDBYTES = "bitsandbytes"
SINCE = (0, 50)  # its 8-bit AdamW runs on processors too
TABLES = ("qmap1", "qmap2")  # what each of the 8-bit values means: constants that all parameters share


def missing_library(name: OptimizerName) -> str:
    """Say, as a clause, which library an optimizer needs that is not installed; empty if none."""
    if name == "adamw":
        return ""
    try:
        installed = tuple(int(part) for part in version(BITSANDBYTES).split(".")[:2])
    except PackageNotFoundError:
        installed = (0, 0)
    needed = f"{BITSANDBYTES}>={'.'.join(map(str, SINCE))}"
    return "" if installed >= SINCE else f"an optimizer in 8 bits needs {needed}: uv pip install '{needed}'"


def embeddings(model: Any) -> tuple[torch.nn.Parameter, ...]:
    """The input embeddings, whose moments stay in float32: each row has a gradient in only a few steps."""
    return tuple(model.get_input_embeddings().parameters())


def moment_bytes(name: OptimizerName, trained: Iterable[torch.Tensor], full_state: Iterable[torch.Tensor]) -> int:
    """The bytes of the trained parameters' moments; those of `full_state` are float32."""
    full = {id(parameter) for parameter in full_state}
    return sum(STATE_BYTES["adamw" if id(p) in full else name] * p.numel() for p in trained)


def make_optimizer(
    name: OptimizerName, parameters: Sequence[torch.nn.Parameter], *, learning_rate: float, weight_decay: float,
    full_state: Iterable[torch.nn.Parameter] = (),
) -> torch.optim.Optimizer:  # fmt: skip
    """Make AdamW over the parameters; biases and norms, which are vectors, do not decay.

    `adamw` is torch's, fused. `adamw-8bit` keeps both moments in 8 bits, in blocks of 256 with a scale each (Dettmers
    et al. 2022, https://arxiv.org/abs/2110.02861). The moments of tensors below 4,096 elements, and of the parameters
    in `full_state`, stay in float32: in 8 bits embeddings train badly (section 2.3 there).

    Raises:
        TrainingError: `missing-extra`: its library is not installed.
    """
    import torch

    if reason := missing_library(name):
        raise TrainingError("missing-extra", reason, hint="install it, or leave `optimizer` at adamw")
    matrices, vectors = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
    decays = ((matrices, weight_decay), (vectors, 0.0))
    groups = [{"params": part, "weight_decay": decay} for part, decay in decays if part]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, fused=True)
    from bitsandbytes.optim import AdamW8bit

    full = {id(parameter) for parameter in full_state}

    class Optimizer(AdamW8bit):  # type: ignore[misc]
        # The library's own way is a register of ids for the whole process, which outlives the parameters.
        def get_config(self, gindex: int, pindex: int, group: dict[str, Any]) -> dict[str, Any]:
            config: dict[str, Any] = super().get_config(gindex, pindex, group)
            return config | {"optim_bits": 32} if id(group["params"][pindex]) in full else config

    optimizer: torch.optim.Optimizer = Optimizer(groups, lr=learning_rate)
    return optimizer


def optimizer_state(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter) -> dict[str, torch.Tensor]:
    """What a checkpoint keeps of one parameter's state; empty before its first step."""
    import torch

    return {key: torch.as_tensor(value) for key, value in optimizer.state[parameter].items() if key not in TABLES}


def restore_optimizer_state(optimizer: Any, parameter: torch.nn.Parameter, saved: Mapping[str, torch.Tensor]) -> None:
    """Set one parameter's state to what a checkpoint kept of it."""
    import torch

    state: dict[str, Any] = {key: value.to(parameter.device) for key, value in saved.items()}
    if "state1" in state:  # that of bitsandbytes
        state["step"] = int(state["step"])
        if state["state1"].dtype == torch.uint8:
            for table, name in zip(TABLES, ("dynamic", "udynamic"), strict=True):
                optimizer.name2qmap[name] = state[table] = optimizer.name2qmap[name].to(parameter.device)
    optimizer.state[parameter] = state
