"""DPO and RL steps on the embedded model against TRL with PEFT: tokens per second, memory, the same losses.

Pairs of random tokens in two shapes: prompts ten times as long as the answers (300 and 30 tokens), and as long as they
are (100 and 100). Prompts share 20 tokens, as those of a task share its instruction. Batch 8, rank 16 on all linear
layers, AdamW, float32, one epoch. Each side runs in its own process, one after the other, so that peak memory is its
own; libraries, model and the first step are not in the times, and the reference's log-probabilities are. The peer
computes these before training (`precompute_ref_log_probs`), which is its fastest way, and runs without gradient
checkpointing. Tokens are those that the peer reads: the prompt counts for both answers of a pair.

What makes the difference: the prompt runs once for both answers and the shared beginning once a batch, no padding, the
vocabulary projected at answer tokens alone, plain products in place of PEFT's LoRA layers.

The third shape is a step of RL: 4 prompts of about 200 tokens, 8 sampled answers of at most 20 tokens to each, and a
reward that a program gives at once. The peer is GRPOTrainer with the loss of Dr. GRPO (`loss_type="dr_grpo"`,
`scale_rewards="none"`, no reference model): RLOOTrainer computes log-probabilities once more. Sampling, rewards and the
update are in the time. Answers differ, as each side draws its own; their mean lengths are printed.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from dataclasses import replace
from typing import Any

from _common import banking77_texts, finish, run_script
from rung.machine import peak_memory_bytes

STEPS, BATCH, RANK, RATE, BETA, SHARED = 6, 8, 16, 5e-5, 0.1, 20
SHAPES = {"10:1": (300, 30), "1:1": (100, 100)}  # tokens of the prompt, and of each answer
RL, PROMPTS, GROUP, LONGEST = "rl", 4, 8, 20
GOALS = {"10:1": 4.0, "1:1": 3.0, RL: 3.0, "memory_10:1": 1 / 0.55, "memory_1:1": 1 / 0.55, "same_losses": 1.0}


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


def timed_schedule(clock: Any, model: Any, rows: Any, size: int) -> Any:
    """The settings of our trainings; from now on the clock notes the end of every step."""
    from rung.training import loop
    from rung.training.config import TrainConfig
    from rung.training.memory import fit_memory

    real = loop._Run._step

    def step(self: Any, batch: Any) -> None:
        real(self, batch)
        clock.ends.append(time.perf_counter())

    loop._Run._step = step
    return TrainConfig(
        epochs=1, batch_size=size, learning_rate=RATE, lr_scheduler="constant", warmup_ratio=0.0, precision="float32",
        micro_batch_size=fit_memory(model, rows, size).micro_batch_size,
    )  # fmt: skip


def ours(shape: str, name: str, steps: int) -> dict[str, Any]:
    """Train with Rung's loop."""
    from rung.engines.opening import open_torch
    from rung.training import loop
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
    schedule = timed_schedule(clock, model, rows, BATCH)
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


# ---- a step of RL


def questions(steps: int) -> list[str]:
    """Return prompts with the same instruction."""
    rng = random.Random(0)
    words = " ".join(sorted({word for text in banking77_texts() for word in text.split()})).split()
    return [f"Continue this list of words. {' '.join(rng.sample(words, 120))}" for _ in range(steps * PROMPTS)]


def reward_of(text: str) -> float:
    """Score an answer by its share of vowels: answers to one prompt hardly ever tie."""
    return sum(text.count(letter) for letter in "aeiou") / max(1, len(text))


def our_rl(_: str, name: str, steps: int) -> dict[str, Any]:
    """Train with Rung's loop."""
    from rung.data.rows import Example
    from rung.engines.base import Sampling
    from rung.engines.opening import open_torch
    from rung.rungs.fine_tune import LIVE
    from rung.training import loop
    from rung.training.peft import PeftAdapter
    from rung.training.rewards import Question, RewardLoss

    engine, clock, blank = open_torch(name), _Clock(), Example("", {}, ("",), "")
    prompts = [engine.tokenizer.encode_plain(text) for text in questions(steps)]
    rows = [Question(prompt, ((1,),), "", example=blank, room=GROUP * LONGEST) for prompt in prompts]
    change, generate = PeftAdapter(engine.model, config()), engine.generate

    def ended(requests: Any) -> Any:
        """Count the tokens, and let cut answers have their reward, as the peer does."""
        done = generate(requests)
        clock.answers.append([each.completion_tokens for each in done])
        return [replace(each, finish_reason="stop") for each in done]

    engine.generate = ended  # type: ignore[method-assign]
    loss = RewardLoss(
        engine, change, LIVE, {"metric": lambda _, texts: [reward_of(text) for text in texts]}, {"metric": 1.0}, {},
        "dr_grpo", GROUP, Sampling(LONGEST, 1.0), 0.0, 0,
    )  # fmt: skip
    schedule = timed_schedule(clock, engine.model, rows, PROMPTS)
    with engine.lend(change, LIVE):
        loop.train(engine.model, change, rows, schedule, loss=loss)
    return clock.rl_result([len(prompt) for prompt in prompts])


def trl_rl(_: str, name: str, steps: int) -> dict[str, Any]:
    """Train with TRL's GRPOTrainer."""
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from rung.engines.opening import open_torch
    from rung.training.peft import peft

    engine, clock, texts = open_torch(name), _Clock(), questions(steps)

    class Ends(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.ends.append(time.perf_counter())

    def reward(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        clock.answers.append([len(ids) for ids in completion_ids])
        return [reward_of(text.strip()) for text in completions]

    with tempfile.TemporaryDirectory() as folder:
        settings = GRPOConfig(
            output_dir=folder, per_device_train_batch_size=PROMPTS * GROUP, num_generations=GROUP, max_steps=steps,
            steps_per_generation=1, num_iterations=1, max_completion_length=LONGEST, temperature=1.0, beta=0.0,
            loss_type="dr_grpo", scale_rewards="none", shuffle_dataset=False, learning_rate=RATE,
            lr_scheduler_type="constant", warmup_steps=0, weight_decay=0.0, max_grad_norm=1.0,
            optim="adamw_torch_fused", report_to="none", save_strategy="no", bf16=False, fp16=False, use_cpu=True,
            gradient_checkpointing=False, disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        tokenizer = AutoTokenizer.from_pretrained(engine.files.folder, local_files_only=True)
        wrapped = peft().get_peft_model(engine.model, config())
        trainer = GRPOTrainer(
            model=wrapped, args=settings, train_dataset=Dataset.from_dict({"prompt": texts}), reward_funcs=reward,
            processing_class=tokenizer, callbacks=[Ends()],
        )  # fmt: skip
        trainer.train()
    return clock.rl_result([len(engine.tokenizer.encode_plain(text)) for text in texts])


class _Clock:
    """When steps ended, how long the reference took, and the lengths of the answers sampled in each step."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.reference = 0.0
        self.answers: list[list[int]] = []

    def result(self, rows: list[Any], losses: list[float]) -> dict[str, Any]:
        """Return tokens per second, of all steps but the first, and the peak memory of this process."""
        assert len(self.ends) == len(rows) // BATCH
        tokens = sum(2 * len(row.prompt) + sum(map(len, row.completions)) for row in rows)
        tokens_after = sum(2 * len(row.prompt) + sum(map(len, row.completions)) for row in rows[BATCH:])
        seconds = self.ends[-1] - self.ends[0] + self.reference * tokens_after / tokens
        return {"speed": tokens_after / seconds, "peak": peak_memory_bytes(), "losses": losses}

    def rl_result(self, prompts: list[int]) -> dict[str, Any]:
        """Return the same of RL: the prompt counts for every answer."""
        assert len(self.ends) == len(self.answers) == len(prompts) // PROMPTS
        steps, seconds = len(self.ends) - 1, self.ends[-1] - self.ends[0]
        tokens = GROUP * sum(prompts[PROMPTS:]) + sum(map(sum, self.answers[1:]))
        length = sum(map(sum, self.answers)) / sum(map(len, self.answers))
        more = {"step_seconds": seconds / steps, "answer_tokens": length}
        return {"speed": tokens / seconds, "peak": peak_memory_bytes(), **more}


SIDES = {"rung": (ours, our_rl), "trl": (trl, trl_rl)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", choices=SIDES)
    parser.add_argument("--shape", choices=[*SHAPES, RL], help="one shape only")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--steps", type=int, default=STEPS)
    chosen = parser.parse_args()
    if chosen.side:
        run = SIDES[chosen.side][chosen.shape == RL]
        print(json.dumps(run(chosen.shape, chosen.model, chosen.steps)))
        return
    size = ("--model", chosen.model, "--steps", str(chosen.steps))
    ratios, apart = {}, 0.0
    for shape in [chosen.shape] if chosen.shape else [*SHAPES, RL]:
        found = {
            side: json.loads(run_script(__file__, "--side", side, "--shape", shape, *size).splitlines()[-1])
            for side in SIDES
        }
        for side, each in found.items():
            more = ""
            if shape == RL:
                more = f"   {each['step_seconds']:.1f} s a step, answers of {each['answer_tokens']:.1f} tokens"
            peak = each["peak"] / 2**30
            print(f"{shape:5} {side:5} {each['speed']:8.0f} tokens/s   peak {peak:5.2f} GiB{more}", flush=True)
        us, peer = found["rung"], found["trl"]
        ratios |= {shape: us["speed"] / peer["speed"], f"memory_{shape}": peer["peak"] / us["peak"]}
        if shape != RL:
            apart = max(apart, *(abs(a - b) for a, b in zip(us["losses"], peer["losses"], strict=True)))
    if chosen.shape != RL:
        print(f"losses are at most {apart:.1e} apart")
        ratios["same_losses"] = 1e-3 / max(apart, 1e-9)
    finish("preference", ratios, {name: goal for name, goal in GOALS.items() if not chosen.shape or name in ratios})


if __name__ == "__main__":
    main()
