import copy
import os
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
import toys
from toys import plain_loss, rows, turns, weighed

from rung.models.reference import last_layers, layer_list
from rung.training import activation_cache as trunk
from rung.training.activation_cache import cached_loss
from rung.training.changes import Patch, enabled, output_names, plain_parameters
from rung.training.checkpoints import Checkpoints
from rung.training.config import TrainConfig
from rung.training.loop import train
from rung.training.loss import AnswerLoss, packed_layers
from rung.training.precision import matmul_dtype

SCHEDULE = TrainConfig(epochs=3, batch_size=4, learning_rate=1e-3, weight_decay=0.1, precision="float32")
SIZES = toys.SIZES | {"num_hidden_layers": 4, "pad_token_id": 0}


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True))


def qwen2():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=5, max_window_layers=2))


def qwen3():
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8))


def gemma2():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    return Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, sliding_window=5, query_pre_attn_scalar=8))


def gemma3():
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    layers = ["sliding_attention", "full_attention"] * 2
    return Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=5, layer_types=layers))


def build(make):
    torch.manual_seed(0)
    model = make()
    model.set_attn_implementation("sdpa")
    return model.eval().requires_grad_(False)


def mistral():
    from transformers import MistralConfig, MistralForCausalLM

    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=5))


@pytest.fixture(scope="module", params=[llama, qwen2, qwen3, gemma2, gemma3, mistral], ids=lambda make: make.__name__)
def model(request):
    return build(request.param)


@pytest.fixture(scope="module")
def tiny():
    return build(llama)


def patch(model, frozen, *, output=False):
    """A patch of all above `frozen` layers, or of the output layer alone (None)."""
    chosen = output_names(model) if frozen is None or output else frozenset()
    if frozen is not None:
        chosen |= last_layers({name: p.numel() for name, p in plain_parameters(model).items()}, 4 - frozen)
    return Patch(model, chosen.__contains__, trained=True)


def gradients(model, change, loss, part, *, layered=True):
    with enabled(change), packed_layers(model) if layered else nullcontext():
        for p in change.parameters().values():
            p.requires_grad_(True)
            p.grad = None
        total = loss(part)
        total.backward()
    return total.item(), {name: p.grad.clone() for name, p in change.parameters().items()}


class Notes:
    """A progress that remembers."""

    def __init__(self):
        self.finished, self.units = [], 0

    def start(self, label, total=None):
        self.total = total

    def advance(self, units=1, note=""):
        self.units += units

    def finish(self, note=""):
        self.finished.append(note)


@pytest.mark.parametrize("frozen", [1, 3, None])
@pytest.mark.parametrize("data", [rows(), weighed(rows(0)), turns()], ids=["shared", "unshared, weighed", "turns"])
def test_loss_and_gradient_are_those_of_the_whole_model(model, frozen, data):
    progress = Notes()
    loss = cached_loss(model, frozen, data, SCHEDULE, progress=progress)
    assert loss is not None
    assert (progress.finished, progress.units) == ([""], len(data))
    change = patch(model, frozen, output=frozen == 1)
    with torch.no_grad():  # not at the start any more
        for p in change.parameters().values():
            p.add_(torch.randn_like(p) * 0.02)
    for part, layered in ((data[2:5], True), (data[1:2], True), (data[2:5], False)):
        value, grads = gradients(model, change, loss, part, layered=layered)
        ours, same = gradients(model, change, AnswerLoss(model), part, layered=layered)
        theirs, whole = gradients(model, change, lambda some: plain_loss(model, some), part, layered=False)
        assert ours == pytest.approx(theirs, rel=1e-5)
        assert value == pytest.approx(theirs, rel=1e-5)
        for name, grad in whole.items():
            torch.testing.assert_close(same[name], grad, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(grads[name], grad, atol=1e-5, rtol=1e-4)
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("frozen", [2, None])
def test_training_is_that_of_the_whole_model(tiny, frozen):
    found = []
    for kept in (True, False):
        model = copy.deepcopy(tiny)
        loss = cached_loss(model, frozen, rows(), SCHEDULE) if kept else None
        change = patch(model, frozen)
        found.append((train(model, change, rows(), SCHEDULE, loss=loss), change.parameters()))
    (ours, mine), (theirs, whole) = found
    assert [v for _, v in ours.losses] == pytest.approx([v for _, v in theirs.losses], abs=1e-5)
    assert ours.norms == pytest.approx(theirs.norms, abs=1e-4)
    for name in whole:
        torch.testing.assert_close(mine[name], whole[name], atol=1e-4, rtol=1e-3)


def test_layers_that_are_run_again_for_the_backward_pass_give_the_same_gradient(tiny):
    model, part = copy.deepcopy(tiny), rows()
    loss, change = cached_loss(model, 2, part, SCHEDULE), patch(model, 2)
    model.train()
    wanted, plain = gradients(model, change, loss, part)
    ran = []
    model.model.layers[3].mlp.register_forward_pre_hook(lambda *_: ran.append(1))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    value, grads = gradients(model, change, loss, part)
    assert len(ran) == 2
    assert value == wanted
    assert all(torch.equal(grads[name], grad) for name, grad in plain.items())


@pytest.mark.parametrize("frozen", [2, None])
def test_a_mapped_file_holds_what_memory_would(tiny, frozen, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    part, folders, states = rows(), [], []
    map_file, allocate = torch.from_file, trunk._allocate
    monkeypatch.setattr(torch, "from_file", lambda *a, **k: folders.append(os.listdir(tmp_path)) or map_file(*a, **k))
    monkeypatch.setattr(trunk, "_allocate", lambda *a: states.append(allocate(*a)) or states[-1])
    losses = [cached_loss(tiny, frozen, part, SCHEDULE, free=free) for free in (None, 0)]
    assert len(folders) == 1
    assert len(folders[0]) == 1
    assert os.listdir(tmp_path) == []  # nothing is left, whatever ends the process
    assert len(states) == 2
    assert torch.equal(*states)
    change = patch(tiny, frozen)
    (value, grads), (mapped_value, others) = (gradients(tiny, change, loss, part) for loss in losses)
    assert value == mapped_value
    assert all(torch.equal(grads[name], others[name]) for name in grads)


def test_a_full_disk_means_the_whole_model(tiny, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    progress = Notes()
    assert cached_loss(tiny, 2, rows(), SCHEDULE, free=0, progress=progress) is None
    assert progress.finished == [
        "the whole model runs at every step: there is no room to keep what they return "
        "([Errno 28] No space left on device)"
    ]


@pytest.mark.parametrize("frozen", [2, None])
def test_a_run_that_goes_on_is_bit_for_bit_the_uninterrupted_one(tiny, tmp_path, frozen):
    def run(checkpoints=None, stop_after=None):
        model = copy.deepcopy(tiny)
        loss, change = cached_loss(model, frozen, rows(), SCHEDULE), patch(model, frozen)
        course = train(model, change, rows(), SCHEDULE, loss=loss, checkpoints=checkpoints, stop_after=stop_after)
        return course, change.parameters()

    whole, wanted = run()
    checkpoints = Checkpoints(tmp_path)
    run(checkpoints, stop_after=4)
    rest, found = run(checkpoints)
    assert rest.losses == whole.losses
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_what_is_random_or_not_frozen_is_not_kept(tiny):
    def why(model, frozen, schedule=SCHEDULE):
        progress = Notes()
        assert cached_loss(model, frozen, rows(), schedule, progress=progress) is None
        return progress.finished[0]

    assert "noise" in why(tiny, 2, replace(SCHEDULE, neftune_alpha=5.0))
    assert "no layer is frozen" in why(tiny, 0)
    dropping = copy.deepcopy(tiny)
    dropping.config.attention_dropout = 0.1
    assert "dropout" in why(dropping, 2)


def test_layers_that_read_what_lower_ones_left_behind_are_found_out(tiny):
    model = copy.deepcopy(tiny)
    left = []
    model.model.layers[0].register_forward_hook(lambda m, inputs, output: left.append(output))
    model.model.layers[3].register_forward_hook(lambda m, inputs, output: output + left.pop())
    progress = Notes()
    assert cached_loss(model, 2, rows(), SCHEDULE, progress=progress) is None
    assert "layers cannot run alone" in progress.finished[0]
    assert not any("forward" in vars(module) for module in model.modules())


def test_an_architecture_with_other_names_has_its_last_layers():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 4, "n_head": 4, "vocab_size": 97, "n_positions": 64}
    gpt2 = GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)).eval().requires_grad_(False)
    names = {name: p.numel() for name, p in gpt2.named_parameters()}
    assert layer_list(names) == ("transformer.h", 4)
    assert last_layers(names, 1) == {
        name for name in names if name.startswith(("transformer.h.3.", "transformer.ln_f."))
    }
    change, part = patch(gpt2, 2), rows()
    loss = cached_loss(gpt2, 2, part, SCHEDULE)
    value, grads = gradients(gpt2, change, loss, part)
    wanted, whole = gradients(gpt2, change, lambda some: plain_loss(gpt2, some), part, layered=False)
    assert value == pytest.approx(wanted, rel=1e-5)
    for name, grad in whole.items():
        torch.testing.assert_close(grads[name], grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("frozen", [2, None])
@pytest.mark.parametrize("precision", ["auto", "float32"])
def test_frozen_layers_multiply_as_training_does(tiny, frozen, precision, monkeypatch):
    asked, real = [], trunk.matmul_precision
    monkeypatch.setattr(trunk, "matmul_precision", lambda kind: (asked.append(kind), real(kind))[1])
    assert cached_loss(tiny, frozen, rows(), replace(SCHEDULE, precision=precision)) is not None
    assert asked == [matmul_dtype("cpu", precision)]
