"""Learning from preferences as rungs: what they need, what they record, and which weights they start from."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tests.rungs.trained import help_task, killed_and_resumed

from rung.artifact.artifact import Artifact
from rung.data.rows import Preference
from rung.engines.opening import open_torch
from rung.errors import ConfigError
from rung.export.export import export, merge
from rung.machine import this_machine
from rung.progress import QUIET
from rung.rungs import DPO, KTO, ORPO, Full, LoRA, SimPO, default_names
from rung.rungs.preference import FEWEST

QUICK = {"rank": 4, "epochs": 1, "learning_rate": 1e-2}
WORDS = ("the card is on its way", "please call us", "no", "it takes three days", "we are sorry to hear that")
every_rung = pytest.mark.parametrize(
    "rung", [DPO(**QUICK), KTO(**QUICK), ORPO(**QUICK), SimPO(**QUICK)], ids=lambda rung: rung.name
)


@pytest.fixture(scope="module")
def judged_task(tiny_folder):
    return help_task(tiny_folder, lambda i: WORDS[i % 5], lambda i: WORDS[(i + 1) % 5])


@pytest.fixture(scope="module")
def judged(judged_task):
    return judged_task.read()


@pytest.fixture(scope="module")
def base(judged_task):
    return Artifact.zero_shot(judged_task, engine="torch")


@pytest.fixture(scope="module")
def fine_tuned(base, judged):
    return LoRA(**QUICK | {"rank": 2, "alpha": 4}).fit(base, judged)


def tensors(artifact):
    from safetensors.torch import load_file

    return load_file(next(artifact.weights.adapter.glob("*.safetensors")))


def equal(one, other):
    first, second = tensors(one), tensors(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@every_rung
def test_it_learns_saves_and_loads(base, judged, rung, tmp_path):
    assert rung.applies(base, judged).applies
    assert rung.estimate(base, judged, this_machine()).fit_seconds > 0
    tuned = rung.fit(base, judged)
    record = tuned.settings[rung.name]
    assert len(record["measures"]) == len(record["losses"])
    told = record["answers_told_apart"]
    assert told["rows"] == "unseen"  # about validation and test rows: none of them was learned
    assert told["low"] <= told["accuracy"] <= told["high"]
    assert len(record["evaluations"]) == 1  # of the held-out preferences
    loaded = Artifact.load(tuned.save(tmp_path / "artifact"))
    rows = judged.test[:3]
    assert [answer.text for answer in loaded.answer(rows)] == [answer.text for answer in tuned.answer(rows)]
    assert equal(loaded, tuned)


@pytest.mark.parametrize("rung", [DPO(**QUICK), KTO(**QUICK)], ids=lambda rung: rung.name)
def test_a_killed_run_goes_on_and_ends_the_same(base, judged, rung):
    rung = replace(rung, seed=7)
    whole = rung.fit(base, judged)
    again = killed_and_resumed(lambda: rung.fit(base, judged), after=3)
    assert again.settings[rung.name]["losses"] == whole.settings[rung.name]["losses"]
    assert equal(again, whole)


def test_the_reference_is_the_artifact_with_its_own_adapter(base, judged, fine_tuned):
    """The first step is at ln 2: the adapter is where the reference is, with its own rank."""
    rung = DPO(**QUICK, nll=0.0)
    assert rung.applies(fine_tuned, judged).applies
    tuned = rung.fit(fine_tuned, judged)
    assert tuned.settings["dpo"]["losses"][0][1] == pytest.approx(math.log(2), abs=1e-5)
    assert {name: t.shape for name, t in tensors(tuned).items()} == {n: t.shape for n, t in tensors(fine_tuned).items()}
    assert not equal(tuned, fine_tuned)
    still = replace(rung, learning_rate=0.0).fit(fine_tuned, judged)
    assert equal(still, fine_tuned)
    assert tuned.path == ("zero-shot", "lora", "dpo")


def test_all_parameters_can_be_trained_and_trained_further(base, judged, fine_tuned):
    rung = DPO(**QUICK | {"learning_rate": 1e-3}, full=True, nll=0.0)
    assert "merge it first" in rung.applies(fine_tuned, judged).reason
    full = rung.fit(base, judged)
    further = DPO(**QUICK | {"learning_rate": 1e-3}, nll=0.0).fit(Full(epochs=1).fit(base, judged), judged)
    for tuned in (full, further):
        assert tuned.settings["dpo"]["losses"][0][1] == pytest.approx(math.log(2), abs=1e-5)
        assert len(tensors(tuned)) > 15  # whole matrices, not updates


def test_it_merges_and_exports(base, judged, tmp_path):
    tuned = DPO(**QUICK).fit(base, judged)
    merge(tuned, tmp_path / "merged")
    rows = judged.test[:3]
    wanted = [answer.text for answer in tuned.answer(rows)]
    assert [a.text for a in Artifact.load(tmp_path / "merged" / "artifact").answer(rows)] == wanted
    export(tuned, "peft", tmp_path / "adapter")
    card = (tmp_path / "adapter" / "README.md").read_text("utf-8")
    assert "- method: dpo, " in card
    assert "- answers_told_apart: " in card
    assert "measures" not in card  # of every step


def test_it_is_refused_without_preferences(base, judged):
    nothing = replace(judged, preferences=())
    thumbs = replace(judged, preferences=tuple(replace(each, rejected=None) for each in judged.preferences))
    for rung in (DPO(), ORPO(), SimPO()):
        assert not rung.applies(base, nothing).applies
        assert not rung.applies(base, thumbs).applies
    verdict = DPO().applies(base, nothing)
    assert (verdict.final, "data.preferences" in verdict.reason) == (True, True)
    assert KTO().applies(base, thumbs).applies
    with pytest.raises(ConfigError):
        DPO(learning_rate="auto")


def test_a_climb_tries_it_by_default_where_there_are_preferences(judged_task, task):
    assert {"dpo", "kto"} <= set(default_names(judged_task))
    assert not {"dpo", "kto"} & set(default_names(task))


def test_few_inputs_are_all_learned(judged):
    few = replace(judged, preferences=judged.preferences[: FEWEST - 1])
    kept, held_out = DPO().divide(few)
    assert (kept.preferences, held_out) == (few.preferences, ())
    kept, held_out = DPO().divide(judged)
    assert len(kept.preferences) + len(held_out) == len(judged.preferences)
    assert not {each.row.id for each in kept.preferences} & {each.row.id for each in held_out}


def test_labels_can_be_preferred(tiny_zero, data):
    """What is none of the labels is left out and counted: the artifact cannot answer it."""
    right = [Preference(row, replace(row, outputs=(data.labels[i % 3],))) for i, row in enumerate(data.train)]
    wrong = [replace(right[0], rejected=replace(data.train[0], outputs=("I do not know",)))]
    judged = [each for each in right if each.row.outputs != each.rejected.outputs]
    tuned = DPO(**QUICK).fit(tiny_zero, replace(data, preferences=(*judged, *wrong)))
    report = tuned.settings["dpo"]["training_data"]
    assert report["dropped"] == {"an answer that is none of the labels": 1}


def test_sampled_answers_become_pairs_by_the_tasks_metric(base, judged, monkeypatch):
    """The best and the worst of a row; those that were cut, and rows whose answers are equally good, are left out."""
    from rung.engines.base import Generation
    from rung.engines.torch_engine import TorchEngine

    asked = []

    def generate(self, requests, **_):
        asked.extend(requests)
        texts = []
        for i, row in enumerate(judged.train):
            wrong, right = Generation("no idea", 1, 2, "stop", 0.0), Generation(row.outputs[0], 1, 2, "stop", 0.0)
            cut = Generation("cut", 1, 8, "length", 0.0)
            texts += [wrong, right, cut] if i % 2 else [wrong, wrong, cut]
        return texts

    monkeypatch.setattr(TorchEngine, "generate", generate)
    rung = DPO(samples=3, temperature=0.7)
    pairs = rung._sampled(base, open_torch(base.model), judged, QUIET)
    assert [(pair.chosen.outputs, pair.rejected.outputs) for pair in pairs] == [
        (row.outputs, ("no idea",)) for row in judged.train[1::2]
    ]
    assert {request.sampling.temperature for request in asked} == {0.7}
    assert len(asked) == 3 * len(judged.train)


def test_answers_that_are_scored_are_not_sampled(tiny_zero, data):
    assert "none can be sampled" in DPO(samples=4).applies(tiny_zero, data).reason


def test_places_that_something_else_decides_are_refused(base, fine_tuned, judged):
    named = {"target_modules": ["q_proj"]}
    assert DPO(**named).applies(base, judged).applies
    verdict = DPO(**named).applies(fine_tuned, judged)
    assert verdict.reason == "it goes on with the weights that are tuned already: leave `target_modules` out"
    assert DPO(full=True, **named).applies(base, judged).reason == (
        "`full` trains all parameters: leave `target_modules` out"
    )
