"""Sentence vectors: Rung's encoder on OpenVINO against sentence-transformers on torch, batch 64, in the same run.

Short texts (BANKING77 messages, about 15 tokens) and long ones (SciTLDR abstracts, about 200). Both sort by length
and truncate alike. Both take turns, three runs each, and the fastest run counts. The ratio `cosine_*` is the smallest
cosine between the two vectors of a text.

Measured on two AVX2 cores on 2026-11-21: short 1.7x, long 1.5x (long texts are matrix products on both sides).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from sentence_transformers import SentenceTransformer

from _common import banking77_texts, finish, scitldr_texts
from rung.engines.encoders import open_sentence_encoder
from rung.models.reference import resolve

ROUNDS = 3
GOALS = {"short": 1.5, "long": 1.5, "cosine_short": 0.999, "cosine_long": 0.999}


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def main() -> None:
    """Time both on the same texts, compare their vectors, print a table and one JSON line."""
    files = resolve("embedded-encoder")
    ours = open_sentence_encoder(files, device="cpu", backend="openvino")
    peer = SentenceTransformer(str(files.folder), device="cpu", local_files_only=True)
    ratios = {}
    print(f"{'texts':6} {'number':>6} {'sentence-transformers':>22} {'rung':>8} {'ratio':>6} {'least cosine':>13}")
    for name, texts in (("short", banking77_texts()), ("long", scitldr_texts())):
        calls = {
            "peer": lambda texts=texts: peer.encode(
                texts, batch_size=64, normalize_embeddings=True, show_progress_bar=False
            ),
            "ours": lambda texts=texts: ours.embed(texts),
        }
        found = {who: call() for who, call in calls.items()}  # warm-up
        cosine = float((found["peer"] * found["ours"]).sum(1).min())
        spent = dict.fromkeys(calls, float("inf"))
        for _ in range(ROUNDS):
            for who, call in calls.items():
                spent[who] = min(spent[who], timed(call)[0])
        ratios |= {name: spent["peer"] / spent["ours"], f"cosine_{name}": cosine}
        rates = {who: len(texts) / seconds for who, seconds in spent.items()}
        print(
            f"{name:6} {len(texts):6} {rates['peer']:20.0f}/s {rates['ours']:6.0f}/s {ratios[name]:6.2f} {cosine:13.6f}"
        )
    finish("embedding", ratios, GOALS)


if __name__ == "__main__":
    main()
