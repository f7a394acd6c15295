"""A search of settings whose trials run on several workers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rung.artifact.artifact import Artifact
from rung.climbing import tune as tune_module
from rung.climbing.tune import defaults, tune
from rung.cluster.crew import SearchCrew
from rung.cluster.processes import Inline, Processes
from rung.engines.api_options import ApiBudget, Spent
from rung.errors import ConfigError, MachineError
from rung.evaluation.scoring import compare
from rung.task import Task


class Places(Inline):
    """Several places, in which every job runs as soon as it is submitted; remembers the trials and the other jobs."""

    def __init__(self, ends_after: int = 1000) -> None:
        super().__init__()
        self.settings: list[dict[str, int]] = []
        self.others: list[tuple[str, ...]] = []
        self.ends_after = ends_after

    def submit(self, uri, resources):
        if len(self.settings) == self.ends_after:
            raise KeyboardInterrupt
        job = json.loads(Path(uri).read_text())
        if job["kind"] == "trial":
            self.settings.append(job["settings"])
        else:
            self.others.append((job["kind"], job["split"], job["artifact"], *job["ids"]))
        super().submit(uri, resources)

    def capacity(self, resources):
        return 3


def search(file, out, executor=None, trials=6, **more):
    crew = None if executor is None else lambda *given: SearchCrew(executor, "", *given)
    return tune(Task.load(file), "few-shot-knn", trials=trials, out=out, crew=crew, **more)


def test_trials_run_at_once_and_the_best_one_is_kept_and_compared(free_task_file, tmp_path):
    executor = Places()
    found = search(free_task_file, tmp_path, executor)
    assert [trial.number for trial in found.trials] == list(range(6))
    assert [trial.settings for trial in found.trials] == executor.settings
    complete = {trial.number: trial.score for trial in found.trials if trial.state == "complete"}
    assert complete[found.best] == max(complete.values())
    assert found.artifact.is_dir()
    assert not (found.folder / "jobs").exists()
    alone = search(free_task_file, tmp_path / "alone", trials=1)
    assert found.trials[0].score == alone.trials[0].score


class Grows(Places):
    """Has more places once it has answered rows."""

    def capacity(self, resources):
        return 4 if self.others else 2


@pytest.mark.parametrize("kind", [Places, Grows])
def test_workers_answer_the_test_rows_of_the_comparison_each_once(free_task_file, tmp_path, monkeypatch, kind):
    def better(zero, data, rung_, earlier, progress):
        """The defaults are never the best, so that there is a comparison."""
        raced = races(zero, data, rung_, earlier, progress)
        return replace(raced, scores=[float(bool(earlier))] * len(raced.scores), beaten="")

    races = tune_module.race_trial
    monkeypatch.setattr("rung.cluster.worker.race_trial", better)
    monkeypatch.setattr("rung.cluster.executor.CAPACITY_SECONDS", 0.0)
    executor = kind()
    found = search(free_task_file, tmp_path, executor, trials=4)
    assert found.best > 0
    answered = [(artifact, name) for kind, split, artifact, *ids in executor.others for name in ids]
    assert {each[:2] for each in executor.others} == {("answer", "test")}
    ids = {row.id for row in Task.load(free_task_file).held_out().read().test}
    for number in (0, found.best):
        own = [name for artifact, name in answered if Path(artifact).name == f"trial-{number}"]
        assert sorted(own) == sorted(ids)
    pair = [Artifact.load(found.folder / f"trial-{number}") for number in (0, found.best)]
    assert found.comparison == compare(*pair, Task.load(free_task_file).held_out().read().test)


def test_an_interrupted_search_takes_over_the_trials_that_workers_finished(free_task_file, tmp_path):
    first, second = Places(ends_after=2), Places()
    with pytest.raises(KeyboardInterrupt):
        search(free_task_file, tmp_path, first, trials=4)
    found = search(free_task_file, tmp_path, second, trials=4)
    assert len(found.trials) == 4
    assert len(first.settings) == 2
    assert len(second.settings) == 2, (first.settings, second.settings)
    assert [trial.settings for trial in found.trials][:2] == first.settings


def test_trials_with_equal_settings_are_trials_of_their_own(free_task_file, tmp_path, monkeypatch):
    monkeypatch.setattr("rung.climbing.tune.propose", lambda rung_, _: defaults(rung_))
    found = search(free_task_file, tmp_path, Places(), trials=5)
    assert [trial.number for trial in found.trials] == list(range(5))
    assert len({trial.score for trial in found.trials}) == 1


def test_a_trial_that_fails_is_the_end_of_itself(free_task_file, tmp_path, monkeypatch):
    causes = [None, ValueError("no such number"), MachineError("worker-lost", "it ended")]
    known: dict[str, Exception | None] = {}

    def fails(zero, data, rung_, earlier, progress):
        """The second and the third settings fail whenever they are tried."""
        if (error := known.setdefault(str(rung_), causes[len(known)] if len(known) < 3 else None)) is not None:
            raise error
        return races(zero, data, rung_, earlier, progress)

    races = tune_module.race_trial
    monkeypatch.setattr("rung.cluster.worker.race_trial", fails)
    found = search(free_task_file, tmp_path, Places(), trials=5)
    assert len(found.trials) == 5
    failed = {trial.reason for trial in found.trials if trial.state == "failed"}
    assert failed == {"ValueError: no such number", "it ended [worker-lost]"}
    assert found.artifact.is_dir()


def test_what_no_worker_can_do_ends_the_search(free_task_file, tmp_path, monkeypatch):
    def refuses(*_):
        raise MachineError("worker-mismatch", "another version")

    monkeypatch.setattr("rung.cluster.worker.race_trial", refuses)
    with pytest.raises(MachineError, match="another version"):
        search(free_task_file, tmp_path, Places())


def test_a_search_in_money_ends_with_what_it_has_and_counts_each_trial_once(free_task_file, tmp_path, monkeypatch):
    def pays(zero, data, rung_, earlier, progress):
        ApiBudget.add(Spent(requests=1, money=0.4))
        progress.advance(0)
        return races(zero, data, rung_, earlier, progress)

    races = tune_module.race_trial
    monkeypatch.setattr("rung.cluster.worker.race_trial", pays)
    executor = Inline()
    found = search(free_task_file, tmp_path, executor, budget_money=1.0)
    assert [trial.number for trial in found.trials] == [0, 1]  # the third has 0.2 left
    assert found.artifact.is_dir()
    with pytest.raises(ConfigError, match="the budget was used up"):
        search(free_task_file, tmp_path / "less", executor, budget_money=0.3)


def test_two_searches_do_not_write_one_folder(free_task_file, tmp_path):
    class Again(Places):
        codes: list[str] = []  # noqa: RUF012

        def submit(self, uri, resources):
            with pytest.raises(ConfigError) as caught:
                search(free_task_file, tmp_path, trials=1)
            self.codes.append(caught.value.code)
            super().submit(uri, resources)

    found = search(free_task_file, tmp_path, Again(), trials=2)
    assert set(Again.codes) == {"file-in-use"}
    assert [trial.state for trial in found.trials if trial.state == "failed"] == []
    assert len(search(free_task_file, tmp_path, trials=3).trials) == 3  # it is free again


@pytest.mark.slow
def test_worker_processes_give_the_scores_of_one_process(free_task_file, tmp_path):
    found = search(free_task_file, tmp_path / "shared", Processes(2), trials=2)
    alone = search(free_task_file, tmp_path / "alone", trials=2)
    assert [(trial.settings, trial.score) for trial in found.trials][:1] == [
        (trial.settings, trial.score) for trial in alone.trials
    ][:1]
    assert len(found.trials) == 2


def test_a_budget_in_money_ends_the_search(free_task_file, tmp_path):
    found = search(free_task_file, tmp_path, budget_money=0.0)
    assert len(found.trials) == 1


def test_a_budget_in_time_ends_the_search_on_workers_too(free_task_file, tmp_path):
    executor = Places()
    found = search(free_task_file, tmp_path, executor, budget_seconds=0.0)
    assert len(found.trials) == len(executor.settings) == 1
    assert found.artifact.is_dir()


def test_a_task_that_is_in_no_file_has_no_workers(tmp_path):
    rows = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(40)]
    task = Task(
        name="memory", instruction="Which?", inputs=["text"], output={"column": "label", "kind": "category"}, data=rows
    )
    with pytest.raises(ConfigError) as caught:
        tune(
            task, "few-shot-knn", out=tmp_path, trials=1, crew=lambda *given: SearchCrew(Inline(), "", *given)
        )  # fmt: skip
    assert caught.value.code == "no-such-file"
