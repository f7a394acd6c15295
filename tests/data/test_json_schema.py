from __future__ import annotations

from typing import Any

import pytest

from rung.data.examples import in_schema_order, mismatch


@pytest.mark.parametrize(
    ("value", "schema", "problem"),
    [
        (1, {}, None),
        (1, {"type": "integer"}, None),
        (1.0, {"type": "integer"}, None),
        (1.5, {"type": "integer"}, "the answer is number, not integer"),
        (True, {"type": "integer"}, "the answer is boolean, not integer"),
        (True, {"type": ["string", "boolean"]}, None),
        (None, {"type": ["string", "number"]}, "the answer is null, not string or number"),
        ({}, {"type": "array"}, "the answer is object, not array"),
        ("c", {"enum": ["a", "b"]}, "the answer is 'c', not one of 'a', 'b'"),
        ("c", {"const": "a"}, "the answer is 'c', not 'a'"),
        ([1, "x"], {"items": {"type": "number"}}, "`[1]` is string, not number"),
        ({"a": [{"b": 1}]}, {"properties": {"a": {"items": {"required": ["c"]}}}}, "`a[0]` lacks the key 'c'"),
        ({"a": 1}, {"additionalProperties": False}, "the answer has the key 'a', which the schema does not allow"),
        ({"a": 1}, {"properties": {"a": True}, "additionalProperties": False}, None),
    ],
)
def test_mismatch(value: Any, schema: dict[str, Any], problem: str | None) -> None:
    assert mismatch(value, schema) == problem


def test_in_schema_order() -> None:
    schema = {"properties": {"z": {"items": {"properties": {"y": {}, "x": {}}}}, "a": {}}}
    value = {"q": 1, "a": 2, "b": 3, "z": [{"x": 1, "y": 2}]}
    ordered = in_schema_order(value, schema)
    assert ordered == value
    assert list(ordered) == ["z", "a", "b", "q"]
    assert list(ordered["z"][0]) == ["y", "x"]
