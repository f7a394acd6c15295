"""Execution accuracy of SQL, and all that a query must not be able to do."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from rung.errors import ConfigError, DataError
from rung.evaluation.metrics.base import Case, Metric
from rung.evaluation.metrics.execution import has_order
from rung.evaluation.metrics.registry import get_metric

SCRIPT = """
CREATE TABLE city (name TEXT, country TEXT, people REAL);
INSERT INTO city VALUES ('Lyon', 'France', 0.5), ('Paris', 'France', 2.1), ('Ghent', 'Belgium', 0.3);
"""
ALL = "SELECT name FROM city"
SLOW = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "cities.sql").write_text(SCRIPT)
    with sqlite3.connect(tmp_path / "cities.sqlite") as connection:
        connection.executescript(SCRIPT)
    connection.close()
    return tmp_path


@pytest.fixture(params=["cities.sql", "cities.sqlite"])
def metric(request: pytest.FixtureRequest, folder: Path) -> Metric:
    return get_metric("sql_execution", folder, {"database": request.param, "seconds": 0.2, "rows": 100})


@pytest.mark.parametrize(
    ("query", "gold", "score"),
    [
        (ALL, "SELECT name FROM city ORDER BY name", 0.0),  # the question asked for an order
        ("SELECT name FROM city ORDER BY name", ALL, 1.0),
        ("SELECT name FROM city ORDER BY people", "SELECT name FROM city ORDER BY name DESC", 0.0),
        ("select name from city where people > 0.2;", ALL, 1.0),
        ("```sql\nSELECT name FROM city\n```\nThis lists all cities.", ALL, 1.0),
        ("SELECT name, name FROM city", ALL, 0.0),
        ("SELECT name FROM city UNION ALL SELECT name FROM city", ALL, 0.0),  # repetitions count
        ("SELECT 3", "SELECT count(*) FROM city", 1.0),
        ("SELECT 3.0", "SELECT count(*) FROM city", 1.0),
        ("SELECT '3'", "SELECT count(*) FROM city", 0.0),
        ("SELECT 2.9", "SELECT sum(people) FROM city", 1.0),  # 0.1 + 0.2 is 0.3 here
        ("SELECT name FROM (SELECT * FROM city ORDER BY people)", ALL, 1.0),
        ("SELECT NULL", "SELECT max(people) FROM city WHERE name = 'Rome'", 1.0),
    ],
)
def test_the_result_decides(metric: Metric, query: str, gold: str, score: float) -> None:
    assert metric(query, [gold]) == score


def test_any_reference_will_do(metric: Metric) -> None:
    assert metric("SELECT 3", [ALL, "SELECT count(*) FROM city"]) == 1.0


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("SELECT nme FROM city", "no such column: nme"),
        ("There are three cities.", "syntax error"),
        ("", "another result"),
        ("SELECT 1; SELECT 2", "one statement at a time"),
        ("DROP TABLE city", "not authorized"),
        ("INSERT INTO city VALUES ('Rome', 'Italy', 2)", "not authorized"),
        ("UPDATE city SET people = 0", "not authorized"),
        ("CREATE TEMP TABLE x AS SELECT 1", "not authorized"),
        ("ATTACH '/etc/passwd' AS other", "not authorized"),
        ("PRAGMA query_only = 0", "not authorized"),
        ("SELECT * FROM pragma_database_list", "not authorized"),
        ("VACUUM INTO '/tmp/stolen.sqlite'", "authorization denied"),
        ("SELECT load_extension('/tmp/evil.so')", "not authorized"),
        ("BEGIN", "not authorized"),
        (SLOW, "stopped after 0.2 s"),
        ("SELECT a.name FROM city a, city b, city c, city d, city e", "more than 100 rows"),
        ("SELECT zeroblob(500000000)", "too big"),
        ("SELECT x'", "unrecognized token"),
        ("SELECT '\0'", ""),
    ],
)
def test_a_query_that_fails_scores_nothing_and_says_why(metric: Metric, query: str, why: str) -> None:
    score = metric.scores([Case(query, [ALL])])[0]
    assert score.value == 0.0
    assert why in score.note
    assert metric(ALL, [ALL]) == 1.0  # nothing was changed


def test_a_wrong_reference_is_the_data_s_fault(metric: Metric) -> None:
    for gold in ("SELECT nme FROM city", SLOW):
        with pytest.raises(DataError) as caught:
            metric(ALL, [gold])
        assert caught.value.code == "bad-reference"


@pytest.mark.parametrize("name", ["none.sqlite", "none.sql", "text.sqlite", "broken.sql"])
def test_a_database_that_cannot_be_opened(folder: Path, name: str) -> None:
    (folder / "text.sqlite").write_text("this is no database, though it is long enough to be looked at " * 9)
    (folder / "broken.sql").write_text("CREATE TABEL x;")
    with pytest.raises(ConfigError) as caught:
        get_metric("sql_execution", folder, {"database": name})(ALL, [ALL])
    assert caught.value.code == "bad-setting"
    assert name in caught.value.message


@pytest.mark.parametrize(
    ("query", "ordered"),
    [
        ("SELECT a FROM t ORDER BY a", True),
        ("select a from t order\n by a limit 1", True),
        ("SELECT a FROM (SELECT a FROM t ORDER BY a)", False),
        ("SELECT 'order by' FROM t -- order by", False),
        ("SELECT row_number() OVER (ORDER BY a) FROM t", False),
        ('SELECT "order by" FROM t /* order by */', False),
    ],
)
def test_order_matters_where_the_outermost_query_orders(query: str, ordered: bool) -> None:
    assert has_order(query) is ordered


@pytest.mark.parametrize(
    "settings", [{}, {"database": 3}, {"database": "x", "second": 1}, {"database": "x", "rows": 0}]
)
def test_settings_are_checked(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        get_metric("sql_execution", None, settings)
    assert caught.value.code == "bad-setting"
    assert "database: A SQLite file" in caught.value.hint


@pytest.mark.parametrize(
    ("query", "why"),
    [
        (
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 90) SELECT "
            + ", ".join(["zeroblob(99000)"] * 50) + " FROM n",
            "more than 50,000,000 bytes",
        ),
        ("SELECT " + ", ".join(f"{i}" for i in range(300)), "too many columns"),
        ("SELECT length(replace(hex(zeroblob(490000)), hex(zeroblob(240000)) || '1', ''))", "too big"),
    ],
)  # fmt: skip
def test_a_result_is_bounded_while_it_is_read(folder: Path, query: str, why: str) -> None:
    (score,) = get_metric("sql_execution", folder, {"database": "cities.sql"}).scores([Case(query, [ALL])])
    assert (score.value, why in score.note) == (0.0, True)


@pytest.mark.parametrize(
    "harm",
    [
        "ATTACH '{file}' AS e; CREATE TABLE e.t (x)", "VACUUM INTO '{file}'", "PRAGMA writable_schema = 1",
        "CREATE VIRTUAL TABLE t USING fts5(x)", "SELECT load_extension('{file}')",
    ],
)  # fmt: skip
def test_a_script_makes_its_own_database_and_nothing_else(folder: Path, harm: str) -> None:
    file = folder / "elsewhere"
    (folder / "harm.sql").write_text(f"{SCRIPT}\n{harm.format(file=file)};")
    with pytest.raises(ConfigError) as caught:
        get_metric("sql_execution", folder, {"database": "harm.sql"}).scores([Case(ALL, [ALL])])
    assert caught.value.code == "bad-setting"
    assert not file.exists()


def test_a_script_may_be_a_dump(folder: Path) -> None:
    with sqlite3.connect(folder / "cities.sqlite") as connection:
        connection.execute("CREATE INDEX by_country ON city (country)")
        dump = "\n".join(["PRAGMA foreign_keys=OFF;", *connection.iterdump()])
    connection.close()
    (folder / "dump.sql").write_text(dump)
    (score,) = get_metric("sql_execution", folder, {"database": "dump.sql"}).scores([Case(ALL, [ALL])])
    assert score.value == 1.0
