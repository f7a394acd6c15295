"""The training loop: small batches of like length, a shared prompt beginning, loss on answers alone."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from rung.errors import TrainingError
from rung.progress import QUIET, Progress
from rung.tuning.examples import TokenizedExample, epoch_batches
from rung.tuning.packing import ATTENTION, pack


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        epochs: times that every row is seen.
        batch_size: rows per optimizer step.
        learning_rate: its peak; it rises over `warmup` of the steps and falls to zero along a cosine.
        max_norm: gradients are clipped to this norm.
        weight_decay: of AdamW (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101).
    """

    epochs: int
    batch_size: int
    learning_rate: float
    warmup: float = 0.06
    max_norm: float = 1.0
    weight_decay: float = 0.0
    seed: int = 0

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of `step`, counted from 0."""
        rising = max(1, round(self.warmup * steps))
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def train(
    model: Any, rows: Sequence[TokenizedExample], schedule: Schedule, *, progress: Progress = QUIET
) -> tuple[tuple[int, float], ...]:
    """Train the parameters of `model` that require gradients.

    The loss of a step is the mean over all supervised tokens of its batch, so long answers do not count less.

    Returns:
        The loss curve as (step, loss).

    Raises:
        TrainingError: the loss is not a number.
    """
    torch.manual_seed(schedule.seed)
    rng = random.Random(schedule.seed)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=schedule.learning_rate, weight_decay=schedule.weight_decay, fused=True)
    plan = [batch for _ in range(schedule.epochs) for batch in epoch_batches(rows, schedule.batch_size, rng)]
    losses: list[tuple[int, float]] = []
    tokens, start = 0, time.perf_counter()
    model.train()
    progress.start("training", len(plan))
    with packed_layers(model):
        for step, batch in enumerate(plan):
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate(step, len(plan))
            part = [rows[i] for i in batch]
            loss = _step(model, part, trained, optimizer, schedule.max_norm)
            if not math.isfinite(loss):
                raise TrainingError(
                    "loss-not-finite",
                    f"the loss became {loss} at step {step + 1} of {len(plan)}",
                    hint="lower the learning rate",
                )
            losses.append((step + 1, loss))
            tokens += sum(map(len, part))
            progress.advance(note=f"loss {loss:.3f}, {tokens / (time.perf_counter() - start):.0f} tok/s")
    model.eval()
    progress.finish(f"loss {losses[-1][1]:.3f}" if losses else "")
    return tuple(losses)


def _step(
    model: Any, part: Sequence[TokenizedExample], trained: Sequence[torch.Tensor], optimizer: Any, max_norm: float
) -> float:
    optimizer.zero_grad(set_to_none=True)
    total = answer_loss(model, part)
    loss = total / sum(len(row.answer) for row in part)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, max_norm)
    optimizer.step()
    return float(loss.item())


def answer_loss(model: Any, part: Sequence[TokenizedExample]) -> torch.Tensor:
    """Return the summed negative log-likelihood of the answers' tokens, a scalar with gradients.

    The rows run packed, and the beginning that all prompts share runs once; without dropout loss and gradient are
    those of the plain computation. Only supervised places are projected onto the vocabulary.
    """
    packed = pack(part, model.device)
    attend = {"packing": packed} if _attention(model) == ATTENTION else {"attention_mask": packed.dense_mask()}
    logits = model(
        input_ids=packed.ids,
        position_ids=packed.positions,
        use_cache=False,
        logits_to_keep=packed.supervised,
        **attend,
    ).logits
    return torch.nn.functional.cross_entropy(logits[0].float(), packed.targets, reduction="sum")


@contextmanager
def packed_layers(model: Any) -> Iterator[None]:
    """Attend row by row instead of through a mask over the whole sequence, where the model can."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not base._supports_attention_backend or _attention(model) != "sdpa":
        yield
        return
    base.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        base.set_attn_implementation("sdpa")


def _attention(model: Any) -> str:
    return str(model.config._attn_implementation)
