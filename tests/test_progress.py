import io
import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

import rung
from rung import progress
from rung.progress import TerminalProgress
from rung.retrieval.build import build_index
from rung.rungs.yardsticks import NearestRow
from rung.task import Task


class Screen(io.StringIO):
    """A terminal: what stands on it after the controls that Rung uses."""

    def isatty(self):
        return True

    def lines(self):
        rows, at = [""], 0
        for part in re.findall(r"\x1b\[\d*[A-Z]|\r|\n|[^\x1b\r\n]+", self.getvalue()):
            if part == "\n":
                at += 1
                rows += [""] * (at == len(rows))
            elif up := re.fullmatch(r"\x1b\[(\d+)A", part):
                at -= int(up[1])
            elif part == "\x1b[J":
                rows[at:] = [""]
            elif part == "\x1b[2K":
                rows[at] = ""
            elif part != "\r":
                rows[at] = part
        return rows


@pytest.fixture
def clock(monkeypatch):
    """The time in seconds, to be set."""
    now = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_lines_tell_what_is_done_what_is_left_and_the_note(clock, capsys):
    shown = TerminalProgress()
    shown.start("training", 100)
    clock[0] = 9.0
    shown.advance(3, note="loss 2.000")
    clock[0] = 25.0
    shown.advance(22, note="loss 1.000, 210 tok/s, peak 1.5 GiB")
    clock[0] = 26.0
    shown.start("scoring", 5)  # a step inside stays silent
    shown.advance(5)
    shown.finish("0.9")
    clock[0] = 130.0
    shown.advance(75)
    shown.finish("loss 0.500")
    assert capsys.readouterr().err.splitlines() == [
        "training: 25/100, 1 min 15 s left, loss 1.000, 210 tok/s, peak 1.5 GiB",
        "training: 100/100, loss 1.000, 210 tok/s, peak 1.5 GiB",
        "training: 100 in 2 min 10 s, loss 0.500",
    ]


def test_a_terminal_shows_a_counted_step_before_its_first_unit(clock, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    shown = TerminalProgress()
    shown.start("embedding", 8)
    assert capsys.readouterr().err == "\r\x1b[2Kembedding: 0/8"
    shown.start("inside", 3)
    assert capsys.readouterr().err == ""


def test_of_unknown_length_nothing_is_left(clock, capsys):
    shown = TerminalProgress()
    shown.start("reading")
    clock[0] = 10.0
    shown.advance(7)
    shown.finish()
    assert capsys.readouterr().err.splitlines() == ["reading ...", "reading: 7", "reading: 7 in 10 s"]


def test_a_silent_step_is_announced_also_inside_another(clock, capsys):
    shown = TerminalProgress()
    shown.start("answering", 100)
    assert capsys.readouterr().err == ""
    shown.start("exporting a model, once")
    assert capsys.readouterr().err == "exporting a model, once ...\n"
    clock[0] = 70.0
    shown.finish()
    shown.finish()
    shown.start("downloading")
    clock[0] = 80.0
    shown.finish()
    assert capsys.readouterr().err.splitlines()[1:] == ["downloading ...", "downloading: 10 s"]


def test_a_board_stands_below_what_is_said_and_above_the_step(clock, monkeypatch):
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "30")
    shown = TerminalProgress()
    shown.start("zero-shot", 10)
    shown.board(["climb: 1 s", "  tfidf-head  75 %"])
    clock[0] = 1.0
    shown.advance(3)
    assert screen.lines() == ["climb: 1 s", "  tfidf-head  75 %", "zero-shot: 3/10, 2 s left"]
    shown.say("proven better")
    clock[0] = 2.0
    shown.advance(3)
    shown.board(["climb: 2 s", "  tfidf-head  75 %", "  a name that is too long for the screen"])
    assert screen.lines() == ["proven better", "climb: 2 s", "  tfidf-head  75 %", "  a name that is too long for", ""]
    shown.finish()
    shown.board(())
    assert screen.lines() == ["proven better", "zero-shot: 6 in 2 s", ""]


def test_elsewhere_a_board_is_a_line_every_ten_seconds(clock, capsys):
    shown = TerminalProgress()
    for second in range(0, 25, 4):
        clock[0] = second
        shown.board(["climb"], f"{second} s: tfidf-head 75 %")
    assert capsys.readouterr().err.splitlines() == [f"{second} s: tfidf-head 75 %" for second in (0, 12, 24)]


@pytest.fixture
def outputs(monkeypatch):
    """A notebook: its outputs, each with what was drawn in it, HTML where there is some."""
    outputs = []

    class Handle:
        def __init__(self, bundle):
            self.texts = []
            outputs.append(self)
            self.update(bundle, raw=True)

        def update(self, bundle, *, raw):
            assert raw
            self.texts.append(bundle.get("text/html", bundle["text/plain"]))

    def display(bundle, *, raw, display_id):
        assert (raw, display_id) == (True, True)  # a bundle by type, in an output that can be updated
        return Handle(bundle)

    kernel = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: kernel))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    return outputs


def test_in_a_notebook_a_board_is_drawn_in_one_output(outputs, capsys):
    shown = TerminalProgress()
    for _ in range(2):  # two climbs
        shown.board(["climb: 1 s", "  tfidf-head  75 %"], "tfidf-head 75 %")
        shown.board(["climb: 2 s", "  \x1b[31mtfidf-head  80 %"], "tfidf-head 80 %")
        shown.board(())
        shown.board(())
    assert [each.texts for each in outputs] == [
        ["climb: 1 s\n  tfidf-head  75 %", "climb: 2 s\n  \ufffd[31mtfidf-head  80 %", ""]
    ] * 2
    assert capsys.readouterr().err == ""


def test_in_a_notebook_a_step_is_a_bar_that_is_drawn_in_one_output(clock, outputs, capsys):
    shown = TerminalProgress()
    shown.start("answering", 0)  # an empty step leaves nothing behind
    shown.finish()
    shown.start("a <model>", 40)
    clock[0] = 0.1
    shown.advance(4)  # too soon to draw again
    clock[0] = 10.0
    shown.advance(6, note="loss 2 < 3")
    shown.start("exporting")  # a step inside it: a line
    shown.finish()
    shown.say("proven better")
    clock[0] = 40.0
    shown.advance(30)
    shown.finish("loss 1")
    shown.start("reading")
    clock[0] = 45.0
    shown.advance(7)
    shown.finish()
    assert [each.texts for each in outputs] == [
        ['<progress aria-label="answering"></progress> answering: 0/0', "",
         '<progress aria-label="a &lt;model&gt;" max="40" value="0"></progress> a &lt;model&gt;: 0/40',
         '<progress aria-label="a &lt;model&gt;" max="40" value="10"></progress> '
         "a &lt;model&gt;: 10/40, 30 s left, loss 2 &lt; 3",
         '<progress aria-label="a &lt;model&gt;" max="40" value="40"></progress> a &lt;model&gt;: 40/40, loss 2 &lt; 3',
         "a <model>: 40 in 40 s, loss 1"],
        ['<progress aria-label="reading"></progress> reading ...',
         '<progress aria-label="reading"></progress> reading: 7', "reading: 7 in 5 s"],
    ]  # fmt: skip
    assert capsys.readouterr().err == "exporting ...\nproven better\n"


def test_in_a_notebook_long_work_shows_a_bar_by_itself(outputs, tiny_zero, data, tmp_path, monkeypatch):
    monkeypatch.setattr("rung.rungs.features._VECTORS", {})  # of another test
    # Answers are remembered, also those of other tests: each work has rows that nobody else asks.
    new = [replace(each, inputs={"text": f"{each.inputs['text']} In a notebook."}) for each in data.test]
    rows = [dict(example.inputs) for example in new]
    (tmp_path / "guide.md").write_text("Cards arrive within a week.")
    asking = Task(
        name="guide", instruction="Answer.", inputs=["question"], output={"kind": "text", "column": "answer"},
        corpus={"files": str(tmp_path), "encoder": "embedded-encoder"},
    )  # fmt: skip
    works = {
        "fit": lambda: NearestRow().fit(tiny_zero, data), "predict": lambda: tiny_zero.predict(rows[:3]),
        "rung.predict": lambda: rung.predict(tiny_zero, rows[3:6]),
        "compare": lambda: rung.compare(tiny_zero, tiny_zero, new[6:9]), "index": lambda: build_index(asking),
    }  # fmt: skip
    for name, work in works.items():
        outputs.clear()
        work()
        drawn = [text for each in outputs for text in each.texts]
        assert any(text.startswith("<progress aria-label=") for text in drawn), name


def test_outside_of_notebooks_a_board_imports_nothing(monkeypatch):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    TerminalProgress().board(["climb: 1 s"], "tfidf-head 75 %")
    assert "IPython" not in sys.modules
