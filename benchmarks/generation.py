"""Generated tokens per second: Rung's OpenVINO engine against three ways to run the same prompts.

batch         transformers `generate`, 32 rows a batch, left-padded
raw           openvino-genai itself: one `ContinuousBatchingPipeline.generate` over all prompts
ludwig-loop   one transformers `generate` call per row, as in row-by-row prediction loops

The prompts share a few-shot beginning and end in one customer message of BANKING77 each; the answer is free text of at
most 64 tokens, greedy, ended by the model's own end token; the tokens counted are those before padding. Batches of a
peer are alike, so peers run only some of the rows and their rate is compared: `--raw-rows`, `--peer-rows`, `--loop-
rows`. Transformers runs in fp32, OpenVINO with the int8 weights that are Rung's default; `--precision fp32` compares
equals.

Measured on two AVX2 cores on 2026-11-21, in three runs: 3.6x, 3.2x and 2.9x raw, 6.4x, 5.1x and 4.5x batch, 14.9x,
13.7x and 13.7x ludwig-loop. Raw is slower because all rows of its one call compute the beginning that they share; Rung
lets one row go ahead and the others find it cached. The rest of Rung's time is OpenVINO's: of 35.4 s for 128
answers, its steps took 35.3, and from 32 rows on a step's time grows with its rows, because the processor is at its
limit. So the loop's goal of 15x is not met here.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from rung.engines.base import GenerateRequest, Sampling
from rung.engines.opening import open_openvino
from rung.engines.openvino import OpenVinoEngine
from rung.models.messages import Messages

GOALS = {"batch": 4.0, "raw": 0.9, "ludwig-loop": 15.0}
BATCH = 32
SYSTEM = "You answer customers of a bank. Reply in two or three friendly sentences: what happens, and what to do next."
SHOTS = (
    ("My card was swallowed by a machine at the station.",
     "I am sorry that the machine kept your card. Please freeze it in the app right away, so that nobody can use it. "
     "A new card is on its way to your address, and it will arrive within five working days."),
    ("Why was I charged a fee for taking out cash?",
     "Thank you for asking about the fee. Withdrawals are free up to your plan's monthly limit, and two percent after "
     "that. You can see how much of the limit is left in the app, under your card's settings."),
    ("I want to change my address.",
     "Of course, we can change your address. Please open your profile in the app, choose personal details, and enter "
     "the new one. We may ask for a document that shows it, such as a bill from the last three months."),
    ("The transfer to my brother has not arrived.",
     "I understand that you are waiting for this transfer. Transfers abroad take up to three working days, and "
     "weekends do not count. If it has not arrived by then, send us the reference number, and we will trace it."),
)  # fmt: skip


def prompts(rows: int) -> list[Messages]:
    """Return the benchmark's chats: instruction, four solved examples, one customer's message."""
    file = Path(__file__).parents[1] / "examples" / "banking77" / "test.csv"
    with file.open(newline="") as lines:
        texts = [row["text"] for row in csv.DictReader(lines)]
    head = [{"role": "system", "content": SYSTEM}]
    for question, answer in SHOTS:
        head += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return [(*head, {"role": "user", "content": texts[i % len(texts)]}) for i in range(rows)]  # type: ignore[misc]


def rung_tokens(engine: OpenVinoEngine, chats: Sequence[Messages], tokens: int) -> int:
    """Complete the chats with Rung and return how many tokens came out."""
    made = engine.generate([GenerateRequest(chat, Sampling(max_tokens=tokens)) for chat in chats])
    return sum(one.completion_tokens for one in made)


def raw_peer(engine: OpenVinoEngine) -> Callable[[Sequence[Messages], int], int]:
    """Return openvino-genai on the same export, with the prefix caching that it offers."""
    import openvino
    import openvino_genai as genai

    scheduler = genai.SchedulerConfig()
    scheduler.enable_prefix_caching = True
    scheduler.cache_size = 2
    pipeline = genai.ContinuousBatchingPipeline(engine.folder, scheduler, "CPU")

    def run(chats: Sequence[Messages], tokens: int) -> int:
        config = genai.GenerationConfig()
        config.max_new_tokens = tokens
        config.stop_token_ids = set(engine.tokenizer.eos_ids)
        ids = [openvino.Tensor(np.array([engine.tokens(chat)], np.int64)) for chat in chats]
        return sum(len(one.m_generation_ids[0]) for one in pipeline.generate(ids, [config] * len(ids)))

    return run


def transformers_peer(engine: OpenVinoEngine, batch: int) -> Callable[[Sequence[Messages], int], int]:
    """Return transformers' `generate`, `batch` rows a call."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(engine.files.folder, dtype=torch.float32).eval()
    ends = sorted(engine.tokenizer.eos_ids)
    pad = engine.tokenizer.pad_id

    def one(rows: Sequence[tuple[int, ...]], tokens: int) -> int:
        width = max(map(len, rows))
        ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False, eos_token_id=ends, pad_token_id=pad
            )
        return sum(_length(row, ends) for row in out[:, width:].tolist())

    def run(chats: Sequence[Messages], tokens: int) -> int:
        rows = [engine.tokens(chat) for chat in chats]
        return sum(one(rows[first : first + batch], tokens) for first in range(0, len(rows), batch))

    return run


def _length(row: Sequence[int], ends: Sequence[int]) -> int:
    return next((place + 1 for place, token in enumerate(row) if token in ends), len(row))


def timed(run: Callable[[Sequence[Messages], int], int], chats: Sequence[Messages], tokens: int) -> tuple[int, float]:
    """Return tokens and seconds, after a first call that allocates and compiles."""
    run([({"role": "user", "content": "Hello."},)], 4)
    start = time.perf_counter()
    made = run(chats, tokens)
    return made, time.perf_counter() - start


def main() -> None:
    """Time everything in one run, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", choices=["all", *GOALS], default="all")
    parser.add_argument("--model", default="embedded", help="such as builtin:qwen2.5-coder-1.5b")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--raw-rows", type=int, default=96, help="rows for raw openvino-genai")
    parser.add_argument("--peer-rows", type=int, default=64, help="rows for the batch peer")
    parser.add_argument("--loop-rows", type=int, default=12, help="rows for the ludwig-loop peer")
    parser.add_argument("--precision", choices=["int8", "int4", "fp32"], default="int8")
    chosen = parser.parse_args()
    engine = open_openvino(chosen.model, chosen.precision)
    chats = prompts(chosen.rows)
    lines = [("rung", chosen.rows, *timed(lambda c, n: rung_tokens(engine, c, n), chats, chosen.tokens))]
    peers = {
        "raw": (lambda: raw_peer(engine), min(chosen.raw_rows, chosen.rows)),
        "batch": (lambda: transformers_peer(engine, BATCH), min(chosen.peer_rows, chosen.rows)),
        "ludwig-loop": (lambda: transformers_peer(engine, 1), min(chosen.loop_rows, chosen.rows)),
    }
    for name, (make, rows) in peers.items():
        if chosen.peer in ("all", name):
            lines.append((name, rows, *timed(make(), chats[:rows], chosen.tokens)))
    rates = {name: made / seconds for name, _, made, seconds in lines}
    shared, full = len(engine.tokens(chats[0][:-1])), len(engine.tokens(chats[0]))
    print(f"{full} tokens in the first prompt, {shared} of them shared; {chosen.precision} weights")
    print(f"{'engine':12} {'rows':>5} {'tokens':>7} {'seconds':>8} {'tokens/s':>9} {'rung is':>8}")
    for name, rows, made, seconds in lines:
        print(f"{name:12} {rows:5} {made:7} {seconds:8.1f} {rates[name]:9.1f} {rates['rung'] / rates[name]:7.1f}x")
    ratios = {name: round(rates["rung"] / rate, 3) for name, rate in rates.items() if name != "rung"}
    goals = {name: GOALS[name] for name in ratios}
    met = all(ratios[name] >= goal for name, goal in goals.items())
    print(json.dumps({"benchmark": "generation", "ratios": ratios, "goals": goals, "met": met}))


if __name__ == "__main__":
    main()
