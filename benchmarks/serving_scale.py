"""Replicas that come and go under load, 1 to 4 to 1: no request may be dropped. Local processes stand in for pods.

A proxy (nginx, least connections) is in front of `rung serve` processes. Clients ask all the time. A replica that
comes gets traffic once `/ready` answers. One that goes does what a pod does: `preStop` sleeps, meanwhile the proxy
forgets it, then SIGTERM lets it finish its answers (`--drain`). Dropped is every request without status 200.

    python benchmarks/serving_scale.py --seconds 10
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx

CLIENTS, MOST = 16, 4
PRE_STOP, NOTICED = 5.0, 1.0  # seconds that a pod waits, as in deploy/kubernetes.yaml, and until the proxy forgets it


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@dataclass
class Pod:
    """One `rung serve` process."""

    arguments: list[str]
    port: int = field(default_factory=free_port)
    began: float = field(default_factory=time.perf_counter)
    ready_seconds: float = 0.0  # from its start to `/ready`
    first_seconds: float = 0.0  # to its first answer

    def __post_init__(self) -> None:
        command = [sys.executable, "-m", "rung", "serve", *self.arguments, "--port", str(self.port), "--no-pages"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def wait(self, body: dict[str, object]) -> None:
        """Wait until it is ready, and ask it once."""
        while True:
            if self.process.poll() is not None:
                raise SystemExit(self.process.stderr.read().decode() if self.process.stderr else "no server")
            try:
                if httpx.get(f"http://127.0.0.1:{self.port}/ready").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.05)
        self.ready_seconds = time.perf_counter() - self.began
        httpx.post(f"http://127.0.0.1:{self.port}/v1/chat/completions", json=body, timeout=120).raise_for_status()
        self.first_seconds = time.perf_counter() - self.began

    def end(self) -> int:
        """End it as Kubernetes does, and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


class Proxy:
    """nginx in front of the replicas that it knows."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def know(self, pods: list[Pod]) -> None:
        """Send requests to these replicas from now on."""
        servers = "".join(f"server 127.0.0.1:{pod.port};" for pod in pods)
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        places = "".join(f"{kind}_temp_path {self.folder}/{kind};\n" for kind in kinds)
        (self.folder / "nginx.conf").write_text(f"""daemon off; pid {self.folder}/pid; error_log {self.folder}/log;
worker_processes 1; events {{}}
http {{ access_log off; {places}
  upstream rung {{ least_conn; {servers} keepalive 32; }}
  server {{ listen 127.0.0.1:{self.port};
    location / {{ proxy_pass http://rung; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header Host 127.0.0.1; proxy_buffering off; proxy_read_timeout 600s; }} }} }}
""")
        if self.process is None:
            command = ["nginx", "-p", str(self.folder), "-e", f"{self.folder}/log", "-c", f"{self.folder}/nginx.conf"]
            self.process = subprocess.Popen(command)
            while not (self.folder / "pid").exists():
                time.sleep(0.02)
        else:
            self.process.send_signal(signal.SIGHUP)  # running answers end as they began


def ask(url: str, body: dict[str, object], end: threading.Event, found: list[tuple[float, float, int]]) -> None:
    """Ask until the end; note when each request began, how long it took, and its status, 0 for none."""
    with httpx.Client(timeout=120) as client:
        while not end.is_set():
            began = time.perf_counter()
            try:
                status = client.post(f"{url}/v1/chat/completions", json=body).status_code
            except httpx.HTTPError:
                status = 0
            found.append((began, time.perf_counter() - began, status))


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def measure(arguments: list[str], model: str, seconds: float, folder: Path) -> dict[str, object]:
    message = [{"role": "user", "content": "Where is my card?"}]
    body: dict[str, object] = {"model": model, "messages": message, "max_tokens": 8}
    found: list[tuple[float, float, int]] = []
    end, marks, codes = threading.Event(), [], []
    pods = [Pod(arguments)]
    proxy = Proxy(folder)
    try:
        pods[0].wait(body)
        cold = pods[0].ready_seconds, pods[0].first_seconds
        proxy.know(pods)
        url = f"http://127.0.0.1:{proxy.port}"
        threads = [threading.Thread(target=ask, args=(url, body, end, found)) for _ in range(CLIENTS)]
        marks.append(("1 replica", time.perf_counter()))
        for thread in threads:
            thread.start()
        time.sleep(seconds)
        marks.append(("1 to 4", time.perf_counter()))
        pods += [Pod(arguments) for _ in range(MOST - 1)]
        for pod in pods[1:]:
            pod.wait(body)
        proxy.know(pods)
        marks.append(("4 replicas", time.perf_counter()))
        time.sleep(seconds)
        marks.append(("4 to 1", time.perf_counter()))
        time.sleep(NOTICED)
        proxy.know(pods[:1])
        time.sleep(PRE_STOP - NOTICED)
        codes = [pod.end() for pod in pods[1:]]
        marks.append(("1 replica again", time.perf_counter()))
        time.sleep(seconds)
        end.set()
        for thread in threads:
            thread.join()
    finally:
        end.set()
        for pod in pods:
            pod.process.terminate()
        if proxy.process is not None:
            proxy.process.terminate()
            proxy.process.wait()
        for pod in pods:
            pod.process.wait(60)
    bounds = [*(at for _, at in marks), float("inf")]
    phases = {
        name: [(took, status) for at, took, status in found if bounds[i] <= at < bounds[i + 1]]
        for i, (name, _) in enumerate(marks)
    }
    return {
        "requests": len(found), "dropped": sum(status != 200 for *_, status in found),
        "exit_codes": codes, "seconds_to_ready": round(cold[0], 1), "seconds_to_first_answer": round(cold[1], 1),
        "phases": {
            name: {"requests": len(part), "p50": round(quantile([took for took, _ in part], 0.5), 2),
                   "p99": round(quantile([took for took, _ in part], 0.99), 2)}
            for name, part in phases.items()
        },
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each steady phase")
    given = parser.parse_args()
    if shutil.which("nginx") is None:
        raise SystemExit("nginx is missing: apt-get install nginx")
    arguments = ["--model", given.model, "--engine", given.engine]
    name = Path(given.model).name if Path(given.model).exists() else given.model
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(arguments, name, given.seconds, Path(folder))))


if __name__ == "__main__":
    main()
