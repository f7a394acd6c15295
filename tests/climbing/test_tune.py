import json
import re
from dataclasses import dataclass, replace

import optuna
import pytest

from rung.climbing import tune as tuning
from rung.climbing.tune import defaults, propose, searched, tune
from rung.errors import ConfigError, TrainingError
from rung.rungs import Features, Registration, build, names
from rung.rungs.base import REGISTERED, with_settings
from rung.rungs.fine_tune import FineTune


@dataclass(frozen=True)
class Taught(Features):
    """A features head taught by the first k rows of each label; the more, the better."""

    k: int = 1

    name = "taught"

    def fit(self, artifact, data, *, progress=None):
        seen, kept = {}, []
        for row in data.train:
            seen[row.outputs[0]] = seen.get(row.outputs[0], 0) + 1
            if seen[row.outputs[0]] <= self.k:
                kept.append(row)
        return Features().fit(artifact, replace(data, train=tuple(kept)))


@pytest.fixture(autouse=True)
def _few_rungs(monkeypatch):
    monkeypatch.setitem(REGISTERED, "taught", Registration("taught", Taught, 505))
    monkeypatch.setitem(tuning.COUNTS, "k", (1, 8))


def test_the_search_finds_better_settings_than_the_defaults(task, tmp_path):
    found = tune(task, "taught", trials=5, out=tmp_path)
    assert found.trials[0].settings == {"k": 1}
    scores = {t.settings["k"]: t.score for t in found.trials if t.state == "complete"}
    assert found.settings["k"] == max(scores, key=lambda k: scores[k]) > 1
    assert found.comparison.delta > 0
    assert found.comparison.n == 36
    assert json.loads((found.folder / "tuning.json").read_text()) == json.loads(json.dumps(found.as_dict()))
    kept = {p.name for p in found.folder.glob("trial-*")}
    assert kept == {"trial-0", f"trial-{found.best}"}


def test_an_interrupted_search_goes_on(task, tmp_path, monkeypatch):
    whole = tune(task, "taught", trials=4, out=tmp_path / "whole")
    real, fits = Taught.fit, []

    def dying(self, artifact, data, *, progress=None):
        if len(fits) == 2:
            raise KeyboardInterrupt
        fits.append(self.k)
        return real(self, artifact, data)

    monkeypatch.setattr(Taught, "fit", dying)
    with pytest.raises(KeyboardInterrupt):
        tune(task, "taught", trials=4, out=tmp_path / "cut")
    monkeypatch.setattr(Taught, "fit", lambda self, *a, **k: (fits.append(self.k), real(self, *a))[1])
    rest = tune(task, "taught", trials=4, out=tmp_path / "cut")
    assert len(rest.trials) == 4
    assert [t.settings for t in rest.trials[:3]] == [t.settings for t in whole.trials[:3]]
    assert len(fits) == 4


def test_trials_that_fail_are_reported_and_the_search_goes_on(task, tmp_path, monkeypatch):
    real = Taught.fit

    def fit(self, artifact, data, *, progress=None):
        if self.k != 1:
            raise TrainingError("training-diverged", "the loss rose")
        return real(self, artifact, data)

    monkeypatch.setattr(Taught, "fit", fit)
    found = tune(task, "taught", trials=3, out=tmp_path)
    assert (found.best, found.comparison) == (0, None)
    failed = [t for t in found.trials if t.settings["k"] != 1]
    assert failed
    assert {(t.state, t.reason) for t in failed} == {("failed", "the loss rose [training-diverged]")}


def test_a_trial_that_the_best_one_beats_answers_no_more_rows(task, tmp_path, monkeypatch):
    def fit(self, artifact, data, *, progress=None):
        """Taught the labels as they are by the defaults, each one the next by any other settings."""
        labels = data.labels
        if self.k != 1:
            wrong = [replace(row, outputs=(labels[labels.index(row.outputs[0]) - 1],)) for row in data.train]
            data = replace(data, train=tuple(wrong))
        return Features().fit(artifact, data)

    monkeypatch.setattr(Taught, "fit", fit)
    found = tune(task, "taught", trials=3, out=tmp_path)
    assert found.best == 0
    beaten = [trial for trial in found.trials if trial.settings["k"] != 1]
    assert beaten
    for trial in beaten:
        assert (trial.state, trial.rows) == ("beaten", 16)
        assert trial.score < found.trials[0].score - 0.5
        assert re.fullmatch(r"beaten by trial 0 after 16 rows: \d+ fixed / \d broken, p = .*", trial.reason)


@pytest.mark.parametrize("name", names())
def test_the_rungs_own_settings_are_proposed_first(task, name):
    """Also those that are no number: all layers, or `auto`."""
    (plain,) = build((name,), task, 0)
    judged = plain.family in ("preference", "reinforcement")  # they know no `auto`
    others = ({"learning_rate": 3e-7}, *(() if judged else ({"batch_size": "auto", "learning_rate": "auto"},)))
    for rung in (plain, *(with_settings(plain, other) for other in others if isinstance(plain, FineTune))):
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
        study.enqueue_trial(defaults(rung))
        trials = [propose(rung, study.ask()) for _ in range(6)]
        wanted = {key: getattr(rung, key) for key in searched(rung)}
        if wanted.get("learning_rate") == "auto":
            wanted["learning_rate"] = plain.learning_rate
        assert trials[0].items() >= wanted.items()
        assert not searched(rung) or any(trial != trials[0] for trial in trials[1:])
        for settings in trials:
            with_settings(rung, settings)


def test_a_budget_ends_the_search_after_the_first_trial(task, tmp_path):
    assert len(tune(task, "taught", trials=50, budget_seconds=0.0, out=tmp_path).trials) == 1


def test_what_cannot_be_searched_is_said(task, tmp_path):
    for name, code in (("features", "nothing-to-search"), ("system-prompt", "nothing-to-search")):
        with pytest.raises(ConfigError) as caught:
            tune(task, name, out=tmp_path)
        assert caught.value.code == code
