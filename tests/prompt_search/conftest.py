import pytest

from fake_engine import FakeEngine
from rung.artifact.artifact import Artifact
from rung.artifact.labels import LabelScoring
from rung.artifact.parts import Signature
from rung.artifact.text import Generate
from rung.data.rows import Data, Example, example_id
from rung.prompts.prompt import Prompt

LABELS = ("neg", "pos")


def example(split, i):
    inputs = {"text": f"{split} row {i} says {'yes' if i % 2 else 'no'}"}
    return Example(example_id(inputs), inputs, (LABELS[i % 2],), f"{split}:{i}")


@pytest.fixture
def rows():
    """Two labels in turn, told by a word."""
    made = {split: tuple(example(split, i) for i in range(n)) for split, n in (("train", 300), ("test", 50))}
    return Data(made["train"], made["test"], made["test"], LABELS, None, "fingerprint")


@pytest.fixture
def scoring():
    """Return a function that makes an artifact whose engine likes labels as it is told."""

    def make(likes, write=lambda messages, sampling: "Decide."):
        engine = FakeEngine(write=write, likes=likes)
        prompt = Prompt("Classify.", "{text}", labels=LABELS)
        signature = Signature("task", ("text",), "category", "accuracy", LABELS)
        return Artifact(signature, "fake", prompt, LabelScoring(LABELS, LABELS), path=("zero-shot",)).with_engine(
            engine
        )

    return make


@pytest.fixture
def writing():
    """Return a function that makes an artifact whose engine writes what it is told."""

    def make(write):
        signature = Signature("task", ("text",), "text", "exact_match")
        return Artifact(signature, "fake", Prompt("Answer.", "{text}"), Generate(8), path=("zero-shot",)).with_engine(
            FakeEngine(write=write)
        )

    return make
