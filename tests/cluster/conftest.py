from __future__ import annotations

from pathlib import Path

import pytest

from rung.artifact.artifact import Artifact
from rung.artifact.labels import LabelScoring
from rung.artifact.parts import Signature
from rung.prompts.prompt import Prompt


@pytest.fixture(scope="session")
def letters_folder(tiny_tokenizer, tiny_model, tmp_path_factory) -> Path:
    """A saved artifact that scores labels on a random Llama of a few thousand weights, and refuses long rows."""
    model = tmp_path_factory.mktemp("model") / "tiny"
    tiny_model(tiny_tokenizer.vocabulary_size).save_pretrained(model)
    for file in tiny_tokenizer.folder.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    artifact = Artifact(
        signature=Signature("letters", ("text",), "category", "accuracy", ("x", "y", "z")),
        model=str(model),
        prompt=Prompt(instruction="", template="{text}"),
        decoder=LabelScoring(("x", "y", "z"), ("ab", "ba", "c")),
        path=("zero-shot",),
    )
    return artifact.save(tmp_path_factory.mktemp("artifact") / "letters")


@pytest.fixture(scope="session")
def letters(letters_folder) -> Artifact:
    return Artifact.load(letters_folder)
