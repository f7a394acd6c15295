"""The user's own metric: `metric: mymodule:score` names a function in a Python file beside the task.

Only code that the task names and that lies on this machine runs; nothing is fetched.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rung import user_code
from rung.errors import ConfigError

_EXAMPLE = "def score(prediction: str, references: list[str]) -> float: ...  # from 0 to 1"
_METRIC = user_code.Kind("metric", _EXAMPLE, not_found="metric-not-found", import_failed="metric-import-failed")


def load(spec: str, folder: Path | None = None) -> Callable[[str, Sequence[str]], float]:
    """Return the function that `module:function` names, wrapped so that a bad score is an error.

    The module is looked for as a file in `folder`, then in the current folder, then among installed packages.

    Raises:
        ConfigError: `metric-not-found` if there is no such module or function, `metric-import-failed` if importing
            it fails, `metric-not-callable` if it cannot be called with (prediction, references). The function
            returned raises `metric-failed` if the user's code raises, and `metric-bad-score` if it returns anything
            but a number in [0, 1].
    """
    function = user_code.load(spec, [folder or Path.cwd(), Path.cwd()], _METRIC)
    _check_signature(spec, function)
    return _checked(spec, function)


def _check_signature(spec: str, function: Any) -> None:
    try:
        inspect.signature(function).bind("prediction", ["reference"])
    except (TypeError, ValueError) as error:
        raise ConfigError(
            "metric-not-callable",
            f"the metric {spec!r} cannot be called with (prediction, references): {error}",
            hint=f"its signature must be: {_EXAMPLE}",
        ) from error


def _checked(spec: str, function: Callable[[str, Sequence[str]], Any]) -> Callable[[str, Sequence[str]], float]:
    def score(prediction: str, references: Sequence[str]) -> float:
        try:
            value = function(prediction, references)
        except Exception as error:
            raise ConfigError(
                "metric-failed",
                f"the metric {spec!r} raised {type(error).__name__}: {error} for the prediction {prediction[:80]!r}",
                hint="a metric must score any text, however wrong; return 0.0 for what it cannot read",
            ) from error
        return _number(spec, value)

    return score


def _number(spec: str, value: Any) -> float:
    try:
        number = float(value) if not isinstance(value, str) else math.nan
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number <= 1:
        raise ConfigError(
            "metric-bad-score",
            f"the metric {spec!r} returned {value!r}, not a number from 0 to 1",
            hint="scale the score to lie between 0 (wrong) and 1 (right)",
        )
    return number
