"""Every way to tune on one task, over seeds: score, seconds, peak memory, trained parameters, bytes on disk.

    python benchmarks/methods.py --task examples/banking77/task.yaml --seeds 3 --out docs/methods.md

Each method and seed runs in a process of its own (its peak memory is its own), is scored on the test rows, and is
written to a .jsonl beside the table as soon as it is done: the same command goes on where it was, and writes the table
again. Scores are the mean over seeds with their standard deviation; nothing is chosen by them. Zero-shot is the first
row. On two CPU cores the whole of BANKING77's example takes some hours: `--set data.test_rows=200` and fewer
`--rungs` make it shorter.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _common import EXAMPLES, finish, run_script

METHODS = (
    "output-layer", "last-layers", "full", "lora", "rslora", "dora", "adalora", "qlora", "ia3", "llama-adapter",
    "bottleneck", "prompt-tuning", "p-tuning", "prefix-tuning",
)  # fmt: skip
# LoRA within noise of the best; prompt tuning clearly above zero-shot.
GOALS = {"lora_of_best": 0.98, "prompt_tuning_over_zero_shot": 1.1}


def one(task_file: str, name: str, seed: int, sets: dict[str, str]) -> dict[str, Any]:
    """Fit one rung with one seed and score it on the test rows."""
    from rung.artifact import Artifact
    from rung.evaluation.scoring import evaluate
    from rung.machine import peak_memory_bytes
    from rung.rungs import build
    from rung.task import Task

    task = Task.load(task_file, sets)
    data = task.read()
    artifact, seconds = Artifact.zero_shot(task, data.labels), 0.0
    if name != "zero-shot":
        (rung,) = build((name,), task, seed)
        verdict = rung.applies(artifact, data)
        if not verdict.applies:
            return {"reason": verdict.reason}
        start = time.perf_counter()
        artifact = rung.fit(artifact, data)
        seconds = time.perf_counter() - start
    peak = peak_memory_bytes()
    scores = [row.score for row in evaluate(artifact, data.test, "test", folder=task.folder)]
    with tempfile.TemporaryDirectory() as folder:
        saved = artifact.save(Path(folder) / "artifact")
        size = sum(file.stat().st_size for file in saved.rglob("*") if file.is_file())
    return {
        "score": sum(scores) / len(scores), "n": len(scores), "seconds": seconds, "peak": peak, "bytes": size,
        "parameters": artifact.weights.trainable_parameters, "metric": artifact.shape.metric,
    }  # fmt: skip


def measured(file: Path, task: str, name: str, seed: int, sets: list[str]) -> dict[str, Any]:
    """Return the result from the file, or run it and append it there."""
    key = {"task": task, "rung": name, "seed": seed, "set": sorted(sets)}
    for line in file.read_text("utf-8").splitlines() if file.exists() else ():
        found: dict[str, Any] = json.loads(line)
        if {part: found[part] for part in key} == key:
            return found
    given = [part for text in sets for part in ("--set", text)]
    said = run_script(__file__, "--task", task, "--one", name, "--seed", str(seed), *given)
    result = {**key, **json.loads(said.splitlines()[-1])}
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(result) + "\n")
    return result


def line(name: str, results: list[dict[str, Any]]) -> str:
    """Return one row of the table."""
    if "reason" in results[0]:
        return f"| {name} | {results[0]['reason']} | | | | |"
    scores = [100 * r["score"] for r in results]
    spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    seconds = statistics.mean(r["seconds"] for r in results)
    peak = max(r["peak"] for r in results) / 2**30
    return (
        f"| {name} | {statistics.mean(scores):.1f}{spread} | {seconds:.0f} | {peak:.1f} | "
        f"{results[0]['parameters']:,} | {results[0]['bytes'] / 1e6:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default=str(EXAMPLES / "banking77" / "task.yaml"))
    parser.add_argument("--rungs", default=",".join(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--out", type=Path, default=Path("docs/methods.md"))
    parser.add_argument("--one")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    if chosen.one:
        sets = dict(text.split("=", 1) for text in chosen.set)
        print(json.dumps(one(chosen.task, chosen.one, chosen.seed, sets)))
        return
    file, names = chosen.out.with_suffix(".jsonl"), chosen.rungs.split(",")
    table, means = [], {}
    for name in ("zero-shot", *names):
        seeds = range(1 if name == "zero-shot" else chosen.seeds)
        results = [measured(file, chosen.task, name, seed, chosen.set) for seed in seeds]
        table.append(line(name, results))
        print(table[-1], flush=True)
        if "score" in results[0]:
            means[name] = statistics.mean(r["score"] for r in results)
    head = [
        f"# Methods of tuning on {Path(chosen.task).parent.name}", "",
        f"`python benchmarks/methods.py {' '.join(sys.argv[1:])}`", "",
        "| method | score (mean ± standard deviation over seeds) | seconds | peak GiB | trained parameters | MB |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    chosen.out.write_text("\n".join([*head, *table, ""]), "utf-8")
    ratios = {}
    if "lora" in means:
        ratios["lora_of_best"] = means["lora"] / max(value for name, value in means.items() if name != "zero-shot")
    if "prompt-tuning" in means:
        ratios["prompt_tuning_over_zero_shot"] = means["prompt-tuning"] / max(means["zero-shot"], 1e-9)
    finish("methods", ratios, GOALS)


if __name__ == "__main__":
    main()
