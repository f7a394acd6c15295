"""Promotion and rollback: one pointer, replaced at once, with its history; servers that follow it."""

import json
import threading
import time
from dataclasses import replace

import pytest

from rung.artifact.artifact import Artifact
from rung.artifact.files import fingerprint
from rung.errors import ArtifactError, ConfigError
from rung.feedback.registry import Follower, Registry
from rung.feedback.store import FeedbackStore


@pytest.fixture
def store(tmp_path):
    with FeedbackStore(tmp_path / "f.db") as opened:
        yield opened


@pytest.fixture
def registry(tmp_path):
    return Registry(tmp_path / "registry", "intents")


def test_promoted_and_rolled_back_step_by_step(registry, store, folders):
    assert registry.current() is None
    for n, folder in enumerate(folders):
        promotion = registry.promote(folder, store, evidence={"n": n}, reviewer="Ann")
        assert promotion == registry.current()
        assert promotion.artifact == fingerprint(folder)
        assert Artifact.load(registry.path(promotion)).prompt.system == folder.name
    for back in ("two", "one"):
        promotion = registry.rollback(store, reviewer="Bob", reason="complaints")
        assert promotion == registry.current()
        assert Artifact.load(registry.path(promotion)).prompt.system == back
    with pytest.raises(ConfigError) as raised:
        registry.rollback(store, reviewer="Bob")
    assert raised.value.code == "nothing-to-undo"
    registry.promote(folders[2], store, evidence={}, reviewer="Ann")
    assert Artifact.load(registry.path(registry.rollback(store, reviewer="Bob"))).prompt.system == "one"
    history = store.promotions("intents")
    assert [p.kind for p in history] == ["promote"] * 3 + ["rollback"] * 2 + ["promote", "rollback"]
    assert [p.evidence.get("n") for p in history[:3]] == [0, 1, 2]
    assert history[3].evidence["reason"] == "complaints"


def test_what_must_not_be_served_is_refused_and_nothing_changes(registry, store, folders, tmp_path):
    first = registry.promote(folders[0], store, evidence={}, reviewer="Ann")
    with pytest.raises(ConfigError, match="is served already"):
        registry.promote(folders[0], store, evidence={}, reviewer="Ann")
    with pytest.raises(ConfigError, match="not of 'other'"):
        Registry(tmp_path / "registry", "other").promote(folders[1], store, evidence={}, reviewer="Ann")
    (folders[1] / "artifact.json").write_text("{}")
    with pytest.raises(ArtifactError):
        registry.promote(folders[1], store, evidence={}, reviewer="Ann")
    assert registry.current() == first
    registry.promote(folders[2], store, evidence={}, reviewer="Ann")
    (registry.path(first) / "manifest.json").unlink()
    with pytest.raises(ArtifactError):
        registry.rollback(store, reviewer="Ann")
    assert registry.current().artifact == fingerprint(folders[2])
    (registry.folder / "current").write_text("{")
    with pytest.raises(ArtifactError) as raised:
        registry.current()
    assert raised.value.code == "artifact-damaged"


def test_a_switch_cut_off_before_its_entry_is_entered_before_the_next(registry, store, folders, monkeypatch):
    registry.promote(folders[0], store, evidence={}, reviewer="Ann")
    with monkeypatch.context() as patch:
        patch.setattr(store, "add_promotion", lambda made: (_ for _ in ()).throw(KeyboardInterrupt))
        patch.setattr(registry, "_entered", lambda store: registry.current())
        with pytest.raises(KeyboardInterrupt):
            registry.promote(folders[1], store, evidence={"cut": True}, reviewer="Ann")
    assert registry.current().artifact == fingerprint(folders[1])
    assert len(store.promotions("intents")) == 1
    registry.rollback(store, reviewer="Ann")
    assert [p.evidence.get("cut") for p in store.promotions("intents")] == [None, True, None]
    assert registry.current().artifact == fingerprint(folders[0])


def test_readers_see_one_record_or_the_other(registry, store, folders):
    registry.promote(folders[0], store, evidence={}, reviewer="Ann")
    seen, stop = set(), threading.Event()

    def watch():
        while not stop.is_set():
            seen.add(registry.current().artifact)

    reader = threading.Thread(target=watch)
    reader.start()
    for _ in range(5):
        registry.promote(folders[1], store, evidence={}, reviewer="Ann")
        registry.rollback(store, reviewer="Ann")
    stop.set()
    reader.join()
    assert seen <= {fingerprint(folders[0]), fingerprint(folders[1])}


def test_a_server_follows_and_keeps_what_it_has_if_the_new_one_is_refused(registry, store, folders, tmp_path):
    loaded = []

    def load(folder, name):
        if Artifact.load(folder).prompt.system == "two":
            raise ArtifactError("artifact-damaged", "refused")
        loaded.append((Artifact.load(folder).prompt.system, name))

    registry.promote(folders[0], store, evidence={}, reviewer="Ann")
    follower = Follower(tmp_path / "registry", load, every=0.02).start()
    assert loaded == [("one", "intents")]
    registry.promote(folders[1], store, evidence={}, reviewer="Ann")
    _until(lambda: follower.errors == {"intents": "refused"})
    registry.promote(folders[2], store, evidence={}, reviewer="Ann")
    _until(lambda: loaded == [("one", "intents"), ("three", "intents")])
    assert follower.errors == {}
    follower.close()


def test_a_task_promoted_for_the_first_time_is_followed_too(registry, store, folders, tmp_path):
    loaded, root = [], tmp_path / "registry"
    follower = Follower(root, lambda folder, name: loaded.append((folder, name)), every=0.02).start()
    first = registry.promote(folders[0], store, evidence={}, reviewer="Ann")
    _until(lambda: loaded == [(registry.path(first), "intents")])
    plain = Artifact.load(folders[1])
    other = replace(plain, signature=replace(plain.signature, task="other")).save(tmp_path / "other")
    second = Registry(root, "other").promote(other, store, evidence={}, reviewer="Ann")
    _until(lambda: loaded[1:] == [(Registry(root, "other").path(second), "other")])
    follower.close()


def _until(done):
    end = time.monotonic() + 120
    while not done() and time.monotonic() < end:
        time.sleep(0.01)
    assert done()


def test_the_pointer_holds_the_evidence(registry, store, folders):
    registry.promote(folders[0], store, evidence={"p": 0.01}, reviewer="Ann")
    values = json.loads((registry.folder / "current").read_text())
    assert (values["evidence"], values["reviewer"], values["kind"]) == ({"p": 0.01}, "Ann", "promote")


def test_the_pointer_is_as_readable_as_the_artifacts(registry, store, folders):
    promotion = registry.promote(folders[0], store, evidence={}, reviewer="Ann")
    assert (registry.folder / "current").stat().st_mode == (registry.path(promotion) / "manifest.json").stat().st_mode
