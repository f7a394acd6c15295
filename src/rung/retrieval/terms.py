"""The terms of a text for BM25, in any script: words, and pairs of characters where words are not spaced."""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise

# Scripts written without spaces: Thai, Lao, Burmese, Khmer, Japanese and Chinese (with the extension planes).
UNSPACED = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005\u3040-\u30ff"
    r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
RUN = re.compile(rf"[{UNSPACED}]+|[^\W_{UNSPACED}]+(?:['’][^\W_{UNSPACED}]+)?")
FIRST = re.compile(f"[{UNSPACED}]")
STEM = 6  # letters of a word that count: `payments`, `payment` and `Zahlungen`, `Zahlung` become one term each
LONGEST = 64  # characters of a term with digits; longer ones are no words
MARKS = {ord(mark): None for mark in map(chr, range(0x300, 0x370))}  # combining accents of Latin, Greek and Cyrillic


def terms(text: str) -> list[str]:
    """Return the terms of a text in order: without case, accents and compatibility forms.

    Words are runs of letters and digits, cut after six letters, which does for many languages what a stemmer does for
    one (McNamee & Mayfield, Character n-gram tokenization for European language text retrieval, 2004); what holds a
    digit is kept whole. A run of a script without spaces becomes its pairs of characters, as is usual for Chinese,
    Japanese and Korean (Nie & Ren, Chinese information retrieval: using characters or words?, 1999).
    """
    found = []
    for run in RUN.findall(_folded(text)):
        if _unspaced(run[0]):
            found += [first + second for first, second in pairwise(run)] or [run]
        else:
            word = run.replace("’", "'").removesuffix("'s")
            found.append(word[: STEM if word.isalpha() else LONGEST])
    return found


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKD", text.casefold()).translate(MARKS)


def _unspaced(character: str) -> bool:
    return FIRST.match(character) is not None
