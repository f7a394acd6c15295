"""`rung fit` makes one artifact, in one process or several."""

import json
import os
import signal
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from rung.artifact.artifact import Artifact
from rung.cli.main import app
from rung.errors import ConfigError


def run(*arguments):
    done = CliRunner().invoke(app, list(arguments))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.fixture
def command(small_task_file, tiny_folder, tmp_path):
    sets = {"model": tiny_folder, "data.train_per_label": 2, "data.validation_rows": 6, "data.test_rows": 6}
    given = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
    return ["fit", str(small_task_file), "lora", "--out", str(tmp_path / "tuned"), "--quiet", *given]


def test_one_rung_makes_one_artifact(command, tmp_path):
    assert json.loads(run(*command, "--json").stdout) == {
        "artifact": str(tmp_path / "tuned"), "rung": "lora", "processes": 1
    }  # fmt: skip
    artifact = Artifact.load(tmp_path / "tuned")
    assert artifact.path == ("zero-shot", "lora")
    with pytest.raises(ConfigError, match="does not apply: its weights are tuned already"):
        run("fit", command[1], "dora", "--out", str(tmp_path / "more"), "--base", str(tmp_path / "tuned"), *command[5:])


def test_what_one_process_does_is_refused_in_several(command, monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for refused in (["climb", command[1]], ["tune", command[1]]):
        with pytest.raises(ConfigError, match="would run once in each process"):
            run(*refused)
    with pytest.raises(ConfigError, match="--devices 2 has no effect in the 2 processes that torchrun or srun started"):
        run(*command, "--devices", "2")
    monkeypatch.delenv("RANK")
    with pytest.raises(ConfigError, match="--devices 2 has no effect with --slurm"):
        run(*command, "--devices", "2", "--slurm", "1x2")
    with pytest.raises(ConfigError, match="NODESxDEVICES"):
        run(*command, "--slurm", "8")


@pytest.mark.slow
def test_several_processes_make_the_artifact_of_one(command, tmp_path):
    """The same weights but for rounding; a signal to the launcher ends all with 75, and the same command goes on."""
    place, rung = command.index("--out") + 1, [sys.executable, "-m", "rung"]
    env = os.environ | {"RUNG_CACHE": str(tmp_path / "cache")}
    command += ["--set", "rungs.lora.precision=float32"]  # a row alone is rounded as among others
    done = {}
    for count in (1, 2):
        command[place] = str(tmp_path / f"tuned-{count}")
        extra = [] if count == 1 else ["--devices", str(count)]
        ended = subprocess.run([*rung, *command, "--json", *extra], env=env, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        assert json.loads(ended.stdout)["processes"] == count
        done[count] = Artifact.load(command[place])
    # Where the base model does not fit beside so many processes, each holds a part of it.
    command[place] = str(tmp_path / "tuned-parts")
    words = [word for word in command if word != "--quiet"]
    small = env | {"LOCAL_WORLD_SIZE": str(2**40)}
    ended = subprocess.run([*rung, *words, "--devices", "2"], env=small, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "each of 2 processes holds a part" in ended.stderr
    done["parts"] = Artifact.load(command[place])
    losses = [dict(done[count].settings)["lora"]["losses"] for count in (1, 2, "parts")]
    for each in losses[1:]:
        assert [step for step, _ in losses[0]] == [step for step, _ in each]
        assert [loss for _, loss in losses[0]] == pytest.approx([loss for _, loss in each], abs=1e-5)
    # Long enough that the signal comes while it trains.
    command[place] = str(tmp_path / "stopped")
    command += ["--devices", "2", "--set", "rungs.lora.epochs=300"]
    command.remove("--quiet")
    with subprocess.Popen([*rung, *command], env=env, stderr=subprocess.PIPE, text=True) as running:
        for line in running.stderr:
            if "training in 2 processes" in line:
                running.send_signal(signal.SIGTERM)
                break
        rest = running.stderr.read()
    assert running.returncode == 75, rest
    assert rest.count("error[preempted]") == 1
    assert not (tmp_path / "stopped").exists()
    assert list((tmp_path / "cache" / "training").glob("*/step-*"))
