"""Feedback and review over HTTP."""

import pytest
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient

from rung.feedback.api import failures_router, feedback_router
from rung.feedback.capture import Capture
from rung.feedback.store import FeedbackStore


@pytest.fixture
def store(tmp_path):
    with FeedbackStore(tmp_path / "f.db") as opened:
        yield opened


@pytest.fixture
def client(store):
    app = FastAPI()
    app.include_router(feedback_router(store, key_of=lambda request: request.headers.get("x-key")))
    app.include_router(failures_router(store))
    with TestClient(app) as opened:
        yield opened


def test_feedback_is_checked_redacted_and_kept(client, store, make):
    store.record([make(1)])
    body = {"id": "r1", "thumb": "down", "score": 0, "comment": "ask ann@mail.example", "expected": " card_arrival "}
    done = client.post("/v1/feedback", json=body, headers={"x-key": "k7"})
    assert (done.status_code, done.json()) == (201, {"feedback": 1})
    (kept,) = store.feedback("r1")
    assert (kept.thumb, kept.score, kept.comment, kept.expected, kept.key, kept.source) == (
        "down", 0.0, "ask [email]", "card_arrival", "k7", "user",
    )  # fmt: skip
    assert client.post("/v1/feedback", json={"id": "r2", "thumb": "up"}).status_code == 404
    for wrong in ({"thumb": "up"}, {"id": "r1"}, {"id": "r1", "comment": " "}, {"id": "r1", "thumb": "left"},
                  {"id": "r1", "score": 1.5}, {"id": "r1", "score": True},
                  {"id": "r1", "thumb": "up", "source": "check"},
                  {"id": "r1", "comment": "x" * 10_001}):  # fmt: skip
        assert client.post("/v1/feedback", json=wrong).status_code == 422
    assert len(store.feedback("r1")) == 1


def test_feedback_on_what_still_waits_to_be_written_is_not_lost(store, make):
    with Capture(store) as capture:
        app = FastAPI()
        app.include_router(feedback_router(store, capture=capture))
        with TestClient(app) as client:
            for i in range(10):
                capture.offer(make(i))
                assert client.post("/v1/feedback", json={"id": f"r{i}", "thumb": "up"}).status_code == 201


def test_review_lists_corrects_undoes_and_keeps_the_history(client, store, make):
    store.record([make(1), make(2, confidence=0.1), make(3, finish="length")])
    queue = client.get("/v1/failures", params={"suspicious": True, "reviewed": False, "limit": 1}).json()
    assert queue["count"] == 2
    assert [(c["id"], c["reasons"], c["inputs"]) for c in queue["cases"]] == [
        ("r3", ["unfinished"], {"text": "Where is card 3?"})
    ]
    done = client.post("/v1/failures/r3/correction", json={"expected": "card_arrival", "reviewer": "Ann"})
    assert done.status_code == 201
    assert done.json()["case"]["failure"] is True
    assert client.post("/v1/failures/r3/undo", json={"reviewer": "Bob"}).status_code == 400  # it is Ann's
    client.post("/v1/failures/r3/undo", json={"reviewer": "Ann", "comment": "no"})
    shown = client.get("/v1/failures/r3").json()
    assert shown["expected"] is None
    assert [(h["reviewer"], h["expected"], h["undoes"]) for h in shown["history"]] == [
        ("Ann", "card_arrival", None),
        ("Ann", None, 1),
    ]
    assert client.get("/v1/failures/r9").status_code == 404
    assert client.post("/v1/failures/r9/undo", json={"reviewer": "Bob"}).status_code == 404
    assert client.post("/v1/failures/r3/undo", json={"reviewer": "Bob"}).status_code == 400
    assert client.post("/v1/failures/r3/correction", json={"expected": "x"}).status_code == 422
    assert client.get("/v1/failures", params={"reason": "none"}).status_code == 422


def test_review_can_be_closed_to_most(store):
    def nobody(request):
        raise HTTPException(403, "not you")

    app = FastAPI()
    app.include_router(failures_router(store, allowed=nobody))
    with TestClient(app) as client:
        assert client.get("/v1/failures").status_code == 403


def test_a_correction_over_http_is_one_of_the_labels(store, make):
    app = FastAPI()
    app.include_router(failures_router(store, labels={"intents": ("card_arrival", "age_limit")}.get))
    store.record([make(1), make(2, task="")])
    with TestClient(app) as client:

        def corrected(id, expected):  # noqa: A002
            return client.post(f"/v1/failures/{id}/correction", json={"expected": expected, "reviewer": "Ann"})

        assert corrected("r1", "Card arrival").json()["case"]["expected"] == "card_arrival"
        refused = corrected("r1", "card_arival")
        assert (refused.status_code, "did you mean 'card_arrival'?" in refused.text) == (400, True)
        assert corrected("r2", "anything").status_code == 201  # a bare model has no labels


@pytest.mark.parametrize(
    ("words", "bad", "suggestion"),
    [([{"thumb": "down"}, {"thumb": "up"}], False, None), ([{"thumb": "up"}, {"thumb": "down"}], True, None),
     ([{"score": 0.2}, {"score": 0.9}], False, None), ([{"thumb": "down"}, {"thumb": "none"}], False, None),
     ([{"expected": "x"}, {"expected": "age_limit"}], False, "age_limit"),
     ([{"thumb": "down", "expected": "x"}, {"comment": "see?"}], True, "x"),
     ([{"thumb": "down"}, {"expected": "x"}], True, "x"), ([{"expected": "x"}, {"thumb": "up"}], False, None)],
)  # fmt: skip
def test_the_last_word_of_a_user_holds(client, store, make, words, bad, suggestion):
    store.record([make(1)])
    for word in words:
        assert client.post("/v1/feedback", json={"id": "r1", **word}).status_code == 201
    case = store.case("r1")
    assert (case.reasons, case.suggestion) == (("bad feedback",) if bad else (), suggestion)
