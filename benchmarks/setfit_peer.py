"""SetFit on a CSV of training rows, scored on another: run by classification.py in SetFit's own environment.

    uv run --isolated --no-project --with setfit python benchmarks/setfit_peer.py ENCODER TRAIN TEST PAIRS SEED

Prints one JSON line {"score", "seconds"}. The body and the head are trained as in the paper (Tunstall et al. 2022,
https://arxiv.org/abs/2209.11055): pairs of similar and dissimilar texts under a cosine loss, PAIRS of each for every
row, one epoch, then logistic regression.
"""

from __future__ import annotations

import csv
import json
import sys
import tempfile
import time
from pathlib import Path


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as rows:
        return list(csv.DictReader(rows))


def main(encoder: str, train_file: str, test_file: str, pairs: str, seed: str) -> None:
    """Train and score."""
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments

    train, test = read(Path(train_file)), read(Path(test_file))
    labels = sorted({row["category"] for row in train})
    rows = Dataset.from_list([{"text": r["text"], "label": labels.index(r["category"])} for r in train])
    start = time.perf_counter()
    model = SetFitModel.from_pretrained(encoder, local_files_only=True)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, batch_size=16, num_epochs=1, num_iterations=int(pairs), seed=int(seed),
            save_strategy="no", report_to="none",
        )  # fmt: skip
        Trainer(model=model, args=arguments, train_dataset=rows).train()
    seconds = time.perf_counter() - start
    answers = model.predict([row["text"] for row in test], show_progress_bar=False)
    right = sum(labels[int(answer)] == row["category"] for answer, row in zip(answers, test, strict=True))
    print(json.dumps({"score": right / len(test), "seconds": seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
