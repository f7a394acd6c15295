import copy
import errno
import itertools
import json
import random
import re
import shutil
import subprocess
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch
from toys import llama, plain_loss, rows, turns, weighed

from rung.artifact.artifact import Artifact
from rung.engines.base import GenerateRequest, Sampling
from rung.engines.changes import attach
from rung.engines.opening import open_torch
from rung.errors import ArtifactError, EngineError, MachineError, TrainingError
from rung.rungs import LoRA
from rung.training import loss as loss_module
from rung.training.changes import start_from
from rung.training.checkpoints import Checkpoints, RunState
from rung.training.config import TrainConfig
from rung.training.examples import epoch_batches, tokenize
from rung.training.loop import train
from rung.training.loss import AnswerLoss, packed_layers
from rung.training.peft import _WRAPPERS, PeftAdapter, peft
from rung.training.targets import all_linear


@pytest.fixture(scope="module")
def tiny():
    return llama().requires_grad_(True)


def packed_loss(model, part):
    return AnswerLoss(model)(part)


def unshared_loss(model, part):
    with packed_layers(model):
        return AnswerLoss(model, share_prefix=False)(part)


def layered_loss(model, part):
    with packed_layers(model):
        return AnswerLoss(model)(part)


def chunked_loss(model, part):
    with packed_layers(model), pytest.MonkeyPatch.context() as patch:
        patch.setattr("rung.training.loss.CHUNK", 3)
        return AnswerLoss(model)(part)


def whole_loss(model, part):
    loss_module._SPLIT_LOGITS[model] = False
    try:
        return AnswerLoss(model)(part)
    finally:
        del loss_module._SPLIT_LOGITS[model]


@pytest.mark.parametrize("part", [rows(0, 1), rows(0, 5), rows(7, 1), weighed(rows(7, 5)), turns()], ids=len)
@pytest.mark.parametrize("way", [packed_loss, layered_loss, unshared_loss, chunked_loss, whole_loss])
def test_loss_and_gradient_equal_the_plain_path(tiny, part, way):
    found = []
    for one in (way, plain_loss):
        tiny.zero_grad()
        loss = one(tiny, part)
        loss.backward()
        found.append((loss.item(), torch.cat([p.grad.flatten() for p in tiny.parameters()])))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-4, rtol=1e-4)


def test_label_smoothing_is_that_of_torch(tiny):
    part = rows(3, 1)
    row = part[0]
    logits = tiny(input_ids=torch.tensor([row.tokens])).logits[0]
    first, last = row.spans[0]
    wanted = torch.nn.functional.cross_entropy(
        logits[first - 1 : last - 1], torch.tensor(row.tokens[first:last]), reduction="sum", label_smoothing=0.1
    )
    torch.testing.assert_close(AnswerLoss(tiny, label_smoothing=0.1)(part), wanted)


def test_noise_stays_within_its_bound_and_changes_the_loss(tiny):
    part, seen = rows(3, 5), []
    handle = tiny.get_input_embeddings().register_forward_hook(lambda m, i, output: seen.append(output.detach()))
    plain = AnswerLoss(tiny, share_prefix=False)(part)
    noisy = AnswerLoss(tiny, share_prefix=False, neftune_alpha=5.0)
    inner = []
    layer = tiny.model.layers[0].register_forward_pre_hook(lambda m, inputs: inner.append(inputs[0].detach()))
    torch.manual_seed(0)
    assert noisy(part).item() != pytest.approx(plain.item(), rel=1e-6)
    handle.remove()
    layer.remove()
    difference, start = (inner[0] - seen[-1])[0].abs(), 0
    for row in part:
        read = row.spans[-1][1] - 1
        bound = 5.0 / (read * 32) ** 0.5
        own = difference[start : start + read]
        assert own.max() <= bound + 1e-6
        assert own.mean() == pytest.approx(bound / 2, rel=0.2)
        start += read


def test_how_logits_are_made_is_tried_before_noise_and_without_dropout():
    """By the first loss of a process, whose rows' noise does not fit the few tokens that it is tried on."""
    tried, fresh = llama(attention_dropout=0.5).train(), llama(attention_dropout=0.5).train()
    AnswerLoss(tried, share_prefix=False)(rows(3, 5))
    losses, states = [], []
    for model in (tried, fresh):
        torch.manual_seed(0)
        losses.append(AnswerLoss(model, share_prefix=False, neftune_alpha=5.0)(rows(3, 5)).item())
        states.append(torch.get_rng_state())
        assert loss_module._SPLIT_LOGITS[model]
        assert model.training
    assert losses[0] == losses[1]
    assert torch.equal(*states)


def test_every_row_is_seen_once_an_epoch():
    part = rows(3, count=41)
    batches = list(epoch_batches(part, 8, random.Random(0)))
    assert sorted(i for batch in batches for i in batch) == list(range(41))
    assert batches != list(epoch_batches(part, 8, random.Random(1)))


def test_rows_of_like_length_share_a_batch():
    """So that little is padded where attention runs row by row; which batch comes first is drawn."""
    part = [row for seed in range(4) for row in rows(3, 40, seed=seed)]
    spreads, firsts = [], set()
    for seed in range(5):
        batches = list(epoch_batches(part, 8, random.Random(seed)))
        spreads += [max(len(part[i]) for i in batch) - min(len(part[i]) for i in batch) for batch in batches]
        firsts.add(max(len(part[i]) for i in batches[0]))
    assert max(map(len, part)) - min(map(len, part)) >= 8
    assert sum(spreads) / len(spreads) <= 2
    assert len(firsts) > 1


@pytest.mark.parametrize(("dropout", "shared"), [(0.5, False), (0.0, True)])
def test_beginnings_are_shared_only_where_nothing_is_dropped_at_random(dropout, shared, monkeypatch):
    asked = []
    real = loss_module.pack
    monkeypatch.setattr(
        loss_module,
        "pack",
        lambda *a, **k: (asked.append(k["share_prefix"]), real(*a, **k))[1],
    )
    model = llama(attention_dropout=dropout)
    train(model, adapter(model), rows(4, 4), TrainConfig(epochs=1, batch_size=4, learning_rate=1e-3))
    assert asked == [shared]


def adapter(model, **settings):
    torch.manual_seed(3)
    config = peft().LoraConfig(r=4, **all_linear(model), task_type="CAUSAL_LM", **settings)
    return PeftAdapter(model, config)


def trained(tiny, schedule, part=None, **options):
    """Train a fresh LoRA adapter on a copy; return the course and the adapter's tensors."""
    model = copy.deepcopy(tiny)
    change = adapter(model)
    course = train(model, change, part or rows(4, 16), schedule, **options)
    return course, {name.split(".", 2)[2]: p.detach().clone() for name, p in change.parameters().items()}


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.values(), other.values(), strict=True))


def test_the_same_seed_trains_the_same(tiny):
    schedule = TrainConfig(epochs=2, batch_size=4, learning_rate=1e-3, seed=5)
    (first, one), (second, other) = (trained(tiny, schedule) for _ in range(2))
    assert first.losses == second.losses
    assert same(one, other)
    assert first.losses[-1][1] < first.losses[0][1]


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_accumulated_gradients_are_those_of_the_whole_batch(tiny, micro_batch):
    schedule = TrainConfig(epochs=2, batch_size=8, learning_rate=1e-3, precision="float32")
    whole, tensors = trained(tiny, schedule)
    cut, others = trained(tiny, replace(schedule, micro_batch_size=micro_batch))
    assert [v for _, v in cut.losses] == pytest.approx([v for _, v in whole.losses], abs=1e-4)
    assert cut.norms == pytest.approx(whole.norms, abs=1e-4)
    for one, other in zip(tensors.values(), others.values(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_a_row_of_weight_2_trains_as_a_row_that_is_there_twice(tiny, micro_batch):
    schedule = TrainConfig(epochs=3, batch_size=8, learning_rate=1e-2, precision="float32")
    part = rows(7, 5)
    twice, tensors = trained(tiny, schedule, [part[0], *part])
    heavy = [replace(part[0], weight=2.0), *part[1:]]
    once, others = trained(tiny, replace(schedule, micro_batch_size=micro_batch), heavy)
    assert [v for _, v in once.losses] == pytest.approx([v for _, v in twice.losses], abs=1e-5)
    assert once.norms == pytest.approx(twice.norms, abs=1e-4)
    for one, other in zip(tensors.values(), others.values(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
    plain, _ = trained(tiny, schedule, part)
    assert abs(plain.losses[0][1] - once.losses[0][1]) > 1e-4


def test_divergence_is_an_error(tiny):
    with pytest.raises(TrainingError) as caught:
        trained(tiny, TrainConfig(epochs=30, batch_size=4, learning_rate=1e30))
    assert caught.value.code == "training-diverged"
    model, worse = copy.deepcopy(tiny), itertools.count()
    with pytest.raises(TrainingError) as caught:
        train(
            model, adapter(model), rows(4, 16), TrainConfig(epochs=30, batch_size=4, learning_rate=1e-3),
            loss=lambda part: AnswerLoss(model)(part) * 0 + 0.2 * next(worse) * sum(row.supervised for row in part),
        )  # fmt: skip
    assert caught.value.code == "training-diverged"


def test_a_loss_that_rises_in_the_warm_up_may_fall_again(tiny):
    model, count = copy.deepcopy(tiny), itertools.count()

    def loss(part):
        high = 6.0 if 5 <= next(count) < 40 else 1.0
        return AnswerLoss(model)(part) * 0 + high * sum(row.supervised for row in part)

    schedule = TrainConfig(epochs=25, batch_size=4, learning_rate=1e-3, warmup_ratio=0.3)  # 30 of 100 steps
    assert len(train(model, adapter(model), rows(4, 16), schedule, loss=loss).losses) == 100


def test_the_rate_rises_and_falls():
    schedule = TrainConfig(epochs=1, batch_size=1, learning_rate=1.0, warmup_ratio=0.1)
    rates = [schedule.rate(step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] < 0.01
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert replace(schedule, lr_scheduler="linear").rate(55, 100) == pytest.approx(0.5)
    assert replace(schedule, lr_scheduler="constant").rate(99, 100) == 1.0


class Heard:
    """Remembers what it is told."""

    def __init__(self):
        self.steps, self.notes, self.units = [], [], []

    def start(self, label, total=None):
        self.steps.append((label, total))

    def advance(self, units=1, note=""):
        self.units.append(units)
        self.notes.append(note)

    def finish(self, note=""):
        self.steps.append(note)


def test_progress_tells_loss_speed_and_peak_memory(tiny, tmp_path):
    schedule, checkpoints = TrainConfig(epochs=2, batch_size=4, learning_rate=1e-3), Checkpoints(tmp_path)
    trained(tiny, schedule, checkpoints=checkpoints, stop_after=5)
    heard = Heard()
    course, _ = trained(tiny, schedule, checkpoints=checkpoints, progress=heard)
    assert heard.steps == [("training", 8), f"loss {course.losses[-1][1]:.3f}"]
    assert (heard.units, heard.notes[0]) == ([5, 1, 1, 1], "resumed")
    told = [re.fullmatch(r"loss (\d\.\d{3}), (\d+) tok/s, peak (\d+\.\d) GiB", note) for note in heard.notes[1:]]
    assert [match[1] for match in told] == [f"{loss:.3f}" for _, loss in course.losses[5:]]
    assert all(int(match[2]) > 0 for match in told)
    assert told[-1][3] == f"{course.memory_bytes / 2**30:.1f}" != "0.0"


# ---- checkpoints


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("stop", [1, 5])
def test_a_run_that_goes_on_is_bit_for_bit_the_uninterrupted_one(tiny, tmp_path, stop, dropout):
    def run(checkpoints=None, stop_after=None):
        model = copy.deepcopy(tiny)
        change = adapter(model, lora_dropout=dropout)
        schedule = TrainConfig(epochs=2, batch_size=4, learning_rate=1e-2, weight_decay=0.1, neftune_alpha=1.0)
        course = train(model, change, rows(4, 16), schedule, checkpoints=checkpoints, stop_after=stop_after)
        return course, {name.split(".", 2)[2]: p.detach().clone() for name, p in change.parameters().items()}

    whole, tensors = run()
    checkpoints = Checkpoints(tmp_path / "run")
    first, _ = run(checkpoints, stop_after=stop)
    assert first.steps == stop
    rest, others = run(checkpoints)
    assert rest.losses == whole.losses
    assert rest.norms == whole.norms
    assert (rest.steps, rest.tokens) == (whole.steps, whole.tokens)
    assert same(tensors, others)


def test_a_damaged_checkpoint_is_passed_over(tiny, tmp_path):
    schedule, checkpoints = TrainConfig(epochs=2, batch_size=4, learning_rate=1e-3), Checkpoints(tmp_path / "run")
    whole, tensors = trained(tiny, schedule)
    trained(tiny, schedule, checkpoints=checkpoints, stop_after=2)
    trained(tiny, schedule, checkpoints=checkpoints, stop_after=4)
    newest = tmp_path / "run" / "step-00000004" / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    assert checkpoints.last()[0] == 2
    assert not newest.exists()
    rest, others = trained(tiny, schedule, checkpoints=checkpoints)
    assert rest.losses == whole.losses
    assert same(tensors, others)


def test_only_the_last_checkpoints_stay(tiny, tmp_path):
    checkpoints = Checkpoints(tmp_path / "run", keep=2)
    for stop in (1, 2, 3):
        trained(tiny, TrainConfig(epochs=2, batch_size=4, learning_rate=1e-3), checkpoints=checkpoints, stop_after=stop)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["step-00000002", "step-00000003"]
    checkpoints.clear()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch, error):
    """Whether Python or safetensors meets the end of the disk."""
    checkpoints = Checkpoints(tmp_path / "run")
    checkpoints.save(2, RunState({"a": torch.ones(3)}, {"losses": []}))

    def full(tensors, file, **_):
        file.write_bytes(b"half")
        raise error

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(MachineError, match="the checkpoint of step 4 could not be written") as caught:
        checkpoints.save(4, RunState({"a": torch.zeros(3)}))
    assert caught.value.code == "write-failed"
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["step-00000002"]
    assert checkpoints.last()[0] == 2


def test_a_full_disk_leaves_the_checkpoint_before(tiny, tmp_path):
    """A real file system of 200 kB, where this test may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        checkpoints = Checkpoints(disk / "run")
        schedule = TrainConfig(epochs=2, batch_size=4, learning_rate=1e-3)
        trained(tiny, schedule, checkpoints=checkpoints, stop_after=2)
        (disk / "filler").write_bytes(b"x" * 100_000)
        with pytest.raises(MachineError) as caught:
            trained(tiny, schedule, checkpoints=checkpoints, stop_after=4)
        assert caught.value.code == "write-failed"
        assert checkpoints.last()[0] == 2
        assert sorted(p.name for p in (disk / "run").iterdir()) == ["step-00000002"]
        (disk / "filler").unlink()
        rest, others = trained(tiny, schedule, checkpoints=checkpoints)
        whole, tensors = trained(tiny, schedule)
        assert rest.losses == whole.losses
        assert same(tensors, others)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


# ---- evaluation


def test_the_best_weights_are_kept_and_patience_ends_the_run(tiny):
    values = iter([0.2, 0.7, 0.6, 0.5, 0.9])
    schedule = TrainConfig(epochs=5, batch_size=4, learning_rate=1e-2, lr_scheduler="constant", patience=2)
    course, tensors = trained(tiny, schedule, evaluate=lambda: next(values))
    assert course.evaluations == [(4, 0.2), (8, 0.7), (12, 0.6), (16, 0.5)]
    assert course.best == 8
    short, wanted = trained(tiny, replace(schedule, epochs=2, patience=None))
    assert short.losses == course.losses[:8]
    assert same(tensors, wanted)


def test_the_best_weights_outlive_a_kill(tiny, tmp_path):
    schedule = TrainConfig(epochs=3, batch_size=4, learning_rate=1e-2, lr_scheduler="constant")
    values = [0.7, 0.2, 0.4]
    whole, tensors = trained(tiny, schedule, evaluate=iter(values).__next__)
    checkpoints, rest = Checkpoints(tmp_path), iter(values)
    trained(tiny, schedule, checkpoints=checkpoints, evaluate=rest.__next__, stop_after=6)
    course, others = trained(tiny, schedule, checkpoints=checkpoints, evaluate=rest.__next__)
    assert (course.best, course.evaluations) == (whole.best, whole.evaluations) == (4, [(4, 0.7), (8, 0.2), (12, 0.4)])
    assert same(tensors, others)


@pytest.fixture(scope="module")
def tuned(zero, data):
    engine = open_torch("embedded")
    before = {name: p.clone() for name, p in engine.use(None).named_parameters()}
    return LoRA(rank=4, epochs=3, learning_rate=2e-3).fit(zero, data), before


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
    assert caught.value.code == "wrong-folder"


def test_answers_end_with_the_token_that_ends_a_turn(zero, data):
    engine = open_torch("embedded")
    row = tokenize(zero, engine, data.train[:1])[0]
    answer = engine.tokenizer.decode(row.tokens[len(row.prompt) :], skip_special=False)
    assert answer == zero.decoder.target_text(data.train[0].outputs[0], zero.signature.labels) + "<|im_end|>"
    assert engine.tokenizer.decode(row.prompt, skip_special=False).endswith("<|im_start|>assistant\n")


def test_a_model_answers_after_its_trained_adapter_is_removed(tiny):
    model, ids = copy.deepcopy(tiny), torch.tensor([[1, 2, 3]])
    before = model(ids).logits
    one, two = (adapter(model, init_lora_weights=False) for _ in range(2))
    one.enable()
    with_one = model(ids).logits
    assert not torch.allclose(with_one, before)
    two.remove()
    torch.testing.assert_close(model(ids).logits, before)  # nothing is active after a removal
    one.enable()
    assert torch.equal(model(ids).logits, with_one)
    one.remove()
    assert torch.equal(model(ids).logits, before)
    assert [type(m) for m in model.modules()] == [type(m) for m in tiny.modules()]


def test_an_adapter_is_the_same_alone_and_beside_another(tiny):
    ids, found = torch.tensor([[1, 2, 3]]), []
    for others in (0, 1):
        model = copy.deepcopy(tiny)
        beside = [adapter(model, init_lora_weights=False) for _ in range(others)]
        change = adapter(model, init_lora_weights=False)
        assert len(change.parameters()) == 2 * 2 * 7
        course = train(model, change, rows(4, 8), TrainConfig(epochs=2, batch_size=4, learning_rate=1e-2))
        change.enable()
        found.append((course.losses, model(ids).logits))
        assert len(beside) == others
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


def test_lean_layers_have_the_loss_and_gradient_of_peft(tiny):
    model = copy.deepcopy(tiny)
    change = adapter(model, lora_alpha=12, init_lora_weights=False)
    change.enable()
    for p in change.parameters().values():
        p.requires_grad_(True)
    part, found = rows(3, 5), []
    for leaner in (False, True):
        model.zero_grad()
        with change.lean() if leaner else nullcontext():
            with change.lean() if leaner else nullcontext():
                pass
            assert any("forward" in vars(module) for module in model.modules()) == leaner
            loss = AnswerLoss(model)(part)
        loss.backward()
        found.append((loss.item(), {n: p.grad.clone() for n, p in change.parameters().items()}))
    (plain, plain_grads), (fast, fast_grads) = found
    assert fast == pytest.approx(plain, rel=1e-6)
    assert len(fast_grads) == 2 * 2 * 7
    for name, grad in plain_grads.items():
        torch.testing.assert_close(fast_grads[name], grad, atol=1e-5, rtol=1e-4)
    assert not any("forward" in vars(module) for module in model.modules())


def test_layers_that_are_not_plain_lora_stay_with_peft(tiny):
    for settings in ({"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True}):
        model = copy.deepcopy(tiny)
        change = adapter(model, **settings)
        change.enable()
        with change.lean():
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


def test_an_adapter_with_biases_of_the_base_is_refused(tiny, tmp_path):
    """They would stay in the base model when it is switched off."""
    config = peft().LoraConfig(r=2, target_modules=["q_proj"], bias="lora_only", task_type="CAUSAL_LM")
    peft().get_peft_model(llama(attention_bias=True), config).save_pretrained(tmp_path)
    model = llama(attention_bias=True)
    with pytest.raises(EngineError, match="biases besides its updates") as caught:
        attach(model, tmp_path, fingerprint="any")
    assert caught.value.code == "adapter-unsupported"
    assert model not in _WRAPPERS


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"init_lora_weights": "pissa"}, "takes its start out of the base model's weights .init_lora_weights: pissa"),
        ({"init_lora_weights": "olora"}, "init_lora_weights: olora"),
        ({"layer_replication": [(0, 2), (1, 2)]}, "repeats layers of the base model"),
    ],
)
def test_an_adapter_that_changes_the_base_is_refused(tiny, tmp_path, settings, why):
    """It would stay changed for whoever uses the model next."""
    config = peft().LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **settings)
    peft().get_peft_model(copy.deepcopy(tiny), config).save_pretrained(tmp_path)
    model = copy.deepcopy(tiny)
    change = adapter(model)
    for start in (partial(attach, model), partial(start_from, change)):
        with pytest.raises(EngineError, match=why) as caught:
            start(tmp_path, fingerprint="any")
        assert caught.value.code == "adapter-unsupported"
    change.remove()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), tiny.parameters(), strict=True))


@pytest.mark.parametrize("start", [True, False, "gaussian", "orthogonal"])
def test_an_adapter_that_starts_plainly_leaves_the_base(tiny, tmp_path, start):
    config = peft().LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=start)
    peft().get_peft_model(copy.deepcopy(tiny), config).save_pretrained(tmp_path)
    model = copy.deepcopy(tiny)
    attach(model, tmp_path, fingerprint="any").remove()
    names = [name for name, _ in tiny.named_parameters()]
    assert [name for name, _ in model.named_parameters()] == names
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), tiny.parameters(), strict=True))


def test_an_adapter_with_biases_is_refused(tiny, tmp_path):
    config = peft().LoraConfig(r=2, target_modules=["q_proj"], bias="all", task_type="CAUSAL_LM")
    peft().get_peft_model(copy.deepcopy(tiny), config).save_pretrained(tmp_path)
    model = copy.deepcopy(tiny)
    with pytest.raises(EngineError) as caught:
        attach(model, tmp_path, fingerprint="any")
    assert caught.value.code == "adapter-unsupported"
    assert "bias: all" in str(caught.value)
    assert model not in _WRAPPERS
