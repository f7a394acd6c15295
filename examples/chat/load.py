"""Make rows.jsonl, conversations about a text, from XQuAD: python load.py xquad.en.json, beside this file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

MOST_TURNS = 4  # questions of a conversation


def main(source: Path, out: Path) -> None:
    """Write one conversation per paragraph: the text with the first question, then the others in turn."""
    with out.open("w", encoding="utf-8") as rows:
        for article, entry in enumerate(json.loads(source.read_text(encoding="utf-8"))["data"]):
            for paragraph in entry["paragraphs"]:
                messages = []
                for qa in paragraph["qas"][:MOST_TURNS]:
                    asked = qa["question"] if messages else f"{paragraph['context']}\n\n{qa['question']}"
                    messages.append({"role": "user", "content": asked})
                    messages.append({"role": "assistant", "content": qa["answers"][0]["text"]})
                rows.write(json.dumps({"article": article, "messages": messages}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parent / "rows.jsonl")
