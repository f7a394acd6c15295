import copy
import json
import random
import shutil
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from rung.artifact import Artifact
from rung.engines.base import GenerateRequest, Sampling
from rung.engines.opening import open_torch
from rung.errors import ArtifactError, TrainingError
from rung.rungs import LoRA
from rung.tuning.examples import TokenizedExample, epoch_batches, tokenize
from rung.tuning.loop import Schedule, answer_loss, packed_layers, train


@pytest.fixture(scope="module")
def tiny():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def rows(shared, count=5, seed=0):
    rng = random.Random(seed)

    def some(low, high):
        return tuple(rng.randrange(97) for _ in range(rng.randint(low, high)))

    head = some(shared, shared)
    return [TokenizedExample(head + some(1, 9), some(1, 5), f"row {i}") for i in range(count)]


def plain_loss(model, part):
    """The loss of transformers itself, row by row, prompts masked."""
    total = 0.0
    for row in part:
        ids = torch.tensor([[*row.prompt, *row.answer]])
        labels = ids.clone()
        labels[0, : len(row.prompt)] = -100
        total = total + model(input_ids=ids, labels=labels).loss * len(row.answer)
    return total


def layered_loss(model, part):
    with packed_layers(model):
        return answer_loss(model, part)


@pytest.mark.parametrize("shared", [0, 7])
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("packed", [answer_loss, layered_loss])
def test_loss_and_gradient_equal_the_plain_path(tiny, shared, count, packed):
    part, found = rows(shared, count), []
    for way in (packed, plain_loss):
        tiny.zero_grad()
        loss = way(tiny, part)
        loss.backward()
        found.append((loss.item(), torch.cat([p.grad.flatten() for p in tiny.parameters()])))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-4, rtol=1e-4)


def test_every_row_is_seen_once_an_epoch():
    part = rows(3, count=41)
    batches = list(epoch_batches(part, 8, random.Random(0)))
    assert sorted(i for batch in batches for i in batch) == list(range(41))
    assert batches != list(epoch_batches(part, 8, random.Random(1)))


def test_the_same_seed_trains_the_same(tiny):
    schedule = Schedule(epochs=2, batch_size=4, learning_rate=1e-3, seed=5)
    first, second = (train(copy.deepcopy(tiny), rows(4, 16), schedule) for _ in range(2))
    assert first == second
    assert first[-1][1] < first[0][1]


def test_divergence_is_an_error(tiny):
    with pytest.raises(TrainingError) as caught:
        train(copy.deepcopy(tiny), rows(4, 16), Schedule(epochs=30, batch_size=4, learning_rate=1e30))
    assert caught.value.code == "loss-not-finite"


def test_the_rate_rises_and_falls():
    schedule = Schedule(epochs=1, batch_size=1, learning_rate=1.0, warmup=0.1)
    rates = [schedule.rate(step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] < 0.01
    assert rates[10:] == sorted(rates[10:], reverse=True)


@pytest.fixture(scope="module")
def tuned(zero, data):
    engine = open_torch("embedded")
    before = {name: p.clone() for name, p in engine.use(None).named_parameters()}
    return LoRA(rank=4, epochs=6, learning_rate=2e-3).fit(zero, data), before


def test_lora_learns_and_leaves_the_base_as_it_was(tuned, zero, data):
    artifact, before = tuned
    scores = [
        sum(a.text == e.outputs[0] for a, e in zip(one.answer(data.test, full=False), data.test, strict=True))
        for one in (zero, artifact)
    ]
    assert scores[1] >= scores[0] + 8
    now = {
        name.replace("base_model.model.", "").replace(".base_layer", ""): p
        for name, p in open_torch("embedded").model.named_parameters()
    }
    assert all(torch.equal(now[name.replace("base_model.model.", "").replace(".base_layer", "")], p)
               for name, p in before.items() if "lora" not in name)  # fmt: skip


def test_a_tuned_artifact_loads_and_answers_the_same(tuned, data, tmp_path):
    artifact, _ = tuned
    loaded = Artifact.load(artifact.save(tmp_path / "a"))
    assert [a.text for a in loaded.answer(data.test)] == [a.text for a in artifact.answer(data.test)]
    assert loaded.weights.trainable_parameters == artifact.weights.trainable_parameters > 0


def test_an_adapter_of_another_model_or_format_is_refused(tuned, tmp_path):
    artifact, _ = tuned
    folder = tmp_path / "adapter"
    shutil.copytree(artifact.weights.adapter, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "rung_base_fingerprint": "0" * 64}))
    with pytest.raises(ArtifactError) as caught:
        open_torch("embedded").use(str(folder))
    assert caught.value.code == "model-mismatch"
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(ArtifactError) as caught:
        open_torch("embedded").use(str(folder))
    assert caught.value.code == "not-an-adapter"


def test_answers_end_with_the_token_that_ends_a_turn(zero, data):
    engine = open_torch("embedded")
    row = tokenize(zero, engine, data.train[:1])[0]
    answer = engine.tokenizer.decode(row.answer, skip_special=False)
    assert answer == zero.spoken(data.train[0].outputs[0]) + "<|im_end|>"
    assert engine.tokenizer.decode(row.prompt, skip_special=False).endswith("<|im_start|>assistant\n")


def test_a_model_answers_after_its_trained_adapter_is_dropped(tiny):
    from rung.tuning.adapters import add_adapter, drop_adapter, peft

    model, ids = copy.deepcopy(tiny), torch.tensor([[1, 2, 3]])
    before = model(ids).logits
    config = peft().LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    both = add_adapter(add_adapter(model, config, "one"), config, "two")
    one = drop_adapter(both, "two")
    assert one.active_adapter == "one"
    torch.testing.assert_close(one(ids).logits, before)  # a fresh update is zero
    plain = drop_adapter(one, "one")
    assert not hasattr(plain, "peft_config")
    assert torch.equal(plain(ids).logits, before)


def test_lean_layers_have_the_loss_and_gradient_of_peft(tiny):
    from rung.engines.low_rank import lean
    from rung.tuning.adapters import add_adapter, peft

    torch.manual_seed(1)
    config = peft().LoraConfig(
        r=4, lora_alpha=12, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False
    )
    model = add_adapter(copy.deepcopy(tiny), config, "tuned")
    part, found = rows(3), []
    for leaner in (False, True):
        model.zero_grad()
        with lean(model, "tuned") if leaner else nullcontext():
            loss = answer_loss(model, part)
        loss.backward()
        found.append((loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}))
    (plain, plain_grads), (fast, fast_grads) = found
    assert fast == pytest.approx(plain, rel=1e-6)
    assert len(fast_grads) == 2 * 2 * 7
    for name, grad in plain_grads.items():
        torch.testing.assert_close(fast_grads[name], grad, atol=1e-5, rtol=1e-4)
    assert not any("forward" in vars(module) for module in model.modules())


def test_layers_that_are_not_plain_lora_stay_with_peft(tiny):
    from rung.engines.low_rank import lean
    from rung.tuning.adapters import add_adapter, peft

    for settings in ({"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True}):
        config = peft().LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", **settings)
        model = add_adapter(copy.deepcopy(tiny), config, "tuned")
        with lean(model, "tuned"):
            assert not any("forward" in vars(module) for module in model.modules())


def test_a_half_read_stream_changes_no_other_answer(tuned):
    artifact, _ = tuned
    engine, prompt = open_torch("embedded"), ({"role": "user", "content": "I lost my card"},)
    plain = GenerateRequest(prompt, Sampling(max_tokens=4))
    alone = engine.generate([plain])[0].text
    streamed = engine.stream(replace(plain, adapter=artifact.weights.reference, sampling=Sampling(max_tokens=9)))
    next(streamed)
    assert engine.generate([plain])[0].text == alone
    streamed.close()
    assert engine.generate([plain])[0].text == alone
