import json
from pathlib import Path

import pytest

from rung.agents.process import FunctionWorker, ToolResult
from rung.agents.tools import function_tool, plain_schema
from rung.errors import ConfigError
from rung.models.cache import file_sha256

HERE = Path(__file__).parent
SPECS = ["double", "where", "count", "raises", "loops", "leaves", "asks", "unwritable"]


@pytest.fixture
def worker():
    made = FunctionWorker(HERE, [f"mytools:{name}" for name in SPECS])
    yield made
    made.close()


def test_a_function_s_types_and_docstring_are_what_the_model_reads():
    tool = function_tool("mytools:double", HERE)
    assert (tool.name, tool.description) == ("double", "Double a number.\n\nTwice as much.")
    assert tool.schema == {
        "type": "object",
        "properties": {"number": {"type": "integer", "description": "the number to"}},
        "required": ["number"],
        "additionalProperties": False,
    }
    assert tool.sha256 == file_sha256(HERE / "mytools.py")


def test_nested_types_are_written_out():
    assert function_tool("mytools:where", HERE).schema == {
        "type": "object",
        "properties": {
            "place": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "floor": {"type": "integer", "default": 0}},
                "required": ["name"],
            },
            "unit": {"type": "string", "enum": ["m", "ft"], "default": "m"},
        },
        "required": ["place"],
        "additionalProperties": False,
    }


def test_a_property_called_title_is_kept_and_endless_schemas_are_refused():
    schema = {"type": "object", "title": "Book", "properties": {"title": {"type": "string", "title": "Title"}}}
    assert plain_schema(schema) == {"type": "object", "properties": {"title": {"type": "string"}}}
    endless = {"$ref": "#/$defs/A", "$defs": {"A": {"type": "array", "items": {"$ref": "#/$defs/A"}}}}
    with pytest.raises(ValueError, match="A contains itself"):
        plain_schema(endless)


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        ("mytools", "function-not-found"),
        ("mytools:nothing", "function-not-found"),
        ("mytools:constant", "function-not-found"),
        ("no_such_module:f", "function-not-found"),
        ("mytools:untyped", "tool-untyped"),
        ("mytools:undocumented", "tool-untyped"),
        ("mytools:positional", "tool-untyped"),
        ("broken:f", "function-not-found"),
    ],
)
def test_what_cannot_be_told_to_a_model_is_refused(spec, code, tmp_path):
    (tmp_path / "mytools.py").write_text((HERE / "mytools.py").read_text())
    (tmp_path / "broken.py").write_text("x = 1\n1 / 0\n")
    with pytest.raises(ConfigError) as caught:
        function_tool(spec, tmp_path)
    assert caught.value.code == code
    if spec == "broken:f":
        assert (caught.value.where.file, caught.value.where.line) == (str(tmp_path / "broken.py"), 2)


@pytest.mark.parametrize(
    ("name", "arguments", "outcome", "text"),
    [
        ("double", {"number": 21}, "result", "42"),
        ("double", {"number": "21"}, "result", "42"),
        ("double", {"number": "x"}, "failed", "number: Input should be a valid integer"),
        ("double", {}, "failed", "number: Missing required argument"),
        ("double", {"number": 1, "more": 2}, "failed", "more: Unexpected keyword argument"),
        ("where", {"place": {"name": "roof", "floor": 4}}, "result", '{"name":"roof","height":12,"unit":"m"}'),
        ("raises", {"text": "luck"}, "failed", "LookupError: no luck"),
        ("asks", {}, "result", ""),
        ("unwritable", {}, "failed", "the result cannot be written as JSON"),
        ("leaves", {}, "failed", "its process ended with exit code 7"),
    ],
)
def test_calls_and_their_failures(worker, name, arguments, outcome, text):
    found = worker.call(f"mytools:{name}", arguments, 60)
    assert found.outcome == outcome
    assert found.text.startswith(text) if outcome == "failed" else found.text == text


def test_a_tool_that_never_ends_is_ended_and_the_next_call_is_answered(worker):
    assert worker.call("mytools:count", {}, 60).text == "1"
    assert worker.call("mytools:count", {}, 60).text == "2"
    assert worker.call("mytools:loops", {}, 0.2) == ToolResult(
        "timeout", "it took longer than 0.2 seconds and was ended"
    )
    assert worker.call("mytools:count", {}, 60).text == "1"  # a new process


def test_schemas_are_json():
    assert json.loads(function_tool("mytools:count", HERE).parameters)["properties"] == {}
