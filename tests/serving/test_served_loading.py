"""Artifacts that come and go while the server runs."""

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from running_server import BASE, HELLO, running, text_artifact

from rung.artifact.files import fingerprint
from rung.errors import ArtifactError, ConfigError
from rung.serving.access import Access, KeyRing, create_key
from rung.serving.context import RENDERERS
from rung.serving.served import Served


@pytest.fixture
def folder(tmp_path, tiny_folder):
    """Two artifacts of one task, and one that is damaged, below a folder."""
    below = tmp_path / "artifacts"
    text_artifact(tiny_folder, max_tokens=4).save(below / "first")
    text_artifact(tiny_folder, max_tokens=7).save(below / "second")
    shutil.copytree(below / "first", below / "damaged")
    (below / "damaged" / "artifact.json").write_text("{}")
    return below


@pytest.fixture
def server(folder, tiny_folder):
    served = Served()
    served.add_model(str(tiny_folder), engine="torch")
    with running(served, load_from=folder) as server:
        yield server
    served.close()


def test_the_engine_of_a_model_is_settled_before_it_is_served(tiny_folder, monkeypatch):
    asked = []
    monkeypatch.setattr("rung.serving.served.settled", lambda model, engine, progress: asked.append((model, engine)))
    served = Served()
    served.add_model(str(tiny_folder))
    assert asked == [(str(tiny_folder), "auto")]
    served.close()


def put(server, name, folder, **options):
    return httpx.put(f"{server.url}/v1/artifacts/{name}", json={"folder": folder}, timeout=60, **options)


def tokens(server, name="notes"):
    answer = server.post("/v1/chat/completions", {"model": name, "messages": HELLO})
    return answer.json()["usage"]["completion_tokens"] if answer.status_code == 200 else answer.status_code


def test_an_artifact_is_loaded_replaced_and_unloaded(server, folder):
    assert tokens(server) == 404
    loaded = put(server, "notes", "first")
    assert loaded.json()["rung"]["fingerprint"] == fingerprint(folder / "first")
    assert tokens(server) == 4
    assert "/v1/tasks/notes/predict" in httpx.get(f"{server.url}/openapi.json").json()["paths"]
    assert put(server, "notes", "second").status_code == 200
    assert tokens(server) == 7
    assert httpx.delete(f"{server.url}/v1/artifacts/notes").json() == {
        "id": "notes",
        "object": "model",
        "deleted": True,
    }
    assert tokens(server) == 404
    assert "/v1/tasks/notes/predict" not in httpx.get(f"{server.url}/openapi.json").json()["paths"]


def test_what_is_damaged_elsewhere_or_no_artifact_is_refused_and_the_old_one_stays(server):
    assert put(server, "notes", "first").status_code == 200
    damaged = put(server, "notes", "damaged")
    assert (damaged.status_code, damaged.json()["error"]["code"]) == (409, "artifact-damaged")
    for outside in ("..", "../..", "/etc", ".", "first/../../artifacts/../.."):
        assert put(server, "notes", outside).status_code == 403
    for name in ("x" * 200, "%3Cscript%3E", "a%0Ab", "-x"):
        assert put(server, name, "first").json()["error"]["code"] == "invalid-request"
    assert put(server, "notes", "missing").json()["error"]["code"] == "wrong-folder"
    assert put(server, BASE, "first").json()["error"]["code"] == "duplicate-name"
    assert httpx.delete(f"{server.url}/v1/artifacts/{BASE}").status_code == 409
    assert httpx.delete(f"{server.url}/v1/artifacts/nothing").status_code == 404
    assert tokens(server) == 4


def test_replacing_an_artifact_breaks_no_request(server):
    put(server, "notes", "first")
    seen, stop = [], threading.Event()

    def ask():
        while not stop.is_set():
            seen.append(tokens(server))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for name in ("second", "first", "second"):
        assert put(server, "notes", name).status_code == 200
    stop.set()
    for thread in threads:
        thread.join()
    assert set(seen) <= {4, 7}
    assert tokens(server) == 7


def test_while_an_artifact_loads_requests_are_answered_and_others_are_unloaded(server, monkeypatch):
    put(server, "notes", "first")
    served, begun = server.context.served, []
    load = served.load
    monkeypatch.setattr(served, "load", lambda *given, **more: (begun.append(given), load(*given, **more))[1])
    with ThreadPoolExecutor(RENDERERS) as many:
        with served._loading:  # as long as something loads
            waiting = [many.submit(put, server, f"other-{number}", "second") for number in range(RENDERERS)]
            while len(begun) < RENDERERS:
                time.sleep(0.01)
            assert tokens(server) == 4
            assert httpx.delete(f"{server.url}/v1/artifacts/notes", timeout=30).status_code == 200
            assert tokens(server) == 404
        assert [each.result().status_code for each in waiting] == [200] * RENDERERS


def test_loading_is_off_unless_asked_for_and_needs_an_admins_key(folder, tmp_path, tiny_folder):
    file = tmp_path / "keys.jsonl"
    user, _ = create_key(file, "anna")
    admin, _ = create_key(file, "bert", admin=True)
    served = Served()
    with running(served) as server:
        assert put(server, "notes", "first").json()["error"]["code"] == "loading-off"
    with running(served, load_from=folder, access=Access(KeyRing(file))) as server:
        assert put(server, "notes", "first").status_code == 401
        refused = put(server, "notes", "first", headers={"Authorization": f"Bearer {user}"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "not-admin")
        assert put(server, "notes", "first", headers={"Authorization": f"Bearer {admin}"}).status_code == 200
    served.close()


def test_names_are_the_tasks_and_never_twice(folder):
    served = Served()
    assert served.load(folder / "first").name == "notes"
    assert served.load(folder / "second").name == "notes-second"
    with pytest.raises(ConfigError) as taken:
        served.load(folder / "first", "notes")
    assert taken.value.code == "duplicate-name"
    with pytest.raises(ArtifactError):
        served.load(folder / "damaged", "other")
    assert len(served.schedulers()) == 1  # one thread runs the model of both
    served.close()
