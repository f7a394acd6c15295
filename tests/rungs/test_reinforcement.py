"""Reinforcement learning as a rung, on a tiny model whose answers are scored by their length."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import count
from threading import Lock

import pytest
import torch
from tests.engines.fault_server import FaultServer, Reply
from tests.rungs.trained import killed_and_resumed

from rung.artifact.artifact import Artifact
from rung.artifact.best_of import BestOf
from rung.artifact.text import Generate
from rung.data.rows import Preference
from rung.engines.base import GenerateRequest, Sampling
from rung.engines.torch_engine import TorchEngine
from rung.errors import ConfigError, EngineError, MachineError
from rung.machine import this_machine
from rung.models.reference import resolve
from rung.rungs import RL, RewardModel
from rung.task import Task
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
    again = killed_and_resumed(lambda: rung.fit(zero, data), after=2)
    assert again.settings["rl"]["losses"] == record["losses"]
    assert all(torch.equal(tensors(again)[name], tensor) for name, tensor in tensors(whole).items())
    loaded = Artifact.load(whole.save(tmp_path / "artifact"))
    assert [a.text for a in loaded.answer(data.test)] == [a.text for a in whole.answer(data.test)]


class AdapterServer(FaultServer):
    """A vLLM server that reads adapters from their folders; of every fourth answer it gives other probabilities."""

    def __init__(self, model):
        self.engine, self.adapters, self.answered = TorchEngine(resolve(model)), {}, count()
        self.gives_tokens, self.one = True, Lock()
        super().__init__()

    def _default(self, path, body):
        if path == "/v1/load_lora_adapter":
            self.adapters[body["lora_name"]] = body["lora_path"]
        elif path == "/v1/unload_lora_adapter":
            del self.adapters[body["lora_name"]]
        elif path == "/v1/completions":
            assert body["return_token_ids"]
            with self.one:
                number, adapter = next(self.answered), self.adapters[body["model"]]
                sampling = Sampling(body["max_tokens"], body["temperature"], seed=number)
                request = GenerateRequest(tuple(body["prompt"]), sampling, None, adapter, logprobs=True)
                (made,) = self.engine.generate([request])
            logprobs = {"token_logprobs": [value - 2 * (number % 4 == 0) for value in made.logprobs]}
            tokens = {"token_ids": made.tokens} if self.gives_tokens else {}
            return Reply({"choices": [{"text": made.text, "finish_reason": "stop", "logprobs": logprobs, **tokens}]})
        return Reply(b"Success", kind="text/plain")


@pytest.fixture
def server(asked):
    server = AdapterServer(asked[1].model)
    yield server
    server.close()


def test_a_server_can_sample_with_an_adapter_of_each_step(asked, server, monkeypatch):
    data, zero = asked
    monkeypatch.setattr(RewardLoss, "reward", lambda self, rows, texts: [float(i % 2) for i in range(len(texts))])
    rung = RL(**QUICK, patience=None, rollout_model=server.reference)
    record = rung.fit(zero, data).settings["rl"]
    calls = [(path.rsplit("/", 1)[1], body) for path, body, _ in server.asked if "lora" in path]
    loads, unloads = ([body["lora_name"] for name, body in calls if name.startswith(kind)] for kind in ("load", "unl"))
    assert [name for name, _ in calls] == ["load_lora_adapter", "unload_lora_adapter"] * len(record["losses"])
    assert loads == unloads
    assert len(set(loads)) == len(loads) > 3
    assert {body["temperature"] for body in server.bodies("/v1/completions")} == {1.0}
    # What the server sampled is as likely here, with the weights of each step; the others are left out.
    assert [measured["off_policy"] for measured in record["measures"]] == [0.25] * len(loads)
    assert [measured["unscorable"] for measured in record["measures"]] == [0.25] * len(loads)
    assert "LoRA adapter" in replace(rung, temperature=0.5).applies(zero, data).reason


def test_a_server_that_gives_no_tokens_cannot_sample(asked, server):
    data, zero = asked
    server.gives_tokens = False
    with pytest.raises(EngineError, match="without their tokens"):
        RL(**QUICK, patience=None, rollout_model=server.reference).fit(zero, data)
    assert server.asked[-1][0] == "/v1/unload_lora_adapter"


def test_rewards_are_named_parts_with_weights(asked, monkeypatch, tmp_path):
    """Also a function of the user, which asks for consent; what is not rewarded is measured besides."""
    data, zero = asked
    (tmp_path / "checks.py").write_text("def vowels(prediction, references):\n    return float('e' in prediction)\n")
    data = replace(data, folder=tmp_path)
    rewards = {"exact": 1.0, "valid": 0.5, "length": 0.5, "checks:vowels": 2.0}
    rung = RL(**QUICK | {"epochs": 1}, patience=None, rewards=rewards)
    monkeypatch.setenv("RUNG_TRUST", "")
    with pytest.raises(MachineError, match="not allowed"):
        rung.fit(zero, data)
    monkeypatch.setenv("RUNG_TRUST", str(tmp_path))
    record = rung.fit(zero, data).settings["rl"]
    assert record["rewarded_by"] == ["quasi_exact_match", "valid", "length", "checks:vowels"]
    measured = record["measures"][0]
    assert {f"reward {name}" for name in rewards} | {"chrf", "rougeL"} <= set(measured)
    assert "quasi_exact_match" not in measured


def test_the_reward_is_the_weighted_mean_of_its_parts():
    loss = RewardLoss.__new__(RewardLoss)
    loss.rewards = {"a": lambda rows, texts: [1.0, 0.0, math.nan], "b": lambda rows, texts: [0.0, 1.0, 1.0]}
    loss.weights = {"a": 3.0, "b": 1.0}
    values = loss.reward([None] * 3, [""] * 3)
    assert values[:2] == [0.75, 0.25]
    assert math.isnan(values[2])
    assert loss._parts == {"a": 0.5, "b": pytest.approx(2 / 3)}


@pytest.mark.parametrize(
    ("decoder", "valid", "invalid"),
    [
        (Generate(json_schema='{"type": "object", "required": ["a"]}'), '{"a": 1}', '{"b": 1}'),
        (Generate(json_schema='{"type": "object"}'), "{}", "{"),
        pytest.param(Generate(json_schema='{"type": "array"}'), "[]", "[" * 100_000, id="deep"),
        (Generate(regex="[0-9]+"), "12", "12 apples"),
        (Generate(choices=("yes", "no")), "no", "nothing"),
        (Generate(), "anything", ""),
    ],
)
def test_an_answer_is_valid_that_the_constraint_would_have_allowed(decoder, valid, invalid):
    assert decoder.is_valid(valid)
    assert not decoder.is_valid(invalid)


def test_rewards_that_cannot_be_given_are_refused(asked):
    data, zero = asked
    assert "`reward-model`" in RL(rewards={"reward-model": 1.0}).applies(zero, data).reason
    assert "judge_model" in RL(rewards={"judge": 1.0}).applies(zero, data).reason
    assert "judge_model" in RL(judge_model="embedded").applies(zero, data).reason
    assert "names none" in RL(rewards={}).applies(zero, data).reason
    with pytest.raises(ConfigError):
        RL(rewards={"metric": -1.0})


def test_a_reward_model_rewards(asked, monkeypatch):
    """What it rates higher becomes likelier; the rates are between 0 and 1."""
    data, zero = asked
    some = [Preference(row, replace(row, outputs=("b",))) for row in data.train]
    rated = RewardModel(rank=4, epochs=1).fit(zero, replace(data, preferences=tuple(some)))
    rung = RL(**QUICK | {"epochs": 1}, patience=None, rewards={"reward-model": 1.0})
    asked_of = []

    def rated_so(self, artifact, prompts, texts):
        asked_of.extend(zip(prompts, texts, strict=True))
        return [[0.0] for _ in texts]

    assert rung.applies(rated, data).applies
    monkeypatch.setattr(BestOf, "rated", rated_so)
    generate = TorchEngine.generate
    monkeypatch.setattr(
        TorchEngine, "generate",
        lambda self, requests, **o: [replace(g, finish_reason="stop") for g in generate(self, requests, **o)],
    )  # fmt: skip
    record = rung.fit(rated, data).settings["rl"]
    assert record["measures"][0]["reward"] == 0.5
    assert record["measures"][0]["equal_groups"] == 1.0
    assert "question" in str(asked_of[0][0])
