"""A new kind of decoder is one class: it predicts, is saved, loaded, served and priced without a change elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
from starlette.testclient import TestClient

from rung.artifact.artifact import Artifact
from rung.artifact.decoder import Answer, Composition, Promptless
from rung.artifact.rendering import Given
from rung.data.rows import Example
from rung.errors import ArtifactError
from rung.progress import Progress
from rung.rungs import FewShot, LoRA
from rung.serving.app import app_with
from rung.serving.served import Served


@dataclass(frozen=True, slots=True)
class Constant(Promptless):
    """Give every row the same answer, such as the most frequent one of the training rows."""

    kind: ClassVar[str] = "constant"
    text_: str

    def answer(
        self, artifact: Composition, examples: Sequence[Example], *, full: bool, passages: Given, progress: Progress
    ) -> list[Answer]:
        return [Answer(self.text_, None, None, 0, 0, 0.0) for _ in examples]

    def row_flops(self, artifact: Composition, rows: Sequence[Example]) -> float:
        return 0.0


@pytest.fixture
def constant(tiny_zero, data):
    return replace(tiny_zero, decoder=Constant(data.labels[0]), path=("zero-shot", "constant"))


def test_it_predicts_is_saved_loaded_and_served(constant, data, tmp_path):
    folder = constant.save(tmp_path / "constant")
    loaded = Artifact.load(folder)
    assert loaded == constant
    assert [answer.text for answer in loaded.predict([{"text": "a"}, {"text": "b"}])] == [data.labels[0]] * 2
    served = Served()
    served.load(folder, "same")
    with TestClient(app_with(served), base_url="http://127.0.0.1") as client:
        answered = client.post("/v1/tasks/same/predict", json={"rows": [{"text": "a"}]}).json()
    assert [row["output"] for row in answered["predictions"]] == [data.labels[0]]


def test_it_is_priced_and_says_what_makes_no_sense(constant, tiny_zero, data):
    price = tiny_zero.decoder.row_flops(tiny_zero, data.train)
    assert constant.decoder.row_flops(constant, data.train) == 0 < price
    assert constant.decoder.trainable_parameters(constant) == 0
    for rung in (LoRA(), FewShot("fixed")):
        assert not rung.applies(constant, data).applies
    assert constant.decoder.refuses("servers")


def test_settings_that_do_not_fit_are_refused(constant, tmp_path):
    file = constant.save(tmp_path / "constant") / "artifact.json"
    (file.parent / "manifest.json").unlink()
    file.write_text(file.read_text().replace('"text_"', '"texts"'))
    from rung.artifact.files import write_manifest

    write_manifest(file.parent)
    with pytest.raises(ArtifactError, match="texts") as caught:
        Artifact.load(file.parent)
    assert caught.value.code == "artifact-damaged"
