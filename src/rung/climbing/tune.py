"""`rung tune`: search the settings of one rung; every trial races against the best so far on the validation rows.

Optuna's tree-structured Parzen estimator (Bergstra et al. 2011) proposes settings, the defaults first. A trial answers
validation rows in growing batches and stops as soon as the best trial beats it (`rung.evaluation.racing`). At the end,
the best settings meet the defaults once on the untouched test split.
"""

from __future__ import annotations

import json
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rung._version import __version__
from rung.artifact.artifact import Artifact
from rung.artifact.files import MANIFEST
from rung.climbing.budget import TimeUp
from rung.climbing.check import validate_task
from rung.data.rows import Data, hash_of
from rung.engines.api_options import ApiBudget
from rung.errors import ConfigError, EngineError, PreemptedError, RungError, needed_by
from rung.evaluation.prices import Prices
from rung.evaluation.racing import eliminate, looks, race_order
from rung.evaluation.result import Comparison, Prediction
from rung.evaluation.scoring import compare, compare_answers, evaluate, metric_of, row_values
from rung.models.files import lock_alone, write_atomically
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


@dataclass(frozen=True, slots=True)
class Raced:
    """How a trial ended: its artifact and its scores on the rows that it answered, by what it was beaten, or why not.

    `seconds` is what it took, `reason` an error that its settings have caused.
    """

    artifact: Artifact | None
    scores: list[float]
    beaten: str = ""
    reason: str = ""
    seconds: float = 0.0


class TrialCrew(Protocol):
    """Workers that run the trials of a search."""

    @property
    def workers(self) -> int:
        """How many trials run at once."""

    @property
    def money(self) -> float:
        """What the workers' hours have cost, without those of this machine."""

    def start(self, number: int, settings: Mapping[str, Any], earlier: Mapping[str, Sequence[float]]) -> None:
        """Have a trial run: `race_trial`."""

    def ended(self, progress: Progress) -> tuple[int, Raced]:
        """Wait for the next trial to end; return its number. Raises TimeUp where it used up its share of the budget."""

    def ask(self, folder: Path, ids: Sequence[str], *, ahead: bool) -> object:
        """Have the artifact of a trial answer test rows."""

    def answers(self, folder: Path, ids: Sequence[str], progress: Progress) -> list[Prediction]:
        """Wait for these answers."""

    def give_up(self) -> None:
        """End the trials that run."""

    def close(self, progress: Progress, *, done: bool) -> None:
        """End the workers; when the search is `done`, remove what they have left."""


TrialCrewMaker = Callable[[Task, Data, str, Artifact, Path, int, Callable[[], float]], TrialCrew]


def tune(
    task: Task, name: str, *, trials: int = 20, budget_seconds: float | None = None,
    budget_money: float | None = None, seed: int = 0, engine: str = "auto", out: Path = Path("runs"),
    crew: TrialCrewMaker | None = None, progress: Progress = QUIET,
) -> TuneResult:  # fmt: skip
    """Search the settings of rung `name` on top of zero-shot.

    An interrupted search continues: finished trials are kept in the run folder. With a `crew`, trials run at once, and
    each is proposed as if those that still run had done badly (Optuna's constant liar). Raises ConfigError if the rung
    is unknown, does not apply or has nothing to search, if a split has no rows, or if another search writes the folder.
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
    search = _Search(zero, data, first, folder, trials, seed, progress, at_once=crew is not None)
    paid, prices = ApiBudget.process(), Prices.of(task)

    def money_left() -> float:
        if budget_money is None:
            return float("inf")
        hours = (time.monotonic() - search.began) / 3600
        others = 0.0 if search.crew is None else search.crew.money
        return budget_money - (ApiBudget.process() - paid).money - hours * prices.machine_hour - others

    done = False
    try:
        if crew is not None:
            search.crew = crew(task, data, name, zero, folder, seed, money_left)
        search.run(float("inf") if budget_seconds is None else budget_seconds, money_left)
        result = search.result()
        done = True
    finally:
        if search.crew is not None:
            search.crew.close(progress, done=done)
        search.held.close()
    return result


def race_trial(
    zero: Artifact, data: Data, rung_: Rung, earlier: Mapping[str, Sequence[float]], progress: Progress
) -> Raced:
    """Make an artifact with the settings of a trial, and have it answer rows until earlier trials beat it.

    Args:
        zero: the artifact to start from.
        data: the rows.
        rung_: the rung with the settings.
        earlier: the scores of the trials that have ended, by what they are called.
        progress: reports the fit and the race.
    """
    start = time.perf_counter()

    def ended(artifact: Artifact | None, scores: list[float], beaten: str = "", reason: str = "") -> Raced:
        return Raced(artifact, scores, beaten, reason, time.perf_counter() - start)

    try:
        artifact = rung_.fit(zero, data, progress=progress)
        return ended(artifact, *_race(artifact, data, earlier, progress))
    except RungError as error:  # such as divergence: a result of these settings
        if isinstance(error, EngineError | PreemptedError):
            raise
        return ended(None, [], reason=f"{error} [{error.code}]")


def _race(
    artifact: Artifact, data: Data, earlier: Mapping[str, Sequence[float]], progress: Progress
) -> tuple[list[float], str]:
    rows, metric = race_order(data.validation), metric_of(artifact, data.folder)
    scores: list[float] = []
    progress.start("validation", len(rows))
    whole, answered = metric.whole is not None, list[Prediction]()
    for until in (len(rows),) if whole else looks(len(rows)):
        part = rows[len(answered) : until]
        answered += evaluate(artifact, part, "validation", folder=data.folder)
        scores = row_values(metric, answered)
        progress.advance(len(part))
        seen = {name: list(own[:until]) for name, own in earlier.items()}
        if whole:
            continue  # bets need scores of single rows
        if (e := eliminate({**seen, "this": scores}, binary=metric.binary).get("this")) is not None:
            progress.finish("beaten")
            return scores, str(e)
    progress.finish(f"{sum(scores) / len(scores):.3f}")
    return scores, ""


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
        self, zero: Artifact, data: Data, first: Rung, folder: Path, trials: int, seed: int, progress: Progress, *,
        at_once: bool,
    ) -> None:  # fmt: skip
        self.zero, self.data, self.rung, self.folder = zero, data, first, folder
        self.trials, self.progress, self.began = trials, progress, time.monotonic()
        self.crew: TrialCrew | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.held = (folder / "lock").open("a+b")  # until the search ends: another would take its trials for lost ones
        try:
            lock_alone(self.held, f"another search is writing {folder}", "wait for it, or choose another --out")
        except ConfigError:
            self.held.close()
            raise
        self.study = _study(folder / "study.log", seed, at_once=at_once)

    def run(self, budget_seconds: float, money_left: Callable[[], float]) -> None:
        """Run the remaining trials, the defaults first; one that a kill interrupted continues from its checkpoint."""
        import optuna

        states = optuna.trial.TrialState
        for lost in self.study.get_trials(states=(states.RUNNING,)):
            self.study.tell(lost.number, state=states.FAIL)
            self.study.enqueue_trial(lost.user_attrs.get("settings") or lost.params)
        if not self.study.trials:
            self.study.enqueue_trial(defaults(self.rung))
        if self.crew is not None:  # whose trials report nothing until they end
            self.progress.start(f"trials of {self.rung.name}", self.trials)
            self.progress.advance(len(self._finished()))
        running: dict[int, optuna.Trial] = {}
        while True:
            while len(self._finished()) + len(running) < self.trials and self._may_start(
                budget_seconds, money_left(), len(running)
            ):
                trial = self.study.ask()
                settings = propose(self.rung, trial)
                trial.set_user_attr("settings", settings)
                earlier = {f"trial {t.number}": t.user_attrs["scores"] for t in self._finished() if _scores(t)}
                if self.crew is None:
                    rung_ = with_settings(self.rung, settings)
                    self._end(trial, race_trial(self.zero, self.data, rung_, earlier, self.progress))
                    continue
                running[trial.number] = trial
                self.crew.start(trial.number, settings, earlier)
                if len(running) >= self.crew.workers:
                    break
            if self.crew is None:
                return
            if not running:
                self.progress.finish()
                return
            if len(running) < self.crew.workers and (plain := self._kept(self._defaults())).exists():
                self.crew.ask(plain, [row.id for row in self.data.test], ahead=True)  # the comparison at the end
            try:
                number, raced = self.crew.ended(self.progress)
            except TimeUp:  # what has ended counts; what runs is repeated by the same command with more budget
                self.crew.give_up()
                self.progress.finish()
                return
            self._end(running.pop(number), raced)
            self.progress.advance()

    def _may_start(self, budget_seconds: float, money: float, running: int) -> bool:
        """Whether another trial is expected to end within the budget; the first may always start."""
        ended = self._finished()
        if not ended and not running:
            return True
        typical = sum(trial.user_attrs["seconds"] for trial in ended) / max(1, len(ended))
        return money > 0 and time.monotonic() - self.began + typical <= budget_seconds

    def _end(self, trial: optuna.Trial, raced: Raced) -> None:
        """Record a trial, and keep its artifact if it is the best one."""
        import optuna

        states = optuna.trial.TrialState
        trial.set_user_attr("seconds", raced.seconds)
        if raced.artifact is None:
            trial.set_user_attr("reason", raced.reason)
            self.study.tell(trial, state=states.FAIL)
            return
        scores = raced.scores
        trial.set_user_attr("scores", scores)
        if raced.beaten:
            trial.set_user_attr("reason", raced.beaten)
            trial.report(sum(scores) / len(scores), len(scores))
            self.study.tell(trial, state=states.PRUNED)
            return
        best = self._best_scores()
        if trial.number == 0 or best is None or sum(scores) > sum(best):
            self._keep(raced.artifact, trial.number)
        self.study.tell(trial, sum(scores) / len(scores))

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
        target = self._kept(number)
        if (target / MANIFEST).exists():  # a process saved it and was killed before it recorded the trial
            shutil.rmtree(target)
        artifact.save(target)
        for other in self.folder.glob("trial-*"):
            if other not in (target, self._kept(self._defaults())):
                shutil.rmtree(other)

    def _kept(self, number: int) -> Path:
        return self.folder / f"trial-{number}"

    def _defaults(self) -> int:
        """The number of the trial with the defaults."""
        return min((t.number for t in self._complete()), default=0)

    def result(self) -> TuneResult:
        """Compare the best trial with the defaults on the test rows, and write tuning.json."""
        complete = self._complete()
        if not complete:
            reason = next((t.user_attrs.get("reason", "") for t in self._finished()), "the budget was used up")
            raise ConfigError("nothing-to-search", f"no trial of {self.rung.name} finished: {reason}")
        best = max(complete, key=lambda trial: (sum(trial.user_attrs["scores"]), -trial.number))
        folder, plain = self._kept(best.number), self._kept(self._defaults())
        comparison = None
        if folder != plain and plain.exists():
            pair = Artifact.load(plain), Artifact.load(folder)
            if self.crew is None:
                comparison = compare(*pair, self.data.test, folder=self.data.folder, progress=self.progress)
            else:
                ids = [row.id for row in self.data.test]
                self.crew.ask(folder, ids, ahead=False)
                answered = [self.crew.answers(each, ids, self.progress) for each in (plain, folder)]
                comparison = compare_answers(*pair, *answered, folder=self.data.folder)
        result = TuneResult(
            self.rung.name, self.zero.signature.metric, tuple(_trial(t) for t in self._finished()), best.number, folder,
            best.user_attrs["settings"], comparison, self.folder,
        )  # fmt: skip
        write_atomically(self.folder / "tuning.json", json.dumps(result.as_dict(), indent=1))
        return result


def _scores(trial: Any) -> list[float]:
    scores: list[float] = trial.user_attrs.get("scores", [])
    return scores


def _study(file: Path, seed: int, *, at_once: bool) -> optuna.Study:
    with needed_by("tuning", error=EngineError):
        import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(file)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=5, constant_liar=at_once)
    return optuna.create_study(
        study_name="tuning", storage=storage, sampler=sampler, direction="maximize", load_if_exists=True
    )


def _trial(trial: Any) -> Trial:
    scores = _scores(trial)
    state = {"COMPLETE": "complete", "PRUNED": "beaten"}.get(trial.state.name, "failed")
    return Trial(
        number=trial.number, settings=trial.user_attrs.get("settings", {}), state=state,
        score=sum(scores) / len(scores) if scores else None, rows=len(scores),
        seconds=round(trial.user_attrs["seconds"], 1), reason=trial.user_attrs.get("reason", ""),
    )  # fmt: skip
