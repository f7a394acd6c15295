"""The climb itself: from the task and its data to a result."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rung._version import __version__
from rung.artifact.artifact import Artifact
from rung.artifact.files import nothing_recommended
from rung.climbing.arms import ClimbState
from rung.climbing.budget import Budget, Limits, parse_budget
from rung.climbing.check import validate_task
from rung.climbing.conclude import conclude
from rung.climbing.confirm import confirm
from rung.climbing.next_steps import decisions
from rung.climbing.options import DEFAULTS, ClimbOptions, chosen_rungs, named_rungs
from rung.climbing.paces import Paces
from rung.climbing.race import not_tried, search
from rung.climbing.store import RunStore, engine_of_run, open_run
from rung.climbing.trust import check_allowed
from rung.climbing.worth import Worth
from rung.data.rows import Data
from rung.engines.encoders import is_exported
from rung.engines.opening import choosing_seconds, expected_speedup, open_encoder, settled
from rung.engines.openvino_export import ExportPrecision
from rung.errors import ConfigError, needed_by
from rung.evaluation.report import plots, words
from rung.evaluation.result import ClimbResult, Prediction
from rung.evaluation.scoring import validate_references
from rung.machine import this_machine
from rung.models.reference import is_endpoint, resolve
from rung.progress import Progress, card, default_progress, table_html
from rung.rungs import Rung, build
from rung.rungs.models import other_models
from rung.task import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FRAME_KEYS = (
    "family", "status", "score", "low", "high", "n", "split", "price_per_1000", "seconds_per_row", "fit_seconds",
    "artifact",
)  # fmt: skip
ROW_KEYS = ("split", "id", "expected", "prediction", "score", "confidence", "seconds")
CHOOSING_SHARE = 0.5  # of the budget that choosing an engine may take, once on a machine: it writes twice as fast
LAYOUT = 3  # of run folders; the climb of an older one starts anew
SERVED = "served"  # the name of an incumbent other than zero-shot


@dataclass(frozen=True)
class Climb:
    """A finished climb: its result, and the folder with its artifacts and predictions."""

    result: ClimbResult
    folder: Path
    predictions: Mapping[str, Sequence[Prediction]]

    @property
    def recommended(self) -> Artifact:
        """The recommended artifact, ready to predict, save and serve; an ArtifactError if nothing was measured."""
        if not self.result.recommends:
            raise nothing_recommended(self.folder, self.result.recommended)
        return self.artifact(self.result.recommended)

    def artifact(self, name: str) -> Artifact:
        """Load one of the climb's artifacts by name."""
        folders = {rung.name: rung.artifact for rung in self.result.rungs if rung.artifact}
        if name not in folders:
            hint = f"it has {', '.join(folders)}"
            raise ConfigError("unknown-name", f"the climb has no artifact {name!r}", hint=hint)
        return Artifact.load(folders[name])

    @property
    def plot(self) -> ClimbPlots:
        """The figures of the report, as figures of matplotlib: `climb.plot.ladder()`."""
        return ClimbPlots(self.result, self.predictions)

    def to_frame(self) -> Any:
        """The measured rungs as a pandas DataFrame: status, score, interval, price, seconds."""
        with needed_by("a data frame"):
            import pandas

        rungs = [
            {"rung": rung.name, **{key: getattr(rung, key) for key in FRAME_KEYS}}
            for rung in words.measured(self.result)
        ]
        return pandas.DataFrame(rungs)

    def rows_frame(self) -> Any:
        """The measured rows as a pandas DataFrame: one line for each rung and row, with the answer and its score."""
        with needed_by("a data frame"):
            import pandas

        return pandas.DataFrame(
            [
                {"rung": name, **{key: getattr(row, key) for key in ROW_KEYS}}
                for name, rows in self.predictions.items()
                for row in rows
            ]
        )

    def __repr__(self) -> str:
        return f"Climb({self.result.task}: {self.result.decision})"

    def _repr_html_(self) -> str:
        rungs = words.measured(self.result)
        best = next((place for place, rung in enumerate(rungs) if rung.name == self.result.recommended), None)
        heads = ("rung", f"{self.result.metric} [95 %]", *words.QUALITY, *words.COSTS)
        rows = [
            (rung.name, words.score_text(rung), *words.quality(self.result, rung), *words.costs(rung)) for rung in rungs
        ]
        return card(self.result.decision, {"report": self.folder / "report.html"}, table_html(heads, rows, best=best))


@dataclass(frozen=True)
class ClimbPlots:
    """The figures of a climb; each is a figure of matplotlib, or None where there is nothing to draw."""

    result: ClimbResult = field(repr=False)
    predictions: Mapping[str, Sequence[Prediction]] = field(repr=False)

    def ladder(self) -> Figure:
        """The score of every rung with its interval."""
        return plots.ladder(self.result)

    def price(self) -> Figure | None:
        """Quality against the price of 1,000 predictions, with the efficient frontier."""
        return plots.price(self.result)

    def confusions(self) -> Figure | None:
        """The labels that the recommended rung confuses most."""
        split = next(rung.split for rung in self.result.rungs if rung.name == self.result.recommended)
        rows = [row for row in self.predictions.get(self.result.recommended, ()) if row.split == split]
        return plots.confusions(self.result, rows) if rows else None

    def reliability(self) -> Figure | None:
        """How often answers are right against their confidence."""
        return plots.reliability(self.result)

    def coverage(self) -> Figure | None:
        """Accuracy against the share of rows answered."""
        return plots.coverage(self.result)

    def loss(self) -> Figure | None:
        """The training loss of every trained rung."""
        return plots.loss(self.result)

    def learning_curve(self) -> Figure | None:
        """The score of a head or of the recommended arm against training rows, and what twice as many would bring."""
        return plots.learning_curve(self.result)

    def budget(self) -> Figure | None:
        """What the climb's time went to, arm by arm."""
        return plots.budget(self.result)


def climb(
    task: Task, budget: str | float | None = None, *, progress: Progress | None = None,
    options: ClimbOptions = DEFAULTS, incumbent: Artifact | None = None, data: Any = None,
) -> Climb:  # fmt: skip
    """Climb: measure the rungs that apply, the most promising first, and recommend one.

    The budget ends the climb at any moment with the best that was found so far. With an incumbent, rungs are tried on
    top of the incumbent and of zero-shot, and the recommended artifact has to be better than the incumbent, or cheaper
    and as good. The incumbent is the first in the result, under the name `served`.

    Args:
        task: the task, with its data.
        budget: the most to spend, as seconds or text such as `10m` or `5USD`; it replaces that of `options`.
        progress: reports every step; by default on the terminal or in the notebook, if there is one.
        options: everything else.
        incumbent: the artifact to beat; None for zero-shot.
        data: rows to climb on instead of those that the task names: `Data`, or what `Task.read` takes.

    Raises:
        ConfigError: the data has no rows to compare by, or a rung's name is unknown.
    """
    check_allowed(task)
    if budget is not None:
        seconds, money = parse_budget(budget)
        options = replace(options, budget_seconds=seconds, budget_money=money)
    watch = Budget(progress or default_progress(), Limits(options.budget_seconds, options.budget_money))
    validate_task(task)
    data = data if isinstance(data, Data) else task.read(data)
    if data.folds and task.output.kind == "ranking":
        hint = "set `data.split.method: holdout`"
        raise ConfigError(
            "bad-value", "kind ranking looks rows up in all training rows, so it cannot be measured by folds", hint=hint
        )
    for split in () if data.folds else ("validation", "test"):
        if not getattr(data, split):
            hint = f"give `data.{split}`, or a fraction to split off"
            raise ConfigError("too-few-rows", f"the {split} split has no rows", hint=hint)
    validate_references(task, data)
    names = chosen_rungs(task, options)
    models = other_models(task)
    rungs = (*models, *build(names, task, options.seed))
    identity: dict[str, Any] = {
        "task": task.name, "kind": task.output.kind, "task_fingerprint": task.fingerprint(),
        "data_fingerprint": data.fingerprint, "seed": options.seed, "version": __version__, "layout": LAYOUT,
    }  # fmt: skip
    if incumbent is not None:
        # Its path becomes one name, so that the rungs that made it may be tried on top of it again, with new rows.
        incumbent = replace(incumbent, path=("zero-shot", SERVED))
        identity["incumbent"] = incumbent.fingerprint()
    with watch.apart():
        _fetch(task, data, rungs, watch)
    with watch.stage():
        if task.corpus is not None and any(one.reads_corpus for one in rungs):
            from rung.retrieval.build import build_index

            # Changed documents make another climb: all rows of a climb are answered from the same documents.
            identity["corpus_fingerprint"] = build_index(task, progress=watch).fingerprint
        if task.output.kind != "category":
            options = replace(options, engine=_engine(task, options, identity, watch))
    store = open_run(options.out, identity | {"engine": options.engine}, watch, resume=options.resume)
    try:
        return _climb(task, data, options, rungs, models, store, incumbent)
    except BaseException:
        if not store.used:  # a folder without anything to continue from would only make the next one NAME-2
            shutil.rmtree(store.folder, ignore_errors=True)
        raise
    finally:
        store.release()
        watch.board(())


def _fetch(task: Task, data: Data, rungs: Sequence[Rung], watch: Budget) -> None:
    """Download, and export, the models that the climb will open and this machine lacks."""
    if not is_endpoint(task.model):
        resolve(task.model, progress=watch)
    start = Artifact.zero_shot(task.only(task.model), data.labels)
    fitting = [rung for rung in rungs if rung.applies(start, data).applies]
    opened: set[tuple[str, ExportPrecision]] = {(name, "fp32") for rung in fitting for name in rung.encoders}
    if task.corpus is not None:
        opened.add((task.corpus.encoder, task.corpus.precision))
    for name, precision in sorted(opened):
        if not is_exported(resolve(name, progress=watch), precision):
            open_encoder(name, precision=precision, progress=watch)


def _engine(task: Task, options: ClimbOptions, identity: Mapping[str, Any], watch: Budget) -> str:
    """The engine that generates: what a resumed run has, else what `auto` means here, measured if there is time."""
    if options.engine != "auto":
        return options.engine
    if options.resume and (kept := engine_of_run(options.out, identity)) is not None:
        return kept
    if choosing_seconds(task.model, this_machine()) > CHOOSING_SHARE * watch.left():
        watch.say("torch generates: the budget is too short to measure whether another engine is faster here")
        return "torch"
    return settled(task.model, options.engine, progress=watch)


def _climb(
    task: Task, data: Data, options: ClimbOptions, rungs: Sequence[Rung], models: Sequence[Rung], store: RunStore,
    incumbent: Artifact | None,
) -> Climb:  # fmt: skip
    """Search, confirm and conclude in a run folder; rungs that its earlier processes were asked for are tried too."""
    if not any(entry["rungs"] == [rung.name for rung in rungs] for entry in store.all_noted("asked")):
        store.note("asked", rungs=[rung.name for rung in rungs], named=named_rungs(task, options))
    worth = Worth(task.output.kind)
    worth.learn_from_runs(options.out)
    before = store.all_noted("asked")
    known = {rung.name: rung for rung in rungs}
    others = [name for entry in before for name in entry["rungs"] if name not in known]
    state = ClimbState(
        task, data, options, (*rungs, *build(others, task, options.seed)), tuple(models), this_machine(), store,
        store.budget, worth, Paces(expected_speedup(task.model, options.engine)),
        frozenset(name for entry in before if entry["named"] for name in entry["rungs"]),
    )  # fmt: skip
    state.number = decisions(store.folder, [row.id for row in state.confirm.rows])
    store.budget.money = state.money
    if options.budget_money is not None and state.money() is None:
        hint = "set RUNG_API_PRICE_INPUT and RUNG_API_PRICE_OUTPUT, or give the budget as time"
        raise ConfigError(
            "bad-option", f"the prices of {task.model} are not known, so a budget in money cannot be kept", hint=hint
        )
    start = Artifact.zero_shot(task.only(task.model), data.labels, engine=options.engine)
    for base in (incumbent, start):
        if base is not None:
            state.add_base(store.kept(base.name) or store.keep(base), "served" if base.name == SERVED else "prompting")
    if options.crew is not None:
        state.crew = options.crew(task, data, store, options.seed)
    done = False
    try:
        if not store.budget.limited:
            with store.budget.stage():
                search(state)
        if store.budget.limited:
            not_tried(state)
        with store.budget.stage():
            confirm(state)
        result = conclude(state)
        done = True
    finally:
        if state.crew is not None:
            state.crew.close(state.budget, done=done)
    predictions = {name: tuple(store.predictions(name).values()) for name in state.arms}
    return Climb(result, store.folder, predictions)
