"""Interactions: the side of an input is the one that the task's own data loading gives it."""

from dataclasses import replace
from pathlib import Path

import pytest

from grounded import passage
from rung.artifact.decoder import Answer
from rung.data.rows import example_id
from rung.feedback.records import Interaction, SplitRule, interaction_of
from rung.retrieval.retriever import Retriever
from rung.task import Task


def test_the_test_side_is_exactly_the_test_split_that_loading_cuts_from_many_rows(tmp_path):
    rows = "".join(f"question number {i},{'yes' if i % 2 else 'no'}\n" for i in range(3000))
    (tmp_path / "rows.csv").write_text("text,label\n" + rows)
    (tmp_path / "task.yaml").write_text(
        "name: t\ninstruction: Answer.\ninputs: [text]\noutput: {column: label, kind: category}\n"
        "data: {train: rows.csv, split: {test: 0.3, validation: 0.1, seed: 7}}\n"
    )
    task = Task.load(tmp_path / "task.yaml")
    data = task.read()
    rule = SplitRule.of(task)
    assert rule == SplitRule(7, 0.3, None)
    assert len(data.test) > 800
    assert {e.id for e in data.test} == {
        e.id for e in (*data.train, *data.validation, *data.test) if rule.side(e.inputs) == "test"
    }


def test_a_group_that_is_among_the_inputs_decides():
    rule = SplitRule(test=0.5, group="company")
    sides = {rule.side({"company": "one", "text": f"{i}"}) for i in range(50)}
    assert len(sides) == 1
    assert {rule.side({"company": f"{i}", "text": "same"}) for i in range(50)} == {"train", "test"}


def test_an_answer_becomes_an_interaction_with_its_provenance(zero):
    answer = Answer("age_limit", 0.9, None, 12, 0, 0.5, ({"role": "user", "content": "How old?"},))
    interaction = interaction_of(
        zero, {"text": "How  old?", "other": 1}, answer, id="r1", artifact_fingerprint="a", model_fingerprint="m"
    )
    assert isinstance(interaction, Interaction)
    assert (interaction.task, interaction.template, interaction.inputs) == ("intents", "{text}", {"text": "How  old?"})
    assert interaction.system == zero.prompt.head()
    assert interaction.template_version == zero.prompt.fingerprint
    assert interaction.input_id == example_id({"text": "how old?"})
    assert (interaction.actual, interaction.confidence) == ("age_limit", 0.9)
    assert (interaction.prompt_tokens, interaction.seconds) == (12, 0.5)
    hidden = replace(interaction, inputs={"text": "[redacted]"})
    assert (hidden.input_id, hidden.split) == (interaction.input_id, interaction.split)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, False),
        ({"refused": True}, True),
        ({"passages": ()}, True),
        ({"text": " Not in here. "}, True),
    ],
)
def test_an_answer_for_which_the_documents_hold_nothing_is_a_miss(zero, changes, expected):
    looking = replace(zero, retriever=Retriever(Path("index"), "f", "Look.", refusal="Not in here."))
    answer = Answer("age_limit", None, None, 1, 1, 0.1, passages=(passage("faq.md", "From 18 on."),))
    answer = replace(answer, **changes)
    for artifact, miss in ((looking, expected), (zero, False)):
        interaction = interaction_of(
            artifact, {"text": "How old?"}, answer, id="r1", artifact_fingerprint="a", model_fingerprint="m"
        )
        assert interaction.missed is miss
