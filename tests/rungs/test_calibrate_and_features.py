from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_info

from rung.artifact.artifact import Artifact
from rung.data.rows import selection_rows
from rung.rungs import Calibrate, Features, SystemPrompt, build, linear, names
from rung.rungs.features import labelled_texts
from rung.rungs.linear import train_head


def accuracy(artifact, rows):
    return np.mean([a.text == e.outputs[0] for a, e in zip(artifact.answer(rows, full=False), rows, strict=True)])


def test_calibration_helps_and_never_touches_its_input(zero, data):
    calibrated = Calibrate(unlabelled=24, selection_rows=24).fit(zero, data)
    assert zero.decoder.bias == ()
    assert accuracy(calibrated, data.test) >= accuracy(zero, data.test)
    options = calibrated.settings["calibrate"]["accuracy_on_selection"]
    assert set(options) == {"sum", "mean", "sum calibrated", "mean calibrated"}
    assert not Calibrate().applies(calibrated, data).applies or not calibrated.decoder.bias


def test_calibration_looks_at_training_rows_alone_and_at_a_quarter_of_them_first(zero, data):
    alone = replace(data, validation=(), test=())
    parts = list(Calibrate(unlabelled=80, selection_rows=80).fit_in_parts(zero, alone))
    assert [share for share, _ in parts] == [0.25, 1.0]
    first, last = (artifact.settings["calibrate"]["rows"] for _, artifact in parts)
    assert (first, last) == (16, len(data.train) // 2)
    whole = Calibrate(unlabelled=80, selection_rows=80).fit(zero, data)
    assert whole.decoder == parts[-1][1].decoder
    decoder, engine = zero.decoder, zero.open()
    chosen, others = selection_rows(data, 80)
    scores, prior = (
        decoder.logprobs(zero, engine, [row.messages for row in zero.render(rows)]) for rows in (chosen, others)
    )
    right = np.mean(np.argmax(scores - prior.mean(0), axis=1) == [data.labels.index(e.outputs[0]) for e in chosen])
    assert whole.settings["calibrate"]["accuracy_on_selection"]["sum calibrated"] == pytest.approx(right)


def test_calibration_stops_where_the_plain_sum_is_best(zero, data):
    answers = zero.answer(data.train, full=False)
    obedient = replace(
        data, train=tuple(replace(row, outputs=(a.text,)) for row, a in zip(data.train, answers, strict=True))
    )
    ((share, kept),) = Calibrate().fit_in_parts(zero, obedient)
    assert (share, kept.settings["calibrate"]["rows"]) == (1.0, 16)
    assert [a.text for a in kept.answer(data.test, full=False)] == [a.text for a in zero.answer(data.test, full=False)]


def test_features_beat_zero_shot(zero, data):
    assert accuracy(Features().fit(zero, data), data.test) >= 0.85
    assert accuracy(Features(encoder="").fit(zero, data), data.test) >= 0.5


@pytest.mark.parametrize(("labels", "weighted"), [(2, False), (5, False), (5, True)])
def test_the_head_is_scikit_learns_on_standardized_features(labels, weighted):
    rng = np.random.default_rng(0)
    truth = np.arange(120) % labels
    vectors = (rng.normal(size=(labels, 8))[truth] + rng.normal(size=(120, 8))).astype(np.float32)
    weights = rng.exponential(size=120) if weighted else None
    weight, intercept, best = train_head([vectors], truth, labels, seed=0, weights=weights)
    mean, scale = vectors.mean(0), vectors.std(0).mean()
    oracle = LogisticRegression(C=best.penalty, max_iter=500, tol=1e-5).fit((vectors - mean) / scale, truth, weights)
    logits = vectors @ weight.T + intercept
    probs = np.exp(logits - logits.max(1, keepdims=True))
    probs /= probs.sum(1, keepdims=True)
    np.testing.assert_allclose(probs, oracle.predict_proba((vectors - mean) / scale), atol=1e-4)


def test_heads_are_fitted_on_one_thread(monkeypatch):
    """With two, OpenBLAS took six times as long for products of so few rows."""
    threads, stratified = [], linear.stratified

    def counted(*arguments):
        threads.extend(pool["num_threads"] for pool in threadpool_info())
        return stratified(*arguments)

    monkeypatch.setattr(linear, "stratified", counted)
    before = threadpool_info()
    rng = np.random.default_rng(0)
    train_head([rng.normal(size=(40, 8)).astype(np.float32)], np.arange(40) % 4, 4, seed=0)
    assert threads
    assert set(threads) == {1}
    assert threadpool_info() == before


def test_the_names_of_the_labels_are_rows_too(zero, data):
    described = replace(zero, prompt=replace(zero.prompt, descriptions=(("age limit", "how old one must be"),)))
    texts, truth = labelled_texts(described, data.train[:2], data.labels, names=True)
    assert texts[:2] == [zero.prompt.question(example.inputs) for example in data.train[:2]]
    assert texts[2:4] == ["age limit: how old one must be", "card arrival"]
    assert [data.labels[i] for i in truth] == [*(e.outputs[0] for e in data.train[:2]), *data.labels]
    assert len(labelled_texts(zero, data.train, data.labels, names=False)[0]) == len(data.train)


def test_a_label_without_rows_is_never_answered():
    vectors = np.eye(6, dtype=np.float32)[np.arange(60) % 2]
    weight, intercept, _ = train_head([vectors], np.arange(60) % 2, 3, seed=0)
    assert ((vectors @ weight.T + intercept).argmax(1) < 2).all()


def test_a_system_prompt_applies_once_and_stands_first(zero, data):
    rung = SystemPrompt(("You work at a bank.",))
    with_system = rung.fit(zero, data)
    head = with_system.messages({"text": "x"})[0]
    assert head["role"] == "system"
    assert head["content"].startswith("You work at a bank.\n\nWhich intent")
    assert not rung.applies(with_system, data).applies
    assert not SystemPrompt(()).applies(zero, data).applies


def test_heads_are_cheaper_than_prompts(zero, data):
    assert Features().fit(zero, data).decoder.row_flops(
        Features().fit(zero, data), data.train
    ) < zero.decoder.row_flops(zero, data.train)


def test_every_rung_says_why_it_does_not_apply_on_a_head(zero, data, task):
    head = Features().fit(zero, data)
    for rung in build(names(), task, 0):
        verdict = rung.applies(head, data)
        assert not verdict.applies
        assert verdict.reason


def test_zero_shot_lists_few_labels_and_scores_them(zero):
    assert isinstance(zero, Artifact)
    assert "Answer with one of: age limit, card arrival" in zero.messages({"text": "x"})[0]["content"]
    assert zero.prompt.system == ""
