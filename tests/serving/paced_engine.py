"""An engine without a model: it writes `word` after `word`, as fast and as wrong as a test wants."""

import threading
import time

import numpy as np

from rung.engines.base import Delta, EngineInfo
from rung.errors import EngineError


class FakeEngine:
    """`pace` is the time of a step; `piece` what every token adds; `break_at` the step that fails unforeseen."""

    def __init__(self, pace=0.0, piece="word ", break_at=None):
        self.pace, self.piece, self.break_at = pace, piece, break_at
        self.steps = 0
        self.scored = []  # rows of every call of `score`
        self.go = threading.Event()  # a step waits for it
        self.go.set()

    info = EngineInfo("fake", "fake", "cpu", "none", 0, 0, "fake")
    end_token = None

    def encode(self, text):
        return tuple(text.encode())

    def count(self, prompt):
        return len(prompt)

    def session(self):
        return FakeSession(self)

    def embed(self, texts):
        return np.ones((len(texts), 2), np.float32)

    def score(self, requests):
        self.go.wait()
        self.scored.append(len(requests))
        if any(request == "wrong" for request in requests):
            raise EngineError("context-overflow", "too long")
        return [f"scored {request}" for request in requests]


class FakeSession:
    def __init__(self, engine):
        self.engine, self.rows = engine, {}

    @property
    def active(self):
        return len(self.rows)

    def add(self, key, request):
        if request.sampling.max_tokens > 100_000:
            raise EngineError("context-overflow", "too long")
        self.rows[key] = [request, 0]

    def cancel(self, key):
        self.rows.pop(key, None)

    def step(self):
        self.engine.go.wait()
        time.sleep(self.engine.pace)
        self.engine.steps += 1
        if self.engine.steps == self.engine.break_at:
            raise ZeroDivisionError("unforeseen")
        deltas = []
        for key, row in list(self.rows.items()):
            row[1] += 1
            last = row[1] == row[0].sampling.max_tokens
            deltas.append(Delta(key, self.engine.piece, (1,), (0.0,), 3, row[1], "length" if last else None))
            if last:
                del self.rows[key]
        return deltas
