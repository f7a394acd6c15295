"""What a climb says to do next: from real vectors of a real data set, and from answers made up by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rung.climbing.next_steps import (
    LEDGER,
    decisions,
    ensemble,
    gain_of_doubling,
    learning_curve,
    next_steps,
    out_of_fold,
    shift,
    suspect_labels,
    two_sample,
)
from rung.data.rows import Example
from rung.evaluation.result import Prediction, RungResult, SuspectLabel
from rung.rungs.features import vectors_of
from rung.task import Task

BANKING77 = Path(__file__).parents[2] / "examples" / "banking77" / "task.yaml"
LABELS = 12


@pytest.fixture(scope="module")
def banking():
    """Rows of twelve labels of BANKING77 with the encoder's vectors, and their label numbers."""
    data = Task.load(BANKING77).read()
    labels = data.labels[:LABELS]
    rows = [row for row in (*data.train, *data.validation, *data.test) if row.outputs[0] in labels]
    vectors = vectors_of(None, "embedded-encoder", [row.inputs["text"] for row in rows])
    return labels, rows, vectors, np.array([labels.index(row.outputs[0]) for row in rows])


def answered(name, row, labels, probs, *, split="test"):
    guess = labels[int(np.argmax(probs))]
    score = float(guess == row.outputs[0])
    return Prediction(row.id, row.source, split, dict(row.inputs), "", row.outputs, guess, score, float(max(probs)), 1,
                      0.0, probs=tuple(map(float, probs)))  # fmt: skip


def result(name, settings=None):
    return RungResult(name, "", "accuracy", "confirmed", score=0.5, settings=settings or {})


# ---- the learning curve


def test_twice_the_rows_bring_about_what_the_curve_says(banking):
    _, _, vectors, truth = banking
    order = np.random.default_rng(0).permutation(len(truth))
    half = order[: len(order) // 2]
    probs = out_of_fold(vectors[half], truth[half], LABELS, 0)
    curve = learning_curve(vectors[half], truth[half], probs, 0)
    assert [n for n, _ in curve] == [round(share * 0.8 * len(half)) for share in (0.25, 0.5, 1.0)]
    whole = (out_of_fold(vectors, truth, LABELS, 0).argmax(1) == truth).mean()
    promised = gain_of_doubling([score for _, score in curve])
    assert promised == pytest.approx(whole - curve[-1][1], abs=0.05)


@pytest.mark.parametrize(
    ("scores", "gain"),
    [
        ((0.4, 0.6, 0.7), 0.05),  # each doubling gains half of the one before
        ((0.4, 0.5, 0.7), 0.15),  # noise in the first points: no more than three quarters of the last
        ((0.9, 0.9, 0.9), 0.0),
        ((0.9, 0.95, 0.93), 0.0),
        ((0.5, 0.4, 0.9), 0.1),  # nothing is more than right
    ],
)
def test_gain_of_doubling(scores, gain):
    assert gain_of_doubling(scores) == pytest.approx(gain)


def test_too_few_rows_a_label_give_no_curve(banking):
    _, _, vectors, truth = banking
    few = np.concatenate([np.flatnonzero(truth == label)[:5] for label in range(LABELS)])
    assert learning_curve(vectors[few], truth[few], out_of_fold(vectors[few], truth[few], LABELS, 0), 0) == []


# ---- labels that may be wrong


def test_wrong_labels_are_found(banking):
    labels, rows, vectors, truth = banking
    named = found = relabelled = 0
    for seed in (1, 2, 3):
        generator = np.random.default_rng(seed)
        wrong = generator.permutation(len(rows))[:10]
        given = truth.copy()
        given[wrong] = (given[wrong] + generator.integers(1, LABELS, 10)) % LABELS
        noisy = [replace(row, outputs=(labels[k],)) for row, k in zip(rows, given, strict=True)]
        suspects = suspect_labels(labels, noisy, out_of_fold(vectors, given, LABELS, 0))
        right = {rows[i].id: labels[truth[i]] for i in wrong}
        named += len(suspects)
        found += len(set(right) & set(suspects))
        relabelled += sum(suspects.get(key) == label for key, label in right.items())
    assert found >= 22  # of 30
    assert relabelled >= 20
    assert found / named >= 0.8


# ---- ensembles


def test_an_ensemble_of_arms_that_err_on_different_rows_is_offered(zero, tmp_path):
    labels = ("a", "b", "c")
    generator = np.random.default_rng(2)
    rows = [Example(f"{i:04}", {"text": str(i)}, (labels[i % 3],), f"test.csv:{i}") for i in range(240)]
    truth = np.arange(240) % 3
    data = replace_data(rows, labels)
    probs = {}
    for name in ("one", "two", "three"):
        values = generator.dirichlet(np.ones(3), 240) + 0.5 * np.eye(3)[truth]
        probs[name] = values / values.sum(1, keepdims=True)
    probs["copy"] = probs["one"]
    counts = ensemble(np.array(list(probs.values())), truth)
    assert (counts[[1, 2]] > 0).all()
    answers = {
        name: [answered(name, row, labels, p) for row, p in zip(rows, own, strict=True)] for name, own in probs.items()
    }
    artifact = replace(zero, signature=replace(zero.signature, labels=labels))
    steps = next_steps(artifact, data, [result("one")], "one", answers).texts
    assert steps[0].startswith("an ensemble: the average of the label probabilities of ")
    assert "points better than one, cross-validated on 240 rows" in steps[0]
    alone = next_steps(artifact, data, [result("one")], "one", {k: answers[k] for k in ("one", "copy")}).texts
    assert not any(step.startswith("an ensemble") for step in alone)


def replace_data(rows, labels):
    data = Task.load(BANKING77).read()
    return replace(data, train=(), validation=(), test=tuple(rows), labels=labels)


# ---- all together


def test_steps_of_a_climb(banking, zero, tmp_path):
    labels, rows, _, truth = banking
    asked = [replace(row, outputs=(labels[(truth[i] + 1) % LABELS],)) if i == 207 else row
             for i, row in enumerate(rows)][200:]  # fmt: skip
    data = replace_data(asked, labels)
    train = [replace(row, outputs=(labels[(truth[i] + 1) % LABELS],)) if i < 5 else row
             for i, row in enumerate(rows[:200])]  # fmt: skip
    data = replace(data, train=tuple(train))
    artifact = replace(zero, signature=replace(zero.signature, labels=labels))
    head = np.full((len(rows) - 200, LABELS), 0.02)
    head[np.arange(len(head)), truth[200:]] = 0.78
    head[3] = 1 / LABELS
    head[3, (truth[203] + 1) % LABELS] += 0.001  # wrong, but unsure
    answers = {
        name: [answered(name, row, labels, p) for row, p in zip(asked, head, strict=True)]
        for name in ("zero-shot", "head", "other")
    }
    rungs = [result("zero-shot"), result("head", {"head": {"encoder": "embedded-encoder"}})]
    found = next_steps(artifact, data, rungs, "head", answers)
    steps = found.texts
    assert [rows for rows, *_ in found.curve] == sorted(rows for rows, *_ in found.curve)
    assert all(low < score < high for _, score, low, high in found.curve)
    assert found.doubled is not None
    assert found.doubled[0] == 2 * found.curve[-1][0]
    assert found.doubled[1] >= found.curve[-1][1]
    by_start = {step.split(":")[0]: step for step in steps}
    assert "more training rows" in by_start
    suspects = {each.id: each for each in found.suspects}
    assert suspects[asked[7].id] == SuspectLabel(
        "test", asked[7].id, asked[7].source, asked[7].outputs[0], labels[truth[207]], asked[7].inputs["text"]
    )
    learnt = [suspects[row.id] for row in train[:5] if row.id in suspects]
    assert {(each.split, each.source) for each in learnt} <= {("train", row.source) for row in train[:5]}
    assert len(learnt) >= 3
    assert (
        f"and {len(suspects) - 4} more (`rung report RUN --rows suspect` lists all)"
        in by_start["labels that may be wrong"]
    )
    assert f"rows that no arm answers right: 1 of {len(head)}: {rows[203].source}; check" in "".join(steps)
    assert {text.split(":")[0]: kind for text, kind in zip(steps, found.about, strict=True) if kind} == {
        "labels that may be wrong": "suspect", "rows that no arm answers right": "hard",
    }  # fmt: skip
    assert not any(step.startswith("fresh test rows") for step in steps)
    again = next_steps(artifact, data, rungs, "head", answers, 2).texts
    assert any(step.startswith("fresh test rows: these have now decided 2 climbs") for step in again)


def test_the_ledger_counts_climbs_and_outlives_a_torn_line(tmp_path):
    assert [decisions(tmp_path / run, ["1", "2"], "x") for run in ("a", "b", "a", "c")] == [1, 2, 1, 3]
    assert decisions(tmp_path / "d", ["1", "3"], "x") == 1
    with (tmp_path / LEDGER).open("a") as file:
        file.write('{"rows": "')
    assert [decisions(tmp_path / run, ["2", "1"], "x") for run in ("e", "f")] == [4, 5]
    assert [decisions(tmp_path / "g", ["2", "1"]) for _ in range(2)] == [6, 6]  # looking enters nothing


# ---- shift


def test_other_labels_are_told_apart_and_the_same_ones_are_not(banking):
    _, rows, vectors, truth = banking
    order = np.random.default_rng(3).permutation(len(rows))
    apart, p = two_sample(vectors[truth < 4], vectors[truth >= 8], 0)
    assert apart > 0.9
    assert p < 1e-6
    alike = [two_sample(vectors[order[:140]], vectors[order[140:]], seed)[1] for seed in range(10)]
    assert np.mean(np.array(alike) < 0.05) <= 0.2
    texts = [row.inputs["text"] for row in rows]
    some, others = ([text for text, k in zip(texts, truth, strict=True) if keep(k)] for keep in (few, many))
    assert shift(some, others).startswith("the requests differ from the test rows: a head tells them apart in 9")
    assert shift(some[:20], others) == ""


def few(label):
    return label < 4


def many(label):
    return label >= 8
