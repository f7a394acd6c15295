"""Metrics by execution: run the SQL query or the Python program that a model wrote.

A query is right if it returns what the expected query returns. Queries run on a read-only SQLite connection whose
authorizer allows nothing but reading (no ATTACH, PRAGMA, writing, extension or virtual table), one statement each, with
limits on time, rows, values, the size of the result and temporary memory. A script that makes the database may only
write into that database.

A program is right if it passes the row's tests, or prints what the expected program prints. Programs run only where the
task file says `allow_execution: true`: each in its own process, in an empty folder, with an empty environment, limits
on time, memory, file sizes and processes, and without a network. That prevents accidents. It does not stop a malicious
program, which can still read what the user can read.
"""

from __future__ import annotations

import functools
import os
import re
import secrets
import shutil
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
from typing import IO, Any

from rung.data.rows import Example
from rung.errors import ConfigError, DataError, MachineError
from rung.evaluation.metrics.base import Case, Metric, RowScore, some
from rung.machine import HAS_POSIX, end_group
from rung.progress import Progress
from rung.user_code import program_permit, require

_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
# What a script may not do besides: other files (VACUUM INTO attaches one), extensions, virtual tables.
_DENIED = {sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH, sqlite3.SQLITE_CREATE_VTABLE, sqlite3.SQLITE_DROP_VTABLE}
_SCRIPT_PRAGMAS = {"foreign_keys", "encoding", "user_version", "application_id", "defer_foreign_keys"}  # as dumps have
_SCRIPT_SECONDS = 60.0
_FORBIDDEN_FUNCTIONS = {"load_extension", "readfile", "writefile", "edit", "fts3_tokenizer"}
_STEPS = 10_000  # virtual machine instructions between two checks of the clock
_MAX_VALUE = 100_000  # bytes of one value: functions of SQLite run to their end, in up to the square of it
_MAX_STATEMENT = 1_000_000  # bytes
_MAX_RESULT = 50_000_000  # bytes of all values of a result
_MAX_COLUMNS = 200
_CACHE_PAGES = -16_000  # KiB of memory for sorting; more goes to temporary files
_DIGITS = 6  # decimals to which real numbers are compared
_FENCED = re.compile(r"```[a-zA-Z]*+[^\S\n]*+\n(.*?)```", re.DOTALL)
_IGNORED = re.compile(  # what is not closed ends with the text, so that no text is read twice
    r"--[^\n]*+|/\*.*?(?:\*/|\Z)|'(?:[^']|'')*+(?:'|\Z)|\"(?:[^\"]|\"\")*+(?:\"|\Z)|`[^`]*+(?:`|\Z)|\[[^\]]*+(?:\]|\Z)",
    re.DOTALL,
)


class QueryError(Exception):
    """A query failed; the text says why."""


@dataclass
class Database:
    """A database that runs a model's queries."""

    file: Path  # a SQLite file, or an SQL script (`.sql`), run once in memory
    seconds: float = 5.0  # time limit of one query
    rows: int = 10_000  # row limit of one result
    _connection: sqlite3.Connection | None = field(default=None, repr=False)
    _deadline: float = 0.0

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Run one query and return its rows.

        Raises:
            QueryError: the query is not allowed, wrong or too slow, or returns too many rows.
            ConfigError: the database cannot be opened.
        """
        if self._connection is None:
            self._connection = self._open()
        self._deadline = time.monotonic() + self.seconds
        try:
            rows = self._fetched(self._connection.execute(sql))
        except MemoryError as error:
            raise QueryError("the result does not fit in memory") from error
        except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
            if time.monotonic() >= self._deadline:
                raise QueryError(f"stopped after {self.seconds:g} s") from error
            raise QueryError(str(error)) from error
        finally:
            self._connection.rollback()
        return rows

    def _fetched(self, cursor: sqlite3.Cursor) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = []
        size = 0
        for row in cursor:
            size += sum(len(value) if isinstance(value, str | bytes) else 8 for value in row)
            if size > _MAX_RESULT:
                raise QueryError(f"a result of more than {_MAX_RESULT:,} bytes")
            if len(rows) == self.rows:
                raise QueryError(f"more than {self.rows:,} rows")
            rows.append(row)
        return rows

    def _open(self) -> sqlite3.Connection:
        try:
            if self.file.suffix.lower() == ".sql":
                connection = sqlite3.connect(":memory:", check_same_thread=False)
                self._run_script(connection)
            elif not self.file.is_file():
                raise FileNotFoundError("no such file")
            else:
                address = f"{self.file.resolve().as_uri()}?mode=ro&immutable=1"
                connection = sqlite3.connect(address, uri=True, check_same_thread=False)
                connection.execute("SELECT count(*) FROM sqlite_master")  # fails if the file is not a database
        except (OSError, UnicodeDecodeError, sqlite3.Error) as error:
            raise ConfigError(
                "bad-setting", f"the database {self.file} cannot be opened: {error}",
                hint="`metric.database` names a SQLite file, or an .sql script, relative to the task file",
            ) from error  # fmt: skip
        connection.execute(f"PRAGMA cache_size={_CACHE_PAGES}")
        connection.execute("PRAGMA temp_store=1")  # sorting spills to files, not to memory
        connection.execute("PRAGMA query_only=1")
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_VALUE)
        connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, _MAX_STATEMENT)
        connection.setlimit(sqlite3.SQLITE_LIMIT_COLUMN, _MAX_COLUMNS)
        connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        connection.setlimit(sqlite3.SQLITE_LIMIT_WORKER_THREADS, 0)
        connection.set_authorizer(_authorize)
        connection.set_progress_handler(lambda: time.monotonic() > self._deadline, _STEPS)
        return connection

    def _run_script(self, connection: sqlite3.Connection) -> None:
        """Make the database; the script may come from a stranger, so it gets no other file and no endless time."""
        connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        connection.set_authorizer(_authorize_script)
        deadline = time.monotonic() + _SCRIPT_SECONDS
        connection.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS)
        connection.executescript(self.file.read_text(encoding="utf-8"))
        connection.set_authorizer(None)  # the limits of queries follow


def _authorize_script(action: int, first: str | None, second: str | None, *_: str | None) -> int:
    pragma = action == sqlite3.SQLITE_PRAGMA and (first or "").lower() not in _SCRIPT_PRAGMAS
    function = action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _FORBIDDEN_FUNCTIONS
    return sqlite3.SQLITE_DENY if action in _DENIED or pragma or function else sqlite3.SQLITE_OK


def _authorize(action: int, first: str | None, second: str | None, *_: str | None) -> int:
    if action not in _ALLOWED:  # BEGIN, ATTACH, PRAGMA and everything that writes
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _FORBIDDEN_FUNCTIONS:
        return sqlite3.SQLITE_DENY
    # A query can also read a pragma as a table: SELECT * FROM pragma_database_list.
    if action == sqlite3.SQLITE_READ and (first or "").lower().startswith("pragma_"):
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK


def fenced(text: str) -> str:
    """Extract the query or program from an answer: its first fenced block, or all of it."""
    block = _FENCED.search(text)
    return block.group(1) if block else text


def has_order(sql: str) -> bool:
    """Tell whether a query orders its result: ORDER BY outside of parentheses, texts and comments."""
    bare, depth = [], 0
    for char in _IGNORED.sub(" ", sql):
        depth += (char == "(") - (char == ")")
        bare.append(char if depth == 0 else " ")
    return re.search(r"\border\s+by\b", "".join(bare), re.IGNORECASE) is not None


def same_result(result: Sequence[tuple[Any, ...]], wanted: Sequence[tuple[Any, ...]], *, ordered: bool) -> bool:
    """Compare two results: columns by position, rows with their repetitions, in order only if `ordered`."""
    left, right = [[tuple(map(_value, row)) for row in rows] for rows in (result, wanted)]
    return left == right if ordered else Counter(left) == Counter(right)


def _value(value: Any) -> Any:
    """Round real numbers; adding 0.0 turns -0.0 into 0.0."""
    return round(value, _DIGITS) + 0.0 if isinstance(value, float) else value


def sql_metric(settings: Mapping[str, Any], folder: Path | None) -> Metric:
    """Make the metric from `SqlSettings`."""
    database = Database((folder or Path()) / settings["database"], settings["seconds"], settings["rows"])
    expected: dict[str, list[tuple[Any, ...]]] = {}

    def result_of(reference: str, source: str = "") -> list[tuple[Any, ...]]:
        if reference not in expected:
            try:
                expected[reference] = database.query(reference)
            except QueryError as failed:
                message = f"{source}: the expected query fails: {failed}: {reference[:200]}".removeprefix(": ")
                raise DataError(
                    "bad-reference", message,
                    hint=f"run it in {database.file}, and correct or remove the row",
                ) from failed  # fmt: skip
        return expected[reference]

    def check(examples: Sequence[Example]) -> None:
        for example in examples:
            for reference in example.outputs:
                result_of(reference, example.source)

    def score(case: Case) -> RowScore:
        results = [(result_of(reference), has_order(reference)) for reference in some(case.references)]
        try:
            result = database.query(fenced(case.prediction).strip())
        except QueryError as failed:
            return RowScore(0.0, f"the query fails: {failed}")
        if any(same_result(result, wanted, ordered=ordered) for wanted, ordered in results):
            return RowScore(1.0)
        return RowScore(0.0, "another result")

    def reading(answer: str) -> str:
        sql = fenced(answer).strip()
        try:
            rows = [tuple(map(_value, row)) for row in database.query(sql)]
        except QueryError:
            return ""
        return repr(rows if has_order(sql) else sorted(rows, key=repr))

    return Metric(
        "sql_execution", None, "the query returns what the expected query returns", ("text",), binary=True,
        rows=lambda cases, _: [score(case) for case in cases], check=check, reading=reading,
    )  # fmt: skip


# ---- Python programs

_MEBIBYTE = 2**20
_MAX_OUTPUT = 1_000_000  # bytes of output, and of every file written
_ISOLATION = ("unshare", "--user", "--map-current-user", "--net", "--pid", "--fork", "--kill-child")

# The child process runs this first and limits itself, so that no code runs between fork and exec in the parent. Tests
# run after the program, and only their end writes the proof: a program that exits before has passed nothing.
_RUNNER = """
import os, resource, sys, traceback
seconds, memory, output = map(int, sys.argv[1:4])
program, tests, proof, token = sys.argv[4], sys.argv[5], int(sys.argv[6]), sys.argv[7].encode()
for limit, value in (("CPU", seconds), ("AS", memory), ("FSIZE", output), ("NOFILE", 64), ("CORE", 0), ("NPROC", 0)):
    resource.setrlimit(getattr(resource, "RLIMIT_" + limit), (value, value))
sys.argv = ["program.py"]
with open(program, encoding="utf-8") as file:
    source = file.read()
if not tests:
    exec(compile(source, "program.py", "exec"), {"__name__": "__main__"})
else:
    with open(tests, encoding="utf-8") as file:
        checks = file.read()
    names = {"__name__": "program"}
    try:
        exec(compile(source, "program.py", "exec"), names)
        exec(compile(checks, "tests.py", "exec"), names)
    except SystemExit as stop:
        frames = traceback.extract_tb(stop.__traceback__)
        if stop.code not in (0, None) or any(frame.filename == "program.py" for frame in frames):
            sys.exit("the program exits before its tests end")
    os.write(proof, token)
"""


@dataclass(frozen=True, slots=True)
class ProgramResult:
    """What a program printed, and if it failed, why."""

    output: str
    failure: str = ""


def run_program(
    source: str, *, tests: str = "", seconds: float, memory_mb: int, network: bool = False
) -> ProgramResult:
    """Run a Python program in a sandbox, and after it the tests that it must pass; return its output.

    With tests, the program is not `__main__`, and it fails unless the tests reach their end.

    Raises:
        MachineError: `network` is off, and this machine cannot isolate a program from the network; or on Windows.
    """
    if not HAS_POSIX:
        problem = "this system cannot limit a program's time and memory"
        raise MachineError("execution-not-allowed", problem, hint="measure on Linux or macOS, or in WSL on Windows")
    isolation, token = () if network else _isolation(), secrets.token_hex()
    # The program may do anything to files in its folder: what it writes is read through descriptors from elsewhere.
    with (
        tempfile.TemporaryDirectory(prefix="rung-code-") as scratch, tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as proof,
    ):  # fmt: skip
        program, checks = Path(scratch, "program.py"), Path(scratch, "tests.py") if tests else None
        program.write_text(source, encoding="utf-8", errors="replace")
        if checks is not None:
            checks.write_text(tests, encoding="utf-8", errors="replace")
        limits = [str(max(1, round(seconds + 1))), str(memory_mb * _MEBIBYTE), str(_MAX_OUTPUT)]
        files = [str(program), str(checks or ""), str(proof.fileno()), token]
        process = subprocess.Popen(
            [*isolation, sys.executable, "-I", "-B", "-c", _RUNNER, *limits, *files], cwd=scratch,
            stdin=subprocess.DEVNULL, stdout=out, stderr=err, pass_fds=[proof.fileno()],
            env={"PATH": os.defpath, "HOME": scratch}, start_new_session=True,
        )  # fmt: skip
        failure = _wait(process, seconds)
        text, complaint, proven = (_read(file) for file in (out, err, proof))
    if not failure and process.returncode != 0:
        lines = complaint.strip().splitlines()
        failure = lines[-1][:200] if lines else f"exit status {process.returncode}"
    if not failure and tests and proven != token:
        failure = "the program ends before its tests do"
    return ProgramResult(text, failure)


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(_MAX_OUTPUT).decode("utf-8", "replace")


def _wait(process: subprocess.Popen[bytes], seconds: float) -> str:
    """Wait until the program ends, or kill it and say why."""
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"stopped after {seconds:g} s"
    finally:
        end_group(process)
        process.wait()
    return ""


@functools.cache
def _isolation() -> tuple[str, ...]:
    """Find the command that runs another one without a network and kills all its processes at the end."""
    tool = shutil.which(_ISOLATION[0])
    command = (tool or "", *_ISOLATION[1:])
    if tool and subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
        return command
    raise MachineError(
        "execution-not-allowed", "this machine cannot take the network away: `unshare --user --net` does not work",
        hint="allow user namespaces, or let programs use the network: `metric.network: true`",
    )  # fmt: skip


def program_limits(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The limits of a program among `CodeSettings`."""
    return {name: settings[name] for name in ("seconds", "memory_mb", "network")}


def code_metric(settings: Mapping[str, Any], folder: Path | None) -> Metric:
    """Make the metric from `CodeSettings`; scores need the user's consent to run programs for `folder`.

    Raises:
        ConfigError: the task file does not allow Rung to run a model's programs.
    """
    if not settings["allow_execution"]:
        raise ConfigError(
            "execution-not-allowed", "the metric code runs programs that a model wrote on this machine",
            hint="to allow it, write `metric: {name: code, allow_execution: true}`",
        )  # fmt: skip
    limits = program_limits(settings)
    expected = functools.cache(lambda source: run_program(source, **limits))
    tests = settings["tests"]

    def score(case: Case) -> RowScore:
        if tests is not None:
            result = run_program(fenced(case.prediction), tests=_tests(case.row, tests) or "pass", **limits)
            return RowScore(float(not result.failure), result.failure)
        wanted = [expected(fenced(reference)) for reference in some(case.references)]
        for reference in wanted:
            if reference.failure:
                raise DataError(
                    "bad-reference", f"an expected program fails: {reference.failure}",
                    hint="correct the row, or name a column of tests: `metric.tests`",
                )  # fmt: skip
        result = run_program(fenced(case.prediction), **limits)
        right = not result.failure and any(result.output.split() == reference.output.split() for reference in wanted)
        return RowScore(float(right), result.failure or ("" if right else "another output"))

    def reading(answer: str) -> str:
        require(program_permit(limits, folder or Path.cwd()))
        result = expected(fenced(answer))
        return "" if result.failure else " ".join(["output", *result.output.split()])

    def scores(cases: Sequence[Case], progress: Progress) -> list[RowScore]:
        require(program_permit(limits, folder or Path.cwd()))
        progress.start("running programs", len(cases))
        found = []
        with ThreadPoolExecutor(max_workers=max(1, min(4, os.cpu_count() or 1))) as pool:
            for each in pool.map(score, cases):
                found.append(each)
                progress.advance()
        progress.finish()
        return found

    own = reading if tests is None else None  # tests are the expected answer, which is not there in use
    return Metric("code", None, "the program passes the tests", ("text",), binary=True, rows=scores, reading=own)


def _tests(row: Mapping[str, Any], column: str) -> str:
    if column not in row:
        raise ConfigError(
            "missing-column", f"the metric code reads the column {column!r}, which the row lacks",
            hint=f"`metric.tests` must name a column of the data; there are {', '.join(row)}",
        )  # fmt: skip
    value = row[column]
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)
