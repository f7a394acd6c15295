"""Training on CUDA: Rung's loop against TRL's SFTTrainer with PEFT, random-weight Llama shapes of 1B and 8B in bf16.

256 rows of 64 to 1,024 tokens, the last 64 of each supervised, nothing shared between them; batch 16. LoRA of rank 16
on all linear layers for both shapes, full fine-tuning for 1B. The peer runs padded (its default) and packed into blocks
of 1,024. Tokens are those of the rows, padding left out; the first two steps are not in the times.

Model FLOP utilization is what the method needs at least (4 operations per parameter and token with frozen weights, 6
where all are trained; parameters without the input embeddings) over what the device reaches in a large bf16 product,
measured in the same run. Without CUDA the script ends with exit code 3; `--shapes tiny --device cpu --rows 64` tests
the script.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys
import tempfile
import time
from typing import Any

from _shapes import SHAPES, build

ROWS, BATCH, ANSWER, SHORTEST, LONGEST, RANK, WARM = 256, 16, 64, 64, 1024, 16, 2
GOALS = {"padded": 2.0, "packed": 2.0}
UTILIZATION = {"lora": 0.40, "full": 0.45}
OPERATIONS = {"lora": 4, "full": 6}  # per parameter and token


def rows(count: int) -> list[Any]:
    """Return the training rows; the text before the answer is not supervised."""
    from rung.training.examples import TokenizedExample

    rng = random.Random(0)

    def some(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(1000, 40_000) for _ in range(count))

    lengths = [rng.randrange(SHORTEST, LONGEST - ANSWER) for _ in range(count)]
    return [TokenizedExample.answered(some(length), some(ANSWER), f"row {i}") for i, length in enumerate(lengths)]


def lora(model: Any) -> Any:
    from rung.training.peft import linear_layers, peft

    return peft().LoraConfig(r=RANK, lora_alpha=32, target_modules=linear_layers(model), task_type="CAUSAL_LM")


def ours(shape: str, method: str, device: str, count: int) -> float:
    """Return tokens per second of Rung's loop, as its rungs run it."""
    from rung.training import loop
    from rung.training.changes import Patch, plain_parameters
    from rung.training.config import TrainConfig
    from rung.training.peft import PeftAdapter

    model, made = build(shape, device).requires_grad_(False), rows(count)
    change: Any
    if method == "lora":
        change = PeftAdapter(model, lora(model))
    else:
        change = Patch(model, plain_parameters(model).__contains__, trained=True)
    ends, tokens = [], []
    real = loop._Run._step

    def step(self: Any, batch: Any) -> None:
        real(self, batch)  # it reads the loss, so the device has caught up
        ends.append(time.perf_counter())
        tokens.append(sum(map(len, batch)))

    loop._Run._step = step  # type: ignore[method-assign]
    try:
        loop.train(model, change, made, TrainConfig(epochs=1, batch_size=BATCH, learning_rate=1e-5))
    finally:
        loop._Run._step = real  # type: ignore[method-assign]
    return sum(tokens[WARM:]) / (ends[-1] - ends[WARM - 1])


def trl(shape: str, method: str, device: str, count: int, *, packing: bool) -> float:
    """Return tokens per second of TRL's SFTTrainer."""
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from rung.models.reference import resolve
    from rung.training.peft import peft

    model, made = build(shape, device), rows(count)
    masks = [[0] * (len(row) - ANSWER) + [1] * ANSWER for row in made]
    data = Dataset.from_dict({"input_ids": [list(row.tokens) for row in made], "completion_mask": masks})
    ends: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if device == "cuda":
                import torch

                torch.cuda.synchronize()
            ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(
            output_dir=folder, per_device_train_batch_size=BATCH // 2 if packing else BATCH, num_train_epochs=1,
            learning_rate=1e-5, optim="adamw_torch_fused", report_to="none", save_strategy="no", bf16=device == "cuda",
            use_cpu=device == "cpu", gradient_checkpointing=False, completion_only_loss=True, max_length=LONGEST,
            packing=packing, disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        tokenizer = AutoTokenizer.from_pretrained(resolve("embedded").folder, local_files_only=True)
        wrapped = peft().get_peft_model(model, lora(model)) if method == "lora" else model.requires_grad_(True)
        trainer = SFTTrainer(
            model=wrapped, args=settings, train_dataset=data, processing_class=tokenizer, callbacks=[Clock()]
        )
        trainer.train()
    steps = len(ends)
    share = (steps - WARM) / steps  # rows are shuffled: a step holds about as many tokens as another
    return share * sum(map(len, made)) / (ends[-1] - ends[WARM - 1])


def roof(device: str) -> float:
    """Return the operations per second of a large bf16 product."""
    import torch

    size, dtype = (8192, torch.bfloat16) if device == "cuda" else (512, torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))

    def run(times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    run(5)
    return 20 * 2 * size**3 / run(20)


def parameters(shape: str) -> int:
    """Return how many weights work on every token: all but the input embeddings."""
    model = build(shape, "meta")
    tied = model.config.tie_word_embeddings
    total = sum(p.numel() for p in model.parameters())
    return total if tied else total - model.get_input_embeddings().weight.numel()


def fresh() -> None:
    """Free the device memory of the previous side."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main() -> int:
    """Time all sides on the same rows, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=tuple(SHAPES), default=["1B", "8B"])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--rows", type=int, default=ROWS)
    chosen = parser.parse_args()
    import torch

    if chosen.device == "cuda" and not torch.cuda.is_available():
        sys.stderr.write("gpu_tuning: no CUDA device is visible to torch; nothing was measured\n")
        return 3
    name = torch.cuda.get_device_name() if chosen.device == "cuda" else "CPU"
    peak = roof(chosen.device)
    print(f"{name}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}, {peak / 1e12:.1f} TFLOP/s")
    print(f"{'shape':6} {'method':6} {'side':8} {'tok/s':>9} {'utilization':>12}")
    ratios, goals = {}, {}
    for shape, method in ((s, m) for s in chosen.shapes for m in (("lora",) if s == "8B" else ("lora", "full"))):
        speeds = {}
        for side in ("rung", "padded", "packed"):
            fresh()
            if side == "rung":
                speeds[side] = ours(shape, method, chosen.device, chosen.rows)
            else:
                speeds[side] = trl(shape, method, chosen.device, chosen.rows, packing=side == "packed")
            used = speeds[side] * OPERATIONS[method] * parameters(shape) / peak
            print(f"{shape:6} {method:6} {side:8} {speeds[side]:9.0f} {used:12.1%}", flush=True)
        for side, goal in GOALS.items():
            ratios[f"{shape}_{method}_{side}"] = speeds["rung"] / speeds[side]
            goals[f"{shape}_{method}_{side}"] = goal
        utilization = speeds["rung"] * OPERATIONS[method] * parameters(shape) / peak
        ratios[f"{shape}_{method}_utilization"] = utilization / UTILIZATION[method]
        goals[f"{shape}_{method}_utilization"] = 1.0
    met = all(ratios[key] >= goal for key, goal in goals.items())
    print(json.dumps({"benchmark": "gpu_tuning", "ratios": ratios, "goals": goals, "met": met}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
