"""Which arms a climb makes and counts: none twice, none that never applies, and no race without a rival."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import scipy.stats

from rung.artifact.artifact import Artifact
from rung.artifact.decoder import Answer, Promptless
from rung.climbing.options import ClimbOptions
from rung.climbing.plan import max_arms, plan_rows
from rung.climbing.run import climb
from rung.evaluation.racing import eliminate, looks
from rung.rungs import Features, FewShot, build, names
from rung.rungs.base import OK, Applicability, Rung, skip


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
    assert little == {"features", "llm-features", "fine-tuned-encoder", "ensemble", "sentence-selection"}
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
    assert fitted == ["zero-shot"]
    by_name = {rung.name: rung for rung in found.result.rungs}
    assert by_name["features"].status == "confirmed"
    assert by_name["served+features"].status == "skipped"
    assert by_name["served+features"].reason == "it would equal features, because it reads nothing that served adds"
    assert found.result.recommended == "features"


def test_what_reads_another_text_is_fitted_again(tiny_task, tiny_zero, data, asked, fitted, tmp_path):
    served = replace(tiny_zero, prompt=replace(tiny_zero.prompt, template="Customer: {text}"))
    found = climb(tiny_task, options=ClimbOptions(rungs=("features",), out=tmp_path), incumbent=served)
    assert sorted(fitted) == ["served", "zero-shot"]
    assert {"features", "served+features"} <= set(found.predictions)


# ---- counted


@dataclass(frozen=True)
class Said(Rung):
    """A rung with a verdict of its own."""

    label: str
    verdict: Applicability = OK

    family = "prompting"

    @property
    def name(self) -> str:
        return self.label

    def applies(self, artifact: Artifact, data: Any) -> Applicability:
        return self.verdict

    def estimate(self, artifact: Any, data: Any, machine: Any) -> Any:
        raise NotImplementedError

    def fit(self, artifact: Any, data: Any, *, progress: Any = None) -> Any:
        raise NotImplementedError


class Head(Said):
    def cache_key(self, artifact: Artifact) -> tuple[object, ...]:
        return ("the text",)


class Documents(Said):
    opens_ramp = True


@pytest.mark.parametrize(
    ("rungs", "bases", "expected"),
    [
        ([Said("a"), Said("b"), Said("c")], 1, 1 + 3 + 2 + 1),
        ([Said("a"), Said("b"), Said("c", skip("there are no rows", final=True))], 1, 1 + 2 + 1 + 0),
        ([Said("a"), Said("b"), Said("c", skip("no chain to sample"))], 1, 1 + 2 + 2 + 1),  # after b it may
        ([Said("a", skip("x", final=True)), Said("b", skip("y", final=True))], 1, 1),
        ([Said("a"), Said("b")], 2, 2 + 4 + 1 + 0),
        ([Said("a"), Head("b")], 2, 2 + 3 + 1 + 0),  # both bases make the same head
        ([Documents("retrieval"), Said("b"), Said("c")], 1, 1 + 3 + 2 + 2 + 1),  # b and c are fitted on top of it
    ],
)  # fmt: skip
def test_arms_are_those_that_apply_or_may_apply_higher_up(tiny_zero, data, rungs, bases, expected):
    served = replace(tiny_zero, path=("zero-shot", "served"))
    assert max_arms([served, tiny_zero][-bases:], [], rungs, data) == expected


def test_models_are_raced_before_the_other_rungs_are_counted(tiny_zero, data):
    other, a, b = Said("model-x"), Said("a"), Said("b")
    assert max_arms([tiny_zero], [other], [other, a, b], data) == 1 + 1 + 3 + 2 + 1


def test_rungs_that_never_apply_to_the_task_do_not_slow_the_default_climb(task, tiny_zero, data):
    rungs = build(names(), task, 0)
    verdicts = {rung.name: rung.applies(tiny_zero, data) for rung in rungs}
    final = {name for name, verdict in verdicts.items() if verdict.final}
    assert {"system-prompt", "chain-of-thought", "label-thresholds", "retrieval", "domain-adaptation"} <= final
    assert not any(verdict.applies for name, verdict in verdicts.items() if name in final)
    possible = len(rungs) - len(final)
    applies = sum(verdict.applies for verdict in verdicts.values())
    assert max_arms([tiny_zero], [], rungs, data) == 1 + applies + (possible - 1) + (possible - 2)


def staged(generator: np.random.Generator, rungs: int, rows: int = 120) -> bool:
    """Race a climb whose later stages copy the leader, the worst that may happen to its rival; was that dropped?

    The rival is as good as the best of the first stage, and both beat what they start from; every rung on top of the
    leader answers nearly as it does, so that its luck on these rows counts over and over.
    """
    rates = {"zero": 0.3, "rival": 0.7, "best": 0.7} | {f"other {i}": 0.5 for i in range(rungs - 2)}
    difficulty = generator.normal(0, 0.15, rows)
    answers = {name: (generator.random(rows) < rate + difficulty).astype(float) for name, rate in rates.items()}
    alive, arms = list(answers), 1 + rungs + (rungs - 1) + (rungs - 2)  # as `max_arms` counts
    for stage in range(3):
        for n in looks(rows, growth=2.0):
            seen = {name: answers[name][:n].tolist() for name in alive}
            alive = [name for name in alive if name not in eliminate(seen, arms=arms, binary=True)]
        leader = max(alive, key=lambda name: answers[name].sum())
        for i in range(rungs - 1 - stage):
            other = generator.random(rows) < 0.03
            made = np.where(other, generator.random(rows) < 0.7, answers[leader]).astype(float)
            answers[f"{leader} {stage} {i}"] = made
            alive.append(f"{leader} {stage} {i}")
    return "rival" not in alive


def test_with_the_arms_that_apply_alone_the_best_is_dropped_in_at_most_alpha_of_climbs():
    runs = 60
    generator = np.random.default_rng(11)
    dropped = sum(staged(generator, rungs=5) for _ in range(runs))
    assert dropped <= scipy.stats.binom.ppf(0.999, runs, 0.05)


def test_fewer_arms_decide_earlier():
    """Nine wins without a loss: enough among the six arms that a climb of two rungs may have, not among 37."""
    scores = {"zero-shot": [0.0] * 9 + [1.0] * 11, "few-shot": [1.0] * 20}
    assert set(eliminate(scores, arms=4)) == {"zero-shot"}
    assert eliminate(scores, arms=37) == {}


# ---- nothing to race


def test_alone_zero_shot_answers_the_test_rows_only(tiny_task, data, asked, tmp_path):
    one = tiny_task.model_copy(update={"rungs": {}})
    result = climb(one, options=ClimbOptions(rungs=("retrieval",), out=tmp_path)).result
    (zero, skipped) = result.rungs
    assert (zero.name, zero.status, zero.n, zero.validation_score) == ("zero-shot", "confirmed", len(data.test), None)
    assert (skipped.name, skipped.status) == ("retrieval", "skipped")
    assert {row for _, rows in asked for row in rows} == {row.id for row in data.test}
    assert result.decision == f"Stay with zero-shot: no rung significantly beats it on {len(data.test)} test rows."
    rows, notes = plan_rows(one, ClimbOptions(rungs=("retrieval",)))
    assert (rows[0]["rows"], rows[0]["seconds"]) == (0, 0.0)
    assert any("no rung applies, so nothing is raced: zero-shot answers no validation rows, and" in n for n in notes)
    racing, raced = plan_rows(one, ClimbOptions(rungs=("features",)))
    assert racing[0]["rows"] == len(data.validation)
    assert any("the race ends when one candidate remains" in note for note in raced)


def test_the_last_one_left_stops_too(tiny_task, data, asked, tmp_path):
    """With one label for all, zero-shot is right on one row in six, and the head on nearly all: one look decides."""
    found = climb(tiny_task, options=ClimbOptions(rungs=("features",), out=tmp_path))
    rows = {name: [row.id for row in rows if row.split == "validation"] for name, rows in found.predictions.items()}
    order = sorted(row.id for row in data.validation)
    assert rows["features"] == rows["zero-shot"] == order[:20]
    assert len(order) == 22
    assert found.result.recommended == "features"
