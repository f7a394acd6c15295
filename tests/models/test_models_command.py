import json
import shutil
import warnings

import pytest

from rung.errors import ConfigError, ModelError


@pytest.fixture
def rung(tmp_path, monkeypatch):
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # typer's own use of click 8.4
        from typer.testing import CliRunner

        from rung.cli.models import app

    def call(*arguments, empty_cache=False):
        if empty_cache:
            monkeypatch.setenv("RUNG_CACHE", str(tmp_path / "cache"))
        return CliRunner().invoke(app, arguments, catch_exceptions=False)

    return call


def test_list(rung, embedded, encoder):
    assert "smollm2-135m-instruct" in rung("list").stdout
    models = json.loads(rung("list", "--json").stdout)
    assert [m["reference"] for m in models][2:4] == ["builtin:qwen2.5-coder-0.5b", "builtin:qwen2.5-coder-1.5b"]
    assert [(m["reference"], m["cached"]) for m in models[:2]] == [("embedded", True), ("embedded-encoder", True)]
    assert [(m["parameters"], m["context"]) for m in models[:2]] == [
        (embedded.parameters, embedded.context),
        (encoder.parameters, encoder.context),
    ]


def test_show_and_path(rung, embedded):
    shown = json.loads(rung("show", "embedded", "--json").stdout)
    assert (shown["fingerprint"], shown["folder"]) == (embedded.fingerprint, str(embedded.folder))
    assert rung("path", "embedded").stdout.strip() == str(embedded.folder)
    assert str(embedded.folder) in rung("show", "embedded").stdout


def test_nothing_is_fetched_to_show_an_embedded_model(rung):
    shown = json.loads(rung("show", "embedded", "--json", empty_cache=True).stdout)
    assert (shown["cached"], shown["download_megabytes"]) == (False, 93)
    with pytest.raises(ModelError, match="not pulled"):
        rung("path", "embedded", empty_cache=True)


def test_pull(rung, embedded):
    assert json.loads(rung("pull", "embedded", "--quiet", "--json").stdout)["fingerprint"] == embedded.fingerprint
    text = rung("pull", "embedded").stdout
    assert "135M parameters" in text
    assert text.endswith("\nNext: rung init rows.csv --model embedded\n")
    assert "Next" not in rung("pull", "embedded-encoder").stdout  # no task file names it as its model


def test_pull_exports_ahead(rung, embedded, encoder, monkeypatch, tmp_path):
    done = []
    monkeypatch.setattr("rung.engines.openvino_export.exported", lambda *model, progress: done.append(model))
    rung("pull", "embedded", "--openvino", "--quiet")
    rung("pull", "embedded", "--openvino", "--precision", "int4", "--quiet")
    assert done == [(embedded, "causal", "int8"), (embedded, "causal", "int4")]
    monkeypatch.setattr("rung.engines.encoders.OpenVinoEncoder", lambda files, *_, progress: done.append(files))
    rung("pull", "embedded-encoder", "--openvino", "--quiet")
    assert done[2:] == [encoder]
    with pytest.raises(ConfigError, match="--precision is that of an export"):
        rung("pull", "embedded", "--precision", "int4")
    with pytest.raises(ConfigError, match="unknown --precision 'int3'"):
        rung("pull", "embedded", "--openvino", "--precision", "int3")


def test_pull_of_a_local_folder_verifies_it(rung, tiny_encoder, small_model):
    assert json.loads(rung("pull", str(tiny_encoder), "--json").stdout)["parameters"] > 0
    with pytest.raises(ModelError, match="are missing, such as lm_head"):
        rung("pull", str(small_model), "--json")


@pytest.mark.parametrize("by", ["file", "folder"])
def test_a_converted_file_is_listed_and_removed(rung, small_model, tmp_path, by):
    from rung.models import gguf

    rung("list", empty_cache=True)
    file = tmp_path / "small.gguf"
    file.write_bytes(b"GGUF")
    folder = shutil.copytree(small_model, gguf.folder_of(file))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\nConverted by Rung from small.gguf.\n")
    (folder / "more").write_bytes(bytes(10_000_000))
    export = tmp_path / "cache" / "openvino" / f"{folder.name}-causal-int8"
    export.mkdir(parents=True)
    listed = json.loads(rung("list", "--json").stdout)[-1]
    assert (listed["reference"], listed["name"], listed["licence"]) == (str(folder), "small.gguf", "mit")
    assert (listed["parameters"], listed["context"]) == (13, 32)
    assert rung("rm", str(file if by == "file" else folder)).stdout == "0.01 GB removed\n"
    assert (folder.exists(), export.exists(), file.exists()) == (False, False, True)
    assert "small.gguf" not in rung("list").stdout
    with pytest.raises(ModelError, match="nor a converted"):
        rung("rm", str(small_model))


def test_a_built_in_model_has_several_names_and_wrong_ones_are_told(rung, embedded):
    shown = json.loads(rung("show", "builtin:smollm2-135m", "--json").stdout)
    assert shown["fingerprint"] == embedded.fingerprint
    with pytest.raises(ModelError, match="no model is built in as 'builtin:gpt'") as raised:
        rung("show", "builtin:gpt")
    assert "builtin:qwen2.5-coder-1.5b" in raised.value.hint


def test_rm_removes_the_model_and_its_exports(rung, tmp_path):
    from rung.models.embedded import QWEN_05B, fingerprint_of, folder_of

    rung("list", empty_cache=True)
    export = tmp_path / "cache" / "openvino" / f"{fingerprint_of(QWEN_05B)}-causal-int8"
    for folder in (folder_of(QWEN_05B), export, tmp_path / "cache" / "downloads" / QWEN_05B.name):
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(bytes(10_000_000))
    assert rung("rm", "builtin:qwen2.5-coder-0.5b").stdout == "0.03 GB removed\n"
    assert not export.exists()
    assert not folder_of(QWEN_05B).exists()
    with pytest.raises(ModelError, match="not a built-in model"):
        rung("rm", "org/name")
