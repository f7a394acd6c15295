"""The five steps of a task in production, run on BANKING77: prompt, collect, improve, tune, repeat.

    python benchmarks/production_loop.py --traffic ../shared/data/banking77/train.csv --folder /tmp/loop

Users' messages are BANKING77's own training rows that the example does not hold; a message's label plays the
reviewer, who reviews every answer and gives the expected one. Everything goes through the commands and the running
server: the script calls no Python function of Rung. The task starts with two rows per label; scores are those of the
example's test rows, which no message of the traffic equals. The folder keeps the runs, the store and the registry.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from _common import EXAMPLES, banking77_texts, finish

TASK = "banking77"
BATCH = 16
RUNG = [sys.executable, "-W", "ignore", "-m", "rung"]


def rung(folder: Path, *arguments: str) -> Any:
    """Run a command in the folder and return its JSON."""
    print("$ rung", *arguments, file=sys.stderr, flush=True)
    done = subprocess.run([*RUNG, *arguments, "--json"], cwd=folder, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"rung {arguments[0]} ended with {done.returncode}")
    return json.loads(done.stdout)


@contextmanager
def server(folder: Path) -> Iterator[httpx.Client]:
    """Serve what is promoted, capturing everything, for the time of the block."""
    command = [*RUNG, "serve", "--registry", "registry", "--capture", "on", "--port", "0", "--no-pages"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().strip()
            with httpx.Client(base_url=url, timeout=600) as client:
                yield client
        finally:
            process.terminate()
            process.wait(60)


def ask(client: httpx.Client, rows: Sequence[dict[str, str]]) -> int:
    """Send the messages, review each answer, and return how many were right."""
    right = 0
    expected: dict[str, str] = {}
    for first in range(0, len(rows), BATCH):
        part = rows[first : first + BATCH]
        told = client.post(f"tasks/{TASK}/predict", json={"rows": [{"text": row["text"]} for row in part]})
        told.raise_for_status()
        for row, made in zip(part, told.json()["predictions"], strict=True):
            right += made["output"] == row["category"]
            expected[made["id"]] = row["category"]
        print(f"\r{first + len(part)} of {len(rows)} answered, {right} right", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    time.sleep(2)  # the last answers are written behind the responses
    for identity, label in expected.items():
        client.post(f"failures/{identity}/correction", json={"expected": label, "reviewer": "Ann"}).raise_for_status()
    return right


def traffic(file: Path, seed: int) -> Iterator[dict[str, str]]:
    """Yield the messages that no split of the example holds, in random order."""
    known = {" ".join(text.lower().split()) for text in banking77_texts()}
    with file.open(newline="", encoding="utf-8") as rows:
        found = [row for row in csv.DictReader(rows) if " ".join(row["text"].lower().split()) not in known]
    random.Random(seed).shuffle(found)
    yield from found


def prepare(folder: Path, per_label: int, validation_rows: int, test_rows: int) -> None:
    """Copy the example, with so many training rows per label."""
    shutil.copytree(EXAMPLES / TASK, folder)
    task = folder / "task.yaml"
    text = task.read_text("utf-8")
    rows = f"train_per_label: {per_label}, validation_rows: {validation_rows}, test_rows: {test_rows}"
    changed = text.replace("train_per_label: 10", rows)
    assert changed != text
    task.write_text(changed, "utf-8")


def taken_text(taken: dict[str, int]) -> str:
    """Return what became of the reviewed answers, in words."""
    return (
        f"{taken['failures']} corrected, {taken['confirmed']} confirmed, {taken['replaced']} rows replaced, "
        f"{taken['held_out']} held out, {taken['superseded']} superseded"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--traffic", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--messages", type=int, nargs="+", default=[200, 600, 300])
    parser.add_argument(
        "--rungs", nargs="+", default=["few-shot-knn", "features,fine-tuned-encoder", "features,fine-tuned-encoder"]
    )
    parser.add_argument("--per-label", type=int, default=2)
    parser.add_argument("--validation-rows", type=int, default=100)
    parser.add_argument("--test-rows", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    folder = chosen.folder.resolve()
    prepare(folder, chosen.per_label, chosen.validation_rows, chosen.test_rows)
    first = rung(folder, "climb", "task.yaml", "--rungs", "zero-shot")
    found = next(one for one in first["rungs"] if one["name"] == "zero-shot")
    rung(folder, "promote", found["artifact"], "--reason", "the first prompt", "--reviewer", "Ann")
    messages, name, turns = traffic(chosen.traffic, chosen.seed), "zero-shot", []
    print(f"zero-shot: {100 * found['score']:.1f} % of {found['n']} test rows", file=sys.stderr)
    for count, rungs in zip(chosen.messages, chosen.rungs, strict=True):
        began = time.monotonic()
        with server(folder) as client:
            right = ask(client, [next(messages) for _ in range(count)])
        made = rung(folder, "improve", "task.yaml", "--rungs", rungs)
        (folder / f"improvement-{len(turns)}.json").write_text(json.dumps(made, indent=1), "utf-8")
        if made["better"]:  # the reviewer has looked at what was right once and is wrong again, and lets it be
            broken = ["--accept-regressions"] if made["failures"]["regressions"] else []
            rung(folder, "promote", made["run"], "--reviewer", "Ann", *broken)
        minutes = (time.monotonic() - began) / 60
        fixed, held_out = made["failures"]["of_test"]
        print(
            f"| {name} | {count} | {right} ({100 * right / count:.1f} %) | {taken_text(made['taken'])} | "
            f"{made['name']} | {made['decision']} | {fixed} of {held_out} | {minutes:.0f} |",
            flush=True,
        )
        turns.append(right / count)
        name = made["name"] if made["better"] else name
    finish("production_loop", {"last_over_first": turns[-1] / max(turns[0], 1e-9)}, {"last_over_first": 1.5})


if __name__ == "__main__":
    main()
