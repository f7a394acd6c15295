"""Classification with few and with all rows: Rung's artifacts against TF-IDF + linear SVM, SetFit and published BERT.

    python benchmarks/classification.py --data ../shared/data/banking77 --per 5 10 all --seeds 3

BANKING77 (77 intents, 10,003 training and 3,080 test rows), with a number of training rows per label, or all. Every
method sees the same rows and nothing else: it selects its settings (the penalty of a head, the weights of an ensemble)
on a part of them. Subsets are drawn by seed; with all rows there is one seed. Every result is appended to a .jsonl file
next to the table at once, so that the same command resumes a stopped benchmark, and a killed training too.

SetFit runs with the same encoder in its own environment. It draws 20 positive and 20 negative pairs per row, as in the
paper, and one of each where all rows are used, which would otherwise take days. BERT's figures are those of
Casanueva et al. 2020 (https://arxiv.org/abs/2003.04807, table 3: BERT tuned), not run here.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from _common import finish, run_python

HERE = Path(__file__).parent
PEERS = ("tfidf-svm", "setfit")
OURS = ("features", "fine-tuned-encoder", "ensemble")
BERT = {"10": 0.834, "all": 0.937}
SETFIT_PAIRS = {"5": 20, "10": 20, "all": 1}
# Two seeds of the tuned encoder and the frozen features.
TASK = """name: banking77
instruction: Which intent does this message of a bank's customer express?
inputs: [text]
output: {column: category, kind: category}
data: {train: train.csv, test: test.csv, split: {validation: 0.1}, duplicates: drop}
rungs: {ensemble: {members: [features, fine-tuned-encoder, fine-tuned-encoder]}}
"""


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as rows:
        return list(csv.DictReader(rows))


def subset(data: Path, folder: Path, per: str, seed: int, test_rows: int | None) -> Path:
    """Write the folder of one draw: train.csv, test.csv and the task file."""
    folder.mkdir(parents=True, exist_ok=True)
    train, test = read(data / "train.csv"), read(data / "test.csv")[:test_rows]
    random.Random(seed).shuffle(train)
    if per != "all":
        kept: dict[str, list[dict[str, str]]] = {}
        for row in train:
            kept.setdefault(row["category"], []).append(row)
        train = [row for rows in kept.values() for row in rows[: int(per)]]
    for name, rows in (("train", train), ("test", test)):
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as out:
            writer = csv.DictWriter(out, ["text", "category"])
            writer.writeheader()
            writer.writerows(rows)
    (folder / "task.yaml").write_text(TASK, "utf-8")
    return folder


def tfidf_svm(folder: Path) -> dict[str, Any]:
    """Score the words' and word pairs' TF-IDF with a linear support vector machine."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import LinearSVC

    train, test = read(folder / "train.csv"), read(folder / "test.csv")
    start = time.perf_counter()
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LinearSVC())
    model.fit([row["text"] for row in train], [row["category"] for row in train])
    seconds = time.perf_counter() - start
    answers = model.predict([row["text"] for row in test])
    right = sum(answer == row["category"] for answer, row in zip(answers, test, strict=True))
    return {"score": right / len(test), "seconds": seconds}


def setfit(folder: Path, per: str, seed: int) -> dict[str, Any]:
    """Run SetFit in its own environment."""
    from rung.models.reference import resolve

    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    command = [uv, "run", "--isolated", "--no-project", "--with", "setfit", "python", str(HERE / "setfit_peer.py")]
    arguments = [resolve("embedded-encoder").folder, folder / "train.csv", folder / "test.csv"]
    done = subprocess.run(
        [*command, *map(str, arguments), str(SETFIT_PAIRS[per]), str(seed)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def ours(folder: Path, name: str, seed: int) -> dict[str, Any]:
    """Fit a rung on zero-shot and score it on the test rows."""
    from dataclasses import replace

    from rung.artifact.artifact import Artifact
    from rung.evaluation.scoring import evaluate
    from rung.rungs import build
    from rung.task import Task

    task = Task.load(folder / "task.yaml")
    data = task.read()
    data = replace(data, train=(*data.train, *data.validation), validation=())  # nothing is chosen by these
    (rung,) = build((name,), task, seed)
    zero = Artifact.zero_shot(task, data.labels)
    start = time.perf_counter()
    artifact = rung.fit(zero, data)
    seconds = time.perf_counter() - start
    scores = [row.score for row in evaluate(artifact, data.test, "test")]
    return {"score": sum(scores) / len(scores), "seconds": seconds}


def one(folder: Path, method: str, per: str, seed: int) -> dict[str, Any]:
    if method == "tfidf-svm":
        return tfidf_svm(folder)
    return setfit(folder, per, seed) if method == "setfit" else ours(folder, method, seed)


def measured(chosen: argparse.Namespace, method: str, per: str, seed: int) -> dict[str, Any] | None:
    """Return the result from the file; or run it in a process of its own and append it there, if any is to be run."""
    file: Path = chosen.out.with_suffix(".jsonl")
    key = {"method": method, "per": per, "seed": seed, "test_rows": chosen.test_rows}
    for line in file.read_text("utf-8").splitlines() if file.exists() else ():
        found: dict[str, Any] = json.loads(line)
        if {part: found[part] for part in key} == key:
            return found
    if chosen.recorded:
        return None
    folder = subset(chosen.data, chosen.work / f"{per}-{seed}", per, seed, chosen.test_rows)
    code = f"import sys; sys.path.insert(0, {str(HERE)!r}); import classification; classification.main()"
    said = run_python(code, "--one", method, "--work", str(folder), "--per", per, "--seed", str(seed))
    result = {**key, **json.loads(said.splitlines()[-1])}
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(result) + "\n")
    return result


def cell(results: list[dict[str, Any]]) -> str:
    scores = [100 * r["score"] for r in results]
    spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    return f"{statistics.mean(scores):.2f}{spread} ({statistics.mean(r['seconds'] for r in results):.0f} s)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data" / "banking77")
    parser.add_argument("--per", nargs="+", default=["5", "10", "all"], choices=["5", "10", "all"])
    parser.add_argument("--methods", nargs="+", default=[*PEERS, *OURS], choices=[*PEERS, *OURS])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--test-rows", type=int)
    parser.add_argument("--out", type=Path, default=Path("docs/classification.md"))
    parser.add_argument("--work", type=Path, default=Path("classification-work"))
    parser.add_argument("--recorded", action="store_true", help="run nothing: write the table of what was run so far")
    parser.add_argument("--one")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(one(chosen.work, chosen.one, chosen.per[0], chosen.seed)))
        return
    means: dict[tuple[str, str], float] = {("bert", per): score for per, score in BERT.items()}
    table = []
    for method in chosen.methods:
        cells = []
        for per in chosen.per:
            seeds = range(1 if per == "all" else chosen.seeds)
            results = [found for seed in seeds if (found := measured(chosen, method, per, seed)) is not None]
            if results:
                means[method, per] = statistics.mean(r["score"] for r in results)
            cells.append(cell(results) if results else "")
        table.append(f"| {method} | {' | '.join(cells)} |")
        print(table[-1], flush=True)
    published = [f"{100 * BERT[per]:.1f}" if per in BERT else "" for per in chosen.per]
    table.append(f"| BERT, published | {' | '.join(published)} |")
    columns = [f"{per} per label" if per != "all" else "all rows" for per in chosen.per]
    head = [
        "# Classification on BANKING77", "",
        "Test accuracy, mean ± standard deviation over subsets, and seconds to train.", "",
        f"`python benchmarks/classification.py {' '.join(sys.argv[1:])}`", "",
        f"| method | {' | '.join(columns)} |", f"|---{'|---' * len(columns)}|",
    ]  # fmt: skip
    chosen.out.write_text("\n".join([*head, *table, ""]), "utf-8")
    ratios, goals = {}, {}
    for per in chosen.per:
        best = max((value for (name, k), value in means.items() if k == per and name in OURS), default=0.0)
        others = [value for (name, k), value in means.items() if k == per and name not in OURS]
        if best and others:
            ratios[f"{per}_over_best_peer"], goals[f"{per}_over_best_peer"] = best / max(others), 1.0
        if best and per == "all":
            ratios["all_accuracy"], goals["all_accuracy"] = best, 0.94
    finish("classification", ratios, goals)


if __name__ == "__main__":
    main()
