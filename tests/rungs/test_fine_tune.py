import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rung.artifact.artifact import Artifact
from rung.artifact.files import fingerprint
from rung.engines.opening import open_torch
from rung.errors import ArtifactError, ConfigError, MachineError, TrainingError
from rung.evaluation.report.words import training_data_lines
from rung.models.cache import publish
from rung.progress import Quiet
from rung.rungs import LoRA
from rung.rungs.adapters import TrainedAdapter
from rung.rungs.fine_tune import LARGEST_BATCH, hold_out
from rung.task import Task
from rung.training import changes, loop, memory
from rung.training.checkpoints import Checkpoints
from rung.training.examples import tokenize
from rung.training.loss import AnswerLoss
from templates import published, with_template

QUICK = {"rank": 4, "epochs": 2, "learning_rate": 1e-2}


def tensors(artifact):
    from safetensors.torch import load_file

    return load_file(artifact.weights.adapter / "adapter_model.safetensors")


REAL_STEP = loop._Run._step


def stop_after(monkeypatch, steps):
    """Keep a checkpoint of every step, and be killed after so many, or never."""

    def dying(self, batch):
        if self.result.steps == steps:
            raise KeyboardInterrupt
        REAL_STEP(self, batch)

    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(loop, "CHECKPOINT_SHARE", 1e9)
    monkeypatch.setattr(loop._Run, "_step", dying)


class Told(Quiet):
    """Remembers how every step ended."""

    def __init__(self):
        self.labels, self.ended = [], []

    def start(self, label, total=None):
        self.labels.append(label)

    def finish(self, note=""):
        self.ended.append((self.labels.pop(), note))


def test_the_rung_records_its_settings_and_course_and_repeats_them_to_the_last_bit(tiny_zero, data, tmp_path):
    tuned = LoRA(**QUICK).fit(tiny_zero, data)
    again = LoRA(**QUICK).fit(tiny_zero, data)
    assert fingerprint(tuned.save(tmp_path / "one")) == fingerprint(again.save(tmp_path / "two"))
    record = tuned.settings["lora"]
    steps = 2 * -(-len(data.train) // 8)
    assert [step for step, _ in record["losses"]] == list(range(1, steps + 1))
    assert record["losses"][-1][1] < record["losses"][0][1]
    assert (record["rank"], record["batch_size"], record["learning_rate"]) == (4, 8, 1e-2)
    assert record["training_tokens"] > 0


def test_parts_are_the_run_as_far_as_it_got_and_end_as_fit_does(tiny_zero, data):
    rung = LoRA(**QUICK, seed=1)
    whole = rung.fit(tiny_zero, data)
    losses = whole.settings["lora"]["losses"]
    shares, kept = [], []
    for share, artifact in rung.fit_in_parts(tiny_zero, data):
        shares.append(share)
        assert artifact.settings["lora"]["losses"] == losses[: round(share * len(losses))]
        assert artifact.settings["lora"].get("share_of_steps", 1.0) == pytest.approx(share, abs=5e-4)
        assert artifact.answer(data.validation[:4])  # the rows can be answered between two parts
        kept.append(tensors(artifact))
    assert shares == [pytest.approx(0.25), pytest.approx(0.5), 1.0]
    assert all(torch.equal(kept[-1][name], tensor) for name, tensor in tensors(whole).items())
    assert any(not torch.equal(kept[0][name], tensor) for name, tensor in kept[1].items())


def test_a_run_stopped_after_a_part_goes_on_from_there(tiny_zero, data, monkeypatch):
    rung = LoRA(**QUICK, seed=1)
    whole = rung.fit(tiny_zero, data)
    share, _ = next(rung.fit_in_parts(tiny_zero, data))
    monkeypatch.setattr(loop._Run, "_step", _counted_steps(REAL_STEP, steps := []))
    again = rung.fit(tiny_zero, data)
    assert steps == list(range(round(share * 12), 12))
    assert all(torch.equal(tensors(again)[name], tensor) for name, tensor in tensors(whole).items())


def test_patience_may_end_a_run_within_a_part(tiny_zero, data):
    rung = LoRA(rank=4, epochs=8, learning_rate=1e-2, patience=1, holdout=0.4)
    whole = rung.fit(tiny_zero, data)
    *_, (share, last) = rung.fit_in_parts(tiny_zero, data)
    assert share == 1.0
    assert last.settings["lora"]["losses"] == whole.settings["lora"]["losses"]
    assert all(torch.equal(tensors(last)[name], tensor) for name, tensor in tensors(whole).items())


def test_a_killed_run_goes_on_and_ends_the_same(tiny_zero, data, monkeypatch):
    rung = LoRA(**QUICK, seed=1)
    whole = rung.fit(tiny_zero, data)
    saved = []
    stop_after(monkeypatch, 7)
    monkeypatch.setattr(Checkpoints, "save", _counted(Checkpoints.save, saved))
    with pytest.raises(KeyboardInterrupt):
        rung.fit(tiny_zero, data)
    assert saved == list(range(1, 8))
    monkeypatch.setattr(loop._Run, "_step", _counted_steps(REAL_STEP, steps := []))
    again = rung.fit(tiny_zero, data)
    assert steps == list(range(7, 12))
    assert again.settings["lora"]["losses"] == whole.settings["lora"]["losses"]
    assert all(torch.equal(tensors(again)[name], tensor) for name, tensor in tensors(whole).items())


def _counted(save, seen):
    def counted(self, step, state):
        seen.append(step)
        return save(self, step, state)

    return counted


def _counted_steps(real, seen):
    def counted(self, batch):
        seen.append(self.result.steps)
        real(self, batch)

    return counted


def test_early_stopping_measures_the_tasks_own_metric_on_held_out_training_rows(tiny_zero, data):
    rung = LoRA(**{**QUICK, "epochs": 4}, patience=1, holdout=0.3)
    kept, held_out = hold_out(data.train, rung.holdout, rung.seed, patience=rung.patience)
    assert {r.id for r in kept} | {r.id for r in held_out} == {r.id for r in data.train}
    assert not {r.id for r in kept} & {r.id for r in held_out}
    tuned = rung.fit(tiny_zero, data)
    record = tuned.settings["lora"]
    best = max(value for _, value in record["evaluations"])
    assert dict(record["evaluations"])[record["best_step"]] == best
    answers = tuned.answer(held_out, full=False)
    right = sum(a.text == row.outputs[0] for a, row in zip(answers, held_out, strict=True))
    assert right / len(held_out) == pytest.approx(best)


def test_too_few_rows_to_hold_out_are_an_error(tiny_zero, data):
    with pytest.raises(TrainingError) as caught:
        LoRA(patience=1, holdout=0.01).fit(tiny_zero, replace(data, train=data.train[:3]))
    assert caught.value.code == "too-few-rows"


def test_without_memory_it_says_what_to_lower_and_leaves_the_model(tiny_zero, data, monkeypatch):
    def full(self, batch):
        raise MemoryError("12 GiB")

    engine = open_torch(tiny_zero.model)
    kinds = [type(m) for m in engine.use(None).modules()]
    monkeypatch.setattr(loop._Run, "_step", full)
    with pytest.raises(TrainingError, match="lora ran out of memory: 12 GiB") as caught:
        LoRA(**QUICK).fit(tiny_zero, data)
    assert (caught.value.code, "micro_batch_size" in caught.value.hint) == ("out-of-memory", True)
    assert [type(m) for m in engine.use(None).modules()] == kinds


def test_auto_finds_a_rate_and_a_batch_size(tiny_zero, data):
    tuned = LoRA(rank=4, epochs=2, learning_rate="auto", batch_size="auto").fit(tiny_zero, data)
    record = tuned.settings["lora"]
    assert record["learning_rate"] == pytest.approx(3e-3)  # a random model learns faster than the default allows
    assert record["batch_size"] == 2  # 48 rows in at least 16 steps
    assert LARGEST_BATCH == 64


def test_batch_size_auto_is_what_fits_beside_gradients_and_moments(tiny_zero, data, monkeypatch):
    many = replace(data, train=data.train * 4)  # 192 rows allow 8 a batch
    engine = open_torch(tiny_zero.model)
    row = max(map(len, tokenize(tiny_zero, engine, data.train))) * memory.bytes_per_token(engine.use(None))
    gradients = []

    def beside(model, trained, optimizer):
        gradients.append(4 * sum(p.numel() for p in trained))
        return int(5 * row / memory.SHARE)  # five rows

    monkeypatch.setattr(memory, "free_beside", beside)
    record = LoRA(rank=4, epochs=1, batch_size="auto").fit(tiny_zero, many).settings["lora"]
    assert record["batch_size"] == 4
    assert min(gradients) > 0


def test_without_memory_for_one_row_layers_run_again_and_learn_the_same(tiny_zero, data, monkeypatch):
    """In passes of one row, in the search for a learning rate too; afterwards the model is as it was."""
    rung = LoRA(**QUICK | {"learning_rate": "auto"}, batch_size=4)
    plain = rung.fit(tiny_zero, data).settings["lora"]
    engine, passes, real = open_torch(tiny_zero.model), [], AnswerLoss.__call__

    def counted(self, part):
        if torch.is_grad_enabled():
            passes.append((len(part), self.model.is_gradient_checkpointing))
        return real(self, part)

    monkeypatch.setattr(memory, "free_beside", lambda *_: 0)
    monkeypatch.setattr(AnswerLoss, "__call__", counted)
    tight = rung.fit(tiny_zero, data).settings["lora"]
    assert set(passes) == {(1, True)}
    assert not engine.model.is_gradient_checkpointing
    assert not engine.model.get_input_embeddings()._forward_hooks
    assert tight["learning_rate"] == plain["learning_rate"]
    for (_, one), (_, other) in zip(tight["losses"], plain["losses"], strict=True):
        assert one == pytest.approx(other, abs=1e-3)


def test_a_run_goes_on_in_passes_of_the_same_size_whatever_memory_is_free(tiny_zero, data, monkeypatch):
    rung = LoRA(**QUICK)
    whole = rung.fit(tiny_zero, data)
    stop_after(monkeypatch, 7)
    with pytest.raises(KeyboardInterrupt):
        rung.fit(tiny_zero, data)
    stop_after(monkeypatch, None)
    monkeypatch.setattr(memory, "free_beside", lambda *_: 0)
    again = rung.fit(tiny_zero, data)
    assert all(torch.equal(tensors(again)[name], tensor) for name, tensor in tensors(whole).items())


def test_what_was_learnt_is_not_lost_where_the_disk_is_full(tiny_zero, data, monkeypatch):
    rung, real = LoRA(**QUICK, seed=2), publish
    stop_after(monkeypatch, None)

    def full(folder, build):
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    monkeypatch.setattr(changes, "publish", full)
    with pytest.raises(MachineError, match=r"what lora has learned could not be written to .*No space left") as caught:
        rung.fit(tiny_zero, data)
    assert caught.value.code == "write-failed"
    monkeypatch.setattr(changes, "publish", real)
    monkeypatch.setattr(loop._Run, "_step", _counted_steps(REAL_STEP, steps := []))
    again = rung.fit(tiny_zero, data)
    assert steps == []
    assert len(again.settings["lora"]["losses"]) == 12


def test_the_training_data_are_told_before_the_first_step(tiny_zero, data):
    told = Told()
    tuned = LoRA(**QUICK).fit(tiny_zero, data, progress=told)
    report = list(training_data_lines(tuned.settings["lora"]["training_data"]))
    lines = [note for label, note in told.ended if label == "training data"]
    assert lines[:-1] == report[:-1]
    assert lines[0].startswith("48 of 48 rows kept: 48 examples")
    assert lines[-1].endswith("<<<")
    labels = [label for label, _ in told.ended]
    assert labels.index("training") > max(i for i, label in enumerate(labels) if label == "training data")


def test_training_leaves_the_base_model_as_it_was(tiny_zero, data):
    engine = open_torch(tiny_zero.model)
    before = {name: p.clone() for name, p in engine.use(None).named_parameters()}
    kinds = [type(m) for m in engine.model.modules()]
    LoRA(**QUICK).fit(tiny_zero, data)
    assert [type(m) for m in engine.use(None).modules()] == kinds
    assert all(torch.equal(p, before[name]) for name, p in engine.model.named_parameters())
    assert not any(p.requires_grad for p in engine.model.parameters())


def test_it_continues_from_an_earlier_artifact(tiny_zero, data, tmp_path):
    first = LoRA(**QUICK).fit(tiny_zero, data)
    folder = first.save(tmp_path / "first")
    more = LoRA(**QUICK, continue_from=str(folder)).fit(tiny_zero, data)
    began, ended = (first.settings["lora"]["losses"][i][1] for i in (0, -1))
    assert ended < began - 0.1
    assert more.settings["lora"]["losses"][0][1] == pytest.approx(ended, abs=0.15)
    assert Artifact.load(folder).weights.trainable_parameters == more.weights.trainable_parameters


def test_an_adapter_from_elsewhere_is_measured_and_kept_without_training(tiny_zero, data, tmp_path):
    tuned = LoRA(**QUICK, target_modules=["q_proj"]).fit(tiny_zero, data)
    assert not TrainedAdapter().applies(tiny_zero, data).applies
    for folder in (tuned.weights.adapter, tuned.save(tmp_path / "artifact")):
        rung = TrainedAdapter(folder=str(folder))
        assert rung.applies(tiny_zero, data).applies
        taken = rung.fit(tiny_zero, replace(data, train=()))
        assert taken.weights.trainable_parameters == tuned.weights.trainable_parameters
        assert taken.weights.method == "trained-adapter"
        again = Artifact.load(taken.save(tmp_path / f"taken-{Path(folder).name}"))
        wanted = [answer.probabilities for answer in tuned.answer(data.validation[:3])]
        assert [answer.probabilities for answer in again.answer(data.validation[:3])] == wanted
    said = []
    file = tuned.weights.adapter / "adapter_config.json"
    shutil.copytree(file.parent, other := tmp_path / "other")
    named = json.loads(file.read_text()) | {"base_model_name_or_path": "some/one-7b"}
    (other / file.name).write_text(json.dumps(named))
    for folder in (tuned.weights.adapter, other):
        TrainedAdapter(folder=str(folder)).fit(tiny_zero, data, progress=SimpleNamespace(say=said.append))
    assert [f"the adapter in {other} names some/one-7b as its base model" in line for line in said] == [True]
    with pytest.raises(ArtifactError) as refused:
        TrainedAdapter(folder=str(tmp_path)).fit(tiny_zero, data)
    assert refused.value.code == "wrong-folder"


def test_the_share_of_the_weights_that_updates_reach_is_stated(tiny_zero, data):
    told = Told()
    tuned = LoRA(**QUICK, target_modules=["q_proj"]).fit(tiny_zero, data, progress=told)
    layers = open_torch(tiny_zero.model).use(None).model.layers
    sizes = {name: p.numel() for name, p in layers.named_parameters() if p.dim() > 1}
    share = sum(size for name, size in sizes.items() if "q_proj" in name) / sum(sizes.values())
    report = tuned.settings["lora"]["training_data"]
    assert report["reached_share"] == pytest.approx(share)
    line = f"the updates reach {share:.0%} of the weights"
    assert any(note.startswith(line) for _, note in told.ended)
    assert any(text.startswith(line) for text in training_data_lines(report))
    assert not any("reach" in text for text in training_data_lines(report | {"reached_share": 1.0}))


def test_a_name_that_the_model_lacks_is_found_before_training(tiny_zero, data):
    with pytest.raises(ConfigError, match="qproj") as refused:
        LoRA(target_modules=["qproj"]).applies(tiny_zero, data)
    assert "q_proj" in refused.value.hint


def test_one_answer_without_a_thought_lets_all_be_learned_without(tiny_folder, tmp_path):
    model = with_template(tiny_folder, tmp_path / "model", published("qwen3"))

    def rows(bare):
        answers = [{"role": "assistant", "content": f"It is {i}."} for i in range(4)]
        thoughtful = [{**answer, "reasoning_content": "So."} for answer in answers]
        chosen = answers[:bare] + thoughtful[bare:]
        return [{"messages": [{"role": "user", "content": f"{i}?"}, turn]} for i, turn in enumerate(chosen)]

    task = Task(
        name="sums", instruction="Add.", inputs=["messages"], output={"kind": "chat"}, data=rows(0), model=str(model),
        thinking="on",
    )  # fmt: skip
    zero, told = Artifact.zero_shot(task, engine="torch"), {}
    for bare in (0, 1, 4):
        tuned = LoRA(rank=2, epochs=1).fit(zero, rows(bare))
        told[bare] = list(training_data_lines(tuned.settings["lora"]["training_data"]))[1:3]
        assert tuned.prompt.thinking == ("off" if bare else "on")
    without = "no thought, so all are learned without, and the artifact answers without thinking although the task says"
    assert not any("thought" in line for line in told[0])
    assert told[1] == [f"1 answer has {without} to think", "the thoughts of 3 turns are left out"]
    assert told[4][0] == f"4 answers have {without} to think"
