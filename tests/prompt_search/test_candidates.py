import random
from dataclasses import replace

import pytest

from rung.artifact.labels import LabelScoring
from rung.prompt_search.candidates import (
    GENES,
    SearchSpace,
    Shots,
    crossed,
    neighbours,
    templates,
    verbalized,
)  # fmt: skip
from rung.prompts.demonstrations import Demonstrations


@pytest.fixture
def space(scoring, rows):
    artifact = scoring(lambda messages, text: 0.0)
    pools = {"balanced": Demonstrations("balanced", 4, rows.train)}
    return SearchSpace(artifact, ("Classify.", "Decide."), ("{text}", "Text: {text}"), pools)


def test_the_start_is_the_artifact_itself(space):
    applied = space.apply(space.start)
    assert applied.prompt == space.artifact.prompt
    assert applied.decoder == space.artifact.decoder
    assert applied.demonstrations is None


def test_every_gene_reaches_the_prompt(space):
    changed = replace(
        space.start, instruction="Decide.", template="Text: {text}", verbalizer="sentence", listed=True,
        shots=Shots("balanced", 2, 5, 1), system="Be kind.",
    )  # fmt: skip
    messages = space.apply(changed).messages({"text": "x"})
    assert messages[0]["content"] == "Be kind.\n\nDecide.\n\nAnswer with one of: Neg, Pos"
    assert messages[-1]["content"] == "Text: x"
    assert [m["role"] for m in messages[1:-1]] == ["user", "assistant"] * 2
    assert {m["content"] for m in messages if m["role"] == "assistant"} == {"Neg", "Pos"}
    assert space.apply(replace(changed, listed=False)).prompt.labels == ()


def test_descriptions_follow_their_labels(space):
    prompt = replace(space.artifact.prompt, descriptions=(("pos", "it says yes"),))
    described = replace(space, artifact=replace(space.artifact, prompt=prompt).with_engine(space.artifact.open()))
    applied = described.apply(replace(described.start, verbalizer="sentence"))
    assert applied.prompt.head() == "Classify.\n\nAnswer with one of:\n- Neg\n- Pos: it says yes"


def test_a_bias_of_another_prompt_is_left_out(space):
    biased = replace(space.artifact, decoder=replace(space.artifact.decoder, bias=(1.0, 0.0))).with_engine(
        space.artifact.open()
    )
    assert replace(space, artifact=biased).apply(space.start).decoder.bias == ()


def test_neighbours_differ_in_one_gene_and_take_the_genes_in_turn(space):
    found = neighbours(space, space.start, 4, random.Random(0))
    changed = [[gene for gene in GENES if getattr(one, gene) != getattr(space.start, gene)] for one in found]
    assert changed == [["instruction"], ["template"], ["verbalizer"], ["listed"]]
    assert [one.origin for one in found] == [gene for (gene,) in changed]


def test_words_that_are_the_same_make_no_new_candidate(space):
    assert not space.differs(space.start, replace(space.start, verbalizer="words"))
    assert space.differs(space.start, replace(space.start, verbalizer="sentence"))


def test_crossing_makes_new_candidates_only_and_repeats_itself(space):
    first = [space.start, *neighbours(space, space.start, 5, random.Random(0))]
    found = crossed(space, first, 8, random.Random(1))
    assert found == crossed(space, first, 8, random.Random(1))
    everything = [*first, *found]
    assert all(space.differs(a, b) for i, a in enumerate(everything) for b in everything[:i])


def test_demonstrations_that_may_not_vary_stay(space):
    assert replace(space, vary_shots=False).options("shots", random.Random(0)) == []


def test_templates_ask_for_every_column_and_keep_the_own_first():
    found = templates("Q: {question}", ("question", "first_name"), "Answer")
    assert found[0] == "Q: {question}"
    assert found[1] == "Question: {question}\nFirst name: {first_name}"
    assert found[3] == "Question: {question}\nFirst name: {first_name}\nAnswer:"
    assert '"{a}"' in templates("{a}", ("a",))


def test_verbalizers():
    decoder = LabelScoring(("card_arrival", "top_up"), ("x", "y"))
    assert verbalized(decoder, "own") == ("x", "y")
    assert verbalized(decoder, "plain") == ("card_arrival", "top_up")
    assert verbalized(decoder, "words") == ("card arrival", "top up")
    assert verbalized(decoder, "sentence") == ("Card arrival", "Top up")
    clash = LabelScoring(("up", "Up"), ("a", "b"))
    assert verbalized(clash, "sentence") == ("a", "b")
