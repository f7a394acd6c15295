"""What objects show of themselves: short representations, and tables for notebooks."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import rung
from rung.artifact.decoder import Answer
from rung.evaluation.result import ClimbResult, Prediction, RungResult
from rung.progress import QUIET, TerminalProgress, default_progress

ROWS = [{"text": f"<b>message {number}</b>", "label": ("spam", "ham")[number % 2]} for number in range(40)]


def test_a_task_its_data_and_its_artifact_are_short_and_escaped():
    task = rung.Task(
        name="mail", instruction="Is it <spam>?", inputs=["text"], output={"column": "label", "kind": "category"},
        data=ROWS,
    )  # fmt: skip
    data = task.read()
    zero = rung.Artifact.zero_shot(task, data.labels)
    assert repr(task) == "Task(mail: text -> label)"
    assert repr(zero) == "Artifact(mail: zero-shot on embedded)"
    assert repr(data) == "Data(train: 40 rows, 5 folds)"
    shown = [each._repr_html_() for each in (task, data, zero)]
    assert not any("<b>message" in text or "<spam>" in text for text in shown)
    assert shown[1].count("&lt;b&gt;message") == 3


def test_an_answer_shows_its_text_and_how_sure_it_is():
    answer = Answer("spam", 0.934, (0.066, 0.934), 12, 0, 0.1)
    assert repr(answer) == "Answer('spam', confidence=0.934)"
    assert "93.4 %" in answer._repr_html_()


def test_results_of_a_climb_are_short():
    ran = RungResult("lora", "tuning", "accuracy", "confirmed", "test", score=0.91, n=100)
    failed = RungResult("lora", "tuning", "accuracy", "failed")
    row = Prediction(
        "7", "test.csv:8", "test", {"text": "long " * 99}, "long " * 99, ("spam",), "ham", 0.0, 0.9, 12, 0.1
    )
    climbed = ClimbResult(
        "mail", "accuracy", "embedded", "torch", 0, "0.1", "", 1.0, None, "lora", "Use lora.", (ran,), (), {}
    )
    assert repr(ran) == "RungResult(lora: accuracy 0.910 on 100 test rows)"
    assert repr(failed) == "RungResult(lora: failed)"
    assert repr(row) == "Prediction(7: 'ham', score 0)"
    assert repr(climbed) == "ClimbResult(mail: Use lora.)"


def test_progress_is_shown_where_a_person_watches(monkeypatch):
    assert default_progress() is QUIET
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert isinstance(default_progress(), TerminalProgress)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    kernel = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: kernel))
    assert isinstance(default_progress(), TerminalProgress)
