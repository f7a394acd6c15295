"""The user's Python functions that a task names as `module:function`: metrics and tools.

Rung runs only code on this machine that the task names, and downloads none.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from rung.errors import ConfigError, Location


class NotNamedError(Exception):
    """The named module or function does not exist; the message says which."""


class ImportFailedError(Exception):
    """A module raised during its import; `where` is the line, if it is in the module's own file."""

    def __init__(self, module: str, cause: BaseException, where: Location | None) -> None:
        super().__init__(f"module {module!r} cannot be imported: {type(cause).__name__}: {cause}")
        self.where = where


@dataclass(frozen=True, slots=True)
class FunctionKind:
    """A purpose for which a task names functions: its name in errors, and an example for hints."""

    name: str
    example: str


def load(spec: str, folders: Sequence[Path], kind: FunctionKind) -> Any:
    """The object that `module:function` names; the caller must check it.

    The module is a file in one of `folders`, in this order, or an installed package.

    Raises:
        ConfigError: `function-not-found`: the module or function does not exist, or the import fails.
    """
    try:
        module_name, name = split(spec)
        module = import_module(module_name, folders)
        if not hasattr(module, name):
            raise NotNamedError(f"{module.__file__} has no function {name!r}")
    except NotNamedError as missing:
        raise ConfigError("function-not-found", str(missing), hint=f"define there: {kind.example}") from None
    except ImportFailedError as broken:
        hint = "run the file by itself to see the full traceback"
        message = f"the {kind.name}'s {broken}"
        raise ConfigError("function-not-found", message, hint=hint, where=broken.where) from broken
    return getattr(module, name)


def split(spec: str) -> tuple[str, str]:
    """Module and function of `module:function`.

    Raises:
        NotNamedError: it is not of this form.
    """
    module, _, function = spec.partition(":")
    if not function.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise NotNamedError(f"{spec!r} is not of the form module:function")
    return module, function


def file_of(name: str, folders: Sequence[Path]) -> tuple[Path, Path] | None:
    """A module's file in the first of `folders` that has it, and that folder; None if none has it."""
    for folder in folders:
        file = folder.resolve().joinpath(*name.split(".")).with_suffix(".py")
        if file.is_file():
            return file, folder.resolve()
    return None


def import_module(name: str, folders: Sequence[Path]) -> ModuleType:
    """Import a module from a file in `folders`, or an installed one.

    Raises:
        NotNamedError: the module does not exist.
        ImportFailedError: it raises.
    """
    if (source := file_of(name, folders)) is not None:
        return _from_file(name, *source)
    try:
        installed = importlib.util.find_spec(name)
    except ModuleNotFoundError:  # a parent package is missing
        installed = None
    if installed is None:
        searched = " or ".join(dict.fromkeys(str(folder) for folder in folders))
        raise NotNamedError(f"no module {name!r} is in {searched} or installed")
    with _import_errors(name, None):
        return importlib.import_module(name)


def _from_file(name: str, file: Path, folder: Path) -> ModuleType:
    """Import one file under a unique name: two tasks may each have a `metrics.py`."""
    unique = f"_rung_user_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}_{file.stem}"
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
    """While a module runs, let it import its neighbours and itself (dataclasses look up their module)."""
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
    except Exception as error:  # the user's module may raise anything
        line = error.lineno if isinstance(error, SyntaxError) else _last_line(error, file)
        raise ImportFailedError(name, error, Location(str(file), line) if file else None) from error


def _last_line(error: BaseException, file: Path | None) -> int | None:
    """The line of the user's file in which the error arose."""
    line, frame = None, error.__traceback__
    while frame is not None:
        if file is not None and frame.tb_frame.f_code.co_filename == str(file):
            line = frame.tb_lineno
        frame = frame.tb_next
    return line
