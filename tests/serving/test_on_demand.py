"""Artifacts that a server loads by their name at the first request, and those that it lets go."""

import asyncio
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from running_server import running
from typer.testing import CliRunner

from rung.cli.main import app
from rung.engines import torch_engine
from rung.engines.opening import open_torch
from rung.errors import ConfigError
from rung.rungs import LoRA
from rung.serving.on_demand import OnDemand
from rung.serving.served import Served

ROWS = {"rows": [{"text": "Where is my card?"}]}


@pytest.fixture
def shelf(artifacts, tmp_path):
    for name in ("intents", "few-shot", "head", "notes"):
        shutil.copytree(artifacts[name], tmp_path / "shelf" / name)
    (tmp_path / "shelf" / "empty").mkdir()
    return tmp_path / "shelf"


def test_the_artifacts_asked_for_last_are_served(shelf, artifacts, server):
    served, checked = Served(), []
    with running(served, on_demand=OnDemand(shelf, 2, checked.append)) as lazy:

        def ask(name):
            return lazy.post(f"/v1/tasks/{name}/predict", ROWS)

        def names():
            return [each.name for each in served.artifacts()]

        with ThreadPoolExecutor(8) as many:  # they wait for one load
            answers = list(many.map(ask, ["intents"] * 8))
        assert {answer.status_code for answer in answers} == {200}
        assert checked == [shelf / "intents"]
        told = server.post("/v1/tasks/intents/predict", ROWS).json()["predictions"][0]["output"]
        assert answers[0].json()["predictions"][0]["output"] == told
        assert ask("head").status_code == 200
        assert ask("intents").status_code == 200
        chat = {"model": "notes", "messages": [{"role": "user", "content": "card"}]}
        assert lazy.post("/v1/chat/completions", chat).status_code == 200
        assert names() == ["intents", "notes"]  # head was not used for longest
        for name in ("nothing", "empty", "..", "../shelf/intents", ".hidden", "a" * 200):
            assert lazy.post("/v1/chat/completions", chat | {"model": name}).status_code == 404, name
        file = shelf / "few-shot" / "artifact.json"
        file.write_text(file.read_text() + " ")
        assert ask("few-shot").json()["error"]["code"] == "artifact-damaged"
        assert names() == ["intents", "notes"]
    served.close()


def test_what_makes_room_does_not_wait_for_the_next_load(shelf, monkeypatch):
    served, next_asked, slow = Served(), threading.Event(), threading.Event()
    opened = Served._opened

    def opens(self, artifact, folder, name, progress):
        if name == "head":
            next_asked.wait(20)
        elif name == "notes":
            slow.wait(20)
        return opened(self, artifact, folder, name, progress)

    def check(folder):
        if folder.name == "notes":  # its thread then waits until `head` is loaded
            next_asked.set()

    monkeypatch.setattr(Served, "_opened", opens)
    with running(served, on_demand=OnDemand(shelf, 1, check)) as lazy, ThreadPoolExecutor(2) as many:
        assert lazy.post("/v1/tasks/intents/predict", ROWS).status_code == 200
        first = many.submit(lazy.post, "/v1/tasks/head/predict", ROWS)
        while not served._loading.locked():
            time.sleep(0.01)
        second = many.submit(lazy.post, "/v1/tasks/notes/predict", ROWS)
        try:
            assert first.result().status_code == 200
            assert [each.name for each in served.artifacts()] == ["head"]
        finally:
            slow.set()
        assert second.result().status_code == 200
    served.close()


def test_what_made_room_still_answers_those_who_asked_for_it(shelf):
    async def both(served):
        lazy = OnDemand(shelf, 1)
        found = await asyncio.gather(*(lazy.need(served, name) for name in ("intents", "head")))
        (kept,) = (each.name for each in served.artifacts())
        served.unload(kept)  # as an administrator may
        return found, await lazy.need(served, "notes"), await lazy.need(served, "nothing")

    served = Served()
    with ThreadPoolExecutor(1) as own:  # where no browser of other tests has a loop
        found, later, nothing = own.submit(lambda: asyncio.run(both(served))).result()
    assert [each.name for each in found] == ["intents", "head"]
    assert (later.name, nothing) == ("notes", None)
    assert [each.name for each in served.artifacts()] == ["notes"]
    served.close()


def test_the_engine_lets_adapters_go_and_loads_them_again(tiny_zero, data, monkeypatch):
    monkeypatch.setattr(torch_engine, "ATTACHED", 2)
    rows = data.test[:4]
    made = [LoRA(epochs=1, rank=2, seed=seed, learning_rate=0.1).fit(tiny_zero, data) for seed in range(3)]
    engine = open_torch(tiny_zero.model)
    before = [[a.probabilities for a in one.with_engine(engine).answer(rows)] for one in made]
    folders = [str(one.weights.adapter) for one in made]
    assert list(engine._changes) == folders[1:]
    assert [[a.probabilities for a in one.with_engine(engine).answer(rows)] for one in made] == before
    assert len({str(each) for each in before}) == 3
    assert not any(folders[0].split("/")[-1] in name for name in engine._changes)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    done = CliRunner().invoke(app, ["serve", "--on-demand", str(tmp_path / "none"), "--port", "0", "--quiet"])
    assert isinstance(done.exception, ConfigError)
    assert "is not a folder" in str(done.exception)
