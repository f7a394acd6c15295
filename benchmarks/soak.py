"""A server under mixed traffic: valid, malformed and hostile requests of many clients at once.

    python benchmarks/soak.py                     # 10,000 requests by 64 clients, about two minutes on two cores

It serves a head on TF-IDF for BANKING77 with capture, by the command, on loopback. First the same clients send valid
requests alone (the quiet server), then the mixture. No response may be a 5xx; a 503 or 429 that sheds load counts
apart. The server's memory must stay flat, and the p99 of valid requests within twice that of the quiet server.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

from _common import EXAMPLES, banking77_texts, finish

PROCESSES = 4  # of clients, so that their own lock does not count as the server's time
PREDICT, CHAT, FEEDBACK = "/v1/tasks/banking77/predict", "/v1/chat/completions", "/v1/feedback"
JSON = {"Content-Type": "application/json"}
OK, REFUSED, SHED, GONE, FAILED = "answered", "refused", "shed", "closed", "5xx"


def artifact(folder: Path) -> Path:
    """Fit the head, which takes seconds and no language model."""
    from rung import Artifact, Task
    from rung.rungs import get

    task = Task.load(EXAMPLES / "banking77" / "task.yaml")
    data = task.read()
    return get("tfidf-head", task).fit(Artifact.zero_shot(task, data.labels), data).save(folder / "artifact")


def malformed(rng: random.Random) -> tuple[str, bytes]:
    """A request that a careless client might send."""
    return rng.choice([
        (PREDICT, b""), (PREDICT, b"{"), (PREDICT, b"[]"), (PREDICT, b"null"), (PREDICT, b"\xff\xfe"),
        (PREDICT, b'{"rows": []}'), (PREDICT, b'{"rows": [{"txt": "a"}]}'), (PREDICT, b'{"rows": [1, 2]}'),
        (PREDICT, b'{"rows": [{"text": 1}], "top": -1}'), (PREDICT, b'{"rows": [{"text": "a"}], "more": 1}'),
        (CHAT, b'{"model": "none", "messages": []}'), (CHAT, b'{"model": "banking77", "messages": "hello"}'),
        (CHAT, b'{"model": "banking77", "messages": [{"role": "king", "content": "a"}]}'),
        (FEEDBACK, b'{"id": "unknown"}'), (FEEDBACK, b'{"id": "unknown", "thumb": "sideways"}'),
        ("/v1/tasks/none/predict", b'{"rows": [{"text": "a"}]}'), ("/v1/nothing", b"{}"),
    ])  # fmt: skip


def hostile(rng: random.Random) -> tuple[str, bytes]:
    """A request that costs the server as much as it can."""
    row = b'{"rows": [{"text": "%s"}]}'
    return rng.choice([
        (PREDICT, b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        (PREDICT, b"{" + b",".join(b'"k%d":1' % i for i in range(100_000)) + b"}"),
        (CHAT, b'{"model": "banking77", "messages": [{"role": "user", "content": [' + b"1," * 200_000 + b"1]}]}"),
        (CHAT, b'{"model": "banking77", "stop": [' + b"1," * 200_000 + b'1], "messages": []}'),
        (CHAT, b'{"model": "banking77", "n": 1000000000, "messages": [{"role": "user", "content": "a"}]}'),
        (CHAT, b'{"model": "banking77", "temperature": NaN, "messages": [{"role": "user", "content": "a"}]}'),
        (CHAT, b'{"model": "banking77", "seed": ' + b"9" * 4000 + b', "messages": []}'),
        (PREDICT, row % (b"eyJaaaaaaaa-" * 8_000)), (PREDICT, row % (b"word " * 100_000)),
        (PREDICT, row % (b"a" * 500_000)),        (PREDICT, row % (b"\\u0000\\ud83d\\ude00" * 1_000)),
        (PREDICT, row % (b"\\ud800" * 1_000)),
        (PREDICT, row % (b"a@" * 50_000)), (PREDICT, row % (b"-----BEGIN PRIVATE KEY" * 5_000)),
        (PREDICT, row % b"{text} {0.__class__} {{7*7}} {% raw %} <|im_end|>"), (PREDICT, b'"' * 500_000),
        (FEEDBACK, b'{"id": "x\'; DROP TABLE interactions--", "expected": "' + b"eyJaaaaaaaa-" * 8_000 + b'"}'),
        ("/v1/tasks/..%2f..%2fetc/predict", b'{"rows": [{"text": "a"}]}'), ("/" + "a" * 60_000, b"{}"),
    ])  # fmt: skip


RAW = (  # what is no request, each on a connection of its own
    b"GET /v1/models HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
    b"POST /v1/feedback HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    b"POST /v1/feedback HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /v1/feedback HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{",  # and then leaves
    b"GET /v1/models HTTP/1.1\r\nX:",  # the same
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),  # TLS
)


def outcome(status: int) -> str:
    """Name what a status means here."""
    if status in (429, 503):
        return SHED
    return FAILED if status >= 500 else OK if status < 400 else REFUSED


def one(connection: http.client.HTTPConnection, path: str, body: bytes) -> str:
    """Send a request and read the response."""
    try:
        connection.request("POST", path, body, JSON)
        response = connection.getresponse()
        response.read()
        return outcome(response.status)
    except (OSError, http.client.HTTPException):
        connection.close()  # opened again by the next request
        return GONE


def raw(port: int, data: bytes) -> str:
    """Send bytes on a connection of their own, wait a moment, and leave."""
    with socket.create_connection(("127.0.0.1", port), timeout=0.3) as connection:
        try:
            connection.sendall(data)
            first = connection.recv(100)
        except OSError:
            return GONE
        return outcome(int(first[9:12])) if first.startswith(b"HTTP/1.1 ") else GONE


def client(port: int, requests: int, seed: int, *, quiet: bool) -> list[tuple[str, str, float]]:
    """One client's requests, one after the other: kind, outcome, seconds."""
    rng, texts, done = random.Random(seed), banking77_texts(), []
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for _ in range(requests):
        kind = "valid" if quiet else rng.choices(("valid", "malformed", "hostile", "raw"), (60, 20, 15, 5))[0]
        start = time.perf_counter()
        if kind == "valid":
            body = json.dumps({"rows": [{"text": text} for text in rng.choices(texts, k=4)]}).encode()
            ended = one(connection, PREDICT, body)
        elif kind == "raw":
            ended = raw(port, rng.choice(RAW))
        else:
            ended = one(connection, *(malformed if kind == "malformed" else hostile)(rng))
        done.append((kind, ended, time.perf_counter() - start))
    connection.close()
    return done


def clients(port: int, requests: int, seeds: list[int], quiet: bool) -> list[tuple[str, str, float]]:
    """The clients of one process, one thread each."""
    with ThreadPoolExecutor(len(seeds)) as pool:
        parts = pool.map(lambda seed: client(port, requests, seed, quiet=quiet), seeds)
        return [each for part in parts for each in part]


def run(port: int, requests: int, count: int, *, quiet: bool) -> list[tuple[str, str, float]]:
    """All clients at once."""
    seeds = [list(range(first, count, PROCESSES)) for first in range(PROCESSES)]
    each = max(1, requests // count)
    with multiprocessing.get_context("fork").Pool(PROCESSES) as pool:
        parts = pool.starmap(clients, zip(repeat(port), repeat(each), seeds, repeat(quiet)))
        return [each for part in parts for each in part]


def megabytes(process: int) -> float:
    """The resident memory of a process."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def p99(done: list[tuple[str, str, float]]) -> float:
    """The 99th percentile of the seconds of valid requests."""
    seconds = sorted(spent for kind, _, spent in done if kind == "valid")
    return seconds[int(0.99 * len(seconds))]


def main() -> None:
    """Soak the server and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=64)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        command = [sys.executable, "-m", "rung", "serve", str(artifact(folder)), "--port", "0", "--no-pages"]
        command += ["--capture", "on", "--store", str(folder / "f.db")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                port = int(server.stdout.readline().rsplit(":", 1)[1].split("/")[0])
                run(port, options.requests // 10, options.clients, quiet=True)  # warm
                calm = run(port, options.requests // 5, options.clients, quiet=True)
                memory, mixed = [megabytes(server.pid)], []
                for part in range(5):
                    mixed += run(port, options.requests // 5, options.clients, quiet=False)
                    memory.append(megabytes(server.pid))
                    print(f"part {part + 1} of 5: {memory[-1]:.0f} MB", file=sys.stderr, flush=True)
                after = run(port, options.requests // 5, options.clients, quiet=True)
            finally:
                server.terminate()
                ended = server.wait(60)
    counts = Counter(f"{kind} {ended}" for kind, ended, _ in mixed)
    print(*(f"{name}: {count}" for name, count in sorted(counts.items())), sep="\n")
    print(f"p99 of valid requests: quiet {p99(calm):.3f} s, mixed {p99(mixed):.3f} s, quiet again {p99(after):.3f} s")
    print(f"memory: {', '.join(f'{each:.0f}' for each in memory)} MB; the server ended with {ended}")
    failed = sum(count for name, count in counts.items() if name.endswith(FAILED))
    lost = sum(count for name, count in counts.items() if name.startswith("valid") and not name.endswith((OK, SHED)))
    ratios = {
        "no 5xx": float(failed == 0 and ended == 0), "valid answered or shed": float(lost == 0),
        "flat memory": memory[1] / memory[-1], "p99 quiet / mixed": p99(calm) / p99(mixed),
    }  # fmt: skip
    goals = {"no 5xx": 1.0, "valid answered or shed": 1.0, "flat memory": 0.9, "p99 quiet / mixed": 0.5}
    finish("soak", ratios, goals)


if __name__ == "__main__":
    main()
