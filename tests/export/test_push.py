"""Uploading to the Hub: the true client against a server that takes its requests."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import huggingface_hub
import pytest
from tests.cli.test_training_data import run

from rung.errors import ArtifactError, ConfigError, EngineError
from rung.export.push import push


class Hub(ThreadingHTTPServer):
    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.refuses = False
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0)).decode()
        self.server.asked.append((self.path, [json.loads(line) for line in body.splitlines() if line]))
        url = "https://huggingface.co/org/adapter"
        answers: dict[str, Any] = {
            "/api/validate-yaml": {"errors": [], "warnings": []},
            "/api/repos/create": {"url": url, "name": "org/adapter"},
            "/api/models/org/adapter/preupload/main": {
                "files": [
                    {"path": name, "uploadMode": "regular", "shouldIgnore": False}
                    for name in ("README.md", "adapter_config.json", "config.json")
                ]
            },
            "/api/models/org/adapter/commit/main": {"commitUrl": f"{url}/commit/1", "commitOid": "1"},
        }
        self.reply(403 if self.server.refuses and "commit" in self.path else 200, answers[self.path])

    def do_GET(self) -> None:
        self.reply(200, {"id": "org/adapter", "siblings": [], "sha": "0"})

    def reply(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    Thread(target=server.serve_forever, daemon=True).start()
    api = huggingface_hub.HfApi
    where = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api(endpoint=where, token="hf_secret"))
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    (tmp_path / "README.md").write_text("# The card\n")
    (tmp_path / "adapter_config.json").write_text('{"r": 16}')
    return tmp_path


def test_the_card_and_the_files_are_uploaded_to_a_private_repository(hub: Hub, exported: Path) -> None:
    done = push(exported, "org/adapter")
    assert done.files == ("README.md", "adapter_config.json")
    (_, [made]), *_, (path, lines) = hub.asked
    assert (made["organization"], made["name"], made["visibility"]) == ("org", "adapter", "private")
    assert path == "/api/models/org/adapter/commit/main"
    sent = {line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines[1:]}
    assert sent == {name: (exported / name).read_bytes() for name in done.files}


def test_public_is_only_what_was_asked_for(hub: Hub, exported: Path) -> None:
    push(exported, "org/adapter", public=True)
    assert hub.asked[0][1][0]["visibility"] == "public"


def test_a_refusal_names_the_repository_and_the_way_on(hub: Hub, exported: Path) -> None:
    hub.refuses = True
    with pytest.raises(EngineError, match="org/adapter: ") as caught:
        push(exported, "org/adapter")
    assert caught.value.code == "hub-refused"
    assert "HF_TOKEN" in (caught.value.hint or "")
    assert "hf_secret" not in str(caught.value)


def test_a_folder_without_a_card_or_a_wrong_name_is_refused_before_anything_is_sent(hub: Hub, exported: Path) -> None:
    with pytest.raises(ConfigError, match="names no repository"):
        push(exported, "a b")
    (exported / "README.md").unlink()
    with pytest.raises(ArtifactError, match="no model card"):
        push(exported, "org/adapter")
    assert hub.asked == []


def test_a_pushed_model_can_be_pulled(hub: Hub, exported: Path) -> None:
    assert "Next" not in run("push", exported, "org/adapter").stdout  # no model of its own
    (exported / "config.json").write_text("{}")
    assert run("push", exported, "org/adapter").stdout.endswith("Next: rung models pull org/adapter\n")
