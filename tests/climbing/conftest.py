from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from planted import Planted, Stage, examples
from rung.climbing import arms as arms_module
from rung.climbing import budget as budget_module
from rung.climbing import run as run_module


@pytest.fixture
def stage(task, data, tiny_folder, tmp_path, monkeypatch) -> Callable[..., Stage]:
    """Return a function that makes a stage: with `folds`, the rows are answered out of fold."""

    def make(*rungs: Planted, rows: int = 200, folds: bool = False, test: bool = False, **settings: Any) -> Stage:
        small = task.model_copy(update={"model": str(tiny_folder)})
        if folds:
            all_rows = examples(rows, "row")
            parts = tuple(all_rows[i::5] for i in range(5))
            own = examples(rows, "test") if test else ()
            mine = replace(data, train=all_rows, validation=(), test=own, folds=parts)
        else:
            parts = (examples(rows, "train"), examples(rows, "validation"), examples(rows, "test"))
            mine = replace(data, train=parts[0], validation=parts[1], test=parts[2], folds=())
        made = Stage(small, mine, tmp_path / "runs", **settings).add(*rungs)
        monkeypatch.setattr(run_module, "build", lambda names, task, seed: tuple(made.rungs[n] for n in names))
        monkeypatch.setattr(run_module, "chosen_rungs", lambda task, options: options.rungs or tuple(made.rungs))
        monkeypatch.setattr(arms_module, "evaluate", made.evaluate)
        clock = SimpleNamespace(monotonic=lambda: made.clock, perf_counter=lambda: made.clock)
        monkeypatch.setattr(budget_module, "time", clock)
        monkeypatch.setattr(arms_module, "time", clock)
        return made

    return make
