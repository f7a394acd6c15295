"""DPO on the embedded model against TRL's DPOTrainer with PEFT: tokens per second, memory, the same losses.

Pairs of random tokens in two shapes: prompts ten times as long as the answers (300 and 30 tokens), and as long as they
are (100 and 100). Prompts share 20 tokens, as those of a task share its instruction. Batch 8, rank 16 on all linear
layers, AdamW, float32, one epoch. Each side runs in its own process, one after the other, so that peak memory is its
own; libraries, model and the first step are not in the times, and the reference's log-probabilities are. The peer
computes these before training (`precompute_ref_log_probs`), which is its fastest way, and runs without gradient
checkpointing. Tokens are those that the peer reads: the prompt counts for both answers of a pair.

What makes the difference: the prompt runs once for both answers and the shared beginning once a batch, no padding, the
vocabulary projected at answer tokens alone, plain products in place of PEFT's LoRA layers.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from dataclasses import replace
from typing import Any

from _common import finish, run_script
from rung.machine import peak_memory_bytes

STEPS, BATCH, RANK, RATE, BETA, SHARED = 6, 8, 16, 5e-5, 0.1, 20
SHAPES = {"10:1": (300, 30), "1:1": (100, 100)}  # tokens of the prompt, and of each answer
GOALS = {"10:1": 4.0, "1:1": 3.0, "memory_10:1": 1 / 0.55, "memory_1:1": 1 / 0.55, "same_losses": 1.0}


def pairs(shape: str, steps: int) -> list[Any]:
    """Return pairs in the order of training; answers are a quarter longer or shorter than the shape says."""
    from rung.training.preferences import Pair

    rng, (prompt, answer) = random.Random(0), SHAPES[shape]

    def some(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(100, 40_000) for _ in range(count))

    head, made = some(SHARED), []
    for i in range(steps * BATCH):
        lengths = [round(answer * rng.uniform(0.75, 1.25)) for _ in range(2)]
        made.append(Pair(head + some(prompt - SHARED), (some(lengths[0]), some(lengths[1])), f"row {i}"))
    return made


def config() -> Any:
    import torch

    from rung.training.peft import peft

    torch.manual_seed(0)
    return peft().LoraConfig(r=RANK, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")


def ours(shape: str, name: str, steps: int) -> dict[str, Any]:
    """Train with Rung's loop."""
    from rung.engines.opening import open_torch
    from rung.training import loop
    from rung.training.config import TrainConfig
    from rung.training.memory import fit_memory
    from rung.training.peft import PeftAdapter
    from rung.training.preferences import PairLoss, dpo, sequence_logprobs

    model, rows = open_torch(name).model, pairs(shape, steps)
    loop.epoch_batches = lambda part, size, rng: (list(range(i, i + size)) for i in range(0, len(part), size))
    clock = _Clock()
    change = PeftAdapter(model, config())
    began = time.perf_counter()
    change.enable()
    values = sequence_logprobs(model, rows)
    clock.reference = time.perf_counter() - began
    rows = [replace(row, reference=value) for row, value in zip(rows, values, strict=True)]
    real = loop._Run._step

    def step(self: Any, batch: Any) -> None:
        real(self, batch)
        clock.ends.append(time.perf_counter())

    loop._Run._step = step
    schedule = TrainConfig(
        epochs=1, batch_size=BATCH, learning_rate=RATE, lr_scheduler="constant", warmup_ratio=0.0, precision="float32",
        micro_batch_size=fit_memory(model, rows, BATCH).micro_batch_size,
    )  # fmt: skip
    course = loop.train(model, change, rows, schedule, loss=PairLoss(model, objective=dpo("sigmoid", BETA, 0.0)))
    return clock.result(rows, [loss for _, loss in course.losses])


def trl(shape: str, name: str, steps: int) -> dict[str, Any]:
    """Train with TRL's DPOTrainer."""
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    from rung.engines.opening import open_torch
    from rung.training.peft import peft

    engine, rows, clock = open_torch(name), pairs(shape, steps), _Clock()
    data = Dataset.from_dict({
        "prompt_ids": [list(row.prompt) for row in rows],
        "chosen_ids": [list(row.completions[0]) for row in rows],
        "rejected_ids": [list(row.completions[1]) for row in rows],
    })  # fmt: skip

    class Ends(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.ends.append(time.perf_counter())

    class InOrder(DPOTrainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any) -> Any:
            return SequentialSampler(self.train_dataset)

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, *arguments: Any) -> Any:
            began = time.perf_counter()
            found = super()._precompute_ref_logps(*arguments)
            clock.reference = time.perf_counter() - began
            return found

    with tempfile.TemporaryDirectory() as folder:
        settings = DPOConfig(
            output_dir=folder, per_device_train_batch_size=BATCH, num_train_epochs=1, logging_steps=1, beta=BETA,
            learning_rate=RATE, lr_scheduler_type="constant", warmup_steps=0, weight_decay=0.0, max_grad_norm=1.0,
            optim="adamw_torch_fused", report_to="none", save_strategy="no", bf16=False, fp16=False, use_cpu=True,
            gradient_checkpointing=False, max_length=None, disable_tqdm=True, dataloader_pin_memory=False,
            precompute_ref_log_probs=True,
        )  # fmt: skip
        tokenizer = AutoTokenizer.from_pretrained(engine.files.folder, local_files_only=True)
        wrapped = peft().get_peft_model(engine.model, config())
        trainer = InOrder(
            model=wrapped, args=settings, train_dataset=data, processing_class=tokenizer, callbacks=[Ends()]
        )
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "grad_norm" in entry]
    return clock.result(rows, losses)


class _Clock:
    """When steps ended, and how long the reference took."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.reference = 0.0

    def result(self, rows: list[Any], losses: list[float]) -> dict[str, Any]:
        """Return tokens per second, of all steps but the first, and the peak memory of this process."""
        assert len(self.ends) == len(rows) // BATCH
        tokens = sum(2 * len(row.prompt) + sum(map(len, row.completions)) for row in rows)
        tokens_after = sum(2 * len(row.prompt) + sum(map(len, row.completions)) for row in rows[BATCH:])
        seconds = self.ends[-1] - self.ends[0] + self.reference * tokens_after / tokens
        return {"speed": tokens_after / seconds, "peak": peak_memory_bytes(), "losses": losses}


SIDES = {"rung": ours, "trl": trl}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", choices=SIDES)
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--steps", type=int, default=STEPS)
    chosen = parser.parse_args()
    if chosen.side:
        print(json.dumps(SIDES[chosen.side](chosen.shape, chosen.model, chosen.steps)))
        return
    size = ("--model", chosen.model, "--steps", str(chosen.steps))
    ratios, apart = {}, 0.0
    for shape in SHAPES:
        found = {
            side: json.loads(run_script(__file__, "--side", side, "--shape", shape, *size).splitlines()[-1])
            for side in SIDES
        }
        for side, each in found.items():
            print(
                f"{shape:5} {side:5} {each['speed']:8.0f} tokens/s   peak {each['peak'] / 2**30:5.2f} GiB", flush=True
            )
        us, peer = found["rung"], found["trl"]
        ratios |= {shape: us["speed"] / peer["speed"], f"memory_{shape}": peer["peak"] / us["peak"]}
        apart = max(apart, *(abs(a - b) for a, b in zip(us["losses"], peer["losses"], strict=True)))
    print(f"losses are at most {apart:.1e} apart")
    finish("preference", {**ratios, "same_losses": 1e-3 / max(apart, 1e-9)}, GOALS)


if __name__ == "__main__":
    main()
