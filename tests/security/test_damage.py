"""A flipped bit in a folder that Rung wrote is an error that names the file, or changes nothing that is read."""

from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.damage import check_flips

from rung.artifact.artifact import Artifact
from rung.artifact.files import artifact_folder
from rung.climbing.budget import Budget
from rung.climbing.next_steps import decisions
from rung.climbing.store import RunStore, open_run
from rung.errors import RungError
from rung.evaluation.result import ClimbResult, Prediction, RungResult
from rung.export.card import evidence
from rung.feedback.registry import Registry
from rung.feedback.store import FeedbackStore
from rung.progress import QUIET
from rung.yamlfile import read_sealed, sealed, unreadable, unsealed


def test_artifacts(zero, tmp_path):
    def read(folder: Path) -> str:
        artifact = Artifact.load(folder)
        return repr((artifact.prompt, artifact.signature, artifact.decoder, artifact.path))

    folder = zero.save(tmp_path / "artifact")
    check_flips(folder, tmp_path, read)


def test_runs(zero, tmp_path):
    budget = Budget(QUIET)
    store = open_run(tmp_path / "runs", {"task": "intents", "kind": "category", "seed": 0}, budget, resume=False)
    answer = Prediction("1", "t.csv:1", "test", {"text": "Größe"}, "p", ("a",), "a", 1.0, 0.5, 3, 0.1)
    store.keep(zero)
    store.note("fitted", name=zero.name, fit_seconds=1.5)
    store.add(zero.name, [replace(answer, id=str(number), score=number / 10) for number in range(10)])
    rung = RungResult(zero.name, "prompting", "accuracy", "measured", path=(zero.name,), score=0.45)
    result = ClimbResult(
        "intents", "accuracy", "m", "torch", 0, "0.1.0", "2026-01-02T03:04:05+00:00", 371.0, None, zero.name,
        "Use zero-shot: 45.0 %.", (rung,), (), {"splits": {}},
    )  # fmt: skip
    result.write(store.folder)

    def read(folder: Path) -> Any:
        kept = RunStore(folder)
        entries = [{key: value for key, value in entry.items() if key != "endpoints"} for entry in kept.journal]
        own = evidence(artifact_folder(folder), zero.name)
        return (
            ClimbResult.read(folder), entries, kept.predictions(zero.name), read_sealed(folder / "climb.json"),
            own and own.report, repr(Artifact.load(folder).prompt),
        )  # fmt: skip

    check_flips(store.folder, tmp_path / "flips", read)
    store.release()
    again = open_run(tmp_path / "runs", {"seed": 0, "kind": "category", "task": "intents"}, budget, resume=True)
    assert again.folder == store.folder
    again.release()


def test_registries(zero, tmp_path):
    registry, task = Registry(tmp_path / "registry", zero.signature.task), zero.signature.task
    promotion = registry.promote(
        zero.save(tmp_path / "artifact"), FeedbackStore(tmp_path / "f.db"), evidence={"score": 0.5}, reviewer="Ann"
    )
    assert promotion.at <= datetime.now(UTC)

    def read(folder: Path) -> Any:
        current = Registry(folder, task).current()
        assert current is not None
        return asdict(current), repr(Artifact.load(Registry(folder, task).path(current)).prompt)

    check_flips(tmp_path / "registry", tmp_path / "flips", read)


def test_a_damaged_decision_is_not_counted(tmp_path):
    run = tmp_path / "intents"
    assert decisions(run, ["a", "b"], best="zero-shot") == 1
    text = (tmp_path / "decisions.jsonl").read_text()
    (tmp_path / "decisions.jsonl").write_text(text.replace("intents", "intentt"))
    assert decisions(run, ["a", "b"]) == 1


@pytest.mark.parametrize("indent", [None, 1])
def test_a_sealed_text_is_read_as_it_was_written(indent):
    values = {"a": [1.5, None, {"b": 'Größe, "}" \\'}], "sha256": "one of its own"}
    text = sealed(values, indent).encode()
    damaged = unreadable(Path("x.json"))
    assert unsealed(text, damaged) == values
    for wrong in (text[:-1], text + b"}", text.replace(b"1.5", b"1.6"), b"", b"{}", b'{"a": 1}', text.upper()):
        with pytest.raises(RungError, match=r"x\.json"):
            unsealed(wrong, damaged)
