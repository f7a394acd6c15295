"""A climb over documents: all rungs with and without them, on the same rows."""

import json
import shutil
from pathlib import Path

import pytest

from rung.climbing import ClimbOptions, climb
from rung.evaluation.report import html
from rung.evaluation.report.words import retrieval_notes
from rung.evaluation.scoring import summarize
from rung.retrieval import build as build_module
from rung.task import Task

EXAMPLE = Path(__file__).parents[2] / "examples" / "documents"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documents")
    shutil.copytree(EXAMPLE, folder / "example")
    document = folder / "example" / "documents" / "state_of_the_union.md"
    document.write_text(document.read_text("utf-8")[:6000], "utf-8")
    (folder / "example" / "documents" / "chatlogs.md").unlink()
    patch = pytest.MonkeyPatch()
    patch.setattr(build_module, "cache_dir", lambda: folder / "cache")
    yield folder
    patch.undo()


@pytest.fixture(scope="module")
def documents(place, tiny_folder):
    small = {
        "model": str(tiny_folder), "output.max_tokens": "4", "data.train_rows": "4", "data.validation_rows": "4",
        "data.test_rows": "4", "constraints.rungs": "[retrieval, few-shot-knn]",
        "rungs": "{retrieval: {k: 2, order_rows: 2}, few-shot-knn: {k: 1}}",
    }  # fmt: skip
    return Task.load(place / "example" / "task.yaml", small)


@pytest.fixture(scope="module")
def climbed(documents, place):
    return climb(documents, options=ClimbOptions(engine="torch", out=place / "runs"))


def test_every_rung_is_raced_with_and_without_documents(climbed):
    assert {r.name for r in climbed.result.rungs} == {
        "zero-shot", "retrieval", "few-shot-knn", "retrieval+few-shot-knn"
    }  # fmt: skip
    assert all(r.n == 4 for r in climbed.result.rungs)


def test_the_report_tells_finding_from_reading(climbed, documents):
    told = {r.name: r.retrieval for r in climbed.result.rungs}
    assert told["zero-shot"] is told["few-shot-knn"] is None
    for name in ("retrieval", "retrieval+few-shot-knn"):
        rows = [row for row in climbed.predictions[name] if row.split == "test"]
        asked = [row.retrieval for row in rows]
        assert told[name]["rows"] == len(asked) == 4
        assert told[name]["span_recall"] == pytest.approx(sum(row["span_recall"] for row in asked) / 4)
        causes = [row["failure"] for row in asked]
        assert (told[name]["retrieval_failures"], told[name]["reading_failures"]) == (
            causes.count("retrieval"), causes.count("reading")
        )  # fmt: skip
    assert len(retrieval_notes(climbed.result)) == 2
    told_again = summarize(climbed.artifact("retrieval"), documents.read().test, "test")
    assert told_again["retrieval"] == told["retrieval"]
    assert "span recall" in html.page(climbed.result, climbed.predictions)
    assert climbed.result.summary()["rungs"][0]["retrieval"] is None


def test_a_finished_climb_resumes_and_other_documents_make_another_one(documents, climbed, place):
    options = ClimbOptions(engine="torch", out=place / "runs", resume=True)
    again = climb(documents, options=options)
    assert again.folder == climbed.folder
    identity = json.loads((climbed.folder / "climb.json").read_text())
    assert len(identity["corpus_fingerprint"]) >= 16
    document = place / "example" / "documents" / "state_of_the_union.md"
    document.write_text(document.read_text("utf-8") + "\n\nOne more paragraph.", "utf-8")
    assert climb(documents, options=options).folder != climbed.folder
