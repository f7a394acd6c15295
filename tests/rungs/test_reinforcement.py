"""Reinforcement learning as a rung, on a tiny model whose answers are scored by their length."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rung.artifact.artifact import Artifact
from rung.engines.torch_engine import TorchEngine
from rung.machine import this_machine
from rung.rungs import RL
from rung.task import Task
from rung.training import loop
from rung.training.rewards import RewardLoss

QUICK = {"rank": 4, "epochs": 2, "batch_size": 4, "group_size": 4, "learning_rate": 1e-2, "max_tokens": 3}


@pytest.fixture(scope="module")
def asked(tiny_folder):
    """Rows of a task with texts, and its zero-shot artifact."""
    rows = [{"q": f"question {i}", "a": "a"} for i in range(12)]
    task = Task(
        name="letters", instruction="Answer.", inputs=["q"], output={"kind": "text", "column": "a", "max_tokens": 3},
        data={"train": rows, "split": {"method": "holdout"}}, model=str(tiny_folder),
    )  # fmt: skip
    return task.read(), Artifact.zero_shot(task, engine="torch")


def tensors(artifact):
    from safetensors.torch import load_file

    return load_file(artifact.weights.adapter / "adapter_model.safetensors")


def test_labels_are_better_learned_directly(tiny_zero, data):
    verdict = RL().applies(tiny_zero, data)
    assert (verdict.applies, verdict.final) == (False, True)
    assert "cross-entropy" in verdict.reason


def test_it_learns_what_is_rewarded_and_goes_on_after_a_kill(asked, monkeypatch, tmp_path):
    data, zero = asked
    rung = RL(**QUICK, patience=None)
    assert rung.applies(zero, data).applies
    assert rung.estimate(zero, data, this_machine()).fit_seconds > 0

    made, generate = RewardLoss.__init__, TorchEngine.generate

    def with_reward(self, *arguments):
        made(self, *arguments)
        self.reward = lambda rows, texts: [float("e" in text) for text in texts]

    def ended(self, requests, **options):
        return [replace(each, finish_reason="stop") for each in generate(self, requests, **options)]

    monkeypatch.setattr(RewardLoss, "__init__", with_reward)
    monkeypatch.setattr(TorchEngine, "generate", ended)  # a random model ends no answer
    whole = rung.fit(zero, data)
    record = whole.settings["rl"]
    assert len(record["measures"]) == len(record["losses"])
    assert {"reward", "length", "distinct", "entropy", "divergence", "equal_groups"} <= set(record["measures"][0])
    assert record["measures"][0]["divergence"] == pytest.approx(0, abs=1e-5)  # the reference is where it starts
    steps = loop._Run._step

    def dying(self, batch):
        if self.result.steps == 2:
            raise KeyboardInterrupt
        steps(self, batch)

    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(loop, "CHECKPOINT_SHARE", 1e9)
    monkeypatch.setattr(loop._Run, "_step", dying)
    with pytest.raises(KeyboardInterrupt):
        rung.fit(zero, data)
    monkeypatch.setattr(loop._Run, "_step", steps)
    again = rung.fit(zero, data)
    assert again.settings["rl"]["losses"] == record["losses"]
    assert all(torch.equal(tensors(again)[name], tensor) for name, tensor in tensors(whole).items())
    loaded = Artifact.load(whole.save(tmp_path / "artifact"))
    assert [a.text for a in loaded.answer(data.test)] == [a.text for a in whole.answer(data.test)]
