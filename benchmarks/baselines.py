"""Compare what a climb recommends with what ten lines of code answer, on the same test rows.

    python benchmarks/baselines.py --data ../shared/data --budget 8m
    python benchmarks/baselines.py --data ../shared/data --arms tfidf-head,features,features-tfidf --sets banking77-5

The baselines: the most frequent answer, the nearest training row's answer (TF-IDF), for labels TF-IDF with a linear SVM
and MiniLM with logistic regression, for records a linear SVM for each field with few values and the longest known value
found in the text for the others, for documents the sentence of the best TF-IDF. They learn from the training and
validation rows, with scikit-learn's default settings. The best one by its score on the test rows is compared, so the
comparison favours the baselines.

The last table holds the climbs' estimates against what was measured, for arms of two seconds and more.

`--arms` fits rungs by name instead of climbing, and takes the one with the best cross-validated score on the training
rows. The texts of `docstrings` are those of installed packages. `--data` names the folder of the original data sets.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import random
import re
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from _common import EXAMPLES
from rung.artifact.artifact import Artifact
from rung.artifact.decoder import Answer
from rung.climbing.options import ClimbOptions
from rung.climbing.run import climb
from rung.data.rows import Data, Example
from rung.engines.opening import open_encoder
from rung.evaluation.metrics.registry import get_metric
from rung.evaluation.scoring import cases, evaluate
from rung.evaluation.statistics import compare
from rung.rungs import get
from rung.task import Task

Rows = list[dict[str, Any]]
ENTITIES = ("corporation", "creative-work", "group", "location", "person", "product")
PACKAGES = (
    "numpy.linalg", "scipy.interpolate", "scipy.linalg", "scipy.ndimage", "scipy.optimize", "scipy.signal",
    "scipy.sparse", "scipy.spatial", "scipy.special", "scipy.stats", "sklearn.cluster", "sklearn.datasets",
    "sklearn.decomposition", "sklearn.ensemble", "sklearn.linear_model", "sklearn.metrics", "sklearn.preprocessing",
    "statsmodels.tsa.api", "torch.nn", "torch.optim",
)  # fmt: skip


# ---- sets that no example holds


def wnut17_records(source: Path, rng: random.Random) -> tuple[str, Rows, Rows]:
    """Messages with named entities, as lists of names by type."""
    del rng
    train = [row for row in _conll(source / "wnut17" / "wnut17train.conll") if any(row["record"].values())][:400]
    test = [row for row in _conll(source / "wnut17" / "emerging.test.annotated") if any(row["record"].values())][:200]
    head = (
        "instruction: List the named entities of this message by type.\ninputs: [text]\n"
        "output: {column: record, kind: json, max_tokens: 96}\n"
    )
    return head, train, test


def _conll(file: Path) -> Iterator[dict[str, Any]]:
    for block in re.split(r"\n\s*\n", file.read_text("utf-8")):
        record: dict[str, list[list[str]]] = {name: [] for name in ENTITIES}
        words, current = list[str](), list[str]()
        for line in block.splitlines():
            word, _, tag = line.partition("\t")
            tag = tag.split(",")[0].strip()
            words.append(word)
            if tag.startswith("B-"):
                current = [word]
                record[tag[2:]].append(current)
            elif tag.startswith("I-") and current:
                current.append(word)
            else:
                current = []
        yield {"text": " ".join(words), "record": {name: [" ".join(w) for w in own] for name, own in record.items()}}


def docstrings(source: Path, rng: random.Random) -> tuple[str, Rows, Rows]:
    """Long texts of twenty labels: the documentation of functions and classes, and the package they are in."""
    del source
    seen, rows = set[str](), defaultdict[str, Rows](list)
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in sorted(vars(module)):
            value = getattr(module, name)
            text = inspect.getdoc(value) if callable(value) and not name.startswith("_") else None
            if text and len(text) > 1500 and text not in seen:
                seen.add(text)
                plain = re.sub(r"(numpy|np|scipy|sklearn|statsmodels|torch)\b[\w.]*", "it", text)
                rows[package].append({"text": plain, "label": package})
    train, test = Rows(), Rows()
    for own in rows.values():
        rng.shuffle(own)
        train += own[:12]
        test += own[12:27]
    head = (
        "instruction: Which package does this documentation belong to?\ninputs: [text]\n"
        "output: {column: label, kind: category}\n"
    )
    return head, train, test


def xquad(source: Path, rng: random.Random) -> tuple[str, Rows, Rows]:
    """Questions about a paragraph, which is part of the input; an article stays on one side."""
    articles = json.loads((source / "xquad" / "xquad.en.json").read_text("utf-8"))["data"]
    rng.shuffle(articles)
    parts: list[Rows] = [
        [
            {"paragraph": p["context"], "question": qa["question"], "answer": qa["answers"][0]["text"]}
            for article in half for p in article["paragraphs"] for qa in p["qas"]
        ]
        for half in (articles[: len(articles) // 2], articles[len(articles) // 2 :])
    ]  # fmt: skip
    for rows in parts:
        rng.shuffle(rows)
    head = (
        "instruction: Answer the question with words of the paragraph.\ninputs: [paragraph, question]\n"
        "output: {column: answer, kind: text, max_tokens: 24}\nmetric: token_f1\noverflow: drop_demonstrations\n"
    )
    return head, parts[0][:200], parts[1][:120]


MADE: dict[str, Callable[[Path, random.Random], tuple[str, Rows, Rows]]] = {
    "wnut17-records": wnut17_records, "docstrings": docstrings, "xquad": xquad
}  # fmt: skip
SHIPPED = {
    "sroie": ("sroie", {}), "scitldr": ("scitldr", {}), "text_to_sql": ("text_to_sql", {}),
    "documents": ("documents", {}),
    "banking77-5": ("banking77", {"data.train_per_label": "5"}),
    "banking77-10": ("banking77", {"data.train_per_label": "10"}),
}  # fmt: skip


def load(name: str, source: Path, folder: Path, model: str) -> Task:
    """Load the task of an example, or write the files of a made one and load that."""
    if name in SHIPPED:
        example, overrides = SHIPPED[name]
        return Task.load(EXAMPLES / example / "task.yaml", {**overrides, "model": model})
    head, *parts = MADE[name](source, random.Random(0))
    for split, rows in zip(("train", "test"), parts, strict=True):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    data = f"data: {{train: train.jsonl, test: test.jsonl, duplicates: drop}}\nmodel: {model}\n"
    (folder / "task.yaml").write_text(f"name: {name}\n{head}{data}", "utf-8")
    return Task.load(folder / "task.yaml")


# ---- the baselines: answers to the test rows from the rows that are known


def majority(known: Sequence[Example], asked: Sequence[Example], texts: Callable[..., list[str]]) -> list[str]:
    """Give the most frequent answer."""
    del texts
    return [Counter(row.outputs[0] for row in known).most_common(1)[0][0]] * len(asked)


def nearest_row(known: Sequence[Example], asked: Sequence[Example], texts: Callable[..., list[str]]) -> list[str]:
    """Copy the nearest row's answer."""
    vectorizer = TfidfVectorizer().fit(texts(known))
    similar = vectorizer.transform(texts(asked)) @ vectorizer.transform(texts(known)).T
    return [known[int(row)].outputs[0] for row in similar.toarray().argmax(1)]


def tfidf_svm(known: Sequence[Example], asked: Sequence[Example], texts: Callable[..., list[str]]) -> list[str]:
    """TF-IDF and a linear SVM."""
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit(texts(known))
    model = LinearSVC().fit(vectorizer.transform(texts(known)), [row.outputs[0] for row in known])
    return list(model.predict(vectorizer.transform(texts(asked))))


def minilm_head(known: Sequence[Example], asked: Sequence[Example], texts: Callable[..., list[str]]) -> list[str]:
    """MiniLM, which reads the first 256 tokens, and logistic regression."""
    encoder = open_encoder("embedded-encoder")
    cut = [[encoder.tokenizer.beginning(text, encoder.limit) for text in texts(rows)] for rows in (known, asked)]
    vectors = [encoder.embed(each) for each in cut]
    model = LogisticRegression(C=10, max_iter=2000).fit(vectors[0], [row.outputs[0] for row in known])
    return list(model.predict(vectors[1]))


def fields(known: Sequence[Example], asked: Sequence[Example], texts: Callable[..., list[str]]) -> list[str]:
    """A linear SVM for fields with few values, and the longest known value that the text contains for the others."""
    records = [json.loads(row.outputs[0]) for row in known]
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit(texts(known))
    terms = [vectorizer.transform(texts(rows)) for rows in (known, asked)]
    answers: list[dict[str, Any]] = [{} for _ in asked]
    for name in dict.fromkeys(name for record in records for name in record):
        values = [json.dumps(record.get(name)) for record in records]
        items = {item for record in records for item in _items(record.get(name))}
        if 1 < len(set(values)) <= 20:
            for answer, value in zip(answers, LinearSVC().fit(terms[0], values).predict(terms[1]), strict=True):
                answer[name] = json.loads(value)
        else:
            many = any(isinstance(record.get(name), list) for record in records)
            for answer, text in zip(answers, texts(asked), strict=True):
                found = sorted((i for i in items if re.search(rf"(?<!\w){re.escape(i)}(?!\w)", text)), key=len)
                answer[name] = found if many else found[-1] if found else None
    return [json.dumps(answer) for answer in answers]


def _items(value: Any) -> list[str]:
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str) and item]


def best_sentence(task: Task, asked: Sequence[Example], texts: Callable[..., list[str]]) -> list[str]:
    """The sentence of the documents with the best TF-IDF."""
    files = sorted((task.folder / str(task.corpus.files if task.corpus else "")).rglob("*.md"))
    whole = [sentence for file in files for sentence in re.split(r"(?<=[.!?])\s+|\n+", file.read_text("utf-8"))]
    sentences = [sentence for sentence in whole if len(sentence) > 20]
    vectorizer = TfidfVectorizer(sublinear_tf=True).fit(sentences)
    similar = vectorizer.transform(texts(asked)) @ vectorizer.transform(sentences).T
    return [sentences[int(row)] for row in similar.toarray().argmax(1)]


def baselines(task: Task, data: Data) -> dict[str, list[str]]:
    """Answer the test rows with every baseline that suits the task."""
    known, asked, prompt = (*data.train, *data.validation), data.test, Artifact.zero_shot(task, data.labels).prompt

    def texts(rows: Sequence[Example]) -> list[str]:
        return [prompt.question(row.inputs) for row in rows]

    ways = {"majority": majority, "nearest-row": nearest_row}
    ways |= {"tfidf-svm": tfidf_svm, "minilm-head": minilm_head} if task.output.kind == "category" else {}
    ways |= {"fields": fields} if task.output.kind == "json" else {}
    answers = {name: way(known, asked, texts) for name, way in ways.items()}
    return answers | ({} if task.corpus is None else {"tfidf-sentence": best_sentence(task, asked, texts)})


# ---- the comparison


Found = tuple[str, Artifact, dict[str, float], dict[str, tuple[float, float]]]


def recommended(task: Task, data: Data, budget: str, out: Path) -> Found:
    """Climb, and give the recommended artifact, all scores, and the estimated and measured seconds of each arm."""
    done = climb(task, budget, options=ClimbOptions(out=out), data=data)
    measured = [rung for rung in done.result.rungs if rung.score is not None]
    times = {
        rung.name: (round(rung.expected_seconds, 1), round(rung.fit_seconds + rung.seconds, 1))
        for rung in measured
        if rung.expected_seconds is not None and max(rung.expected_seconds, rung.fit_seconds + rung.seconds) >= 2
    }
    return done.result.recommended, done.recommended, {rung.name: rung.score or 0.0 for rung in measured}, times


def chosen(task: Task, data: Data, names: Sequence[str]) -> Found:
    """Fit the arms on two thirds of the rows, choose by the others, and fit the best on all rows."""
    known = [*data.train, *data.validation]
    random.Random(0).shuffle(known)
    third = len(known) // 3
    whole = _only(data, known)
    start, part = Artifact.zero_shot(task, data.labels), _only(data, known[third:])
    scores = {}
    for name in names:
        rung = get(name, task)
        if rung.applies(start, part).applies:
            rows = evaluate(rung.fit(start, part), known[:third], "validation", folder=data.folder)
            scores[name] = sum(row.score for row in rows) / len(rows)
    best = max(scores, key=lambda name: scores[name])
    return best, get(best, task).fit(start, whole), scores, {}


def _only(data: Data, rows: Sequence[Example]) -> Data:
    return Data(tuple(rows), (), data.test, data.labels, data.report, data.fingerprint, data.folder)


def compared(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare the recommendation with the best baseline of one set."""
    with tempfile.TemporaryDirectory() as folder:
        task = load(name, arguments.data, Path(folder), arguments.model)
        data = task.read()
        metric = get_metric(task.metric_name, task.folder, task.metric_settings)
        scores: dict[str, list[float]] = {}
        for way, answers in baselines(task, data).items():
            given = [Answer(answer, None, None, 0, 0, 0.0) for answer in answers]
            scores[way] = [score.value for score in metric.scores(cases(data.test, given))]
        start = time.perf_counter()
        if arguments.arms:
            own, artifact, tried, times = chosen(task, data, arguments.arms.split(","))
        else:
            own, artifact, tried, times = recommended(task, data, arguments.budget, Path(folder) / "runs")
        seconds = time.perf_counter() - start
        ours = [row.score for row in evaluate(artifact, data.test, "test", folder=data.folder)]
    best = max(scores, key=lambda way: sum(scores[way]))
    pair = compare(scores[best], ours, seed=0)
    means = {way: round(100 * float(np.mean(values)), 1) for way, values in scores.items()}
    return {
        "set": name, "train": len(data.train) + len(data.validation), "test": len(data.test), "ours": own,
        "score": round(100 * float(np.mean(ours)), 1), "baseline": best, "baseline_score": means[best],
        "low": round(100 * pair.low, 1), "high": round(100 * pair.high, 1), "p": round(pair.p, 4),
        "seconds": round(seconds, 1), "baselines": means, "tried": {k: round(100 * v, 1) for k, v in tried.items()},
        "times": times,
    }  # fmt: skip


def main() -> None:
    """Compare every set, print the table, and a line of JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--budget", default="8m", help="of each climb")
    parser.add_argument("--arms", default="", help="rungs to fit instead of climbing, separated by commas")
    parser.add_argument("--model", default="embedded", help="the model of the climbs")
    parser.add_argument("--sets", default=",".join([*SHIPPED, *MADE]))
    arguments = parser.parse_args()
    results = []
    print(f"{'set':15} {'rows':>10}  {'ours':28} {'score':>5}  {'best baseline':14} {'score':>5}  difference")
    for name in arguments.sets.split(","):
        one = compared(name, arguments)
        results.append(one)
        rows, gap = f"{one['train']}/{one['test']}", one["score"] - one["baseline_score"]
        print(
            f"{name:15} {rows:>10}  {one['ours'][:28]:28} {one['score']:5}  {one['baseline']:14} "
            f"{one['baseline_score']:5}  {gap:+.1f} [{one['low']:+.1f}, {one['high']:+.1f}] p = {one['p']:.3f}, "
            f"{one['seconds']:.0f} s", flush=True,
        )  # fmt: skip
    for one in results:
        for arm, (expected, took) in one["times"].items():
            print(f"{one['set']:15} {arm:35} expected {expected:7.1f} s, took {took:7.1f} s")
    better = sum(one["low"] > 0 for one in results)
    worse = sum(one["high"] < 0 for one in results)
    pairs = [pair for one in results for pair in one["times"].values()]
    close = sum(took / 2 <= expected <= 2 * took for expected, took in pairs) / max(1, len(pairs))
    met = worse == 0 and 2 * better >= len(results)
    print(
        json.dumps(
            {
                "benchmark": "baselines",
                "better": better,
                "worse": worse,
                "within_twice": round(close, 2),
                "sets": results,
                "met": met,
            }
        )
    )


if __name__ == "__main__":
    main()
