import os
import subprocess
import sys
from dataclasses import fields, replace

import pytest

from rung import rungs
from rung.climbing.check import validate_task
from rung.climbing.options import ClimbOptions
from rung.climbing.run import climb
from rung.errors import ConfigError
from rung.rungs import Ensemble, Features, FewShot, LoRA, Retrieval, build, get, names, registered
from rung.rungs.base import settable
from rung.task import Task


def loaded(small_task_file, tmp_path, text):
    file = small_task_file.parent / f"{tmp_path.name}.yaml"
    file.write_text(small_task_file.read_text() + text)
    task = Task.load(file)
    validate_task(task)
    return task


def test_settings_reach_the_rung(small_task_file, tmp_path):
    task = loaded(small_task_file, tmp_path, "rungs: {lora: {rank: 8, learning_rate: auto, patience: 2}}\n")
    lora, knn = build(("lora", "few-shot-knn"), task, 3)[::-1]
    assert (lora.rank, lora.learning_rate, lora.patience, lora.seed, lora.alpha) == (8, "auto", 2, 3, 32)
    assert knn.k == 5


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("rungs: {lora: {rnak: 8}}", "unknown-key", "did you mean 'rank'?"),
        ("rungs: {lora: {seed: 8}}", "unknown-key", "has no setting 'seed'"),
        ("rungs: {lora: {rank: eight}}", "bad-setting", "lora.rank"),
        ("rungs: {lara: {rank: 8}}", "unknown-name", "did you mean 'lora'?"),
        ("rungs: {llm-features: {encoder: other}}", "unknown-key", "has no setting 'encoder'"),
        ("rungs: {system-prompt: {encoder: other}}", "unknown-key", "has no setting 'encoder'"),
        ("rungs: {lora: 3}", "bad-value", "rungs.lora"),
    ],
)
def test_wrong_settings_are_errors_that_point_into_the_file(small_task_file, tmp_path, text, code, message):
    with pytest.raises(ConfigError) as caught:
        loaded(small_task_file, tmp_path, text + "\n")
    assert caught.value.code == code
    assert message in caught.value.render()
    assert ".yaml:6:" in caught.value.render()


def test_several_values_of_a_setting_make_a_rung_of_each(small_task_file, tmp_path, tiny_encoder):
    several = (
        f"rungs: {{features: {{encoder: [embedded-encoder, {tiny_encoder}]}}, lora: {{rank: [8, 64], epochs: 1}}}}\n"
    )
    task = loaded(small_task_file, tmp_path, several)
    made = build(("lora", "features"), task, 3)
    assert [rung.name for rung in made] == ["features", "features-encoder-tiny-bert", "lora", "lora-rank-64"]
    assert [one.encoder for one in made[:2]] == ["embedded-encoder", str(tiny_encoder)]
    assert [(one.rank, one.epochs, one.seed, one.family) for one in made[2:]] == [
        (rank, 1, 3, "parameter-efficient") for rank in (8, 64)
    ]
    assert replace(made[1], seed=5).name == "features-encoder-tiny-bert"
    (alone,) = build(("lora-rank-64",), task, 0)
    assert (alone.name, alone.variant_of, alone.rank) == ("lora-rank-64", "lora", 64)
    with pytest.raises(ConfigError, match="lora-rank-32"):
        build(("lora-rank-32",), task, 0)
    # a setting that takes several values keeps them
    modules = loaded(small_task_file, tmp_path, "rungs: {lora: {target_modules: [q_proj, v_proj]}}\n")
    assert [one.target_modules for one in build(("lora",), modules, 0)] == [("q_proj", "v_proj")]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("rank: []", "make no rungs"),
        (f"rank: {[*range(1, 18)]}", "from 1 to 16"),
        ("rank: [8, eight]", "lora.rank: 'eight'"),
        ("rank: [8, 4, 4]", "'lora-rank-4'"),
    ],
)
def test_values_that_make_no_rungs_are_errors(small_task_file, tmp_path, values, message):
    with pytest.raises(ConfigError, match=message):
        loaded(small_task_file, tmp_path, f"rungs: {{lora: {{{values}}}}}\n")


def test_a_climb_measures_encoders_side_by_side(small_task_file, tmp_path, tiny_encoder):
    task = loaded(small_task_file, tmp_path, f"rungs: {{features: {{encoder: [embedded-encoder, {tiny_encoder}]}}}}\n")
    found = climb(task, options=ClimbOptions(rungs=("features",), out=tmp_path))
    arms = {arm.name: arm for arm in found.result.rungs}
    other = arms["features-encoder-tiny-bert"]
    assert arms["features"].score > (other.score or 0)  # its weights are random
    assert found.result.recommended == "features"
    assert found.artifact("features-encoder-tiny-bert").decoder.encoder == str(tiny_encoder)


def test_every_rung_can_be_built_and_names_its_settings(task):
    for rung in build(names(), task, 0):
        assert all(hasattr(rung, name) for name in settable(rung))


# ---- types and bounds


def numbers(rung):
    return [each.name for each in fields(rung) if isinstance(getattr(rung, each.name), (int, float)) and each.init]


@pytest.mark.parametrize("name", names())
def test_every_number_is_bounded_and_typed(name):
    rung = get(name)
    for key in numbers(rung):
        wrong = ["text"] if isinstance(getattr(rung, key), bool) else [-1, "text", float("nan")]
        for value in wrong:
            with pytest.raises(ConfigError) as caught:
                replace(rung, **{key: value})
            assert caught.value.code == "bad-setting"
            assert caught.value.message.startswith(f"{name}.{key}: {value!r} should be ")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LoRA(rank=-3), "lora.rank: -3 should be at least 1"),
        (lambda: LoRA(rank="a"), "lora.rank: 'a' should be a valid integer"),
        (lambda: LoRA(learning_rate=-1.0), "lora.learning_rate: -1.0 should be at least 0 or 'auto'"),
        (lambda: LoRA(patience=0), "lora.patience: 0 should be at least 1"),
        (lambda: FewShot(k=-1), "few-shot-knn.k: -1 should be at least 1"),
        (lambda: get("few-shot-mmr", diversity=2.0), "few-shot-mmr.diversity: 2.0 should be at most 1"),
        (lambda: get("llm-features", label_names=1), "llm-features.label_names: 1 should be a valid boolean"),
        (lambda: FewShot(selection="zzz"), "'zzz' should be 'fixed', 'random', 'balanced', 'knn' or 'mmr'"),
    ],
)
def test_a_bad_setting_names_rung_setting_value_and_what_is_right(make, message):
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.code == "bad-setting"
    assert message in caught.value.message


@pytest.mark.parametrize("text", ["rank: -3", "epochs: 0", "learning_rate: -1.0", "warmup_ratio: 7"])
def test_the_same_values_are_refused_in_a_task_file(small_task_file, tmp_path, text):
    with pytest.raises(ConfigError) as caught:
        loaded(small_task_file, tmp_path, f"rungs: {{lora: {{{text}}}}}\n")
    key, value = text.split(": ")
    assert caught.value.code == "bad-setting"
    assert f"lora.{key}: {value} should be" in caught.value.message
    assert ".yaml:6:" in caught.value.render()


def test_name_and_family_are_no_settings():
    for make in (FewShot, LoRA, Retrieval, Ensemble):
        for key in ("name", "family"):
            with pytest.raises(TypeError, match=key):
                make(**{key: "my own"})


# ---- the registry


def test_a_rung_is_made_by_its_name():
    assert get("lora", rank=8) == LoRA(rank=8)
    assert get("few-shot-balanced", seed=3) == FewShot("balanced", seed=3)
    assert get("llm-features") == Features(encoder="")
    with pytest.raises(ConfigError, match="no rung is named 'lara'") as caught:
        get("lara")
    assert caught.value.hint == "did you mean 'lora'?"


def test_every_rung_can_be_made_without_a_task_and_says_its_registered_name():
    for entry in registered():
        assert (entry.make().name, entry.make().family) == (entry.name, entry.rung_type.family)
        assert getattr(rungs, entry.rung_type.__name__) is entry.rung_type
    assert [entry.order for entry in registered()] == sorted({entry.order for entry in registered()})


def test_two_classes_cannot_have_one_name():
    with pytest.raises(ValueError, match="two rungs are named 'lora'"):
        rungs.rung("lora", family="features", order=1)(Features)


def test_members_of_an_ensemble_have_the_tasks_settings(small_task_file, tmp_path):
    task = loaded(small_task_file, tmp_path, "rungs: {ensemble: {members: [lora, lora]}, lora: {rank: 4}}\n")
    (ensemble,) = build(("ensemble",), task, 5)
    assert [(member.rank, member.seed) for member in ensemble.rungs()] == [(4, 5), (4, 6)]
    assert [member.rank for member in Ensemble(members=("lora", "lora")).rungs()] == [16, 16]


PACKAGE = '''
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from rung.rungs.base import Rung, rung
from rung.rungs.costs import inference_cost


@rung("polite", family="prompting", order=105)
@dataclass(frozen=True)
class Polite(Rung):
    """Ask politely."""

    needs = ("prompt", "untuned")

    times: Annotated[int, Field(ge=1)] = 1

    def estimate(self, artifact, data, machine):
        return inference_cost(artifact, data, machine)

    def fit(self, artifact, data, *, progress=None):
        text = artifact.prompt.instruction + " Please." * self.times
        prompt = replace(artifact.prompt, instruction=text)
        return artifact.step(self.name, {"times": self.times}, prompt=prompt)
'''


@pytest.fixture
def polite_folder(tmp_path):
    """A folder with a package as pip installs it."""
    folder = tmp_path / "site"
    info = folder / "rung_polite-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "rung_polite.py").write_text(PACKAGE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rung-polite\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[rung.rungs]\npolite = rung_polite\n")
    return folder


CLIMB = """
import sys
from pathlib import Path
from rung import Task, climb
from rung.climbing import ClimbOptions
found = climb(Task.load(sys.argv[1]), options=ClimbOptions(rungs=("polite",), out=Path(sys.argv[2])))
(entry,) = [one for one in found.result.rungs if one.name == "polite"]
print(entry.status, entry.family, entry.settings["polite"], found.artifact("polite").prompt.instruction)
"""


def python(*arguments, folder):
    paths = os.pathsep.join([str(folder), *sys.path])
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}
    )
    return done.returncode, done.stdout, done.stderr


def test_a_rung_of_another_package_is_climbed(small_task_file, tiny_folder, polite_folder, tmp_path):
    file = small_task_file.parent / f"{tmp_path.name}.yaml"
    small = f"model: {tiny_folder}\nrungs: {{polite: {{times: 2}}}}\n"
    file.write_text(small_task_file.read_text() + small)
    code, out, err = python("-c", CLIMB, str(file), str(tmp_path / "runs"), folder=polite_folder)
    assert code == 0, err
    assert "prompting {'times': 2}" in out
    assert out.strip().endswith(" Please. Please.")
    code, out, _ = python("-m", "rung", "rungs", "polite", folder=polite_folder)
    assert "Ask politely." in out
    assert "times: 1" in out


def test_a_package_that_fails_to_import_is_named(polite_folder):
    (polite_folder / "rung_polite.py").write_text("import there_is_no_such_module\n")
    code, _, err = python("-m", "rung", "rungs", folder=polite_folder)
    assert code == 2
    assert "the rung 'polite' of the package rung-polite fails to import" in err
    assert "rung-not-loaded" in err
