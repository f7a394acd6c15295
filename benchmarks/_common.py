"""Shared code of the benchmarks: texts of the examples, clean subprocesses, and the JSON line at the end."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"
SPLITS = ("train", "validation", "test")


def banking77_texts() -> list[str]:
    """Return every message of examples/banking77."""
    texts = []
    for split in SPLITS:
        with (EXAMPLES / "banking77" / f"{split}.csv").open(newline="", encoding="utf-8") as rows:
            texts += [row["text"] for row in csv.DictReader(rows)]
    return texts


def scitldr_texts() -> list[str]:
    """Return every abstract of examples/scitldr: about fifteen times longer."""
    texts = []
    for split in SPLITS:
        with (EXAMPLES / "scitldr" / f"{split}.jsonl").open(encoding="utf-8") as rows:
            texts += ["".join(json.loads(row)["source"]) for row in rows]
    return texts


def run_python(code: str, *arguments: str) -> str:
    """Run `code` in a new interpreter and return what it prints."""
    return _checked([sys.executable, "-W", "ignore", "-c", code, *arguments])


def run_script(script: str, *arguments: str) -> str:
    """Run a benchmark's file in a new interpreter and return what it prints."""
    return _checked([sys.executable, "-W", "ignore", script, *arguments])


def seconds_of(command: Sequence[str], rounds: int = 3) -> float:
    """Return the shortest wall-clock time of a whole process; other load on the machine only lengthens it."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        _checked(command)
        times.append(time.perf_counter() - start)
    return min(times)


def seconds_to_first_byte(command: Sequence[str]) -> float:
    """Return the time until a process writes its first byte to stdout, its own start included."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_offline()) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        spent = time.perf_counter() - start
        _, said = process.communicate()
    if process.returncode != 0 or not first:
        raise SystemExit(f"{' '.join(command)} failed:\n{said.decode()}")
    return spent


def finish(benchmark: str, ratios: Mapping[str, float], goals: Mapping[str, float]) -> None:
    """Print the JSON line; a goal is met when its ratio is at least that large."""
    met = all(ratios.get(name, 0.0) >= goal for name, goal in goals.items())
    rounded = {name: round(ratio, 4) for name, ratio in ratios.items()}
    print(json.dumps({"benchmark": benchmark, "ratios": rounded, "goals": dict(goals), "met": met}))


def _checked(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=_offline(), check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stdout


def _offline() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "RUNG_OFFLINE": "1"}
