"""What prompts say about the answer."""

from __future__ import annotations

from typing import Any

import pytest

from rung.prompts.answer_form import labels_form, number_form, record_form

NODE = {"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/Node"}}}}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "one sample",
    "$defs": {
        "Kind": {"enum": ["Blood", "Swab"], "type": "string"},
        "Contact": {
            "type": "object", "description": "whom to call", "required": ["name"],
            "properties": {"name": {"type": "string", "description": "full\nname"},
                           "age": {"type": "integer", "minimum": 0, "maximum": 120}},
        },
        "Node": NODE,
    },
    "required": ["kind", "contact", "note", "day"],
    "properties": {
        "kind": {"$ref": "#/$defs/Kind"},
        "contact": {"$ref": "#/$defs/Contact"},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}], "description": "free text"},
        "day": {"type": ["string", "null"], "format": "date"},
        "tags": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 3},
        "tree": {"$ref": "#/$defs/Node"},
        "code": {"type": "string", "pattern": "^a+$", "maxLength": 3},
        "share": {"type": "number", "exclusiveMinimum": 0},
        "counts": {"type": "object", "additionalProperties": {"type": "integer"}},
    },
}  # fmt: skip


def test_a_schema_is_shown_with_its_descriptions() -> None:
    assert (
        record_form(SCHEMA)
        == """Answer with JSON of this form (one sample):
{
  "kind": "Blood" | "Swab",
  "contact": {
    "name": string,  // full name
    "age": integer from 0 to 120  // optional
  },  // whom to call
  "note": string | null,  // free text
  "day": string (date) | null,
  "tags": [string, ...] (1 to 3 items),  // optional
  "tree": {
    "kids": [Node as above, ...]  // optional
  },  // optional
  "code": string matching ^a+$ of at most 3 characters,  // optional
  "share": number above 0,  // optional
  "counts": {"...": integer}  // optional
}"""
    )


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({}, "Answer with JSON."),
        ({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]},
         'Answer with JSON of this form:\n{"a": string}'),
        ({"$ref": "#/$defs/A", "$defs": {"A": {"type": "array", "items": {"type": "integer"}}}},
         "Answer with JSON of this form:\n[integer, ...]"),
        ({"allOf": [{"properties": {"a": {"const": 1}}, "required": ["a"]},
                    {"properties": {"b": {}}, "required": ["b"]}]},
         'Answer with JSON of this form:\n{"a": 1, "b": any JSON}'),
        ({"prefixItems": [{"type": "string"}, {"type": "null"}], "items": False, "type": "array"},
         "Answer with JSON of this form:\n[string, null]"),
    ],
)  # fmt: skip
def test_forms(schema: dict[str, Any], text: str) -> None:
    assert record_form(schema) == text


def test_labels_with_commas_are_unambiguous() -> None:
    assert labels_form(["a", "b c"], {}, several=False) == "Answer with one of: a, b c"
    assert labels_form(["Food, drink", "#hash"], {}, several=False) == "Answer with one of:\n- Food, drink\n- #hash"
    assert labels_form(["a: b", "c"], {"a: b": "x"}, several=True) == (
        'Answer with a JSON list of all that apply of:\n- "a: b": x\n- c'
    )
    assert labels_form(["a\nb", "c"], {}, several=True).endswith('of:\n- "a\\nb"\n- c')


def test_numbers() -> None:
    assert number_form(1, 5, "", whole=True) == "Answer with a whole number from 1 to 5, and nothing else."
    assert number_form(0, None, "EUR", whole=False) == "Answer with a number of at least 0, in EUR, and nothing else."
    assert number_form(None, None, "%", whole=False) == "Answer with a number, in %, and nothing else."
    assert number_form(None, 2.5, "", whole=False) == "Answer with a number of at most 2.5, and nothing else."
