"""`rung cluster` on real messages, with the small sentence encoder and a model that writes what it is told to."""

import csv
import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rung.cli.main import app
from rung.clustering import WORDS, names
from rung.engines import opening
from rung.engines.base import Generation
from rung.errors import ConfigError, DataError

FILE = Path(__file__).parents[2] / "examples" / "clustering" / "messages.csv"


class Namer:
    def __init__(self, texts):
        self.texts, self.requests = texts, []

    def generate(self, requests, **_):
        self.requests = requests
        return [Generation(text, 1, 1, "stop", 0.0) for text in self.texts[: len(requests)]]


def table(file):
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def run(*arguments):
    return CliRunner().invoke(app, ["cluster", *map(str, arguments)])


def test_clusters_of_real_messages_are_named_and_agree_with_the_intents(tmp_path, monkeypatch):
    namer = Namer([f"topic {i // 2}" for i in range(12)])
    monkeypatch.setattr(opening, "open_engine", lambda model, **_: namer)
    out = tmp_path / "clusters.csv"
    ran = run(FILE, "--column", "text", "--label", "category", "--k", 12, "--out", out, "--json", "-q")
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.stdout)
    assert (found["rows"], found["labels"], len(found["clusters"]), found["noise"]) == (300, 12, 12, 0)
    assert found["adjusted_rand"] > 0.7
    assert found["normalized_mutual_information"] > 0.8
    assert [one["name"] for one in found["clusters"][:4]] == ["topic 0", "topic 0 (2)", "topic 1", "topic 1 (2)"]
    sizes = [one["rows"] for one in found["clusters"]]
    assert sizes == sorted(sizes, reverse=True)
    rows, given = table(out), table(FILE)
    assert [row["text"] for row in rows] == [row["text"] for row in given]
    assert [sum(row["cluster"] == str(n) for row in rows) for n in range(12)] == sizes
    asked = namer.requests[0].prompt[1]["content"].splitlines()
    assert [line.removeprefix("- ") for line in asked[:3]] == found["clusters"][0]["central"]
    assert namer.requests[0].constraint.value == WORDS


def test_without_a_model_clusters_have_numbers_for_names(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "open_engine", None)  # no model is opened
    out = tmp_path / "clusters.csv"
    ran = run(FILE, "--column", "text", "--k", 3, "--model", "none", "--out", out, "-q")
    assert ran.exit_code == 0, ran.output
    names = [f"cluster {number}" for number in range(3)]
    assert re.findall(r"^ *\d+  (cluster \d)$", ran.stdout, re.MULTILINE) == names
    assert {row["cluster"]: row["cluster_name"] for row in table(out)} == dict(zip("012", names, strict=True))


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("Lost cards", True),
        ("a b c d e", True),
        ("a b c d e f", False),
        ("a\nb", False),
        ("", False),
        ("- a", False),
        ("Überweisung é", True),
        ("卡片 丢失", True),
    ],
)
def test_names_have_one_to_five_words(text, fits):
    assert bool(re.fullmatch(WORDS, text)) == fits


def test_a_namesake_gets_a_number():
    assert names(Namer(["a.", "a", "a"]), [["x"], ["y"], ["z"]]) == ["a", "a (2)", "a (3)"]


@pytest.mark.parametrize(
    ("arguments", "error", "code"),
    [
        (["--column", "txt"], DataError, "missing-column"),
        (["--column", "text", "--k", "many"], ConfigError, "bad-option"),
        (["--column", "text", "--k", "0"], ConfigError, "bad-option"),
        (["--column", "text", "--method", "dbscan"], ConfigError, "unknown-name"),
        (["--column", "text", "--min-cluster-size", "3"], ConfigError, "bad-option"),
        (["--column", "text", "--out", "x.xlsx"], ConfigError, "bad-option"),
        (["--column", "text"], DataError, "bad-row"),
    ],
)
def test_wrong_commands_and_tables_are_refused(tmp_path, arguments, error, code):
    file = tmp_path / "rows.csv"
    file.write_text("text,cluster\nhello,1\n ,2\n")
    ran = run(file, *arguments, "-q")
    assert isinstance(ran.exception, error)
    assert ran.exception.code == code


def test_a_column_that_would_be_lost_is_an_error(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("text,cluster\nhello,1\ngood bye,2\n")
    ran = run(file, "--column", "text", "--k", 2, "--model", "none", "--out", tmp_path / "o.csv", "-q")
    assert ran.exception.code == "duplicate-name"
    assert not (tmp_path / "o.csv").exists()
