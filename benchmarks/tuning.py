"""LoRA training of the embedded model against TRL's SFTTrainer with PEFT: tokens per second, memory, the same losses.

Same rows (BANKING77, as zero-shot renders them), same order, batch 16, rank 16 on all linear layers, AdamW, no dropout,
float32; and, where the processor has AMX, once more with bfloat16 on both sides: the peer under autocast, its own way,
ours in matrix products alone. Each side runs in its own process, one after the other, so that peak memory is its own;
libraries, model and the first step are not in the times. The peer runs padded (its default) and packed (`packing=True`,
blocks of 512 tokens, so its steps hold other rows: losses are compared with the padded run only). Tokens are those of
the rows, padding left out; ours reads the beginning that prompts share once a step, and counts it for every row all the
same, as the peer computes it for every row.

What makes the difference: the shared beginning (here 20 of about 46 tokens a row), no padding, the vocabulary projected
at answer tokens alone (the peer makes logits [16, width, 49152]), plain products in place of PEFT's LoRA layers.

Measured on two cores with AMX on 2026-11-22, in three runs: in float32 3.1x, 3.8x and 2.5x padded, 3.5x, 3.4x and 2.9x
packed, losses 1e-5 apart; in bfloat16 3.3x, 3.9x and 2.9x, 3.3x, 4.1x and 3.2x. Ours ran at 491 and 525 tokens/s in the
last two, the peer at 129 and 210: what allocates more suffers more from neighbours. The peak memory, 0.55, 0.54 and, in
the last run, since gated networks keep two wide tensors for the backward pass and not four, 0.49; in bfloat16 0.65,
0.66 and 0.59. In bfloat16 half of a step is still products, now bound by reading the weights (4.4 ms where the same
product from the cache takes 1.9), a tenth the multiplications of SwiGLU and norms, 8 % attention, which stays in
float32: torch's flash attention is four times slower with bfloat16 products. Autocast halves the peer's activations,
which is where its memory goes; its losses leave the float32 curve by up to 0.5, ours by 0.009. Larger malloc thresholds
change nothing. Of what a step kept for the backward pass (1.0 GB of the longest batch), half were those four.

Measured on two AVX2 cores on 2026-11-21, alone: 2.3x to 2.5x padded, 2.6x to 2.7x packed, 0.60 to 0.65 of the memory.
A profile of a step: 65 % matrix products at the processor's peak rate (95 GFLOP/s), of which the base weights' alone
are 1.1 s of 1.9 s; 19 % LoRA's narrow ones, 10 % norms, rotary embedding and SwiGLU. Compiling each decoder layer
with dynamic shapes (torch 2.15, inductor) was tried: 324 to 330 tokens/s against 283 to 330 uncompiled in the same
minutes, 2.8 GiB instead of 3.2, and 30 to 75 s for the first step. What it fuses, LowRankLinear has fused already; it
is left out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from typing import Any

from _common import EXAMPLES, finish, run_script
from rung.machine import peak_memory_bytes

GOALS = {"padded": 3.5, "packed": 3.0, "memory": 1 / 0.55, "same_losses": 1.0}
STEPS, BATCH, RANK, RATE = 8, 16, 16, 2e-4
INSTRUCTION = "Which intent does this message of a bank's customer express?"
PRECISIONS = ("float32", "auto")


def rows(instruction: str, steps: int) -> tuple[Any, list[Any]]:
    """Return the torch engine and the training rows as tokens, in the order of training."""
    from rung.artifact.artifact import Artifact
    from rung.engines.opening import open_torch
    from rung.task import Task
    from rung.training.examples import tokenize
    from rung.training.loop import plan_batches

    task = Task.load(EXAMPLES / "banking77" / "task.yaml").model_copy(update={"instruction": instruction})
    data, engine = task.read(), open_torch("embedded")
    made = tokenize(Artifact.zero_shot(task, data.labels), engine, data.train[: steps * BATCH])
    return engine, [made[i] for batch in plan_batches(made, schedule()) for i in batch]


def schedule(precision: str = "float32") -> Any:
    from rung.training.config import TrainConfig

    return TrainConfig(
        epochs=1, batch_size=BATCH, learning_rate=RATE, lr_scheduler="constant", warmup_ratio=0.0, precision=precision
    )  # fmt: skip


def config(model: Any) -> Any:
    import torch

    from rung.training.peft import linear_layers, peft

    torch.manual_seed(0)
    return peft().LoraConfig(r=RANK, lora_alpha=32, target_modules=linear_layers(model), task_type="CAUSAL_LM")


def ours(instruction: str, steps: int, precision: str) -> dict[str, Any]:
    """Train with Rung's loop."""
    from rung.training import loop
    from rung.training.peft import PeftAdapter

    engine, made = rows(instruction, steps)
    # The rows are in the order of training already; batches are taken as they come.
    loop.epoch_batches = lambda part, size, rng: (list(range(i, i + size)) for i in range(0, len(part), size))
    ends: list[float] = []
    real = loop._Run._step

    def step(self: Any, batch: Any) -> None:
        real(self, batch)
        ends.append(time.perf_counter())

    loop._Run._step = step
    change = PeftAdapter(engine.model, config(engine.model))
    course = loop.train(engine.model, change, made, schedule(precision))
    return _result(ends, [sum(map(len, made[i : i + BATCH])) for i in range(0, len(made), BATCH)], course.losses)


def trl(instruction: str, steps: int, precision: Any, *, packing: bool) -> dict[str, Any]:
    """Train with TRL's SFTTrainer."""
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from rung.training.peft import peft
    from rung.training.precision import matmul_dtype

    engine, made = rows(instruction, steps)
    bf16 = matmul_dtype("cpu", precision) == "bfloat16"
    masks = [[int(any(a <= i < b for a, b in row.spans)) for i in range(len(row))] for row in made]
    data = Dataset.from_dict({"input_ids": [list(row.tokens) for row in made], "completion_mask": masks})
    starts: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            starts.append(time.perf_counter())

    class InOrder(SFTTrainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    total = sum(map(len, made))
    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(
            output_dir=folder, per_device_train_batch_size=2 if packing else BATCH, num_train_epochs=1, logging_steps=1,
            learning_rate=RATE, lr_scheduler_type="constant", warmup_steps=0, weight_decay=0.0, max_grad_norm=1.0,
            optim="adamw_torch_fused", report_to="none", save_strategy="no", bf16=bf16, fp16=False, use_cpu=True,
            gradient_checkpointing=False, completion_only_loss=True, max_length=512 if packing else None,
            packing=packing, disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        tokenizer = AutoTokenizer.from_pretrained(engine.files.folder, local_files_only=True)
        wrapped = peft().get_peft_model(engine.model, config(engine.model))
        trainer = InOrder(
            model=wrapped, args=settings, train_dataset=data, processing_class=tokenizer, callbacks=[Clock()]
        )
        trainer.train()
        losses = [(i, entry["loss"]) for i, entry in enumerate(trainer.state.log_history) if "grad_norm" in entry]
        if packing:
            lengths = [len(row) for row in trainer.train_dataset["input_ids"]]
            tokens = [sum(lengths[i : i + 2]) for i in range(0, len(lengths), 2)]
            assert sum(tokens) == total
        else:
            tokens = [sum(map(len, made[i : i + BATCH])) for i in range(0, len(made), BATCH)]
    return _result(starts, tokens, losses)


def _result(ends: list[float], tokens: list[int], losses: list[Any]) -> dict[str, Any]:
    """Return tokens per second after the first step, and the peak memory of this process."""
    assert len(ends) == len(tokens)
    speed = sum(tokens[1:]) / (ends[-1] - ends[0])
    return {"speed": speed, "peak": peak_memory_bytes(), "losses": [loss for _, loss in losses], "tokens": sum(tokens)}


SIDES = {
    "rung": ours,
    "padded": lambda *chosen: trl(*chosen, packing=False),
    "packed": lambda *chosen: trl(*chosen, packing=True),
}


def measure(
    instruction: str, steps: int, sides: tuple[str, ...] = tuple(SIDES), precision: str = "float32"
) -> dict[str, dict[str, Any]]:
    """Run each side in a process of its own, for so many steps."""
    found = {}
    for side in sides:
        said = run_script(
            __file__, "--side", side, "--instruction", instruction, "--steps", str(steps), "--precision", precision
        )  # fmt: skip
        found[side] = json.loads(said.splitlines()[-1])
        print(
            f"{precision:8} {side:8} {found[side]['speed']:8.0f} tokens/s   peak {found[side]['peak'] / 2**30:5.2f} GiB"
            f"   last loss {found[side]['losses'][-1]:.4f}",
            flush=True,
        )
    return found


def most_apart(losses: list[float], others: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(losses, others, strict=True))


def main() -> None:
    from rung.training.precision import matmul_dtype

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", choices=SIDES)
    parser.add_argument("--instruction", default=INSTRUCTION)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    chosen = parser.parse_args()
    if chosen.side:
        print(json.dumps(SIDES[chosen.side](chosen.instruction, chosen.steps, chosen.precision)))
        return
    ratios, goals, exact = {}, {}, []
    for precision in PRECISIONS if matmul_dtype("cpu") == "bfloat16" else PRECISIONS[:1]:
        found = measure(INSTRUCTION, STEPS, precision=precision)
        us, plain = found["rung"], precision == "float32"
        exact = exact or found["padded"]["losses"]
        apart = {side: most_apart(found[side]["losses"], exact) for side in ("rung", "padded")}
        print(
            f"{us['tokens']} tokens in {STEPS} steps; from the padded peer's losses in float32 ours are at most "
            f"{apart['rung']:.1e} apart, its own {apart['padded']:.1e}"
        )
        measured = {
            "padded": us["speed"] / found["padded"]["speed"],
            "packed": us["speed"] / found["packed"]["speed"],
            "memory": found["padded"]["peak"] / us["peak"],
            "same_losses": (1e-3 if plain else 3e-2) / max(apart["rung"], 1e-9),
        }
        ratios |= {name if plain else f"{name}_bfloat16": value for name, value in measured.items()}
        goals |= {name if plain else f"{name}_bfloat16": goal for name, goal in GOALS.items()}
    finish("tuning", ratios, goals)


if __name__ == "__main__":
    main()
