"""An artifact that thinks: its thought is a field of its own, whole and streamed, and never part of the answer."""

import json
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest
from running_server import running, text_artifact

import rung.artifact.thoughts
from rung.artifact.artifact import Artifact
from rung.engines.base import Delta
from rung.engines.torch_engine import TorchEngine
from rung.serving.served import Served

TEMPLATES = Path(str((trl := find_spec("trl")) and trl.origin)).parent / "chat_templates"


@pytest.fixture
def thinker(tiny_folder, tmp_path, monkeypatch) -> Artifact:
    monkeypatch.setattr(rung.artifact.thoughts, "THOUGHT_TOKENS", {"on": 5})
    folder = tmp_path / "thinker"
    shutil.copytree(tiny_folder, folder)
    shutil.copyfile(TEMPLATES / "glm4moe.jinja", folder / "chat_template.jinja")
    plain = text_artifact(folder)
    return replace(plain, prompt=replace(plain.prompt, thinking="on"))


def test_the_thought_is_a_field_of_its_own(thinker, tmp_path):
    served = Served()
    served.load(thinker.save(tmp_path / "saved"), "thinker")
    (expected,) = thinker.predict(["hello"])
    assert expected.reasoning
    body = {"model": "thinker", "messages": [{"role": "user", "content": "hello"}]}
    with running(served) as server:
        whole = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()
        message = whole["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == (expected.reasoning, expected.text)
        assert whole["usage"]["completion_tokens"] == expected.completion_tokens
        lines = httpx.post(f"{server.url}/v1/chat/completions", json={**body, "stream": True}, timeout=60).text
        events = [json.loads(line[6:]) for line in lines.splitlines() if line.startswith("data: {")]
        deltas = [event["choices"][0]["delta"] for event in events]
        assert "".join(delta.get("reasoning_content") or "" for delta in deltas) == expected.reasoning
        assert "".join(delta.get("content") or "" for delta in deltas) == expected.text
    served.close()


class Thinking:
    """A session of a model that writes its thoughts although nothing asks it to."""

    def __init__(self):
        self.rows = {}

    @property
    def active(self):
        return len(self.rows)

    def add(self, key, request):
        self.rows[key] = iter(("<thi", "nk>\na plan", "</think>\n\nHel", "lo. "))

    def cancel(self, key):
        self.rows.pop(key, None)

    def step(self):
        deltas = []
        for key, pieces in list(self.rows.items()):
            piece = next(pieces)
            ended = "stop" if piece == "lo. " else None
            deltas.append(Delta(key, piece, (1,), (0.0,), 3, 4, ended))
            if ended:
                del self.rows[key]
        return deltas


def test_a_thought_that_nothing_asked_for_is_no_part_of_the_answer(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(TorchEngine, "session", lambda engine: Thinking())
    served = Served()
    served.load(text_artifact(tiny_folder).save(tmp_path / "saved"), "notes")
    body = {"model": "notes", "messages": [{"role": "user", "content": "hello"}]}
    with running(served) as server:
        whole = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()
        message = whole["choices"][0]["message"]
        assert (message["content"], message["reasoning_content"]) == ("Hello.", "a plan")
        lines = httpx.post(f"{server.url}/v1/chat/completions", json={**body, "stream": True}, timeout=60).text
        events = [json.loads(line[6:]) for line in lines.splitlines() if line.startswith("data: {")]
        assert "".join(event["choices"][0]["delta"].get("content") or "" for event in events) == "Hello."
    served.close()
