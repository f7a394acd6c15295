"""Code of the user: consent given on this machine, and functions that a task names."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import json
import os
import shlex
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Literal
from urllib.parse import urlsplit

from rung.errors import ConfigError, Location, MachineError
from rung.machine import is_loopback, only_ours

FOLDERS = "RUNG_TRUST"  # environment variable: folders whose code may run, with `:` between them
HOSTS = "RUNG_API_HOSTS"  # environment variable: endpoints to which texts and keys may go, with commas between them


@dataclass(frozen=True, slots=True)
class Permit:
    """One thing that needs the user's consent.

    Attributes:
        kind: what it is.
        what: the function, the command, the limits of programs, or the endpoint's scheme, host and port.
        folder: the folder in which it runs; empty for an endpoint.
        files: the files in that folder which it runs, each with its sha256.
    """

    kind: Literal["metric", "tool", "command", "programs", "endpoint"]
    what: str
    folder: str = ""
    files: tuple[tuple[str, str], ...] = ()

    @property
    def key(self) -> str:
        """A hash of everything that says what would run."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def local(self) -> bool:
        """Whether it is an endpoint of this machine, which gets texts in any case, and a key only with consent."""
        parts = urlsplit(self.what) if self.kind == "endpoint" else None
        return parts is not None and parts.scheme in ("http", "https") and is_loopback(parts.hostname or "")

    def __str__(self) -> str:
        if self.local:
            return f"endpoint {self.what}: it is on this machine; the key of the environment is sent there"
        if self.kind == "endpoint":
            return f"endpoint {self.what}: your texts, and the key of the environment, are sent there"
        if self.kind == "programs":
            return f"programs that a model writes, in {self.folder} ({self.what})"
        if self.kind == "command":
            return f"command  {self.what}   in {self.folder}{self._listed()}"
        files = self._listed() or " of an installed package"
        return f"{self.kind:8} {self.what}   in {self.folder}{files}"

    def _listed(self) -> str:
        return "".join(f"\n           {name}  sha256 {digest[:16]}" for name, digest in self.files)


def command_permit(command: Sequence[str], folder: Path) -> Permit:
    """The permit of a command; files of the folder among its arguments count with their contents."""
    files = {}
    for word in command:
        file = folder / word
        if file.is_file():
            with file.open("rb") as stream:
                files[word] = hashlib.file_digest(stream, "sha256").hexdigest()
    return Permit("command", shlex.join(command), str(folder.resolve()), tuple(sorted(files.items())))


def program_permit(settings: Mapping[str, Any], folder: Path) -> Permit:
    """The permit to run programs that a model writes, within limits."""
    limits = ", ".join(f"{name}: {value}" for name, value in sorted(settings.items()))
    return Permit("programs", limits, str(folder.resolve()))


def endpoint_permit(address: str) -> Permit:
    """The permit to send texts and a key to the server of an address: one scheme, one host and one port.

    Raises:
        ConfigError: it is no address.
    """
    try:
        parts = urlsplit(address)
    except ValueError as error:
        hint = f"write SCHEME://HOST:PORT in the file, or in {HOSTS}"
        raise ConfigError("bad-value", f"{address[:200]!r} is not an address: {error}", hint=hint) from error
    netloc = parts.netloc.rpartition("@")[2].lower()
    return Permit("endpoint", f"{parts.scheme}://{netloc.removesuffix(PORTS.get(parts.scheme, ' '))}")


PORTS = {"http": ":80", "https": ":443"}  # what an address without a port means
_named: set[Permit] = set()


def _is_named(permit: Permit, text: str) -> bool:
    """Whether an entry of `RUNG_API_HOSTS` names an endpoint; without scheme and port it means https, or a bucket."""
    if "://" in text:
        return endpoint_permit(text) == permit
    scheme = permit.what.partition("://")[0]
    has_port = ":" in text.rpartition("]")[2]
    return (has_port or scheme != "http") and endpoint_permit(f"{scheme}://{text}") == permit


def name_endpoint(address: str) -> None:
    """Allow an endpoint that the command line names, in this process alone."""
    _named.add(endpoint_permit(address))


def named_endpoints() -> str:
    """The value of `RUNG_API_HOSTS` for worker processes of this one."""
    return ",".join([os.environ.get(HOSTS, ""), *(permit.what for permit in _named)]).strip(",")


def allowed(permit: Permit) -> bool:
    """Whether the user allowed it: by `rung trust`, on the command line, or in the environment."""
    if permit.kind == "endpoint":
        entries = filter(None, (text.strip() for text in os.environ.get(HOSTS, "").split(",")))
        if permit in _named or any(_is_named(permit, entry) for entry in entries):
            return True
    elif any(Path(permit.folder).is_relative_to(folder) for folder in _trusted_folders()):
        return True
    file = _records() / permit.key
    try:
        status = file.lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and only_ours(status)


def missing(permits: Iterable[Permit], *, keys: bool = False) -> list[Permit]:
    """Those that the user has not allowed and that need it, each once.

    With `keys`, also endpoints of this machine: they get texts without consent, but no key.
    """
    return [permit for permit in dict.fromkeys(permits) if (keys or not permit.local) and not allowed(permit)]


def require(*permits: Permit, place: str | Path = "") -> None:
    """Refuse what the user has not allowed; `place` is the file or folder that names it.

    Raises:
        MachineError: `not-trusted`.
    """
    if refused := missing(permits):
        raise refusal(refused, place)


def refusal(permits: Sequence[Permit], place: str | Path = "") -> MachineError:
    """The error that names what is not allowed; `place` is the file or folder that names it."""
    listed = "\n".join(f"  {permit}" for permit in permits)
    place = place or permits[0].folder or "TASK"
    return MachineError(
        "not-trusted", f"this would run or reach what you have not allowed on this machine:\n{listed}",
        hint=f"read what it is, then allow it: rung trust {shlex.quote(str(place))}",
    )  # fmt: skip


def allow(permits: Iterable[Permit]) -> None:
    """Keep the user's consent.

    Raises:
        MachineError: `write-failed`.
    """
    records = _records()
    try:
        records.mkdir(mode=0o700, parents=True, exist_ok=True)
        for permit in permits:
            (records / permit.key).unlink(missing_ok=True)
            handle = os.open(records / permit.key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w", encoding="utf-8") as out:
                json.dump(asdict(permit), out, ensure_ascii=False, indent=1)
    except OSError as error:
        hint = f"name trusted folders in {FOLDERS} and hosts in {HOSTS} where nothing can be written"
        raise MachineError("write-failed", f"cannot write to {records}: {error.strerror}", hint=hint) from error


def revoke(permits: Iterable[Permit]) -> None:
    """Take the user's consent back."""
    for permit in permits:
        (_records() / permit.key).unlink(missing_ok=True)


def _records() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "rung" / "trust"


def _trusted_folders() -> list[Path]:
    return [Path(text).expanduser().resolve() for text in os.environ.get(FOLDERS, "").split(os.pathsep) if text]


MAX_BYTES, MAX_FILES = 2_000_000, 500  # of a module, and of modules that import each other


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

    The module is a file in one of `folders`, in this order, or an installed package. Nothing is imported unless the
    user has allowed it, see `rung.user_code`.

    Raises:
        ConfigError: `function-not-found`: the module or function does not exist, or the import fails.
        MachineError: `not-trusted`.
    """
    try:
        files, permit = _files_and_permit(spec, folders, kind)
        module_name, name = split(spec)
        if not files:
            _check_installed(module_name, folders)
        require(permit)
        module = _from_files(module_name, files, permit) if files else _installed(module_name)
        if not hasattr(module, name):
            raise NotNamedError(f"{module.__file__} has no function {name!r}")
    except NotNamedError as missing:
        raise ConfigError("function-not-found", str(missing), hint=f"define there: {kind.example}") from None
    except ImportFailedError as broken:
        hint = "run the file by itself to see the full traceback"
        message = f"the {kind.name}'s {broken}"
        raise ConfigError("function-not-found", message, hint=hint, where=broken.where) from broken
    return getattr(module, name)


def check(spec: str, folders: Sequence[Path], kind: FunctionKind) -> None:
    """Find the function that `module:function` names without importing anything.

    Raises:
        ConfigError: `function-not-found`.
    """
    try:
        module, name = split(spec)
        if (source := file_of(module, folders)) is None:
            _check_installed(module, folders)
        elif not _defines(_parsed(module, source[0], _read(source[0])), name):
            raise NotNamedError(f"{source[0]} has no function {name!r}")
    except NotNamedError as missing:
        raise ConfigError("function-not-found", str(missing), hint=f"define there: {kind.example}") from None
    except ImportFailedError as broken:
        message = f"the {kind.name}'s {broken}"
        raise ConfigError("function-not-found", message, hint="correct the file", where=broken.where) from broken


def permit(spec: str, folders: Sequence[Path], kind: FunctionKind) -> Permit:
    """What the user has to allow before the function is imported: its file, and the files beside it that it imports.

    Raises:
        ConfigError: `function-not-found`: it is not of the form module:function.
    """
    try:
        return _files_and_permit(spec, folders, kind)[1]
    except NotNamedError as missing:
        raise ConfigError("function-not-found", str(missing), hint=f"define there: {kind.example}") from None


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
        place = folder.resolve().joinpath(*name.split("."))
        for file in (place / "__init__.py", place.with_name(f"{place.name}.py")):
            if file.is_file():
                return file, folder.resolve()
    return None


def _files_and_permit(spec: str, folders: Sequence[Path], kind: FunctionKind) -> tuple[dict[str, _Source], Permit]:
    module = split(spec)[0]
    source = file_of(module, folders)
    folder = source[1] if source else folders[0].resolve()
    files = _closure(module, folder) if source else {}
    hashes = sorted((str(each.file.relative_to(folder)), each.sha256) for each in files.values())
    return files, Permit("metric" if kind.name == "metric" else "tool", spec, str(folder), tuple(hashes))


# ---- the module's own file and the neighbours that it imports, read once: what was hashed is what runs


@dataclass(frozen=True, slots=True)
class _Source:
    file: Path
    code: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.code).hexdigest()

    @property
    def is_package(self) -> bool:
        return self.file.name == "__init__.py"


def _read(file: Path) -> bytes:
    if file.stat().st_size > MAX_BYTES:
        raise NotNamedError(f"{file} has more than {MAX_BYTES:,} bytes: not a module")
    return file.read_bytes()


def _closure(name: str, folder: Path) -> dict[str, _Source]:
    """The files of a module and of all modules in `folder` that it imports, by the modules' names."""
    found: dict[str, _Source] = {}
    names = [name]
    while names and len(found) < MAX_FILES:
        parts = names.pop().split(".")
        for length in range(1, len(parts) + 1):
            module = ".".join(parts[:length])
            source = None if module in found else file_of(module, [folder])
            if source is None:
                continue
            found[module] = _Source(source[0], _read(source[0]))
            with suppress(ImportFailedError):  # the import itself will say what is wrong
                tree = _parsed(module, source[0], found[module].code)
                names += _imports(tree, module, found[module].is_package)
    return found


def _imports(tree: ast.Module, module: str, is_package: bool) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: len(module.split(".")) - node.level + is_package] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{start}.{alias.name}".strip(".") for alias in node.names)


def _parsed(module: str, file: Path, code: bytes) -> ast.Module:
    try:
        return ast.parse(code, str(file))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as broken:
        line = broken.lineno if isinstance(broken, SyntaxError) else None
        raise ImportFailedError(module, broken, Location(str(file), line)) from broken


def _defines(tree: ast.Module, name: str) -> bool:
    """Whether a module may define a name: one with `import *` or `__getattr__` may define any."""
    names: set[str] = set()
    nodes: list[ast.AST] = [*tree.body]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
            continue  # what is defined inside is not the module's
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        nodes += ast.iter_child_nodes(node)
    return bool(names & {name, "*", "__getattr__"})


class _Finder(MetaPathFinder):
    """Finds the modules that were read and hashed; no other file of the user's folder can be imported."""

    def __init__(self, files: Mapping[str, _Source]) -> None:
        self._files = files

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:  # noqa: ARG002
        if (source := self._files.get(fullname)) is not None:
            places: list[str] | None = [] if source.is_package else None  # a package's modules are found here too
            loader = _Loader(fullname, source)
            return spec_from_file_location(fullname, source.file, loader=loader, submodule_search_locations=places)
        if any(name.startswith(f"{fullname}.") for name in self._files):
            return ModuleSpec(fullname, None, is_package=True)  # a folder without __init__.py
        return None


class _Loader(SourceFileLoader):
    """Runs the bytes that were hashed, never a compiled file from a `__pycache__`."""

    def __init__(self, name: str, source: _Source) -> None:
        super().__init__(name, str(source.file))
        self._source = source

    def get_code(self, fullname: str) -> CodeType:
        code: CodeType = self.source_to_code(self._source.code, self.get_filename(fullname))
        return code


def _from_files(name: str, files: Mapping[str, _Source], permit: Permit) -> ModuleType:
    """Import one file under a unique name: two tasks may each have a `metrics.py`."""
    source = files[name]
    unique = f"_rung_user_{permit.key[:12]}_{source.file.stem}"
    if unique in sys.modules:
        return sys.modules[unique]
    spec = spec_from_file_location(unique, source.file, loader=_Loader(unique, source))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    finder = _Finder(files)
    with _import_errors(name, source.file):
        sys.modules[unique] = module  # dataclasses look up their module
        sys.meta_path.insert(0, finder)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[unique]
            raise
        finally:
            sys.meta_path.remove(finder)
    return module


# ---- installed packages


def _check_installed(name: str, folders: Sequence[Path]) -> None:
    """Raise NotNamedError for a module that is not installed; the package is found, and nothing of it is imported."""
    try:
        top = importlib.util.find_spec(name.partition(".")[0])
    except (ImportError, ValueError):
        top = None
    if top is None:
        searched = " or ".join(dict.fromkeys(str(folder) for folder in folders))
        raise NotNamedError(f"no module {name!r} is in {searched} or installed")


def _installed(name: str) -> ModuleType:
    try:
        found = importlib.util.find_spec(name)
    except ModuleNotFoundError:  # a parent package is missing
        found = None
    if found is None:
        raise NotNamedError(f"no module {name!r} is installed")
    with _import_errors(name, None):
        return importlib.import_module(name)


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
