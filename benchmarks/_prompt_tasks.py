"""The tasks of the prompt benchmarks, as task folders made from the original data files.

`--data` names a folder with `banking77/{train,test}.csv`, `sroie/data/{box,key}` and `gsm8k/{train,test}.jsonl` as
their authors publish them.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]
LABELS = 20  # of BANKING77


def banking77(source: Path, seed: int, train: int, test: int) -> tuple[str, dict[str, Rows]]:
    """Twenty intents, drawn by the seed, with rows spread evenly."""
    rng = random.Random(seed)
    files = {name: _csv(source / "banking77" / f"{name}.csv") for name in ("train", "test")}
    labels = sorted(rng.sample(sorted({row["category"] for row in files["test"]}), LABELS))
    splits = {}
    for name, count in (("train", train), ("test", test)):
        by_label = {label: [row for row in files[name] if row["category"] == label] for label in labels}
        for rows in by_label.values():
            rng.shuffle(rows)
        dealt = [rows[turn] for turn in range(max(map(len, by_label.values()))) for rows in by_label.values()
                 if turn < len(rows)]  # fmt: skip
        splits[name] = dealt[:count]
    head = (
        "instruction: Which intent does this message of a bank's customer express?\ninputs: [text]\n"
        f"output: {{column: category, kind: category, labels: {json.dumps(labels)}}}\n"
    )
    return head, splits


def sroie(source: Path, seed: int, train: int, test: int) -> tuple[str, dict[str, Rows]]:
    """Receipts as text lines; a company's receipts stay on one side."""
    folder = source / "sroie" / "data"
    rows = []
    for key in sorted((folder / "key").glob("*.json")):
        fields = json.loads(key.read_text("utf-8"))
        lines = (folder / "box" / f"{key.stem}.csv").read_text("utf-8", errors="replace").splitlines()
        text = "\n".join(line.split(",", 8)[8] for line in lines if line.count(",") >= 8)
        if len(fields) == 4 and len(text) < 1500:
            rows.append({"receipt": text, "fields": json.dumps(fields), "company": fields["company"]})
    companies = sorted({row["company"] for row in rows})
    random.Random(seed).shuffle(companies)
    held = set(companies[: len(companies) // 2])
    random.Random(seed).shuffle(rows)
    splits = {
        "train": [row for row in rows if row["company"] not in held][:train],
        "test": [row for row in rows if row["company"] in held][:test],
    }
    properties = {name: {"type": "string", "maxLength": 120} for name in ("company", "date", "address", "total")}
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    head = (
        "instruction: Extract company, date, address and total from the receipt as JSON.\ninputs: [receipt]\n"
        f"output: {{column: fields, kind: json, max_tokens: 200, schema: {json.dumps(schema)}}}\n"
    )
    return head, splits


def gsm8k(source: Path, seed: int, train: int, test: int) -> tuple[str, dict[str, Rows]]:
    """Word problems with the final number as the answer."""
    splits = {}
    for name, count in (("train", train), ("test", test)):
        lines = (source / "gsm8k" / f"{name}.jsonl").read_text("utf-8").splitlines()
        chosen = random.Random(seed).sample([json.loads(line) for line in lines], count)
        splits[name] = [
            {"question": row["question"], "answer": row["answer"].rsplit("####", 1)[1].strip().replace(",", "")}
            for row in chosen
        ]
    head = (
        "instruction: Solve the problem.\ninputs: [question]\n"
        "output: {column: answer, kind: text, max_tokens: 16}\nmetric: exact_match\n"
    )
    return head, splits


TASKS: dict[str, Callable[[Path, int, int, int], tuple[str, dict[str, Rows]]]] = {
    "banking77": banking77, "sroie": sroie, "gsm8k": gsm8k,
}  # fmt: skip


def task_folder(name: str, source: Path, folder: Path, *, seed: int, train: int, test: int, model: str) -> Path:
    """Write a task folder and return its task file; it has hardly any validation rows."""
    head, splits = TASKS[name](source, seed, train, test)
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (folder / f"{split}.jsonl").write_text("".join(lines), "utf-8")
    file = folder / "task.yaml"
    data = "data: {train: train.jsonl, test: test.jsonl, split: {validation: 0.0001}, duplicates: drop}\n"
    file.write_text(f"name: {name}\n{head}{data}model: {json.dumps(model)}\n", "utf-8")
    return file


def _csv(file: Path) -> Rows:
    with file.open(newline="", encoding="utf-8") as rows:
        return list(csv.DictReader(rows))
