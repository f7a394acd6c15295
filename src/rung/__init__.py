"""Rung: customize a large language model for one task, and prove which customization is worth it.

A tour:

    task = rung.Task.load("task.yaml")
    climb = rung.climb(task, budget="10m")  # race all techniques; `climb.recommended` is an Artifact
    climb.recommended.predict([{"text": "My card has not arrived"}])
    zero = rung.Artifact.zero_shot(task)  # or one step at a time
    tuned = rung.rungs.LoRA(rank=16).fit(zero, data := task.read())
    rung.compare(zero, tuned, data.test)  # the difference with its interval, rows fixed and broken, and p
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rung._version import __version__

if TYPE_CHECKING:
    from rung import rungs
    from rung.artifact.artifact import Artifact
    from rung.artifact.predict_file import predict
    from rung.climbing import climb
    from rung.climbing.trust import trust
    from rung.errors import RungError
    from rung.evaluation.scoring import compare
    from rung.task import Task

__all__ = ["Artifact", "RungError", "Task", "__version__", "climb", "compare", "predict", "rungs", "trust"]

_HOMES = {
    "Artifact": "rung.artifact.artifact",
    "RungError": "rung.errors",
    "Task": "rung.task",
    "climb": "rung.climbing",
    "compare": "rung.evaluation.scoring",
    "predict": "rung.artifact.predict_file",
    "rungs": "rung.rungs",
    "trust": "rung.climbing.trust",
}


def __getattr__(name: str) -> Any:
    # Import names on first use: `import rung` takes under 50 ms, and torch is loaded only when a model runs.
    if name not in _HOMES:
        raise AttributeError(f"module 'rung' has no attribute {name!r}")
    home = import_module(_HOMES[name])
    return home if name == "rungs" else getattr(home, name)


def __dir__() -> list[str]:
    return __all__
