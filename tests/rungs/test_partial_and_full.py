import csv
import random

import pytest
import torch

from rung.artifact.artifact import Artifact
from rung.engines.opening import open_torch
from rung.errors import ConfigError
from rung.machine import Machine
from rung.rungs import Full, LastLayers, OutputLayer, build
from rung.rungs.costs import sizes
from rung.task import Task

MACHINE = Machine(cores=2, memory_bytes=2**34, flops=1e11)
# At rates for pretrained models a random one learns little: cut short, its batches' losses would differ by chance.
RUNGS = [
    OutputLayer(learning_rate=1e-2), LastLayers(layers=1), LastLayers(output=True), Full(),
    Full(patience=1, learning_rate=1e-3),
]  # fmt: skip


class Notes:
    """A progress that remembers."""

    def __init__(self):
        self.finished = {}

    def start(self, label, total=None):
        self.label = label

    def advance(self, units=1, note=""):
        pass

    def finish(self, note=""):
        self.finished[self.label] = note


@pytest.fixture(scope="module")
def toy(tmp_path_factory, tiny_tokenizer, tiny_model):
    """A task with a random model of two layers in a folder, and its data."""
    folder = tmp_path_factory.mktemp("toy")
    tiny_model(24).save_pretrained(folder / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "model" / name).write_bytes((tiny_tokenizer.folder / name).read_bytes())
    rng = random.Random(0)
    for name, count in (("train", 32), ("validation", 8), ("test", 8)):
        with (folder / f"{name}.csv").open("w", newline="") as out:
            writer = csv.DictWriter(out, ["text", "label"])
            writer.writeheader()
            for label in ("ab", "ba") * (count // 2):
                noise = "".join(rng.choice("abc ") for _ in range(8))
                writer.writerow({"text": f"{noise} {'c' if label == 'ab' else 'b'}", "label": label})
    (folder / "task.yaml").write_text(
        "name: toy\ninstruction: a b\ninputs: [text]\noutput: {column: label, kind: category}\n"
        f"data: {{train: train.csv, validation: validation.csv, test: test.csv}}\nmodel: {folder / 'model'}\n"
    )
    task = Task.load(folder / "task.yaml")
    data = task.read()
    return Artifact.zero_shot(task, data.labels), data


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: f"{rung.name}-{rung.patience}-{getattr(rung, 'output', '')}")
def test_what_is_trained_is_what_was_foreseen_and_what_is_saved(toy, rung, tmp_path):
    zero, data = toy
    assert rung.applies(zero, data).applies
    engine = open_torch(zero.model)
    before = {name: p.clone() for name, p in engine.use(None).named_parameters()}
    answers = [a.probabilities for a in zero.answer(data.test)]
    progress = Notes()
    tuned = rung.fit(zero, data, progress=progress)
    assert progress.finished.get("running the frozen layers once", "") == ""
    losses = [loss for _, loss in tuned.settings[rung.name]["losses"]]
    assert losses[-1] < losses[0]
    assert tuned.weights.trainable_parameters == rung.trained_size(zero)
    assert all(torch.equal(p, before[name]) for name, p in engine.use(None).named_parameters())
    assert [a.probabilities for a in zero.answer(data.test)] == answers
    found = [a.probabilities for a in tuned.answer(data.test)]
    assert found != answers
    loaded = Artifact.load(tuned.save(tmp_path / "a"))
    assert [a.probabilities for a in loaded.answer(data.test)] == found


def test_estimates_count_what_is_trained(toy):
    zero, data = toy
    s = sizes(zero, data)
    for rung in RUNGS:
        cost, trained = rung.estimate(zero, data, MACHINE), rung.trained_size(zero)
        copies = 16 if rung.patience is None else 20  # the new value, its gradient, two moments; the best value
        assert cost.memory_bytes > 4 * s.parameters + copies * trained
        assert cost.fit_flops > 0
    plain = Full().estimate(zero, data, MACHINE)
    assert Full().trained_size(zero) == s.parameters
    assert (
        Full(patience=1, learning_rate=1e-3).estimate(zero, data, MACHINE).memory_bytes - plain.memory_bytes
        == 4 * s.parameters
    )
    assert plain.fit_flops == pytest.approx(6 * s.parameters * plain.fit_tokens, rel=0.01)
    costs = [rung.estimate(zero, data, MACHINE).fit_flops for rung in (OutputLayer(), LastLayers(layers=1), Full())]
    assert costs == sorted(costs)


def test_noise_means_the_whole_model_at_every_step_and_says_so(toy):
    zero, data = toy
    progress = Notes()
    OutputLayer(neftune_alpha=5.0).fit(zero, data, progress=progress)
    assert "noise" in progress.finished["running the frozen layers once"]


def test_where_every_layer_is_trained_none_runs_ahead(toy):
    zero, data = toy
    progress = Notes()
    LastLayers(layers=2).fit(zero, data, progress=progress)
    assert "running the frozen layers once" not in progress.finished


@pytest.mark.parametrize("layers", [0, -1, 3])
def test_a_number_of_layers_that_the_model_does_not_have_is_an_error(toy, layers):
    zero, data = toy
    for call in (lambda r: r.fit(zero, data), lambda r: r.estimate(zero, data, MACHINE)):
        with pytest.raises(ConfigError) as caught:
            call(LastLayers(layers=layers))
        assert caught.value.code == "bad-setting"


def test_the_registry_names_them_in_the_order_of_the_ramp(task):
    found = build(("full", "output-layer", "last-layers"), task, 3)
    assert [(rung.name, rung.family, rung.seed) for rung in found] == [
        ("output-layer", "partial", 3), ("last-layers", "partial", 3), ("full", "full", 3),
    ]  # fmt: skip


def test_the_last_layers_of_the_embedded_model_learn_the_intents(zero, data):
    """Settings were chosen on validation rows: 6 of 22 right before, 16 after."""
    tuned = LastLayers(layers=4, learning_rate=3e-4, epochs=2).fit(zero, data)
    right = [
        sum(a.text == e.outputs[0] for a, e in zip(one.answer(data.test, full=False), data.test, strict=True))
        for one in (zero, tuned)
    ]
    assert right[1] >= right[0] + 6
