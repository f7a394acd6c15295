"""What a search finds: Rung's index against TF-IDF, BM25 alone, vectors alone, LlamaIndex and Haystack.

    python benchmarks/retrieval_quality.py DATA [--questions N]

DATA holds `chunking_eval` (472 questions on five corpora, with the exact characters that answer each; all corpora lie
in one index) and `xquad` (1,190 questions on 240 paragraphs, in English, German and Spanish). Measured are the mean
share of the gold characters that the first passage, the first 5, and the first 5,000 characters of passages hold; on
xquad the share of questions whose paragraph is first, and among 5. Rung's settings were chosen on the questions with
even numbers; all rows below are of the odd ones, all the same for every system.

LlamaIndex and Haystack run in an environment of their own with their default splitters (1,024 tokens overlapping by
200; 200 words). Their passages are embedded by the same encoder. It reads 256 tokens at once; of longer ones it takes
the mean of the vectors of their parts, which serves them better than cutting. Passages are ranked by cosine as their
in-memory stores do; Haystack's BM25 ranks in its own store. TF-IDF is scikit-learn's default on 1,000 characters.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from _common import finish
from rung.data.rows import Span
from rung.data.spec import Corpus
from rung.engines.opening import open_encoder
from rung.evaluation.statistics import compare
from rung.retrieval.build import build
from rung.retrieval.index import SearchSettings
from rung.retrieval.passage import Passage, span_recall

LANGUAGES = ("en", "de", "es")
READ = 5_000  # characters of passages
DEPTH = 20
GOALS = {"recall_1": 1.0, "recall_5": 1.0, "recall_5_int8": 0.99, "recall_5_against_tfidf": 1.0, "xquad_1": 1.0}

PEERS = """
import json, sys
from haystack import Document
from haystack.components.preprocessors import DocumentSplitter
from haystack.document_stores.in_memory import InMemoryDocumentStore
from llama_index.core import Document as LlamaDocument
from llama_index.core.node_parser import SentenceSplitter
given = json.load(open(sys.argv[1]))
found = {"LlamaIndex": [], "Haystack": []}
splitter = DocumentSplitter()
splitter.warm_up()
stores = InMemoryDocumentStore()
for name, text in given["documents"].items():
    for node in SentenceSplitter().get_nodes_from_documents([LlamaDocument(text=text)]):
        found["LlamaIndex"].append([name, node.start_char_idx, node.end_char_idx])
    parts = splitter.run([Document(content=text, meta={"name": name})])["documents"]
    for part in parts:
        start = part.meta["split_idx_start"]
        found["Haystack"].append([name, start, start + len(part.content)])
    stores.write_documents(parts)
found["Haystack BM25"] = [
    [[d.meta["name"], d.meta["split_idx_start"], d.meta["split_idx_start"] + len(d.content)]
     for d in stores.bm25_retrieval(query, top_k=20)]
    for query in given["queries"]
]
json.dump(found, open(sys.argv[2], "w"))
"""


@dataclass(frozen=True)
class Questions:
    """Documents by name, and questions with the spans that answer them."""

    documents: Mapping[str, str]
    texts: Sequence[str]
    gold: Sequence[Sequence[Span]]


def chunking_eval(folder: Path, number: int | None) -> Questions:
    documents = {
        f.stem: f.read_text(encoding="utf-8") for f in sorted(folder.glob("*.md")) if not f.name.startswith("UP")
    }
    with (folder / "questions_df.csv").open(encoding="utf-8", newline="") as rows:
        odd = list(csv.DictReader(rows))[1::2][:number]
    gold = [
        [Span(row["corpus_id"], one["start_index"], one["end_index"]) for one in json.loads(row["references"])]
        for row in odd
    ]
    return Questions(documents, [row["question"] for row in odd], gold)


def xquad(file: Path, number: int | None) -> Questions:
    paragraphs = [p for article in json.loads(file.read_text("utf-8"))["data"] for p in article["paragraphs"]]
    documents = {str(place): paragraph["context"] for place, paragraph in enumerate(paragraphs)}
    asked = [(qa["question"], str(place)) for place, paragraph in enumerate(paragraphs) for qa in paragraph["qas"]]
    odd = asked[1::2][:number]
    gold = [[Span(place, 0, len(documents[place]))] for _, place in odd]
    return Questions(documents, [question for question, _ in odd], gold)


def rung(
    questions: Questions, modes: Sequence[str], whole: bool, precision: Literal["fp32", "int8"] = "fp32"
) -> dict[str, list[list[Passage]]]:
    """Search an index of the documents; with `whole`, every document is one passage, as long as it may be."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [json.dumps({"id": key, "text": text}) for key, text in questions.documents.items()]
        (folder / "corpus.jsonl").write_text("\n".join(rows), encoding="utf-8")
        for key, text in questions.documents.items():
            (folder / f"{key}.md").write_text(text, encoding="utf-8")
        files = {"files": "corpus.jsonl", "text_column": "text", "id_column": "id"} if whole else {"files": "*.md"}
        index = build(folder / "index", Corpus(**files, precision=precision), folder)
        found = {}
        for mode in modes:
            results = index.search(questions.texts, DEPTH, SearchSettings(mode=mode))  # type: ignore[arg-type]
            found[mode] = [[plain(one) for one in passages] for passages in results]
        return found


def plain(passage: Passage) -> Passage:
    """Return a passage whose document is named as in the data."""
    name = passage.document.removeprefix("corpus.jsonl:").removesuffix(".md")
    return Passage(passage.id, name, "", "", None, passage.start, passage.end)


def place(name: str, start: int, end: int) -> Passage:
    return Passage(f"{name}:{start}-{end}", name, "", "", None, start, end)


def ranked(scores: np.ndarray, places: Sequence[Passage]) -> list[list[Passage]]:
    return [[places[one] for one in np.argsort(-row, kind="stable")[:DEPTH]] for row in scores]


def tfidf(questions: Questions, size: int | None) -> list[list[Passage]]:
    places = [
        place(name, start, min(start + (size or len(text)), len(text)))
        for name, text in questions.documents.items()
        for start in range(0, len(text), size or len(text))
    ]
    vectorizer = TfidfVectorizer()
    matrix = vectorizer.fit_transform([questions.documents[p.document][p.start : p.end] for p in places])
    return ranked((vectorizer.transform(questions.texts) @ matrix.T).toarray(), places)


def peers(questions: Questions) -> dict[str, list[list[Passage]]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given, out = folder / "given.json", folder / "out.json"
        given.write_text(json.dumps({"documents": dict(questions.documents), "queries": list(questions.texts)}))
        python = folder / "environment" / "bin" / "python"
        subprocess.run(["uv", "venv", "-q", str(folder / "environment")], check=True)
        install = ["uv", "pip", "install", "-q", "--link-mode", "copy", "--python", str(python)]
        subprocess.run([*install, "llama-index-core", "haystack-ai"], check=True)
        subprocess.run([str(python), "-c", PEERS, str(given), str(out)], check=True)
        found = json.loads(out.read_text())
    encoder = open_encoder("embedded-encoder")
    queries = encoder.embed(questions.texts)
    results = {"Haystack BM25": [[place(*one) for one in row] for row in found["Haystack BM25"]]}
    for name in ("LlamaIndex", "Haystack"):
        places = [place(*one) for one in found[name]]
        vectors = encoder.embed([questions.documents[p.document][p.start : p.end] for p in places])
        results[name] = ranked(queries @ vectors.T, places)
    return results


def recalls(questions: Questions, results: Sequence[Sequence[Passage]]) -> dict[str, list[float]]:
    pairs = list(zip(results, questions.gold, strict=True))
    return {
        "1": [span_recall(passages, gold, 1) for passages, gold in pairs],
        "5": [span_recall(passages, gold, 5) for passages, gold in pairs],
        "read": [span_recall(cut(passages), gold, DEPTH) for passages, gold in pairs],
    }


def cut(passages: Sequence[Passage]) -> list[Passage]:
    """Return the passages that hold the first 5,000 characters, the last one cut."""
    kept, room = [], READ
    for one in passages:
        length = min(room, one.end - one.start)
        if length:
            kept.append(place(one.document, one.start, one.start + length))
        room -= length
    return kept


def table(title: str, scores: Mapping[str, Mapping[str, list[float]]], ours: str) -> None:
    print(f"\n{title}\n{'system':16} {'@1':>6} {'@5':>6} {'5,000 characters':>17}   rung against it @5 (pp, 95 %)")
    for name, found in scores.items():
        means = {k: 100 * float(np.mean(values)) for k, values in found.items()}
        line = f"{name:16} {means['1']:6.1f} {means['5']:6.1f} {means['read']:17.1f}"
        if name != ours:
            c = compare(found["5"], scores[ours]["5"], seed=0)
            line += f"   {100 * c.delta:+.1f} [{100 * c.low:+.1f}, {100 * c.high:+.1f}], p = {c.p:.3f}"
        print(line)


def main() -> None:
    """Measure all systems on the same questions, print tables and one JSON line."""
    options = argparse.ArgumentParser()
    options.add_argument("data", type=Path)
    options.add_argument("--questions", type=int, help="so many of each collection, to try the script")
    chosen = options.parse_args()

    questions = chunking_eval(chosen.data / "chunking_eval", chosen.questions)
    own = rung(questions, ("hybrid", "bm25", "dense"), whole=False)
    systems = {"rung": own["hybrid"], "BM25 alone": own["bm25"], "vectors alone": own["dense"]}
    systems["rung, int8"] = rung(questions, ("hybrid",), whole=False, precision="int8")["hybrid"]
    systems |= {"TF-IDF": tfidf(questions, 1000), **peers(questions)}
    scores = {name: recalls(questions, results) for name, results in systems.items()}
    table(f"chunking_eval, {len(questions.texts)} questions", scores, "rung")
    mean = {name: {k: float(np.mean(v)) for k, v in found.items()} for name, found in scores.items()}
    others = [found for name, found in mean.items() if not name.startswith("rung")]
    ratios = {f"recall_{k}": mean["rung"][k] / max(other[k] for other in others) for k in ("1", "5")}
    ratios["recall_at_same_reading"] = mean["rung"]["read"] / max(other["read"] for other in others)
    ratios["recall_5_int8"] = mean["rung, int8"]["5"] / mean["rung"]["5"]
    ratios["recall_5_against_tfidf"] = mean["rung"]["5"] / mean["TF-IDF"]["5"]

    firsts = []
    for language in LANGUAGES:
        questions = xquad(chosen.data / "xquad" / f"xquad.{language}.json", chosen.questions)
        own = rung(questions, ("hybrid", "bm25", "dense"), whole=True)
        systems = {"rung": own["hybrid"], "BM25 alone": own["bm25"], "vectors alone": own["dense"]}
        systems["TF-IDF"] = tfidf(questions, None)
        hits = {name: [hit(results, questions, k) for k in (1, 5)] for name, results in systems.items()}
        print(f"\nxquad {language}, {len(questions.texts)} questions: paragraph first, among 5")
        for name, (one, five) in hits.items():
            print(f"{name:16} {100 * np.mean(one):6.1f} {100 * np.mean(five):6.1f}")
        firsts.append(np.mean(hits["rung"][0]) / max(np.mean(h[0]) for name, h in hits.items() if name != "rung"))
    finish("retrieval_quality", ratios | {"xquad_1": float(min(firsts))}, GOALS)


def hit(results: Sequence[Sequence[Passage]], questions: Questions, k: int) -> list[float]:
    """Return 1 where a passage of the right paragraph is among the first k paragraphs."""
    found = []
    for passages, gold in zip(results, questions.gold, strict=True):
        order = list(dict.fromkeys(passage.document for passage in passages))
        found.append(float(gold[0].document in order[:k]))
    return found


if __name__ == "__main__":
    main()
