"""What decoders say by themselves; how they answer is tested with the artifacts and rungs that use them."""

from types import SimpleNamespace

import numpy as np
import pytest

from rung.artifact.decoder import Answer
from rung.artifact.heads import EnsembleDecoder, Head, label_probabilities
from rung.artifact.labels import LabelScoring, ListScoring
from rung.artifact.lookup import Nearest
from rung.artifact.text import Generate, Reasoning
from rung.data.rows import Example
from rung.errors import EngineError
from rung.progress import QUIET
from rung.prompts.extraction import MARKER
from rung.prompts.overflow import Rendered

LABELS = ("refund", "other")
ARTIFACT = SimpleNamespace(prompt=SimpleNamespace(question=lambda inputs: f"Text: {inputs['text']}"))
ROWS = [Example("1", {"text": "a"}, ("refund",), ""), Example("2", {"text": "b"}, ("other",), "")]
EMPTY = np.zeros((2, 3), np.float32)
PROMPTLESS = [Head(LABELS, "e", EMPTY, EMPTY[:, 0]), Nearest(1, "e", ({"text": "a"},), ("refund",), EMPTY[:1])]


@pytest.mark.parametrize(
    ("decoder", "written"),
    [
        (Generate(), "refund"),
        (Generate(choices=("A refund", "Something else")), "A refund"),
        (Reasoning("label", texts=("A refund", "Something else")), f"{MARKER} A refund"),
        (Reasoning("text"), f"{MARKER} refund"),
        (LabelScoring(LABELS, (" A refund", " else")), " A refund"),
        (ListScoring(LABELS, (0.5, 0.5)), "refund"),
        *((decoder, "refund") for decoder in PROMPTLESS),
    ],
)
def test_an_expected_output_is_spoken_as_the_model_should_write_it(decoder, written):
    assert decoder.target_text("refund", LABELS) == written


@pytest.mark.parametrize(
    ("decoder", "free"),
    [
        (Generate(), True),
        (Generate(regex="[0-9]+"), False),
        (Generate(json_schema="{}"), False),
        (Generate(choices=LABELS), False),
        (Reasoning("text"), True),
        (LabelScoring(LABELS, LABELS), False),
        *((decoder, False) for decoder in PROMPTLESS),
    ],
)
def test_only_what_is_held_to_nothing_is_free(decoder, free):
    assert decoder.unconstrained is free


@pytest.mark.parametrize("decoder", PROMPTLESS)
def test_without_a_prompt_the_text_of_the_row_is_what_is_sent(decoder):
    sent = decoder.render(ARTIFACT, ROWS, passages=None, progress=QUIET)
    assert sent == [Rendered(({"role": "user", "content": text},)) for text in ("Text: a", "Text: b")]
    assert decoder.text(ARTIFACT, (*sent[0].messages, *sent[1].messages)) == "Text: a\nText: b"


def test_a_mixture_shows_what_its_first_member_does():
    first = SimpleNamespace(render=lambda member, rows, *, progress: [rows], text=lambda member, messages: [messages])
    member = SimpleNamespace(decoder=first)
    mixture = EnsembleDecoder((member, None), (0.5, 0.5), (1.0, 1.0))
    assert mixture.render(None, ROWS, passages=None, progress=QUIET) == [ROWS]
    assert mixture.text(None, ()) == [()]


def test_an_answer_without_probabilities_cannot_be_mixed():
    answers = [Answer("a", 0.5, (0.5, 0.25), 0, 0, 0.0), Answer("a", None, None, 0, 0, 0.0)]
    assert label_probabilities(answers[:1]).tolist() == [[0.5, 0.25]]
    with pytest.raises(EngineError) as caught:
        label_probabilities(answers)
    assert caught.value.code == "no-probabilities"


@pytest.mark.parametrize(
    ("chain", "right"), [("<think>it is 3</think>\nIt is 4.", "4"), ("<think>so it is 4", ""), ("It is 4.", "4")]
)
def test_a_thought_that_nothing_asked_for_is_no_part_of_a_chain(chain, right):
    assert Reasoning("number")._answer(chain) == right
