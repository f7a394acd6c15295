"""Training in several processes is training in one: gloo on processors, with a random Llama."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import pytest
import torch
from together import CONFIG, evaluations, full, lora, trained
from toys import llama, rows

from rung.errors import ConfigError, TrainingError
from rung.training.changes import write_tensors
from rung.training.checkpoints import Checkpoints
from rung.training.distributed import World, checksums, current, first_host, joined, launch, launched, slurm_script
from rung.training.loop import train

HERE = Path(__file__).parent


def together(size, folder):
    """Run the script in so many processes and read what each of them found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
            "RUNG_CACHE": str(folder / "cache")}  # fmt: skip
    running = [
        subprocess.Popen(
            [sys.executable, HERE / "together.py", folder], env=os.environ | told | {"RANK": str(k), "LOCAL_RANK": "0"},
            stderr=subprocess.PIPE, text=True,
        )
        for k in range(size)
    ]  # fmt: skip
    errors = [process.communicate()[1] for process in running]
    assert [process.returncode for process in running] == [0] * size, "\n".join(errors)
    courses = [json.loads((folder / f"{k}.json").read_text()) for k in range(size)]
    return courses, [torch.load(folder / f"{k}.pt") for k in range(size)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_ray_train_starts_the_same_processes(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    def loop():
        sys.path.insert(0, str(HERE))
        os.environ["RUNG_CACHE"] = str(tmp_path / "cache")
        from together import trained

        with joined(launched()) as world:
            course, tensors = trained(tmp_path)
            torch.save(tensors, tmp_path / f"{world.rank}.pt")
            (tmp_path / f"{world.rank}.json").write_text(json.dumps([world.size, course]))

    with tempfile.TemporaryDirectory(prefix="rt", ignore_cleanup_errors=True) as scratch:
        ray.init(
            address="local", num_cpus=3, include_dashboard=False, object_store_memory=100 * 2**20, _temp_dir=scratch,
            _node_ip_address="127.0.0.1", log_to_driver=False,
        )  # fmt: skip
        try:
            TorchTrainer(
                loop, scaling_config=ScalingConfig(num_workers=2), run_config=RunConfig(storage_path=str(tmp_path))
            ).fit()
        finally:
            ray.shutdown()
    monkeypatch.setenv("RUNG_CACHE", str(tmp_path / "alone"))
    course, tensors = trained(tmp_path)
    for rank in range(2):
        size, told = json.loads((tmp_path / f"{rank}.json").read_text())
        assert (size, told["steps"]) == (2, course["steps"])
        close(torch.load(tmp_path / f"{rank}.pt"), tensors)


def close(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_train_as_one_does(size, tmp_path, monkeypatch):
    monkeypatch.setenv("RUNG_CACHE", str(tmp_path / "alone"))
    trained(tmp_path, checkpoints=Checkpoints(tmp_path / "from one"), stop_after=5)
    course, tensors = trained(tmp_path)
    _, best = trained(tmp_path, evaluate=evaluations(World()))
    trained(tmp_path, make=full, checkpoints=Checkpoints(tmp_path / "full from one"), stop_after=5)
    whole_course, whole = trained(tmp_path, make=full)
    for tied in (True, False):
        llama(tied=tied).save_pretrained(tmp_path / ("tied" if tied else "untied"))
    untied = trained(tmp_path, base=partial(llama, tied=False))
    courses, weights = together(size, tmp_path)
    first, cached = courses[0], tmp_path / "cache" / "adapters"
    alone = {  # those that are resumed go on from a checkpoint of one process
        "plain": (course, tensors), "resumed": (course, tensors), "full": (whole_course, whole),
        "full resumed": (whole_course, whole), "base in parts, tied": (course, tensors),
        "base in parts, untied": untied,
    }  # fmt: skip
    for name, (told, expected) in alone.items():
        assert first[name]["steps"] == told["steps"] == 12, name
        for key in ("losses", "norms"):
            torch.testing.assert_close(torch.tensor(first[name][key]), torch.tensor(told[key]), atol=1e-5, rtol=0)
        for each in weights:
            close(each[name], expected)
    assert first["evaluated"]["best"] == 8
    close(weights[-1]["evaluated"], best)
    # One process goes on from a checkpoint of several.
    again, resumed = trained(tmp_path, checkpoints=Checkpoints(tmp_path / "stopped"))
    assert again["steps"] == 12
    close(resumed, tensors)
    _, resumed = trained(tmp_path, make=full, checkpoints=Checkpoints(tmp_path / "full stopped"))
    close(resumed, whole)
    # A signal to one process ends all of them after the same step, with the state kept.
    told = [each["signalled"] for each in courses]
    assert {(each["code"], each["exit"]) for each in told} == {("preempted", 75)}
    assert len({each["message"] for each in told}) == 1
    assert Checkpoints(tmp_path / "signalled").last()[0] in (5, 6)
    for name in ("other rows", "other run", "spoiled"):
        assert {each[name]["code"] for each in courses} == {"processes-apart"}, name
    assert all(folder.is_dir() for folder in cached.iterdir())


def test_a_checksum_sees_every_change_of_place_and_value(tmp_path):
    tensor = torch.arange(6.0).view(2, 3)
    changed = [tensor, tensor.flip(0), tensor.flip(1), tensor + torch.eye(2, 3) * 1e-6, tensor.to(torch.bfloat16)]
    sums = []
    for number, each in enumerate(changed):
        (tmp_path / str(number)).mkdir()
        write_tensors({"a": each}, tmp_path / str(number) / "x.safetensors")
        sums.append(checksums(tmp_path / str(number))["x.safetensors: a"])
    assert len(set(sums)) == len(changed)


def test_the_place_among_the_processes_is_read_from_torchrun_and_slurm(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_PROCID", "5")
    assert launched() == World()  # a batch script, not a step of srun
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "16")
    monkeypatch.setenv("SLURM_LOCALID", "1")
    assert launched() == World(5, 16, 1)
    with pytest.raises(ConfigError, match="MASTER_ADDR"), joined(launched()):
        pass
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert launched() == World(3, 4, 3)
    assert current() == World()
    names = {"node[03-05,9],login": "node03", "gpu7": "gpu7", "a,b": "a", "rack1-n[2,4]": "rack1-n2"}
    assert {text: first_host(text) for text in names} == names


def test_signals_are_as_before_after_the_block():
    before = signal.getsignal(signal.SIGTERM)
    with joined(World()):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_batch_script_comes_back_after_a_preemption(tmp_path):
    script = slurm_script(2, 8, "rung fit task.yaml lora --out tuned")
    assert "--nodes=2" in script
    assert "--ntasks-per-node=8" in script
    for name in ("srun", "scontrol"):
        tool = tmp_path / name
        tool.write_text(f'#!/bin/sh\necho {name} "$@"\nexit {75 if name == "srun" else 0}\n')
        tool.chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(tmp_path)}
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True)
    assert done.returncode == 75
    assert done.stdout.splitlines() == [
        "srun --kill-on-bad-exit=1 rung fit task.yaml lora --out tuned",
        "scontrol requeue 7",
    ]


def test_without_others_a_signal_keeps_the_state_and_the_same_training_goes_on(tmp_path, monkeypatch):
    from together import Signals

    monkeypatch.setenv("RUNG_CACHE", str(tmp_path))
    kept = Checkpoints(tmp_path / "run")
    with joined(World()):
        told, _ = trained(tmp_path, checkpoints=kept, progress=Signals())
    assert told["code"] == "preempted"
    assert kept.last()[0] in (5, 6)
    _, resumed = trained(tmp_path, checkpoints=kept)
    _, whole = trained(tmp_path)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
    assert len(rows(count=13)) > CONFIG.batch_size


def test_devices_end_with_the_code_of_the_worst_process(tmp_path, monkeypatch):
    stand_in = tmp_path / "python"
    stand_in.write_text('#!/bin/sh\n[ "$RANK" = 1 ] && exit 3\n[ "$RANK" = 2 ] && kill -s KILL $$\nexit 0\n')
    stand_in.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(stand_in))
    assert [launch(count, ["fit"]) for count in (1, 2, 3)] == [0, 3, 128 + signal.SIGKILL]


def test_a_training_of_no_steps_in_several_processes_is_an_error(monkeypatch):
    class Two(World):
        """The first of two processes, which talks to nobody."""

        def spread(self, tensors):
            pass

    monkeypatch.setattr("rung.training.loop.current", lambda: Two(0, 2))
    model = llama()
    with pytest.raises(TrainingError, match="no step") as caught:
        train(model, lora(model), rows(), CONFIG, stop_after=0)
    assert caught.value.code == "processes-apart"
