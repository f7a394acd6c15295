"""SQL by execution: a query is right if it returns what the expected query returns, in a sandboxed SQLite database.

Queries come from a model, so they run on a read-only connection whose authorizer allows nothing but reading (no
ATTACH, no PRAGMA, no writing, no extension, no virtual table that could be made), one statement, for so many seconds
and rows; values and temporary memory are bounded.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rung.data.rows import Example
from rung.errors import ConfigError, DataError
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
                "bad-database", f"the database {self.file} cannot be opened: {error}",
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
                    "bad-sql-reference",
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
