"""Training the output layer, or the last layers: frozen layers run once, against running all at every step.

The peer is careful code with transformers alone: the frozen parameters do not require gradients (so nothing
is kept of their layers, and nothing flows back through them), batches of rows of like length are padded and masked,
and `model(..., labels=...)` gives the mean loss of the answer tokens. Both train the same parameters from the same
values with the same optimizer, clipping, rates and batches, in one process; every step's loss is compared.

Findings: counted in operations, the peer needs 6.4 times ours for the output layer and 3.2 times for the last eight
layers of thirty. For the output layer three quarters of ours are the one pass over the frozen layers, so more epochs
cost little and the ratio grows with them; for the last layers four fifths are their own training, so that however many
epochs follow, it stays below 4.0. In both, six tenths of what the peer does in an epoch are waste of another kind: it
projects all 46 tokens of a row onto the vocabulary, of which five are answers, and runs the 20 tokens that all prompts
begin with for every row.

Measured on two AVX2 cores on 2026-11-21, alone: output layer 6.0x, last layers 3.4x, losses equal within 1e-3; on
two with AVX-512 on 2026-11-22: 5.4x, 3.2x.
"""

from __future__ import annotations

import copy
import random
import time
from pathlib import Path

import torch

from _common import finish
from rung.artifact.artifact import Artifact
from rung.engines.opening import open_torch
from rung.rungs import LastLayers, OutputLayer
from rung.task import Task
from rung.training.activation_cache import cached_loss
from rung.training.changes import OUTPUT
from rung.training.examples import epoch_batches, tokenize
from rung.training.loop import train

ROWS, EPOCHS, BATCH = 48, 3, 16
GOALS = {"output_layer": 2.5, "last_layers": 2.5}


def padded(part, device):  # type: ignore[no-untyped-def]
    """Return a batch padded on the right, its mask, and labels at the answers alone."""
    width = max(map(len, part))
    ids = torch.tensor([[*row.tokens, *([0] * (width - len(row)))] for row in part])
    mask = torch.tensor([[i < len(row) for i in range(width)] for row in part])
    answers = torch.tensor([[any(a <= i < b for a, b in row.spans) for i in range(width)] for row in part])
    return ids.to(device), mask.long().to(device), torch.where(answers, ids, -100).to(device)


def peer(model, names, rows, schedule):  # type: ignore[no-untyped-def]
    """Train the named parameters of a copy of the model; return its losses and the seconds."""
    model = copy.deepcopy(model).requires_grad_(False)
    if OUTPUT in names and OUTPUT not in dict(model.named_parameters()):
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone(), requires_grad=False)
    trained = [p for name, p in model.named_parameters() if name in names]
    assert len(trained) == len(names)
    for p in trained:
        p.requires_grad_(True)
    groups = [[p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]]
    decays = (schedule.weight_decay, 0.0)
    optimizer = torch.optim.AdamW(
        [{"params": group, "weight_decay": decay} for group, decay in zip(groups, decays, strict=True) if group],
        lr=schedule.learning_rate, fused=True,
    )  # fmt: skip
    rng = random.Random(schedule.seed)
    plan = [batch for _ in range(EPOCHS) for batch in epoch_batches(rows, BATCH, rng)]
    model.train()
    losses = []
    start = time.perf_counter()
    for step, batch in enumerate(plan):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step, len(plan))
        optimizer.zero_grad(set_to_none=True)
        ids, mask, labels = padded([rows[i] for i in batch], model.device)
        loss = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, schedule.max_grad_norm)
        optimizer.step()
        losses.append(loss.item())
    return losses, time.perf_counter() - start


def main() -> None:
    """Time both on the same rows, check that they agree, print a table and one JSON line."""
    task = Task.load(Path(__file__).parents[1] / "examples" / "banking77" / "task.yaml")
    data = task.read()
    engine = open_torch("embedded")
    zero = Artifact.zero_shot(task, data.labels)
    rows = tokenize(zero, engine, data.train[:ROWS])
    tokens = EPOCHS * sum(map(len, rows))
    ratios = {}
    print(f"{len(rows)} rows of {tokens / EPOCHS / len(rows):.0f} tokens, {EPOCHS} epochs, batches of {BATCH}")
    print(f"{'trained':14} {'way':14} {'seconds':>8} {'tok/s':>8} {'ratio':>7}")
    alike = {"epochs": EPOCHS, "batch_size": BATCH, "precision": "float32"}
    for rung in (OutputLayer(**alike), LastLayers(**alike)):
        change = rung.change(engine, zero)
        wanted, theirs = peer(engine.model, set(change.parameters()), rows, rung)
        start = time.perf_counter()
        loss = cached_loss(engine.model, rung.frozen_layers(engine.model), rows, rung)
        once = time.perf_counter() - start
        course = train(engine.model, change, rows, rung, loss=loss)
        ours = time.perf_counter() - start
        change.remove()
        assert max(abs(a - b) for (_, a), b in zip(course.losses, wanted, strict=True)) < 1e-3, "another loss"
        ratios[rung.name.replace("-", "_")] = theirs / ours
        print(f"{rung.name:14} {'all layers':14} {theirs:8.1f} {tokens / theirs:8.0f} {1:7.1f}")
        print(f"{'':14} {'rung':14} {ours:8.1f} {tokens / ours:8.0f} {theirs / ours:7.1f}")
        print(f"{'':14} frozen layers, once: {once:.1f} s; loss {wanted[0]:.3f} -> {wanted[-1]:.3f}")
    finish("head_only", ratios, GOALS)


if __name__ == "__main__":
    main()
