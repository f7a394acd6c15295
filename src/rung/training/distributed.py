"""Training in several processes, one for each device: torchrun, srun or `rung fit --devices` starts them.

Every process does the same: it reads the same rows, holds the whole base model and makes the same change of it. Of each
batch, process k of n trains on the rows k, k + n, and so on. Then one `all_reduce` adds up the gradients of what is
trained, together with the loss and the number of targets. So the step is that of one process on the whole batch, up to
the order of sums. Only the first process writes, prints and evaluates.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rung.errors import ConfigError, PreemptedError, TrainingError

if TYPE_CHECKING:
    import torch

# A cluster takes the machine back; Windows has only one of them.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
PATIENCE = timedelta(hours=4)  # that processes wait for each other: the first one evaluates alone
SLICE = 2**24  # bytes of a tensor that are summed at once
GRACE = 30.0  # seconds in which the others end by themselves after one has failed
PREEMPTED = PreemptedError.exit_code
_stop: list[int] = []  # the signals that came


@dataclass(frozen=True, slots=True)
class World:
    """The place of this process among those that train together: `rank` of `size`, and `local` on its machine."""

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that writes, prints and evaluates."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether it trains without others."""
        return self.size == 1

    # ---- collectives: every process calls them in the same order

    def from_first(self, value: Callable[[], float]) -> float:
        """What the first process computes; the others wait for it."""
        if self.alone:
            return value()
        import torch
        from torch.distributed import broadcast

        known = torch.tensor([value() if self.first else 0.0], dtype=torch.float64)
        broadcast(known, 0)
        return float(known.item())

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        if self.alone:
            return flag
        import torch
        from torch.distributed import all_reduce

        told = torch.tensor([int(flag)])
        all_reduce(told)
        return bool(told.item())

    def check_alike(self, what: str, name: str) -> None:
        """Raise a TrainingError unless all processes have the same name of something."""
        if not self.alone:
            import torch

            low, high = self.extremes(torch.tensor(list(hashlib.sha256(name.encode()).digest())))
            if not torch.equal(low, high):
                raise apart(f"the processes do not have the same {what}")

    def extremes(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The least and the greatest of each value over all processes."""
        from torch.distributed import ReduceOp, all_reduce

        low, high = values.clone(), values.clone()
        all_reduce(low, op=ReduceOp.MIN)
        all_reduce(high, op=ReduceOp.MAX)
        return low, high

    def spread(self, tensors: Sequence[torch.Tensor]) -> None:
        """Set tensors to those of the first process; tensors in parts stay."""
        if not self.alone:
            from torch.distributed import broadcast

            for tensor in tensors:
                if not hasattr(tensor, "placements"):
                    broadcast(tensor.detach(), 0)

    def add_up(
        self, parameters: Sequence[torch.nn.Parameter], loss: float, mass: float, *, of: float
    ) -> tuple[float, bool]:
        """Replace gradients by their sums over all processes, in one `all_reduce`; a parameter may have none.

        Args:
            parameters: what is trained.
            loss: the loss of this process's rows.
            mass: the number of their targets.
            of: the number of targets in the whole batch, as every process counts them.

        Returns:
            The loss of the batch, and whether any process was asked to stop.

        Raises:
            TrainingError: `processes-apart`: the processes train on different batches.
        """
        if self.alone:
            return loss, bool(_stop)
        import torch
        from torch.distributed import all_reduce

        device = parameters[0].device
        parameters = () if hasattr(parameters[0], "placements") else parameters  # in parts: they are added up already
        numbers = [loss, mass, float(bool(_stop)), *(float(p.grad is not None) for p in parameters)]
        zeros = (torch.zeros_like(p, dtype=torch.float32) if p.grad is None else p.grad.float() for p in parameters)
        flat = torch.cat([torch.tensor(numbers, device=device), *(gradient.flatten() for gradient in zeros)])
        all_reduce(flat)
        total, counted, stop, *present = flat[: len(numbers)].tolist()
        if abs(counted - of) > 1e-4 * max(1.0, of):
            raise apart(f"the processes trained on {counted:g} targets of a batch that has {of:g}")
        at = len(numbers)
        for parameter, one in zip(parameters, present, strict=True):
            if one:
                parameter.grad = flat[at : at + parameter.numel()].view_as(parameter).to(parameter.dtype)
            at += parameter.numel()
        return total, stop > 0

    def text_of_first(self, text: str) -> str:
        """The text that the first process has."""
        if self.alone:
            return text
        import torch
        from torch.distributed import broadcast

        size = torch.tensor([len(text.encode())])
        broadcast(size, 0)
        told = torch.tensor(list(text.encode()) if self.first else [0] * int(size), dtype=torch.uint8)
        broadcast(told, 0)
        return bytes(told.tolist()).decode()

    def state_of_first(
        self, tensors: Mapping[str, torch.Tensor] | None, values: Mapping[str, Any]
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """Named tensors and JSON values that the first process has, so that the others need not see its files.

        None where the first process has no tensors.
        """
        if self.alone:
            return None if tensors is None else (dict(tensors), dict(values))
        import torch
        from torch.distributed import broadcast

        shapes = {} if tensors is None else {n: (str(t.dtype)[6:], list(t.shape)) for n, t in tensors.items()}
        text = self.text_of_first("" if tensors is None else json.dumps([values, shapes]))
        if not text:
            return None
        told, shapes = json.loads(text)
        found = {}
        for name, (dtype, shape) in shapes.items():
            tensor = torch.empty(shape, dtype=getattr(torch, dtype)) if tensors is None else tensors[name].contiguous()
            broadcast(tensor.view(torch.uint8) if tensor.ndim else tensor, 0)
            found[name] = tensor
        return found, told

    def verify(self, own: Mapping[str, int], kept: Path, *, parts: bool) -> None:
        """Compare the tensors that the first process kept, read again, with those that every process has.

        Args:
            own: the checksum of each tensor as this process has it, or with `parts`, of its part of it.
            kept: the folder that the first process wrote.
            parts: whether the checksums of all processes add up to those of the tensors.

        Raises:
            TrainingError: `processes-apart`: a tensor differs between the processes, or from what was kept.
        """
        import torch
        from torch.distributed import all_reduce

        values = torch.tensor(list(own.values()))
        if parts:
            all_reduce(values)
        low, high = self.extremes(values)
        differs = next((name for name, a, b in zip(own, low, high, strict=True) if a != b), "")
        if self.first and not differs:
            sums, again = dict(zip(own, values.tolist(), strict=True)), checksums(kept)
            differs = next((name for name in {**sums, **again} if again.get(name) != sums.get(name)), "")
        if self.any(bool(differs)):
            raise apart(f"a tensor is not the same in all processes and as saved ({differs or 'in another process'})")


def checksums(folder: Path) -> dict[str, int]:
    """A number for every tensor in the folder's safetensors files; bits in other places give another number."""
    from safetensors.torch import load_file

    sums: dict[str, int] = {}
    for file in sorted(folder.rglob("*.safetensors")):
        for name, tensor in sorted(load_file(file).items()):
            sums[f"{file.relative_to(folder)}: {name}"] = checksum(tensor)
    return sums


def checksum(tensor: torch.Tensor, first: int = 0) -> int:
    """The checksum of a tensor, or what a part of it adds that begins at byte `first`."""
    import torch

    total, octets = 0, tensor.contiguous().view(-1).view(torch.uint8)
    for start in range(0, len(octets), SLICE):
        piece = octets[start : start + SLICE].to(torch.int64)
        places = torch.arange(first + start + 1, first + start + len(piece) + 1).remainder_(1_000_003)
        total += int((piece * places).sum())
    return total


def placed(whole: torch.Tensor, like: Any) -> torch.Tensor:
    """A whole tensor on the device of another, and in parts where that one is."""
    whole = whole.to(like.device)
    if not hasattr(like, "placements"):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, like.device_mesh, like.placements)


def in_parts(model: Any) -> bool:
    """Whether each process holds a part of this model."""
    return any(hasattr(parameter, "placements") for parameter in model.parameters())


def gathered(tensor: Any) -> torch.Tensor:
    """A tensor as a whole: all processes call this for one in parts."""
    whole: torch.Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole


def apart(what: str) -> TrainingError:
    """The error that processes which train together are not at the same place."""
    return TrainingError(
        "processes-apart", what, hint="give every process the same files, packages and versions, and start again"
    )


# ---- the processes of one training


def launched() -> World:
    """The place that torchrun, srun or `rung fit --devices` gave this process; alone where none of them started it."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        return World(int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", "0")))
    if "SLURM_STEP_NUM_TASKS" in env and "SLURM_PROCID" in env:  # not set in a batch script itself
        return World(
            int(env["SLURM_PROCID"]), int(env["SLURM_STEP_NUM_TASKS"]), int(env.get("SLURM_LOCALID", "0"))
        )  # fmt: skip
    return World()


def current() -> World:
    """The place of this process among those that have joined."""
    return _joined[-1] if _joined else World()


_joined: list[World] = []


@contextmanager
def joined(world: World) -> Iterator[World]:
    """Join the other processes while the block runs; SIGTERM and SIGUSR1 ask the training to save its state and end.

    A signal that the process ignores stays ignored.

    Processors talk through gloo, CUDA devices through NCCL. Where something else has joined them already, as Ray Train
    does, they talk as it has arranged. Signals come only to the main thread.

        with joined(launched()) as world:
            tuned = LoRA().fit(artifact, data)
            if world.first:
                tuned.save("tuned")

    Raises:
        ConfigError: `bad-option`: the environment does not say where the first process is.
        TrainingError: `processes-apart`: another process has ended, or cannot be reached.
    """
    numbers = SIGNALS if threading.current_thread() is threading.main_thread() else ()
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda number, _frame: _stop.append(number)) for number in heard}
    try:
        if world.alone:
            yield world
            return
        import torch
        from torch.distributed import DistError, destroy_process_group, init_process_group, is_initialized

        theirs = is_initialized()
        backend = "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(world.local % torch.cuda.device_count())
            backend = "cpu:gloo,cuda:nccl"
        for name, value in {} if theirs else _meeting_point(world).items():
            os.environ.setdefault(name, value)
        try:
            if not theirs:
                init_process_group(backend, rank=world.rank, world_size=world.size, timeout=PATIENCE)
            _joined.append(world)
            yield world
        except RuntimeError as error:
            if not isinstance(error, DistError) and "gloo" not in str(error):  # gloo has no class of errors
                raise
            reason = str(error).strip().partition("\n")[0]
            raise apart(f"process {world.rank} of {world.size} lost the others: {reason}") from error
        finally:
            _joined.clear()
            with contextlib.suppress(Exception):  # the others are gone: nothing is left to close
                if not theirs:
                    destroy_process_group()
    finally:
        _stop.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


def _meeting_point(world: World) -> dict[str, str]:
    """What the environment of a process must say, so far as Slurm's variables tell."""
    env = os.environ
    told = {"RANK": str(world.rank), "WORLD_SIZE": str(world.size), "LOCAL_RANK": str(world.local)}
    if "MASTER_ADDR" in env:
        return told | {"MASTER_PORT": "29500"}
    if "SLURM_STEP_NODELIST" not in env:
        raise ConfigError(
            "bad-option", "MASTER_ADDR does not say where the first process is",
            hint="start the processes with torchrun, with srun, or with --devices",
        )  # fmt: skip
    return told | {
        "MASTER_ADDR": first_host(env["SLURM_STEP_NODELIST"]),
        "MASTER_PORT": str(20_000 + int(env.get("SLURM_JOB_ID", "0")) % 20_000),
    }


def first_host(nodes: str) -> str:
    """The first name of a list of Slurm's, such as `node[03-05,9],login`."""
    return re.sub(r"\[(\w+).*", r"\1", re.split(r",(?![^\[]*\])", nodes)[0])


def launch(count: int, arguments: Sequence[str]) -> int:
    """Run `rung` with these arguments in so many processes, and return the exit code of the worst.

    They get the variables that torchrun sets. What signals this process gets, they get. When one fails, the others
    have 30 seconds to end.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    told["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "rung", *arguments], env=os.environ | told | {"RANK": str(k), "LOCAL_RANK": str(k)}
        )
        for k in range(count)
    ]

    def pass_on(number: int, _frame: Any) -> None:
        for child in children:
            child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        deadline, stuck = None, list[subprocess.Popen[bytes]]()
        while any(child.poll() is None for child in children):
            if deadline is None and any(child.poll() for child in children):
                deadline = time.monotonic() + GRACE
            if deadline is not None and time.monotonic() > deadline and not stuck:
                stuck = [child for child in children if child.poll() is None]
                for child in stuck:
                    child.kill()
            time.sleep(0.05)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for child in children:
            child.kill()
            child.wait()
    codes = [child.returncode for child in children if child not in stuck]
    return max(code if code >= 0 else 128 - code for code in codes)


def slurm_script(nodes: int, devices: int, command: str) -> str:
    """The batch script that runs a command in Slurm: a process for each device, and again after a preemption."""
    return f"""#!/bin/bash
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={devices}
#SBATCH --gpus-per-node={devices}
#SBATCH --signal=USR1@120
#SBATCH --requeue
export RUNG_CACHE="${{RUNG_CACHE:-$SLURM_SUBMIT_DIR/rung-cache}}"  # checkpoints: on a disk that every node sees
srun --kill-on-bad-exit=1 {command}
code=$?
if [ "$code" -eq {PREEMPTED} ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
"""
