import importlib.util
from dataclasses import replace

import pytest
import torch

from rung.artifact.artifact import Artifact
from rung.artifact.text import Generate
from rung.engines import opening as engine_choice
from rung.engines.opening import UNMEASURED, Choice, choose, explain, judge, known, settled
from rung.errors import EngineError
from rung.models.reference import resolve
from rung.progress import QUIET


def test_the_faster_one_is_chosen_if_its_text_can_be_trusted():
    assert judge(3.0, 1.0, 0.01).engine == "openvino"
    assert "3.0 times" in judge(3.0, 1.0, 0.01).reason
    assert judge(0.9, 1.0, 0.01).engine == "torch"
    for agreement, logprob_diff in ((0.5, 0.01), (1.0, 0.9), (0.0, float("inf"))):
        assert judge(9.0, agreement, logprob_diff).engine == "torch"
        assert "trusted" in judge(9.0, agreement, logprob_diff).reason


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
            engine_choice._measured(resolve("embedded"), QUIET)
        return
    choice = engine_choice._measured(resolve("embedded"), QUIET)
    assert choice == Choice("torch", "OpenVINO's exporter does not know LlamaForCausalLM")


def test_it_is_explained_without_measuring(monkeypatch):
    assert explain("embedded", "torch") == "torch generates, as asked for"
    assert explain("http://localhost/v1#m", "auto") == "the endpoint generates"
    monkeypatch.setattr(engine_choice, "known", lambda files: None)
    assert explain("embedded", "auto") == UNMEASURED
    monkeypatch.setattr(engine_choice, "known", lambda files: judge(4.0, 1.0, 0.02))
    assert explain("embedded", "auto").startswith("openvino generates: 4.0 times")


def test_an_artifact_that_generates_records_what_auto_meant(monkeypatch, zero, tmp_path):
    monkeypatch.setattr(engine_choice, "choose", lambda files, progress: judge(4.0, 1.0, 0.02))
    assert settled("embedded", "torch") == "torch"
    assert settled("embedded", "auto") == "openvino"
    written = replace(zero, decoder=Generate(8)).save(tmp_path / "generates")
    assert Artifact.load(written).engine == "openvino"
    assert Artifact.load(zero.save(tmp_path / "scores")).engine == "auto"  # scores are torch's everywhere


@pytest.mark.slow
def test_measuring_the_embedded_model(monkeypatch):
    found = choose(resolve("embedded"))
    print(found)
    assert found.speedup > 1
    assert found.agreement > 0.7  # 84 % on an AMD EPYC: it depends on the processor, so it is measured
    assert found == judge(found.speedup, found.agreement, found.logprob_diff)
