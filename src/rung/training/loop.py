"""The training loop: what every method of tuning shares."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from rung.errors import TrainingError
from rung.machine import peak_memory_bytes
from rung.progress import QUIET, Progress
from rung.training.changes import Trainable
from rung.training.checkpoints import Checkpoints, State
from rung.training.examples import Row, epoch_batches
from rung.training.kernels import lean_gates
from rung.training.loss import AnswerLoss, Loss, packed_layers
from rung.training.optimizers import OptimizerName, embeddings, kept_state, optimizer, set_state
from rung.training.precision import Precision, Products, multiplying, products

CHECKPOINT_SECONDS = 60.0  # at least so long between checkpoints,
CHECKPOINT_SHARE = 0.05  # and so long that writing takes no more than this share of the time
DIVERGED = 2.0  # nats above the first losses: no fine-tuning that learns goes there
RECENT = 10  # losses averaged for that, twice so many behind the warm-up, in which a loss may rise and fall again

Evaluate = Callable[[], float]  # the task's own metric on held-out rows, larger is better


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        epochs: times that every row is seen.
        batch_size: rows per optimizer step.
        micro_batch: rows per forward pass; gradients add up to those of the whole batch, exactly.
        learning_rate: its peak; it rises over `warmup` of the steps.
        decay: how it falls after that: along a cosine to zero, linearly to zero, or not.
        max_norm: gradients are clipped to this norm.
        weight_decay: of AdamW (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101), on matrices only.
        optimizer: AdamW, or AdamW whose moments take 8 bits (see `rung.training.optimizers`).
        precision: of products (see `rung.training.precision.products`).
        smoothing: label smoothing.
        noise: NEFTune's alpha.
        patience: evaluations without a new best after which training stops; None trains to the end. With or without,
            the best weights are kept where there are evaluations.
        seed: seed of order and noise.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    micro_batch: int | None = None
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = 0.06
    max_norm: float = 1.0
    weight_decay: float = 0.0
    optimizer: OptimizerName = "adamw"
    precision: Precision = "auto"
    smoothing: float = 0.0
    noise: float = 0.0
    patience: int | None = None
    seed: int = 0

    def rising(self, steps: int) -> int:
        """Return in how many of the steps the rate rises."""
        return max(1, round(self.warmup * steps))

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of `step`, counted from 0."""
        rising = self.rising(steps)
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        if self.decay == "constant":
            return self.learning_rate
        done = (step - rising) / max(1, steps - rising)
        return self.learning_rate * (0.5 * (1 + math.cos(math.pi * done)) if self.decay == "cosine" else 1 - done)


@dataclass(slots=True)
class Course:
    """How training went.

    Attributes:
        losses: (step, mean loss per supervised token).
        norms: gradient norm of each step, before clipping.
        evaluations: (step, metric).
        best: step with the best metric, whose weights are kept; 0 without evaluations.
        steps: optimizer steps taken.
        tokens: tokens read, shared beginnings counted for every row.
        seconds: time spent.
        memory_bytes: peak resident memory of the process (of the device, on CUDA).
        products: the type in which float32 matrices were multiplied.
    """

    losses: list[tuple[int, float]] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    evaluations: list[tuple[int, float]] = field(default_factory=list)
    best: int = 0
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    memory_bytes: int = 0
    products: Products = "float32"

    def as_settings(self) -> dict[str, Any]:
        """Return what an artifact tells of it."""
        settings: dict[str, Any] = {
            "losses": [list(point) for point in self.losses],
            "training_seconds": self.seconds,
            "training_tokens": self.tokens,
            "peak_memory_bytes": self.memory_bytes,
            "products": self.products,
        }
        if self.evaluations:
            settings |= {"evaluations": [list(point) for point in self.evaluations], "best_step": self.best}
        return settings


def train(
    model: Any,
    change: Trainable,
    rows: Sequence[Row],
    schedule: Schedule,
    *,
    loss: Loss | None = None,
    evaluate: Evaluate | None = None,
    checkpoints: Checkpoints | None = None,
    stop_after: int | None = None,
    progress: Progress = QUIET,
) -> Course:
    """Train a change of a base model's weights; the base model's own stay as they are.

    The loss of a step is the mean over all supervised tokens of its batch, however it is cut into forward passes, so
    long answers do not count less and accumulated gradients are those of the whole batch.

    Args:
        model: the base model.
        change: what is trained, on the model or beside it.
        rows: training rows.
        schedule: how long and how fast.
        loss: summed loss of some rows; by default that of their supervised tokens.
        evaluate: called after each epoch with the change switched on; the weights of the best epoch are kept.
        checkpoints: where the run's state is kept; a run that finds one goes on from it.
        stop_after: stop after so many steps in all, keeping the state as after a kill (the schedule stays whole).
        progress: told of every step.

    Raises:
        TrainingError: there are no rows, the loss is not a number or explodes, or a checkpoint cannot be written.
    """
    if not rows:
        raise TrainingError("too-few-rows", "there are no training rows")
    run = _Run(model, change, rows, schedule, loss, checkpoints)
    change.enable()
    try:
        with change.lean(), lean_gates(model):
            run.go(evaluate, stop_after, progress)
    finally:
        for parameter in run.parameters.values():
            parameter.requires_grad_(False)
            parameter.grad = None
        model.eval()
        change.disable()
    return run.course


class _Run:
    """The state of one training run."""

    def __init__(
        self,
        model: Any,
        change: Trainable,
        rows: Sequence[Row],
        schedule: Schedule,
        loss: Loss | None,
        checkpoints: Checkpoints | None,
    ) -> None:
        self.model, self.change, self.rows, self.schedule = model, change, rows, schedule
        self.parameters = change.parameters()
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        random_passes = schedule.noise > 0 or has_dropout(model)
        self.loss: Loss = loss or AnswerLoss(model, not random_passes, schedule.smoothing, schedule.noise)
        self.optimizer = optimizer(
            schedule.optimizer, tuple(self.parameters.values()),
            learning_rate=schedule.learning_rate, weight_decay=schedule.weight_decay, whole=embeddings(model),
        )  # fmt: skip
        self.plan = _plan(rows, schedule)
        self.checkpoints, self.saved, self.saving = checkpoints, time.perf_counter(), 0.0
        self.course = Course(products=products(model.device.type, schedule.precision))
        self.best: dict[str, torch.Tensor] = {}
        torch.manual_seed(schedule.seed)
        if checkpoints is not None and (found := checkpoints.last()) is not None:
            self._restore(*found)

    def go(self, evaluate: Evaluate | None, stop_after: int | None, progress: Progress) -> None:
        """Take the steps that are left."""
        course, steps = self.course, len(self.plan)
        last = min(steps, stop_after) if stop_after is not None else steps
        per_epoch = steps // self.schedule.epochs
        start, tokens = time.perf_counter() - course.seconds, 0
        began = time.perf_counter()
        progress.start("training", steps)
        if course.steps:
            progress.advance(course.steps, note="resumed")
        while course.steps < last:
            batch = [self.rows[i] for i in self.plan[course.steps]]
            self._step(batch)
            tokens += sum(map(len, batch))
            course.tokens += sum(map(len, batch))
            course.memory_bytes = max(course.memory_bytes, _peak_memory(self.model))
            progress.advance(note=_status(course, tokens / (time.perf_counter() - began)))
            if evaluate is not None and course.steps % per_epoch == 0 and self._evaluated(evaluate):
                break
            course.seconds = time.perf_counter() - start
            self._keep(force=course.steps == stop_after)
        if course.steps == steps or stop_after is None:
            if self.best:
                with torch.no_grad():
                    for name, parameter in self.parameters.items():
                        parameter.copy_(self.best[name])
            self.change.finished()
        progress.finish(_outcome(course))

    def _step(self, batch: Sequence[Row]) -> None:
        """Take one optimizer step."""
        self.model.train()
        step, steps = len(self.course.losses), len(self.plan)
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(step, steps)
        self.optimizer.zero_grad(set_to_none=True)
        supervised = sum(row.supervised for row in batch)
        total = 0.0
        size = self.schedule.micro_batch or len(batch)
        # Around the backward pass too: checkpointing runs layers again.
        with multiplying(self.course.products), packed_layers(self.model):
            for first in range(0, len(batch), size):
                loss = self.loss(batch[first : first + size]) / supervised
                loss.backward()
                total += float(loss.item())
        if (penalty := self.change.penalty()) is not None:
            penalty.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.schedule.max_norm)
        self.course.losses.append((step + 1, total))
        self.course.norms.append(float(norm))
        self._check(total, float(norm))
        self.optimizer.step()
        self.change.stepped(step + 1, steps)
        self.course.steps = step + 1

    def _check(self, loss: float, norm: float) -> None:
        """Stop a run that can only get worse."""
        step, steps = len(self.course.losses), len(self.plan)
        if not math.isfinite(loss) or not math.isfinite(norm):
            what = "loss" if not math.isfinite(loss) else "gradient"
            raise TrainingError(
                "training-diverged",
                f"the {what} became {loss if what == 'loss' else norm} at step {step} of {steps}",
                hint="lower the learning rate",
            )
        values = [value for _, value in self.course.losses]
        first, recent = values[: RECENT // 2], values[-RECENT:]
        if (
            step > self.schedule.rising(steps) + 2 * RECENT
            and sum(recent) / len(recent) > sum(first) / len(first) + DIVERGED
        ):
            raise TrainingError(
                "training-diverged",
                f"the loss rose from {sum(first) / len(first):.2f} to {sum(recent) / len(recent):.2f} "
                f"by step {step} of {steps}",
                hint="lower the learning rate",
            )

    def _evaluated(self, evaluate: Evaluate) -> bool:
        """Evaluate; keep the weights if they are the best so far; say whether to stop."""
        course = self.course
        self.model.eval()
        with torch.no_grad():
            value = evaluate()
        self.change.enable()
        course.evaluations.append((course.steps, value))
        if not course.best or value > max(v for _, v in course.evaluations[:-1]):
            course.best = course.steps
            self.best = {name: p.detach().clone() for name, p in self.parameters.items()}
        waited = sum(step > course.best for step, _ in course.evaluations)
        return self.schedule.patience is not None and waited >= self.schedule.patience

    # ---- checkpoints

    def _keep(self, *, force: bool) -> None:
        if self.checkpoints is None:
            return
        now = time.perf_counter()
        pause = max(CHECKPOINT_SECONDS, self.saving / CHECKPOINT_SHARE)
        if not force and now - self.saved < pause:
            return
        self.checkpoints.save(self.course.steps, self._state())
        self.saved = time.perf_counter()
        self.saving = self.saved - now

    def _state(self) -> State:
        tensors: dict[str, torch.Tensor] = {"random": torch.get_rng_state()}
        if torch.cuda.is_available():
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.model.device)
        for i, (name, parameter) in enumerate(self.parameters.items()):
            tensors[f"weight.{i}"] = parameter.detach()
            for key, value in kept_state(self.optimizer, parameter).items():
                tensors[f"optimizer.{i}.{key}"] = value
            if self.best:
                tensors[f"best.{i}"] = self.best[name]
        tensors |= {f"change.{name}": tensor for name, tensor in self.change.state().items()}
        c = self.course
        values = {
            "losses": c.losses, "norms": c.norms, "evaluations": c.evaluations, "best": c.best, "steps": c.steps,
            "tokens": c.tokens, "seconds": c.seconds, "memory_bytes": c.memory_bytes,
            "products": c.products, "micro_batch": self.schedule.micro_batch,
        }  # fmt: skip
        return State(tensors, values)

    def _restore(self, steps: int, state: State) -> None:
        tensors, values = state.tensors, dict(state.values)
        # As many rows a pass as before, whatever memory is free now: sums in another order would end in other bits.
        self.schedule = replace(self.schedule, micro_batch=values.pop("micro_batch"))
        self.course = Course(**values)
        self.course.losses = [(step, loss) for step, loss in values["losses"]]
        self.course.evaluations = [(step, value) for step, value in values["evaluations"]]
        assert self.course.steps == steps
        with torch.no_grad():
            for i, (name, parameter) in enumerate(self.parameters.items()):
                parameter.copy_(tensors[f"weight.{i}"])
                prefix = f"optimizer.{i}."
                kept = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
                set_state(self.optimizer, parameter, kept)
                if f"best.{i}" in tensors:
                    self.best[name] = tensors[f"best.{i}"].to(parameter.device)
        self.change.set_state({k.removeprefix("change."): v for k, v in tensors.items() if k.startswith("change.")})
        torch.set_rng_state(tensors["random"])
        if "random.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random.cuda"], self.model.device)


def _plan(rows: Sequence[Row], schedule: Schedule) -> list[list[int]]:
    rng = random.Random(schedule.seed)
    return [batch for _ in range(schedule.epochs) for batch in epoch_batches(rows, schedule.batch_size, rng)]


def has_dropout(model: Any) -> bool:
    """Say whether the model, a change on it included, drops activations at random while it trains."""
    config = model.config.get_text_config()
    return any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in model.modules()) or bool(
        getattr(config, "attention_dropout", 0)
    )


def _peak_memory(model: Any) -> int:
    if model.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(model.device))
    return peak_memory_bytes()


def _status(course: Course, speed: float) -> str:
    """Return the loss of the last step, the tokens per second and the peak memory, in words."""
    return f"loss {course.losses[-1][1]:.3f}, {speed:.0f} tok/s, peak {course.memory_bytes / 2**30:.1f} GiB"


def _outcome(course: Course) -> str:
    if not course.losses:
        return ""
    text = f"loss {course.losses[-1][1]:.3f}"
    if course.evaluations:
        text += f", best {max(v for _, v in course.evaluations):.3f} after step {course.best}"
    return text
