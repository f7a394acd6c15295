"""A climb, a prediction and a search of settings on one worker and on two, of one core each; and rows under kills.

    python benchmarks/scale.py                                    # about half an hour on two quiet cores
    python benchmarks/scale.py climb predict tune --rows 3000 --trials 6    # about a quarter of an hour
    python benchmarks/scale.py climb --labels 20                  # a longer climb, of which loading is a smaller part
    python benchmarks/scale.py --small    # a random model and few rows, to see that it runs; no figure means anything

One worker is the command alone on one core, two are two processes on two cores that they share with the command, each
with one thread. All runs start without remembered answers. Efficiency is T1 / (2 T2), loading of models included.

work       what it does
climb      BANKING77, six labels or more: prompting, demonstrations, heads, LoRA on the built-in model; zero-shot first
predict    rows of BANKING77 answered by scoring 6 labels, in parts
tune       twelve trials of `few-shot-knn`; as settings differ, efficiency is that of rows answered times demonstrations
kills      a prediction on two workers that are killed at random, and whose command is, resumed until it ends

The profile: each worker loads the libraries and the model, 6 to 8 s of a core. One worker alone has work while a
training is decided on and nothing else is worth beginning, and at the end, while the command writes the report.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from _common import EXAMPLES, banking77_texts, finish

LABELS = ("card_arrival", "lost_or_stolen_card", "exchange_rate", "age_limit", "top_up_failed", "get_physical_card")
RUNGS = (
    "majority,nearest-row,tfidf-head,features,features-tfidf,calibrate,few-shot-balanced,few-shot-knn,llm-features,lora"
)
SMALL_RUNGS = "majority,nearest-row,tfidf-head,calibrate"
TASK = """name: scale
instruction: Which intent does this message of a bank's customer express?
inputs: [text]
output: {column: category, kind: category, labels: [LABELS]}
data: {train: train.csv, validation: validation.csv, test: test.csv, train_per_label: 10}
machine: {price_per_hour: 0}  # no decision depends on measured times
rungs: {lora: {epochs: 2}}
"""
# Estimates start from a fixed speed, so that both climbs are likely to take the arms in the same order.
START = "from rung import machine; machine._matmul_rate = lambda: 5e10; from rung.__main__ import main; main()"
PARTS = ("climb", "predict", "tune", "kills")
GOALS = {"climb": 0.8, "predict": 0.95, "tune": 0.8, "rows_once": 1.0}


# As where Rung is installed, whose bytecode is there.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


class Bench:
    """Runs commands on some cores, each with a cache that has the models and no answers."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, 0

    def start(self, *words: object, cores: int) -> subprocess.Popen[bytes]:
        """Start `rung` in the folder."""
        allowed = set(sorted(os.sched_getaffinity(0))[:cores])
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", START, *map(str, words), "--quiet"], cwd=self.folder,
            env={**ENVIRONMENT, "RUNG_CACHE": str(self._cache()), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            preexec_fn=lambda: os.sched_setaffinity(0, allowed),  # no thread runs here
        )  # fmt: skip

    def seconds(self, *words: object, workers: int) -> float:
        """The seconds of a command on so many workers of one core each."""
        began = time.perf_counter()
        process = self.start(*words, "--workers", workers, cores=workers)
        said = process.communicate()[1].decode()
        if process.returncode != 0:
            raise SystemExit(f"{' '.join(map(str, words))} failed:\n{said}")
        return time.perf_counter() - began

    def _cache(self) -> Path:
        from rung.models.cache import cache_dir

        self.runs += 1
        own = self.folder / f"cache-{self.runs}"
        own.mkdir()
        for entry in cache_dir().iterdir() if cache_dir().exists() else ():
            if not entry.name.startswith(("responses", "training", ".")):
                (own / entry.name).symlink_to(entry)
        return own


def write_task(folder: Path, model: Path | None, count: int = len(LABELS)) -> Path:
    """Write some intents of BANKING77 and their task: those of `LABELS` first, then the others by name."""
    files: dict[str, list[dict[str, str]]] = {}
    for name in ("train", "validation", "test"):
        with (EXAMPLES / "banking77" / f"{name}.csv").open(newline="") as rows:
            files[name] = list(csv.DictReader(rows))
    labels = list(dict.fromkeys([*LABELS, *sorted(row["category"] for row in files["train"])]))[:count]
    for name, rows_of in files.items():
        chosen = [row for row in rows_of if row["category"] in labels]
        with (folder / f"{name}.csv").open("w", newline="") as out:
            writer = csv.DictWriter(out, ["text", "category"])
            writer.writeheader()
            writer.writerows({key: row[key] for key in ("text", "category")} for row in chosen)
    text = TASK.replace("[LABELS]", f"[{', '.join(labels)}]")
    (folder / "task.yaml").write_text(text + (f"model: {model}\n" if model else ""))
    return folder / "task.yaml"


def random_model(folder: Path) -> Path:
    """A random Llama of two layers with the built-in model's tokenizer."""
    import shutil

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from rung.models.reference import resolve

    source = resolve("embedded").folder
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(
        vocab_size=49152, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    )).save_pretrained(folder)  # fmt: skip
    for file in source.iterdir():
        if "token" in file.name or file.suffix == ".jinja":
            shutil.copyfile(file, folder / file.name)
    return folder


def made(task: Path, rung: str = "") -> Path:
    """An artifact of the task: zero-shot, or a rung on it."""
    from rung.artifact.artifact import Artifact
    from rung.rungs import build
    from rung.task import Task

    loaded = Task.load(task)
    data = loaded.read()
    artifact = Artifact.zero_shot(loaded, data.labels, engine="torch")
    if rung:
        artifact = build((rung,), loaded, 0)[0].fit(artifact, data)
    return artifact.save(task.parent / (rung or "zero-shot"))


def write_rows(file: Path, count: int) -> Path:
    """Write rows of BANKING77, each with a number, so that no two are equal."""
    texts = banking77_texts()
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["id", "text"])
        writer.writerows([i, f"{texts[i % len(texts)]} ({i})"] for i in range(count))
    return file


def measured(report: Path) -> list[tuple[Any, ...]]:
    """What a climb has measured."""
    rungs = json.loads(report.read_text())["rungs"]
    return [(rung["name"], rung["status"], rung["n"], rung["score"]) for rung in rungs]


def work_of(tuning: Path) -> float:
    """The rows that trials answered, also for the comparison, times the demonstrations that each showed."""
    told = json.loads(tuning.read_text())
    shown = {trial["number"]: 1 + trial["settings"]["k"] for trial in told["trials"]}
    work = sum(trial["rows"] * shown[trial["number"]] for trial in told["trials"])
    if told["comparison"]:
        work += told["comparison"]["n"] * (shown[min(shown)] + shown[told["best"]])
    return float(work)


def under_kills(bench: Bench, artifact: Path, count: int, kills: int) -> tuple[Counter[str], int]:
    """Predict on two workers through kills; how often each row is in the result, and the number of kills."""
    rows, out = write_rows(bench.folder / "many.csv", count), bench.folder / "many.jsonl"
    parts, dice, done = out.with_name(out.name + ".parts"), random.Random(0), 0
    while not out.exists():
        resume = ["--resume"] if parts.exists() else []
        process = bench.start("predict", artifact, rows, "--out", out, "--workers", 2, *resume, cores=2)
        before = len(list(parts.glob("*/manifest.json")))
        while process.poll() is None and done < kills:
            if len(list(parts.glob("*/manifest.json"))) > before:
                time.sleep(dice.uniform(0, 1))
                if process.poll() is not None:
                    break
                victims = [process.pid, *_children(process.pid)]
                with contextlib.suppress(ProcessLookupError):  # that worker has ended
                    os.kill(dice.choice(victims), signal.SIGKILL)
                    done += 1
                before = len(list(parts.glob("*/manifest.json")))
            time.sleep(0.01)
        said = process.communicate()[1].decode()
        if process.returncode not in (0, -signal.SIGKILL):
            raise SystemExit(said)
    return Counter(json.loads(line)["id"] for line in out.open()), done


def _children(pid: int) -> list[int]:
    """The processes that any thread of a process has started."""
    found = []
    for children in Path("/proc").glob(f"{pid}/task/*/children"):
        with contextlib.suppress(OSError):  # the thread has ended
            found += [int(child) for child in children.read_text().split()]
    return found


def main() -> None:
    """Run all, print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all by default")
    parser.add_argument("--small", action="store_true", help="a random model and few rows")
    parser.add_argument("--labels", type=int, default=len(LABELS), help="labels of the climb")
    parser.add_argument("--rows", type=int, default=6000, help="rows to predict")
    parser.add_argument("--trials", type=int, default=12, help="trials of the search")
    parser.add_argument("--killed-rows", type=int, default=50_000, help="rows to predict under kills, by a head")
    parser.add_argument("--kills", type=int, default=6)
    given = parser.parse_args()
    chosen = given.parts or PARTS
    if unknown := set(chosen) - set(PARTS):
        raise SystemExit(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if given.small:
        given.rows, given.trials, given.killed_rows, given.kills = 600, 4, 3000, 2
    import rung

    compileall.compile_dir(Path(rung.__file__).parent, quiet=1)
    ratios: dict[str, float] = {}
    print(f"{'work':10} {'1 worker':>9} {'2 workers':>10}  efficiency")
    with tempfile.TemporaryDirectory(prefix="rung-scale-") as temporary:
        folder = Path(temporary)
        bench = Bench(folder)
        task = write_task(folder, random_model(folder / "model") if given.small else None, given.labels)
        if "climb" in chosen:
            climb = ["climb", task, "--rungs", SMALL_RUNGS if given.small else RUNGS, "--engine", "torch"]
            one, two = (bench.seconds(*climb, "--out", folder / f"runs-{n}", workers=n) for n in (1, 2))
            show(ratios, "climb", one, two, one / (2 * two))
            reports = [measured(folder / f"runs-{n}" / "scale" / "report.json") for n in (1, 2)]
            print(f"{'':10} the two reports have {'the same' if reports[0] == reports[1] else 'other'} measurements")
        if "predict" in chosen:
            rows, artifact = write_rows(folder / "rows.csv", given.rows), made(task)
            one, two = (
                bench.seconds("predict", artifact, rows, "--out", folder / f"{n}.jsonl", workers=n) for n in (1, 2)
            )
            show(ratios, "predict", one, two, one / (2 * two))
            same = (folder / "1.jsonl").read_bytes() == (folder / "2.jsonl").read_bytes()
            print(f"{'':10} the two files are {'equal' if same else 'different'}")
        if "tune" in chosen:
            search = ["tune", task, "--rung", "few-shot-knn", "--trials", given.trials, "--engine", "torch"]
            one, two = (bench.seconds(*search, "--out", folder / f"tune-{n}", workers=n) for n in (1, 2))
            done = [work_of(next((folder / f"tune-{n}").glob("*/tuning.json"))) for n in (1, 2)]
            show(ratios, "tune", one, two, done[1] / two / (2 * done[0] / one))
        if "kills" in chosen:
            counts, kills = under_kills(bench, made(task, "tfidf-head"), given.killed_rows, given.kills)
            lost = sum(str(i) not in counts for i in range(given.killed_rows))
            doubled = sum(count > 1 for count in counts.values())
            print(f"{'kills':10} {given.killed_rows:,} rows, {kills} kills: {lost} lost, {doubled} doubled")
            ratios["rows_once"] = float(kills > 0 and lost == doubled == 0)
    goals = {name: goal for name, goal in GOALS.items() if name in ratios}
    finish("scale", ratios, goals)


def show(ratios: dict[str, float], name: str, one: float, two: float, efficiency: float) -> None:
    """Print a line of the table."""
    ratios[name] = efficiency
    print(f"{name:10} {one:7.0f} s {two:8.0f} s  {efficiency:.2f}", flush=True)


if __name__ == "__main__":
    main()
