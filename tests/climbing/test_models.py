import shutil
from dataclasses import replace

import pytest

from rung.artifact.artifact import Artifact
from rung.artifact.parts import Weights
from rung.climbing import arms as arms_module
from rung.climbing.options import ClimbOptions
from rung.climbing.plan import plan_rows
from rung.climbing.run import climb
from rung.errors import ConfigError
from rung.evaluation.scoring import evaluate
from rung.rungs import FewShot
from rung.rungs.base import short_name
from rung.rungs.models import OtherModel, other_models
from rung.task import Task


@pytest.fixture(scope="module")
def other_folder(tiny_folder):
    folder = tiny_folder.parent / "Other Llama"
    shutil.copytree(tiny_folder, folder)
    return folder


@pytest.fixture
def two(task, tiny_folder, other_folder):
    return task.model_copy(update={"model": str(tiny_folder), "other_models": [str(other_folder)]})


def planted(monkeypatch, good):
    """Let every artifact be right on all rows if its model is `good`, else on none."""

    def scored(artifact, examples, split, **options):
        rows = evaluate(artifact, examples, split, **options)
        return [replace(row, score=float(good(artifact))) for row in rows]

    monkeypatch.setattr(arms_module, "evaluate", scored)


def test_a_list_of_models_is_read(small_task_file):
    task = Task.load(small_task_file, {"model": "[embedded, org/name]"})
    assert task.models == ("embedded", "org/name")
    assert task.only("org/name").models == ("org/name",)
    assert task.fingerprint() != Task.load(small_task_file).fingerprint()
    assert Task.load(small_task_file, {"model": "[embedded]"}).models == ("embedded",)
    assert Task.model_json_schema()["properties"]["model"]["anyOf"][1]["items"] == {"type": "string"}


@pytest.mark.parametrize("model", ["[]", "[embedded, embedded]", "[1, 2]", "{a: b}"])
def test_lists_that_are_wrong(small_task_file, model):
    with pytest.raises(ConfigError):
        Task.load(small_task_file, {"model": model})


def test_there_is_one_way_to_write_it(small_task_file):
    with pytest.raises(ConfigError, match=r"model: \[a, b\]"):
        Task.load(small_task_file, {"other_models": "[org/name]"})


def test_one_artifact_wants_one_model(two, data):
    with pytest.raises(ConfigError) as caught:
        Artifact.zero_shot(two, data.labels)
    assert caught.value.code == "bad-value"


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", "qwen2.5-0.5b-instruct"),
        ("org/name@v1/x", "x"),
        ("/a/b/My Model/", "my-model"),
        ("http://127.0.0.1:1/v1#Org/M", "org-m"),
        ("../..", "model"),
    ],
)
def test_short_names_are_safe_for_folders(reference, name):
    assert short_name(reference) == name


def test_models_of_one_name_or_of_two_kinds_are_refused(task):
    for models, code in ((["a/m", "b/m"], "bad-value"), (["a/m", "http://localhost/v1#n"], "bad-value")):
        with pytest.raises(ConfigError) as caught:
            other_models(task.model_copy(update={"model": models[0], "other_models": models[1:]}))
        assert caught.value.code == code


def test_the_rung_applies_to_what_does_not_hang_on_the_model(two, tiny_zero, data, tmp_path):
    (rung,) = other_models(two)
    assert rung.name == "model-other-llama"
    few = FewShot("random", k=2).fit(tiny_zero, data)
    made = rung.fit(few, data)
    assert (made.model, made.demonstrations, made.name) == (
        two.other_models[0], few.demonstrations, "few-shot-random+model-other-llama",
    )  # fmt: skip
    assert rung.applies(few, data).applies
    assert not rung.applies(made, data).applies
    biased = replace(tiny_zero, decoder=replace(tiny_zero.decoder, bias=(0.0,) * 6))
    tuned = replace(tiny_zero, weights=Weights("lora", tmp_path))
    missing = OtherModel(two.only(str(tmp_path / "none")))
    for rung_, artifact, why in (
        (rung, biased, "fitted"),
        (rung, tuned, "weights"),
        (missing, tiny_zero, "no model is"),
    ):
        verdict = rung_.applies(artifact, data)
        assert not verdict.applies
        assert why in verdict.reason


def test_the_ramp_starts_from_the_better_model(two, monkeypatch, tmp_path):
    planted(monkeypatch, lambda artifact: artifact.model == two.other_models[0])
    result = climb(two, options=ClimbOptions(rungs=("few-shot-random",), out=tmp_path)).result
    names = [rung.name for rung in result.rungs]
    assert names[:3] == ["zero-shot", "model-other-llama", "model-other-llama+few-shot-random"]
    assert "few-shot-random" not in names
    assert result.recommended.startswith("model-other-llama")
    assert result.model == ", ".join(two.models)
    assert {rung.name: rung.family for rung in result.rungs}["model-other-llama"] == "model"


def test_it_starts_from_the_first_where_none_is_better(two, monkeypatch, tmp_path):
    planted(monkeypatch, lambda artifact: artifact.demonstrations is not None)
    found = climb(two, options=ClimbOptions(rungs=("few-shot-random",), out=tmp_path))
    names = [rung.name for rung in found.result.rungs if rung.score is not None]
    assert names[:3] == ["zero-shot", "model-other-llama", "few-shot-random"]
    assert found.result.recommended.startswith("few-shot-random")


def test_a_model_that_is_not_there_is_left_out_with_its_reason(task, tiny_folder, tmp_path):
    wanted = task.model_copy(update={"model": str(tiny_folder), "other_models": [str(tmp_path / "none")]})
    result = climb(wanted, options=ClimbOptions(rungs=("calibrate",), out=tmp_path / "runs")).result
    absent = next(rung for rung in result.rungs if rung.name == "model-none")
    assert absent.status == "skipped"
    assert "no model is named" in absent.reason


def test_the_plan_names_every_model(two):
    rows, notes = plan_rows(two, ClimbOptions(rungs=("calibrate",)))
    assert {row["name"] for row in rows} == {"zero-shot", "model-other-llama", "calibrate"}
    assert any("models are raced" in note for note in notes)
