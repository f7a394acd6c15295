"""A small corpus, an index that ranks by shared words, and an engine that reads: for tests of answering."""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from rung.artifact.artifact import Artifact
from rung.artifact.parts import Signature
from rung.artifact.text import Generate
from rung.data.rows import Example, example_id
from rung.engines.base import EngineInfo, Generation
from rung.prompts.prompt import Prompt, instruction
from rung.retrieval import retriever as retriever_module
from rung.retrieval.passage import Passage
from rung.retrieval.retriever import DEFAULT, Retriever


def passage(document, text, start=0, title="T", page=None):
    return Passage(f"{document}:{start}", document, title, text, page, start, start + len(text))


def words(text):
    return set(re.findall(r"\w+", text.lower()))


def near(query, passage):
    """Return the share of the query's words that the passage has: stands in for a cosine."""
    return len(words(passage.text) & words(query)) / len(words(query))


class Index:
    """Ranks passages by the words that they share with the query, ties in order."""

    fingerprint = "f"

    def __init__(self, passages):
        self.passages, self.asked = list(passages), []

    def search(self, queries, k, settings=DEFAULT, *, rerank=None):
        if settings.mode != "dense":
            self.asked += queries
        return [[replace(p, score=near(q, p)) for p in sorted(self.passages, key=lambda p: -near(q, p))[:k]]
                for q in queries]  # fmt: skip


def rows_of(*pairs, spans=None):
    made = []
    for i, (question, answer) in enumerate(pairs):
        inputs = {"question": question}
        made.append(Example(example_id(inputs), inputs, (answer,), f"rows.csv:{i + 2}", spans=spans))
    return made


@dataclass
class Reader:
    """An engine that answers by a function of the whole prompt; a token is a word."""

    answer: object
    context: int = 10_000
    seen: list = field(default_factory=list)
    end_token = None

    @property
    def info(self):
        return EngineInfo("fake", "m", "cpu", "float32", 1, self.context, "fake")

    def text(self, prompt):
        return "\n".join(f"{m['role']}: {m['content']}" for m in prompt)

    def count(self, prompt):
        return len(self.text(prompt).split())

    def encode(self, text):
        return tuple(range(len(text.split())))

    def generate(self, requests, *, progress=None, cancelled=None):
        self.seen += [request.prompt for request in requests]
        texts = [self.answer(self.text(request.prompt)) for request in requests]
        return [Generation(t, self.count(r.prompt), 1, "stop", 0.0) for t, r in zip(texts, requests, strict=True)]

    def stream(self, request):
        yield from re.split(r"(?<= )", self.generate([request])[0].text)


def looking_in(index, monkeypatch, *, answer=lambda text: "yes [1]", context=10_000, overflow="error", **settings):
    """Return an artifact that answers questions from the index."""
    monkeypatch.setattr(retriever_module, "open_index", lambda folder: index)
    artifact = Artifact(
        Signature("docs", ("question",), "text", "exact_match"), "none", Prompt("Answer.", "{question}"), Generate(8),
        retriever=Retriever(Path("index"), "f", instruction(cite=True), **settings), overflow=overflow,
        path=("zero-shot",),
    )  # fmt: skip
    return artifact.with_engine(Reader(answer, context))
