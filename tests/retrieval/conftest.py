import hashlib

import numpy as np
import pytest

from rung.retrieval import build as building
from rung.retrieval import index as indexes
from rung.retrieval.index import terms


class WordEncoder:
    """A sentence encoder of words: a token is a word or a mark, a vector the sum of its words' random ones."""

    backend = "words"
    parameters = 0
    limit = 64

    def __init__(self):
        self.fingerprint = "words-1"
        self.embedded, self.prompts = [], {}

    def encode(self, text):
        return tuple(hash(word) for word in text.split())

    def embed(self, texts, *, role=None, progress=None):
        self.embedded += texts
        rows = [sum((self._vector(term) for term in terms(text)), np.zeros(64)) for text in texts]
        vectors = np.array(rows, np.float32).reshape(len(texts), 64)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    @staticmethod
    def _vector(term):
        seed = int.from_bytes(hashlib.sha256(term.encode()).digest()[:8], "big")
        return np.random.default_rng(seed).standard_normal(64)


@pytest.fixture
def encoder(monkeypatch, tmp_path_factory):
    """Indexes built and opened with words as tokens, in a cache of their own."""
    one = WordEncoder()
    monkeypatch.setenv("RUNG_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(building, "open_encoder", lambda *a, **k: one)
    monkeypatch.setattr(indexes, "open_encoder", lambda *a, **k: one)
    monkeypatch.setattr(indexes, "resolve", lambda reference: one)
    return one
