import gc
import json
import re
from importlib import metadata
from pathlib import Path

import pytest

from rung.errors import EngineError, MachineError, install_command, needed_by


def test_what_cannot_be_imported_is_told_with_its_extra():
    with pytest.raises(MachineError) as caught, needed_by("serving", extra="serve"):
        import no_such_library.deep  # noqa: F401
    assert (caught.value.code, caught.value.message) == ("missing-extra", "serving needs no_such_library")
    assert caught.value.hint == install_command("serve")
    assert type(caught.value) is MachineError
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, "uv pip install 'rung[serve]'"),
        (
            {"url": "file:///home/ann/a%20b", "dir_info": {}},
            "uv pip install 'rung[serve] @ file:///home/ann/a%20b'",
        ),
        (
            {"url": "file:///home/ann/a%20b", "dir_info": {"editable": True}},
            "uv pip install -e '/home/ann/a b[serve]'",
        ),
        (
            {"url": "https://example.org/rung.git", "vcs_info": {"vcs": "git", "commit_id": "1a2b"}},
            "uv pip install 'rung[serve] @ git+https://example.org/rung.git@1a2b'",
        ),
    ],
)
def test_an_extra_comes_from_where_rung_came_from(monkeypatch, tmp_path, origin, command):
    if origin is not None:
        (tmp_path / "direct_url.json").write_text(json.dumps(origin))
    monkeypatch.setattr(metadata, "distribution", lambda _: metadata.PathDistribution(tmp_path))
    assert install_command.__wrapped__("serve") == command


def test_the_class_of_the_error_is_the_callers():
    with (
        pytest.raises(EngineError, match=r"^an encoder needs nothing_there$"),
        needed_by("an encoder", error=EngineError),
    ):
        import nothing_there  # noqa: F401


def test_other_errors_pass():
    with pytest.raises(ValueError, match=r"^other$"), needed_by("it"):
        raise ValueError("other")


@pytest.mark.parametrize("collects", [True, False])
def test_no_garbage_is_collected_during_an_import_and_then_as_before(collects):
    try:
        if not collects:
            gc.disable()
        with needed_by("it"):
            assert not gc.isenabled()
        assert gc.isenabled() == collects
        with pytest.raises(MachineError), needed_by("it"):
            raise ModuleNotFoundError(name="nothing_there")
        assert gc.isenabled() == collects
    finally:
        gc.enable()


ROOT = Path(__file__).parents[1]


def test_the_lock_has_the_pins_with_hashes_and_names_no_index():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    lock = (ROOT / "constraints.lock").read_text()
    hashed = dict(re.findall(r"^([a-z0-9.-]+)==(\S+)(?: ; .*)? \\\n    --hash=sha256:[0-9a-f]{64}", lock, re.M))
    assert hashed == {name: version for name, version in pins.items() if not name.startswith("torch")}
    assert not re.search(r"://|--index|--find-links", lock)
    assert "pip" not in pins


def test_the_floors_are_above_known_holes():
    """The pinned versions may move on; what others may install must not go back below these."""
    text = (ROOT / "pyproject.toml").read_text()
    floors = dict(re.findall(r'"([a-z0-9-]+)>=([0-9.]+)', text))
    least = {"h11": (0, 16), "jinja2": (3, 1, 6), "lxml": (6, 1), "nltk": (3, 10, 4), "starlette": (1, 6)}
    for name, version in least.items():
        assert tuple(map(int, floors[name].split("."))) >= version, name
