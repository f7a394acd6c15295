"""Which arms a climb makes: none twice, none that never applies, and no race without a rival."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rung.artifact.artifact import Artifact
from rung.artifact.decoder import Answer, Promptless
from rung.climbing.options import ClimbOptions
from rung.climbing.plan import plan_rows
from rung.climbing.run import climb
from rung.climbing.worth import Worth
from rung.rungs import Features, FewShot, build, names


@pytest.fixture
def tiny_task(task, tiny_folder):
    return task.model_copy(update={"model": str(tiny_folder)})


@pytest.fixture
def asked(monkeypatch):
    """Have every prompt answered with one label, so that no language model runs; return what was asked, in order."""
    real, seen = Artifact.answer, []

    def answer(self, examples, **options):
        seen.append((self.name, tuple(row.id for row in examples)))
        if isinstance(self.decoder, Promptless):
            return real(self, examples, **options)
        return [Answer("age_limit", None, None, 1, 0, 0.0) for _ in examples]

    monkeypatch.setattr(Artifact, "answer", answer)
    monkeypatch.setattr(Artifact, "text", lambda self, messages: "")
    return seen


@pytest.fixture
def fitted(monkeypatch):
    """Return the names of the artifacts that the rung `features` was fitted on."""
    real, seen = Features.fit, []

    def fit(self, artifact, data, **options):
        seen.append(artifact.name)
        return real(self, artifact, data, **options)

    monkeypatch.setattr(Features, "fit", fit)
    return seen


# ---- none twice


def test_rungs_say_what_they_take_of_the_artifact_they_start_from(task, tiny_zero, data):
    shown = FewShot("random", k=2).fit(tiny_zero, data)
    other = replace(tiny_zero, prompt=replace(tiny_zero.prompt, template="Customer: {text}"))
    elsewhere = replace(tiny_zero, model="elsewhere")
    same = {name: build((name,), task, 0)[0] for name in names()}
    little = {name for name, rung in same.items() if rung.cache_key(tiny_zero) is not None}
    assert little == {
        "features", "llm-features", "fine-tuned-encoder", "ensemble", "sentence-selection", "majority", "nearest-row",
        "nearest-row-encoder", "tfidf-head", "features-tfidf", "record-fields",
        "tfidf-sentence", "ridge", "ridge-encoder",
    }  # fmt: skip
    for name in little:
        rung = same[name]
        assert rung.cache_key(shown) == rung.cache_key(tiny_zero)
        assert rung.cache_key(other) != rung.cache_key(tiny_zero)
        assert (rung.cache_key(elsewhere) == rung.cache_key(tiny_zero)) == (name != "llm-features")


def test_where_the_same_is_taken_the_same_is_made(tiny_zero, data):
    shown = FewShot("random", k=2).fit(tiny_zero, data)
    one, other = (Features().fit(base, data) for base in (tiny_zero, shown))
    np.testing.assert_array_equal(one.decoder.weight, other.decoder.weight)
    np.testing.assert_array_equal(one.decoder.intercept, other.decoder.intercept)
    first, second = one.answer(data.test[:3]), other.answer(data.test[:3])
    assert [(a.text, a.probabilities) for a in first] == [(a.text, a.probabilities) for a in second]


def test_what_reads_no_prompt_is_fitted_once_and_on_the_plainest_base(
    tiny_task, tiny_zero, data, asked, fitted, tmp_path
):
    served = FewShot("random", k=2).fit(tiny_zero, data)
    found = climb(tiny_task, options=ClimbOptions(rungs=("features",), out=tmp_path), incumbent=served)
    assert fitted == ["zero-shot"] * 2
    by_name = {rung.name: rung for rung in found.result.rungs}
    assert by_name["features"].status == "confirmed"
    assert by_name["served+features"].status == "skipped"
    assert by_name["served+features"].reason == "it would equal features, because it reads nothing that served adds"
    assert found.result.recommended == "features"


def test_what_reads_another_text_is_fitted_again(tiny_task, tiny_zero, data, asked, fitted, tmp_path):
    served = replace(tiny_zero, prompt=replace(tiny_zero.prompt, template="Customer: {text}"))
    found = climb(tiny_task, options=ClimbOptions(rungs=("features",), out=tmp_path), incumbent=served)
    assert sorted(set(fitted)) == ["served", "zero-shot"]
    assert {"features", "served+features"} <= set(found.predictions)


# ---- nothing to race


def test_alone_zero_shot_answers_the_test_rows_only(tiny_task, data, asked, tmp_path):
    one = tiny_task.model_copy(update={"rungs": {}})
    result = climb(one, options=ClimbOptions(rungs=("retrieval",), out=tmp_path)).result
    (zero, skipped) = result.rungs
    assert (zero.name, zero.status, zero.n, zero.validation_score) == ("zero-shot", "confirmed", len(data.test), None)
    assert (skipped.name, skipped.status) == ("retrieval", "skipped")
    assert {row for _, rows in asked for row in rows} == {row.id for row in data.test}
    rows = f"{len(data.test)} test rows"
    assert result.decision == f"Only zero-shot was measured, on {rows}: no rung applies to this task. Use zero-shot."
    planned, notes = plan_rows(one, ClimbOptions(rungs=("retrieval",)))
    assert (planned[0]["rows"], planned[0]["seconds"]) == (0, 0.0)
    assert any("no rung applies, so nothing is raced" in n for n in notes)
    racing, raced = plan_rows(one, ClimbOptions(rungs=("features",)))
    assert {row["name"] for row in racing if row["applies"]} == {"zero-shot", "features"}
    assert any("in all, less where a race is decided early" in note for note in raced)


def test_the_last_one_left_stops_too(tiny_task, data, asked, tmp_path):
    """With one label for all, zero-shot is right on one row in six, and the head on nearly all: one look decides."""
    found = climb(tiny_task, options=ClimbOptions(rungs=("features",), out=tmp_path))
    rows = {name: [row.id for row in rows if row.split == "validation"] for name, rows in found.predictions.items()}
    order = sorted(row.id for row in data.validation)
    assert rows["features"] == rows["zero-shot"] == order[: len(rows["zero-shot"])]
    assert len(rows["zero-shot"]) in (8, 16)
    assert found.result.recommended == "features"


def test_where_there_are_documents_what_reads_none_promises_less():
    worth = Worth("text")
    closed, plain = (worth.share("lora", "parameter-efficient", closed_book=each) for each in (True, False))
    assert closed.mean < worth.share("retrieval", "retrieval").mean
    assert closed.mean < plain.mean
    worth.learn("lora", "parameter-efficient", 0.9, 0.2)  # what is measured counts more than the guess
    assert worth.share("lora", "parameter-efficient", closed_book=True).mean > closed.mean
