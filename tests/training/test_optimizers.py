import copy
from importlib.metadata import PackageNotFoundError

import pytest
import torch
from toys import llama, rows

from rung.engines.opening import open_torch
from rung.errors import TrainingError
from rung.machine import this_machine
from rung.rungs import Full, LoRA
from rung.rungs.costs import sizes
from rung.training import optimizers
from rung.training.changes import Patch, plain_parameters
from rung.training.checkpoints import Checkpoints
from rung.training.config import TrainConfig
from rung.training.loop import train
from rung.training.memory import free_beside
from rung.training.optimizers import make_optimizer, missing_library

NEEDED = "an optimizer in 8 bits needs bitsandbytes>=0.50: uv pip install 'bitsandbytes>=0.50'"


@pytest.fixture(scope="module")
def model():
    return llama(hidden_size=64, intermediate_size=128)  # matrices of 4,096 elements and more, norms of 64


def parameters(*shapes):
    return [torch.nn.Parameter(torch.full(shape, 2.0)) for shape in shapes]


def test_matrices_decay_and_vectors_do_not():
    """A step with no gradient is decay alone: 1 - rate * decay."""
    matrix, vector = parameters((3, 4), (5,))
    optimizer = make_optimizer("adamw", (matrix, vector), learning_rate=0.1, weight_decay=0.5)
    assert [(group["params"], group["weight_decay"]) for group in optimizer.param_groups] == [
        ([matrix], 0.5),
        ([vector], 0),
    ]
    assert all(group["fused"] for group in optimizer.param_groups)
    for p in (matrix, vector):
        p.grad = torch.zeros_like(p)
    optimizer.step()
    torch.testing.assert_close(matrix.detach(), torch.full((3, 4), 1.9))
    assert torch.equal(vector.detach(), torch.full((5,), 2.0))


def test_there_is_no_group_without_parameters():
    assert len(make_optimizer("adamw", parameters((5,)), learning_rate=0.1, weight_decay=0.5).param_groups) == 1


def test_gradients_are_clipped_to_the_norm(model):
    copied = copy.deepcopy(model)
    patch, seen = Patch(copied, plain_parameters(copied).__contains__, trained=True), []
    patch.stepped = lambda step, steps: seen.append(torch.cat([p.grad.flatten() for p in patch.parameters().values()]))
    schedule = TrainConfig(epochs=1, batch_size=16, learning_rate=1e-3, max_grad_norm=0.01)
    course = train(copied, patch, rows(count=16), schedule)
    assert course.norms[0] > 0.1
    assert seen[0].norm().item() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("found", [None, "0.49.2"])
def test_8_bits_without_their_library_are_refused_with_what_to_install(monkeypatch, found, tiny_zero, data):
    def version(_name):
        if found is None:
            raise PackageNotFoundError
        return found

    monkeypatch.setattr(optimizers, "version", version)
    assert (missing_library("adamw"), missing_library("adamw-8bit")) == ("", NEEDED)
    verdict = LoRA(optimizer="adamw-8bit").applies(tiny_zero, data)
    assert (verdict.applies, verdict.reason) == (False, NEEDED)
    assert LoRA().applies(tiny_zero, data).applies
    with pytest.raises(TrainingError) as caught:
        make_optimizer("adamw-8bit", parameters((3, 4)), learning_rate=0.1, weight_decay=0.0)
    assert caught.value.code == "missing-extra"


def test_its_memory_is_foreseen(model, monkeypatch, tiny_zero, data):
    trained = parameters((1000, 10))
    monkeypatch.setattr("rung.training.memory.free_bytes", lambda _model: 10**6)
    assert free_beside(model, trained) == 10**6 - (4 + 8) * 10_000
    assert free_beside(model, trained, "adamw-8bit") == 10**6 - (4 + 2) * 10_000
    (table,) = optimizers.embeddings(model)
    beside = free_beside(model, [*trained, table], "adamw-8bit")
    assert beside == 10**6 - (4 + 2) * 10_000 - (4 + 8) * table.numel()  # embeddings keep theirs in 32 bits
    plain, small = (Full(optimizer=name).estimate(tiny_zero, data, this_machine()) for name in optimizers.STATE_BYTES)
    table = open_torch(tiny_zero.model).model.get_input_embeddings().weight
    assert plain.memory_bytes - small.memory_bytes == 6 * (sizes(tiny_zero, data).parameters - table.numel())


# ---- with bitsandbytes


def trained(model, name, **options):
    copied = copy.deepcopy(model)
    patch = Patch(copied, plain_parameters(copied).__contains__, trained=True)
    schedule = TrainConfig(epochs=2, batch_size=4, learning_rate=1e-3, weight_decay=0.1, optimizer=name)
    course = train(copied, patch, rows(count=16), schedule, **options)
    return course, {key: p.detach().clone() for key, p in patch.parameters().items()}


def test_8_bits_keep_large_moments_in_8_bits_and_train_as_32_do(model, tmp_path):
    pytest.importorskip("bitsandbytes")
    checkpoints = Checkpoints(tmp_path)
    course, _ = trained(model, "adamw-8bit", checkpoints=checkpoints, stop_after=8)
    state = checkpoints.last()[1].tensors
    elements = {key.split(".")[1]: tensor.numel() for key, tensor in state.items() if key.startswith("weight.")}
    for i, size in elements.items():
        kind = torch.uint8 if size >= 4096 else torch.float32
        assert state[f"optimizer.{i}.state1"].dtype == state[f"optimizer.{i}.state2"].dtype == kind
    assert max(elements.values()) >= 4096 > min(elements.values())
    wanted, _ = trained(model, "adamw")
    assert [v for _, v in course.losses] == pytest.approx([v for _, v in wanted.losses], rel=0.02)
    assert course.losses[-1][1] < course.losses[0][1]


@pytest.mark.parametrize("stop", [1, 5])
def test_8_bits_go_on_bit_for_bit(model, tmp_path, stop):
    pytest.importorskip("bitsandbytes")
    whole, wanted = trained(model, "adamw-8bit")
    checkpoints = Checkpoints(tmp_path)
    trained(model, "adamw-8bit", checkpoints=checkpoints, stop_after=stop)
    rest, found = trained(model, "adamw-8bit", checkpoints=checkpoints)
    assert rest.losses == whole.losses
    assert all(torch.equal(found[key], tensor) for key, tensor in wanted.items())


def test_moments_of_embeddings_stay_in_32_bits():
    pytest.importorskip("bitsandbytes")
    table, matrix = parameters((64, 64), (64, 64))
    optimizer = make_optimizer("adamw-8bit", (table, matrix), learning_rate=0.1, weight_decay=0.0, full_state=(table,))
    for parameter in (table, matrix):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    kinds = [optimizer.state[parameter]["state1"].dtype for parameter in (table, matrix)]
    assert kinds == [torch.float32, torch.uint8]
