import json
from dataclasses import replace

import numpy as np
import pytest

from rung.artifact import Artifact
from rung.climbing.confidence import fit_confidence, measure_confidence
from rung.climbing.options import ClimbOptions
from rung.climbing.run import climb
from rung.climbing.store import RunStore
from rung.errors import ConfigError
from rung.evaluation.confidence import Confidence, fit, tempered
from rung.evaluation.report.html import page
from rung.evaluation.report.jsonfile import read, write
from rung.evaluation.scoring import evaluate, summarize
from rung.parts import Generate, Weights
from rung.prediction import predict_file
from rung.rungs import Features, FewShot
from rung.task import Confidence as Wanted


@pytest.fixture(scope="module")
def head(tiny_zero, data):
    return Features().fit(tiny_zero, data)


@pytest.fixture(scope="module")
def fitted(head, data):
    return fit_confidence(head, data.validation, abstain_below=0.95, out_of_scope="age_limit")


@pytest.mark.parametrize("which", ["head", "tiny_zero"])
def test_answers_stay_and_confidences_are_those_of_the_fitted_temperature(which, data, request):
    plain = request.getfixturevalue(which)
    before = plain.answer(data.validation)
    truth = [plain.shape.labels.index(row.outputs[0]) for row in data.validation]
    expected = fit("temperature", np.array([a.probabilities for a in before]), truth)
    calibrated = fit_confidence(plain, data.validation)
    assert calibrated.confidence == expected
    after = calibrated.answer(data.test)
    assert [a.text for a in after] == [a.text for a in plain.answer(data.test)]
    for new, old in zip(after, plain.answer(data.test), strict=True):
        wanted = tempered(np.array(old.probabilities), expected.temperature)
        assert new.probabilities == pytest.approx(wanted, rel=1e-5)
        assert new.confidence == pytest.approx(wanted.max(), rel=1e-5)
        assert not new.abstained


def test_it_is_saved_and_loaded_with_the_artifact(fitted, tiny_zero, data, tmp_path):
    loaded = Artifact.load(fitted.save(tmp_path / "head"))
    assert loaded.confidence == fitted.confidence
    confidences = [[a.confidence for a in one.answer(data.test[:3])] for one in (loaded, fitted)]
    assert confidences[0] == confidences[1]
    isotonic = Confidence("isotonic", thresholds=((0.1, 0.0), (0.5, 0.75)), abstain_below=0.3)
    scoring = replace(tiny_zero, decoder=replace(tiny_zero.decoder, confidence=isotonic))
    assert Artifact.load(scoring.save(tmp_path / "scoring")).confidence == isotonic


def test_abstained_answers_keep_their_text_and_are_right_where_out_of_scope(fitted, data):
    rows = evaluate(fitted, data.test, "test", full=False)
    assert {row.abstained for row in rows} == {True, False}
    for row in rows:
        assert row.abstained == (row.confidence < 0.95)
        right = row.prediction == row.expected[0] or (row.abstained and row.expected == ("age_limit",))
        assert row.score == float(right)
    told = summarize(fitted, data.test, "test")["metrics"]
    answered = [row for row in rows if not row.abstained]
    assert told["coverage"]["score"] == pytest.approx(len(answered) / len(rows))
    assert told["answered"]["score"] == pytest.approx(sum(row.score for row in answered) / len(answered))


def test_a_scored_label_abstains_without_being_asked_for_all_probabilities(tiny_zero, data):
    never = Confidence(abstain_below=0.999)
    held_back = replace(tiny_zero, decoder=replace(tiny_zero.decoder, confidence=never))
    assert [row.abstained for row in evaluate(held_back, data.test[:4], "test", full=False)] == [True] * 4


def test_a_rung_on_top_forgets_it(tiny_zero, data):
    scored = replace(tiny_zero, decoder=replace(tiny_zero.decoder, confidence=Confidence(temperature=2.0)))
    assert FewShot("random", k=2).fit(scored, data).confidence is None


def test_what_is_measured_is_what_the_fitted_artifact_says(fitted, data):
    told = measure_confidence(fitted, data.test, fitted_on=24)
    answers = fitted.answer(data.test)
    answered = [a for a in answers if not a.abstained]
    assert told["abstaining"]["coverage"] == pytest.approx(len(answered) / len(answers))
    sure = max(a.confidence for a in answers)
    assert told["curve"][0][0] == pytest.approx(sure, rel=1e-5)
    assert told["temperature"] == fitted.confidence.temperature


def test_errors(tiny_zero, data):
    written = replace(tiny_zero, decoder=Generate(8))
    for artifact, rows, label, code in (
        (written, data.validation, None, "no-probabilities"),
        (tiny_zero, data.validation, "age limit", "unknown-label"),
        (tiny_zero, (), None, "empty-split"),
    ):
        with pytest.raises(ConfigError) as caught:
            fit_confidence(artifact, rows, abstain_below=0.5, out_of_scope=label)
        assert caught.value.code == code


def test_a_climb_fits_what_it_recommends(task, tiny_folder, tmp_path):
    wanted = Wanted(abstain_below=0.5)
    asked = task.model_copy(update={"model": str(tiny_folder), "confidence": wanted})
    found = climb(asked, options=ClimbOptions(rungs=("features",), out=tmp_path))
    assert found.result.recommended == "features"
    told = found.result.confidence
    assert (told["artifact"], told["fitted_on"], told["rows"]) == ("features", 22, 36)
    assert found.recommended.confidence.abstain_below == 0.5
    write(found.result, found.folder)
    assert read(found.folder).confidence == json.loads(json.dumps(told))
    html = page(found.result, found.predictions)
    assert "expected calibration error on 36 test rows" in html
    assert "Coverage against accuracy" in html
    assert 'style="' not in html
    again = climb(asked, options=ClimbOptions(rungs=("features",), out=tmp_path, resume=True))
    assert again.result.confidence == told


def test_an_artifact_is_replaced_whose_weights_lie_in_the_old_one(tiny_zero, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    store = RunStore(tmp_path / "run")
    tuned = tiny_zero.step("lora", {}, weights=Weights("lora", tmp_path / "adapter"))
    kept = store.keep(tuned)
    fitted = replace(kept, decoder=replace(kept.decoder, confidence=Confidence(temperature=2.0)))
    again = store.keep(fitted)
    assert again.confidence == Confidence(temperature=2.0)
    assert (again.weights.adapter / "adapter_config.json").read_text() == "{}"
    folder = store.artifact_folder("lora")
    folder.rename(folder.with_name("artifact.new"))  # as a kill between removing and renaming leaves it
    assert store.kept("lora").confidence == Confidence(temperature=2.0)
    assert [entry.name for entry in folder.parent.iterdir()] == ["artifact"]


def test_predictions_of_a_file_tell_what_was_abstained(fitted, task, tmp_path):
    out = tmp_path / "answers.jsonl"
    predict_file(fitted, task.folder / "test.csv", out, fingerprint="f")
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) == 36
    assert all(line["abstained"] == (line["confidence"] < 0.95) for line in lines)
