import copy
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from toys import llama, rows

from rung.engines import opening
from rung.engines.opening import open_torch
from rung.rungs import LoRA
from rung.training import loop
from rung.training.changes import Patch
from rung.training.config import TrainConfig
from rung.training.loop import train
from rung.training.precision import attention_in_float32, matmul_dtype, matmul_precision, no_float16

SCHEDULE = TrainConfig(epochs=1, batch_size=4, learning_rate=1e-3)


def test_float16_is_float32_inside_and_itself_behind():
    model = llama().half()
    before = {name: p.clone() for name, p in model.named_parameters()}
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    with no_float16(model):
        assert model.dtype == torch.float32
        assert all(torch.equal(p, before[name].float()) for name, p in model.named_parameters())
    assert model.dtype == torch.float16
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(torch.equal(b, buffers[name]) and b.dtype == buffers[name].dtype for name, b in model.named_buffers())


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_other_types_stay(kind):
    model = llama().to(kind)
    with no_float16(model):
        assert {p.dtype for p in model.parameters()} == {kind}


def test_a_float16_model_is_trained_in_float32(tiny_zero, data):
    opening._open_torch.cache_clear()  # an adapter of another test would rename the parameters
    engine = open_torch(tiny_zero.model)
    plain = engine.use(None)
    own = {name: p.detach().clone() for name, p in plain.named_parameters()}
    rung = LoRA(rank=2, epochs=1)

    def course(kind):
        """The losses on the model rounded to float16, held in `kind`."""
        for name, p in plain.named_parameters():
            p.data = own[name].half().to(kind)
        return rung.fit(tiny_zero, data).settings["lora"]["losses"]

    try:
        assert course(torch.float16) == course(torch.float32)
    finally:
        for name, p in plain.named_parameters():
            p.data = own[name]


def test_products_run_in_what_the_hardware_is_fastest_at(monkeypatch):
    for amx, kind in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        assert matmul_dtype("cpu") == kind
        assert (matmul_dtype("cuda"), matmul_dtype("mps")) == ("tf32", "float32")
        assert {matmul_dtype(device, "float32") for device in ("cpu", "cuda")} == {"float32"}


@pytest.mark.parametrize(("kind", "name"), [("bfloat16", "medium"), ("tf32", "high"), ("float32", "highest")])
def test_the_type_holds_for_the_block(kind, name):
    assert torch.get_float32_matmul_precision() == "highest"
    with matmul_precision(kind):
        assert torch.get_float32_matmul_precision() == name
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.skipif(matmul_dtype("cpu") == "float32", reason="this processor has no AMX")
def test_in_bfloat16_only_the_last_bits_differ():
    torch.manual_seed(0)
    left, right = torch.randn(256, 512), torch.randn(512, 256)
    exact = left @ right
    with matmul_precision("bfloat16"):
        found = left @ right
    rounded = left.bfloat16().float() @ right.bfloat16().float()
    assert not torch.equal(found, exact)
    assert torch.allclose(found, rounded, atol=1e-3)  # each factor rounded once, sums in float32


class Watched(torch.autograd.Function):
    """A sum that notes how matrices are multiplied when it runs and when its gradient does."""

    seen: ClassVar[list[str]] = []

    @staticmethod
    def forward(ctx, *tensors):
        Watched.seen.append(torch.get_float32_matmul_precision())
        return sum(tensors)

    @staticmethod
    def backward(ctx, gradient):
        Watched.seen.append(torch.get_float32_matmul_precision())
        return gradient, gradient


@pytest.mark.parametrize(("kind", "inside"), [("bfloat16", "highest"), ("tf32", "high"), ("float32", "highest")])
def test_small_products_stay_in_float32_forward_and_backward(kind, inside):
    Watched.seen.clear()
    one, two = (torch.arange(3.0).requires_grad_(True) for _ in range(2))
    with matmul_precision(kind):
        outside = torch.get_float32_matmul_precision()
        found = Watched.apply(attention_in_float32(Watched.apply, one, two), one)
        (3 * found).sum().backward()
        assert torch.get_float32_matmul_precision() == outside
    assert Watched.seen == [inside, outside, outside, inside]
    assert (one.grad.tolist(), two.grad.tolist()) == ([6.0] * 3, [3.0] * 3)


@pytest.mark.parametrize("precision", ["auto", "float32"])
def test_every_step_of_training_multiplies_so(monkeypatch, precision):
    asked, real = [], matmul_precision
    monkeypatch.setattr(loop, "matmul_precision", lambda kind: (asked.append(kind), real(kind))[1])
    model = copy.deepcopy(llama())
    schedule = replace(SCHEDULE, precision=precision)
    course = train(model, Patch(model, "lm_head.weight".__eq__, trained=True), rows(), schedule)
    assert asked == [matmul_dtype("cpu", precision)] * 3
    assert course.as_settings()["matmul_dtype"] == matmul_dtype("cpu", precision)


def test_a_rung_says_in_what_it_was_trained(tiny_zero, data):
    for precision in ("auto", "float32"):
        settings = LoRA(rank=2, epochs=1, precision=precision).fit(tiny_zero, data).settings["lora"]
        assert (settings["precision"], settings["matmul_dtype"]) == (precision, matmul_dtype("cpu", precision))
