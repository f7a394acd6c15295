import pytest


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """A folder from somebody else on a machine where nothing is allowed yet."""
    monkeypatch.delenv("RUNG_TRUST")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    folder = tmp_path / "stranger"
    folder.mkdir()
    return folder
