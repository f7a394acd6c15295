"""How fast an index is built and searched: 1,000, 100,000 and 1,000,000 passages.

    python benchmarks/retrieval_speed.py DATA [--sizes 1000 100000 1000000] [--queries 200]

Building is measured on real text of DATA/chunking_eval: cut, embed and write 1,000 passages, against the splitters of
LlamaIndex and Haystack (in an environment of their own) with sentence-transformers embedding in their default batches
of 10 and 32, and Rung with an encoder in int8 and in fp32; each side's passages are counted, and its tokens too, as
passages differ in length. Searching is measured at every size on passages grown from real ones: vectors of the 1,000
with noise of a third of their length, texts of 150 words drawn from the words of a real one and from all words. No
paraphrase, so the absolute recall of answers means nothing here; recall@10 is against the exact nearest neighbours.
Query latency does not hold the embedding of the query. Each size runs in a process of its own, whose peak memory is
shown.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from _common import finish, run_python
from rung.data.spec import Corpus
from rung.engines.opening import open_encoder
from rung.models.reference import resolve
from rung.retrieval.build import build
from rung.retrieval.index import terms
from rung.retrieval.store import PassageTable

BASE = 1_000
STEP = 20_000  # passages written together
GOALS = {"build": 2.0, "recall_10": 0.95, "growth": 0.1}

SPLIT = """
import json, sys, time
from pathlib import Path
from haystack import Document
from haystack.components.preprocessors import DocumentSplitter
from llama_index.core import Document as LlamaDocument
from llama_index.core.node_parser import SentenceSplitter
text, found = Path(sys.argv[1]).read_text(encoding="utf-8"), {}
start = time.perf_counter()
nodes = SentenceSplitter().get_nodes_from_documents([LlamaDocument(text=text)])
found["LlamaIndex"] = [time.perf_counter() - start, [node.text for node in nodes], 10]
splitter = DocumentSplitter()
splitter.warm_up()
start = time.perf_counter()
parts = splitter.run([Document(content=text)])["documents"]
found["Haystack"] = [time.perf_counter() - start, [part.content for part in parts], 32]
json.dump(found, open(sys.argv[2], "w"))
"""

EMBED = """
import json, sys, time
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], device="cpu", local_files_only=True)
texts, batch = json.load(open(sys.argv[2])), int(sys.argv[3])
model.encode(texts[:batch], batch_size=batch)
start = time.perf_counter()
for first in range(0, len(texts), batch):
    model.encode(texts[first : first + batch], batch_size=batch, show_progress_bar=False)
print(time.perf_counter() - start)
"""


def building(data: Path, characters: int) -> tuple[dict[str, float], np.ndarray, list[str]]:
    """Return passages per second of each system, and Rung's vectors and texts to grow larger indexes from."""
    source = (data / "chunking_eval" / "finance.md").read_text(encoding="utf-8")
    source += (data / "chunking_eval" / "pubmed.md").read_text(encoding="utf-8")
    source = source[:characters]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "text.txt").write_text(source, encoding="utf-8")
        rates = {}
        for precision in ("int8", "fp32"):
            open_encoder("embedded-encoder", precision=precision).embed(["warm"])
            corpus = Corpus(files="text.txt", chunk_tokens=250, overlap_tokens=0, precision=precision)
            start = time.perf_counter()
            index = build(folder / precision, corpus, folder)
            spent = time.perf_counter() - start
            rates[f"rung {precision}"] = len(index) / spent
            print(f"rung {precision}: {len(index)} passages in {spent:.1f} s, {len(source) / spent:,.0f} characters/s")
        python = folder / "environment" / "bin" / "python"
        subprocess.run(["uv", "venv", "-q", str(folder / "environment")], check=True)
        install = ["uv", "pip", "install", "-q", "--link-mode", "copy", "--python", str(python)]
        subprocess.run([*install, "llama-index-core", "haystack-ai"], check=True)
        out = folder / "split.json"
        subprocess.run([str(python), "-c", SPLIT, str(folder / "text.txt"), str(out)], check=True)
        for peer, (seconds, texts, batch) in json.loads(out.read_text()).items():
            (folder / "texts.json").write_text(json.dumps(texts))
            model = str(resolve("embedded-encoder").folder)
            seconds += float(run_python(EMBED, model, str(folder / "texts.json"), str(batch)))
            rates[peer] = len(texts) / seconds
            print(f"{peer}: {len(texts)} passages in {seconds:.1f} s, {len(source) / seconds:,.0f} characters/s")
        found = index._table.take(_ids(index))
        rows = list(found.values())
        return rates, np.stack([row["vector"] for row in rows]), [row["text"] for row in rows]


def _ids(index: object) -> list[int]:
    table = index._table._table  # type: ignore[attr-defined]
    return table.search().limit(BASE).with_row_id(True).select(["id"]).to_arrow()["_rowid"].to_pylist()


def grown(size: int, vectors: np.ndarray, words: list[list[str]], first: int) -> tuple[np.ndarray, list[str]]:
    """Return `size` vectors and texts from number `first` on; the same numbers give the same ones."""
    chance = np.random.default_rng(first)
    base = chance.integers(0, len(vectors), size)
    noise = chance.standard_normal((size, vectors.shape[1])).astype(np.float32)
    noise *= 1 / 3 / np.linalg.norm(noise, axis=1, keepdims=True)
    mixed = vectors[base] + noise
    mixed /= np.linalg.norm(mixed, axis=1, keepdims=True)
    every = [word for some in words for word in some]
    texts = []
    for one in base:
        own = words[one] or every
        picked = chance.integers(0, len(own), 120)
        other = chance.integers(0, len(every), 30)
        texts.append(" ".join([own[p] for p in picked] + [every[p] for p in other]))
    return mixed, texts


def searching(seed_file: Path, size: int, queries: int) -> dict[str, float]:
    """Build an index of `size` grown passages and search it; runs in a process of its own."""
    import resource

    seed = np.load(seed_file)
    words = [text.split(" ") for text in json.loads(seed_file.with_suffix(".json").read_text())]
    with tempfile.TemporaryDirectory() as name:
        store = PassageTable(name, "passages", 0)
        store.create(seed.shape[1])
        asked, asked_terms = grown(queries, seed, words, 10**9)
        asked_terms = [" ".join(dict.fromkeys(text.split(" ")[:12])) for text in asked_terms]
        best = np.full((queries, 10), -np.inf, np.float32)
        written = 0.0
        for first in range(0, size, STEP):
            number = min(STEP, size - first)
            vectors, texts = grown(number, seed, words, first)
            best = np.sort(np.concatenate([best, asked @ vectors.T], axis=1), axis=1)[:, -10:]
            ids = [str(first + one) for one in range(number)]
            same, zeros = [""] * number, [0] * number
            rows = {"id": ids, "document": ids, "hash": ids, "source": same, "title": same, "text": texts}
            start = time.perf_counter()
            store.add({**rows, "terms": texts, "page": zeros, "start": zeros, "end": zeros}, vectors)
            written += time.perf_counter() - start
        start = time.perf_counter()
        store.finish(changed=True, previous=None)
        written += time.perf_counter() - start
        found, dense, both = 0, [], []
        for row in range(queries):
            start = time.perf_counter()
            ids, scores = store.nearest(asked[row : row + 1], 100, None)[0]
            dense.append(time.perf_counter() - start)
            store.matching([asked_terms[row]], 100, None)
            store.take(ids[:15].tolist())
            both.append(time.perf_counter() - start)
            found += int((scores[:10] >= best[row, 0] - 1e-5).sum())
        start = time.perf_counter()
        store.nearest(asked, 100, None)
        store.matching(asked_terms, 100, None)
        batched = (time.perf_counter() - start) / queries
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {
        "write": size / written, "recall": found / (10 * queries), "dense_p50": float(np.quantile(dense, 0.5)),
        "p50": float(np.quantile(both, 0.5)), "p99": float(np.quantile(both, 0.99)), "batched": batched,
        "memory": peak,
    }  # fmt: skip


def main() -> None:
    """Build, grow and search; print tables and one JSON line."""
    options = argparse.ArgumentParser()
    options.add_argument("data", type=Path)
    options.add_argument("--sizes", type=int, nargs="+", default=[1_000, 100_000, 1_000_000])
    options.add_argument("--queries", type=int, default=200)
    options.add_argument("--characters", type=int, default=1_000_000, help="of text to measure building on")
    options.add_argument("--one", type=int, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.one is not None:
        print(json.dumps(searching(chosen.data, chosen.one, chosen.queries)))
        return
    rates, vectors, texts = building(chosen.data, chosen.characters)
    peer = max(value for name, value in rates.items() if not name.startswith("rung"))
    with tempfile.TemporaryDirectory() as name:
        seed = Path(name) / "seed.npy"
        np.save(seed, vectors)
        seed.with_suffix(".json").write_text(json.dumps([" ".join(terms(text)) for text in texts]))
        print(
            f"{'passages':>9} {'written/s':>10} {'recall@10':>9} {'p50 ms':>7} {'p99 ms':>7} {'batched':>8} {'GB':>8}"
        )
        found = {}
        for size in chosen.sizes:
            command = [sys.executable, __file__, str(seed), "--one", str(size), "--queries", str(chosen.queries)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[size] = one = json.loads(done.stdout)
            print(
                f"{size:9} {one['write']:10.0f} {one['recall']:9.3f} {1e3 * one['p50']:7.1f} {1e3 * one['p99']:7.1f} "
                f"{1e3 * one['batched']:8.1f} {one['memory']:8.2f}"
            )
    growth = found[chosen.sizes[0]]["p50"] / found[chosen.sizes[-1]]["p50"]
    recall = min(one["recall"] for one in found.values())
    built = {"build": rates["rung int8"] / peer, "build_fp32": rates["rung fp32"] / peer}
    finish("retrieval_speed", {**built, "recall_10": recall, "growth": growth}, GOALS)


if __name__ == "__main__":
    main()
