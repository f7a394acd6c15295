"""Make train.jsonl, validation.jsonl and test.jsonl from the German catalogues of installed packages.

uv run --with babel==2.19.0,django==5.2.19,sphinx==9.0.4 examples/translation/rows.py
"""

from __future__ import annotations

import hashlib
import json
import re
from importlib.util import find_spec
from pathlib import Path

SOURCES = ("django", "sphinx")


def messages() -> dict[str, str]:
    """English messages of two words or more without placeholders, with their German translations."""
    from babel.messages.pofile import read_po

    pairs: dict[str, str] = {}
    seen: set[str] = set()
    for package in SOURCES:
        folder = Path(str((spec := find_spec(package)) and spec.origin)).parent
        for file in sorted(folder.rglob("locale/de/LC_MESSAGES/*.po")):
            with file.open("rb") as opened:
                for message in read_po(opened, locale="de"):
                    english, german = message.id, message.string
                    if not isinstance(english, str) or message.fuzzy or not german or english == german:
                        continue
                    words = re.sub(r"\W", "", english).lower()  # messages that differ by these alone count as one
                    plain = not re.search(r"[%{<&\n]", english + german)
                    if plain and words not in seen and len(english.split()) > 1 and len(english) <= 160:
                        pairs[english] = german
                        seen.add(words)
    return pairs


def main(folder: Path) -> None:
    """Write one row per message; a hash of the English text decides its split."""
    splits: dict[str, list[str]] = {split: [] for split in ("train", "validation", "test")}
    for english, german in sorted(messages().items()):
        place = int(hashlib.sha256(english.encode()).hexdigest()[:8], 16) / 2**32
        split = "train" if place < 0.5 else "validation" if place < 0.7 else "test"
        splits[split].append(json.dumps({"english": english, "german": german}, ensure_ascii=False))
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(__file__).parent)
