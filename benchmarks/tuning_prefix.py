"""LoRA training where rows share an instruction of about 300 tokens, against TRL's SFTTrainer as it pads by default.

As benchmarks/tuning.py, with the labels listed in the instruction until it has 300 tokens. Here nearly all tokens of a
batch are the same: ours reads them once a step, forward and backward, and the gradient is the same (the tests prove it
against the plain path; the losses of both sides are compared here). Measured on two AVX2 cores on 2026-11-21, alone:
13.9x padded, losses within 1.9e-05.
"""

from __future__ import annotations

from _common import finish
from rung.models.reference import resolve
from rung.models.tokenizer import Tokenizer
from rung.task import Task
from tuning import INSTRUCTION, measure

GOALS = {"padded": 8.0, "same_losses": 1.0}
TOKENS = 300
STEPS = 3  # the peer takes two minutes a step


def main() -> None:
    from _common import EXAMPLES

    tokenizer = Tokenizer.load(resolve("embedded").folder)
    labels = Task.load(EXAMPLES / "banking77" / "task.yaml").read().labels
    instruction = f"{INSTRUCTION} The intents are: "
    for label in labels:
        if len(tokenizer.encode_plain(instruction)) >= TOKENS:
            break
        instruction += f"{label}, "
    print(f"instruction of {len(tokenizer.encode_plain(instruction))} tokens")
    found = measure(instruction, STEPS, ("rung", "padded"))
    apart = max(abs(a - b) for a, b in zip(found["rung"]["losses"], found["padded"]["losses"], strict=True))
    print(f"losses at most {apart:.1e} apart")
    ratio = found["rung"]["speed"] / found["padded"]["speed"]
    finish("tuning_prefix", {"padded": ratio, "same_losses": 1e-3 / max(apart, 1e-9)}, GOALS)


if __name__ == "__main__":
    main()
