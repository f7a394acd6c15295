"""A database connection: SQLite with a write-ahead log by default, PostgreSQL by URL; migrated when it is opened.

Transactions come in three kinds. `read` waits for nobody. `capture` may lose the last moments when the power fails,
though not when the process is killed. `durable` is on the disk before the call returns: corrections and promotions.
A lost connection (PostgreSQL restarting) is tried again until `patience` is over, so what is done in a transaction must
bear being done twice: inserts carry a key of their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

import sqlalchemy as sa

from rung.errors import ConfigError, MachineError

if TYPE_CHECKING:
    from sqlalchemy.engine import URL, Connection


try:
    import sqlalchemy as sa
    from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
except ImportError as missing:
    raise MachineError(
        "missing-extra", "the store of interactions needs SQLAlchemy", hint="uv pip install 'rung[serve]'"
    ) from missing


__all__ = ["PATIENCE", "StoreDatabase", "sa"]

TransactionKind = Literal["read", "capture", "durable"]
Result = TypeVar("Result")

PATIENCE = 30.0  # seconds
_LOCK = 0x52756E67  # PostgreSQL's advisory lock for migrations: "Rung"
# SQLSTATEs after which the same transaction may succeed: shutdown, crash, starting up, serialization, deadlock,
# too many connections; class 08 is a lost connection.
_PASSING = {"57P01", "57P02", "57P03", "40001", "40P01", "53300"}


class StoreDatabase:
    """Opens, migrates, retries, and turns the driver's errors into Rung's."""

    def __init__(self, location: str | Path, *, patience: float = PATIENCE) -> None:
        self.url = _url(location)
        self.patience = patience
        self.dialect = self.url.get_backend_name()
        self._engine = self._connect()
        try:
            self._migrate()
        except BaseException:
            self._engine.dispose()
            raise

    @property
    def name(self) -> str:
        """The place as it may be shown: without password."""
        return self.url.database or "" if self.dialect == "sqlite" else self.url.render_as_string(hide_password=True)

    def run(self, kind: TransactionKind, work: Callable[[Connection], Result]) -> Result:
        """Do `work` in one transaction and return its result.

        Raises:
            MachineError: `store-failed`.
        """
        engine = self._engine.execution_options(rung=kind)
        start, wait = time.monotonic(), 0.05
        while True:
            try:
                with engine.begin() as connection:
                    return work(connection)
            except DBAPIError as error:
                if not self._passing(error) or time.monotonic() - start + wait > self.patience:
                    self._explain(error)
            time.sleep(wait)
            wait = min(2 * wait, 1.0)

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    # ---- opening

    def _connect(self) -> sa.Engine:
        if self.dialect == "sqlite":
            engine = sa.create_engine(self.url, connect_args={"timeout": self.patience})
            sa.event.listen(engine, "connect", _prepare_sqlite)
            sa.event.listen(engine, "begin", _begin_sqlite)
            return engine
        try:
            # Without prepared statements a connection pooler may stand between.
            return sa.create_engine(self.url, pool_pre_ping=True, connect_args={"prepare_threshold": None})
        except (ImportError, NoSuchModuleError) as missing:
            raise MachineError(
                "missing-extra", f"{self.name} needs psycopg", hint="uv pip install 'rung[postgres]'"
            ) from missing

    def _migrate(self) -> None:

        version = self.run("read", _version)
        if version == HEAD:
            return
        if version is not None and version > HEAD:
            raise MachineError(
                "store-newer",
                f"{self.name} was migrated to version {version} by a newer Rung; this one knows {HEAD}",
                hint="update Rung: going on could lose what the newer one keeps",
            )
        self.run("durable", self._upgrade)

    def _upgrade(self, connection: Connection) -> None:
        """Run the migrations; of processes that open a new store at once, the others wait and find it done."""
        from alembic import command
        from alembic.config import Config

        if self.dialect == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
        config = Config()
        config.set_main_option("script_location", "rung.feedback:migrations")
        config.attributes["connection"] = connection
        command.upgrade(config, "head")

    # ---- errors

    def _passing(self, error: DBAPIError) -> bool:
        if self.dialect == "sqlite":
            return False  # the driver itself has waited for a lock
        state = getattr(error.orig, "sqlstate", None)
        # A connection that could not be made has no state at all.
        return error.connection_invalidated or state is None or state in _PASSING or state.startswith("08")

    def _explain(self, error: DBAPIError) -> NoReturn:
        state = getattr(error.orig, "sqlite_errorname", None) or getattr(error.orig, "sqlstate", None) or ""
        first = str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else type(error.orig).__name__
        for states, explained in _EXPLAINED:
            if any(state.startswith(one) for one in states):
                raise explained(f"{self.name}: {first}") from error
        if isinstance(error.orig, self._programming()):
            raise error  # our own mistake: it must be seen as one
        raise MachineError(
            "store-failed",
            f"{self.name} does not answer: {first}",
            hint="nothing that was acknowledged is lost; start it, or name another store with --store",
        ) from error

    def _programming(self) -> tuple[type[Exception], ...]:
        dbapi: Any = self._engine.dialect.dbapi
        return (dbapi.IntegrityError, dbapi.ProgrammingError, dbapi.NotSupportedError, dbapi.DataError)


_Explained = Callable[[str], MachineError]
_EXPLAINED: tuple[tuple[tuple[str, ...], _Explained], ...] = (
    (("SQLITE_FULL", "SQLITE_IOERR", "53100"), lambda text: MachineError(
        "store-failed", f"the store cannot be written, the disk is full or fails: {text}",
        hint="free some space; what was acknowledged is there")),
    (("SQLITE_CORRUPT", "SQLITE_NOTADB"), lambda text: MachineError(
        "store-failed", f"the store is no database, or damaged: {text}",
        hint="restore a copy, or name another file with --store")),
    (("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "42501"), lambda text: MachineError(
        "store-failed", f"the store cannot be opened for writing: {text}",
        hint="check the folder and its permissions, or name another file with --store")),
    (("SQLITE_BUSY", "SQLITE_LOCKED"), lambda text: MachineError(
        "store-failed", f"the store is held by another process: {text}",
        hint="wait for it to finish; for many writers use PostgreSQL")),
)  # fmt: skip


def _url(location: str | Path) -> URL:
    """Return the database's URL; a text without `://` is the path of an SQLite file."""
    if isinstance(location, Path) or "://" not in location:
        return sa.URL.create("sqlite", database=str(Path(location).expanduser().absolute()))
    try:
        url = sa.make_url(location)
    except ArgumentError:
        # The text is not shown: it may hold a password.
        raise ConfigError(
            "bad-option", "the store's URL cannot be read", hint="write postgresql://user:password@host:5432/name"
        ) from None
    if url.get_backend_name() not in ("sqlite", "postgresql"):
        raise ConfigError(
            "bad-option", f"a store cannot be kept in {url.get_backend_name()}", hint="use sqlite or postgresql"
        )
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    return url


def _version(connection: Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    version: str | None = connection.execute(sa.text("select version_num from alembic_version")).scalar()
    return version


def _prepare_sqlite(connection: Any, record: Any) -> None:
    del record
    connection.isolation_level = None  # transactions begin below, and not when the driver thinks fit
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    kind = connection.get_execution_options().get("rung", "read")
    if kind != "read":
        connection.exec_driver_sql(f"PRAGMA synchronous={'FULL' if kind == 'durable' else 'NORMAL'}")
    # A writer takes the lock at once: one that read first and writes later could not wait for another.
    connection.exec_driver_sql("BEGIN" if kind == "read" else "BEGIN IMMEDIATE")


# --------------------
# The tables of the store. `migrations/` makes them; a test holds the two together.


HEAD = "0003"  # the newest migration


class UtcDateTime(sa.types.TypeDecorator[datetime]):
    """A point in time, in UTC on every database; SQLite keeps no time zone."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        """Turn what is stored into UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value} has no time zone")
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        """Return what was stored, in UTC."""
        del dialect
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


METADATA = sa.MetaData()

interactions = sa.Table(
    "interactions",
    METADATA,
    sa.Column("id", sa.String(80), primary_key=True),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("task", sa.Text, nullable=False),
    sa.Column("artifact", sa.String(64), nullable=False),
    sa.Column("model", sa.String(64), nullable=False),
    sa.Column("system", sa.Text, nullable=False),
    sa.Column("template", sa.Text, nullable=False),
    sa.Column("template_version", sa.String(64), nullable=False),
    sa.Column("inputs", sa.Text, nullable=False),  # JSON
    sa.Column("input_id", sa.String(16), nullable=False),
    sa.Column("prompt_sha256", sa.String(64), nullable=False),
    sa.Column("actual", sa.Text, nullable=False),
    sa.Column("confidence", sa.Float),
    sa.Column("prompt_tokens", sa.Integer, nullable=False),
    sa.Column("completion_tokens", sa.Integer, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("key", sa.Text),
    sa.Column("finish", sa.Text, nullable=False),
    sa.Column("split", sa.String(5), nullable=False),
    sa.Column("trial", sa.String(32), nullable=False, server_default=""),
    sa.Column("shadows", sa.String(80), nullable=False, server_default=""),
    sa.Column("missed", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Index("interactions_by_task", "task", "at"),
    sa.Index("interactions_by_trial", "trial"),
    sa.Index("interactions_by_shadowed", "shadows"),
)

# `source` is `user`, `check` (the answer breaks the task's rules) or `artifact:FINGERPRINT` (what another one answers).
feedback = sa.Table(
    "feedback",
    METADATA,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("token", sa.String(32), nullable=False, unique=True),
    sa.Column("interaction", sa.String(80), sa.ForeignKey("interactions.id"), nullable=False, index=True),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("thumb", sa.String(4)),
    sa.Column("score", sa.Float),
    sa.Column("comment", sa.Text, nullable=False),
    sa.Column("expected", sa.Text),
    sa.Column("key", sa.Text),
)

# Rows are only ever added: what holds is the last correction that no later row undoes.
corrections = sa.Table(
    "corrections",
    METADATA,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("token", sa.String(32), nullable=False, unique=True),
    sa.Column("interaction", sa.String(80), sa.ForeignKey("interactions.id"), nullable=False, index=True),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("reviewer", sa.Text, nullable=False),
    sa.Column("expected", sa.Text),
    sa.Column("comment", sa.Text, nullable=False),
    sa.Column("undoes", sa.Integer, sa.ForeignKey("corrections.number"), index=True),
)

promotions = sa.Table(
    "promotions",
    METADATA,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("token", sa.String(32), nullable=False, unique=True),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("task", sa.Text, nullable=False, index=True),
    sa.Column("kind", sa.String(8), nullable=False),
    sa.Column("artifact", sa.String(64), nullable=False),
    sa.Column("folder", sa.Text, nullable=False),
    sa.Column("below", sa.String(32)),
    sa.Column("reviewer", sa.Text, nullable=False),
    sa.Column("evidence", sa.Text, nullable=False),  # JSON
)
