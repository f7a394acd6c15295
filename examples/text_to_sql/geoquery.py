"""Make a task of GeoQuery: python geoquery.py geography.json geography.sqlite OUT.

Queries that fail on the database or return nothing are left out, and counted: any wrong query may return nothing.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from rung.evaluation.metrics.execution import Database, QueryError

SPLITS = {"train": "train", "dev": "validation", "test": "test"}
TASK = """name: geoquery
instruction: |
  Write one SQLite query that answers the question. The tables:
{tables}
inputs: [question]
output: {{column: sql, kind: text, max_tokens: 128}}
metric: {{name: sql_execution, database: {database}, seconds: 2}}
data: {{train: train.jsonl, validation: validation.jsonl, test: test.jsonl, duplicates: drop}}
model: embedded
"""


def main(questions: Path, database: Path, out: Path) -> None:
    """Write the three splits, a copy of the database and the task file."""
    out.mkdir(parents=True)
    shutil.copyfile(database, out / database.name)
    opened = Database(database)
    rows: dict[str, list[str]] = {name: [] for name in SPLITS.values()}
    dropped = {"fails": 0, "returns nothing": 0}
    for entry in json.loads(questions.read_text(encoding="utf-8")):
        for sentence in entry["sentences"]:
            question, sql = sentence["text"], entry["sql"][0]
            for name, value in sentence["variables"].items():
                question, sql = question.replace(name, value), sql.replace(name, value)
            try:
                found = opened.query(sql)
            except QueryError:
                dropped["fails"] += 1
                continue
            if not found:
                dropped["returns nothing"] += 1
                continue
            rows[SPLITS[sentence["question-split"]]].append(json.dumps({"question": question, "sql": sql}))
    for name, lines in rows.items():
        (out / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tables = "\n".join(f"  {line}" for line in _tables(opened))
    (out / "task.yaml").write_text(TASK.format(tables=tables, database=database.name), encoding="utf-8")
    print({**{name: len(lines) for name, lines in rows.items()}, **dropped})


def _tables(database: Database) -> list[str]:
    listed = database.query("SELECT name, sql FROM sqlite_master WHERE type = 'table' ORDER BY name")
    return [" ".join(sql.split("(", 1)[1].replace("`", "").split()).join((f"{name}(", "")) for name, sql in listed]


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: python geoquery.py geography.json geography.sqlite OUT")
    main(*map(Path, sys.argv[1:]))
