"""Extract the answer from a text that reasons first: by a fixed marker, and by the form of an answer.

Chain-of-thought (Wei et al. 2022, https://arxiv.org/abs/2201.11903; without examples: Kojima et al. 2022,
https://arxiv.org/abs/2205.11916) makes the model write its steps before the answer. `REQUEST` asks for a marker
before the answer; the text after the last marker counts. Without a marker, the answer is the last number in the text
(as is usual on GSM8K) or the label named last; free text without a marker has no answer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from rung.data.texts import canonical, numbers, read_number, whole_word

Extract = Literal["label", "number", "text"]
MARKER = "Answer:"
REQUEST = f'Think step by step. Then write the answer alone on the last line, after "{MARKER}".'

_MARKED = re.compile(rf"{re.escape(MARKER.removesuffix(':'))}\W*:(.*)", re.IGNORECASE)


def extracted(text: str, how: Extract, labels: Sequence[str] = ()) -> str:
    """Extract the answer in `text`; empty if there is none.

    It is one of `labels` in upper or lower case (`label`), a number in digits without needless zeros (`number`), or the
    rest of the marked line (`text`).
    """
    marked = _MARKED.findall(text)
    last = marked[-1].strip(" \t*\"'`") if marked else ""
    if how == "text":
        return last
    if how == "number":
        return _number(last, 0) or _number(text, -1)
    return _label(last, labels) or _label(text, labels)


def _number(text: str, which: int) -> str:
    found = numbers(text)
    if not found:
        return ""
    whole, _, decimals = found[which].removeprefix("-").partition(".")
    plain = ".".join(filter(None, (whole.lstrip("0") or "0", decimals.rstrip("0"))))
    return f"-{plain}" if found[which].startswith("-") and plain != "0" else plain


def _label(text: str, labels: Sequence[str]) -> str:
    """Find the label named last in `text` as a whole word; of several that end there, the longest."""
    best, key, text = "", (-1, 0), canonical(text)
    for label in labels:
        for match in whole_word(canonical(label)).finditer(text):
            if (match.end(), len(label)) > key:
                best, key = label, (match.end(), len(label))
    return best


def is_number(text: str) -> bool:
    """Whether an expected answer is a number alone."""
    try:
        read_number(text)
    except ValueError:
        return False
    return True


def majority(answers: Sequence[str]) -> tuple[str, float]:
    """Find the most common answer and its share of all; of equals the first. Empty answers never win.

    Self-consistency: Wang et al. 2023, https://arxiv.org/abs/2203.11171.
    """
    counts = Counter(filter(None, answers))
    best, count = max(counts.items(), key=lambda item: item[1], default=("", 0))
    return best, count / len(answers)
