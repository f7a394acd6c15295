import importlib.util
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rung.artifact.artifact import Artifact
from rung.artifact.text import Generate
from rung.engines import opening as engine_choice
from rung.engines.base import Generation, Scored
from rung.engines.opening import (
    UNMEASURED,
    Choice,
    choose,
    choosing_seconds,
    expected_speedup,
    explain,
    judge,
    known,
    settled,
)
from rung.errors import EngineError
from rung.machine import Machine
from rung.models.reference import resolve
from rung.progress import QUIET, Quiet


def test_the_faster_one_is_chosen_if_its_text_can_be_trusted():
    assert judge(3.0, 1.0, 0.01).engine == "openvino"
    assert "3.0 times" in judge(3.0, 1.0, 0.01).reason
    assert judge(0.9, 1.0, 0.01).engine == "torch"
    for agreement, logprob_diff in ((0.5, 0.01), (1.0, 0.9), (0.0, float("inf"))):
        assert judge(9.0, agreement, logprob_diff).engine == "torch"
        assert "trusted" in judge(9.0, agreement, logprob_diff).reason


def test_a_token_that_is_as_likely_counts_as_equal():
    """Which of two tokens within a tenth of a nat comes first depends on the processor."""

    def engine(texts, logprobs, scored=()):
        answers = [Generation(text, 9, 1, "length", 0.0, (value,)) for text, value in zip(texts, logprobs, strict=True)]
        left = iter(scored)
        return SimpleNamespace(
            generate=lambda requests, **_: (answers * 8)[: len(requests)],
            score=lambda requests, **_: [Scored(np.array([next(left)]), 9, 0.0)],
            tokenizer=SimpleNamespace(encode_plain=lambda text: [ord(char) for char in text]),
        )

    same, near, far, half = (-1.0, -1.0), (-1.0, -1.1), (-1.0, -3.0), (-1.0, None)
    own = engine("aaaa", [pair[0] for pair in (same, near, far, half)], [-1.1, -3.0] * 8)
    fast = engine(["a", "b", "c", ""], [-1.02, -1.0, -2.8, -1.0])
    share, apart = engine_choice._difference(fast, own, QUIET)
    assert share == 0.5  # the first and the second of four; the last is no token that can be scored
    assert apart == pytest.approx((0.02 + 0.1 + 0.2) / 3)


def test_it_is_measured_once_and_remembered(monkeypatch, tmp_path):
    files = resolve("embedded")
    monkeypatch.setenv("RUNG_CACHE", str(tmp_path))
    calls = []
    monkeypatch.setattr(engine_choice, "_measured", lambda *a: calls.append(1) or judge(4.0, 1.0, 0.02))
    assert known(files) is None
    assert choose(files) == choose(files) == known(files)
    assert len(calls) == 1


def test_nothing_is_measured_without_openvino(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino_genai" else found(name))
    assert choose(resolve("embedded")) == Choice("torch", "openvino-genai is not installed")


@pytest.mark.parametrize("code", ["export-unsupported", "export-failed"])
def test_torch_runs_what_openvino_cannot_export_and_a_failure_is_none(monkeypatch, code):
    def refuse(*_, **__):
        raise EngineError(code, "cannot be exported")

    monkeypatch.setattr(engine_choice, "open_openvino", refuse)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if code == "export-failed":  # such as a full disk: it may have room tomorrow
        with pytest.raises(EngineError):
            engine_choice._measured(resolve("embedded"), "int8", QUIET)
        return
    choice = engine_choice._measured(resolve("embedded"), "int8", QUIET)
    assert choice == Choice("torch", "cannot be exported")
    with pytest.raises(EngineError):  # int4 was asked for, so torch does not replace it
        engine_choice._measured(resolve("embedded"), "int4", QUIET)


def test_it_is_explained_without_measuring(monkeypatch):
    assert explain("embedded", "torch") == "torch generates, as asked for"
    assert explain("http://localhost/v1#m", "auto") == "the endpoint generates"
    monkeypatch.setattr(engine_choice, "known", lambda *_: None)
    assert explain("embedded", "auto") == UNMEASURED
    monkeypatch.setattr(engine_choice, "known", lambda *_: judge(4.0, 1.0, 0.02))
    assert explain("embedded", "auto").startswith("openvino generates: 4.0 times")


def test_int4_is_measured_and_its_difference_printed_before_it_answers(monkeypatch, tmp_path, tiny_folder):
    class Said(Quiet):
        def __init__(self):
            self.lines = []

        def say(self, text):
            self.lines.append(text)

    class Opened:
        def __init__(self, precision):
            self.precision = precision

    files, said, measured = resolve("embedded"), Said(), []
    monkeypatch.setattr(engine_choice, "cache_dir", lambda: tmp_path)

    def measure(files, precision, progress):
        measured.append(precision)
        return judge(3.0, 0.75, 0.4, precision)

    def opened(model, precision, *, progress):
        assert said.lines, "the difference is printed before the engine is opened"
        return Opened(precision)

    monkeypatch.setattr(engine_choice, "_measured", measure)
    monkeypatch.setattr(engine_choice, "open_openvino", opened)
    assert explain("embedded", "openvino-int4") == f"openvino-int4 generates, as asked for: {UNMEASURED}"
    assert expected_speedup("embedded", "openvino-int4") == 1
    for _ in range(2):
        engine = engine_choice._generator(files, "openvino-int4", "cpu", False, said)
        assert engine.precision == "int4"
    figures = "int4 agrees with fp32 on 75% of first tokens, log-probabilities 0.400 nats apart"
    assert len(said.lines) == 2
    assert all(line.startswith("openvino-int4 generates: ") and figures in line for line in said.lines)
    assert figures in explain("embedded", "openvino-int4")
    assert settled("embedded", "openvino-int4") == "openvino-int4"  # though `auto` would not trust it
    assert expected_speedup("embedded", "openvino-int4") == 3
    assert expected_speedup(str(tiny_folder), "openvino-int4") == 3  # measured with another model
    assert expected_speedup(str(tiny_folder), "openvino") == 1
    assert known(files) is None  # of int8
    assert measured == ["int4"]


def test_an_artifact_that_generates_records_what_auto_meant(monkeypatch, zero, tmp_path):
    monkeypatch.setattr(engine_choice, "choose", lambda *_, progress: judge(4.0, 1.0, 0.02))
    assert settled("embedded", "torch") == "torch"
    assert settled("embedded", "auto") == "openvino"
    written = replace(zero, decoder=Generate(8)).save(tmp_path / "generates")
    assert Artifact.load(written).engine == "openvino"
    assert Artifact.load(zero.save(tmp_path / "scores")).engine == "auto"  # scores are torch's everywhere


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "least"), [("int8", 0.7), ("int4", 0.4)])
def test_measuring_the_embedded_model(precision, least):
    found = choose(resolve("embedded"), precision)
    print(found)
    assert found.speedup > 1
    assert found.agreement > least  # it depends on the processor, so it is measured
    assert found == judge(found.speedup, found.agreement, found.logprob_diff, precision)


def test_choosing_takes_longer_for_larger_models_and_nothing_once_chosen(tiny_folder, tmp_path, monkeypatch):
    embedded, machine = resolve("embedded").folder, Machine(2, 8 * 10**9, 1e11)
    monkeypatch.setenv("RUNG_CACHE", str(tmp_path))
    small, large = (choosing_seconds(model, machine) for model in (str(tiny_folder), str(embedded)))
    assert 10 < small < large < 120
    assert choosing_seconds("http://127.0.0.1:1/v1#m", machine) == 0
    monkeypatch.setattr(engine_choice, "known", lambda *_: Choice("torch", "measured"))
    assert choosing_seconds(str(tiny_folder), machine) == 0
