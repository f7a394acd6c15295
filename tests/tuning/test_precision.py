import copy

import pytest
import torch
from toys import llama, rows

from rung.engines.opening import open_torch
from rung.rungs import LoRA
from rung.tuning import loop
from rung.tuning.loop import Schedule, train
from rung.tuning.patch import Patch
from rung.tuning.precision import no_float16, tensor_float

SCHEDULE = Schedule(epochs=1, batch_size=4, learning_rate=1e-3)


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


def test_products_of_float32_run_as_tf32_on_cuda_alone():
    assert torch.get_float32_matmul_precision() == "highest"
    with tensor_float("cpu"):
        assert torch.get_float32_matmul_precision() == "highest"
    with tensor_float("cuda"):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == "highest"


def test_every_step_of_training_asks_for_them(monkeypatch):
    asked, real = [], tensor_float
    monkeypatch.setattr(loop, "tensor_float", lambda device: (asked.append(device), real(device))[1])
    model = copy.deepcopy(llama())
    train(model, Patch(model, "lm_head.weight".__eq__, trained=True), rows(), SCHEDULE)
    assert asked == ["cpu"] * 3
