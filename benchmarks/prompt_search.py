"""Prompt search against DSPy's optimizers: test score at equal calls, and at a third of them.

    python benchmarks/prompt_search.py --data ../shared/data --out runs/prompt-search

The peer, in an environment of its own (`uv run --isolated --with 'dspy[optuna]'`), runs
BootstrapFewShotWithRandomSearch and MIPROv2 (light) on the embedded model behind llama.cpp's OpenAI-compatible server.
Rung searches with as many task calls as the peer made, and with a third of them, on the same training rows, and scores
labels where the peer has them written: that is a part of what is compared. `--through endpoint` has Rung use the very
same server, where it can only write labels. Scores are on the same test rows by the same metric: the peer's answers
count as right whatever their case and underscores. Intervals of the difference are 95 %, over rows and seeds together.

Every run is kept in OUT: the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from _common import finish
from _prompt_tasks import task_folder

TASKS = {
    "banking77": {"inputs": "text", "outputs": "category", "train": 200, "test": 300},
    "sroie": {"inputs": "receipt", "outputs": "company,date,address,total", "train": 100, "test": 100},
}
OPTIMIZERS = ("random-search", "mipro-light")
GOALS = {"banking77_over_dspy": 1.0, "sroie_over_dspy": 1.0}
SERVE = """
import sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.model_alias = sys.argv[1], {"smol"}
params.n_ctx, params.n_parallel, params.port, params.hostnames, params.warmup = 16384, 2, 0, ["127.0.0.1"], False
server = xllamacpp.Server(params)
print("listening", server.listening_address, flush=True)
sys.stdin.read()
"""


@contextmanager
def served() -> Iterator[str]:
    """Serve the embedded model; yield the address that ends in /v1."""
    from rung.models import embedded
    from rung.models import embedded as catalogue
    from rung.models.cache import cache_dir, publish

    model = catalogue.find("embedded")
    assert model is not None
    folder = cache_dir() / "sources" / embedded.folder_of(model).name

    def build(target: Path) -> None:
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            embedded.fetch(model, Path(scratch), target)

    if not folder.exists():
        publish(folder, build)
    command = [sys.executable, "-c", SERVE, str(next(folder.rglob("*.gguf")))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, **pipes) as process:  # type: ignore[call-overload]
        for line in process.stdout:
            if line.startswith("listening"):
                yield line.split()[1].rstrip("/") + "/v1"
                break
        process.stdin.close()
        process.wait(30)


def dspy_run(folder: Path, name: str, optimizer: str, seed: int, url: str, candidates: int) -> dict[str, Any]:
    """Run the peer; return its calls and its answers to the test rows."""
    from rung.task import Task

    task = Task.load(folder / "task.yaml")
    labels = task.output.labels
    instruction = task.instruction + (f" Answer with one of: {', '.join(labels)}" if labels else "")
    command = [
        "uv", "run", "--isolated", "--no-project", "--with", "dspy[optuna]", "python",
        str(Path(__file__).with_name("_dspy_peer.py")), "--folder", str(folder), "--url", url, "--model", "smol",
        "--optimizer", optimizer, "--inputs", str(TASKS[name]["inputs"]), "--outputs", str(TASKS[name]["outputs"]),
        "--instruction", instruction, "--seed", str(seed), "--candidates", str(candidates),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"the peer failed:\n{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    found["scores"] = peer_scores(folder, found.pop("answers"))
    return found


def peer_scores(folder: Path, answers: list[dict[str, str]]) -> list[float]:
    """Score the peer's answers by the task's metric."""
    from rung.evaluation.metrics.registry import get_metric
    from rung.task import Task

    task = Task.load(folder / "task.yaml")
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text("utf-8").splitlines()]
    if task.output.kind == "json":
        metric = get_metric("json_field_f1")
        return [metric(json.dumps(a), [row["fields"]]) for a, row in zip(answers, rows, strict=True)]
    plain = {" ".join(label.lower().replace("_", " ").split()): label for label in task.output.labels or ()}
    found = [plain.get(" ".join(a["category"].lower().replace("_", " ").split()), "") for a in answers]
    return [float(label == row["category"]) for label, row in zip(found, rows, strict=True)]


def rung_run(folder: Path, calls: int, seed: int) -> dict[str, Any]:
    """Search with so many calls; return calls made and test scores, rows in the order of the file."""
    from rung.artifact.artifact import Artifact
    from rung.evaluation.scoring import evaluate
    from rung.rungs import PromptSearch
    from rung.task import Task

    task = Task.load(folder / "task.yaml")
    data = task.read()
    zero = Artifact.zero_shot(task, data.labels)
    search = PromptSearch(calls=calls, seed=seed, adoption=0.4, adoption_rows=min(80, calls // 5))
    verdict = search.applies(zero, data)
    if not verdict.applies:
        raise SystemExit(f"prompt-search does not apply: {verdict.reason}")
    artifact = search.fit(zero, data)
    record = artifact.settings["prompt-search"]
    scores = {row.id: row.score for row in evaluate(artifact, data.test, "test")}
    plain = {row.id: row.score for row in evaluate(zero, data.test, "test")}
    return {
        "calls": record["spent"]["calls"], "adopted": record["adopted"], "reason": record["reason"],
        "scores": [scores[row.id] for row in data.test], "zero_shot": [plain[row.id] for row in data.test],
        "prompt": list(artifact.messages(data.test[0].inputs)),
    }  # fmt: skip


def kept(file: Path, make: Any) -> dict[str, Any]:
    """Return what an earlier run wrote, or make it and write it."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        made = make()
        scratch = file.with_suffix(".tmp")
        scratch.write_text(json.dumps(made), "utf-8")
        scratch.replace(file)
    found: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return found


def mean(scores: list[float]) -> float:
    return sum(scores) / len(scores)


def compared(name: str, chosen: argparse.Namespace, url: str) -> float:
    """Run one task over all seeds; print its table, and return Rung's score over that of the best peer."""
    from rung.evaluation.statistics import compare

    settings, optimizers = TASKS[name], chosen.optimizers.split(",")
    pooled: dict[str, list[float]] = {}
    calls: dict[str, list[int]] = {}
    for seed in range(chosen.seeds):
        train, test = chosen.train or settings["train"], chosen.test or settings["test"]
        folder = chosen.out / name / f"seed-{seed}-{train}-{test}-{chosen.candidates}"
        model = f"{url}#smol" if chosen.through == "endpoint" else "embedded"
        task_folder(name, chosen.data, folder, seed=seed, train=train, test=test, model=model)
        for optimizer in optimizers:
            peer = kept(
                folder / f"{optimizer}.json",
                lambda o=optimizer, f=folder, s=seed: dspy_run(f, name, o, s, url, chosen.candidates),
            )
            pooled.setdefault(f"dspy {optimizer}", []).extend(peer["scores"])
            calls.setdefault(f"dspy {optimizer}", []).append(peer["calls"])
            if peer["failed"]:
                print(f"{name}, seed {seed}: dspy {optimizer} failed and stays unoptimized: {peer['failed'][:120]!r}")
        most = max(calls[f"dspy {optimizer}"][-1] for optimizer in optimizers)
        for way, budget in (("rung, equal calls", most), ("rung, a third", most // 3)):
            ours = kept(
                folder / f"{chosen.through}-{way.split(', ')[1].replace(' ', '-')}.json",
                lambda b=budget, f=folder, s=seed: rung_run(f, b, s),
            )
            pooled.setdefault(way, []).extend(ours["scores"])
            calls.setdefault(way, []).append(ours["calls"])
            pooled.setdefault("zero-shot", []).extend(ours["zero_shot"] if way.endswith("calls") else [])
    best = max((f"dspy {optimizer}" for optimizer in optimizers), key=lambda peer: mean(pooled[peer]))
    print(f"\n{name}: {chosen.seeds} seeds, {len(pooled[best])} test rows in all; differences to {best}")
    print("| | test score | calls a seed | difference, points | p |\n|---|---|---|---|---|")
    for way, scores in pooled.items():
        c = compare(pooled[best], scores, seed=0)
        spent = mean([float(n) for n in calls[way]]) if way in calls else 0
        print(
            f"| {way} | {100 * mean(scores):.1f} | {spent:.0f} | {100 * c.delta:+.1f} [{100 * c.low:+.1f}, "
            f"{100 * c.high:+.1f}] | {c.p:.3f} |",
            flush=True,
        )
    ours_best = max(mean(pooled["rung, equal calls"]), mean(pooled["rung, a third"]))
    return ours_best / max(mean(pooled[best]), 1e-9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/prompt-search"))
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--optimizers", default=",".join(OPTIMIZERS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--through", choices=("engine", "endpoint"), default="engine")
    parser.add_argument("--train", type=int, help="training rows; without, those of the task")
    parser.add_argument("--test", type=int, help="test rows; without, those of the task")
    parser.add_argument("--candidates", type=int, default=16, help="programs of the peer's random search")
    chosen = parser.parse_args()
    chosen.out = chosen.out.resolve()
    with served() as url:
        ratios = {f"{name}_over_dspy": compared(name, chosen, url) for name in chosen.tasks.split(",")}
    finish("prompt_search", ratios, {name: goal for name, goal in GOALS.items() if name in ratios})


if __name__ == "__main__":
    main()
