"""What the server says of an answer from documents, whole and in pieces."""

import json
import re
import threading
from pathlib import Path

import httpx
import pytest
from running_server import running

from browser import violations
from grounded import Index as FakeIndex
from grounded import Reader, looking_in, passage
from rung.data.rows import NOT_IN_DOCUMENTS
from rung.engines.base import Delta
from rung.serving.requests import answer_fields, answers_of
from rung.serving.served import Served, ServedArtifact
from rung.serving.web.site import PageSources

WRITTEN = "A card costs 5 EUR [1]."
ASKED, BESIDE = "a card costs", "zebra"


class Paced(Reader):
    """Writes a word a step; the steps behind the first wait for `go`."""

    def session(self):
        return Steps(self)


class Steps:
    def __init__(self, engine):
        self.engine, self.rows = engine, {}

    @property
    def active(self):
        return len(self.rows)

    def add(self, key, request):
        text = self.engine.answer(self.engine.text(request.prompt))
        self.rows[key] = [request, re.split(r"(?<= )", text), 0]

    def cancel(self, key):
        self.rows.pop(key, None)

    def step(self):
        deltas = []
        for key, row in list(self.rows.items()):
            request, words, done = row
            if done:
                self.engine.go.wait(20)
            row[2] = done + 1
            last = row[2] == len(words)
            deltas.append(Delta(key, words[done], (), (), self.engine.count(request.prompt), row[2],
                                "stop" if last else None))  # fmt: skip
            if last:
                del self.rows[key]
        return deltas


@pytest.fixture
def artifact(monkeypatch):
    index = FakeIndex([passage("faq.md", "A card costs 5 EUR.")])
    return looking_in(index, monkeypatch, answer=lambda text: WRITTEN, threshold=0.5)


@pytest.fixture
def server(artifact):
    engine = Paced(lambda text: WRITTEN)
    engine.go = threading.Event()
    engine.go.set()
    served = Served()
    base = served.add_engine("none", engine)
    served._name("docs", ServedArtifact("docs", artifact, Path(), "f" * 64, "m", base, 0))
    with running(served) as server:
        server.go = engine.go
        yield server
    served.close()


def events(server, path, body):
    with httpx.stream("POST", server.url + path, json={"model": "docs", "stream": True, **body}, timeout=30) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                yield json.loads(line.removeprefix("data: "))


def question(text):
    return {"messages": [{"role": "user", "content": text}]}


def test_answers_from_documents_come_with_what_they_cite_and_are_refused_as_predicted(artifact):
    asked, beside = answers_of(artifact, [{"question": ASKED}, {"question": BESIDE}])
    told = answer_fields(artifact, asked)
    assert (asked.text, told["written"], told["refused"]) == ("A card costs 5 EUR.", WRITTEN, False)
    assert [(c["document"], c["start"], c["end"]) for c in told["citations"]] == [("faq.md", 0, 19)]
    assert (beside.text, answer_fields(artifact, beside)["refused"]) == (NOT_IN_DOCUMENTS, True)


@pytest.mark.parametrize("usage", [False, True])
def test_an_answer_is_streamed_as_it_is_written_and_ends_with_its_citations(server, artifact, usage):
    server.go.clear()
    chunks, options = [], {"stream_options": {"include_usage": True}} if usage else {}
    for chunk in events(server, "/v1/chat/completions", {**question(ASKED), **options}):
        chunks.append(chunk)
        server.go.set()  # the first piece was here while the rest was not written
    texts = [one["delta"].get("content", "") for chunk in chunks for one in chunk["choices"]]
    assert texts[0] == "A"
    assert "".join(texts) == WRITTEN
    assert ["rung" in chunk for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    wanted = artifact.predict([{"question": ASKED}])[0]
    assert chunks[-1]["rung"] == {"artifact": "f" * 64, **answer_fields(artifact, wanted)}
    assert [c["document"] for c in chunks[-1]["rung"]["citations"]] == ["faq.md"]
    if usage:
        assert (chunks[-1]["choices"], chunks[-1]["usage"]["completion_tokens"]) == ([], len(WRITTEN.split()))
    else:
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    (kept,) = server.kept.interactions
    assert (kept.actual, kept.missed, kept.prompt_tokens) == (wanted.text, False, wanted.prompt_tokens)
    whole = server.post("/v1/chat/completions", {"model": "docs", **question(ASKED)}).json()
    assert whole["choices"][0]["message"]["content"] == WRITTEN
    assert whole["rung"] == chunks[-1]["rung"]


def test_a_refusal_is_streamed_too_and_recorded_as_a_miss(server):
    chunks = list(events(server, "/v1/chat/completions", {**question(BESIDE), "n": 2}))
    said = {}
    for chunk in chunks:
        for one in chunk["choices"]:
            said[one["index"]] = said.get(one["index"], "") + one["delta"].get("content", "")
    assert said == {0: NOT_IN_DOCUMENTS, 1: NOT_IN_DOCUMENTS}
    assert (chunks[-1]["rung"]["refused"], chunks[-1]["rung"]["citations"]) == (True, [])
    (kept,) = server.kept.interactions
    assert (kept.actual, kept.missed) == (NOT_IN_DOCUMENTS, True)


def test_text_completions_say_what_they_cite_with_the_last_piece_of_each_prompt(server):
    body = {"prompt": [ASKED, BESIDE]}
    choices = [one for chunk in events(server, "/v1/completions", body) for one in chunk["choices"]]
    for index, text, refused in ((0, WRITTEN, False), (1, NOT_IN_DOCUMENTS, True)):
        own = [one for one in choices if one["index"] == index]
        assert "".join(one["text"] for one in own) == text
        assert [one.get("rung", {}).get("refused") for one in own] == [None] * (len(own) - 1) + [refused]
    whole = server.post("/v1/completions", {"model": "docs", **body}).json()["choices"]
    assert [(one["text"], one["rung"]["refused"]) for one in whole] == [(WRITTEN, False), (NOT_IN_DOCUMENTS, True)]
    assert whole[0]["rung"]["citations"][0]["document"] == "faq.md"


# ---- the playground


PLANTED = "<script>document.title = 'planted'</script>"


@pytest.fixture
def playground(monkeypatch, tmp_path):
    """Two artifacts that read the same two documents; the second cites nothing."""
    found = [
        passage("faq.md", "A card costs 5 EUR.", 7, PLANTED, page=3),
        passage("b.md", f"a card {PLANTED}", title=""),
    ]
    index, served = FakeIndex(found), Served()
    for name, text in (("docs", WRITTEN), ("plain", "5 EUR.")):
        artifact = looking_in(index, monkeypatch, answer=lambda _, text=text: text, threshold=0.5)
        base = served.add_engine(f"engine-{name}", Reader(lambda _, text=text: text))
        served._name(name, ServedArtifact(name, artifact, Path(), name * 8, "m", base, 0))
    with running(served, pages=PageSources(tmp_path / "runs")) as server:
        yield server
    served.close()


def sources(page, place=0):
    return page.locator("article.answer").nth(place).locator(".sources li").all_inner_texts()


def test_the_playground_shows_what_an_answer_cites_under_it(playground, watched):
    page = watched.page
    page.goto(f"{playground.url}/playground?a=docs")
    page.get_by_label("Beside it").select_option("plain")
    page.get_by_label("question", exact=True).fill(ASKED)
    page.get_by_role("button", name="Ask").click()
    page.locator("article.answer").nth(1).wait_for()
    assert page.locator(".said").all_inner_texts() == [WRITTEN, "5 EUR."]
    assert page.locator("article.answer h3").all_inner_texts() == ["Sources", "Read, but not cited"]
    first = f"[1] b.md, characters 0 to {7 + len(PLANTED)}\na card {PLANTED}"
    second = f"[2] {PLANTED} faq.md, page 3, characters 7 to 26\nA card costs 5 EUR."  # the nearest stands last
    assert (sources(page), sources(page, 1)) == ([first], [first, second])
    assert page.locator("#answers del, #answers ins").count() > 0  # compared as before: without the marks
    assert "[1]" not in page.locator(".diff").inner_text()
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.title() == "Playground · Rung"
    page.get_by_label("question", exact=True).fill(BESIDE)
    page.get_by_role("button", name="Ask").click()
    page.locator(".said", has_text=NOT_IN_DOCUMENTS).first.wait_for()
    assert page.locator(".sources").count() == 0
    assert watched.problems == []
