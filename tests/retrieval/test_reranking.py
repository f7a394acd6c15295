import math

import pytest

from rung.engines.base import Scored
from rung.retrieval.passage import Passage
from rung.retrieval.retriever import by_language_model


class YesEngine:
    """Says yes to passages that hold the word `gold`, more surely where it stands twice."""

    end_token = None

    def __init__(self):
        self.requests = []

    def encode(self, text):
        return tuple(text.encode())

    def score(self, requests, *, progress=None):
        self.requests += requests
        shares = [request.prompt[0]["content"].count("gold") / 10 + 0.1 for request in requests]
        return [Scored([math.log(share), math.log(1 - share)], 1, 0.0) for share in shares]


def passage(text):
    return Passage("p", "d", "Title {query}", text, None, 0, len(text))


def test_the_model_says_which_passages_help():
    engine = YesEngine()
    found = [[passage("gold"), passage("gold gold")], [], [passage("tin")]]
    scores = by_language_model(engine)(["what is it", "nothing", "what else"], found)
    assert scores == [[pytest.approx(math.log(p / (1 - p))) for p in shares] for shares in ((0.2, 0.3), (), (0.1,))]
    assert engine.requests[0].continuations == (tuple(b"yes"), tuple(b"no"))


def test_braces_in_documents_stay_as_they_are():
    engine = YesEngine()
    by_language_model(engine)(["a {passage} b"], [[passage("{query} {x}")]])
    content = engine.requests[0].prompt[0]["content"]
    assert "Passage:\nTitle {query}\n{query} {x}\n\nQuery: a {passage} b\n\nAnswer yes or no." in content
