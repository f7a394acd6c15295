import copy

import pytest
import torch
from toys import llama, rows

from rung.engines.changes import attach
from rung.errors import ArtifactError
from rung.training.changes import OUTPUT, Patch, enabled, output_names, plain_parameters
from rung.training.checkpoints import Checkpoints
from rung.training.config import TrainConfig
from rung.training.loop import train
from rung.training.peft import PeftAdapter, peft

SCHEDULE = TrainConfig(epochs=2, batch_size=4, learning_rate=1e-3, weight_decay=0.1, precision="float32")
IDS = torch.tensor([[1, 2, 3, 4, 5, 6]])


@pytest.fixture(scope="module")
def tied():
    return llama(3)


@pytest.fixture(scope="module")
def untied():
    return llama(3, tied=False)


def everything(model):
    return Patch(model, plain_parameters(model).__contains__, trained=True)


def top(model):
    return Patch(model, lambda name: name.startswith(("model.layers.2.", "model.norm.")), trained=True)


def output(model):
    return Patch(model, output_names(model).__contains__, trained=True)


def tensors(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def values(change):
    return {name: p.detach().clone() for name, p in change.parameters().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


WAYS = pytest.mark.parametrize("way", [everything, top, output])


@WAYS
@pytest.mark.parametrize("which", ["tied", "untied"])
def test_training_moves_what_was_chosen_and_nothing_else(way, which, request, tmp_path):
    model = copy.deepcopy(request.getfixturevalue(which))
    before, logits = tensors(model), model(IDS).logits
    change = way(model)
    start = values(change)
    chosen = {everything: set(before), top: {n for n in before if n.startswith(("model.layers.2.", "model.norm."))},
              output: {OUTPUT}}[way]  # fmt: skip
    assert set(start) == chosen
    train(model, change, rows(), SCHEDULE)
    assert same(tensors(model), before)
    assert torch.equal(model(IDS).logits, logits)
    assert not any(torch.equal(p, start[name]) for name, p in change.parameters().items())
    with enabled(change):
        tuned = model(IDS).logits
    assert not torch.allclose(tuned, logits)
    assert torch.equal(model(IDS).logits, logits)

    change.write(tmp_path, "f" * 64)
    change.remove()
    assert torch.equal(model(IDS).logits, logits)
    assert [type(m) for m in model.modules()] == [type(m) for m in request.getfixturevalue(which).modules()]
    again = attach(model, tmp_path, fingerprint="f" * 64)
    assert same(values(again), values(change))
    with enabled(again):
        assert torch.equal(model(IDS).logits, tuned)
    with pytest.raises(ArtifactError) as caught:
        attach(model, tmp_path, fingerprint="e" * 64)
    assert caught.value.code == "model-mismatch"


@WAYS
def test_it_trains_as_the_plain_model_does(tied, way):
    """The oracle: torch's own AdamW on a copy's own parameters, the loss of transformers."""
    model, part = copy.deepcopy(tied), rows(count=3)
    change = way(model)
    schedule = TrainConfig(epochs=1, batch_size=3, learning_rate=1e-2, max_grad_norm=1e9, precision="float32")
    train(model, change, part, schedule)
    plain = copy.deepcopy(tied)
    if way is output:
        plain.lm_head.weight = torch.nn.Parameter(plain.lm_head.weight.clone())
    moving = {name: p for name, p in plain.named_parameters() if name in change.parameters()}
    for p in moving.values():
        p.requires_grad_(True)
    total = 0
    for row in part:
        ids = torch.tensor([row.tokens])
        labels = ids.clone()
        labels[0, : len(row.prompt)] = -100
        total = total + plain(input_ids=ids, labels=labels).loss * row.supervised
    (total / sum(row.supervised for row in part)).backward()
    # A first step of AdamW has the size of the learning rate in the gradient's direction: small gradients say little.
    torch.optim.AdamW(moving.values(), lr=1e-2, weight_decay=0.0, eps=1e-8).step()
    for name, p in moving.items():
        sure = p.grad.abs() > 1e-5
        assert sure.float().mean() > 0.5, name
        torch.testing.assert_close(change.parameters()[name][sure], p[sure], atol=2e-5, rtol=1e-3)


def test_a_tied_output_layer_gets_a_tensor_of_its_own_while_it_is_on(tied):
    model = copy.deepcopy(tied)
    head, embed = model.lm_head, model.model.embed_tokens
    assert head.weight is embed.weight
    change = output(model)
    with enabled(change):
        assert head.weight is change.parameters()[OUTPUT]
        assert head.weight is not embed.weight
        assert torch.equal(head.weight, embed.weight)
    assert head.weight is embed.weight
    whole = everything(model)
    assert OUTPUT not in whole.parameters()
    with enabled(whole):
        assert head.weight is embed.weight is whole.parameters()["model.embed_tokens.weight"]
    assert head.weight is embed.weight is plain_parameters(model)["model.embed_tokens.weight"]


def test_input_and_output_layer_can_both_be_replaced(tied):
    model = copy.deepcopy(tied)
    change = Patch(model, {OUTPUT, "model.embed_tokens.weight"}.__contains__)
    with enabled(change):
        assert model.lm_head.weight is change.parameters()[OUTPUT]
        assert model.model.embed_tokens.weight is change.parameters()["model.embed_tokens.weight"]


@WAYS
@pytest.mark.parametrize("stop", [1, 4])
def test_a_run_that_goes_on_is_bit_for_bit_the_uninterrupted_one(tied, tmp_path, way, stop):
    def run(checkpoints=None, stop_after=None):
        model = copy.deepcopy(tied)
        change = way(model)
        return train(model, change, rows(), SCHEDULE, checkpoints=checkpoints, stop_after=stop_after), values(change)

    whole, wanted = run()
    checkpoints = Checkpoints(tmp_path)
    run(checkpoints, stop_after=stop)
    rest, found = run(checkpoints)
    assert rest.losses == whole.losses
    assert same(found, wanted)


def test_adapters_and_patches_take_turns(tied):
    model = copy.deepcopy(tied)
    first = top(model)
    config = peft().LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    lora = PeftAdapter(model, config)
    others = [everything(model), output(model)]
    with torch.no_grad():
        for scale, patch in enumerate((first, *others), 2):
            for p in patch.parameters().values():
                p.mul_(1 + scale / 10)
    alone = {}
    for change, make in ((first, top), (others[0], everything), (others[1], output)):
        fresh = make(copy.deepcopy(tied))  # the same on a model that never had an adapter
        clean = copy.deepcopy(tied)
        fresh = make(clean)
        with torch.no_grad():
            for name, p in fresh.parameters().items():
                p.copy_(change.parameters()[name])
        with enabled(fresh):
            alone[id(change)] = clean(IDS).logits
    base = tied(IDS).logits
    with enabled(lora):
        alone[id(lora)] = model(IDS).logits
    for change in (first, lora, *others, lora, first):
        with enabled(change):
            assert torch.equal(model(IDS).logits, alone[id(change)])
        assert torch.equal(model(IDS).logits, base)
    train(model, first, rows(), SCHEDULE)  # trained while an adapter stands beside it
    assert torch.equal(model(IDS).logits, base)
    lora.remove()
    for change in others:
        with enabled(change):
            assert torch.equal(model(IDS).logits, alone[id(change)])
    assert torch.equal(model(IDS).logits, base)


def test_an_output_layer_inside_an_adapters_layer_is_found(untied):
    model = copy.deepcopy(untied)
    config = peft().LoraConfig(r=4, target_modules=["lm_head"], task_type="CAUSAL_LM")
    lora = PeftAdapter(model, config)
    change = output(model)
    with torch.no_grad():
        change.parameters()[OUTPUT].mul_(2)
    with enabled(change):
        torch.testing.assert_close(model(IDS).logits, 2 * untied(IDS).logits)
    lora.remove()
    assert torch.equal(model(IDS).logits, untied(IDS).logits)


@WAYS
def test_a_bfloat16_model_is_trained_in_float32_and_written_as_it_ran(tied, tmp_path, way):
    """Steps of 1e-6 vanish in bfloat16, each alone; in float32 they add up."""
    model = copy.deepcopy(tied).to(torch.bfloat16)
    change = way(model)
    start = values(change)
    assert all(p.dtype == torch.float32 for p in start.values())
    seen = []
    schedule = TrainConfig(epochs=40, batch_size=4, learning_rate=1e-6, lr_scheduler="constant")
    hook = model.lm_head.register_forward_pre_hook(lambda module, _: seen.append(module.weight.detach().clone()))
    train(model, change, rows(), schedule)
    hook.remove()
    moved = torch.cat([(p - start[name]).abs().flatten() for name, p in change.parameters().items()])
    assert moved.max() > 5e-5
    if way is not top:
        assert not torch.equal(seen[0], seen[-1])  # the model sees the steps
    with enabled(change):
        logits = model(IDS).logits
    change.write(tmp_path, "f" * 64)
    change.remove()
    again = attach(model, tmp_path, fingerprint="f" * 64)
    assert all(p.dtype == torch.bfloat16 for p in again.parameters().values())
    assert same(values(again), change.merged())
    with enabled(again):
        assert torch.equal(model(IDS).logits, logits)


def test_a_patch_of_another_model_is_refused(tied, untied, tmp_path):
    everything(copy.deepcopy(untied)).write(tmp_path, "f" * 64)
    attach(copy.deepcopy(untied), tmp_path, fingerprint="f" * 64)
    model = llama(3)
    model.resize_token_embeddings(50)
    with pytest.raises(ArtifactError) as caught:
        attach(model, tmp_path, fingerprint="f" * 64)
    assert caught.value.code == "adapter-mismatch"
    (tmp_path / "patch.json").write_text('{"tensors": ["model.layers.9.mlp.up_proj.weight"]}')
    with pytest.raises(ArtifactError) as caught:
        attach(copy.deepcopy(tied), tmp_path, fingerprint="f" * 64)
    assert caught.value.code == "adapter-mismatch"
    (tmp_path / "patch.json").write_text("{}")
    with pytest.raises(ArtifactError) as caught:
        attach(copy.deepcopy(tied), tmp_path, fingerprint="f" * 64)
    assert caught.value.code == "adapter-mismatch"
