import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from rung.errors import ConfigError, ModelError
from rung.models import cache as fingerprints
from rung.models.reference import is_cached, is_endpoint, resolve
from rung.models.tokenizer import chat_template_of


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))


def test_the_embedded_language_model(embedded):
    assert (embedded.name, embedded.architecture) == ("smollm2-135m-instruct", "LlamaForCausalLM")
    assert (embedded.parameters, embedded.context) == (134_515_008, 8192)
    assert (embedded.licence, chat_template_of(embedded.folder) is not None) == ("apache-2.0", True)
    assert resolve("smollm2-135m-instruct") == replace(embedded, reference="smollm2-135m-instruct")


def test_the_embedded_encoder(encoder):
    assert (encoder.name, encoder.parameters, encoder.context) == ("all-minilm-l6-v2", 22_713_216, 256)
    assert chat_template_of(encoder.folder) is None


def test_a_local_folder(small_model, own_cache):
    files = resolve(str(small_model))
    assert (files.folder, files.name, files.parameters, files.context) == (small_model, "small", 6, 32)
    assert (files.licence, chat_template_of(files.folder) is not None) == ("mit", True)


def test_the_fingerprint_follows_the_content(small_model, own_cache, monkeypatch, tmp_path):
    before = resolve(str(small_model)).fingerprint
    assert len(before) == 64
    small_model.rename(tmp_path / "moved")
    moved = tmp_path / "moved"
    assert resolve(str(moved)).fingerprint == before
    (moved / "config.json").write_text((moved / "config.json").read_text().replace("32", "64"))
    assert resolve(str(moved)).fingerprint != before


def test_an_unchanged_file_is_hashed_once(small_model, own_cache, monkeypatch):
    first = resolve(str(small_model))
    monkeypatch.setattr(fingerprints, "file_sha256", lambda file: pytest.fail(f"hashed {file} again"))
    assert resolve(str(small_model)) == first


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_truncated_weights(small_model, own_cache, cut):
    file = small_model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-cut])
    with pytest.raises(ModelError, match=r"model\.safetensors") as caught:
        resolve(str(small_model))
    assert caught.value.code == "model-damaged"


def test_no_config(small_model, own_cache):
    (small_model / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no config\.json"):
        resolve(str(small_model))


def test_parts_without_an_index(small_model, own_cache):
    part = (small_model / "model.safetensors").rename(small_model / "model-00001-of-00002.safetensors")
    with pytest.raises(ModelError) as raised:
        resolve(str(small_model))
    assert raised.value.code == "model-damaged"
    assert f"no model.safetensors.index.json, but {part.name}" in raised.value.message


def test_endpoints_are_for_engines():
    assert is_endpoint("http://127.0.0.1:8080/v1#model")
    assert is_endpoint("https://host/v1#org/model")
    assert not is_endpoint("org/name")
    with pytest.raises(ConfigError) as caught:
        resolve("http://127.0.0.1:8080/v1#model")
    assert caught.value.code == "engine-mismatch"


@pytest.mark.parametrize(
    ("reference", "guess"),
    [
        ("embeded", "did you mean 'embedded'"),
        ("smollm2-135m-instrct", "did you mean 'smollm2-135m-instruct'"),
        ("?", "Hub id"),
    ],
)
def test_unknown_references(reference, guess, own_cache, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as caught:
        resolve(reference)
    assert caught.value.code == "unknown-model"
    assert guess in caught.value.hint


def test_a_misspelled_folder(small_model, own_cache):
    with pytest.raises(ModelError) as caught:
        resolve(str(small_model) + "l")
    assert repr(str(small_model)) in caught.value.hint


@pytest.mark.parametrize("reference", ["embedded", "org/name", "org/name@main"])
def test_offline_with_an_empty_cache(reference, own_cache, monkeypatch):
    monkeypatch.setenv("RUNG_OFFLINE", "1")
    hub_constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", os.environ["HF_HOME"])
    assert not is_cached(reference)
    with pytest.raises(ModelError) as caught:
        resolve(reference)
    assert caught.value.code == "model-not-cached"
    assert "rung models pull" in caught.value.hint


@pytest.fixture
def hub_cache(small_model, tmp_path, own_cache, monkeypatch):
    """The Hub's local cache as huggingface-hub lays it out, with one model on its main branch."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("RUNG_OFFLINE", "1")
    repository = tmp_path / "hub" / "models--org--small"
    for name in ("refs", "blobs", "snapshots"):
        (repository / name).mkdir(parents=True)
    revision = "a" * 40
    (repository / "refs" / "main").write_text(revision)
    (repository / "snapshots" / revision).mkdir()
    for file in small_model.iterdir():
        (repository / "blobs" / file.name).write_bytes(file.read_bytes())
        (repository / "snapshots" / revision / file.name).symlink_to(f"../../blobs/{file.name}")
    return repository / "snapshots" / revision


@pytest.mark.parametrize("reference", ["org/small", "org/small@main", f"org/small@{'a' * 40}"])
def test_a_hub_model_in_the_local_cache(reference, hub_cache, small_model):
    assert is_cached(reference)
    files = resolve(reference)
    assert (files.folder, files.name, files.parameters) == (hub_cache, "small", 6)
    assert files.fingerprint == resolve(str(small_model)).fingerprint


def test_a_hub_model_without_its_weights_is_not_cached(hub_cache):
    (hub_cache / "model.safetensors").unlink()
    assert not is_cached("org/small")
    with pytest.raises(ModelError) as caught:
        resolve("org/small")
    assert caught.value.code == "model-not-cached"


def test_a_hub_model_with_code_is_refused(hub_cache):
    (hub_cache / "modeling.py").write_text("")
    with pytest.raises(ModelError, match=r"modeling\.py"):
        resolve("org/small")


WITHOUT_NETWORK = """
import json, socket, sys

def refuse(*args):
    raise AssertionError("a connection was attempted")

socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
from rung.models.reference import resolve
from rung.models.tokenizer import Tokenizer
files = [resolve("embedded"), resolve("embedded-encoder")]
chat = Tokenizer.load(files[0].folder).encode_chat([{"role": "user", "content": "hi"}])
heavy = sorted({"torch", "transformers", "sentence_transformers"} & set(sys.modules))
print(json.dumps([[f.fingerprint for f in files], len(chat), heavy]))
"""


def test_a_warm_cache_needs_no_network_and_no_heavy_library(embedded, encoder):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_NETWORK],
        env={**os.environ, "RUNG_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == [[embedded.fingerprint, encoder.fingerprint], 31, []]
