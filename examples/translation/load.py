"""Make rows.jsonl from XQuAD: python load.py xquad.en.json xquad.de.json, beside this file."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path


def questions(file: Path) -> Iterator[tuple[str, int, str]]:
    """Yield id, number of the article, and text of every question."""
    for article, entry in enumerate(json.loads(file.read_text(encoding="utf-8"))["data"]):
        for paragraph in entry["paragraphs"]:
            for qa in paragraph["qas"]:
                yield qa["id"], article, " ".join(qa["question"].split())


def main(english: Path, german: Path, out: Path) -> None:
    """Write one row per question that both files have."""
    translated = {key: text for key, _, text in questions(german)}
    with out.open("w", encoding="utf-8") as rows:
        for key, article, text in questions(english):
            if key in translated:
                row = {"article": article, "english": text, "german": translated[key]}
                rows.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    here = Path(__file__).parent
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) > 3 else here / "rows.jsonl")
