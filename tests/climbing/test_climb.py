import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

from rung.artifact.artifact import Artifact
from rung.climbing import choice
from rung.climbing import run as running
from rung.climbing.budget import Limits, parse_budget, parse_duration
from rung.climbing.options import ClimbOptions
from rung.climbing.run import climb
from rung.climbing.store import RunStore
from rung.engines.encoders import SentenceEncoder
from rung.errors import ConfigError
from rung.evaluation.report.html import write_html
from rung.evaluation.report.words import quality_notes
from rung.evaluation.result import ClimbResult
from rung.evaluation.scoring import summarize
from rung.rungs import LoRA, build, features, names
from rung.rungs.fine_tune import FineTune
from rung.task import Task
from rung.yamlfile import sealed

BANKING77 = Path(__file__).parents[2] / "examples" / "banking77"
RUNGS = ("calibrate", "few-shot-knn", "features", "lora")


@pytest.fixture(scope="module")
def small_task_file(small_task_file):
    """The small task with little LoRA, one epoch of four rows a label, and two examples: the climb is tested here."""
    file = small_task_file.with_name("little.yaml")
    few = small_task_file.read_text().replace("test: test.csv}", "test: test.csv, train_per_label: 4}")
    file.write_text(few + "rungs: {lora: {epochs: 1}, few-shot-knn: {k: 2}}\n")
    return file


@pytest.fixture(scope="module")
def task(small_task_file):
    return Task.load(small_task_file)


@pytest.fixture(scope="module")
def data(task):
    """Not the `data` of the session, which would keep these few rows for all other files."""
    return task.read()


@pytest.fixture(scope="module")
def climbed(task, tmp_path_factory):
    return climb(task, options=ClimbOptions(rungs=RUNGS, out=tmp_path_factory.mktemp("runs")))


def test_a_rung_is_recommended_that_beats_zero_shot(climbed):
    result = climbed.result
    by_name = {r.name: r for r in result.rungs}
    best = by_name[result.recommended]
    assert result.recommended != "zero-shot"
    assert best.score >= 0.8
    assert best.split == by_name["zero-shot"].split == result.rows == "test"
    assert best.n == 36
    assert best.low <= best.score <= best.high
    c = next(c for c in result.comparisons if (c.a, c.b) == ("zero-shot", result.recommended))
    assert c.n == by_name["zero-shot"].n <= 36  # once all is proven, zero-shot answers no more rows
    assert c.p < 0.05
    assert c.low > 0
    assert c.fixed - c.broken == round(c.delta * c.n)
    assert f"{c.fixed} fixed / {c.broken} broken" in result.decision


def test_every_rung_answered_the_same_validation_rows_in_the_same_order(climbed, data):
    order = [e.id for e in sorted(data.validation, key=lambda e: e.id)]
    for rows in climbed.predictions.values():
        seen = [row.id for row in rows if row.split == "validation"]
        assert seen == order[: len(seen)]


def test_the_recommended_artifact_predicts(climbed):
    answer = climbed.recommended.predict([{"text": "I lost my card"}])[0]
    assert answer.text == "lost_or_stolen_card"


def test_reports(climbed):
    climbed.result.write(climbed.folder)
    assert ClimbResult.read(climbed.folder) == climbed.result
    keys = {"name", "metric", "score", "low", "high", "n", "seconds", "tokens", "trainable_parameters", "artifact"}
    assert all(keys <= set(r) for r in climbed.result.summary()["rungs"])
    html = write_html(climbed.result, climbed.predictions, climbed.folder).read_text()
    assert climbed.result.recommended in html


def test_a_finished_climb_resumes_at_once_with_the_same_answer(task, climbed, monkeypatch):
    for name in ("LEAST_GAIN", "GAIN_A_MINUTE"):  # estimates that would have chosen everything change nothing now
        monkeypatch.setattr(choice, name, -1.0)
    options = ClimbOptions(rungs=RUNGS, out=climbed.folder.parent, resume=True)
    again = climb(task, options=options)
    assert again.folder == climbed.folder
    assert again.result.decision == climbed.result.decision
    assert [r.score for r in again.result.rungs] == [r.score for r in climbed.result.rungs]


def test_the_time_is_told_arm_by_arm(climbed):
    spans = climbed.result.spending
    works = {(span.name, span.work) for span in spans}
    assert {("lora", "making"), ("features", "making"), ("zero-shot", "answering"), ("lora", "answering")} <= works
    assert {span.name for span in spans} <= {rung.name for rung in climbed.result.rungs}
    assert [span.start for span in spans] == sorted(span.start for span in spans)
    assert sum(span.seconds for span in spans) <= climbed.result.seconds + 1
    assert len(climbed.plot.budget().axes[0].patches) == len(spans)


def test_an_arm_that_answers_while_it_is_trained_is_made_before_and_after(tmp_path):
    store = RunStore(tmp_path)

    def happened(event, name, seconds, **took):
        free = {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0, "money": 0.5}
        lines = [{"event": event, "name": name, **took}, {"event": "spent", "seconds": seconds, "endpoints": free}]
        store.journal += lines

    happened("fitted", "a/folds/0", 11.0, fit_seconds=10.0)
    happened("fitted", "a/folds/1", 10.0, fit_seconds=10.0)
    happened("chosen", "b", 1.0)
    happened("answered", "b/parts/50", 8.0, took=3.0)
    happened("answered", "a", 2.0, took=2.0)
    happened("fitted", "b", 5.0, fit_seconds=15.0)
    happened("failed", "d", 1.0)
    happened("stopped", "c", 4.0, fit_seconds=4.0)
    assert [(s.name, s.work, s.start, s.seconds, s.money) for s in store.spending()] == [
        ("a", "making", 1, 20, 1), ("b", "making", 22, 5, 0), ("b", "answering", 27, 3, 0.5),
        ("a", "answering", 30, 2, 0.5), ("b", "making", 32, 5, 0.5), ("c", "making", 38, 4, 0.5),
    ]  # fmt: skip


def test_a_torn_line_is_cut_off(tmp_path):
    (tmp_path / "journal.jsonl").write_text(sealed({"event": "fitted", "name": "a"}) + '\n{"event": "fit')
    store = RunStore(tmp_path)
    store.note("failed", name="b", reason="r")
    assert [entry["event"] for entry in RunStore(tmp_path).journal] == ["fitted", "failed", "spent"]


def test_killed_and_resumed_it_ends_like_one_that_was_not(small_task_file, tmp_path, climbed):
    command = [
        sys.executable, "-m", "rung", "climb", str(small_task_file), "--rungs", ",".join(RUNGS), "--out", str(tmp_path),
        "--json", "--quiet", "--resume",
    ]  # fmt: skip
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    run = tmp_path / "intents"

    def made(name):
        return (run / "rungs" / name / "artifact" / "manifest.json").exists()

    phases = {
        "fitting": lambda: made("features"),
        "racing": lambda: (run / "rungs" / "zero-shot" / "predictions.jsonl").exists(),
        "confirming": lambda: '"split": "test"' in _text(run / "rungs" / "zero-shot" / "predictions.jsonl"),
        "training": lambda: '"name": "lora"' in _text(run / "journal.jsonl") and time.sleep(1) is None,
    }
    for phase, reached in phases.items():
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        deadline = time.monotonic() + 240
        while not reached() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert process.poll() is None, f"it ended before it could be killed while {phase}"
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    found = json.loads(done.stdout)
    assert found["recommended"] == climbed.result.recommended
    # Which arms are tried, and on how many rows, depends on measured times; what an arm answers does not.
    whole = {(name, row.split, row.id): row.score for name, rows in climbed.predictions.items() for row in rows}
    resumed = {
        (file.parent.name, row["split"], row["id"]): row["score"]
        for file in run.glob("rungs/*/predictions.jsonl") for row in map(json.loads, file.read_text().splitlines())
    }  # fmt: skip
    common = whole.keys() & resumed.keys()
    assert {name for name, _, _ in common} >= {"zero-shot", "features", climbed.result.recommended}
    assert {key: whole[key] for key in common} == {key: resumed[key] for key in common}
    assert len(resumed) == sum(len(file.read_text().splitlines()) for file in run.glob("rungs/*/predictions.jsonl"))


def _text(file):
    return file.read_text() if file.exists() else ""


def test_what_does_not_fit_the_budget_is_skipped_with_its_reason(task, tmp_path, monkeypatch):
    estimate = LoRA.estimate

    def slow(self, artifact, data, machine):
        return replace(estimate(self, artifact, data, machine), fit_seconds=7200.0)

    monkeypatch.setattr(LoRA, "estimate", slow)  # the same on a machine of any speed
    result = climb(task, "1h", options=ClimbOptions(rungs=("features", "lora"), out=tmp_path)).result
    features, lora = (next(r for r in result.rungs if r.name == name) for name in ("features", "lora"))
    assert features.status == "confirmed"
    assert lora.status == "skipped"
    assert re.fullmatch(r"it is expected to take 2 h and 5\d min( \d\d s)? of the budget are left", lora.reason)
    assert result.unfinished == ("lora",)
    assert result.decision.endswith("Not tried for lack of budget: lora.")


def test_one_broken_rung_does_not_stop_the_climb(task, tmp_path, monkeypatch):
    from rung.rungs import FewShot

    def fail(self, artifact, data, *, progress=None):
        raise RuntimeError("planted")

    monkeypatch.setattr(FewShot, "fit", fail)
    found = climb(task, options=ClimbOptions(rungs=("few-shot-knn", "features"), out=tmp_path))
    broken = next(r for r in found.result.rungs if r.name == "few-shot-knn")
    assert broken.status == "failed"
    assert "planted" in broken.reason
    assert "planted" in (found.folder / "rungs" / "few-shot-knn" / "error.txt").read_text()
    assert found.result.recommended == "features"


def test_a_metric_beside_the_task_file_scores_from_any_folder(small_task_file, tmp_path, monkeypatch):
    for file in small_task_file.parent.glob("*.csv"):
        shutil.copy(file, tmp_path)
    (tmp_path / "lenient.py").write_text("def score(prediction, references):\n    return 0.25\n")
    (tmp_path / "task.yaml").write_text(small_task_file.read_text() + "metric: lenient:score\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    found = climb(Task.load(tmp_path / "task.yaml"), options=ClimbOptions(rungs=("features",), out=tmp_path / "runs"))
    assert {r.score for r in found.result.rungs} == {0.25}


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("1.5h", 5400), ("1h30m", 5400)])
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(("text", "money"), [("5USD", 5), ("$0.5", 0.5), ("2.5 EUR", 2.5), ("3€", 3)])
def test_a_budget_is_time_or_money(text, money):
    assert parse_budget(text) == Limits(None, money)
    assert parse_budget("1h30m") == Limits(5400, None)
    assert parse_budget(20) == Limits(20, None)


@pytest.mark.parametrize("text", ["", "ten", "10x", "m", -5, float("nan"), float("inf"), True, [10], None])
def test_bad_durations(text):
    with pytest.raises(ConfigError, match="invalid duration"):
        parse_budget(text)


def test_every_way_to_tune_runs_through_the_climb(task, tiny_folder, tmp_path):
    judged = ("preference", "reinforcement")  # they need preferences, or a task without labels
    methods = [one.name for one in build(names(), task, 0) if isinstance(one, FineTune) and one.family not in judged]
    asked = tuple(name for name in methods if name not in ("domain-adaptation", "qlora"))  # plain text; bitsandbytes
    assert len(asked) == 13
    once = {name: {"epochs": 1} for name in asked}
    small = task.model_copy(update={"model": str(tiny_folder), "rungs": once})
    result = climb(small, options=ClimbOptions(rungs=asked, out=tmp_path)).result
    status = {r.name: r.status for r in result.rungs}
    assert {name: status[name] for name in asked if status[name] not in ("confirmed", "beaten", "stopped")} == {}
    for rung in (r for r in result.rungs if r.name in asked and r.status != "stopped"):
        assert rung.trainable_parameters > 0
        assert Artifact.load(rung.artifact).path == ("zero-shot", rung.name)


def test_a_climb_from_memory_is_continued_and_its_artifact_needs_no_rows(small_task_file, tmp_path):
    files = {name: pd.read_csv(small_task_file.with_name(f"{name}.csv")) for name in ("train", "validation", "test")}
    fields = {"name": "memory", "instruction": "Which intent?", "inputs": ["text"]}
    output = {"column": "category", "kind": "category"}
    options = ClimbOptions(rungs=("features",), out=tmp_path)
    found = climb(Task(**fields, output=output, data=files), options=options)
    rows = {name: frame.to_dict("records") for name, frame in files.items()}
    again = climb(Task(**fields, output=output, data=rows), options=replace(options, resume=True))
    assert (again.folder, again.result.recommended) == (found.folder, found.result.recommended)
    found.result.write(found.folder)
    texts = list(files["test"]["text"][:3])
    assert [a.text for a in Artifact.load(found.folder).predict(texts)] == [
        a.text for a in found.recommended.predict(files["test"][:3])
    ]
    memory = Task(**fields, output=output, data=files)
    rung, zero = build(("features",), memory, 0)[0], Artifact.zero_shot(memory)
    fitted = [rung.fit(zero, each) for each in (rows["train"], files["train"], small_task_file.with_name("train.csv"))]
    assert len({artifact.fingerprint() for artifact in fitted}) == 1
    with pytest.raises(ConfigError, match="train row 1 has no column 'category'"):
        rung.fit(zero, [{"text": "a"}])


def test_a_short_budget_measures_no_engine_and_a_resumed_climb_keeps_its_engine(tiny_folder, tmp_path, monkeypatch):
    rows = [{"text": f"the colour is {word} here", "answer": word} for word in ("red", "green", "blue") * 8]
    fields = {"name": "span", "instruction": "Which colour?", "inputs": ["text"], "model": str(tiny_folder)}
    task = Task(**fields, output={"column": "answer", "kind": "text", "max_tokens": 4}, data=rows)
    monkeypatch.setattr(running, "choosing_seconds", lambda *_: 20.0)
    options = ClimbOptions(rungs=("features",), out=tmp_path, budget_seconds=30.0)
    short = climb(task, options=options)
    assert json.loads((short.folder / "climb.json").read_text())["engine"] == "torch"
    again = climb(task, options=replace(options, resume=True, budget_seconds=None))
    assert again.folder == short.folder
    monkeypatch.setattr(running, "settled", lambda *_, **__: "openvino")
    monkeypatch.setattr(running, "_climb", lambda task, data, options, *_: options.engine)
    assert climb(task, options=replace(options, budget_seconds=None)) == "openvino"


@pytest.fixture
def banking(tiny_folder):
    """Return a function that makes a task with so many rows of three labels."""
    frame = pd.concat([pd.read_csv(BANKING77 / f"{name}.csv") for name in ("train", "validation", "test")])
    counts = frame["category"].value_counts()
    labels = sorted(label for label, count in counts.items() if count >= 20)[:3]
    fields = {"instruction": "Which intent?", "inputs": ["text"], "model": str(tiny_folder)}

    def task(counts, **more):
        rows = pd.concat([frame[frame["category"] == label].head(n) for label, n in zip(labels, counts, strict=True)])
        return Task(
            name="few", **fields, output={"column": "category", "kind": "category"}, data={"train": rows}, **more
        )

    return task


def test_the_fits_of_all_folds_read_every_row_once(banking, monkeypatch):
    task, read = banking((20, 14, 8)), []
    data = task.read()
    zero, rung = Artifact.zero_shot(task, data.labels), build(("features",), task, 0)[0]
    folds = [*range(len(data.folds)), None]
    alone = [rung.fit(zero, rung.rows_to_fit(data, fold)) for fold in folds]
    monkeypatch.setattr(features, "_VECTORS", {})

    def embed(self, texts, **more):
        read.extend(texts)
        return real(self, texts, **more)

    real = SentenceEncoder.embed
    monkeypatch.setattr(SentenceEncoder, "embed", embed)
    again = [rung.fit(zero, rung.rows_to_fit(data, fold)) for fold in reversed(folds)]
    assert sorted(read) == sorted(row.inputs["text"] for row in data.train)
    prints = [artifact.fingerprint() for artifact in reversed(again)]
    assert prints == [artifact.fingerprint() for artifact in alone]  # whichever fold is first
    assert len(set(prints)) == len(folds) > 2


def test_macro_f1_decides_a_climb(banking, tmp_path):
    task = banking((20, 14, 8), metric="macro_f1")
    done = climb(task, options=ClimbOptions(rungs=("tfidf-head", "majority"), out=tmp_path))
    result = done.result
    found = {rung.name: rung for rung in result.rungs}
    rows = {name: list(RunStore(done.folder).predictions(name).values()) for name in found}

    def f1(name):
        own = rows[name]
        return f1_score([row.expected[0] for row in own], [row.prediction for row in own], average="macro")

    assert {rung.status for rung in found.values()} == {"confirmed"}  # no arm left early
    assert result.kind == "category"
    for name, rung in found.items():
        assert rung.score == pytest.approx(f1(name))
        assert rung.low <= rung.score <= rung.high
    c = next(c for c in result.comparisons if c.b == "tfidf-head")
    assert (c.a, c.method, c.n) == ("zero-shot", "sign-flip", 42)
    assert c.delta == pytest.approx(f1("tfidf-head") - f1("zero-shot"))
    zero = {row.id: row.score for row in rows["zero-shot"]}
    gains = [row.score - zero[row.id] for row in rows["tfidf-head"]]
    assert (c.fixed, c.broken) == (gains.count(1), gains.count(-1))
    assert found["majority"].yardstick.delta == pytest.approx(f1("majority") - f1("tfidf-head"))
    assert "macro_f1 is one number for all rows" in result.notes[0]
    values = summarize(done.recommended, task.read().folds[0], "test")
    assert values["metrics"]["macro_f1"]["score"] == pytest.approx(values["whole"]["macro_f1"])


def test_accuracy_among_the_most_probable_decides_a_climb(banking, tmp_path):
    done = climb(
        banking((20, 14, 8), metric="accuracy@2"),
        options=ClimbOptions(rungs=("tfidf-head", "nearest-row"), out=tmp_path),
    )
    found = {rung.name: rung for rung in done.result.rungs}
    labels = done.recommended.signature.labels
    for row in RunStore(done.folder).predictions("tfidf-head").values():
        best = sorted(range(3), key=lambda label: -row.probs[label])[:2]
        assert row.score == (row.expected[0] in {labels[label] for label in best})
    assert found["tfidf-head"].score > 0.4
    assert found["nearest-row"].status == "failed"
    assert "no probabilities" in found["nearest-row"].reason


def test_the_report_of_numbers_has_their_errors(tiny_folder, tmp_path):
    rows = [{"text": f"{i % 9} nights and {i % 5} meals", "price": 40 * (i % 9) + 10 * (i % 5)} for i in range(45)]
    task = Task(name="price", instruction="What is the price?", inputs=["text"], model=str(tiny_folder),
                output={"column": "price", "kind": "number"}, data={"train": rows})  # fmt: skip
    done = climb(task, options=ClimbOptions(rungs=("ridge",), out=tmp_path))
    done.result.write(done.folder)
    (ridge,) = (rung for rung in ClimbResult.read(done.folder).rungs if rung.name == "ridge")
    answers = RunStore(done.folder).predictions("ridge").values()
    wrong = [float(row.prediction) - float(row.expected[0]) for row in answers]
    assert ridge.errors["mae"] == pytest.approx(sum(map(abs, wrong)) / 45)
    assert ridge.errors["rmse"] == pytest.approx((sum(each**2 for each in wrong) / 45) ** 0.5)
    shown = f"ridge {ridge.errors['mae']:.4g} / {ridge.errors['rmse']:.4g}"
    assert any("MAE / RMSE" in line and shown in line for line in quality_notes(done.result))


def test_what_is_made_in_seconds_has_its_own_learning_curve(tiny_folder, tmp_path):
    """Each number is a word's, so that rows beside its own do not tell: the score grows with the rows."""
    rng = np.random.default_rng(0)
    words = ["".join(chr(97 + int(c)) for c in rng.integers(0, 26, 6)) for _ in range(40)]
    rows = [{"text": f"{words[i % 40]} and {i}", "price": 10 * (i % 40)} for i in rng.permutation(120).tolist()]
    task = Task(name="price", instruction="What is the price?", inputs=["text"], model=str(tiny_folder),
                output={"column": "price", "kind": "number"}, data={"train": rows})  # fmt: skip
    done = climb(task, options=ClimbOptions(rungs=("ridge",), out=tmp_path))
    done.result.write(done.folder)
    result = ClimbResult.read(done.folder)
    assert result.recommended == result.curve_of == "ridge"
    assert [rows for rows, *_ in result.curve] == [24, 48, 96]  # of the 96 that a fold of five leaves
    (ridge,) = (rung for rung in result.rungs if rung.name == "ridge")
    assert result.curve[-1][1] == pytest.approx(ridge.score)  # of all folds: what the climb measured
    assert result.curve[0][1] < result.curve[1][1] < result.curve[2][1]
    assert any("twice as many would bring ridge about +" in step for step in result.next_steps)
    assert done.plot.learning_curve().axes[0].get_xlabel() == "training rows of ridge"


def test_a_quarter_that_a_rung_cannot_learn_from_gives_no_learning_curve(tiny_folder, tmp_path):
    rows = [
        {"text": f"{'two' if i % 60 == 7 else 'one'} of {i}", "price": 20 if i % 60 == 7 else 10} for i in range(120)
    ]
    task = Task(name="price", instruction="What is the price?", inputs=["text"], model=str(tiny_folder),
                output={"column": "price", "kind": "number"}, data={"train": rows})  # fmt: skip
    result = climb(task, options=ClimbOptions(rungs=("ridge",), out=tmp_path)).result
    assert (result.recommended, result.curve) == ("ridge", ())


def test_sixty_rows_of_three_labels_are_enough_to_recommend(banking, tmp_path):
    result = climb(banking((20, 20, 20)), options=ClimbOptions(rungs=("tfidf-head",), out=tmp_path)).result
    best = next(rung for rung in result.rungs if rung.name == result.recommended)
    c = next(c for c in result.comparisons if c.b == best.name)
    assert (best.name, best.n, result.rows) == ("tfidf-head", 60, "folds")
    assert 0 < best.low < best.score <= best.high
    assert 0 < c.low < c.delta
    assert c.p < 0.05
