"""A PostgreSQL server that refuses a connection: what is wrong is said at once, and the password never."""

import pytest
import sqlalchemy as sa

from rung.errors import ConfigError, MachineError
from rung.feedback import database
from rung.feedback.database import StoreDatabase

SECRET = "p@ss/w#rd?:"


@pytest.fixture(scope="module")
def guarded(postgres):
    """The server's URL for a user who needs a password, and may open one database only."""
    own = postgres.url.replace("postgresql:", "postgresql+psycopg:")
    engine = sa.create_engine(own, isolation_level="AUTOCOMMIT")
    rules = postgres.data / "pg_hba.conf"
    rules.write_text(
        "host kay,nobase kay 127.0.0.1/32 scram-sha-256\nhost all kay 127.0.0.1/32 reject\n" + rules.read_text()
    )
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE ROLE kay LOGIN PASSWORD '{SECRET.replace('%', '%%')}'")
        connection.exec_driver_sql("CREATE DATABASE kay OWNER kay")
        connection.exec_driver_sql("SELECT pg_reload_conf()")
    engine.dispose()
    return sa.make_url(postgres.url).set(username="kay", password=SECRET, database="kay")


@pytest.fixture
def impatient(monkeypatch):
    def waits(_seconds):
        pytest.fail("it waits, and that does not help")

    monkeypatch.setattr(database.time, "sleep", waits)


def refusal(url):
    with pytest.raises(MachineError) as raised:
        StoreDatabase(url.render_as_string(hide_password=False))
    assert raised.value.code == "store-failed"
    assert SECRET not in raised.value.render()
    assert url.password is None or url.password not in raised.value.render()
    return raised.value


@pytest.mark.parametrize(
    ("change", "told", "step"),
    [({"password": "wrong-one"}, "the user or the password is wrong", "%40 for @"),
     ({"password": None}, "the user or the password is wrong", "%40 for @"),
     ({"database": "nobase"}, "there is no such database", "createdb"),
     ({"database": "postgres"}, "the server lets nobody in", "pg_hba.conf"),
     ({"username": "no-such-user"}, "there is no such user", "createuser"),
     ({"query": sa.util.immutabledict({"sslmode": "require"})}, "the encrypted connection fails", "sslmode=disable"),
     ({"query": sa.util.immutabledict({"sslmod": "require"})}, "the store's URL has an unknown part", "postgresql://user:password@host")],
)  # fmt: skip
@pytest.mark.usefixtures("impatient")
def test_what_is_wrong_is_said_at_once(guarded, change, told, step):
    error = refusal(guarded._replace(**change))
    assert error.message.startswith(told)
    assert step in error.hint


def test_a_password_with_any_characters_works_escaped_and_is_hidden_otherwise(guarded):
    with StoreDatabase(guarded.render_as_string(hide_password=False)) as store:
        assert store.name == f"postgresql+psycopg://kay:***@127.0.0.1:{guarded.port}/kay"
    with StoreDatabase(
        guarded._replace(password=None, query=sa.util.immutabledict({"password": SECRET})).render_as_string()
    ) as store:
        assert store.name == f"postgresql+psycopg://kay@127.0.0.1:{guarded.port}/kay"


@pytest.mark.parametrize("password", ["p@ss", "p@ss/w#rd", "p:w@s", "a@b@c", "p@ss:word"])
def test_a_password_that_is_not_escaped_is_not_printed(password):
    with pytest.raises(ConfigError) as raised:
        StoreDatabase(f"postgresql://rung:{password}@127.0.0.1/x")
    assert "%40 for @" in raised.value.hint
    for piece in ("ss", "w#rd", "b@c", "p:w", "word@"):
        assert piece not in raised.value.message


def test_a_server_that_may_come_back_is_waited_for_and_the_log_says_so(caplog):
    with pytest.raises(MachineError, match="does not answer"):
        StoreDatabase("postgresql://u:secret@127.0.0.1:1/x", patience=0.3)
    (record,) = caplog.records
    assert "does not answer; trying for 0.3 s" in record.getMessage()
    assert "secret" not in record.getMessage()
