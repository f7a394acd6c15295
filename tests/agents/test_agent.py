"""The loop, with an engine that writes what it is told to, and tools that are real."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rung.agents import toolbox
from rung.agents.calls import Call, json_constraint, template_turns
from rung.agents.tools import AgentStep
from rung.artifact import agent as agent_module
from rung.artifact.artifact import Artifact
from rung.climbing.check import validate_task
from rung.engines.base import EngineInfo, Generation
from rung.errors import ArtifactError, ConfigError, MachineError
from rung.evaluation.scoring import evaluate
from rung.models.thinking import answer_beginning
from rung.models.tokenizer import Tokenizer
from rung.rungs import FewShot, LoRA, registered
from rung.task import Task

HERE = Path(__file__).parent
TASK = """
name: sums
instruction: Answer with a number.
inputs: [question]
output: {column: answer, kind: text, max_tokens: 50}
metric: exact_match
data: {train: rows.jsonl, split: {validation: 0.3, test: 0.3}}
tools: TOOLS
"""
TEMPLATE = """
{%- if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools>{% endif %}
{%- for message in messages %}[{{ message.role }}]{{ message.content }}
{%- for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}
{%- endfor %}"""


class Scripted:
    """Answers each conversation with the next text of its script; a conversation is known by its first question."""

    def __init__(self, scripts, context=0):
        self.scripts = {question: list(texts) for question, texts in scripts.items()}
        self.info = EngineInfo("fake", "fake", "cpu", "none", 0, context, "fake", {})
        self.requests = []

    def generate(self, requests, **_):
        self.requests.append(requests)
        return [self._one(request) for request in requests]

    def _one(self, request):
        question = request.prompt if isinstance(request.prompt[0], int) else request.prompt[1]["content"]
        text = self.scripts.get(question, self.scripts.get("*")).pop(0)
        tokens = min(len(text.split()), request.sampling.max_tokens)
        return Generation(text, 100, tokens, "length" if text.endswith("~") else "stop", 0.5)

    def count(self, prompt):
        return sum(len(message["content"]) for message in prompt)

    def text(self, prompt):
        return "\n".join(message["content"] for message in prompt)


def call(tool, **arguments):
    return json.dumps({"step": {"tool": tool, "arguments": arguments}})


def said(answer):
    return json.dumps({"step": {"answer": answer}})


@pytest.fixture(autouse=True)
def _ended():
    yield
    toolbox.close_all()


@pytest.fixture
def folder(tmp_path):
    rows = [{"question": f"q{i}", "answer": str(2 * i)} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("mytools.py", "server.py"):
        shutil.copy(HERE / name, tmp_path)
    return tmp_path


def task(folder, tools="['mytools:double', 'mytools:raises', 'mytools:long']", more=""):
    (folder / "task.yaml").write_text(TASK.replace("TOOLS", tools) + more)
    return Task.load(folder / "task.yaml")


@pytest.fixture(autouse=True)
def _json(monkeypatch):
    """The protocol of a model whose template knows no tools; the embedded one is such, and is not loaded here."""
    monkeypatch.setattr("rung.artifact.artifact.protocol_for", lambda model: "json")


def ask(made, scripts, **more):
    engine = Scripted(scripts, **more)
    return made.with_engine(engine).predict([{"question": question} for question in scripts]), engine


def test_rows_call_tools_until_they_answer(folder):
    zero = Artifact.zero_shot(task(folder))
    (one, two), engine = ask(zero, {"q1": [call("double", number=1), said(" 2 ")], "q2": [said("4")]})
    assert (one.text, two.text) == ("2", "4")
    assert (one.prompt_tokens, one.completion_tokens) == (200, 11)
    assert [len(batch) for batch in engine.requests] == [2, 1]  # rows in one batch, finished ones left out
    assert [replace(step, seconds=0.0) for step in one.steps] == [
        AgentStep("result", "2", call("double", number=1), "double", '{"number": 1}', 6),
        AgentStep("answer", "2", said(" 2 "), tokens=5),
    ]
    assert one.steps[0].seconds > 0 == one.steps[1].seconds
    assert one.seconds == pytest.approx(1 + one.steps[0].seconds, abs=0.1)  # and the rendering
    assert engine.requests[1][0].prompt[2:] == (
        {"role": "assistant", "content": call("double", number=1)},
        {"role": "user", "content": "Result of double:\n2"},
    )
    head = engine.requests[0][0].prompt[0]["content"]
    assert head.startswith("Answer with a number.\n\nYou can call these tools:\n- double: Double a number.")
    assert one.messages[0]["content"] == head


def test_a_thought_before_a_turn_is_no_part_of_it(folder):
    zero = Artifact.zero_shot(task(folder))
    turns = [f"<think>{{ which tool? }}</think>\n{call('double', number=1)}", f"<think>so 2</think>{said('2')}"]
    (one,), engine = ask(zero, {"q": turns})
    assert (one.text, [step.outcome for step in one.steps]) == ("2", ["result", "answer"])
    assert engine.requests[1][0].prompt[2]["content"] == call("double", number=1)


def test_failures_and_malformed_turns_are_told_and_counted(folder):
    zero = Artifact.zero_shot(task(folder))
    script = [
        "{",
        call("none"),
        call("raises", text="a"),
        call("double", number="x"),
        '{"step": 1}',
        '{"st~',
        said("0"),
    ]
    (one,), engine = ask(zero, {"q": script})
    assert [step.outcome for step in one.steps] == [
        "malformed", "malformed", "failed", "failed", "malformed", "malformed", "answer",
    ]  # fmt: skip
    told = [batch[0].prompt[-1]["content"] for batch in engine.requests[1:]]
    assert told[0].startswith("that is not whole JSON:")
    assert told[1] == "Result of none:\nerror: there is no tool 'none'; there are double, raises, long"
    assert told[2] == "Result of raises:\nerror: LookupError: no a"
    assert told[3].startswith("Result of double:\nerror: number: Input should be a valid integer")
    assert told[4].startswith('write {"step"')
    assert told[5].endswith("(it was cut: write less)")


def test_limits_stop_a_row_and_say_which(folder):
    limited = task(folder, more="agent: {max_steps: 3, max_tokens: 12, result_characters: 100}\n")
    zero = Artifact.zero_shot(limited)
    again = call("double", number=1)  # six words
    (steps, tokens, cut), engine = ask(
        zero,
        {"s": ["{", "{", "{"], "t": [again, again, again], "c": [call("long"), said("x"), said("y")]},
    )
    assert (steps.text, steps.stopped, len(steps.steps)) == ("", "steps", 3)
    assert (tokens.text, tokens.stopped, tokens.completion_tokens) == ("", "tokens", 12)
    assert cut.steps[0].text == "x" * 100 + "\n[cut: 4900 more characters]"
    assert [batch[0].sampling.max_tokens for batch in engine.requests] == [12, 11, 10]  # never more than is left
    held = [json.loads(batch[0].constraint.value)["properties"]["step"] for batch in engine.requests]
    assert [len(step.get("anyOf", [])) for step in held] == [4, 4, 0]  # the last turn can only answer
    (full,), _ = ask(zero, {"q": [call("long"), said("never")]}, context=300)
    assert (full.text, full.stopped) == ("", "context")


def test_a_tool_that_never_ends_costs_its_time_and_no_more(folder):
    zero = Artifact.zero_shot(task(folder, "['mytools:loops']", "agent: {seconds: 0.3}\n"))
    (one,), _ = ask(zero, {"q": [call("loops"), said("1")]})
    assert [step.outcome for step in one.steps] == ["timeout", "answer"]


def test_constraints_admit_calls_and_answers_and_nothing_else(folder):
    from jsonschema import Draft202012Validator

    zero = Artifact.zero_shot(task(folder, "['mytools:where']"))
    valid = Draft202012Validator(json.loads(json_constraint(zero.decoder.tools, last=False).value)).is_valid
    good = {"place": {"name": "a", "floor": 1}, "unit": "ft"}
    assert valid({"step": {"tool": "where", "arguments": good}})
    assert valid({"step": {"answer": "a"}})
    assert valid({"step": {"answer": 647.13}})
    assert not valid({"step": {"tool": "where", "arguments": {"place": {"name": "a"}}}})  # every argument is written
    assert not valid({"step": {"tool": "other", "arguments": good}})
    assert not valid({"step": {"tool": "where", "arguments": {**good, "unit": "km"}}})
    assert not valid({"tool": "where", "arguments": good})


def test_steps_are_saved_with_predictions(folder):
    zero = Artifact.zero_shot(task(folder))
    rows = task(folder).read().test[:1]
    engine = Scripted({rows[0].inputs["question"]: [call("double", number=1), said(rows[0].outputs[0])]})
    (found,) = evaluate(zero.with_engine(engine), rows, "test", folder=folder)
    assert found.score == 1.0
    assert [step["outcome"] for step in found.steps] == ["result", "answer"]
    assert "You can call these tools" in found.prompt


def test_an_artifact_loads_with_the_same_tools_only(folder, tmp_path_factory, monkeypatch):
    shutil.move(folder / "mytools.py", folder / "own.py")  # the other name can be imported from anywhere here
    for user in ("artifact", "decoder"):
        monkeypatch.setattr(f"rung.artifact.{user}.resolve", lambda model, **_: type("Files", (), {"fingerprint": "f"}))
    zero = replace(Artifact.zero_shot(task(folder, "['own:double']")), engine="torch")
    saved = zero.save(tmp_path_factory.mktemp("saved") / "artifact")
    assert Artifact.load(saved) == zero
    moved = tmp_path_factory.mktemp("moved")
    shutil.move(folder / "own.py", moved)
    with pytest.raises(ConfigError) as caught:
        Artifact.load(saved)
    assert caught.value.code == "function-not-found"
    monkeypatch.setenv("RUNG_TOOLS", str(moved))
    assert Artifact.load(saved).decoder.folder == moved
    (moved / "own.py").write_text((moved / "own.py").read_text() + "\n# changed\n")
    with pytest.raises(ArtifactError) as caught:
        Artifact.load(saved)
    assert caught.value.code == "artifact-mismatch"


def test_rungs_that_would_teach_answers_without_calls_do_not_apply(folder):
    made = task(folder)
    zero, data = Artifact.zero_shot(made), made.read()
    reason = "rows show no tool calls to learn from"
    assert FewShot("fixed").applies(zero, data).reason == reason
    assert LoRA().applies(zero, data).reason == reason
    with_system = made.model_copy(update={"system": "Be brief."})
    applying = {one.name for one in registered() if one.make(with_system).applies(zero, data).applies}
    assert applying <= {"system-prompt", "prompt-search", "domain-adaptation"}
    assert "system-prompt" in applying


@pytest.mark.parametrize(
    ("tools", "more", "code", "line"),
    [
        ("['mytools:none']", "", "function-not-found", 8),
        ("['mytools:double', 'mytools:untyped']", "", "tool-untyped", 8),
        ("[{mcp: []}]", "", "bad-value", 8),
        ("[{cmp: [x]}]", "", "unknown-key", 8),
        ("[]", "agent: {max_steps: 3}\n", "bad-value", None),
        ("['mytools:double']", "agent: {max_steps: 0}\n", "bad-value", 9),
    ],
)
def test_wrong_task_files_are_refused_with_their_line(folder, tools, more, code, line):
    with pytest.raises(ConfigError) as caught:
        validate_task(task(folder, tools, more))
    assert caught.value.code == code
    if line:
        assert caught.value.where.line == line


def test_two_tools_of_one_name_are_refused(folder):
    with pytest.raises(ConfigError) as caught:
        Artifact.zero_shot(task(folder, "['mytools:double', 'mytools:double']"))
    assert caught.value.code == "duplicate-name"


# ---- servers


def test_an_mcp_server_s_tools_are_called_and_its_failures_told(folder):
    made = task(folder, json.dumps([{"mcp": [sys.executable, "server.py"]}]), "agent: {seconds: 4.0}\n")
    zero = Artifact.zero_shot(made)
    assert [tool.name for tool in zero.decoder.tools] == ["add", "breaks", "sleeps", "ends"]
    assert zero.decoder.tools[0].schema["properties"] == {"a": {"type": "integer"}, "b": {"type": "integer"}}
    script = [call("add", a=2, b=3), call("add", a="x"), call("breaks", text="luck"), call("sleeps"), said("5")]
    (one,), _ = ask(zero, {"q": script})
    assert [step.outcome for step in one.steps] == ["result", "failed", "failed", "timeout", "answer"]
    assert one.steps[0].text == "5"
    assert one.steps[2].text == "Error executing tool breaks"


def test_only_the_named_tools_of_a_server_are_offered(folder):
    named = {"mcp": [sys.executable, "server.py"], "only": ["add"]}
    assert [t.name for t in Artifact.zero_shot(task(folder, json.dumps([named]))).decoder.tools] == ["add"]
    with pytest.raises(ConfigError) as caught:
        Artifact.zero_shot(task(folder, json.dumps([{**named, "only": ["subtract"]}])))
    assert caught.value.code == "function-not-found"


@pytest.mark.parametrize("command", [["no-such-command"], [sys.executable, "-c", "print('hello')"]])
def test_a_server_that_is_none_is_an_error(folder, command):
    with pytest.raises(MachineError) as caught:
        Artifact.zero_shot(task(folder, json.dumps([{"mcp": command}])))
    assert caught.value.code == "mcp-failed"


# ---- the chat template's own format


@pytest.fixture
def knowing(tiny_tokenizer, tmp_path_factory):
    """A tokenizer whose template knows tools."""
    folder = tmp_path_factory.mktemp("knowing")
    shutil.copytree(tiny_tokenizer.folder, folder, dirs_exist_ok=True)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return Tokenizer.load(folder)


def test_the_template_s_format_is_rendered_and_read(folder, knowing, monkeypatch):
    monkeypatch.setattr("rung.artifact.artifact.protocol_for", lambda model: "template")
    monkeypatch.setattr(agent_module, "_tokenizer", lambda model: knowing)
    zero = Artifact.zero_shot(task(folder, "['mytools:double']"))
    written = '<tool_call>{"name": "double", "arguments": {"number": 4}}</tool_call>'
    engine = Scripted({"*": [written, " 8 "]})
    (one,) = zero.with_engine(engine).predict([{"question": "q"}])
    assert (one.text, one.steps[0].text, one.steps[1].outcome) == ("8", "8", "answer")
    tools = [tool.as_template() for tool in zero.decoder.tools]
    plain = [{"role": "system", "content": "Answer with a number."}, {"role": "user", "content": "q"}]
    turns = template_turns(written, (Call("double", {"number": 4}),), [("double", "8")])
    prompts = [batch[0].prompt for batch in engine.requests]
    begin = answer_beginning(knowing)  # this template writes no generation prompt of its own
    assert prompts == [knowing.encode_chat(t, tools=tools, begin=begin) for t in (plain, [*plain, *turns])]
    assert all(batch[0].constraint is None for batch in engine.requests)
    assert zero.with_engine(engine).text(one.messages) == knowing.render(plain, tools=tools, begin=begin)
