"""The loop over HTTP: served, captured, told wrong, corrected, promoted, served anew."""

import time
from dataclasses import replace

import pytest

from rung.artifact.files import fingerprint
from rung.feedback.api import build_capture
from rung.feedback.registry import Registry
from rung.feedback.store import FeedbackStore
from rung.rungs import Features

pytest.importorskip("rung.serving", reason="the server is not here")


def test_from_a_wrong_answer_to_a_better_artifact(zero, data, tmp_path):
    from fastapi.testclient import TestClient

    from rung.serving.app import app_with
    from rung.serving.served import Served

    two = [row for row in data.train if row.outputs[0] in ("age_limit", "top_up_failed")]
    weak = Features().fit(zero, replace(data, train=tuple(two))).save(tmp_path / "weak")
    good = Features().fit(zero, data).save(tmp_path / "good")
    registry = Registry(tmp_path / "registry", "intents")
    with FeedbackStore(tmp_path / "f.db") as store:
        registry.promote(weak, store, evidence={}, reviewer="Ann")
    served = Served()
    parts = build_capture(
        tmp_path / "f.db", registry=tmp_path / "registry",
        load=lambda folder, name: served.load(folder, name, replace=True),
    )  # fmt: skip
    app = app_with(served, recorder=parts.capture, routers=parts.routers)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        rows = {"rows": [{"text": "My card has still not arrived, write to ann@mail.example"}]}
        answered = client.post("/v1/tasks/intents/predict", json=rows).json()["predictions"][0]
        identity = answered["id"]
        response = client.post("/v1/feedback", json={"id": identity, "thumb": "down", "expected": "card_arrival"})
        assert response.status_code == 201
        assert client.post("/v1/feedback", json={"id": "none", "thumb": "up"}).status_code == 404
        case = client.get(f"/v1/failures/{identity}").json()
        assert (case["artifact"], case["actual"]) == (fingerprint(weak), answered["output"])
        assert case["inputs"] == {"text": "My card has still not arrived, write to [email]"}
        assert "bad feedback" in case["reasons"]
        body = {"expected": case["suggestion"], "reviewer": "Ann"}
        assert client.post(f"/v1/failures/{identity}/correction", json=body).json()["case"]["failure"] is True
        registry.promote(good, parts.store, evidence={}, reviewer="Ann")
        end = time.monotonic() + 120
        while served.find("intents").fingerprint != fingerprint(good) and time.monotonic() < end:
            time.sleep(0.02)
        again = client.post("/v1/tasks/intents/predict", json=rows).json()
        assert (again["artifact"], again["predictions"][0]["output"]) == (fingerprint(good), "card_arrival")
    parts.close()
    assert parts.capture.counts.written == 2
