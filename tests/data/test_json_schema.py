from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from rung.data.examples import in_schema_order
from rung.errors import DataError
from rung.task import Task


@pytest.mark.parametrize(
    ("value", "schema", "problem"),
    [
        (1, {}, None),
        (1, {"type": "integer"}, None),
        (1.0, {"type": "integer"}, None),
        (1.5, {"type": "integer"}, "$: 1.5 is not of type 'integer'"),
        (True, {"type": "integer"}, "$: True is not of type 'integer'"),
        (True, {"type": ["string", "boolean"]}, None),
        (None, {"type": ["string", "number"]}, "$: None is not of type 'string', 'number'"),
        ({}, {"type": "array"}, "$: {} is not of type 'array'"),
        ("c", {"enum": ["a", "b"]}, "$: 'c' is not one of ['a', 'b']"),
        ("c", {"const": "a"}, "$: 'a' was expected"),
        ([1, "x"], {"items": {"type": "number"}}, "$[1]: 'x' is not of type 'number'"),
        ([[{"b": 1}]], {"items": {"items": {"required": ["c"]}}}, "$[0][0]: 'c' is a required property"),
        ({"a": 1}, {"additionalProperties": False}, "$: Additional properties are not allowed ('a' was unexpected)"),
        ({"a": 1}, {"properties": {"a": True}, "additionalProperties": False}, None),
        (-5, {"minimum": 0}, "$: -5 is less than the minimum of 0"),
        ("x", {"pattern": "^y"}, "$: 'x' does not match '^y'"),
        ("x", {"anyOf": [{"type": "integer"}, {"type": "null"}]}, "$: 'x' is not valid under any of the given schemas"),
        ({"a": 1}, {"$defs": {"t": {"type": "string"}}, "properties": {"a": {"$ref": "#/$defs/t"}}},
         "$.a: 1 is not of type 'string'"),
    ],
)  # fmt: skip
def test_gold_answers_are_checked_against_the_whole_schema(
    tmp_path: Path, value: Any, schema: dict[str, Any], problem: str | None
) -> None:
    rows = [{"text": str(i), "answer": value if not isinstance(value, str) else json.dumps(value)} for i in range(9)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "task.yaml").write_text(
        json.dumps(
            {
                "name": "t",
                "instruction": "i",
                "inputs": ["text"],
                "data": {"train": "rows.jsonl"},
                "output": {"kind": "json", "column": "answer", "schema": schema},
            }
        )
    )
    if problem is None or value is None:  # a row without an answer is dropped
        Task.load(tmp_path / "task.yaml").read()
        return
    with pytest.raises(DataError, match=re.escape(problem)) as caught:
        Task.load(tmp_path / "task.yaml").read()
    assert caught.value.code == "bad-reference"


def test_in_schema_order() -> None:
    schema = {"properties": {"z": {"items": {"properties": {"y": {}, "x": {}}}}, "a": {}}}
    value = {"q": 1, "a": 2, "b": 3, "z": [{"x": 1, "y": 2}]}
    ordered = in_schema_order(value, schema)
    assert ordered == value
    assert list(ordered) == ["z", "a", "b", "q"]
    assert list(ordered["z"][0]) == ["y", "x"]
