"""Which arms a climb makes: none twice, none that never applies, and no race without a rival."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rung.artifact.artifact import Artifact
from rung.artifact.decoder import Answer, Promptless
from rung.climbing.arms import Paces
from rung.climbing.options import ClimbOptions
from rung.climbing.plan import plan_rows
from rung.climbing.run import climb
from rung.climbing.worth import Worth
from rung.machine import this_machine
from rung.rungs import Features, FewShot, build, names
from rung.rungs.base import Cost
from rung.rungs.costs import forward_cost


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


def test_estimates_are_corrected_by_arms_of_the_same_model_only():
    model, encoder, none = (Cost(0, 0.0, 2.0, 100, flops, 0.1, 0) for flops in (2.7e10, 4.4e9, 0.0))
    none = replace(none, row_tokens=0)
    paces = Paces(speedup=4.0)
    paces.model = model
    assert [paces.row_seconds("x", each) for each in (model, encoder, none)] == [0.025, 0.1, 0.1]
    paces.rows["zero-shot"] = (model, 6.0)
    assert paces.row_seconds("few-shot", replace(model, row_tokens=200, row_flops=5.4e10)) == pytest.approx(6.0)
    assert [paces.row_seconds("x", each) for each in (encoder, none)] == [0.1, 0.1]
    assert [paces.fit_seconds(each, trains=False) for each in (encoder, none)] == [2.0, 2.0]
    assert paces.fit_seconds(model, trains=False) == pytest.approx(120.0)


def test_what_takes_far_longer_than_all_before_is_not_slower_than_they_were():
    """Of far more work, what does not grow with it is a smaller share."""
    row = Cost(0, 0.0, 0.0, 100, 2.7e10, 0.1, 0)
    fit, less = replace(row, fit_seconds=20.0), replace(row, row_seconds=0.001)
    for real, expected in ((6.0, 20.0), (0.01, 2.0)):
        paces = Paces()
        paces.rows["zero-shot"] = (row, real)
        assert paces.fit_seconds(fit, trains=False) == pytest.approx(expected)
        assert paces.row_seconds("short", less) == pytest.approx(0.001)


def test_a_model_that_writes_to_its_limit_does_not_make_others_look_slow():
    """Written tokens take four times as long as read ones; zero-shot wrote 80 where 20 were expected."""
    machine, slower = this_machine(), 3.0
    zero, shown = (forward_cost(10**8, read + 20, machine, fit_rows=0, written=20) for read in (100, 500))
    a_token = machine.inference_seconds(2 * 10**8)
    assert shown.row_seconds == pytest.approx((500 + 4 * 20) * a_token)
    paces = Paces()
    paces.rows["zero-shot"], paces.written["zero-shot"] = (zero, slower * (100 + 4 * 80) * a_token), 80.0
    assert paces.row_seconds("zero-shot", zero) == pytest.approx(slower * 420 * a_token)
    assert paces.row_seconds("few-shot", shown) == pytest.approx(slower * shown.row_seconds)


def test_where_there_are_documents_what_reads_none_promises_less():
    worth = Worth("text")
    closed, plain = (worth.share("lora", "parameter-efficient", closed_book=each) for each in (True, False))
    assert closed.mean < worth.share("retrieval", "retrieval").mean
    assert closed.mean < plain.mean
    worth.learn("lora", "parameter-efficient", 0.9, 0.2)  # what is measured counts more than the guess
    assert worth.share("lora", "parameter-efficient", closed_book=True).mean > closed.mean
