from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from rung.climbing.check import validate_task
from rung.data.json_schema import check_schema, write
from rung.engines.base import Constraint
from rung.engines.constraints import compiled
from rung.errors import ConfigError, DataError
from rung.models.reference import resolve
from rung.models.tokenizer import Tokenizer
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
    if problem is None:
        Task.load(tmp_path / "task.yaml").read()
        return
    expected = ("no row can be used", "too-few-rows") if value is None else (problem, "bad-reference")
    with pytest.raises(DataError, match=re.escape(expected[0])) as caught:  # a row without an answer is dropped
        Task.load(tmp_path / "task.yaml").read()
    assert caught.value.code == expected[1]


R = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "integer"}}}
Z = {"z": {"type": "integer"}}
NODE = {
    "type": "object", "required": ["name"], "additionalProperties": False,
    "properties": {"name": {"type": "string"}, "children": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("schema", "value", "text"),
    [
        ({"properties": {"z": {"items": {"properties": {"y": {}, "x": {}}}}, "a": {}}},
         {"q": 1, "a": 2, "b": 3, "z": [{"x": 1, "y": 2}]}, '{"z": [{"y": 2, "x": 1}], "a": 2, "b": 3, "q": 1}'),
        ({"$ref": "#/$defs/R", "$defs": {"R": R}}, {"a": 2, "b": 1}, '{"b": 1, "a": 2}'),
        ({"properties": {"r": {"$ref": "#/$defs/R"}}, "$defs": {"R": R}}, {"r": {"a": 2, "b": 1}},
         '{"r": {"b": 1, "a": 2}}'),
        ({"properties": Z, "$ref": "#/$defs/R", "$defs": {"R": R}}, {"a": 2, "b": 1, "z": 0},
         '{"z": 0, "b": 1, "a": 2}'),
        ({"$ref": "#/$defs/R", "properties": Z, "$defs": {"R": R}}, {"a": 2, "b": 1, "z": 0},
         '{"b": 1, "a": 2, "z": 0}'),
        ({"properties": Z, "allOf": [R]}, {"a": 2, "b": 1, "z": 0}, '{"z": 0, "b": 1, "a": 2}'),
        ({"allOf": [R], "properties": Z}, {"a": 2, "b": 1, "z": 0}, '{"b": 1, "a": 2, "z": 0}'),
        ({"anyOf": [{**R, "required": ["b"]}, {"type": "object", "properties": {"x": {}, "c": {}}, "required": ["x"]}]},
         {"c": 2, "x": 1}, '{"x": 1, "c": 2}'),
        ({"oneOf": [{"type": "null"}, R]}, {"a": 2, "b": 1}, '{"b": 1, "a": 2}'),
        ({"properties": {"n": {"anyOf": [{"$ref": "#/$defs/R"}, {"type": "null"}]}}, "$defs": {"R": R}},
         {"n": {"a": 2, "b": 1}}, '{"n": {"b": 1, "a": 2}}'),
        ({"$ref": "#/$defs/node", "$defs": {"node": NODE}},
         {"children": [{"children": [], "name": "y"}], "name": "x"},
         '{"name": "x", "children": [{"name": "y", "children": []}]}'),
        ({"required": ["z", "y"]}, {"y": 1, "z": 2, "a": 3}, '{"z": 2, "y": 1, "a": 3}'),
        ({"type": "array", "prefixItems": [R, {"type": "integer"}]}, [{"a": 2, "b": 1}, 3.0], '[{"b": 1, "a": 2}, 3]'),
        ({"additionalProperties": R}, {"k": {"a": 2, "b": 1}}, '{"k": {"b": 1, "a": 2}}'),
        ({"patternProperties": {"^x": R}}, {"xk": {"a": 2, "b": 1}}, '{"xk": {"b": 1, "a": 2}}'),
        ({"const": {"b": 1, "a": 2}}, {"a": 2.0, "b": 1.0}, '{"b": 1, "a": 2}'),
        ({"enum": [1, True, "x"]}, True, "true"),
        ({"type": "integer"}, 3.0, "3"),
        ({"type": ["integer", "null"]}, 3.0, "3"),
        ({"type": "number"}, 3.0, "3.0"),
        ({"type": "number", "minimum": 0}, 1e-7, "0.0000001"),
        ({"type": "number", "minimum": 0}, 1e30, "1000000000000000000000000000000"),
        ({"type": "string"}, "a\x7f\n\u2028é😀", '"a\\u007f\\n\u2028é😀"'),
    ],
)  # fmt: skip
def test_an_expected_answer_is_the_text_that_the_engines_write(schema: dict[str, Any], value: Any, text: str) -> None:
    check_schema(schema)
    assert write(value, schema) == text
    tokenizer = Tokenizer.load(resolve("embedded").folder)
    state = compiled(tokenizer, Constraint("json_schema", json.dumps(schema))).deep_copy()
    tokens = list(tokenizer.encode_plain(text))
    assert state.try_consume_tokens(tokens) == len(tokens)
    assert state.is_accepting()


LAB = {
    "$defs": {"T": {"enum": ["Blood", "Swab"], "type": "string"},
              "C": {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
                    "required": ["name", "age"]}},
    "type": "object", "additionalProperties": False, "required": ["kind", "contact", "note"],
    "properties": {"kind": {"$ref": "#/$defs/T"}, "contact": {"$ref": "#/$defs/C"},
                   "note": {"anyOf": [{"type": "string"}, {"type": "null"}]}},
}  # fmt: skip
GOOD = {"kind": "Blood", "contact": {"age": 3.0, "name": "Ann"}, "note": None}


def _task(folder: Path, schema: Any, row: Any) -> Task:
    rows = [{"text": f"{i}", "r": row if i == 2 else None} for i in range(4)]
    (folder / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "s.json").write_text(json.dumps(schema))
    (folder / "task.yaml").write_text(
        "name: t\ninstruction: i\ninputs: [text]\noutput:\n  column: r\n  kind: json\n  schema: s.json\n"
        "data: {train: d.jsonl}\n"
    )
    return Task.load(folder / "task.yaml")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"kind": "Urine"}, "$.kind: 'Urine' is not one of"),
        ({"contact": {"name": "Ann", "age": "twenty"}}, "$.contact.age: 'twenty' is not of type 'integer'"),
        ({"contact": {"name": "X"}}, "$.contact: 'age' is a required property"),
        ({"note": 17}, "$.note: 17 is not valid under any of the given schemas"),
        ({"extra": 1}, "$: Additional properties are not allowed ('extra' was unexpected)"),
    ],
)
def test_references_and_branches_are_checked(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    data = _task(tmp_path, LAB, GOOD).read()
    (row,) = (*data.train, *data.validation, *data.test)
    assert row.outputs == ('{"kind": "Blood", "contact": {"name": "Ann", "age": 3}, "note": null}',)
    with pytest.raises(DataError) as caught:
        _task(tmp_path, LAB, {**GOOD, **change}).read()
    assert problem in caught.value.message
    assert "d.jsonl:3" in caught.value.message


def test_all_wrong_rows_are_named(tmp_path: Path) -> None:
    _task(tmp_path, LAB, GOOD)
    rows = [GOOD, {**GOOD, "kind": "Urine"}, GOOD, {**GOOD, "note": 17}, {**GOOD, "contact": {}}]
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps({"text": f"{i}", "r": row}) for i, row in enumerate(rows)))
    with pytest.raises(DataError) as caught:
        Task.load(tmp_path / "task.yaml").read()
    assert caught.value.message.startswith("d.jsonl:2: ")
    assert caught.value.message.endswith("(2 more rows have wrong values: 4, 5)")


@pytest.mark.parametrize(
    ("field", "value"),
    [({"format": "date-time"}, "2024-01-01 10:00"), ({"format": "ipv4"}, "1.2.3"), ({"pattern": "^[0-9]+$"}, "٣")],
)
def test_what_a_constrained_model_cannot_write_is_an_error(tmp_path: Path, field: Any, value: str) -> None:
    with pytest.raises(DataError) as caught:
        _task(tmp_path, {"properties": {"a": {"type": "string", **field}}}, {"a": value}).read()
    assert caught.value.code == "bad-reference"


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"properties": {"id": {"$ref": "#/$defs/Missing"}}}, "refers to '#/$defs/Missing'"),
        ({"$ref": "other.json"}, "refers to 'other.json'"),
        ({"properties": ["id"]}, "$.properties: ['id'] is not of type 'object'"),
        ({"type": "strin"}, "$.type: 'strin'"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"properties": {"a": {"not": {"type": "string"}}}}, '"not"'),
        ({"properties": {"a": {"type": "string", "format": "iban"}}}, "Unknown format: iban"),
    ],
)
def test_a_schema_that_cannot_work_is_refused_before_anything_runs(tmp_path: Path, schema: Any, problem: str) -> None:
    task = _task(tmp_path, schema, None)
    with pytest.raises(ConfigError) as caught:
        validate_task(task)
    assert caught.value.code == "bad-constraint"
    assert problem in caught.value.message
    assert "task.yaml:7" in str(caught.value.where)
    if problem[0] not in "r$":
        check_schema(schema, guaranteed=False)  # a server may know the keyword
