"""Generation on CUDA: Rung's torch engine against transformers `generate`, random-weight Llama shapes of 1B and 8B.

256 prompts share a beginning of 512 tokens (few-shot demonstrations), 16 to 256 tokens are their own, 128 are generated
greedily in bf16. The peer gets batches of 32, left-padded, sorted by length. Random weights cost as much as trained
ones and need no download. They hardly ever end an answer, so both write the same number of tokens; tokens are counted.

Where flash-attn is installed the engine uses continuous batching; elsewhere its own loop (shared beginning, rows that
leave, as many rows as the memory allows). The table says which. Needs about 24 GB of device memory for 8B;
`--shapes 1B` runs in 8. Without CUDA the script ends with exit code 3.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time

from _shapes import SHAPES, build

ROWS, SHARED, ANSWER, PEER_BATCH = 256, 512, 128, 32
GOAL = 1.0  # never slower than the peer; what is reached is recorded with its date


def prompts():  # type: ignore[no-untyped-def]
    """Return the token ids of all prompts."""
    rng = random.Random(0)
    shared = [rng.randrange(1000, 40_000) for _ in range(SHARED)]
    return [tuple(shared + [rng.randrange(1000, 40_000) for _ in range(rng.randrange(16, 257))]) for _ in range(ROWS)]


def peer(model, rows):  # type: ignore[no-untyped-def]
    """Generate with transformers; return the number of new tokens."""
    import torch

    made = 0
    ordered = sorted(rows, key=len)
    for first in range(0, len(ordered), PEER_BATCH):
        batch = ordered[first : first + PEER_BATCH]
        width = max(map(len, batch))
        ids = torch.tensor([[2] * (width - len(row)) + list(row) for row in batch], device="cuda")
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch], device="cuda")
        out = model.generate(ids, attention_mask=mask, max_new_tokens=ANSWER, do_sample=False, pad_token_id=2)
        made += int((out[:, width:] != 2).sum())
    return made


def ours(model, tokenizer, rows):  # type: ignore[no-untyped-def]
    """Generate as the torch engine does; return the number of new tokens."""
    from rung.engines.base import Sampling
    from rung.engines.torch_decoding import decode, generate_paged, paged_attention
    from rung.progress import QUIET

    sampling, attention = Sampling(max_tokens=ANSWER), paged_attention("cuda")
    if attention:
        made = generate_paged(model, tokenizer, rows, sampling, attention=attention, progress=QUIET, cancelled=None)
    else:
        made = decode(model, tokenizer, rows, sampling, None, logprobs=False, progress=QUIET, cancelled=None)
    return sum(one.completion_tokens for one in made)


def timed(call, *arguments):  # type: ignore[no-untyped-def]
    """Return tokens per second of a call, after the device has finished."""
    import torch

    torch.cuda.synchronize()
    start = time.perf_counter()
    tokens = call(*arguments)
    torch.cuda.synchronize()
    return tokens / (time.perf_counter() - start)


def main() -> int:
    """Time both on the same prompts, print a table and one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shapes", nargs="+", choices=tuple(SHAPES), default=["1B", "8B"])
    shapes = parser.parse_args().shapes
    import torch

    if not torch.cuda.is_available():
        sys.stderr.write("gpu_generation: no CUDA device is visible to torch; nothing was measured\n")
        return 3
    from rung.engines.torch_decoding import paged_attention
    from rung.models.reference import resolve
    from rung.models.tokenizer import Tokenizer

    tokenizer, rows = Tokenizer.load(resolve("embedded").folder), prompts()
    way = paged_attention("cuda") or "padded loop"
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}, {way}")
    print(f"{'shape':6} {'generate tok/s':>15} {'rung tok/s':>12} {'ratio':>6}")
    ratios = {}
    for shape in shapes:
        model = build(shape, "cuda")
        for call in ((peer, model, rows[:PEER_BATCH]), (ours, model, tokenizer, rows[:PEER_BATCH])):
            call[0](*call[1:])  # warm-up
        theirs, mine = timed(peer, model, rows), timed(ours, model, tokenizer, rows)
        ratios[shape] = mine / theirs
        print(f"{shape:6} {theirs:15.0f} {mine:12.0f} {ratios[shape]:6.2f}")
        del model
        torch.cuda.empty_cache()
    goals = dict.fromkeys(ratios, GOAL)
    met = all(ratio >= goals[shape] for shape, ratio in ratios.items())
    print(json.dumps({"benchmark": "gpu_generation", "ratios": ratios, "goals": goals, "met": met}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
