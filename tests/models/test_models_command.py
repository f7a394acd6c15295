import json
import warnings

import pytest

from rung.errors import ModelError


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
    assert [(m["reference"], m["cached"]) for m in models] == [("embedded", True), ("embedded-encoder", True)]
    assert [(m["parameters"], m["context"]) for m in models] == [
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
    assert "135M parameters" in rung("pull", "embedded").stdout


def test_pull_exports_ahead(rung, embedded, encoder, monkeypatch, tmp_path):
    done = []
    monkeypatch.setattr("rung.engines.openvino_export.exported", lambda *model, progress: done.append(model))
    rung("pull", "embedded", "--openvino", "--quiet")
    assert done == [(embedded, "causal", "int8")]
    monkeypatch.setattr("rung.engines.encoders.OpenVinoEncoder", lambda files, recipe, progress: done.append(files))
    rung("pull", "embedded-encoder", "--openvino", "--quiet")
    assert done[1:] == [encoder]


def test_pull_of_a_local_folder(rung, small_model):
    assert json.loads(rung("pull", str(small_model), "--json").stdout)["parameters"] == 6
