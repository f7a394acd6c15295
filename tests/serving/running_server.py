"""A server on loopback in a thread of the test's process, and artifacts on tiny models to serve."""

import threading
import time
from contextlib import contextmanager

import httpx
from openai import OpenAI

from rung.artifact.artifact import Artifact
from rung.artifact.parts import Signature
from rung.artifact.text import Generate
from rung.prompts.prompt import Prompt
from rung.serving.app import HttpServer, app_with, listen

BASE = "tiny-llama"
HELLO = [{"role": "user", "content": "Where is my card?"}]


class Kept:
    """A recorder that keeps what it is offered."""

    def __init__(self):
        self.interactions = []

    def offer(self, interaction):
        self.interactions.append(interaction)

    def takes(self, identity):
        return True


class Running:
    def __init__(self, served, **options):
        self.kept = Kept()
        self.app = app_with(served, **{"recorder": self.kept, **options})
        self.context = self.app.state.rung
        socket = listen("127.0.0.1", 0)
        self.port = socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = HttpServer(self.app, drain_seconds=5)
        self._thread = threading.Thread(target=self.server.run, kwargs={"sockets": [socket]}, daemon=True)
        self._thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def client(self, key="none", **options):
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=30, **options)

    def post(self, path, body, **options):
        return httpx.post(self.url + path, json=body, timeout=30, **options)

    def metric(self, name, **labels):
        return self.context.metrics.registry.get_sample_value(name, labels)

    def idle(self):
        """Wait until nothing is under way; return whether that came."""
        for _ in range(500):
            busy = [one.running or one.waiting for _, one in self.context.served.schedulers()]
            if self.metric("rung_queue") == 0 and not any(busy):
                return True
            time.sleep(0.02)
        return False

    def close(self):
        self.server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()


@contextmanager
def running(served, **options):
    server = Running(served, **options)
    server.context.close = lambda: None  # what is served goes on in the next server
    try:
        yield server
    finally:
        server.close()


def text_artifact(model, inputs=("text",), max_tokens=12, schema=None):
    """An artifact that writes text on a tiny model."""
    signature = Signature("notes", inputs, "text", "exact_match")
    prompt = Prompt("Say something about this.", "\n".join(f"{{{name}}}" for name in inputs))
    decoder = Generate(max_tokens, schema)
    return Artifact(signature, str(model), prompt, decoder, engine="torch", path=("zero-shot",))
