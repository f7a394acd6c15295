"""Clients that leave, stall, flood or attack; engines that fail; a server that is told to end."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import httpx
import openai
import pytest
from paced_engine import FakeEngine
from pydantic import ValidationError
from running_server import HELLO, running

from rung.serving.access import Access
from rung.serving.app import listen
from rung.serving.context import ServerContext
from rung.serving.limits import Refused, RequestLimits, check_json
from rung.serving.schemas import ChatRequest
from rung.serving.served import Served


@pytest.fixture
def serving():
    """Return a function that serves a fake engine; everything ends with the test."""
    open_servers = []

    def serve(engine=None, **options):
        engine = engine or FakeEngine()
        served = Served()
        served.add_engine("fake", engine)
        context = running(served, **options)
        server = context.__enter__()
        open_servers.append((context, served, engine))
        return server

    yield serve
    for context, served, engine in open_servers:
        engine.go.set()
        context.__exit__(None, None, None)
        served.close()


def ask(**options):
    return {"model": "fake", "messages": HELLO, "max_tokens": 5, **options}


def send(server, body, path="/v1/chat/completions", headers=""):
    """Send a request on a socket of our own and return the socket."""
    data = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", server.port))
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{headers}"
    connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    return connection


def all_of(connection):
    """Read until the server closes, and close as well."""
    with connection:
        return b"".join(iter(lambda: connection.recv(65536), b""))


def until(condition):
    for _ in range(6000):  # a minute, on a busy machine
        if condition():
            return True
        time.sleep(0.01)
    return False


# ---- clients


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_completion(serving, stream):
    engine = FakeEngine(pace=0.005)
    server = serving(engine)
    scheduler = server.context.served.schedulers()[0][1]
    connection = send(server, ask(max_tokens=100_000, stream=stream))
    assert until(lambda: scheduler.running == 1)
    if stream:
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    connection.close()
    assert server.idle()
    assert server.metric("rung_cancelled_total") == 1
    assert server.post("/v1/chat/completions", ask()).json()["choices"][0]["message"]["content"] == "word " * 5


def test_many_clients_that_leave_keep_no_place_in_the_queue(serving):
    server = serving(FakeEngine(pace=0.002), limits=RequestLimits(queue=8))
    for _ in range(5):
        for connection in [send(server, ask(max_tokens=100_000, stream=True)) for _ in range(8)]:
            connection.close()
        assert server.idle()
    assert server.post("/v1/chat/completions", ask()).status_code == 200


def test_a_full_queue_says_when_to_come_again_and_harms_nobody_inside(serving):
    engine = FakeEngine()
    engine.go.clear()
    server = serving(engine, limits=RequestLimits(queue=2))
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(server.post("/v1/chat/completions", ask()))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    assert until(lambda: server.metric("rung_queue") == 2)
    refused = server.post("/v1/chat/completions", ask())
    assert refused.status_code == 429
    assert int(refused.headers["Retry-After"]) >= 1
    assert refused.json()["error"]["code"] == "queue-full"
    with pytest.raises(openai.RateLimitError):
        server.client().chat.completions.create(**ask())
    engine.go.set()
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [200, 200]
    assert server.idle()


def test_a_client_that_does_not_read_is_given_up(serving):
    server = serving(FakeEngine(piece="x" * 200_000), limits=RequestLimits(write_seconds=0.3))
    connection = send(server, ask(max_tokens=100_000, stream=True))
    assert connection.recv(20).startswith(b"HTTP/1.1 200")
    assert server.idle()
    connection.close()


def test_a_body_that_does_not_come_is_not_waited_for(serving):
    server = serving(limits=RequestLimits(body_seconds=0.2))
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{")
    assert b" 408 " in all_of(connection)


def half_open(server, count=1):
    connections = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(count)]
    for connection in connections:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nX:")
    return connections


def get(server, path="/health"):
    """The status of a request on a new connection; None if it is closed."""
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        try:
            answer = connection.recv(100)
        except ConnectionResetError:
            return None
        return int(answer[9:12]) if answer else None


@pytest.mark.parametrize("before", [b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"])
def test_a_head_that_does_not_come_is_not_waited_for(serving, before):
    """Neither the first one, nor the next one on a connection that stays open."""
    server = serving(limits=RequestLimits(head_seconds=0.2))
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        if before:
            connection.sendall(before)
            answer = b""
            while not answer.endswith(b"}"):
                answer += connection.recv(1000)
        for attempt in range(100):  # more of it every 50 ms does not help
            try:
                connection.sendall(b" y" if attempt else b"GET /v1/models HTTP/1.1\r\nX:")
                connection.settimeout(0.05)
                assert connection.recv(100) == b""
                return
            except TimeoutError:
                continue
            except ConnectionError:
                return
    raise AssertionError("the connection is still open after five seconds")


@pytest.mark.parametrize("limits", [RequestLimits(connections=8), RequestLimits(per_address=8)])
def test_connections_without_a_request_keep_nobody_out(serving, limits):
    server = serving(limits=limits)
    waiting = half_open(server, 40)
    assert [get(server) for _ in range(10)] == [200] * 10
    assert len(server.server.server_state.connections) <= 8  # the oldest are closed
    for connection in waiting:
        connection.close()


def test_probes_are_answered_by_a_server_that_is_full(serving):
    engine = FakeEngine()
    engine.go.clear()
    server = serving(engine, limits=RequestLimits(connections=2))
    busy = [send(server, ask()) for _ in range(2)]
    assert until(lambda: server.metric("rung_queue") == 2)
    assert [get(server, path) for path in ("/health", "/ready", "/metrics")] == [200] * 3
    full = server.post("/v1/chat/completions", ask())
    assert (full.status_code, full.json()["error"]["code"], full.headers["Retry-After"]) == (503, "server-full", "1")
    engine.go.set()
    for connection in busy:
        assert connection.recv(20).startswith(b"HTTP/1.1 200")
        connection.close()


def test_an_address_that_has_all_its_places_in_use_gets_no_more(serving):
    engine = FakeEngine()
    engine.go.clear()
    server = serving(engine, limits=RequestLimits(per_address=2))
    busy = [send(server, ask()) for _ in range(2)]
    assert until(lambda: server.metric("rung_queue") == 2)
    assert get(server) is None
    engine.go.set()
    for connection in busy:
        assert connection.recv(20).startswith(b"HTTP/1.1 200")
        connection.close()
    assert until(lambda: get(server) == 200)


def test_pieces_are_sent_at_once():
    with listen("127.0.0.1", 0) as opened:
        assert opened.proto == socket.IPPROTO_TCP  # else asyncio leaves Nagle's algorithm on


# ---- bodies


def test_a_hundred_megabytes_are_refused_before_they_are_read(serving):
    server = serving()
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 104857600\r\n\r\n{")
    answer = all_of(connection)
    assert b" 413 " in answer
    assert b"body-too-long" in answer


def test_a_body_without_a_length_is_counted(serving):
    server = serving()

    def pieces():
        for _ in range(100):
            yield b"x" * 2**20

    try:
        status = httpx.post(f"{server.url}/v1/chat/completions", content=pieces(), timeout=30).status_code
    except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
        status = 413  # the server closed the connection while we were still sending
    assert status == 413
    assert server.post("/v1/chat/completions", ask()).status_code == 200


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_json_ten_thousand_levels_deep_is_refused(serving, opening):
    server = serving()
    closing = "]" if opening == "[" else "}"
    body = opening * 10_000 + "1" + closing * 10_000
    answer = httpx.post(
        f"{server.url}/v1/chat/completions", content=body, headers={"Content-Type": "application/json"}, timeout=30
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "json-too-deep")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"a": [1, {"b": "]]}}[[[["}], "c\\"[[": {}}', None),
        (b'"never closed ' + b"[" * 100, None),
        (b"", None),
        (b'{"a": "' + b":" * 20_001 + b'"}', None),
        (b"[" * 64 + b"]" * 64, None),
        (b"[" * 65, "json-too-deep"),
        (b"{" + b'"k":1,' * 20_001, "json-too-many-keys"),
    ],
)
def test_brackets_and_keys_are_counted_outside_strings(body, code):
    refused = None
    try:
        check_json(body, RequestLimits())
    except Refused as error:
        refused = error.code
    assert refused == code


@pytest.mark.parametrize(
    "wrong",
    [
        {"messages": [{"role": "user", "content": [1] * 100_000}]},
        {"stop": [1] * 100_000},
        {"tools": [1] * 100_000},
    ],
)
def test_checking_ends_at_the_first_wrong_item(wrong):
    with pytest.raises(ValidationError) as error:
        ChatRequest.model_validate({"model": "m", "messages": HELLO} | wrong)
    assert error.value.error_count() < 5


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"model": "fake", "messages": [{"role": "user", "content": "\\ud800"}]}', "bad-text"),
        (b'{"model": "fake", ', "invalid-request"),
        (b"\xff\xfe", "invalid-request"),
        (b"[]", "invalid-request"),
        (b'{"model": "fake", "messages": []}', "invalid-request"),
    ],
)
def test_broken_bodies_have_an_error_in_the_envelope(serving, body, code):
    answer = httpx.post(
        f"{serving().url}/v1/chat/completions", content=body, headers={"Content-Type": "application/json"}, timeout=30
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == code
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"messages": []}, "messages: it is empty"),
        ({"mesages": HELLO}, "mesages: the server does not know this field"),
        ({"frequency_penalty": 0.5}, "frequency_penalty: this server does not apply it: leave it out"),
        ({"logit_bias": {"5": 1}}, "logit_bias: this server does not apply it: leave it out"),
        ({"max_tokens": 0}, "max_tokens: it should be greater than or equal to 1"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content: it should be a valid string"),
        (None, "the body is not JSON: Expecting value at character 0"),
    ],
)
def test_wrong_requests_are_told_in_plain_words(serving, fields, told):
    body = b"model=fake" if fields is None else json.dumps({"model": "fake", "messages": HELLO} | fields).encode()
    answer = httpx.post(
        f"{serving().url}/v1/chat/completions", content=body, headers={"Content-Type": "application/json"}, timeout=30
    )
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, told)


def test_a_whole_surrogate_pair_is_a_character(serving):
    body = b'{"model": "fake", "max_tokens": 1, "messages": [{"role": "user", "content": "\\ud83d\\ude00"}]}'
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{serving().url}/v1/chat/completions", content=body, headers=headers, timeout=30)
    assert answer.status_code == 200


def test_unknown_paths_and_methods_have_the_envelope(serving):
    server = serving()
    missing = httpx.get(f"{server.url}/v1/nothing")
    wrong = httpx.get(f"{server.url}/v1/chat/completions")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not-found")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method-not-allowed")


# ---- the engine


def test_an_engine_that_fails_is_told_of_and_goes_on_with_the_next_request(serving):
    server = serving(FakeEngine(break_at=3))
    answer = server.post("/v1/chat/completions", ask())
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "generation-failed"
    assert "unforeseen" not in answer.text  # what went wrong inside belongs into the log
    assert server.post("/v1/chat/completions", ask()).status_code == 200
    assert server.metric("rung_failures_total", code="generation-failed") == 1


def test_an_engine_that_fails_in_a_stream_ends_it_with_an_error(serving):
    server = serving(FakeEngine(break_at=3, pace=0.05))
    stream = server.client().chat.completions.create(**ask(stream=True))
    pieces = []
    with pytest.raises(openai.APIError, match="engine failed"):
        pieces.extend(chunk.choices[0].delta.content for chunk in stream)
    assert "".join(pieces) == "word word "
    assert server.idle()


def test_calls_of_several_clients_run_together_and_fail_apart():
    from rung.errors import EngineError
    from rung.serving.scheduler import Scheduler

    engine = FakeEngine()
    engine.go.clear()
    scheduler = Scheduler(engine, "fake")
    first = scheduler.score(["a"])
    assert until(lambda: scheduler.waiting == 0)  # it is in the engine, which waits
    futures = [scheduler.score([name]) for name in ("b", "wrong", "c")]
    engine.go.set()
    assert first.result() == ["scored a"]
    assert futures[0].result() == ["scored b"]
    assert futures[2].result() == ["scored c"]
    with pytest.raises(EngineError):
        futures[1].result()
    assert engine.scored == [1, 3, 1, 1, 1]
    scheduler.close()
    with pytest.raises(EngineError) as closed:
        scheduler.score(["d"])
    assert closed.value.code == "model-unloaded"


# ---- the end

SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from paced_engine import FakeEngine
from rung.serving.app import app_with
from rung.serving.served import Served
from rung.serving.app import HttpServer, listen
served = Served()
served.add_engine("fake", FakeEngine(pace=0.02))
socket = listen("127.0.0.1", 0)
print(socket.getsockname()[1], flush=True)
HttpServer(app_with(served), drain_seconds=20).run(sockets=[socket])
"""


def test_a_server_that_is_told_to_end_finishes_what_is_under_way():
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        port = int(process.stdout.readline())
        url = f"http://127.0.0.1:{port}"
        assert until(lambda: _reached(url))
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        pieces = []
        for chunk in client.chat.completions.create(**ask(max_tokens=60, stream=True)):
            pieces.append(chunk.choices[0].delta.content or "")
            if len(pieces) == 3:
                process.send_signal(signal.SIGTERM)
        assert "".join(pieces) == "word " * 60
        assert process.wait(20) in (0, -signal.SIGTERM)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/ready")


def test_an_engine_that_does_not_return_does_not_outlast_the_drain():
    script = SCRIPT.replace("FakeEngine(pace=0.02)", "engine").replace("drain_seconds=20", "drain_seconds=1")
    script = script.replace("served = Served()", "engine = FakeEngine()\nengine.go.clear()\nserved = Served()")
    script = "import rung.serving.app\nrung.serving.app.GRACE = 0.3\n" + script
    command = [sys.executable, "-c", script, str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"
        assert until(lambda: _reached(url))
        port = int(url.rsplit(":", 1)[1])
        asking = send(SimpleNamespace(port=port), ask())
        assert until(lambda: "rung_queue 1.0" in httpx.get(f"{url}/metrics").text)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=20)
        asking.close()
    assert process.returncode == 0
    assert "the server ends without it" in said


def _reached(url):
    try:
        return httpx.get(f"{url}/ready").json() == {"status": "ready"}
    except httpx.ConnectError:
        return False


def test_long_rows_are_answered_one_after_the_other():
    """Side by side, a few of them would take the interpreter from all others."""
    together, most = set(), []

    def work(number):
        together.add(number)
        most.append(len(together))
        time.sleep(0.05)
        together.discard(number)

    async def ask(long):
        most.clear()
        await asyncio.gather(*(server.answer(work, number, long=long) for number in range(4)))
        return max(most)

    def asked(long):
        with ThreadPoolExecutor(1) as own:  # where no browser of other tests has a loop
            return own.submit(lambda: asyncio.run(ask(long))).result()

    server = ServerContext(Served(), Access(), RequestLimits(), None, None)
    try:
        assert (asked(long=True), asked(long=False) > 1) == (1, True)
    finally:
        server.close()
