"""The arms of a climb: how each is made, how it answers rows, and what it takes.

An arm is a rung on top of another arm, or one of the bases: zero-shot and what is served. With folds it has one
artifact for each fold, made without the fold's rows, unless making it reads no rows. Without folds, an arm that is made
in seconds has two: fold 0, from the training rows, answers the validation rows; the one that answers the test rows, and
is recommended, is made from both.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import NoReturn

from rung.artifact.artifact import Artifact
from rung.artifact.costs import TOGETHER
from rung.artifact.files import MANIFEST
from rung.climbing.budget import Budget, duration_text
from rung.climbing.options import REFUSED, ClimbOptions, Crew
from rung.climbing.paces import Paces
from rung.climbing.store import RunStore
from rung.climbing.worth import Worth
from rung.data.rows import Data, Example
from rung.errors import RungError
from rung.evaluation.decision import level_of
from rung.evaluation.metrics.registry import METRICS
from rung.evaluation.prices import Prices, order_of_cheaper
from rung.evaluation.racing import race_order
from rung.evaluation.result import Prediction, Split, Status
from rung.evaluation.scoring import evaluate, metric_of, no_probabilities, row_values
from rung.machine import Machine
from rung.models.files import write_atomically
from rung.models.reference import is_endpoint
from rung.rungs.base import Cost, Rung
from rung.rungs.costs import inference_cost
from rung.task import Task

BOARD = 8  # arms that are shown while the climb goes on
BATCH = 32  # rows answered between two writes: what a kill may cost
BATCH_SECONDS = 4.0  # the same in time, unless fewer rows than `TOGETHER` take as long
FIRST_ROWS = 2  # of an arm, where there is a budget
OPENING_SECONDS = 4.0  # that the libraries and weights of a local language model take to load
Fold = int | None  # None: made from all rows that it may learn from


@dataclass(frozen=True)
class Ruler:
    """Rows that arms are measured on, in the order in which all answer them, and the fold of each row."""

    split: Split
    rows: tuple[Example, ...]
    folds: tuple[Fold, ...]

    def __len__(self) -> int:
        return len(self.rows)


def rulers(data: Data) -> tuple[Ruler, Ruler]:
    """The rows to search by and those to confirm by; with folds and no test file these are the same."""
    if data.folds:
        placed = [(row, fold) for fold, rows in enumerate(data.folds) for row in race_order(rows)]
        search = Ruler("folds", tuple(row for row, _ in placed), tuple(fold for _, fold in placed))
    else:
        search = Ruler("validation", race_order(data.validation), (0,) * len(data.validation))
    if data.folds and not data.test:
        return search, search
    return search, Ruler("test", race_order(data.test), (None,) * len(data.test))


@dataclass
class Arm:
    """One candidate of the climb.

    Attributes:
        name: the names of its rungs, joined by `+`.
        family: that of its last rung.
        rung: the last rung; None for a base.
        base: the arm that the rung is put on; None for a base.
        cost: what it is estimated to take, before corrections; None for a base that was not estimated.
        expected_fit, expected_row: seconds to make it once and to answer a row, as expected when it was chosen.
        artifacts: by fold, as far as they were made.
        raced: whether its race has begun.
        dropped: why it left the race; empty while it is in it.
    """

    name: str
    family: str
    rung: Rung | None = None
    base: Arm | None = None
    cost: Cost | None = None
    expected_fit: float = 0.0
    expected_row: float = 0.0
    operations: float | None = None  # of a prediction, once estimated
    artifacts: dict[Fold, Artifact] = field(default_factory=dict)
    raced: bool = False
    dropped: str = ""

    @property
    def path(self) -> tuple[str, ...]:
        """The names of its rungs, its base first."""
        return next(iter(self.artifacts.values())).path

    @property
    def depth(self) -> int:
        """How many rungs it is above its base."""
        return 0 if self.base is None else self.base.depth + 1

    @property
    def learns(self) -> bool:
        """Whether making it reads training rows, so that each fold needs its own."""
        return self.rung is not None and (self.rung.learns or (self.base is not None and self.base.learns))

    @property
    def refits(self) -> bool:
        """Whether the validation rows are among those that it is made from in the end, where there are no folds."""
        if self.rung is None or self.base is None:
            return False
        return self.rung.refits if self.rung.learns else self.base.refits


@dataclass(frozen=True, slots=True)
class Left:
    """An arm that was not measured, and why.

    Attributes:
        again: whether a climb that goes on with more budget tries it.
        lacked_budget: whether the budget is the reason.
        seconds, gain: what it is expected to take and, as a share, to gain over the leader.
    """

    status: Status
    reason: str
    family: str
    again: bool = False
    lacked_budget: bool = False
    seconds: float = 0.0
    gain: float = 0.0


class FitFailed(Exception):  # noqa: N818
    """An arm cannot be made; the climb goes on without it."""

    def __init__(self, arm: Arm, cause: Exception) -> None:
        super().__init__(f"{arm.name}: {cause}")
        self.arm, self.cause = arm, cause


def raise_failed(arm: Arm, error: Exception) -> NoReturn:
    """Say that an arm cannot be made or answer; what no worker can do is raised itself, and ends the climb."""
    if isinstance(error, RungError) and error.code in REFUSED:
        raise error
    raise FitFailed(arm, error) from error


@dataclass
class ClimbState:
    """What the search of a climb and its conclusion share."""

    task: Task
    data: Data
    options: ClimbOptions
    rungs: tuple[Rung, ...]  # all rungs to try
    models: tuple[Rung, ...]  # those among them that are raced alone before the others
    machine: Machine
    store: RunStore
    budget: Budget
    worth: Worth
    paces: Paces
    named: frozenset[str] = frozenset()  # rungs that somebody asked for by name: none of them is put off
    arms: dict[str, Arm] = field(default_factory=dict)
    left: dict[str, Left] = field(default_factory=dict)
    leader: str = ""
    incumbent: str = ""
    proven: str = ""  # the arm that was last shown to be better than the incumbent
    overran: set[str] = field(default_factory=set)  # arms that took too much of the budget
    opened: set[str] = field(default_factory=set)  # language models that have answered
    scoring_seconds: float = 0.0  # what the metric takes for an answer, such as a judge's verdict
    number: int = 1  # of this decision among those that the same rows have made
    model_chosen: str = ""  # the base that the ramp starts from; empty while several models are raced
    crew: Crew | None = None  # workers that share the work

    def __post_init__(self) -> None:
        self.search, self.confirm = rulers(self.data)
        self.scoring = METRICS["accuracy"]  # the task's, from the first base on

    @property
    def margin(self) -> float:
        """The loss, a share, that a cheaper arm may have."""
        return self.task.constraints.within

    @property
    def level(self) -> float:
        """The level of the gate."""
        return level_of(self.number)

    def add_base(self, artifact: Artifact, family: str) -> None:
        """Add zero-shot or what is served; the first is the incumbent."""
        cost = inference_cost(artifact, self.data, self.machine)
        self.arms[artifact.name] = Arm(artifact.name, family, cost=cost, artifacts={None: artifact})
        self.incumbent, self.paces.model = self.incumbent or artifact.name, self.paces.model or cost
        self.model_chosen = "" if self.models else self.incumbent
        self.scoring = metric_of(artifact, self.task.folder)

    @property
    def whole(self) -> bool:
        """Whether the metric is a statistic of all rows together, so that no arm may leave the race early."""
        return self.scoring.whole is not None

    @property
    def metric(self) -> str:
        """Name of the metric."""
        return self.some(self.arms[self.incumbent]).signature.metric

    # ---- making arms

    def some(self, arm: Arm) -> Artifact:
        """Any artifact of the arm: all have the same parts."""
        return next(iter(arm.artifacts.values()))

    @staticmethod
    def key(arm: Arm, fold: Fold) -> str:
        """What the run folder calls the arm's artifact of a fold."""
        return arm.name if fold is None else f"{arm.name}/folds/{fold}"

    def fold_of(self, arm: Arm, fold: Fold) -> Fold:
        """The fold whose artifact of the arm serves for this one: None where one artifact serves for all."""
        return fold if arm.learns and (self.data.folds or arm.refits) else None

    def fold_below(self, arm: Arm, fold: Fold) -> Fold:
        """The fold whose artifact of the base an arm is put on; what is not made twice saw no validation row."""
        assert arm.base is not None
        return self.fold_of(arm.base, fold if self.data.folds or arm.refits else 0)

    def made(self, arm: Arm, fold: Fold) -> Artifact:
        """Make the arm from all rows or without those of a fold, or load it from the run folder.

        Raises:
            FitFailed: its rung, or one that it is put on, failed.
        """
        fold = self.fold_of(arm, fold)
        if fold not in arm.artifacts:
            assert arm.rung is not None
            assert arm.base is not None
            key = self.key(arm, fold)
            kept = self.store.kept(key)
            if kept is None or not self.store.noted("fitted", name=key):
                base = self.made(arm.base, self.fold_below(arm, fold))
                began = self.begin()
                try:
                    *_, (_, fitted) = self.fitting(arm, base, fold, parts=False)
                except Exception as error:
                    raise_failed(arm, error)
                kept = self.keep(arm, fold, fitted, began)
            arm.artifacts[fold] = kept
        return arm.artifacts[fold]

    def fitting(self, arm: Arm, base: Artifact, fold: Fold, *, parts: bool = True) -> Iterator[tuple[float, Artifact]]:
        """Make an arm, here or by the crew; with `parts`, also give it after parts of its training."""
        assert arm.rung is not None
        if self.crew is None or arm.rung in self.models:
            data = arm.rung.rows_to_fit(self.data, fold)
            if parts:
                yield from arm.rung.fit_in_parts(base, data, progress=self.budget)
            else:
                yield 1.0, arm.rung.fit(base, data, progress=self.budget)
            return
        self.order_fit(arm, fold)
        self.budget.start(f"{arm.name} on a worker")
        try:
            for share, artifact in self.crew.made(self.key(arm, fold), self.budget):
                if parts or share == 1:
                    yield share, artifact
        finally:
            self.budget.finish()

    def order_fit(self, arm: Arm, fold: Fold, *, ahead: bool = False) -> bool:
        """Have the crew make an arm and what it is put on; say whether the crew can answer with it then."""
        fold = self.fold_of(arm, fold)
        if arm.rung is None or arm.base is None or fold in arm.artifacts:
            return True
        key, below = self.key(arm, fold), self.fold_below(arm, fold)
        if self.store.noted("fitted", name=key) and (self.store.artifact_folder(key) / MANIFEST).is_file():
            return True
        if self.crew is None or arm.rung in self.models or not self.order_fit(arm.base, below, ahead=ahead):
            return False
        parts = arm.rung.has_parts and fold == self.first_fold(arm)
        self.crew.fit(key, arm.rung.name, self.key(arm.base, below), fold, parts=parts, ahead=ahead)
        return True

    def first_fold(self, arm: Arm) -> Fold:
        """The fold of the artifact that answers the first rows of the search."""
        return self.fold_of(arm, self.search.folds[0]) if self.search.folds else None

    def order(self, arm: Arm, ruler: Ruler, until: int, *, ahead: bool = False) -> None:
        """Have the crew begin with what `scores` is going to ask for."""
        if self.crew is None:
            return
        known = self.store.predictions(arm.name)
        placed = list(zip(ruler.rows, ruler.folds, strict=True))[:until]
        for fold, group in groupby(placed, key=lambda pair: pair[1]):
            missing = [row.id for row, _ in group if (ruler.split, row.id) not in known]
            if missing and self.order_fit(arm, fold, ahead=ahead):
                self.crew.ask(self.key(arm, self.fold_of(arm, fold)), ruler.split, missing, ahead=ahead)

    def begin(self) -> tuple[float, float]:
        """The time, and the money spent at endpoints, before an arm is made; raises TimeUp if nothing is left."""
        self.budget.check()
        return time.perf_counter(), self.store.paid().money

    def keep(self, arm: Arm, fold: Fold, artifact: Artifact, began: tuple[float, float]) -> Artifact:
        """Save what was made since `began`, and record what it took."""
        key = self.key(arm, fold)
        kept = arm.artifacts[fold] = self.store.keep(artifact, key)
        took, paid = time.perf_counter() - began[0], self.store.paid().money - began[1]
        if self.crew is not None and (work := self.crew.took(key)) is not None:
            took, paid = work
        self.store.note(
            "fitted", name=key, fit_seconds=round(took, 3), fit_money=paid, aside=self.crew is not None
        )  # fmt: skip
        if arm.cost is not None and arm.rung is not None and arm.rung.trains_weights:
            self.paces.fits[arm.name] = (arm.cost, took)
        return kept

    def fit(self, arm: Arm) -> dict[str, float]:
        """The measured seconds and money to make the arm once, on top of its base; with folds, the means."""
        keys = [self.key(arm, fold) for fold in (None, *range(self.fits))]
        entries = [entry for key in keys if (entry := self.store.noted("fitted", name=key))]
        return {
            name: sum(float(entry[name]) for entry in entries) / max(1, len(entries))
            for name in ("fit_seconds", "fit_money")
        }

    def whole_fit(self, arm: Arm) -> dict[str, float]:
        """The same with everything that it is put on."""
        own = self.fit(arm)
        return own if arm.base is None else {name: own[name] + self.whole_fit(arm.base)[name] for name in own}

    @property
    def fits(self) -> int:
        """How often an arm that learns is made to answer all rows of the search."""
        return max(1, len(self.data.folds))

    # ---- answering

    def scores(self, arm: Arm, ruler: Ruler, until: int | None = None) -> list[float]:
        """The arm's scores on the first `until` rows, those missing answered now; without `until`, those known.

        Their mean is the metric: see `row_values`.
        """
        known = self.store.predictions(arm.name)
        if until is None:
            seen = []
            for row in ruler.rows:
                if (ruler.split, row.id) not in known:
                    break
                seen.append(known[ruler.split, row.id])
            return row_values(self.scoring, seen)
        placed = list(zip(ruler.rows, ruler.folds, strict=True))[:until]
        self.order(arm, ruler, until)
        for fold, group in groupby(placed, key=lambda pair: pair[1]):
            missing = [row for row, _ in group if (ruler.split, row.id) not in known]
            if missing:
                artifact, key = self.made(arm, fold), self.key(arm, self.fold_of(arm, fold))
                self._answer(arm, artifact, missing, ruler.split, arm.name, key)
        self._learn_pace(arm)
        return row_values(self.scoring, [known[ruler.split, row.id] for row, _ in placed])

    def part_scores(self, arm: Arm, percent: int, artifact: Artifact, ruler: Ruler, until: int) -> list[float]:
        """The scores of an arm that is trained to a part only."""
        key = f"{arm.name}/parts/{percent}"
        known = self.store.predictions(key)
        missing = [row for row in ruler.rows[:until] if (ruler.split, row.id) not in known]
        self._answer(arm, artifact, missing, ruler.split, key, key)
        return [known[ruler.split, row.id].score for row in ruler.rows[:until]]

    def _answer(self, arm: Arm, artifact: Artifact, rows: Sequence[Example], split: Split, name: str, key: str) -> None:
        """Answer rows with the artifact `key` in batches of few seconds; each is stored under `name` when done."""
        rest = list(rows)
        if not rest:
            return
        if self.scoring.top and not artifact.decoder.gives_probs:
            error = no_probabilities(artifact, self.scoring)
            raise error if arm.rung is None else FitFailed(arm, error)
        with self._noted_answers(name):
            self._answer_all(arm, artifact, rest, split, name, key)

    @contextmanager
    def _noted_answers(self, name: str) -> Iterator[None]:
        """Record how long answers take, also those before an error or the end of the budget."""
        began, known = time.perf_counter(), len(self.store.predictions(name))
        try:
            yield
        finally:
            if rows := len(self.store.predictions(name)) - known:
                self.store.note("answered", name=name, rows=rows, took=round(time.perf_counter() - began, 3))

    def _answer_all(self, arm: Arm, artifact: Artifact, rest: list[Example], split: Split, name: str, key: str) -> None:
        self.budget.start(f"{arm.name} on {split}", len(rest))
        if self.crew is not None:
            try:
                for answered in self.crew.answers(key, split, [row.id for row in rest], self.budget):
                    self._keep_answers(arm, name, answered)
            except Exception as error:
                if arm.rung is None:
                    raise  # without a base there is nothing to compare with
                raise_failed(arm, error)
            rest = []
        while rest:
            pace = self.row_seconds(arm) + self.scoring_seconds
            self.budget.check(pace + self.opening(artifact))
            size = BATCH if pace <= 0 else max(TOGETHER, min(BATCH, int(BATCH_SECONDS / pace)))
            if self.budget.limits.seconds is not None and not self.store.predictions(arm.name):
                size = min(size, FIRST_ROWS)  # how long they take is only guessed
            if self.budget.left() < size * pace:
                size = max(1, int(self.budget.left() / pace))
            batch, rest = rest[:size], rest[size:]
            began = time.perf_counter()
            answered = evaluate(artifact, batch, split, folder=self.task.folder, progress=self.budget)
            beside = (time.perf_counter() - began - sum(row.seconds for row in answered)) / len(answered)
            self.scoring_seconds = min(self.scoring_seconds or beside, beside)
            self.opened |= {artifact.model} if artifact.decoder.uses_llm else set()
            self._keep_answers(arm, name, answered)
        self.budget.finish()

    def _keep_answers(self, arm: Arm, name: str, answered: Sequence[Prediction]) -> None:
        self.store.add(name, answered)
        self._learn_pace(arm)
        self.budget.board(*self._standing(arm))
        self.budget.advance(len(answered))

    def _standing(self, now: Arm) -> tuple[list[str], str]:
        """Where the arms stand, the leader first, and the same of one of them in a line."""
        scores = {name: own for name, arm in self.arms.items() if (own := self.scores(arm, self.search))}
        ranked = sorted(
            scores, key=lambda name: (bool(self.arms[name].dropped), -sum(scores[name]) / len(scores[name]))
        )
        lines = []
        for name in ranked[:BOARD]:
            state = "left the race" if self.arms[name].dropped else "leads" if name == self.leader else ""
            state = ", ".join(filter(None, (state, "answering" if name == now.name else "")))
            score = f"{100 * sum(scores[name]) / len(scores[name]):5.1f} %"
            rows = f"{len(scores[name])} of {len(self.search)} rows"
            lines.append(f"  {name:24} {score}  {rows:>18}  {state}".rstrip())
        if len(ranked) > BOARD:
            lines.append(f"  and {len(ranked) - BOARD} more")
        waiting = [rung.name for rung in self.rungs if rung.name not in self.arms and rung.name not in self.left]
        if waiting:
            more = f" and {len(waiting) - BOARD} more" if len(waiting) > BOARD else ""
            lines.append(f"  to come: {', '.join(waiting[:BOARD])}{more}")
        own = scores.get(now.name, [])
        news = f"{now.name} {100 * sum(own) / len(own):.1f} % on {len(own)} rows" if own else f"{now.name} answers"
        leads = f"; {self.leader} leads" if self.leader and self.leader != now.name else ""
        return lines, news + leads

    def opening(self, artifact: Artifact) -> float:
        """The seconds to open the model that answers, if no arm of this process has opened it yet."""
        waits = artifact.decoder.uses_llm and not is_endpoint(artifact.model) and artifact.model not in self.opened
        return OPENING_SECONDS if waits else 0.0

    def _learn_pace(self, arm: Arm) -> None:
        """Remember the measured time of the arm's rows beside the estimated one."""
        if arm.cost is not None and self.store.predictions(arm.name):
            rows = self.store.predictions(arm.name).values()
            self.paces.rows[arm.name] = (arm.cost, self.row_seconds(arm))
            self.paces.written[arm.name] = sum(row.completion_tokens for row in rows) / len(rows)

    def row_seconds(self, arm: Arm) -> float:
        """The seconds that a row takes: measured, else expected; 0 if nothing is known."""
        rows = self.store.predictions(arm.name)
        if rows:
            return sum(row.seconds for row in rows.values()) / len(rows)
        return self.paces.row_seconds(arm.name, arm.cost) if arm.cost else 0.0

    def cost(self, arm: Arm) -> float:
        """A number that orders arms by the price of a prediction, training included."""
        if arm.operations is None:
            artifact = self.some(arm)
            arm.operations = artifact.decoder.row_flops(artifact, self.data.train)
        rows = list(self.store.predictions(arm.name).values())
        return order_of_cheaper(rows, self.some(arm), self.task, arm.operations, **self.whole_fit(arm))

    def money(self) -> float | None:
        """What the climb has spent, at endpoints and of this machine's hours; None where the prices are not known."""
        prices = Prices.of(self.task)
        spent = self.store.paid().money + self.budget.spent() / 3600 * prices.machine_hour
        spent += self.crew.money if self.crew is not None else 0.0
        return spent if prices.known(self.task.models) else None

    # ---- what was not measured

    def leave(self, name: str, family: str, status: Status, reason: str, began: float | None = None) -> None:
        """Record that an arm is not measured, also for a resumed climb; `began` is when its training did."""
        self.left[name] = Left(status, reason, family)
        took = {} if began is None else {"fit_seconds": round(time.perf_counter() - began, 3)}
        self.store.note(status, name=name, reason=reason, **took)

    def failed(self, arm: Arm, error: Exception) -> None:
        """Record that an arm failed: one broken rung must not cost the others their results."""
        if isinstance(error, RungError):
            reason = f"{error} [{error.code}]"
        else:
            folder = self.store.folder / "rungs" / arm.name
            write_atomically(folder / "error.txt", "".join(traceback.format_exception(error)))
            reason = f"{type(error).__name__}: {error}; see {folder / 'error.txt'}"
        self.leave(arm.name, arm.family, "failed", reason)
        self.arms.pop(arm.name, None)
        if arm.name == self.leader:
            self.leader = max((each.name for each in self.alive()), key=self._mean, default="")

    def _mean(self, name: str) -> float:
        """An arm's mean score in the search; below all others where it has answered nothing."""
        own = self.scores(self.arms[name], self.search)
        return sum(own) / len(own) if own else -1.0

    def say(self) -> None:
        """Tell how far the climb is: the time, the arms, and the leader with its lead."""
        spent = duration_text(self.budget.spent())
        if (whole := self.budget.limits.seconds) is not None:
            spent = f"{spent} of {duration_text(whole)}"
        text = f"{spent}, {sum(arm.raced for arm in self.arms.values())} measured"
        if self.leader and (own := self.scores(self.arms[self.leader], self.search)):
            text += f"; {self.leader} leads with {100 * sum(own) / len(own):.0f} % on {len(own)} rows"
        if self.proven and self.proven == self.leader:
            own, base = (self.scores(self.arms[name], self.confirm) for name in (self.leader, self.incumbent))
            n = min(len(own), len(base))
            text += f", {100 * (sum(own[:n]) - sum(base[:n])) / n:+.0f} over {self.incumbent} on {n} rows, proven"
        self.budget.say(text)

    def alive(self) -> Iterator[Arm]:
        """The arms that are in the race."""
        return (arm for arm in self.arms.values() if arm.raced and not arm.dropped)
