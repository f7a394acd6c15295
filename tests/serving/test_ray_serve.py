"""Ray Serve runs the application: an entrance, a deployment for each base model, artifacts that come and go."""

import asyncio
import json
import socket
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import httpx
import pytest
from openai import OpenAI

from rung.artifact.artifact import Artifact
from rung.artifact.files import fingerprint
from rung.errors import ConfigError
from rung.serving.access import create_key

pytest.importorskip("ray")
pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments")  # of Ray Serve, to pydantic

from rung.cluster.ray_serve import RayServing, _replica, answers, build  # noqa: E402

ROWS = {"rows": [{"text": "Where is my card?"}]}
CHAT = {"model": "notes", "messages": [{"role": "user", "content": "Where is my card?"}], "max_tokens": 12}


def apart(work):
    """Run a coroutine in a thread, where no browser of other tests has a loop."""
    with ThreadPoolExecutor(1) as own:
        return own.submit(lambda: asyncio.run(work)).result()


def test_settings_are_checked(artifacts):
    with pytest.raises(ValueError, match="artefacts"):
        RayServing.model_validate({"artefacts": {}})
    with pytest.raises(ConfigError, match="replicas 4 to 1"):
        build({"artifacts": {"notes": str(artifacts["notes"])}, "replicas": [4, 1]})


def test_a_request_runs_through_the_application_as_over_http(server):
    body = json.dumps({"rows": [{"text": "card"}]}).encode()

    async def pieces_of(path):
        return [piece async for piece in answers(server.app, "POST", path, "", "application/json", body)]

    def asked(path):
        return apart(pieces_of(path))

    head, *pieces = asked("/v1/tasks/intents/predict")
    assert json.loads(head)["status"] == 200
    assert (
        json.loads(b"".join(pieces))["predictions"][0]["output"]
        == (server.post("/v1/tasks/intents/predict", {"rows": [{"text": "card"}]}).json()["predictions"][0]["output"])
    )
    assert json.loads(asked("/v1/nothing")[0])["status"] == 404


@pytest.fixture
def replica(artifacts, monkeypatch):
    """A replica that keeps one artifact, with Ray's own multiplexer but without a cluster."""
    place = SimpleNamespace(app_name="rung", deployment="base-0", replica_id="first")
    monkeypatch.setattr("ray.serve.multiplex._get_internal_replica_context", lambda: place)
    controller = SimpleNamespace(record_request_routing_info=lambda info: None)  # else Ray would start a cluster
    monkeypatch.setattr("ray.serve.multiplex._get_global_client", lambda: controller)
    replica = _replica(1)({name: str(artifacts[name]) for name in ("intents", "notes")})
    yield replica
    replica._served.close()


async def status(replica, name):
    pieces = replica.answer("POST", f"/v1/tasks/{name}/predict", "", "application/json", json.dumps(ROWS).encode())
    head, *_ = [piece async for piece in pieces]
    return json.loads(head)["status"]


def test_an_artifact_that_makes_room_still_answers_the_request_that_has_it(replica):
    need = replica.need

    async def crossed(served, name):
        """Another artifact takes the place before the application goes on."""
        found = await need(served, name)
        await replica.artifact({"intents": "notes", "notes": "intents"}[name])
        assert served.find(name) is None
        return found

    async def ask():
        replica.need = crossed
        one_by_one = [await status(replica, name) for name in ("intents", "notes", "intents")]
        replica.need = need
        return one_by_one, await asyncio.gather(*(status(replica, name) for name in ("intents", "notes") * 8))

    assert apart(ask()) == ([200] * 3, [200] * 16)
    assert len(replica._served.artifacts()) == 1


def test_a_load_goes_on_when_its_client_leaves(replica):
    async def leave():
        asked = asyncio.ensure_future(status(replica, "notes"))
        while not (replica._served._loading.locked() or asked.done()):
            await asyncio.sleep(0)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        return asked.cancelled(), [await status(replica, name) for name in ("notes", "intents", "notes", "nothing")]

    assert apart(leave()) == (True, [200, 200, 200, 404])


@pytest.fixture(scope="module")
def cluster():
    import ray
    from ray import serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="rr", ignore_cleanup_errors=True) as scratch:
        ray.init(
            address="local", num_cpus=3, include_dashboard=False, object_store_memory=100 * 2**20, _temp_dir=scratch,
            _node_ip_address="127.0.0.1", log_to_driver=False,
        )  # fmt: skip
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        yield f"http://127.0.0.1:{port}"
        serve.shutdown()
        ray.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_ray_serves_the_artifacts_of_a_base_model(cluster, artifacts, server, tmp_path):
    from ray import serve

    secret, _ = create_key(tmp_path / "keys.jsonl", "anna")
    names = ("intents", "few-shot", "head", "notes")
    folders = {name: str(artifacts[name]) for name in names}
    args = {"artifacts": folders, "keep": 1, "key_file": str(tmp_path / "keys.jsonl"), "replicas": [1, 1]}
    serve.run(build(args))
    client = OpenAI(base_url=f"{cluster}/v1", api_key=secret, max_retries=0, timeout=60)
    assert {model.id for model in client.models.list()} == set(names)

    def predicted(name, base=cluster, key=secret):
        return httpx.post(
            f"{base}/v1/tasks/{name}/predict", json=ROWS, timeout=60, headers={"Authorization": f"Bearer {key}"}
        )

    for _ in range(2):  # loaded anew each time: a replica keeps one
        for name in names:
            ours, theirs = predicted(name).json(), predicted(name, server.url).json()
            assert ours["predictions"][0]["output"] == theirs["predictions"][0]["output"], name
    assert predicted("intents", key="wrong").status_code == 401
    assert predicted("nothing").json()["error"]["code"] == "model_not_found"
    message = [{"role": "user", "content": "Where is my card?"}]
    whole = client.chat.completions.create(model="notes", messages=message).choices[0].message.content
    pieces = client.chat.completions.create(model="notes", messages=message, stream=True)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices) == whole
    with ThreadPoolExecutor(16) as many:
        found = list(many.map(predicted, [name for name in names for _ in range(8)]))
    assert {answer.status_code for answer in found} == {200}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_each_base_model_has_a_deployment_that_answers_for_its_artifacts_alone(cluster, artifacts, letters_folder):
    from ray import serve

    rows = {"rows": [{"text": "ab"}]}
    folders = {"intents": artifacts["intents"], "letters": letters_folder}
    args = {"artifacts": {name: str(folder) for name, folder in folders.items()}, "replicas": [1, 1], "cpus": 0.5}
    serve.run(build(args))
    (application,) = serve.status().applications.values()
    assert set(application.deployments) == {"entrance", "base-0", "base-1"}
    for number, (name, folder) in enumerate(folders.items()):
        answered = httpx.post(f"{cluster}/v1/tasks/{name}/predict", json=rows, timeout=300).json()
        (own,) = Artifact.load(folder).predict(rows["rows"])
        assert answered["artifact"] == fingerprint(folder)
        assert answered["predictions"][0]["output"] == own.text
        for base in range(2):
            asked = ("POST", f"/v1/tasks/{name}/predict", "", "application/json", json.dumps(rows).encode())
            handle = serve.get_deployment_handle(f"base-{base}", "default").options(stream=True)
            head = next(iter(handle.answer.remote(*asked)))
            assert json.loads(head)["status"] == (200 if base == number else 404), (name, base)
    message = {"model": "nothing", "messages": [{"role": "user", "content": "card"}]}
    for path, body in (("/v1/tasks/nothing/predict", rows), ("/v1/chat/completions", message)):
        refused = httpx.post(f"{cluster}{path}", json=body, timeout=300)
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_requests_beyond_the_queue_are_refused_and_the_others_answered(cluster, artifacts):
    from ray import serve

    serve.run(build({
        "artifacts": {"notes": str(artifacts["notes"])}, "most": 1, "queue": 2, "replicas": [1, 1], "cpus": 0.5,
    }))  # fmt: skip

    def ask(_):
        return httpx.post(f"{cluster}/v1/chat/completions", json=CHAT, timeout=300)

    assert ask(0).status_code == 200
    with ThreadPoolExecutor(12) as many:
        answers = list(many.map(ask, range(24)))
    assert {answer.status_code for answer in answers} == {200, 429}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert (refused.json()["error"]["code"], refused.headers["retry-after"]) == ("queue-full", "1")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_replicas_grow_under_load_and_drop_nothing(cluster, artifacts):
    from ray import serve

    serve.run(build({
        "artifacts": {"notes": str(artifacts["notes"])}, "target": 1, "most": 4, "replicas": [1, 2], "cpus": 0.5,
    }))  # fmt: skip
    end = threading.Event()

    def ask(_):
        found = []
        while not end.is_set():
            found.append(httpx.post(f"{cluster}/v1/chat/completions", json=CHAT, timeout=120).status_code)
        return found

    def replicas():
        (application,) = serve.status().applications.values()
        return sum(
            count for state, count in application.deployments["base-0"].replica_states.items() if state == "RUNNING"
        )

    with ThreadPoolExecutor(8) as many:
        asked = [many.submit(ask, number) for number in range(8)]
        for _ in range(600):
            if replicas() == 2:
                break
            time.sleep(0.5)
        grown = replicas()
        time.sleep(3)
        end.set()
        statuses = [status for each in asked for status in each.result()]
    assert grown == 2
    assert set(statuses) == {200}
