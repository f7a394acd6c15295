"""A server with pages on loopback: label scores and free text on a tiny model, captured answers, two climbs."""

import shutil
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta

from running_server import running

from rung.artifact.files import fingerprint
from rung.evaluation.report.html import write_html
from rung.evaluation.result import ClimbResult, Comparison, Prediction, RungResult, SuspectLabel
from rung.feedback.api import build_capture
from rung.feedback.records import Feedback, Interaction
from rung.feedback.registry import Registry
from rung.feedback.trials import start
from rung.serving.metrics import CAPTURE
from rung.serving.web.site import PageSources
from rung.serving.web.starter import Starter
from rung.yamlfile import sealed

PLANTED = "<script>document.title = 'planted'</script><img src=x onerror=\"document.title = 'planted'\">"


def interaction(number, **changes):
    """An answered request, a minute after the one before."""
    base = Interaction(
        id=f"r{number}", at=datetime(2026, 1, 2, 3, 4, tzinfo=UTC) + timedelta(minutes=number), task="intents",
        artifact="a" * 64, model="m" * 64, system="Which intent?", template="{text}", template_version="t" * 64,
        inputs={"text": f"Where is card {number}?"}, prompt_sha256="p" * 64, actual="age_limit", confidence=0.9,
        prompt_tokens=12, completion_tokens=3, seconds=0.25, key=None, finish="stop", split="train",
    )  # fmt: skip
    return replace(base, **{"input_id": "", **changes})


def fill(store):
    """r1 suspicious with a suggestion, r2 cut, r3 in no doubt, r4 planted: free text that would be code."""
    store.record([
        interaction(1, inputs={"text": "My card has still not arrived"}, confidence=0.4),
        interaction(2, finish="length"),
        interaction(3),
        interaction(4, task="notes", actual=PLANTED, confidence=None, inputs={"text": f"Say {PLANTED}"}),
    ])  # fmt: skip
    store.add_feedback(Feedback("r1", thumb="down", expected="card_arrival"))
    store.add_feedback(Feedback("r4", thumb="down", comment=PLANTED))


def measured_row(number, answer):
    """A row of `predictions.jsonl`; of each ten rows, few-shot has one wrong, and zero-shot one right."""
    expected = "age_limit" if number % 10 == 3 else "card_arrival"
    text = PLANTED if number == 13 else f"Where is card {number}?"
    return Prediction(
        f"row {number}", f"test.csv:{number}", "test", {"text": text}, f"Which intent? {text}", (expected,), answer,
        float(answer == expected), 0.95 if number % 20 == 3 else 0.4, 12, 0.1,
    )  # fmt: skip


def finished_run(folder, artifact):
    """A run folder as a climb leaves it: zero-shot, and few-shot that beats it."""
    target = folder / "rungs" / "few-shot-knn" / "artifact"
    shutil.copytree(artifact, target)
    common = {
        "metric": "accuracy",
        "n": 240,
        "split": "test",
        "status": "confirmed",
        "seconds": 12.0,
        "prompt_tokens": 9600,
    }
    rungs = (
        RungResult("zero-shot", "prompting", score=0.517, low=0.454, high=0.579, **common),
        RungResult("few-shot-knn", "in-context", score=0.852, low=0.801, high=0.892, artifact=str(target), **common),
        RungResult("lora", "peft", **{**common, "status": "beaten", "split": "validation", "n": 60}, score=0.733,
                   low=0.61, high=0.83, trainable_parameters=4_900_000, reason="beaten by few-shot-knn after 60 rows"),
        RungResult("full", "full", metric="accuracy", status="skipped", reason="it is expected to take 900 s"),
    )  # fmt: skip
    comparison = Comparison("zero-shot", "few-shot-knn", "accuracy", 240, 0.335, 0.27, 0.4, 0.0001, 88, 8, "mcnemar")
    decision = "Use few-shot-knn: +33.5 pp [+27.0, +40.0] over zero-shot on 240 test rows, 88 fixed / 8 broken."
    result = ClimbResult(
        "intents", "accuracy", "tiny-llama", "torch", 0, "0.1.0", "2026-01-02T03:04:05+00:00", 371.0, None,
        "few-shot-knn", decision, rungs, (comparison,), {"splits": {}, "warnings": []}, kind="category",
        next_steps=("labels that may be wrong: test.csv:13 and train.csv:7",), step_rows=("suspect",),
        suspects=(
            SuspectLabel("test", "row 13", "test.csv:13", "age_limit", "card_arrival", PLANTED),
            SuspectLabel("train", "row 77", "train.csv:7", "age_limit", "card_arrival", f"Lost my card {PLANTED}"),
        ),
    )  # fmt: skip
    (folder / "climb.json").write_text(sealed({"task": "intents"}))
    result.write(folder)
    answers = {"zero-shot": "age_limit", "few-shot-knn": "card_arrival"}
    predictions = {name: [measured_row(number, answer) for number in range(40)] for name, answer in answers.items()}
    for name, rows in predictions.items():
        (folder / "rungs" / name).mkdir(parents=True, exist_ok=True)
        lines = "".join(sealed(asdict(row)) + "\n" for row in rows)
        (folder / "rungs" / name / "predictions.jsonl").write_text(lines)
    write_html(result, predictions, folder)


def begun_run(folder):
    """A run folder of a climb that is under way, its last line not written to the end."""
    (folder / "rungs" / "few-shot-knn").mkdir(parents=True)
    (folder / "climb.json").write_text(sealed({"task": "letters", "rungs": ["few-shot-knn", "lora"]}))
    (folder / "journal.jsonl").write_text(
        sealed({"event": "fitted", "name": "few-shot-knn", "fit_seconds": 1.5})
        + "\n"
        + sealed({"event": "spent", "seconds": 2.5})
        + '\n{"eve'
    )
    rows = [{"split": "validation", "score": score} for score in (1.0, 0.0, 1.0, 1.0)]
    (folder / "rungs" / "few-shot-knn" / "predictions.jsonl").write_text("".join(sealed(r) + "\n" for r in rows))


def begin_trial(server, served, challenger, pairs, mode="shadow"):
    """Promote one artifact and try another, reviewed: `+` where it alone is right, `-` where it is not, `=` neither."""
    store, registry = server.wiring.store, Registry(server.registry, "intents")
    registry.promote(served, store, evidence={"reason": "the first"}, reviewer="Ann")
    trial = start(registry, challenger, mode=mode)
    right, wrong = "card_arrival", "age_limit"
    for number, pair in enumerate(pairs, start=100):
        ours, theirs = {"+": (wrong, right), "-": (right, wrong), "=": (wrong, wrong)}[pair]
        sent = interaction(number, artifact=trial.against, trial=trial.token, actual=ours)
        behind = replace(sent, id=f"s{number}", artifact=trial.artifact, shadows=sent.id, actual=theirs)
        store.record([sent, behind])
        store.correct(sent.id, right, "Ann")
    return trial


@contextmanager
def pages(served, artifacts, folder, **options):
    """Yield a running server with pages; its parts are `server.wiring`, `server.runs`, `server.registry`."""
    runs = folder / "runs"
    (runs / "intents").mkdir(parents=True)
    finished_run(runs / "intents", artifacts["few-shot"])
    begun_run(runs / "letters")
    wiring = build_capture(folder / "failures.db")
    fill(wiring.store)
    (folder / "tasks").mkdir()
    starter = Starter(folder / "tasks", {"RUNG_STORE": str(folder / "failures.db")}, ("--out", str(runs)))
    places = PageSources(runs, wiring.store, folder / "registry", starter)
    with running(served, routers=wiring.routers, pages=places, **options) as server:
        server.context.metrics.watch("rung_capture", CAPTURE, lambda: wiring.capture.counts)
        server.starter = starter
        server.wiring, server.runs, server.registry = wiring, runs, folder / "registry"
        server.fingerprint = fingerprint(artifacts["few-shot"])
        yield server
    wiring.close()
