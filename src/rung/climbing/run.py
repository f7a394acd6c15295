"""The climb itself: from the task and its data to a result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rung._version import __version__
from rung.artifact.artifact import Artifact
from rung.climbing.check import validate_task
from rung.climbing.conclude import conclude
from rung.climbing.options import DEFAULTS, ClimbOptions, chosen_rungs, parse_duration
from rung.climbing.race import ClimbState, run_stages
from rung.climbing.store import open_run
from rung.data.rows import Data
from rung.engines.opening import settled
from rung.errors import ConfigError
from rung.evaluation.result import ClimbResult, Prediction
from rung.evaluation.scoring import validate_references
from rung.machine import this_machine
from rung.progress import QUIET, Progress
from rung.rungs import build
from rung.rungs.models import other_models
from rung.task import Task

SERVED = "served"  # the name of an incumbent other than zero-shot


@dataclass(frozen=True)
class Climb:
    """A finished climb: its result, and the folder with its artifacts and predictions."""

    result: ClimbResult
    folder: Path
    predictions: Mapping[str, Sequence[Prediction]]

    @property
    def recommended(self) -> Artifact:
        """The recommended artifact, ready to predict, save and serve."""
        return self.artifact(self.result.recommended)

    def artifact(self, name: str) -> Artifact:
        """Load one of the climb's artifacts by name."""
        folders = {rung.name: rung.artifact for rung in self.result.rungs if rung.artifact}
        if name not in folders:
            hint = f"it has {', '.join(folders)}"
            raise ConfigError("unknown-name", f"the climb has no artifact {name!r}", hint=hint)
        return Artifact.load(folders[name])


def climb(
    task: Task, budget: str | float | None = None, *, progress: Progress = QUIET, options: ClimbOptions = DEFAULTS,
    incumbent: Artifact | None = None, data: Any = None,
) -> Climb:  # fmt: skip
    """Climb: measure every rung that applies, confirm the best on the test split, recommend one.

    With an incumbent, rungs are tried on top of the incumbent and of zero-shot, and the recommended artifact has to
    beat the incumbent significantly. The incumbent is the first in the result, under the name `served`.

    Args:
        task: the task, with its data.
        budget: the most time to spend, as seconds or text such as `10m`; it replaces that of `options`.
        progress: reports every step.
        options: everything else.
        incumbent: the artifact to beat; None for zero-shot.
        data: rows to climb on instead of those that the task names: `Data`, or what `Task.read` takes.

    Raises:
        ConfigError: the data has no validation or test rows, or a rung's name is unknown.
    """
    if budget is not None:
        options = replace(options, budget_seconds=parse_duration(budget))
    validate_task(task)
    data = data if isinstance(data, Data) else task.read(data)
    for split in ("validation", "test"):
        if not getattr(data, split):
            hint = f"give `data.{split}`, or a fraction to split off"
            raise ConfigError("too-few-rows", f"the {split} split has no rows", hint=hint)
    validate_references(task, data)
    names = chosen_rungs(task, options)
    if task.output.kind != "category":  # a resumed run keeps the engine that `auto` meant
        options = replace(options, engine=settled(task.model, options.engine, progress=progress))
    identity: dict[str, Any] = {
        "task": task.name, "task_fingerprint": task.fingerprint(), "data_fingerprint": data.fingerprint,
        "rungs": list(names), "seed": options.seed, "engine": options.engine, "version": __version__,
    }  # fmt: skip
    if incumbent is not None:
        # Its path becomes one name, so that the rungs that made it may be tried on top of it again, with new rows.
        incumbent = replace(incumbent, path=("zero-shot", SERVED))
        identity["incumbent"] = incumbent.fingerprint()
    models = other_models(task)
    rungs = (*models, *build(names, task, options.seed))
    if task.corpus is not None and any(one.reads_corpus for one in rungs):
        from rung.retrieval.build import build_index

        # Changed documents make another climb: all rows of a climb are answered from the same documents.
        identity["corpus_fingerprint"] = build_index(task, progress=progress).fingerprint
    store = open_run(options.out, identity, resume=options.resume)
    state = ClimbState(task, data, options, rungs, models, this_machine(), store, progress)
    start = Artifact.zero_shot(task.only(task.model), data.labels, engine=options.engine)
    bases = [store.kept(one.name) or store.keep(one) for one in (incumbent, start) if one is not None]
    for base in bases:
        state.artifacts[base.name], state.families[base.name] = base, "served" if base.name == SERVED else "prompting"
    state.trail.append(bases[0].name)
    survivors = run_stages(state, bases)
    result = conclude(state, survivors)
    predictions = {name: tuple(store.predictions(name).values()) for name in state.artifacts}
    return Climb(result, store.folder, predictions)
