"""`rung run`, `chat`, `predict` and `show` on an artifact that looks documents up."""

import io
import json
import sys

import pytest

from grounded import Index as FakeIndex
from grounded import looking_in, passage
from rung.artifact.artifact import Artifact
from rung.artifact.predict_file import predict_file
from rung.cli.main import app
from rung.climbing import trust
from rung.data.rows import NOT_IN_DOCUMENTS

DOCUMENTS = [passage("guide.pdf", "A card costs 5 EUR.", page=3, start=40), passage("faq.md", "A card takes a week.")]


@pytest.fixture
def command(monkeypatch, capsys):
    def run(*arguments, answer="It costs 5 EUR [1].", typed="", **settings):
        artifact = looking_in(
            FakeIndex(DOCUMENTS), monkeypatch, answer=lambda text: answer, order="best_first", **settings
        )
        monkeypatch.setattr(Artifact, "load", lambda *_: artifact)
        monkeypatch.setattr(trust, "permits_of", lambda folder: [])  # there is no folder
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        app(list(arguments), standalone_mode=False)
        return capsys.readouterr()

    return run


def test_run_prints_the_answer_and_what_it_cites(command):
    out = command("run", "a", "what", "costs", "a", "card").out
    assert out == "It costs 5 EUR [1].\n\nSources:\n  [1] guide.pdf, page 3, characters 40 to 59\n"


def test_an_answer_without_citations_tells_what_was_read(command):
    out = command("run", "a", "what costs a card", answer="5 EUR").out
    assert out.splitlines()[2:] == [
        "Read, but not cited:", "  [1] guide.pdf, page 3, characters 40 to 59", "  [2] faq.md, characters 0 to 20"
    ]  # fmt: skip


def test_run_json_holds_the_citations(command):
    told = json.loads(command("run", "a", "what costs a card", "--json").out)
    assert (told["output"], told["written"], told["refused"]) == ("It costs 5 EUR.", "It costs 5 EUR [1].", False)
    (cited,) = told["citations"]
    assert cited == {"number": 1, "document": "guide.pdf", "title": "T", "page": 3, "start": 40, "end": 59,
                     "text": "A card costs 5 EUR.", "attached": False}  # fmt: skip


def test_a_refusal_has_no_sources(command):
    assert command("run", "a", "zebra", threshold=0.5).out == NOT_IN_DOCUMENTS + "\n"
    assert command("chat", "a", typed="zebra\n\n", threshold=0.5).out == NOT_IN_DOCUMENTS + "\n"


def test_chat_streams_answers_and_prints_their_sources(command):
    out = command("chat", "a", typed="what costs a card\nhow long takes a card\n\n").out
    assert out.count("It costs 5 EUR [1].") == 2
    first, second = out.split("Sources:\n")[1:]
    assert first.startswith("  [1] guide.pdf, page 3")
    assert second.startswith("  [1] faq.md")


def test_what_was_left_out_is_said(command):
    told = command("run", "a", "what costs a card", overflow="shorten_passages", context=60)
    assert told.err == "the prompt was longer than the model reads: 1 passages were left out\n"
    assert "faq.md" not in told.out


def test_show_names_the_index(command, monkeypatch):
    monkeypatch.setattr("rung.artifact.files.fingerprint", lambda folder: "f")  # there is no folder
    assert json.loads(command("show", "a", "--json").out)["retriever"] == "5 of index, best first"


def test_predicted_files_hold_the_citations(monkeypatch, tmp_path):
    artifact = looking_in(FakeIndex(DOCUMENTS), monkeypatch, answer=lambda text: "5 EUR [1]", order="best_first")
    (tmp_path / "rows.csv").write_text("question\nwhat costs a card\n")
    predict_file(artifact, tmp_path / "rows.csv", tmp_path / "out.jsonl", fingerprint="f")
    (line,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert line["output"] == "5 EUR"
    assert [c["document"] for c in line["citations"]] == ["guide.pdf"]
