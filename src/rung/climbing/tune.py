"""`rung tune`: search the settings of one rung; every trial races against the best so far on the validation rows.

Optuna's tree-structured Parzen estimator (Bergstra et al. 2011) proposes settings, the defaults first. A trial answers
validation rows in growing batches and stops as soon as the best trial beats it (`rung.evaluation.racing`). At the end,
the best settings meet the defaults once on the untouched test split.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rung._version import __version__
from rung.artifact.artifact import Artifact
from rung.artifact.files import MANIFEST
from rung.climbing.check import validate_task
from rung.data.rows import Data, hash_of
from rung.errors import ConfigError, EngineError, RungError, needed_by
from rung.evaluation.racing import eliminate, looks, race_order
from rung.evaluation.result import Comparison, Prediction
from rung.evaluation.scoring import compare, evaluate, metric_of, row_values
from rung.models.files import write_atomically
from rung.progress import QUIET, Progress
from rung.rungs import build
from rung.rungs.base import Rung, settable, with_settings
from rung.task import Task

if TYPE_CHECKING:
    import optuna

# Of the settings that a rung has, those that are searched, and where.
CHOICES: Mapping[str, tuple[int, ...]] = {
    "batch_size": (4, 8, 16), "rank": (4, 8, 16, 32, 64), "tokens": (4, 8, 16, 32, 64), "layers": (1, 2, 4, 8),
    "token_budget": (256, 512, 1024, 2048),
}  # fmt: skip
NUMBERS: Mapping[str, tuple[float, float]] = {"diversity": (0.0, 0.9)}
COUNTS: Mapping[str, tuple[int, int]] = {"epochs": (1, 8), "k": (1, 16)}
RATE_SPAN = 10.0  # learning rates from a tenth of the rung's to ten times it


@dataclass(frozen=True, slots=True)
class Trial:
    """A trial: its settings, its mean score on the validation rows that it answered, and how it ended."""

    number: int
    settings: dict[str, Any]
    state: str
    score: float | None
    rows: int
    seconds: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class TuneResult:
    """The result of a search."""

    rung: str
    metric: str
    trials: tuple[Trial, ...]  # all in order; the first has the defaults
    best: int  # number of the best trial
    artifact: Path  # folder of its artifact
    settings: dict[str, Any]  # its settings, as they go into the task file
    comparison: Comparison | None  # the best settings against the defaults on the test rows; None if these are best
    folder: Path

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "rung": self.rung, "metric": self.metric, "best": self.best, "settings": self.settings,
            "artifact": str(self.artifact), "trials": [asdict(trial) for trial in self.trials],
            "comparison": None if (c := self.comparison) is None else {
                "a": "defaults", "b": f"trial {self.best}", "delta": c.delta, "low": c.low, "high": c.high, "p": c.p,
                "fixed": c.fixed, "broken": c.broken, "n": c.n,
            },
        }  # fmt: skip


def tune(
    task: Task, name: str, *, trials: int = 20, budget_seconds: float | None = None, seed: int = 0,
    engine: str = "auto", out: Path = Path("runs"), progress: Progress = QUIET,
) -> TuneResult:  # fmt: skip
    """Search the settings of rung `name` on top of zero-shot.

    An interrupted search continues: finished trials are kept in the run folder. Raises ConfigError if the rung is
    unknown, does not apply or has nothing to search, or if a split has no rows.
    """
    validate_task(task)
    task = task.held_out()  # a search of settings is judged on rows that no trial has seen
    data = task.read()
    (first,) = build((name,), task, seed)
    zero = Artifact.zero_shot(task, data.labels, engine=engine)
    verdict = first.applies(zero, data)
    if not verdict.applies:
        raise ConfigError("nothing-to-search", f"{name} does not apply here: {verdict.reason}")
    for split in ("validation", "test"):
        data.rows_of(split)
    if not searched(first):
        raise ConfigError("nothing-to-search", f"the rung {name} has no settings to search")
    identity = {
        "task": task.fingerprint(), "data": data.fingerprint, "rung": name, "seed": seed, "engine": engine,
        "version": __version__,
    }  # fmt: skip
    folder = out / f"{task.name}-tune-{name}-{hash_of(identity, 8)}"
    search = _Search(zero, data, first, folder, trials, seed, progress)
    search.run(budget_seconds)
    return search.result()


def searched(rung_: Rung) -> tuple[str, ...]:
    """The names of the settings that are searched."""
    known = {"learning_rate", *CHOICES, *NUMBERS, *COUNTS}
    return tuple(name for name in settable(rung_) if name in known)


def defaults(rung_: Rung) -> dict[str, Any]:
    """The rung's own values of the searched settings, which the first trial tries."""
    return {name: _rate(rung_) if name == "learning_rate" else getattr(rung_, name) for name in searched(rung_)}


def propose(rung_: Rung, trial: optuna.Trial) -> dict[str, Any]:
    """Choose the settings of a trial."""
    settings: dict[str, Any] = {}
    for name, own in defaults(rung_).items():
        if name == "learning_rate":
            settings[name] = trial.suggest_float(name, own / RATE_SPAN, own * RATE_SPAN, log=True)
        elif name in CHOICES:  # the rung's own may be none, or `auto`
            options = sorted({*CHOICES[name], own}, key=lambda value: (not isinstance(value, int), value))
            settings[name] = trial.suggest_categorical(name, options)
        elif name in COUNTS:
            low, high = COUNTS[name]
            settings[name] = trial.suggest_int(name, low, max(high, own))
        else:
            settings[name] = trial.suggest_float(name, *NUMBERS[name])
    if "rank" in settings and hasattr(rung_, "alpha_at"):
        # Another rank should not change the size of the updates.
        settings["alpha"] = rung_.alpha_at(settings["rank"])
    return settings


def _rate(rung_: Any) -> float:
    """The rung's learning rate; the method's default for `auto`."""
    return float(type(rung_).learning_rate if rung_.learning_rate == "auto" else rung_.learning_rate)


class _Search:
    """A running search. Its folder holds what must survive a kill: Optuna's journal and the best artifact."""

    def __init__(
        self, zero: Artifact, data: Data, first: Rung, folder: Path, trials: int, seed: int, progress: Progress
    ) -> None:
        self.zero, self.data, self.rung, self.folder = zero, data, first, folder
        self.trials, self.progress = trials, progress
        self.rows = race_order(data.validation)
        self.metric = metric_of(zero, data.folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.study = _study(folder / "study.log", seed)

    def run(self, budget_seconds: float | None) -> None:
        """Run the remaining trials, the defaults first; one that a kill interrupted continues from its checkpoint."""
        import optuna

        start, states = time.monotonic(), optuna.trial.TrialState
        for trial in self.study.get_trials(states=(states.RUNNING,)):
            self.study.tell(trial.number, state=states.FAIL)
            self.study.enqueue_trial(trial.user_attrs.get("settings") or trial.params)
        if not self.study.trials:
            self.study.enqueue_trial(defaults(self.rung))
        while len(self._finished()) < self.trials:
            if budget_seconds is not None and (ended := self._finished()):
                typical = sum(trial.user_attrs["seconds"] for trial in ended) / len(ended)
                if time.monotonic() - start + typical > budget_seconds:
                    break
            self._trial(self.study.ask())

    def _trial(self, trial: optuna.Trial) -> None:
        import optuna

        settings = propose(self.rung, trial)
        trial.set_user_attr("settings", settings)
        start = time.perf_counter()
        states = optuna.trial.TrialState
        try:
            artifact = with_settings(self.rung, settings).fit(self.zero, self.data, progress=self.progress)
            scores, beaten = self._race(artifact)
        except RungError as error:  # such as divergence: a result of these settings
            if isinstance(error, EngineError):
                raise
            trial.set_user_attr("reason", f"{error} [{error.code}]")
            trial.set_user_attr("seconds", time.perf_counter() - start)
            self.study.tell(trial, state=states.FAIL)
            return
        trial.set_user_attr("scores", scores)
        trial.set_user_attr("seconds", time.perf_counter() - start)
        if beaten:
            trial.set_user_attr("reason", beaten)
            trial.report(sum(scores) / len(scores), len(scores))
            self.study.tell(trial, state=states.PRUNED)
            return
        best = self._best_scores()
        if trial.number == 0 or best is None or sum(scores) > sum(best):
            self._keep(artifact, trial.number)
        self.study.tell(trial, sum(scores) / len(scores))

    def _race(self, artifact: Artifact) -> tuple[list[float], str]:
        """Answer rows until earlier trials beat this one; return the scores, and by what it was beaten."""
        earlier = {f"trial {t.number}": t.user_attrs["scores"] for t in self._finished() if t.user_attrs.get("scores")}
        scores: list[float] = []
        self.progress.start("validation", len(self.rows))
        whole, answered = self.metric.whole is not None, list[Prediction]()
        for until in (len(self.rows),) if whole else looks(len(self.rows)):
            part = self.rows[len(answered) : until]
            answered += evaluate(artifact, part, "validation", folder=self.data.folder)
            scores = row_values(self.metric, answered)
            self.progress.advance(len(part))
            seen = {name: own[:until] for name, own in earlier.items()}
            if whole:
                continue  # bets need scores of single rows
            if (e := eliminate({**seen, "this": scores}, binary=self.metric.binary).get("this")) is not None:
                self.progress.finish("beaten")
                return scores, str(e)
        self.progress.finish(f"{sum(scores) / len(scores):.3f}")
        return scores, ""

    def _best_scores(self) -> list[float] | None:
        whole = [trial.user_attrs["scores"] for trial in self._complete()]
        return max(whole, key=sum, default=None)

    def _complete(self) -> list[Any]:
        import optuna

        return self.study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))

    def _finished(self) -> list[Any]:
        """The trials that ended by themselves; those that a kill interrupted are repeated."""
        return [trial for trial in self.study.trials if trial.state.is_finished() and "seconds" in trial.user_attrs]

    def _keep(self, artifact: Artifact, number: int) -> None:
        """Save the best artifact so far; that of the defaults stays."""
        target = self.folder / f"trial-{number}"
        if (target / MANIFEST).exists():  # a process saved it and was killed before it recorded the trial
            shutil.rmtree(target)
        artifact.save(target)
        for other in self.folder.glob("trial-*"):
            if other.name not in (target.name, f"trial-{self._defaults()}"):
                shutil.rmtree(other)

    def _defaults(self) -> int:
        """The number of the trial with the defaults."""
        return min((t.number for t in self._complete()), default=0)

    def result(self) -> TuneResult:
        """Compare the best trial with the defaults on the test rows, and write tuning.json."""
        complete = self._complete()
        if not complete:
            reason = next((t.user_attrs.get("reason", "") for t in self.study.trials), "")
            raise ConfigError("nothing-to-search", f"no trial of {self.rung.name} finished: {reason}")
        best = max(complete, key=lambda trial: (sum(trial.user_attrs["scores"]), -trial.number))
        folder = self.folder / f"trial-{best.number}"
        comparison = None
        if best.number != self._defaults() and (self.folder / f"trial-{self._defaults()}").exists():
            plain = Artifact.load(self.folder / f"trial-{self._defaults()}")
            comparison = compare(plain, Artifact.load(folder), self.data.test, progress=self.progress)
        result = TuneResult(
            self.rung.name, self.zero.signature.metric, tuple(_trial(t) for t in self._finished()), best.number, folder,
            best.user_attrs["settings"], comparison, self.folder,
        )  # fmt: skip
        write_atomically(self.folder / "tuning.json", json.dumps(result.as_dict(), indent=1))
        return result


def _study(file: Path, seed: int) -> optuna.Study:
    with needed_by("tuning", error=EngineError):
        import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(file)))
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=5)
    return optuna.create_study(
        study_name="tuning", storage=storage, sampler=sampler, direction="maximize", load_if_exists=True
    )


def _trial(trial: Any) -> Trial:
    scores = trial.user_attrs.get("scores", [])
    state = {"COMPLETE": "complete", "PRUNED": "beaten"}.get(trial.state.name, "failed")
    return Trial(
        number=trial.number, settings=trial.user_attrs.get("settings", {}), state=state,
        score=sum(scores) / len(scores) if scores else None, rows=len(scores),
        seconds=round(trial.user_attrs["seconds"], 1), reason=trial.user_attrs.get("reason", ""),
    )  # fmt: skip
