"""Every method of tuning, one line each: where its defaults are from, and whether it merges; all meet one contract."""

from __future__ import annotations

from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml

from rung.artifact.artifact import Artifact
from rung.climbing.options import ClimbOptions, chosen_rungs
from rung.climbing.plan import plan_rows
from rung.data.rows import Data, Document
from rung.engines.changes import attach
from rung.engines.opening import open_torch
from rung.errors import ArtifactError, TrainingError
from rung.machine import this_machine
from rung.rungs import AdaLoRA, build, names
from rung.rungs.base import settable
from rung.rungs.fine_tune import FineTune
from rung.task import Task
from rung.training.checkpoints import Checkpoints
from rung.training.examples import tokenize
from rung.training.loop import train

# name: (arXiv numbers that the defaults are from, learning rate, whether it merges into the base model)
METHODS = {
    "prompt-tuning": (["2104.08691"], 0.2, False),
    "p-tuning": (["2103.10385"], 1e-3, False),
    "prefix-tuning": (["2101.00190"], 1e-2, False),
    "ia3": (["2205.05638"], 3e-3, True),
    "llama-adapter": (["2303.16199"], 9e-3, False),
    "bottleneck": (["1902.00751", "2005.00247"], 1e-3, False),
    "domain-adaptation": (["2004.10964", "2405.09673"], 2e-4, True),
    "lora": (["2106.09685", "2405.09673"], 1e-3, True),
    "rslora": (["2312.03732"], 1e-3, True),
    "dora": (["2402.09353"], 5e-4, True),
    "qlora": (["2305.14314"], 1e-3, True),
    "adalora": (["2303.10512"], 5e-3, True),
    "output-layer": (["2202.10054"], 1e-3, True),
    "last-layers": (["1911.03090"], 1e-4, True),
    "full": (["1810.04805", "2006.04884"], 5e-5, True),
}
every_method = pytest.mark.parametrize("name", METHODS)


@pytest.fixture(scope="module")
def with_text(data: Data) -> Data:
    """The small task's rows, and a document."""
    return replace(data, text=(Document("The card that you ordered comes by post.", "a.txt"),))


def method(name: str, task: Task) -> FineTune:
    (rung,) = build((name,), task, 0)
    assert isinstance(rung, FineTune)
    return rung


def test_the_table_is_complete(task: Task) -> None:
    """All that learn from expected answers; `test_preference.py` has those that learn from judged ones."""
    rungs = build(names(), task, 0)
    tuned = [
        rung.name for rung in rungs if isinstance(rung, FineTune) and rung.family not in ("preference", "reinforcement")
    ]
    assert sorted(METHODS) == sorted(tuned)


@every_method
def test_its_defaults_are_its_own_and_come_from_the_literature(name: str, task: Task) -> None:
    papers, rate, _ = METHODS[name]
    rung = method(name, task)
    told = type(rung).__doc__ or ""
    assert all(f"https://arxiv.org/abs/{paper}" in told for paper in papers)
    assert rung.learning_rate == rate


def test_the_page_names_every_setting_and_its_default(task: Task) -> None:
    page = (Path(__file__).parents[2] / "docs" / "tuning.md").read_text("utf-8").partition("## Settings")[2]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    told = {row[0].strip("`"): yaml.safe_load(row[1].strip("`")) for row in rows if row[0].startswith("`")}
    shared = {field.name: field.default for field in fields(FineTune)}
    del shared["seed"]
    assert told == {**shared, "learning_rate": "of the method"}
    methods = {name: row[1] for row in rows if row[1].startswith("`learning_rate: ") for name in row[0].split(", ")}
    for row in rows:
        if row[1].startswith("`target_modules: "):  # the settings of several methods
            for name in row[0].split(", "):
                methods[name] = f"{methods[name].strip('`')}, {row[1].strip('`')}"
    assert methods.keys() == METHODS.keys()
    for name, settings in methods.items():
        rung = method(name, task)
        values = {key: getattr(rung, key) for key in settable(rung)}
        assert yaml.safe_load(f"{{{settings.strip('`')}}}") == {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in values.items()
            if key not in shared or value != shared[key]
        }


@every_method
def test_it_is_reached_by_its_name_and_foresees_its_cost(
    name: str, task: Task, tiny_zero: Artifact, with_text: Data
) -> None:
    rung, machine = method(name, task), this_machine()
    assert chosen_rungs(task, ClimbOptions(rungs=(name,))) == (name,)
    verdict = rung.applies(tiny_zero, with_text)
    if name == "qlora" and find_spec("bitsandbytes") is None:
        assert verdict.reason == "a base model in 4 bits needs bitsandbytes: uv pip install bitsandbytes"
    else:
        assert (verdict.applies, verdict.reason) == (True, "")
    cost = rung.estimate(tiny_zero, with_text, machine)
    assert cost.fit_seconds == machine.training_seconds(cost.fit_flops) > 0
    assert cost.fit_tokens > 0
    assert cost.row_seconds == machine.inference_seconds(cost.row_flops) > 0
    assert cost.memory_bytes > 2**30


def test_the_plan_names_every_method(task: Task, tiny_zero: Artifact) -> None:
    rows, _ = plan_rows(task.model_copy(update={"model": tiny_zero.model}), ClimbOptions(rungs=tuple(METHODS)))
    left_out = {row["name"]: row["reason"] for row in rows if not row["applies"]}
    assert {row["name"] for row in rows} == {"zero-shot", *METHODS}
    assert set(left_out) <= {"domain-adaptation", "qlora"}  # without plain text, without bitsandbytes


@every_method
def test_it_goes_on_merges_or_says_why_not_and_comes_back_strictly(
    name: str, task: Task, tiny_zero: Artifact, data: Data, tmp_path: Path
) -> None:
    rung = replace(method(name, task), epochs=4, batch_size=2, seed=1)
    engine = open_torch(tiny_zero.model)
    rows = tokenize(tiny_zero, engine, data.train[:2], virtual_tokens=rung.prefix_tokens)

    def trained(folder: str, stop: int | None = None) -> dict[str, torch.Tensor]:
        with rung._on_model(engine, tiny_zero) as change:
            learnt = [row.after(change.prefix) for row in rows]
            checkpoints = Checkpoints(tmp_path / folder)
            train(engine.model, change, learnt, rung, checkpoints=checkpoints, stop_after=stop)
            if stop is None:
                change.write(written(tmp_path / f"{folder} written"), engine.base_fingerprint)
                _merges(change.merged, METHODS[name][2])
            return {key: p.detach().clone() for key, p in change.parameters().items()}

    whole = trained("whole")
    trained("resumed", stop=2)
    assert [torch.equal(a, b) for a, b in zip(whole.values(), trained("resumed").values(), strict=True)] == (
        [True] * len(whole)
    )
    folder = tmp_path / "whole written"
    engine.make_room("none")
    attach(engine.model, folder, fingerprint=engine.base_fingerprint).remove()
    with pytest.raises(ArtifactError):
        attach(engine.model, folder, fingerprint="another model's")
    pickled = folder / "adapter_model.bin"
    next(folder.glob("*.safetensors")).rename(pickled)
    with pytest.raises(ArtifactError):
        attach(engine.model, folder, fingerprint=engine.base_fingerprint)


@every_method
def test_it_is_fitted_saved_and_loaded_by_its_name(
    name: str, task: Task, tiny_zero: Artifact, with_text: Data, tmp_path: Path
) -> None:
    if name == "qlora":
        pytest.skip("the tiny model's matrices are smaller than a block of 4-bit weights")
    rung = replace(method(name, task), epochs=1)
    fitted = rung.fit(tiny_zero, with_text)
    assert fitted.path == ("zero-shot", name)
    assert fitted.weights.trainable_parameters > 0
    loaded = Artifact.load(fitted.save(tmp_path / "artifact"))
    answers, before = (a.answer(with_text.test, full=True) for a in (fitted, tiny_zero))
    assert [a.probabilities for a in loaded.answer(with_text.test, full=True)] == [a.probabilities for a in answers]
    assert [a.probabilities for a in before] != [a.probabilities for a in answers]


def written(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def _merges(merged: object, can: bool) -> None:
    assert callable(merged)
    if can:
        assert merged()
        return
    with pytest.raises(TrainingError) as caught:
        merged()
    assert caught.value.code == "export-unsupported"
    assert caught.value.hint == "serve it as it is: the artifact runs unmerged"


# ---- AdaLoRA's ranks follow the number of steps


@pytest.mark.parametrize(
    ("steps", "before", "after"),
    [(1, 0, 0), (2, 0, 1), (4, 0, 2), (10, 1, 5), (100, 15, 50), (3450, 517, 1725)],
)
def test_adalora_s_schedule_is_a_share_of_the_steps(tiny_zero: Artifact, steps: int, before: int, after: int) -> None:
    """MRPC in the paper: 30 epochs of 115 steps, of which 600 come before the budget falls and 1800 after."""
    engine = open_torch(tiny_zero.model)
    change = AdaLoRA().change(engine, tiny_zero)
    try:
        for p in change.parameters().values():
            p.grad = torch.ones_like(p)
        change.stepped(1, steps)
        config = change.wrapper.peft_config[change.name]
        assert (config.init_r, config.target_r, config.deltaT) == (12, 8, 1)
        assert (config.tinit, config.tfinal, config.total_step) == (before, after, steps)
        assert config.tinit + config.tfinal < config.total_step
    finally:
        change.remove()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"rank": 8, "initial_rank": 8}, "its ranks cannot fall from 8 to 8"),
        ({"start": 0.5, "end": 0.5}, "its ranks have no time to fall: 50% of the steps come before, 50% after"),
    ],
)
def test_adalora_refuses_a_schedule_in_which_no_rank_falls(
    tiny_zero: Artifact, data: Data, settings: dict[str, float], reason: str
) -> None:
    assert AdaLoRA(**settings).applies(tiny_zero, data).reason == reason  # type: ignore[arg-type]
