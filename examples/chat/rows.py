"""Make train.jsonl, validation.jsonl and test.jsonl from the questions of examples/documents: python rows.py."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
DOCUMENT = "documents/state_of_the_union.md"
MOST_TURNS, MOST_CHARACTERS = 2, 2500  # of a conversation


def questions(folder: Path) -> list[dict[str, object]]:
    """Questions on the speech with one answer span, in the order of their spans."""
    lines = [line for file in sorted(folder.glob("*.jsonl")) for line in file.read_text("utf-8").splitlines()]
    rows = [json.loads(line) for line in lines]
    single = [row for row in rows if len(row["spans"]) == 1 and row["spans"][0]["document"] == DOCUMENT]
    return sorted(single, key=lambda row: row["spans"][0]["start"])


def conversations(folder: Path) -> Iterator[list[dict[str, str]]]:
    """A part of the speech with the first question on it, then the others in turn; no two share a part."""
    text, group = (folder / DOCUMENT).read_text("utf-8"), list[dict]()
    ends = [0, *(found.end() for found in re.finditer(r"[.?!]\s+", text)), len(text)]
    for row in [*questions(folder), None]:
        start = group[0]["spans"][0]["start"] if group else 0
        if group and (row is None or len(group) == MOST_TURNS or row["spans"][0]["end"] - start > MOST_CHARACTERS):
            last = max(each["spans"][0]["end"] for each in group)
            part = text[max(e for e in ends if e <= start) : min(e for e in ends if e >= last)].strip()
            turns = []
            for each in group:
                asked = each["question"] if turns else f"{part}\n\n{each['question']}"
                turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": each["answer"]}]
            yield turns
            group = []
        group += [row] if row is not None else []


def main(folder: Path, out: Path) -> None:
    """Write one conversation a row; in turn, two go to training, one to validation and two to the test."""
    splits: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for number, turns in enumerate(conversations(folder)):
        split = ("train", "test", "validation", "train", "test")[number % 5]
        splits[split].append(json.dumps({"messages": turns}, ensure_ascii=False))
    for split, rows in splits.items():
        (out / f"{split}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(HERE.parent / "documents", HERE)
