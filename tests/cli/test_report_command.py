"""`rung report` on a run folder: the rows that it prints, and the page that it opens."""

import json
import webbrowser
from dataclasses import asdict, replace

import pytest
from typer.testing import CliRunner

from rung.cli.main import app
from rung.errors import MachineError
from rung.evaluation.result import ClimbResult, Prediction, RungResult, SuspectLabel
from rung.yamlfile import sealed


@pytest.fixture
def run(tmp_path):
    """A run folder: of 30 test rows, the recommended rung has every fifth right; 31 labels are suspect."""
    suspects = (
        SuspectLabel("test", "0", "test.csv:2", "loan", "card", "message 0"),
        *(SuspectLabel("train", f"t{n}", f"train.csv:{n}", "loan", "card", f"trained {n}") for n in range(2, 32)),
    )
    rung = RungResult("zero-shot", "prompting", "macro_f1", "confirmed", "test", score=0.2, n=30)
    result = ClimbResult(
        "mail", "macro_f1", "embedded", "auto", 0, "0.1.0", "now", 1.0, None, "zero-shot", "Use zero-shot.", (rung,),
        (), {"splits": {}}, kind="category", suspects=suspects,
    )  # fmt: skip
    result.write(tmp_path)
    rows = [
        Prediction(f"{n}", f"test.csv:{n + 2}", "test", {"text": f"message {n}"}, "", ("loan",),
                   "card" if n % 5 else "loan", float(n % 5 == 0), 0.75, 1, 0.1)
        for n in range(30)
    ]  # fmt: skip
    folder = tmp_path / "rungs" / "zero-shot"
    folder.mkdir(parents=True)
    (folder / "predictions.jsonl").write_text("".join(sealed(asdict(row)) + "\n" for row in rows))
    return tmp_path


def printed(*arguments):
    done = CliRunner().invoke(app, ["report", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_wrong_rows_are_printed_with_their_place(run):
    lines = printed(run, "--rows", "wrong").splitlines()
    assert lines[:4] == [
        "test.csv:3  message 1", "  expected  loan", "  answered  card", "            75 % sure",
    ]  # fmt: skip
    assert lines[-2:] == [
        "24 rows of zero-shot: wrong, of which 20 are shown", f"Next: rung report {run} --open",
    ]  # fmt: skip
    assert len(lines) == 20 * 4 + 2
    rows = json.loads(printed(run, "--rows", "wrong", "--json"))
    assert [row["o"] for row in rows] == [f"test.csv:{n + 2}" for n in range(30) if n % 5]


def test_all_suspects_are_printed_training_rows_too(run):
    lines = printed(run, "--rows", "suspect").splitlines()
    assert lines[:8] == [
        "test.csv:2  message 0", "  expected  loan", "  likely    card", "  answered  loan", "            75 % sure",
        "train.csv:2  trained 2", "  expected  loan", "  likely    card",
    ]  # fmt: skip
    assert [line.split()[0] for line in lines if line.startswith("train")] == [f"train.csv:{n}" for n in range(2, 32)]
    assert lines[-2] == "31 rows of zero-shot: label suspect"


@pytest.mark.parametrize(("kind", "rows"), [("wrong", 0), ("broken", 0), ("suspect", 31)])
def test_rows_of_a_climb_that_measured_nothing(run, kind, rows):
    result = ClimbResult.read(run)
    none = replace(result.rungs[0], score=None, n=0)
    replace(result, rungs=(none,), decision="Nothing was measured.").write(run)
    done = CliRunner().invoke(app, ["report", str(run), "--rows", kind], catch_exceptions=False)
    assert (done.exit_code, "Nothing was measured." in done.stderr) == (0, True)
    assert f"{rows} rows of zero-shot" in done.stdout


def test_the_page_is_opened(run, monkeypatch):
    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda page: opened.append(page) or True)
    printed(run)
    assert opened == []
    printed(run, "--open")
    assert opened == [(run / "report.html").as_uri()]
    monkeypatch.setattr(webbrowser, "open", lambda page: False)
    done = CliRunner().invoke(app, ["report", str(run), "--open"])
    assert isinstance(done.exception, MachineError)
    assert done.exception.code == "no-browser"
