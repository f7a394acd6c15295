"""Every way to tune on one task, over seeds: score, seconds, peak memory, trained parameters, bytes on disk.

    python benchmarks/methods.py --task examples/banking77/task.yaml --seeds 3 --out docs/methods.md

Each method and seed runs in its own process, so that its peak memory is its own. It is scored on the test rows and
written to a .jsonl file next to the table as soon as it is done: the same command resumes and writes the table again.
Scores are the mean over seeds with their standard deviation; nothing is chosen by them. Zero-shot is the first row. On
two CPU cores the whole of BANKING77's example takes some hours: `--labels 20` keeps the rows of so many labels (drawn
once, the same for all), and `--set data.test_rows=200` and fewer `--rungs` make it shorter too.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _common import EXAMPLES, finish, run_script

if TYPE_CHECKING:
    from rung.data.rows import Data, Example

METHODS = (
    "output-layer", "last-layers", "full", "lora", "rslora", "dora", "adalora", "qlora", "ia3", "llama-adapter",
    "bottleneck", "prompt-tuning", "p-tuning", "prefix-tuning",
)  # fmt: skip
# LoRA within noise of the best; prompt tuning clearly above zero-shot.
GOALS = {"lora_of_best": 0.98, "prompt_tuning_over_zero_shot": 1.1}


def of_labels(data: Data, count: int) -> Data:
    """Return the rows of so many labels."""
    kept = tuple(sorted(random.Random(0).sample(sorted(data.labels), count)))

    def rows(split: tuple[Example, ...]) -> tuple[Example, ...]:
        return tuple(row for row in split if row.outputs[0] in kept)

    return replace(
        data, labels=kept, train=rows(data.train), validation=rows(data.validation), test=rows(data.test)
    )  # fmt: skip


def one(task_file: str, name: str, seed: int, sets: dict[str, str], labels: int | None) -> dict[str, Any]:
    """Fit one rung with one seed and score it on the test rows."""
    from rung.artifact.artifact import Artifact
    from rung.evaluation.scoring import evaluate
    from rung.machine import peak_memory_bytes
    from rung.rungs import build
    from rung.task import Task

    task = Task.load(task_file, sets)
    data = task.read() if labels is None else of_labels(task.read(), labels)
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
        "parameters": artifact.weights.trainable_parameters, "metric": artifact.signature.metric,
    }  # fmt: skip


def measured(file: Path, chosen: argparse.Namespace, name: str, seed: int) -> dict[str, Any] | None:
    """Return the result from the file; or run it and append it there, or nothing where none is to be run."""
    key = {"task": chosen.task, "labels": chosen.labels, "rung": name, "seed": seed, "set": sorted(chosen.set)}
    for line in file.read_text("utf-8").splitlines() if file.exists() else ():
        found: dict[str, Any] = json.loads(line)
        if {part: found[part] for part in key} == key:
            return found
    if chosen.recorded:
        return None
    given = [part for text in chosen.set for part in ("--set", text)]
    given += [] if chosen.labels is None else ["--labels", str(chosen.labels)]
    said = run_script(__file__, "--task", chosen.task, "--one", name, "--seed", str(seed), *given)
    result = {**key, **json.loads(said.splitlines()[-1])}
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(result) + "\n")
    return result


def line(name: str, results: list[dict[str, Any]]) -> str:
    """Return one row of the table."""
    if "reason" in results[0]:
        return f"| {name} | {results[0]['reason']} | | | | | |"
    scores = [100 * r["score"] for r in results]
    spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    seconds = statistics.mean(r["seconds"] for r in results)
    peak = max(r["peak"] for r in results) / 2**30
    return (
        f"| {name} | {statistics.mean(scores):.1f}{spread} | {len(scores)} | {seconds:.0f} | {peak:.1f} | "
        f"{results[0]['parameters']:,} | {results[0]['bytes'] / 1e6:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default=str(EXAMPLES / "banking77" / "task.yaml"))
    parser.add_argument("--rungs", default=",".join(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--labels", type=int)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--out", type=Path, default=Path("docs/methods.md"))
    parser.add_argument("--recorded", action="store_true", help="run nothing: write the table of what was run so far")
    parser.add_argument("--one")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    if chosen.one:
        sets = dict(text.split("=", 1) for text in chosen.set)
        print(json.dumps(one(chosen.task, chosen.one, chosen.seed, sets, chosen.labels)))
        return
    file, names = chosen.out.with_suffix(".jsonl"), chosen.rungs.split(",")
    table, means = [], {}
    for name in ("zero-shot", *names):
        seeds = range(1 if name == "zero-shot" else chosen.seeds)
        results = [found for seed in seeds if (found := measured(file, chosen, name, seed)) is not None]
        if not results:
            continue
        table.append(line(name, results))
        print(table[-1], flush=True)
        if "score" in results[0]:
            rows = results[0]["n"]
            means[name] = statistics.mean(r["score"] for r in results)
    labels = "" if chosen.labels is None else f"{chosen.labels} of its labels, "
    head = [
        f"# Methods of tuning on {Path(chosen.task).parent.name}", "",
        f"The embedded model, {labels}{rows} test rows; time and peak memory of the training, each "
        "seed in a separate process.", "",
        f"`python benchmarks/methods.py {' '.join(sys.argv[1:])}`", "",
        "| method | score (mean ± standard deviation) | seeds | seconds | peak GiB | trained parameters | MB |",
        "|---|---|---|---|---|---|---|",
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
