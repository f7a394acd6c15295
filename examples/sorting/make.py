"""Make rows of the task: four words, and the same words in alphabetical order.

python examples/sorting/make.py 1000 > more.jsonl
"""

from __future__ import annotations

import json
import random
import sys

WORDS = (
    "angel", "apple", "beach", "bread", "candy", "chair", "cloud", "daisy", "dance", "eagle", "fairy", "ghost",
    "grape", "green", "honey", "horse", "house", "igloo", "jelly", "juice", "knife", "koala", "lemon", "light",
    "llama", "mango", "music", "ninja", "ocean", "olive", "onion", "paper", "piano", "river", "robot", "smile",
    "snake", "stone", "storm", "sugar", "table", "tiger", "train", "uncle", "watch", "water", "zebra",
)  # fmt: skip


def rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Return so many different rows: four words, and the same words in order."""
    rng, made = random.Random(seed), dict[str, dict[str, str]]()
    while len(made) < count:
        words = rng.sample(WORDS, 4)
        made[" ".join(words)] = {"words": " ".join(words), "sorted": " ".join(sorted(words))}
    return list(made.values())


if __name__ == "__main__":
    for row in rows(int(sys.argv[1])):
        print(json.dumps(row))
