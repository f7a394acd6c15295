"""Learn what a climb expects of each rung, `src/rung/climbing/worth.json`, from Rung's own results.

    python benchmarks/worth.py

A rung's share is how much it closed of the gap between zero-shot and a perfect score. The spread between seeds and
sizes of one task says little about another task, so the standard deviation is at least `SPREAD`.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "src" / "rung" / "climbing" / "worth.json"
SPREAD = 0.15  # between tasks
ZERO_SHOT = 0.202  # of the embedded model on all labels of BANKING77's example, as the README shows


def lines(name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (ROOT / "docs" / name).read_text("utf-8").splitlines()]


def shares() -> dict[str, dict[str, list[float]]]:
    """Collect the shares by kind of task and rung."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    results = [row for row in lines("methods.jsonl") if "score" in row]
    zero = {(row["task"], row["labels"]): float(str(row["score"])) for row in results if row["rung"] == "zero-shot"}
    for row in results:
        base = zero[row["task"], row["labels"]]
        if row["rung"] != "zero-shot":
            found["category"][str(row["rung"])].append((float(str(row["score"])) - base) / (1 - base))
    for row in lines("classification.jsonl"):
        found["category"][str(row["method"])].append((float(str(row["score"])) - ZERO_SHOT) / (1 - ZERO_SHOT))
    return found


def main() -> None:
    table = {
        kind: {
            rung: [round(statistics.mean(seen), 3), round(max(SPREAD, statistics.pstdev(seen)), 3)]
            for rung, seen in sorted(rungs.items())
        }
        for kind, rungs in shares().items()
    }
    TARGET.write_text(json.dumps(table, indent=1) + "\n", "utf-8")
    print(TARGET.read_text("utf-8"))


if __name__ == "__main__":
    main()
