import multiprocessing
import os
from pathlib import Path

import pytest

from rung.models.cache import cache_dir, offline, publish
from rung.models.files import write_atomically


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNG_CACHE", str(tmp_path / "cache"))


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("RUNG_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "rung"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_dir() == tmp_path / "home" / ".cache" / "rung"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("RUNG_OFFLINE", "1", True),
        ("HF_HUB_OFFLINE", "true", True),
        ("RUNG_OFFLINE", "ON", True),
        ("RUNG_OFFLINE", "0", False),
        ("RUNG_OFFLINE", "", False),
    ],
)
def test_offline(monkeypatch, name, value, expected):
    monkeypatch.delenv("RUNG_OFFLINE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv(name, value)
    assert offline() is expected


def write(text: str, sub: str = "a.txt"):
    def build(folder: Path) -> None:
        (folder / "deep").mkdir()
        (folder / "deep" / sub).write_text(text)
        (folder / "deep" / sub).chmod(0o600)

    return build


def test_publish_builds_once(tmp_path):
    folder = tmp_path / "new" / "model"
    assert publish(folder, write("first")) is True
    assert publish(folder, write("second")) is False
    assert (folder / "deep" / "a.txt").read_text() == "first"
    assert [f.name for f in folder.parent.iterdir()] == ["model"]  # no lock, nothing partial
    mask = os.umask(0)
    os.umask(mask)
    assert (folder / "deep" / "a.txt").stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_failed_build_leaves_nothing(tmp_path):
    def build(folder):
        (folder / "half").write_text("x")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        publish(tmp_path / "model", build)
    assert list(tmp_path.iterdir()) == []
    assert publish(tmp_path / "model", write("ok"))


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / ".model.dead.part").mkdir()
    (tmp_path / ".model.dead.part" / "half").write_text("x")
    publish(tmp_path / "model", write("ok"))
    assert not (tmp_path / ".model.dead.part").exists()


def _race(folder, log):
    def build(partial):
        log.put(os.getpid())
        for i in range(50):
            (partial / f"{i}.txt").write_text(str(os.getpid()))

    publish(Path(folder), build)
    log.put("done")


def test_processes_at_once_build_one_folder(tmp_path):
    context = multiprocessing.get_context("spawn")
    log = context.Queue()
    processes = [context.Process(target=_race, args=(str(tmp_path / "model"), log)) for _ in range(4)]
    for process in processes:
        process.start()
    said = [log.get(timeout=60) for _ in range(5)]
    for process in processes:
        process.join()
    assert said.count("done") == 4
    assert len({file.read_text() for file in (tmp_path / "model").iterdir()}) == 1


def test_write_atomically_replaces(tmp_path):
    write_atomically(tmp_path / "x" / "a.json", "one")
    write_atomically(tmp_path / "x" / "a.json", "two")
    assert (tmp_path / "x" / "a.json").read_text() == "two"
    assert [f.name for f in (tmp_path / "x").iterdir()] == ["a.json"]


def test_write_atomically_makes_a_file_as_readable_as_any_other(tmp_path):
    (tmp_path / "plain").write_text("one")
    write_atomically(tmp_path / "own", "one")
    assert (tmp_path / "own").stat().st_mode == (tmp_path / "plain").stat().st_mode
