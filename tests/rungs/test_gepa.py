import pytest

from engines.fault_server import FaultServer, Reply, completion
from fake_engine import FakeEngine
from rung.artifact.artifact import Artifact
from rung.artifact.parts import Signature
from rung.artifact.text import Generate
from rung.data.rows import Data, Example, example_id
from rung.prompts.prompt import Prompt
from rung.rungs import Gepa


def rows(n):
    made = [{"text": f"question {i}"} for i in range(n)]
    return tuple(Example(example_id(inputs), inputs, (f"{i}",), f"t:{i}") for i, inputs in enumerate(made))


@pytest.fixture
def data():
    return Data(rows(160), (), (), (), None, "f")


@pytest.fixture
def server():
    made = FaultServer()
    yield made
    made.close()


@pytest.fixture
def artifact():
    """Answers with the number where the instruction says so."""

    def write(messages, sampling):
        told = "number" in messages[0]["content"]
        return messages[-1]["content"].split()[-1] if told else "?"

    signature = Signature("task", ("text",), "text", "exact_match")
    return Artifact(signature, "fake", Prompt("Answer.", "{text}"), Generate(8), path=("zero-shot",)).with_engine(
        FakeEngine(write=write)
    )


def replies(server, *texts):
    """Let the server say these texts in turn, over and over."""
    asked = iter(range(10**6))

    def answer(path, body):
        return Reply(completion(texts[next(asked) % len(texts)]))

    server.answer = answer


def test_a_reflecting_model_rewrites_the_instruction(artifact, data, server):
    replies(server, "```\nAnswer with the number alone.\n```")
    rung = Gepa(reflection=server.reference, calls=600, selection_rows=20)
    assert rung.applies(artifact, data).applies
    found = rung.fit(artifact, data)
    record = found.settings["gepa"]
    assert record["adopted"]
    assert found.prompt.instruction == "Answer with the number alone."
    assert record["comparison"]["broken"] == 0
    assert record["spent"]["calls"] <= 600
    assert [one["name"] for one in record["candidates"]][:2] == ["incumbent", "candidate-1"]
    asked = server.bodies()[0]["messages"][0]["content"]
    assert "Expected: '" in asked
    assert "Answer." in asked


def test_an_instruction_that_repeats_rows_is_never_asked(artifact, data, server):
    data = Data(
        tuple(
            Example(r.id, {"text": f"the long and winding {r.inputs['text']}"}, r.outputs, r.source) for r in data.train
        ),
        (), (), (), None, "f",
    )  # fmt: skip
    replies(server, "```\nThe number: the long and winding question 7 is 7.\n```")
    found = Gepa(reflection=server.reference, calls=450, selection_rows=20).fit(artifact, data)
    record = found.settings["gepa"]
    assert not record["adopted"]
    assert found.prompt == artifact.prompt
    assert [one["reason"] for one in record["refused"]] == ["it repeats the training row t:7"]
    heads = {request.prompt[0]["content"] for request in artifact.open().generated}
    assert heads == {"Answer."}


def test_without_a_reflecting_model_it_does_not_apply(artifact, data):
    verdict = Gepa().applies(artifact, data)
    assert verdict.reason == "no model reflects; name one with `rungs: {gepa: {reflection: MODEL}}`"


def test_a_budget_that_is_too_small_asks_nothing(artifact, data, server):
    found = Gepa(reflection=server.reference, calls=50).fit(artifact, data)
    assert "too small" in found.settings["gepa"]["reason"]
    assert not server.asked
