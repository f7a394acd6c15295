import json
import signal
import subprocess
import sys
from dataclasses import replace

import httpx
import numpy as np
import pytest
from typer.testing import CliRunner

from rung.artifact.artifact import Artifact
from rung.artifact.heads import Head
from rung.cli.main import app
from rung.cli.serve import _is_model
from rung.errors import ConfigError
from rung.serving.access import KeyRing


def rung(*arguments):
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


def test_keys_are_made_listed_and_revoked(tmp_path):
    file = tmp_path / "keys.jsonl"
    secret = rung("keys", "create", "--key-file", file, "--name", "anna", "--per-minute", 30).strip()
    made = json.loads(rung("keys", "create", "--key-file", file, "--admin", "--json"))
    ring = KeyRing(file)
    assert (ring.find(secret).name, ring.find(secret).per_minute) == ("anna", 30)
    assert ring.find(made["key"]).admin
    listed = rung("keys", "list", "--key-file", file)
    assert secret not in listed
    assert "anna  30 a minute" in listed
    assert "admin" in listed
    rung("keys", "revoke", "--key-file", file, made["id"])
    assert ring.find(made["key"]) is None


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ((), "bad-option"),
        (("--model", "embedded", "--host", "0.0.0.0"), "key-needed"),
        (("--model", "embedded", "--key-file", "missing.jsonl"), "unreadable-file"),
    ],
)
def test_a_server_that_must_not_start_does_not(arguments, code):
    with pytest.raises(ConfigError) as refused:
        rung("serve", *arguments)
    assert refused.value.code == code


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--keep", 4), "--keep has no effect without --on-demand"),
        (("--sample", 0.5), "--sample has no effect without --capture sampled"),
        (("--sample", 0.5, "--capture", "on"), "--sample has no effect without --capture sampled"),
        (("--redact", "customer=C[0-9]+"), "--redact has no effect without --capture"),
        (("--no-pages", "--start", "."), "--start has no effect without --pages"),
        (("--long-texts", "window"), "--long-texts has no effect without --encoder"),
    ],
)
def test_options_without_effect_are_refused(tiny_folder, arguments, told):
    with pytest.raises(ConfigError, match=f"^{told}$"):
        rung("serve", "--model", tiny_folder, "--port", 0, *arguments)


def test_an_engine_without_a_base_model_is_refused(zero, tmp_path):
    folder = zero.save(tmp_path / "zero")
    with pytest.raises(ConfigError, match=r"^--engine has no effect without --model$"):
        rung("serve", folder, "--port", 0, "--engine", "torch")


def test_arguments_that_name_models_are_told_from_artifacts(tiny_folder, tmp_path):
    for model in ("embedded", "embedded-encoder", "builtin:qwen2.5-coder-0.5b", str(tiny_folder), "some/model.gguf",
                  "nobody-here/model", "http://localhost:1/v1#m"):  # fmt: skip
        assert _is_model(model), model
    (tmp_path / "runs").mkdir()
    for artifact in ("runs", f"{tmp_path}/runs/missing", "name=folder", "task.yaml"):
        assert not _is_model(artifact), artifact


def test_the_command_serves_records_and_ends(zero, tmp_path):
    """A head on the sentence encoder: the one artifact that needs no torch, here as in production."""
    weight = np.random.default_rng(0).normal(size=(len(zero.signature.labels), 384)).astype(np.float32)
    head = Head(zero.signature.labels, "embedded-encoder", weight, np.zeros(len(weight), np.float32))
    artifact = replace(zero, decoder=head)
    folder = artifact.save(tmp_path / "head")
    store = tmp_path / "failures.db"
    command = [
        sys.executable, "-m", "rung", "serve", f"intents={folder}", "embedded-encoder", "--port", "0",
        "--alias", "ada=embedded-encoder",
        "--capture", "on", "--store", str(store), "--quiet",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = process.stdout.readline().strip()
            texts = ["Where is my card?", "How old must I be?"]
            body = {"rows": [{"text": text} for text in texts], "top": 1}
            answer = httpx.post(f"{url}/tasks/intents/predict", json=body, timeout=60).json()
            wanted = Artifact.load(folder).predict([{"text": text} for text in texts])
            assert [one["output"] for one in answer["predictions"]] == [one.text for one in wanted]
            np.testing.assert_allclose(
                [one["confidence"] for one in answer["predictions"]], [one.confidence for one in wanted], rtol=1e-5
            )
            vectors = httpx.post(f"{url}/embeddings", json={"model": "ada", "input": texts}, timeout=60).json()
            assert [len(one["embedding"]) for one in vectors["data"]] == [384, 384]
            listed = [one["id"] for one in httpx.get(f"{url}/models").json()["data"]]
            assert listed == ["embedded-encoder", "intents", "ada"]
            identity = answer["predictions"][0]["id"]
            said = httpx.post(f"{url}/feedback", json={"id": identity, "thumb": "down"}, timeout=60)
            assert said.status_code == 201
            metrics = httpx.get(f"{url.removesuffix('/v1')}/metrics").text
            assert "rung_capture_offered 2.0" in metrics
            assert "rung_capture_dropped 0.0" in metrics
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()
    listed = [json.loads(line) for line in rung("failures", "list", "--store", store, "--json").splitlines()]
    assert any(identity in json.dumps(one) for one in listed)
