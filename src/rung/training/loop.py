"""The training loop that every fine-tuning method shares."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch

from rung.engines.apart import runs_apart
from rung.errors import PreemptedError, TrainingError
from rung.machine import peak_memory_bytes
from rung.progress import QUIET, Progress
from rung.training.changes import Trainable
from rung.training.checkpoints import Checkpoints, RunState
from rung.training.config import TrainConfig
from rung.training.distributed import apart, current, gathered, in_parts, placed
from rung.training.examples import TrainingRow, epoch_batches
from rung.training.kernels import recomputed_gates
from rung.training.loss import AnswerLoss, Loss, StepLoss, packed_layers
from rung.training.optimizers import embeddings, make_optimizer, optimizer_state, restore_optimizer_state
from rung.training.precision import MatmulDtype, matmul_dtype, matmul_precision

CHECKPOINT_SECONDS = 60.0  # the shortest time between checkpoints
CHECKPOINT_SHARE = 0.05  # the largest share of the time spent on writing them
DIVERGED = 2.0  # nats above the first losses: no run that learns gets there
RECENT = 10  # losses averaged to see that; after warm-up twice as many are waited for, as the loss may rise and fall

Evaluate = Callable[[], float]  # the task's own metric on held-out rows, larger is better


@dataclass(slots=True)
class TrainResult:
    """What a training run did."""

    losses: list[tuple[int, float]] = field(default_factory=list)  # (step, mean loss per target)
    norms: list[float] = field(default_factory=list)  # of each step's gradient, before clipping
    evaluations: list[tuple[int, float]] = field(default_factory=list)  # (step, metric)
    measures: list[dict[str, float]] = field(default_factory=list)  # what a `StepLoss` measured, step by step
    best: int = 0  # step with the best metric, whose weights are kept; 0 without evaluations
    steps: int = 0  # optimizer steps taken
    tokens: int = 0  # read; a shared prefix counts for every row
    memory_bytes: int = 0  # peak resident memory of the process (of the device, on CUDA)
    matmul_dtype: MatmulDtype = "float32"  # the type in which float32 matrices were multiplied

    def as_settings(self) -> dict[str, Any]:
        """What the artifact records of the run: nothing that differs when it is repeated, such as times."""
        settings: dict[str, Any] = {
            "losses": [list(point) for point in self.losses], "training_tokens": self.tokens,
            "matmul_dtype": self.matmul_dtype,
        }  # fmt: skip
        if self.measures:
            settings["measures"] = self.measures
        if self.evaluations:
            settings |= {"evaluations": [list(point) for point in self.evaluations], "best_step": self.best}
        return settings


def train(
    model: Any, change: Trainable, rows: Sequence[TrainingRow], config: TrainConfig, *, loss: Loss | None = None,
    evaluate: Evaluate | None = None, checkpoints: Checkpoints | None = None, stop_after: int | None = None,
    progress: Progress = QUIET,
) -> TrainResult:  # fmt: skip
    """Train a change of a base model's weights; the base model's own weights stay as they are.

    The loss of a step is the mean over all targets of its batch (supervised tokens, by the weights of their rows;
    pairs, for preferences), however the batch is cut into forward passes. So long answers do not count less, and
    accumulated gradients are those of the whole batch.

    The `learning_rate` and `batch_size` of `config` are numbers. `loss` sums over some rows; by default over their
    supervised tokens. `evaluate` is called after each epoch with the change switched on, and the weights of the best
    epoch are kept. A run that has a checkpoint resumes from it. With `stop_after`, the run stops after so many steps
    and keeps its state, as after a kill; the schedule is that of all steps.

    Processes that have joined (see `rung.training.distributed`) train together: each takes its share of every batch.

    Raises:
        TrainingError: there are no rows, the loss is not a number or explodes, a checkpoint cannot be written, or
            processes that train together are not at the same place.
        PreemptedError: a signal asked for an end; the state is kept.
    """
    if not rows:
        raise TrainingError("too-few-rows", "there are no training rows")
    run = _Run(model, change, rows, config, loss, checkpoints)
    change.enable()
    try:
        with change.lean(), recomputed_gates(model):
            run.take_steps(evaluate, stop_after, progress)
    finally:
        for parameter in run.parameters.values():
            parameter.requires_grad_(False)
            parameter.grad = None
        model.eval()
        change.disable()
    return run.result


class _Run:
    """The state of one training run."""

    def __init__(
        self, model: Any, change: Trainable, rows: Sequence[TrainingRow], config: TrainConfig, loss: Loss | None,
        checkpoints: Checkpoints | None,
    ) -> None:  # fmt: skip
        self.model, self.change, self.rows, self.config, self.world = model, change, rows, config, current()
        self.parameters = change.parameters()
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        share_prefix = config.neftune_alpha == 0 and not has_dropout(model)
        self.loss: Loss = loss or AnswerLoss(model, share_prefix, config.label_smoothing, config.neftune_alpha)
        self.optimizer = make_optimizer(
            config.optimizer, tuple(self.parameters.values()),
            learning_rate=float(config.learning_rate), weight_decay=config.weight_decay, full_state=embeddings(model),
        )  # fmt: skip
        self.batches = plan_batches(rows, config)
        self.checkpoints, self.saved, self.saving = checkpoints, time.perf_counter(), 0.0
        self.result = TrainResult(matmul_dtype=matmul_dtype(model.device.type, config.precision))
        self.best: dict[str, torch.Tensor] = {}
        torch.manual_seed(config.seed + self.world.rank)
        self.in_parts = in_parts(model)
        self.world.spread(tuple(self.parameters.values()))
        if checkpoints is not None:
            self.world.check_alike("rows, settings, model and versions", checkpoints.folder.name)
            last = checkpoints.last() if self.world.first else None
            found = (None, {}) if last is None else (last[1].tensors, last[1].values)
            if (state := self.world.state_of_first(*found)) is not None:
                self._restore(*state)

    def take_steps(self, evaluate: Evaluate | None, stop_after: int | None, progress: Progress) -> None:
        """Take the steps that are left."""
        result, steps = self.result, len(self.batches)
        last = min(steps, stop_after) if stop_after is not None else steps
        per_epoch = steps // self.config.epochs
        began, tokens_before = time.perf_counter(), result.tokens
        out_of_patience = False
        progress.start("training" if self.world.alone else f"training in {self.world.size} processes", steps)
        if result.steps:
            progress.advance(result.steps, note="resumed")
        while result.steps < last:
            batch = self._batch(result.steps)
            stop = self._step(batch)
            result.tokens += sum(map(len, batch))
            on_gpu = self.model.device.type == "cuda"
            memory = torch.cuda.max_memory_allocated(self.model.device) if on_gpu else peak_memory_bytes()
            result.memory_bytes = max(result.memory_bytes, int(memory))
            speed = (result.tokens - tokens_before) / (time.perf_counter() - began)
            peak = result.memory_bytes / 2**30
            progress.advance(note=f"loss {result.losses[-1][1]:.3f}, {speed:.0f} tok/s, peak {peak:.1f} GiB")
            if evaluate is not None and result.steps % per_epoch == 0 and self._out_of_patience(evaluate):
                out_of_patience = True
                break
            self._checkpoint(force=result.steps == stop_after or (stop and result.steps < last))
            if stop and result.steps < last:
                # The others wait until it is written: srun and torchrun end the first process once another has ended.
                self.world.any(True)
                kept = "its state is kept" if self.checkpoints is not None else "nothing of it is kept"
                raise PreemptedError(
                    "preempted", f"a signal ended the training after step {result.steps} of {steps}; {kept}",
                    hint="run the same command again: it goes on from there",
                )  # fmt: skip
        if not result.steps and not self.world.alone:
            raise apart("the processes took no step")
        if self.best and (result.steps == steps or stop_after is None or out_of_patience):
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    parameter.copy_(self.best[name])
        outcome = f"loss {result.losses[-1][1]:.3f}" if result.losses else ""
        if result.evaluations:
            outcome += f", best {max(value for _, value in result.evaluations):.3f} after step {result.best}"
        progress.finish(outcome)

    def _batch(self, step: int) -> Sequence[TrainingRow]:
        """The rows of a step."""
        batch: Sequence[TrainingRow] = [self.rows[i] for i in self.batches[step]]
        if isinstance(self.loss, StepLoss):
            with matmul_precision(self.result.matmul_dtype):
                batch = self.loss.begin(batch, step)
            self.change.enable()
        return batch

    def _step(self, batch: Sequence[TrainingRow]) -> bool:
        """Take one optimizer step, and say whether a signal asks for an end.

        Without rows, as where all answers are equally good, nothing moves.
        """
        self.model.train()
        step, steps = len(self.result.losses), len(self.batches)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.rate(step, steps)
        self.optimizer.zero_grad(set_to_none=True)
        mass = sum(row.mass for row in batch)
        total = 0.0
        own, longest = batch[self.world.rank :: self.world.size], len(batch[:: self.world.size])
        size = self.config.micro_batch_size or max(1, longest)
        if self.in_parts and runs_apart(self.model):
            size = 1  # a row is a pass, and all processes must take part in each
        # Around the backward pass too: gradient checkpointing runs layers again.
        with matmul_precision(self.result.matmul_dtype), packed_layers(self.model):
            # A process without rows takes part in every pass where parts of the weights come from it.
            for first in range(0, longest if self.in_parts else len(own), size):
                part = own[first : first + size]
                loss = self.loss(part) / mass if part else 0 * self.loss(batch[:1])
                loss.backward()
                total += float(loss.item())
        parameters = tuple(self.parameters.values())
        total, stop = self.world.add_up(parameters, total, sum(row.mass for row in own), of=mass)
        if (penalty := self.change.penalty()) is not None:
            penalty.backward()
        norm = gathered(torch.nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm))
        self.result.losses.append((step + 1, total))
        self.result.norms.append(float(norm))
        if isinstance(self.loss, StepLoss):
            self.result.measures.append(self.loss.measured())  # of this process's rows
        self._check(total, float(norm))
        if batch:
            self.optimizer.step()
        self.change.stepped(step + 1, steps)
        self.result.steps = step + 1
        return stop

    def _check(self, loss: float, norm: float) -> None:
        """Stop a run that can only get worse."""
        step, steps = len(self.result.losses), len(self.batches)
        values = [value for _, value in self.result.losses]
        first, recent = (sum(part) / len(part) for part in (values[: RECENT // 2], values[-RECENT:]))
        if not math.isfinite(loss):
            reason = f"the loss became {loss} at step {step} of {steps}"
        elif not math.isfinite(norm):
            reason = f"the gradient became {norm} at step {step} of {steps}"
        elif step > self.config.warmup_steps(steps) + 2 * RECENT and recent > first + DIVERGED:
            reason = f"the loss rose from {first:.2f} to {recent:.2f} by step {step} of {steps}"
        else:
            return
        raise TrainingError("training-diverged", reason, hint="lower the learning rate")

    def _out_of_patience(self, evaluate: Evaluate) -> bool:
        """Evaluate and keep the weights if they are the best so far; say whether to stop."""
        result = self.result
        self.model.eval()
        with torch.no_grad():
            value = self.world.from_first(evaluate)
        self.change.enable()
        result.evaluations.append((result.steps, value))
        if not result.best or value > max(v for _, v in result.evaluations[:-1]):
            result.best = result.steps
            self.best = {name: p.detach().clone() for name, p in self.parameters.items()}
        waited = sum(step > result.best for step, _ in result.evaluations)
        return self.config.patience is not None and waited >= self.config.patience

    # ---- checkpoints

    def _checkpoint(self, *, force: bool) -> None:
        now = time.perf_counter()
        due = now - self.saved >= max(CHECKPOINT_SECONDS, self.saving / CHECKPOINT_SHARE)
        if self.checkpoints is None:
            return
        if self.change.sharded:  # all put the state together
            due = bool(self.world.from_first(lambda: due))
        elif not self.world.first:
            return
        if not (force or due):
            return
        state = self._state()
        if self.world.first:
            self.checkpoints.save(self.result.steps, state)
        self.saved = time.perf_counter()
        self.saving = self.saved - now

    def _state(self) -> RunState:
        tensors: dict[str, torch.Tensor] = {"random": torch.get_rng_state()}
        if torch.cuda.is_available():
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.model.device)
        for i, (name, parameter) in enumerate(self.parameters.items()):
            own = {f"weight.{i}": parameter.detach()}
            for key, value in optimizer_state(self.optimizer, parameter).items():
                own[f"optimizer.{i}.{key}"] = value
            for key, value in own.items():
                whole = gathered(value)
                if self.world.first:
                    tensors[key] = whole.cpu() if self.change.sharded else whole
            if self.best:
                tensors[f"best.{i}"] = self.best[name]
        tensors |= {f"change.{name}": tensor for name, tensor in self.change.state().items()}
        values = {f.name: getattr(self.result, f.name) for f in fields(self.result)}
        return RunState(tensors, values | {"micro_batch_size": self.config.micro_batch_size})

    def _restore(self, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
        # The same micro-batches as before, even if more or less memory is free: another order of sums gives other bits.
        self.config = replace(self.config, micro_batch_size=values.pop("micro_batch_size"))
        self.result = TrainResult(**values)
        self.result.losses = [(step, loss) for step, loss in values["losses"]]
        self.result.evaluations = [(step, value) for step, value in values["evaluations"]]
        with torch.no_grad():
            for i, (name, parameter) in enumerate(self.parameters.items()):
                parameter.copy_(placed(tensors[f"weight.{i}"], parameter))
                state_of = _under(tensors, f"optimizer.{i}.")
                restore_optimizer_state(
                    self.optimizer, parameter,
                    {k: placed(v, parameter) if v.shape == parameter.shape else v for k, v in state_of.items()},
                )  # fmt: skip
                if f"best.{i}" in tensors:
                    self.best[name] = tensors[f"best.{i}"].to(parameter.device)
        self.change.set_state(_under(tensors, "change."))
        if not self.world.first:  # the checkpoint may be of fewer processes
            torch.manual_seed(self.config.seed + self.world.rank + self.world.size * self.result.steps)
            return
        torch.set_rng_state(tensors["random"])
        if "random.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random.cuda"], self.model.device)


def _under(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def plan_batches(rows: Sequence[TrainingRow], config: TrainConfig) -> list[list[int]]:
    """The rows of every step of every epoch, by their numbers."""
    rng = random.Random(config.seed)
    return [batch for _ in range(config.epochs) for batch in epoch_batches(rows, int(config.batch_size), rng)]


def has_dropout(model: Any) -> bool:
    """Whether the model, with any change that is on it, drops activations at random while it trains."""
    dropout = any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in model.modules())
    return dropout or bool(getattr(model.config.get_text_config(), "attention_dropout", 0))
