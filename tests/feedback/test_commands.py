"""Commands as they are shown."""

from pathlib import Path

from rung.feedback.records import command


def test_what_is_not_default_is_named_and_quoted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command("rung trial stop", "banking77") == "rung trial stop banking77"
    near = {"registry": Path("registry"), "store": str(tmp_path / "failures.db")}  # as a store names its file
    assert command("rung promote", Path("runs/a b"), "--reason", "it's <b>", **near) == (
        "rung promote 'runs/a b' --reason 'it'\"'\"'s <b>'"
    )
    far = {"registry": Path("/srv/$(x)"), "store": "/srv/f.db"}
    assert command("rung promote", "a", **far) == "rung promote a --registry '/srv/$(x)' --store /srv/f.db"
    hidden = "postgresql://ann:***@host/name"
    assert command("rung failures list", "--all", store=hidden) == 'rung failures list --all --store "$RUNG_STORE"'
