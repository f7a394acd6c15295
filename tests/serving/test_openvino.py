"""The embedded model through OpenVINO: what is served is what is predicted, among other clients' requests as well."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from running_server import running, text_artifact

from rung.artifact.artifact import Artifact
from rung.engines.base import Continuous, GenerateRequest, Sampling
from rung.engines.opening import open_openvino
from rung.serving.served import Served

TEXTS = ("Where is my card?", "How old must I be?", "Tell me a story.", "Name three fruits.", "What is money?")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from dataclasses import replace

    artifact = replace(text_artifact("embedded", max_tokens=24), engine="openvino")
    return artifact.save(tmp_path_factory.mktemp("served") / "notes")


def test_served_text_is_predicted_text(folder):
    predicted = [answer.text for answer in Artifact.load(folder).predict([{"text": text} for text in TEXTS])]
    served = Served()
    served.load(folder)
    with running(served) as server, ThreadPoolExecutor(len(TEXTS)) as workers:
        client = server.client()

        def ask(text):
            messages = [{"role": "user", "content": text}]
            stream = client.chat.completions.create(model="notes", messages=messages, stream=True)
            return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

        assert list(workers.map(ask, TEXTS)) == predicted
        typed = server.post("/v1/tasks/notes/predict", {"rows": [{"text": text} for text in TEXTS]}).json()
        assert [one["output"] for one in typed["predictions"]] == predicted
    served.close()


def test_rows_that_join_late_and_leave_early_have_the_text_of_generate():
    engine = open_openvino("embedded")
    assert isinstance(engine, Continuous)
    requests = [GenerateRequest(({"role": "user", "content": text},), Sampling(max_tokens=16)) for text in TEXTS]
    wanted = [one.text for one in engine.generate(requests)]
    session, texts = engine.session(), dict.fromkeys(range(len(TEXTS)), "")
    session.add(99, GenerateRequest(requests[2].prompt, Sampling(max_tokens=500)))
    for key, request in enumerate(requests):
        session.add(key, request)
        for delta in session.step():
            texts[delta.key] = texts.get(delta.key, "") + delta.text
    session.cancel(99)
    while session.active:
        for delta in session.step():
            texts[delta.key] += delta.text
    assert [texts[key] for key in range(len(TEXTS))] == wanted
