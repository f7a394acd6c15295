"""Climbs in experiment trackers, read back with the trackers' own readers."""

from __future__ import annotations

import sys

import pytest

from rung.climbing.track import library, track
from rung.errors import MachineError
from rung.evaluation.result import ClimbResult, RungResult


@pytest.fixture
def result() -> ClimbResult:
    losses = ((1, 2.0), (2, 1.5), (3, 0.25))
    rungs = (
        RungResult("zero-shot", "prompting", "accuracy", "confirmed", score=0.5, low=0.4, high=0.6, n=100),
        RungResult(
            "lora", "lora", "accuracy", "confirmed", score=0.75, low=0.66, high=0.82, n=100, losses=losses,
            settings={"lora": {"rank": 16, "learning_rate": 0.001}},
        ),
        RungResult("retrieval", "retrieval", "accuracy", "skipped", reason="the task has no corpus"),
    )  # fmt: skip
    return ClimbResult(
        task="mail", metric="accuracy", model="embedded", engine="auto", seed=0, version="0.1.0", created="now",
        seconds=12.0, budget_seconds=None, recommended="lora", decision="Use lora", rungs=rungs, comparisons=(),
        data={}, money=0.0, endpoint_money=0.0, endpoint_tokens=(0, 0), prices={}, next_steps=(),
    )  # fmt: skip


def test_tensorboard_reads_scores_losses_and_settings(result, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert track(result, tmp_path, "tensorboard").startswith(str(tmp_path / "tensorboard"))
    assert sorted(folder.name for folder in (tmp_path / "tensorboard").iterdir()) == ["lora", "zero-shot"]
    events = EventAccumulator(str(tmp_path / "tensorboard" / "lora"))
    events.Reload()
    assert [(each.step, each.value) for each in events.Scalars("loss")] == [(1, 2.0), (2, 1.5), (3, 0.25)]
    assert events.Scalars("score")[0].value == 0.75


def test_mlflow_reads_scores_losses_and_settings(result, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "store").as_uri())
    track(result, tmp_path, "mlflow")
    runs = mlflow.search_runs(experiment_names=["mail"], output_format="list")
    by_name = {run.info.run_name: run for run in runs}
    assert set(by_name) == {tmp_path.name, "zero-shot", "lora"}
    assert by_name["lora"].data.metrics["score"] == 0.75
    assert by_name["lora"].data.params["lora.rank"] == "16"
    assert by_name[tmp_path.name].data.tags["recommended"] == "lora"


def test_wandb_takes_every_rung_without_the_network(result, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    track(result, tmp_path, "wandb")
    assert len(list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))) == 2


def test_a_missing_library_is_named_before_the_climb(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(MachineError, match="--track mlflow needs mlflow") as caught:
        library("mlflow")
    assert caught.value.hint == "uv pip install mlflow"
