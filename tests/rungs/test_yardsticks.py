"""Yardsticks: scikit-learn's pipelines as oracles, every kind of answer, saved, loaded and answered without a model."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import FeatureUnion, make_pipeline

from rung.artifact.artifact import Artifact
from rung.artifact.files import write_manifest
from rung.artifact.lexical import BLOCKS, Lexicon
from rung.data.rows import Example
from rung.errors import ArtifactError, ConfigError, install_command
from rung.machine import this_machine
from rung.models import reference
from rung.rungs import Features, Majority, NearestRow, NumberRidge, TfidfHead, build, get
from rung.rungs.few_shot import FewShot
from rung.rungs.linear import LEXICAL, VARIANCE, design, train_head
from rung.rungs.yardsticks import most_typical, typical_value
from rung.task import Task

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = ("majority", "nearest-row", "nearest-row-encoder", "tfidf-head", "features", "features-tfidf")


def union(texts):
    """scikit-learn's features, scaled as a design scales them, and the scales."""
    blocks = [TfidfVectorizer(**settings).fit(texts) for settings in BLOCKS.values()]
    scales = []
    for block in blocks:
        dense = block.transform(texts).toarray()
        scales.append(np.sqrt(dense.var(0).sum() / VARIANCE))
    names = tuple(BLOCKS)
    weights = {name: 1 / scale for name, scale in zip(names, scales, strict=True)}
    return FeatureUnion(list(zip(names, blocks, strict=True)), transformer_weights=weights)


def test_the_lexicon_is_scikit_learns(data):
    texts = [row.inputs["text"] for row in data.train]
    plain = FeatureUnion([(name, TfidfVectorizer(**settings)) for name, settings in BLOCKS.items()]).fit(texts)
    lexicon = Lexicon.fit(texts)
    queries = [row.inputs["text"] for row in data.test]
    np.testing.assert_array_equal(lexicon.features(queries).toarray(), plain.transform(queries).toarray())
    limited, blocks = Lexicon.fit_with_blocks(texts, most_terms=300)
    for own, again in zip(blocks, limited.blocks(texts), strict=True):
        np.testing.assert_allclose(own.toarray(), again.toarray(), rtol=1e-12)


def test_the_tfidf_head_gives_the_probabilities_of_scikit_learns_pipeline(zero, data):
    fitted = TfidfHead().fit(zero, data)
    texts, labels = ([row.inputs["text"] for row in data.train], [row.outputs[0] for row in data.train])
    penalty = fitted.settings["tfidf-head"]["inverse_penalty"]
    oracle = make_pipeline(union(texts), LogisticRegression(C=penalty, max_iter=5000, tol=1e-8)).fit(texts, labels)
    ours = np.array([answer.probabilities for answer in fitted.answer(data.test)])
    assert list(oracle.classes_) == list(data.labels)
    np.testing.assert_allclose(ours, oracle.predict_proba([row.inputs["text"] for row in data.test]), atol=1e-3)


def test_more_rows_than_are_rotated_give_the_same_head(monkeypatch, data):
    texts = [row.inputs["text"] for row in data.train]
    truth = np.array([data.labels.index(row.outputs[0]) for row in data.train])
    blocks = Lexicon.fit(texts).blocks(texts)
    rotated = train_head(blocks, truth, 6, seed=0)
    monkeypatch.setattr("rung.rungs.linear.ROTATED", 10)
    plain = train_head(blocks, truth, 6, seed=0)
    assert rotated[2] == plain[2]
    logits = [
        np.hstack([b.toarray() for b in blocks]) @ weight.T + intercept for weight, intercept, _ in (rotated, plain)
    ]
    logits = [each - each.mean(1, keepdims=True) for each in logits]
    np.testing.assert_allclose(*logits, atol=0.02)


def test_a_rotation_keeps_the_distances_of_the_rows():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(20, 50)).astype(np.float32)
    made = design([rows]).rows
    scaled = rows / rows.std(0).mean()
    np.testing.assert_allclose(((made[3] - made[7]) ** 2).sum(), ((scaled[3] - scaled[7]) ** 2).sum(), rtol=1e-5)


def test_balanced_class_weights_are_chosen_where_they_gain():
    rng = np.random.default_rng(1)
    truth = np.r_[np.zeros(180, int), np.ones(20, int)]
    vectors = (rng.normal(size=(200, 5)) + truth[:, None] * 4.0).astype(np.float32)
    weight, intercept, best = train_head([vectors], truth, 2, seed=0)
    scaled = (vectors - vectors.mean(0)) / vectors.std(0).mean()
    weights = "balanced" if best.balanced else None
    oracle = LogisticRegression(C=best.penalty, class_weight=weights, tol=1e-6, max_iter=2000).fit(scaled, truth)
    ours = 1 / (1 + np.exp(-((vectors @ weight.T + intercept) @ [-1, 1])))
    np.testing.assert_allclose(ours, oracle.predict_proba(scaled)[:, 1], atol=1e-3)


def test_the_majority_is_that_of_scikit_learns_dummy(zero, data):
    uneven = replace(data, train=(*data.train, *[replace(data.train[0], id=str(n)) for n in range(5)]))
    fitted = Majority().fit(zero, uneven)
    answers = [row.outputs[0] for row in uneven.train]
    oracle = DummyClassifier(strategy="prior").fit(answers, answers)
    assert fitted.answer(data.test[:1])[0].text == oracle.predict(["x"])[0]
    np.testing.assert_allclose(fitted.answer(data.test[:1])[0].probabilities, oracle.predict_proba(["x"])[0])


def test_majorities_of_records_and_texts():
    records = [{"a": 1, "b": {"c": "x"}}, {"a": 1, "b": {"c": "x", "d": 2}}, {"a": 2, "e": []}]
    assert typical_value(records) == {"a": 1, "b": {"c": "x"}}
    assert typical_value([["p"], ["q"], ["p"]]) == ["p"]
    assert most_typical(["yes", "no", "yes"]) == "yes"
    assert most_typical(["a red car", "the blue car stops", "one red car stops", "night"]) == "one red car stops"


@pytest.mark.parametrize("encoder", [None, "embedded-encoder"])
def test_the_nearest_row_is_scikit_learns(zero, data, encoder):
    fitted = NearestRow(encoder).fit(zero, data)
    texts, queries = ([row.inputs["text"] for row in rows] for rows in (data.train, data.test))
    if encoder is None:
        lexicon = Lexicon.fit(texts)
        table, asked = lexicon.features(texts), lexicon.features(queries)
    else:
        from rung.engines.opening import open_encoder

        table, asked = (open_encoder(encoder).embed(each) for each in (texts, queries))
    nearest = NearestNeighbors(n_neighbors=1, metric="cosine").fit(table).kneighbors(asked, return_distance=False)
    wanted = [data.train[int(row)].outputs[0] for row in nearest[:, 0]]
    assert [answer.text for answer in fitted.answer(data.test)] == wanted
    assert np.mean([w == row.outputs[0] for w, row in zip(wanted, data.test, strict=True)]) > 0.6


@pytest.mark.parametrize("name", NAMES)
def test_it_is_saved_loaded_and_answers_without_the_language_model(name, zero, data, task, tmp_path, monkeypatch):
    rung_ = get(name, task)
    assert rung_.applies(zero, data).applies
    assert rung_.estimate(zero, data, this_machine()).fit_seconds < 60
    fitted = rung_.fit(zero, data)
    fitted.save(tmp_path / "saved")
    resolve = reference.resolve

    def encoders_only(given, **options):
        assert "encoder" in given, f"{given} was asked for"
        return resolve(given, **options)

    for module in ("rung.artifact.artifact", "rung.artifact.decoder", "rung.artifact.costs"):
        monkeypatch.setattr(f"{module}.resolve", encoders_only)
    loaded = Artifact.load(tmp_path / "saved")
    wanted = fitted.answer(data.test)
    given = loaded.answer(data.test)
    assert [(a.text, a.probabilities) for a in given] == [(a.text, a.probabilities) for a in wanted]
    assert not loaded.decoder.uses_llm
    assert loaded.decoder.row_flops(loaded, data.train) >= 0
    assert loaded.save(tmp_path / "again")


@pytest.mark.parametrize("example", ["text_to_sql", "sroie", "wnut17", "scitldr"])
def test_every_kind_of_answer_has_yardsticks(example, tiny_zero):
    task = Task.load(EXAMPLES / example / "task.yaml", {"data.train_rows": "60", "data.test_rows": "10"})
    data = task.read()
    start = replace(Artifact.zero_shot(task, data.labels), model=tiny_zero.model)
    for rung_ in build(("majority", "nearest-row"), task, 0):
        assert rung_.applies(start, data).applies
        answers = rung_.fit(start, data).answer(data.test)
        if task.output.kind in ("json", "multilabel"):
            assert all(isinstance(json.loads(answer.text), dict | list) for answer in answers)
        assert all(answer.text for answer in answers)


def test_the_prompt_does_not_matter_and_no_yardstick_is_put_on_another(zero, data):
    for rung_ in (Majority(), NearestRow(), TfidfHead()):
        changed = replace(zero, prompt=replace(zero.prompt, instruction="Other words."))
        assert rung_.cache_key(zero) == rung_.cache_key(changed)
        assert "already" in rung_.applies(Majority().fit(zero, data), data).reason


def test_without_scikit_learn_they_say_what_is_missing(zero, data, monkeypatch):
    monkeypatch.setattr("rung.rungs.features.find_spec", lambda name: None)
    for rung_ in (NearestRow(None), TfidfHead(), Features()):
        assert rung_.applies(zero, data).reason.endswith(install_command("local"))
    assert Majority().applies(zero, data).applies


def test_without_a_library_for_encoders_what_compares_rows_says_so(zero, data, monkeypatch):
    monkeypatch.setattr("rung.rungs.base.find_spec", lambda name: None)
    for rung_ in (FewShot("knn", encoder="org/encoder"), FewShot("mmr", encoder="org/encoder"), NearestRow()):
        assert rung_.applies(zero, data).reason.endswith(install_command("local"))
    for rung_ in (FewShot("knn"), FewShot("mmr")):  # what nobody asked for gives way to words, and says so
        assert rung_.applies(zero, data).applies
        assert rung_.remark.endswith(install_command("local"))
    for rung_ in (FewShot("balanced"), FewShot("knn", encoder=None)):
        assert rung_.applies(zero, data).applies
        assert rung_.remark == ""
    monkeypatch.setattr("rung.rungs.base.is_static", lambda folder: True)  # a table of vectors needs no library
    assert FewShot("knn").applies(zero, data).applies
    assert FewShot("knn").remark == ""


def test_a_head_without_features_is_refused():
    with pytest.raises(ConfigError, match="no features") as caught:
        Features(encoder=None)
    assert caught.value.code == "bad-setting"


def test_texts_without_a_word_are_answered(zero, data):
    silent = replace(data, train=tuple(replace(row, inputs={"text": "?!"}) for row in data.train))
    fitted = NearestRow(None).fit(zero, silent)
    assert fitted.answer([Example("x", {"text": ""}, (), "x")])[0].text == data.train[0].outputs[0]


@pytest.mark.parametrize(("old", "new"), [('["', '["added", "'), ('"words"', '"sounds"')])
def test_a_changed_lexicon_is_refused(zero, data, tmp_path, old, new):
    folder = TfidfHead().fit(zero, data).save(tmp_path / "saved")
    file = folder / "lexicon.json"
    file.write_text(file.read_text("utf-8").replace(old, new, 1), "utf-8")
    (folder / "manifest.json").unlink()
    write_manifest(folder)
    with pytest.raises(ArtifactError, match="do not fit") as caught:
        Artifact.load(folder)
    assert caught.value.code == "artifact-damaged"


def test_what_decides_at_the_end_of_a_long_text_is_read(zero, data):
    rng = np.random.default_rng(3)
    words = ["the", "committee", "met", "discussed", "several", "matters", "policy", "morning", "members", "present"]

    def row(number):
        label = data.labels[number % 2]
        end = "granted with great joy" if number % 2 == 0 else "refused with deep regret"
        text = f"{' '.join(rng.choice(words, 400))}. Decision {number}: the application was {end}"
        return Example(str(number), {"text": text}, (label,), "x")

    rows = tuple(row(number) for number in range(60))
    fitted = Features().fit(zero, replace(data, train=rows[:40]))
    answers = [answer.text for answer in fitted.answer(rows[40:])]
    assert np.mean([a == row.outputs[0] for a, row in zip(answers, rows[40:], strict=True)]) >= 0.95
    counted = fitted.settings["features"]
    assert (counted["rows_in_windows"], counted["most_windows"]) == (40, 2)


@pytest.mark.parametrize("encoder", [None, "embedded-encoder"])
def test_numbers_are_those_of_scikit_learns_ridge(tiny_zero, data, tmp_path, encoder):
    rng = np.random.default_rng(0)
    words = {"awful": -2.0, "bad": -1.0, "fine": 0.5, "good": 1.0, "great": 2.0}

    def row(number):
        said = [str(word) for word in rng.choice(list(words), 3)]
        stars = round(3 + sum(words[word] for word in said) / 3, 2)
        return Example(str(number), {"text": f"the food was {' and '.join(said)}"}, (str(stars),), "x")

    rows = tuple(row(number) for number in range(90))
    numbers = replace(data, train=rows[:60], labels=())
    start = replace(tiny_zero, signature=replace(tiny_zero.signature, kind="number", metric="closeness", labels=()))
    rung_ = NumberRidge(encoder)
    assert rung_.applies(start, numbers).applies
    assert rung_.name == ("ridge" if encoder is None else "ridge-encoder")
    fitted = rung_.fit(start, numbers)
    loaded = Artifact.load(fitted.save(tmp_path / "saved"))
    answers = [float(answer.text) for answer in loaded.answer(rows[60:])]
    truth = [float(row.outputs[0]) for row in rows[60:]]
    constant = float(Majority().fit(start, numbers).answer(rows[:1])[0].text)
    assert constant == pytest.approx(statistics.median_low([float(row.outputs[0]) for row in rows[:60]]))
    assert np.abs(np.subtract(answers, truth)).mean() < 0.4 * np.abs(np.subtract(constant, truth)).mean()
    if encoder is None:
        texts = [row.inputs["text"] for row in numbers.train]
        penalty = fitted.settings["ridge"]["penalty"]
        oracle = make_pipeline(union(texts), Ridge(penalty)).fit(
            texts, [float(row.outputs[0]) for row in numbers.train]
        )
        low, high = fitted.decoder.low, fitted.decoder.high
        wanted = oracle.predict([row.inputs["text"] for row in rows[60:]]).clip(low, high)
        np.testing.assert_allclose(answers, wanted, atol=1e-3)
    assert "numbers" in rung_.applies(tiny_zero, data).reason


def test_vectors_and_tfidf_are_joined_as_much_as_the_rows_gain_from_it(zero, data):
    fitted = get("features-tfidf").fit(zero, data)
    assert fitted.settings["features-tfidf"]["tfidf_variance"] in LEXICAL
    answers = [answer.text for answer in fitted.answer(data.test)]
    assert np.mean([a == row.outputs[0] for a, row in zip(answers, data.test, strict=True)]) >= 0.85


def test_heads_weigh_rows() -> None:
    """Of two contradictory answers, the one with the larger weight is learned."""

    def answered(kind: str, answers: tuple[str, str], weights: tuple[int, int], name: str) -> str:
        rows = [{"text": text, "y": answers[side], "w": weights[side]} for side in (0, 1)
                for text in ("red apple", "green pear") for _ in range(10)]  # fmt: skip
        rows += [{"text": f"old {text} {i}", "y": answers[i % 2], "w": 1} for i in range(10) for text in ("car", "bus")]
        output = {"column": "y", "kind": kind}
        task = Task(
            name="t", instruction="x", inputs=["text"], output=output,
            data={"train": rows, "weight": "w", "split": {"method": "folds"}},
        )  # fmt: skip
        data = task.read()
        head = get(name, task).fit(Artifact.zero_shot(task, data.labels), data)
        return head.predict([{"text": "red apple"}])[0].text

    for kind, answers, name in (
        ("category", ("a", "b"), "tfidf-head"), ("multilabel", ('["a"]', '["b"]'), "tfidf-head"),
        ("number", ("1", "9"), "ridge"),
    ):  # fmt: skip
        heavy = [answered(kind, answers, weights, name) for weights in ((50, 1), (1, 50))]
        assert (float(heavy[0]) < 3 and float(heavy[1]) > 7) if kind == "number" else heavy == list(answers)
