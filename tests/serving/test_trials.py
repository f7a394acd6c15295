"""Trials on a running server: who answers what, what is captured, and what clients notice of it."""

import json
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
import numpy as np
import pytest
from paced_engine import FakeEngine
from running_server import HELLO, running, text_artifact
from typer.testing import CliRunner

from rung.artifact.files import fingerprint
from rung.artifact.heads import Head
from rung.cli.main import app
from rung.data.rows import example_id
from rung.errors import EngineError
from rung.feedback.api import build_capture
from rung.feedback.records import ABTest
from rung.feedback.registry import Registry
from rung.feedback.store import FeedbackStore
from rung.feedback.trials import arm_of
from rung.serving import shadows as shadows_module
from rung.serving.requests import answering, chat_request
from rung.serving.scheduler import Scheduler
from rung.serving.schemas import ChatRequest
from rung.serving.served import Served, ServedArtifact, ServedModel
from rung.serving.shadows import Shadow, Shadows

RIGHT, WRONG = "card_arrival", "age_limit"


@pytest.fixture(scope="module")
def folders(zero, tmp_path_factory):
    """Two artifacts of one task on the sentence encoder: the first is always wrong, the second always right."""
    labels, folder = zero.signature.labels, tmp_path_factory.mktemp("heads")
    made = []
    for name, label in (("first", WRONG), ("second", RIGHT)):
        bias = np.array([20.0 * (one == label) for one in labels], np.float32)
        head = Head(labels, "embedded-encoder", np.zeros((len(labels), 384), np.float32), bias)
        made.append(replace(zero, decoder=head).save(folder / name))
    return made


@contextmanager
def following(tmp_path, mode="on"):
    """A server that follows a registry, with its store; promotions and trials are looked for all the time."""
    served = Served()
    parts = build_capture(
        tmp_path / "f.db", mode=mode, registry=tmp_path / "registry",
        load=lambda folder, name: served.load(folder, name, replace=True),
        challenge=lambda name, what: served.withdraw(name) if what is None else served.challenge(name, *what),
    )  # fmt: skip
    parts.follower.every = 0.02
    with running(served, recorder=parts.capture, routers=parts.routers) as server:
        server.parts = parts
        yield server
        server.context.shadows.close()
    parts.close()
    served.close()


def promote(tmp_path, folder, task="intents"):
    with FeedbackStore(tmp_path / "f.db") as store:
        return Registry(tmp_path / "registry", task).promote(folder, store, evidence={}, reviewer="Ann")


def rung(tmp_path, *arguments):
    places = ["--registry", str(tmp_path / "registry")]
    places += ["--store", str(tmp_path / "f.db")] if "show" in arguments else []
    result = CliRunner().invoke(app, [str(one) for one in (*arguments, *places)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return json.loads(result.stdout) if "--json" in arguments else result.stdout


def until(done):
    end = time.monotonic() + 120  # loading the encoder takes seconds, and on a busy machine many
    while not done() and time.monotonic() < end:
        time.sleep(0.01)
    assert done()


def model(server, name="intents"):
    return httpx.get(f"{server.url}/v1/models/{name}", timeout=60).json().get("rung", {})


def predict(server, *texts):
    return server.post("/v1/tasks/intents/predict", {"rows": [{"text": text} for text in texts]}).json()["predictions"]


def test_a_task_promoted_for_the_first_time_is_served_without_a_restart(folders, tmp_path):
    with following(tmp_path) as server:
        assert httpx.get(f"{server.url}/v1/models", timeout=60).json()["data"] == []
        promote(tmp_path, folders[0])
        until(lambda: model(server).get("fingerprint") == fingerprint(folders[0]))
        assert [one["output"] for one in predict(server, "Where is my card?")] == [WRONG]


def test_an_ab_trial_answers_a_share_of_the_inputs_and_is_judged_by_what_comes_back(folders, tmp_path):
    promote(tmp_path, folders[0])
    marks = dict(zip("ab", map(fingerprint, folders), strict=True))
    with following(tmp_path) as server:
        started = rung(tmp_path, "trial", "start", "intents", folders[1], "--mode", "ab", "--share", 0.4, "--json")
        assert (started["artifact"], started["against"], started["running"]) == (marks["b"], marks["a"], True)
        until(lambda: "trial" in model(server))
        assert model(server)["trial"] == {
            "id": started["id"], "mode": "ab", "share": 0.4, "artifact": marks["b"],
        }  # fmt: skip
        # A trial's id is drawn, so which input is in which arm is another thing each time: how many are in each is not.
        pool = [f"Where is card {n}?" for n in range(400)]
        drawn = [arm_of(example_id({"text": text}), share=0.4, salt=started["id"]) for text in pool]
        kept = sorted(n for arm in "ab" for n in [n for n, one in enumerate(drawn) if one == arm][:24])
        texts, arms = [pool[n] for n in kept], [drawn[n] for n in kept]
        assert (arms.count("a"), arms.count("b")) == (24, 24)
        answered = predict(server, *texts)
        assert [one["artifact"] for one in answered] == [marks[arm] for arm in arms]
        assert [one["output"] for one in answered] == [{"a": WRONG, "b": RIGHT}[arm] for arm in arms]
        for text, arm in list(zip(texts, arms, strict=True))[:6]:  # the same everywhere, case and spaces aside
            body = {"model": "intents", "messages": [{"role": "user", "content": text.upper() + " "}]}
            assert server.post("/v1/chat/completions", body).json()["rung"]["artifact"] == marks[arm]
        for one in answered:
            said = {"id": one["id"], "thumb": "up" if one["output"] == RIGHT else "down"}
            assert server.post("/v1/feedback", said).status_code == 201
        server.parts.capture.flush()
        shown = rung(tmp_path, "trial", "show", "intents", "--json")
        assert shown["judged"] == {arm: arms.count(arm) for arm in "ab"}
        assert sum(shown["answered"].values()) == len(texts) + 6
        assert (shown["state"], shown["stop"], shown["delta"], shown["broken"]) == ("b", True, 1.0, 0)
        assert shown["pairs"] == shown["fixed"]
        assert shown["p"] <= 0.05
        text = rung(tmp_path, "trial", "show", "intents")
        assert "the challenger is better; the trial may be stopped" in text
        promotion = text.partition("Next: ")[2].strip()
        assert promotion.startswith(
            f"rung promote {started['folder']} --reason 'trial {started['id'][:8]}: mean thumb +100.0 pp ["
        )
        promote(tmp_path, folders[1])
        until(lambda: model(server)["fingerprint"] == marks["b"])
        assert "trial" not in model(server)
        assert {one["artifact"] for one in predict(server, *texts)} == {marks["b"]}
        assert rung(tmp_path, "trial", "show", "intents", "--json")["running"] is False


def test_a_shadow_answers_behind_the_response_and_neither_delays_nor_changes_it(folders, tmp_path, monkeypatch):
    promote(tmp_path, folders[0])
    go, answer = threading.Event(), shadows_module.answers_of
    monkeypatch.setattr(shadows_module, "answers_of", lambda *given: go.wait(120) and answer(*given))
    with following(tmp_path) as server:
        plain = predict(server, "Where is my card?")[0]
        rung(tmp_path, "trial", "start", "intents", folders[1], "--mode", "shadow", "--stop-after", 9)
        until(lambda: "trial" in model(server))
        answered = [predict(server, f"Where is card {n}?")[0] for n in range(12)]  # while the shadow hangs
        assert {one["output"] for one in answered} == {WRONG}
        assert set(answered[0]) == set(plain)
        until(lambda: server.metric("rung_shadow_waiting") == 12)
        go.set()
        until(lambda: server.metric("rung_shadow_answered") == 12)
        assert (server.metric("rung_shadow_dropped"), server.metric("rung_shadow_waiting")) == (0, 0)
        server.parts.capture.flush()
        with FeedbackStore(tmp_path / "f.db") as store:
            for one in answered:
                (behind,) = store.shadows(one["id"])
                assert (behind.artifact, behind.actual, behind.finish) == (fingerprint(folders[1]), RIGHT, "stop")
                assert behind.input_id == store.case(one["id"]).interaction.input_id
            assert store.shadows(plain["id"]) == []  # before the trial
            assert store.count() == 13
        case = httpx.get(f"{server.url}/v1/failures/{answered[0]['id']}", timeout=60).json()
        assert (case["reasons"], case["suggestion"]) == (["disagreement"], RIGHT)
        assert [one["actual"] for one in case["shadowed_by"]] == [RIGHT]
        for one, expected in zip(answered, [RIGHT, WRONG] * 6, strict=True):
            body = {"expected": expected, "reviewer": "Ann"}
            assert server.post(f"/v1/failures/{one['id']}/correction", body).status_code == 201
        shown = rung(tmp_path, "trial", "show", "intents", "--json")
        assert shown["answered"] == {"a": 12, "b": 12}
        assert (shown["state"], shown["stop"], shown["pairs"]) == ("none", True, 9)
        assert (shown["fixed"], shown["broken"]) == (5, 4)
        assert rung(tmp_path, "trial", "stop", "intents", "--json")["running"] is False
        until(lambda: "trial" not in model(server))
        later = predict(server, "And now?")[0]
        server.parts.capture.flush()
        assert server.metric("rung_shadow_offered") == 12
        with FeedbackStore(tmp_path / "f.db") as store:
            assert store.case(later["id"]).interaction.trial == ""


def test_requests_for_another_answer_than_the_artifacts_own_take_no_part(make_challenge):
    scheduler = Scheduler(FakeEngine(), "fake")
    base = ServedModel("fake", "m", scheduler, 0)
    record = make_challenge("a", "b", mode="ab", share=0.999)
    ours, theirs = (
        ServedArtifact("notes", text_artifact("none", max_tokens=n), Path(), mark, "m", base, 0)
        for mark, n in (("a", 4), ("b", 6))
    )
    theirs = replace(theirs, trial=record)
    target = replace(ours, trial=record, challenger=theirs)
    planned = []
    for options in ({}, {"max_tokens": 6}, {"max_tokens": 5}, {"temperature": 0.5}, {"n": 2}, {"stop": "x"}):
        plan = chat_request(target, ChatRequest(model="notes", messages=HELLO, **options))
        planned.append((plan.served.fingerprint, plan.requests[0].sampling.max_tokens, plan.served.trial is None))
    assert planned == [("b", 6, False), ("b", 6, False), *[("a", 4, True)] * 4]
    assert answering(ours, {"text": "x"}) is ours
    shadow = replace(ours, trial=replace(record, mode="shadow"), challenger=theirs)
    assert answering(shadow, {"text": "x"}) is shadow
    scheduler.close()


def test_without_capture_no_trial_begins(folders, tmp_path):
    promote(tmp_path, folders[0])
    rung(tmp_path, "trial", "start", "intents", folders[1])
    with following(tmp_path, "off") as server:
        assert "trial" not in model(server)
        assert "not captured" in server.parts.follower.errors["intents"]


class Recorder:
    def __init__(self):
        self.kept = []

    def offer(self, interaction):
        self.kept.append(interaction)


@pytest.fixture
def challenger(folders, make_challenge):
    served = Served()
    served.load(folders[0], "intents")
    served.challenge("intents", folders[1], make_challenge(*map(fingerprint, folders)))
    yield served.find("intents").challenger
    served.close()


@pytest.fixture
def make_challenge():
    return lambda against, artifact, mode="shadow", share=1.0: ABTest(
        "t" * 32, datetime.now(UTC), "intents", mode, share, 10, artifact, "", against
    )


def test_the_queue_of_shadows_is_bounded_waits_for_clients_and_is_dropped_at_the_end(challenger):
    recorder, busy = Recorder(), threading.Event()
    busy.set()
    shadows = Shadows(recorder, busy.is_set, most=3)
    for number in range(5):
        shadows.offer(Shadow(challenger, {"text": f"card {number}"}, f"r{number}", "k1"))
    assert (shadows.counts.offered, shadows.counts.dropped, shadows.counts.waiting) == (5, 2, 3)
    time.sleep(0.1)
    assert recorder.kept == []  # a client waits
    busy.clear()
    until(lambda: shadows.counts.answered == 3)
    assert [(one.shadows, one.actual, one.key) for one in recorder.kept] == [
        (f"r{number}", RIGHT, "k1") for number in range(3)
    ]  # fmt: skip
    busy.set()
    shadows.offer(Shadow(challenger, {"text": "late"}, "r5", None))
    shadows.close()
    shadows.offer(Shadow(challenger, {"text": "later"}, "r6", None))
    assert (shadows.counts.dropped, shadows.counts.waiting, len(recorder.kept)) == (4, 0, 3)


class Looks:
    """A server that is never idle: says so, counts how often it was asked, and has a time that only a test changes."""

    def __init__(self):
        self.now, self.asked = 0.0, threading.Semaphore(0)

    def busy(self):
        self.asked.release()
        return True

    def clock(self):
        return self.now

    def again(self):
        """Wait until the worker has looked twice more, at the time that it is now."""
        while self.asked.acquire(blocking=False):
            pass
        for _ in range(2):
            assert self.asked.acquire(timeout=120)


def test_on_a_server_that_is_never_idle_shadows_run_beside_clients_one_at_a_time_and_rest_between(
    challenger, monkeypatch
):
    begun, go, looks, recorder = threading.Semaphore(0), threading.Semaphore(0), Looks(), Recorder()
    answer = shadows_module.answers_of

    def slow(artifact, rows):
        begun.release()
        assert go.acquire(timeout=120)
        return answer(artifact, rows)

    monkeypatch.setattr(shadows_module, "answers_of", slow)
    shadows = Shadows(recorder, looks.busy, clock=looks.clock)
    for number in range(3):
        shadows.offer(Shadow(challenger, {"text": f"card {number}"}, f"r{number}", None))
    looks.again()
    looks.now = 1.9
    looks.again()
    assert not begun.acquire(blocking=False)  # not yet
    looks.now = 2.0
    assert begun.acquire(timeout=120)
    assert (shadows.counts.beside, shadows.counts.waiting) == (1, 3)
    assert not begun.acquire(blocking=False)  # one at a time, however long that takes
    looks.now = 12.0  # it took 10 s beside clients: the next one waits 40
    go.release()
    until(lambda: shadows.counts.answered == 1)
    looks.again()
    looks.now = 51.9
    looks.again()
    assert not begun.acquire(blocking=False)
    looks.now = 52.0
    assert begun.acquire(timeout=120)
    go.release()
    until(lambda: shadows.counts.answered == 2)
    looks.again()
    looks.now = 54.0  # that one took no time
    go.release()
    until(lambda: shadows.counts.answered == 3)
    assert [(one.shadows, one.actual, one.seconds) for one in recorder.kept] == [
        ("r0", RIGHT, 10.0), ("r1", RIGHT, 0.0), ("r2", RIGHT, 0.0),
    ]  # fmt: skip
    assert (shadows.counts.beside, shadows.counts.waiting) == (3, 0)
    shadows.close()


def test_a_challenger_that_fails_has_answered_nothing(challenger, monkeypatch):
    def fail(artifact, rows):
        raise EngineError("context-overflow", "too long")

    monkeypatch.setattr(shadows_module, "answers_of", fail)
    recorder = Recorder()
    shadows = Shadows(recorder, lambda: False)
    shadows.offer(Shadow(challenger, {"text": "card"}, "r0", None))
    until(lambda: shadows.counts.failed == 1)
    (kept,) = recorder.kept
    assert (kept.actual, kept.finish, kept.shadows) == ("", "context-overflow", "r0")
    shadows.close()
