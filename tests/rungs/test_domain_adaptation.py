"""Domain adaptation on a tiny model, and LoRA that goes on from it."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from rung.artifact.artifact import Artifact
from rung.engines.changes import attach
from rung.engines.opening import open_torch
from rung.errors import ConfigError, TrainingError
from rung.machine import this_machine
from rung.rungs import DomainAdaptation, LoRA, default_names
from rung.task import Task
from rung.training.config import TrainConfig
from rung.training.examples import text_blocks, tokenize
from rung.training.loop import train

TEXT = "ab abba ba bab c c " * 40
ROWS = "text,label\n" + "".join(f"ab {'ab ' * (i % 9)}ba{'c' * (i // 9)},{'ab' if i % 2 else 'c'}\n" for i in range(60))


@pytest.fixture(scope="module")
def model(tiny_tokenizer, tiny_model, tmp_path_factory):
    """A folder with a model of two layers."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model(tiny_tokenizer.vocabulary_size).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny_tokenizer.folder / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def task(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("task")
    (folder / "train.csv").write_text(ROWS)
    (folder / "corpus.txt").write_text(TEXT)
    values = {
        "name": "t", "instruction": "ab", "inputs": ["text"], "model": str(model),
        "output": {"column": "label", "kind": "category"}, "data": {"train": "train.csv", "text": "corpus.txt"},
    }  # fmt: skip
    (folder / "task.yaml").write_text(json.dumps(values))
    return Task.load(folder / "task.yaml")


@pytest.fixture(scope="module")
def data(task):
    return task.read()


@pytest.fixture(scope="module")
def zero(task, data):
    return Artifact.zero_shot(task, data.labels, engine="torch")


@pytest.fixture(scope="module")
def adapted(zero, data):
    return DomainAdaptation(rank=2, epochs=3, block_tokens=32, batch_size=4, learning_rate=1e-2).fit(zero, data)


def text_loss(artifact, data):
    engine = open_torch(artifact.model)
    part = text_blocks(engine, data.text, 32)
    loss = 0.0
    for row in part:
        ids = torch.tensor([row.tokens])
        with torch.no_grad():
            loss += engine.use(artifact.weights.reference)(input_ids=ids, labels=ids).loss.item() / len(part)
    return loss


def test_the_text_is_learnt_and_reported(zero, adapted, data):
    assert text_loss(adapted, data) < text_loss(zero, data) - 0.5
    tokens = len(open_torch(zero.model).encode(TEXT)) + 1
    report = adapted.settings["domain-adaptation"]["training_data"]
    assert (report["rows"], report["kept"], report["examples"]) == (1, 1, -(-tokens // 31))
    assert report["tokens"] == tokens + report["examples"]
    assert report["supervised"]["max"] == 31
    assert report["example"].startswith("</s>>>>ab abba ba bab c c ")
    assert adapted.settings["domain-adaptation"]["training_tokens"] == 3 * report["tokens"]
    assert adapted.name == "domain-adaptation"


def test_it_applies_where_there_is_text(zero, adapted, data):
    rung = DomainAdaptation()
    assert rung.name in default_names()
    assert rung.applies(zero, data).applies
    assert rung.applies(zero, replace(data, text=())).reason == "the task names no plain text: set `data.text`"
    assert not rung.applies(adapted, data).applies


def test_its_cost_is_that_of_the_text(zero, data):
    rung, tokens = DomainAdaptation(epochs=2), len(open_torch(zero.model).encode(TEXT))
    cost = rung.estimate(zero, data, this_machine())
    assert cost.fit_tokens == pytest.approx(2 * tokens, rel=0.01)
    assert rung.estimate(zero, replace(data, text=data.text * 3), this_machine()).fit_flops == pytest.approx(
        3 * cost.fit_flops
    )


def test_blocks_have_at_least_two_tokens():
    with pytest.raises(ConfigError) as caught:
        DomainAdaptation(block_tokens=1)
    assert caught.value.code == "bad-setting"


def test_lora_goes_on_from_an_adapter_of_its_shape_alone(adapted, data):
    assert LoRA(rank=2).applies(adapted, data).applies
    for other in (LoRA(rank=4), LoRA(rank=2, alpha=8), LoRA(rank=2, continue_from="elsewhere")):
        assert other.applies(adapted, data).reason == "its weights are tuned already"


def test_lora_starts_at_the_adapted_tensors_and_moves_them(adapted, data, tmp_path):
    still = LoRA(rank=2, epochs=1, learning_rate=0.0).fit(adapted, data)
    before, after = (load_file(one.weights.adapter / "adapter_model.safetensors") for one in (adapted, still))
    assert all(torch.equal(before[name], after[name]) for name in before.keys() | after.keys())
    rung = LoRA(rank=2, epochs=1, learning_rate=1e-2)
    moved = rung.fit(adapted, data)
    now = load_file(moved.weights.adapter / "adapter_model.safetensors")
    assert not any(torch.equal(before[name], now[name]) for name in before)
    assert moved.name == "domain-adaptation+lora"
    assert moved.weights.method == "lora"
    assert not LoRA(rank=2).applies(moved, data).applies

    # The same by hand: the adapter's folder put on the model and trained on.
    engine = open_torch(adapted.model)
    engine.use(None)
    change = attach(engine.model, adapted.weights.adapter, fingerprint=engine.files.fingerprint)
    rows = tokenize(adapted, engine, data.train)
    train(engine.model, change, rows, TrainConfig(epochs=1, batch_size=8, learning_rate=1e-2))
    change.write(tmp_path, "f")
    change.remove()
    wanted = load_file(tmp_path / "adapter_model.safetensors")
    for name, tensor in now.items():
        torch.testing.assert_close(tensor, wanted[name], atol=1e-5, rtol=1e-4)


def test_an_artifact_read_back_goes_on_too(adapted, data, tmp_path):
    loaded = Artifact.load(adapted.save(tmp_path / "a"))
    rung = LoRA(rank=2, epochs=1, learning_rate=1e-2)
    assert rung.applies(loaded, data).applies
    one, other = (rung.fit(artifact, data).weights.adapter for artifact in (adapted, loaded))
    assert one == other  # adapters are kept by the hash of their contents


def test_what_a_rung_was_told_of_overlong_rows_is_done_and_kept(zero, data):
    long = replace(data.train[0], inputs={"text": "ab c " * 200}, id="long", source="train.csv:99")
    more = replace(data, train=(*data.train, long))
    settings = {"rank": 2, "epochs": 1}
    with pytest.raises(TrainingError) as caught:
        LoRA(**settings).fit(zero, more)
    assert caught.value.code == "context-overflow"
    report = LoRA(**settings, truncation="drop").fit(zero, more).settings["lora"]["training_data"]
    assert report["dropped_at"] == {"longer than the context": ["train.csv:99"]}
    assert report["kept"] == len(data.train) == report["examples"]
    report = LoRA(**settings, truncation="truncate_input").fit(zero, more).settings["lora"]["training_data"]
    assert (report["truncated_at"], report["kept"]) == (["train.csv:99"], len(data.train) + 1)
    with pytest.raises(TrainingError) as caught:
        LoRA(**settings, truncation="drop").fit(zero, replace(data, train=(long,)))
    assert caught.value.code == "too-few-rows"
