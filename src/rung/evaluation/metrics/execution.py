"""SQL by execution: a query is right if it returns what the expected query returns, in a sandboxed SQLite database.

Queries come from a model, so they run on a read-only connection whose authorizer allows nothing but reading (no
ATTACH, no PRAGMA, no writing, no extension, no virtual table that could be made), one statement, for so many seconds
and rows; values and temporary memory are bounded.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rung.data.rows import Example
from rung.errors import ConfigError, DataError, MachineError
from rung.evaluation.metrics.base import Case, Metric, Score, some

_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
_FORBIDDEN_FUNCTIONS = {"load_extension", "readfile", "writefile", "edit", "fts3_tokenizer"}
_STEPS = 10_000  # virtual machine instructions between two looks at the clock
_LONGEST_VALUE = 1_000_000  # bytes of one value, or of the statement
_CACHE_PAGES = -16_000  # KiB of memory for sorting; more goes to temporary files
_DIGITS = 6  # decimals in which real numbers are compared
_FENCED = re.compile(r"```[a-zA-Z]*\s*\n(.*?)```", re.DOTALL)
_IGNORED = re.compile(r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`|\[[^\]]*\]", re.DOTALL)


class QueryError(Exception):
    """A query that returns nothing to compare; the text says why."""


@dataclass
class Database:
    """A database to run a model's queries in.

    Attributes:
        file: SQLite's own format, or a script of SQL (`.sql`), run once in memory.
        seconds: most time of one query.
        rows: most rows of one result.
    """

    file: Path
    seconds: float = 5.0
    rows: int = 10_000
    _connection: sqlite3.Connection | None = field(default=None, repr=False)
    _deadline: float = 0.0

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Run one query and return its rows.

        Raises:
            QueryError: it is not allowed, wrong, or too slow, or returns too many rows.
            ConfigError: the database cannot be opened.
        """
        if self._connection is None:
            self._connection = self._open()
        self._deadline = time.monotonic() + self.seconds
        try:
            rows = self._connection.execute(sql).fetchmany(self.rows + 1)
        except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
            if time.monotonic() >= self._deadline:
                raise QueryError(f"stopped after {self.seconds:g} s") from error
            raise QueryError(str(error)) from error
        finally:
            self._connection.rollback()
        if len(rows) > self.rows:
            raise QueryError(f"more than {self.rows:,} rows")
        return rows

    def _open(self) -> sqlite3.Connection:
        try:
            connection = self._from_script() if self.file.suffix.lower() == ".sql" else self._from_file()
        except (OSError, UnicodeDecodeError, sqlite3.Error) as error:
            raise ConfigError(
                "bad-setting", f"the database {self.file} cannot be opened: {error}",
                hint="`metric.database` names a SQLite file, or an .sql script, relative to the task file",
            ) from error  # fmt: skip
        connection.execute(f"PRAGMA cache_size={_CACHE_PAGES}")
        connection.execute("PRAGMA temp_store=1")  # sorting spills to files, not to memory
        connection.execute("PRAGMA query_only=1")
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST_VALUE)
        connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, _LONGEST_VALUE)
        connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        connection.setlimit(sqlite3.SQLITE_LIMIT_WORKER_THREADS, 0)
        connection.set_authorizer(_authorize)
        connection.set_progress_handler(lambda: time.monotonic() > self._deadline, _STEPS)
        return connection

    def _from_file(self) -> sqlite3.Connection:
        if not self.file.is_file():
            raise FileNotFoundError("no such file")
        connection = sqlite3.connect(
            f"{self.file.resolve().as_uri()}?mode=ro&immutable=1", uri=True, check_same_thread=False
        )
        connection.execute("SELECT count(*) FROM sqlite_master")  # a file that is no database shows it here
        return connection

    def _from_script(self) -> sqlite3.Connection:
        script = self.file.read_text(encoding="utf-8")
        connection = sqlite3.connect(":memory:", check_same_thread=False)
        connection.executescript(script)
        return connection


def _authorize(action: int, first: str | None, second: str | None, *_: str | None) -> int:
    if action not in _ALLOWED:  # BEGIN, ATTACH, PRAGMA, and whatever writes
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _FORBIDDEN_FUNCTIONS:
        return sqlite3.SQLITE_DENY
    # A pragma can also be read as a table: SELECT * FROM pragma_database_list.
    if action == sqlite3.SQLITE_READ and (first or "").lower().startswith("pragma_"):
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK


def sql_in(text: str) -> str:
    """Return the query in an answer: what stands in its first fenced block, or all of it."""
    fenced = _FENCED.search(text)
    return (fenced.group(1) if fenced else text).strip()


def has_order(sql: str) -> bool:
    """Say whether a query orders its own result: ORDER BY outside of parentheses, texts and comments."""
    bare, depth = [], 0
    for char in _IGNORED.sub(" ", sql):
        depth += (char == "(") - (char == ")")
        bare.append(char if depth == 0 else " ")
    return re.search(r"\border\s+by\b", "".join(bare), re.IGNORECASE) is not None


def same_result(found: Sequence[tuple[Any, ...]], wanted: Sequence[tuple[Any, ...]], *, ordered: bool) -> bool:
    """Compare two results: columns by place, rows with their repetitions, in order only if `ordered`."""
    left, right = [[tuple(map(_value, row)) for row in rows] for rows in (found, wanted)]
    return left == right if ordered else Counter(left) == Counter(right)


def _value(value: Any) -> Any:
    """A value that compares as one would say: 1 equals 1.0, and real numbers only differ from the sixth decimal on."""
    return round(value, _DIGITS) + 0.0 if isinstance(value, float) else value


def sql_metric(settings: Mapping[str, Any], folder: Path | None) -> Metric:
    """Return execution accuracy on `database` as a metric; see `SqlSettings`."""
    database = Database((folder or Path()) / settings["database"], settings["seconds"], settings["rows"])
    expected: dict[str, list[tuple[Any, ...]]] = {}

    def result_of(reference: str, source: str = "") -> list[tuple[Any, ...]]:
        if reference not in expected:
            try:
                expected[reference] = database.query(reference)
            except QueryError as failed:
                raise DataError(
                    "bad-reference",
                    f"{source}: the expected query fails: {failed}: {reference[:200]}".removeprefix(": "),
                    hint=f"run it in {database.file}, and correct or remove the row",
                ) from failed  # fmt: skip
        return expected[reference]

    def check(examples: Sequence[Example]) -> None:
        for example in examples:
            for reference in example.outputs:
                result_of(reference, example.source)

    def score(case: Case) -> Score:
        results = [(result_of(reference), has_order(reference)) for reference in some(case.references)]
        try:
            found = database.query(sql_in(case.prediction))
        except QueryError as failed:
            return Score(0.0, f"the query fails: {failed}")
        if any(same_result(found, wanted, ordered=ordered) for wanted, ordered in results):
            return Score(1.0)
        return Score(0.0, "another result")

    return Metric(
        "sql_execution", None, "the query returns what the expected query returns", ("text",), binary=True,
        rows=lambda cases: [score(case) for case in cases], check=check,
    )  # fmt: skip


# --------------------
# Python by execution: a program is right if it passes the row's tests, or prints what the expected program prints.
#
# A model's programs run only where the task file says `allow_execution: true`: each in a process of its own, in an
# empty
# folder, with an empty environment, limits on time, memory, file sizes and processes, and without a network. That keeps
# accidents small; it is no wall against a program that means harm, which can still read what the user can read.


_MEBIBYTE = 2**20
_MOST_OUTPUT = 1_000_000  # bytes of output, and of every file written
_ISOLATION = ("unshare", "--user", "--map-current-user", "--net", "--pid", "--fork", "--kill-child")

# Runs in the child before the program: it limits itself, so that no code runs between fork and exec in the parent.
_RUNNER = """
import resource, sys
seconds, memory, output, program = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
for limit, value in (("CPU", seconds), ("AS", memory), ("FSIZE", output), ("NOFILE", 64), ("CORE", 0), ("NPROC", 0)):
    resource.setrlimit(getattr(resource, "RLIMIT_" + limit), (value, value))
sys.argv = ["program.py"]
with open(program, encoding="utf-8") as file:
    source = file.read()
exec(compile(source, "program.py", "exec"), {"__name__": "__main__"})
"""


@dataclass(frozen=True, slots=True)
class Ran:
    """How a program ended: its output, and if it failed, why."""

    output: str
    failure: str = ""


def run_program(source: str, *, seconds: float, memory_mb: int, network: bool = False) -> Ran:
    """Run a Python program in a sandbox and return its output.

    Raises:
        MachineError: without `network`, this machine cannot take the network away.
    """
    isolation = () if network else _isolation()
    with tempfile.TemporaryDirectory(prefix="rung-code-") as scratch:
        folder = Path(scratch)
        program, output, errors = folder / "program.py", folder / "output", folder / "errors"
        program.write_text(source, encoding="utf-8", errors="replace")
        limits = [str(max(1, round(seconds + 1))), str(memory_mb * _MEBIBYTE), str(_MOST_OUTPUT), str(program)]
        with output.open("wb") as out, errors.open("wb") as err:
            process = subprocess.Popen(
                [*isolation, sys.executable, "-I", "-B", "-c", _RUNNER, *limits], cwd=folder, stdin=subprocess.DEVNULL,
                stdout=out, stderr=err, env={"PATH": os.defpath, "HOME": scratch}, start_new_session=True,
            )  # fmt: skip
            failure = _wait(process, seconds)
        text = output.read_bytes().decode("utf-8", "replace")
        complaint = errors.read_bytes().decode("utf-8", "replace")
    if not failure and process.returncode != 0:
        lines = complaint.strip().splitlines()
        failure = lines[-1][:200] if lines else f"exit status {process.returncode}"
    return Ran(text, failure)


def _wait(process: subprocess.Popen[bytes], seconds: float) -> str:
    """Wait for the end, or make one; return why it was made."""
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"stopped after {seconds:g} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # also what it may have started
        process.wait()
    return ""


@functools.cache
def _isolation() -> tuple[str, ...]:
    """Return the command that runs another one without a network, and kills all its processes with it."""
    tool = shutil.which(_ISOLATION[0])
    command = (tool or "", *_ISOLATION[1:])
    if tool and subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
        return command
    raise MachineError(
        "execution-not-allowed", "programs cannot be run without a network here: `unshare --user --net` does not work",
        hint="allow user namespaces, or let the programs reach the network: `metric.network: true`",
    )  # fmt: skip


def code_in(text: str) -> str:
    """Return the program in an answer: what stands in its first fenced block, or all of it."""
    fenced = _FENCED.search(text)
    return fenced.group(1) if fenced else text


def code_metric(settings: Mapping[str, Any]) -> Metric:
    """Return execution accuracy of Python programs as a metric; see `CodeSettings`.

    Raises:
        ConfigError: the task file does not allow that a model's programs are run.
    """
    if not settings["allow_execution"]:
        raise ConfigError(
            "execution-not-allowed", "the metric code runs programs that a model has written",
            hint="if you want that on this machine, say so: `metric: {name: code, allow_execution: true}`",
        )  # fmt: skip
    limits = {name: settings[name] for name in ("seconds", "memory_mb", "network")}
    expected = functools.cache(lambda source: run_program(source, **limits))
    tests = settings["tests"]

    def score(case: Case) -> Score:
        if tests is not None:
            ran = run_program(f"{code_in(case.prediction)}\n\n{_tests(case.row, tests)}\n", **limits)
            return Score(float(not ran.failure), ran.failure)
        wanted = [expected(code_in(reference)) for reference in some(case.references)]
        for reference in wanted:
            if reference.failure:
                raise DataError(
                    "bad-reference", f"an expected program fails: {reference.failure}",
                    hint="correct the row, or name a column of tests: `metric.tests`",
                )  # fmt: skip
        ran = run_program(code_in(case.prediction), **limits)
        right = not ran.failure and any(ran.output.split() == reference.output.split() for reference in wanted)
        return Score(float(right), ran.failure or ("" if right else "another output"))

    def scores(cases: Any) -> list[Score]:
        with ThreadPoolExecutor(max_workers=max(1, min(4, os.cpu_count() or 1))) as pool:
            return list(pool.map(score, cases))

    return Metric("code", None, "the program passes the tests", ("text",), binary=True, rows=scores)


def _tests(row: Mapping[str, Any], column: str) -> str:
    if column not in row:
        raise ConfigError(
            "missing-column", f"the metric code reads the column {column!r}, which the row lacks",
            hint=f"`metric.tests` must name a column of the data; there are {', '.join(row)}",
        )  # fmt: skip
    value = row[column]
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)
