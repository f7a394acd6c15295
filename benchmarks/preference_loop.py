"""What corrections, pairs and thumbs are worth in production, on a task whose answers are texts.

    python benchmarks/preference_loop.py --folder /tmp/loop

The task is examples/sorting with few solved rows. `lora` learns these, is promoted and serves messages. A reviewer
corrects the first of them, and users give the others a thumb. `rung improve` then learns from all of it in four ways:
`lora` from the corrections as rows, `dpo` from the corrections as pairs, `kto` from pairs and thumbs, and `dpo` on top
of what `lora` learned. Everything goes through the commands and the running server.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

from _common import EXAMPLES, finish
from production_loop import BATCH, rung, server, taken_text

sys.path.insert(0, str(EXAMPLES / "sorting"))
from make import rows

TASK = "sorting"
SEED = 1  # of the messages


def prepare(folder: Path, model: str, solved: int, validation: int, test: int) -> None:
    """Copy the example, with this model and so many rows of each split."""
    shutil.copytree(EXAMPLES / TASK, folder)
    task = folder / "task.yaml"
    text = task.read_text("utf-8")
    wanted = f"test.jsonl, train_rows: {solved}, validation_rows: {validation}, test_rows: {test}"
    task.write_text(text.replace("test.jsonl", wanted).replace("model: embedded", f"model: {model}"), "utf-8")


def messages(folder: Path, count: int) -> list[dict[str, str]]:
    """Return rows that no split of the example holds."""
    known = {json.loads(line)["words"] for file in folder.glob("*.jsonl") for line in file.read_text().splitlines()}
    return [row for row in rows(count + len(known), SEED) if row["words"] not in known][:count]


def serve(folder: Path, asked: list[dict[str, str]], corrected: int) -> int:
    """Send the messages; a reviewer corrects so many, and the others get a thumb. Returns how many were right."""
    right = 0
    with server(folder) as client:
        found: list[tuple[str, str, str]] = []
        for first in range(0, len(asked), BATCH):
            part = asked[first : first + BATCH]
            told = client.post(f"tasks/{TASK}/predict", json={"rows": [{"words": row["words"]} for row in part]})
            told.raise_for_status()
            for row, made in zip(part, told.json()["predictions"], strict=True):
                found.append((made["id"], made["output"], row["sorted"]))
                right += made["output"] == row["sorted"]
            print(f"\r{len(found)} of {len(asked)} answered, {right} right", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        time.sleep(2)  # the last answers are written behind the responses
        for identity, _, expected in found[:corrected]:
            body = {"expected": expected, "reviewer": "Ann"}
            client.post(f"failures/{identity}/correction", json=body).raise_for_status()
        for identity, output, expected in found[corrected:]:
            body = {"id": identity, "thumb": "up" if output == expected else "down"}
            client.post("feedback", json=body).raise_for_status()
    return right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--rungs", default="lora,dpo,kto")
    parser.add_argument("--solved", type=int, default=80, help="rows that the first artifact learns")
    parser.add_argument("--messages", type=int, default=300)
    parser.add_argument("--corrected", type=int, default=150, help="messages that the reviewer answers")
    parser.add_argument("--after", type=int, default=100, help="messages after the improvement")
    parser.add_argument("--validation-rows", type=int, default=60)
    parser.add_argument("--test-rows", type=int, default=120)
    chosen = parser.parse_args()
    folder = chosen.folder.resolve()
    prepare(folder, chosen.model, chosen.solved, chosen.validation_rows, chosen.test_rows)
    first = rung(folder, "climb", "task.yaml", "--rungs", "lora")
    made = next(one for one in first["rungs"] if one["name"] == "lora")
    rung(folder, "promote", made["artifact"], "--reason", "the first tuning", "--reviewer", "Ann")
    print(f"lora on {chosen.solved} rows: {100 * made['score']:.1f} % of {made['n']} {made['split']} rows", flush=True)
    every = messages(folder, chosen.messages + chosen.after)
    right = serve(folder, every[: chosen.messages], chosen.corrected)
    print(f"{right} of {chosen.messages} messages right ({100 * right / chosen.messages:.1f} %)", flush=True)
    found = rung(folder, "improve", "task.yaml", "--rungs", chosen.rungs)
    (folder / "improvement.json").write_text(json.dumps(found, indent=1), "utf-8")
    print(
        f"{taken_text(found['taken'])}, {found['taken']['pairs']} pairs, {found['taken']['thumbs']} thumbs", flush=True
    )
    for each in json.loads((folder / found["run"] / "report.json").read_text("utf-8"))["rungs"]:
        if each["score"] is not None:
            interval = "" if each["low"] is None else f" [{100 * each['low']:.1f}, {100 * each['high']:.1f}]"
            score = f"{100 * each['score']:.1f} %{interval} of {each['n']} {each['split']} rows"
            print(f"| {each['name']} | {score} | {each['status']} | {each['fit_seconds']:.0f} s |", flush=True)
    print(found["decision"], flush=True)
    later = right / chosen.messages
    if found["better"]:
        broken = ["--accept-regressions"] if found["failures"]["regressions"] else []
        rung(folder, "promote", found["run"], "--reviewer", "Ann", *broken)
        later = serve(folder, every[chosen.messages :], 0) / chosen.after
        print(f"{100 * later:.1f} % of the next {chosen.after} messages right", flush=True)
    finish("preference_loop", {"after_over_before": later / max(right / chosen.messages, 1e-9)}, {})


if __name__ == "__main__":
    main()
