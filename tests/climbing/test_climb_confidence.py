import json
from dataclasses import replace

import numpy as np
import pytest

from rung.artifact import heads as head_module
from rung.artifact.artifact import Artifact
from rung.artifact.confidence import Calibration, tempered
from rung.artifact.heads import Head
from rung.artifact.parts import Weights
from rung.artifact.predict_file import predict_file
from rung.artifact.text import Generate
from rung.climbing.conclude import fit_confidence, measure_confidence
from rung.climbing.options import ClimbOptions
from rung.climbing.run import climb
from rung.climbing.store import RunStore
from rung.data.spec import Confidence as Wanted
from rung.errors import ConfigError, RungError
from rung.evaluation.calibration import fit
from rung.evaluation.report.html import page
from rung.evaluation.result import ClimbResult
from rung.evaluation.scoring import evaluate, summarize
from rung.rungs import Features, FewShot
from rung.task import Task


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
    truth = [plain.signature.labels.index(row.outputs[0]) for row in data.validation]
    expected = fit("temperature", np.array([a.probabilities for a in before]), truth)
    calibrated = fit_confidence(plain, data.validation)
    assert calibrated.decoder.confidence == expected
    after = calibrated.answer(data.test)
    assert [a.text for a in after] == [a.text for a in plain.answer(data.test)]
    for new, old in zip(after, plain.answer(data.test), strict=True):
        wanted = tempered(np.array(old.probabilities), expected.temperature)
        assert new.probabilities == pytest.approx(wanted, rel=1e-5)
        assert new.confidence == pytest.approx(wanted.max(), rel=1e-5)
        assert not new.abstained


def test_it_is_saved_and_loaded_with_the_artifact(fitted, tiny_zero, data, tmp_path):
    loaded = Artifact.load(fitted.save(tmp_path / "head"))
    assert loaded.decoder.confidence == fitted.decoder.confidence
    confidences = [[a.confidence for a in one.answer(data.test[:3])] for one in (loaded, fitted)]
    assert confidences[0] == confidences[1]
    isotonic = Calibration("isotonic", thresholds=((0.1, 0.0), (0.5, 0.75)), abstain_below=0.3)
    scoring = replace(tiny_zero, decoder=replace(tiny_zero.decoder, confidence=isotonic))
    assert Artifact.load(scoring.save(tmp_path / "scoring")).decoder.confidence == isotonic


def test_abstained_answers_keep_their_text_and_are_right_where_out_of_scope(fitted, data):
    rows = evaluate(fitted, data.test, "test")
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
    never = Calibration(abstain_below=0.999)
    held_back = replace(tiny_zero, decoder=replace(tiny_zero.decoder, confidence=never))
    assert [row.abstained for row in evaluate(held_back, data.test[:4], "test")] == [True] * 4


def test_a_rung_on_top_forgets_it(tiny_zero, data):
    scored = replace(tiny_zero, decoder=replace(tiny_zero.decoder, confidence=Calibration(temperature=2.0)))
    assert FewShot("random", k=2).fit(scored, data).decoder.confidence is None


def test_what_is_measured_is_what_the_fitted_artifact_says(fitted, data):
    told = measure_confidence(fitted, data.test, fitted_on=24)
    answers = fitted.answer(data.test)
    answered = [a for a in answers if not a.abstained]
    assert told["abstaining"]["coverage"] == pytest.approx(len(answered) / len(answers))
    sure = max(a.confidence for a in answers)
    assert told["curve"][0][0] == pytest.approx(sure, rel=1e-5)
    assert told["temperature"] == fitted.decoder.confidence.temperature


@pytest.fixture
def tagged(tmp_path, monkeypatch):
    """Rows with several labels, and a head that is 3 times as sure as it may be: its features stand in the text."""
    random = np.random.default_rng(0)
    names = ("a", "b", "oos")
    for split, rows in (("train", 20), ("validation", 300), ("test", 60)):
        lines = []
        for _ in range(rows):
            logits = np.clip(random.normal(size=3) * 2, -5, 5)  # less sure than a float32 may be
            true = [
                name for name, chance in zip(names, 1 / (1 + np.exp(-logits)), strict=True) if random.random() < chance
            ]
            lines.append(json.dumps({"text": " ".join(f"{3 * x:.6f}" for x in logits), "tags": true}))
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    (tmp_path / "task.yaml").write_text(
        "name: tags\ninstruction: Tag.\ninputs: [text]\ntemplate: '{text}'\nconfidence: {}\n"
        "output: {column: tags, kind: multilabel, labels: [a, b, oos]}\n"
        "data: {train: train.jsonl, validation: validation.jsonl, test: test.jsonl}\n"
    )
    monkeypatch.setattr(head_module, "features", lambda artifact, encoder, texts, progress: np.array(
        [[float(x) for x in text.split()] for text in texts], np.float32))  # fmt: skip
    monkeypatch.setattr(head_module, "open_encoder", lambda reference, progress: Words())
    data = Task.load(tmp_path / "task.yaml").read()
    decoder = Head(names, "fake", np.eye(3, dtype=np.float32), np.zeros(3, np.float32), thresholds=(0.5, 0.5, 0.2))
    return replace(Artifact.zero_shot(Task.load(tmp_path / "task.yaml"), data.labels), decoder=decoder), data


class Words:
    def encode(self, text):
        return tuple(text.split())


def test_several_labels_are_sure_together_and_held_back_together(tagged):
    plain, data = tagged
    fitted = fit_confidence(plain, data.validation, abstain_below=0.4, out_of_scope="oos")
    assert fitted.decoder.confidence.temperature == pytest.approx(3.0, rel=0.25)
    before, after = plain.answer(data.test), fitted.answer(data.test)
    assert [a.text for a in after] == [a.text for a in before]
    for old, new in zip(before, after, strict=True):
        each = np.array([(1 - p, p) for p in old.probabilities])
        probs = tempered(each, fitted.decoder.confidence.temperature)[:, 1]
        given = [label in json.loads(new.text) for label in ("a", "b", "oos")]
        assert new.probabilities == pytest.approx(probs, rel=1e-6)
        assert new.confidence == pytest.approx(np.where(given, probs, 1 - probs).prod(), rel=1e-6)
        assert new.abstained == (new.confidence < 0.4)
    rows = evaluate(fitted, data.test, "test")
    held = [row for row in rows if row.abstained and "oos" in json.loads(row.expected[0])]
    assert held
    assert all(row.score == 1.0 for row in held)
    told = measure_confidence(fitted, data.test, fitted_on=300)
    exact = [set(json.loads(row.prediction)) == set(json.loads(row.expected[0])) for row in rows]
    assert told["curve"][-1][1:] == [1.0, pytest.approx(np.mean(exact))]
    outside = ["oos" in json.loads(row.expected[0]) for row in rows]
    assert told["abstaining"]["outside_held"] == pytest.approx(len(held) / sum(outside))
    assert told["after"]["error"] < told["before"]["error"]


def test_lists_that_a_model_writes_have_no_confidence(tagged):
    plain, data = tagged
    with pytest.raises(ConfigError) as caught:
        fit_confidence(replace(plain, decoder=Generate(8)), data.validation)
    assert caught.value.code == "no-probabilities"


def test_errors(tiny_zero, data):
    written = replace(tiny_zero, decoder=Generate(8))
    for artifact, rows, label, code in (
        (written, data.validation, None, "no-probabilities"),
        (tiny_zero, data.validation, "age limit", "unknown-label"),
        (tiny_zero, (replace(data.validation[0], outputs=("new",)),), None, "unknown-label"),
        (tiny_zero, (), None, "too-few-rows"),
    ):
        with pytest.raises(RungError) as caught:
            fit_confidence(artifact, rows, abstain_below=0.5, out_of_scope=label)
        assert caught.value.code == code


def test_a_climb_fits_what_it_recommends(task, tiny_folder, tmp_path):
    wanted = Wanted(abstain_below=0.5)
    asked = task.model_copy(update={"model": str(tiny_folder), "confidence": wanted})
    found = climb(asked, options=ClimbOptions(rungs=("features",), out=tmp_path))
    assert found.result.recommended == "features"
    told = found.result.confidence
    assert (told["artifact"], told["fitted_on"], told["rows"]) == ("features", 22, 36)
    assert found.recommended.decoder.confidence.abstain_below == 0.5
    found.result.write(found.folder)
    assert ClimbResult.read(found.folder).confidence == json.loads(json.dumps(told))
    html = page(found.result, found.predictions)
    assert "expected calibration error on 36 test rows" in html
    assert "Coverage against accuracy" in html
    assert 'style="' not in html
    chosen = told["abstaining"]
    curve, interval, point = (line.get_xydata() for line in found.plot.coverage().axes[0].lines)
    np.testing.assert_allclose(curve, 100 * np.array(told["curve"])[:, 1:])
    np.testing.assert_allclose(interval[:, 1], [100 * chosen["low"], 100 * chosen["high"]])
    np.testing.assert_allclose(point, [[100 * chosen["coverage"], 100 * chosen["accuracy"]]])
    for axes, name in zip(found.plot.reliability().axes, ("before", "after"), strict=True):
        assert axes.get_title().startswith(f"error {100 * told[name]['error']:.1f} % (p ")
        points = [line.get_xydata()[0] for line in axes.lines if line.get_marker() == "o"]
        np.testing.assert_allclose(points, [(sure, right) for _, sure, right, *_ in told[name]["bins"]])
    again = climb(asked, options=ClimbOptions(rungs=("features",), out=tmp_path, resume=True))
    assert again.result.confidence == told


def test_an_artifact_is_replaced_whose_weights_lie_in_the_old_one(tiny_zero, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    store = RunStore(tmp_path / "run")
    tuned = tiny_zero.step("lora", {}, weights=Weights("lora", tmp_path / "adapter"))
    kept = store.keep(tuned)
    fitted = replace(kept, decoder=replace(kept.decoder, confidence=Calibration(temperature=2.0)))
    again = store.keep(fitted)
    assert again.decoder.confidence == Calibration(temperature=2.0)
    assert (again.weights.adapter / "adapter_config.json").read_text() == "{}"
    folder = store.artifact_folder("lora")
    folder.rename(folder.with_name("artifact.new"))  # as a kill between removing and renaming leaves it
    assert store.kept("lora").decoder.confidence == Calibration(temperature=2.0)
    assert [entry.name for entry in folder.parent.iterdir()] == ["artifact"]


def test_predictions_of_a_file_tell_what_was_abstained(fitted, task, tmp_path):
    out = tmp_path / "answers.jsonl"
    predict_file(fitted, task.folder / "test.csv", out, fingerprint="f")
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) == 36
    assert all(line["abstained"] == (line["confidence"] < 0.95) for line in lines)
