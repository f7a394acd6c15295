"""The user's own metric: `metric: mymodule:score` names a function in a Python file beside the task.

Only code that the task names and that lies on this machine runs; nothing is fetched.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from rung.errors import ConfigError, Location

_EXAMPLE = "def score(prediction: str, references: list[str]) -> float: ...  # from 0 to 1"


def load(spec: str, folder: Path | None = None) -> Callable[[str, Sequence[str]], float]:
    """Return the function that `module:function` names, wrapped so that a bad score is an error.

    The module is looked for as a file in `folder`, then in the current folder, then among installed packages.

    Raises:
        ConfigError: `metric-not-found` if there is no such module or function, `metric-import-failed` if importing
            it fails, `metric-not-callable` if it cannot be called with (prediction, references). The function
            returned raises `metric-failed` if the user's code raises, and `metric-bad-score` if it returns anything
            but a number in [0, 1].
    """
    module_name, _, function_name = spec.partition(":")
    if not function_name.isidentifier() or not all(part.isidentifier() for part in module_name.split(".")):
        raise ConfigError("metric-not-found", f"{spec!r} is not of the form module:function", hint=_EXAMPLE)
    module = _module(module_name, [folder or Path.cwd(), Path.cwd()])
    function = getattr(module, function_name, None)
    if function is None:
        raise ConfigError(
            "metric-not-found", f"{module.__file__} has no function {function_name!r}", hint=f"define: {_EXAMPLE}"
        )
    _check_signature(spec, function)
    return _checked(spec, function)


def _module(name: str, folders: list[Path]) -> ModuleType:
    for folder in folders:
        file = folder.resolve().joinpath(*name.split(".")).with_suffix(".py")
        if file.is_file():
            return _from_file(name, file, folder.resolve())
    try:
        found = importlib.util.find_spec(name)
    except ModuleNotFoundError:  # a parent package is missing
        found = None
    if found is None:
        places = " or ".join(dict.fromkeys(str(folder) for folder in folders))
        raise ConfigError(
            "metric-not-found",
            f"there is no module {name!r} in {places}, nor is one installed",
            hint=f"write {name.replace('.', '/')}.py there with: {_EXAMPLE}",
        )
    with _import_errors(name, None):
        return importlib.import_module(name)


def _from_file(name: str, file: Path, folder: Path) -> ModuleType:
    """Import one file under a name of its own: two tasks may each have a `metrics.py`."""
    unique = f"_rung_metric_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}_{file.stem}"
    if unique in sys.modules:
        return sys.modules[unique]
    spec = importlib.util.spec_from_file_location(unique, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with _import_errors(name, file), _importable(folder, unique, module):
        spec.loader.exec_module(module)
    return module


@contextmanager
def _importable(folder: Path, name: str, module: ModuleType) -> Iterator[None]:
    """While a module is executed, let it import its neighbours, and be found (dataclasses look themselves up)."""
    sys.modules[name] = module
    sys.path.insert(0, str(folder))
    try:
        yield
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(folder))


@contextmanager
def _import_errors(name: str, file: Path | None) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever the user's module raises while it is imported
        line = error.lineno if isinstance(error, SyntaxError) else _last_line(error, file)
        raise ConfigError(
            "metric-import-failed",
            f"the metric's module {name!r} cannot be imported: {type(error).__name__}: {error}",
            hint="run the file by itself to see the full traceback",
            where=Location(str(file), line) if file else None,
        ) from error


def _last_line(error: BaseException, file: Path | None) -> int | None:
    """The line of the user's file in which the error arose."""
    line, frame = None, error.__traceback__
    while frame is not None:
        if file is not None and frame.tb_frame.f_code.co_filename == str(file):
            line = frame.tb_lineno
        frame = frame.tb_next
    return line


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
