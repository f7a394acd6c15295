"""A database connection: SQLite with a write-ahead log by default, PostgreSQL by URL; opening it migrates it.

There are three kinds of transactions. `read` waits for nobody. `capture` survives a kill of the process, but a power
failure may lose its last moments. `durable` is on the disk before the call returns: feedback, corrections, promotions.
After a lost connection (PostgreSQL restarts) a transaction is retried until `patience` seconds are over, so its work
must be safe to repeat: each insert carries a unique key.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self, TypeVar

from rung.errors import ConfigError, MachineError, install_command
from rung.feedback.records import STORE

try:
    import sqlalchemy as sa
    from sqlalchemy import exc
except ImportError as missing:
    raise MachineError(
        "missing-extra", "the store of interactions needs SQLAlchemy", hint=install_command("serve")
    ) from missing

if TYPE_CHECKING:
    from sqlalchemy.engine import URL, Connection

__all__ = ["StoreDatabase", "sa"]

TransactionKind = Literal["read", "capture", "durable"]
Result = TypeVar("Result")

HEAD = "0003"  # the newest migration
PATIENCE = 30.0  # seconds
_NO_ROOM = ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_READONLY")
_LOCK = 0x52756E67  # PostgreSQL's advisory lock for migrations: "Rung"
# SQLSTATEs after which the same transaction may succeed: shutdown, crash, starting up, serialization, deadlock,
# too many connections; class 08 is a lost connection.
_TRANSIENT = {"57P01", "57P02", "57P03", "40001", "40P01", "53300"}
# By the start of SQLite's error name or PostgreSQL's SQLSTATE: what is wrong, and what to do.
_EXPLAINED = (
    (("SQLITE_FULL", "SQLITE_IOERR", "53100"),
     "the store cannot be written, the disk is full or fails",
     "free some space; everything acknowledged is stored"),
    (("SQLITE_CORRUPT", "SQLITE_NOTADB"),
     "the store is not a database, or it is damaged",
     "restore a copy, or name another file with --store"),
    (("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "42501"),
     "the store cannot be opened for writing",
     "check the folder and its permissions, or name another file with --store"),
    (("SQLITE_BUSY", "SQLITE_LOCKED"),
     "another process holds the store",
     "wait for it to finish; for many writers use PostgreSQL"),
)  # fmt: skip
# What a PostgreSQL server or its driver says when it refuses a connection, which has no SQLSTATE. Trying again does not
# help. The first that fits counts.
_REFUSED = (
    (("invalid connection option", "invalid sslmode", "invalid integer", "invalid port"),
     "the store's URL has an unknown part",
     "write postgresql://user:password@host:5432/name"),
    (("certificate", "ssl", "tls"),
     "the encrypted connection fails",
     "the server may have no TLS (sslmode=disable), or a certificate that is not known here (sslrootcert=FILE)"),
    (("pg_hba.conf",),
     "the server lets nobody in from this machine with this user, database and encryption",
     "add a line to its pg_hba.conf, or end the URL with ?sslmode=require"),
    (("password", "authentication failed", "peer authentication"),
     "the user or the password is wrong",
     "check both; in the URL, write %40 for @, %2F for / and %23 for # in a password"),
    (("role ",), "there is no such user", "make it: createuser --pwprompt NAME"),
    (("database ",), "there is no such database", "make it: createdb --owner USER NAME"),
)  # fmt: skip
_STARTING = ("starting up", "shutting down", "recovery", "too many", "not accepting", "remaining connection slots")
LOG = logging.getLogger("rung.feedback")


class StoreDatabase:
    """Opens, migrates, retries, and turns the driver's errors into Rung's."""

    def __init__(
        self, location: str | Path = STORE, *, patience: float = PATIENCE, redact: Callable[[str], str] = str
    ) -> None:
        """Open an SQLite file or a URL (postgresql://user:password@host/name); create or migrate it where needed.

        A lost connection or a held lock is retried for `patience` seconds. `redact` is applied to what reviewers and
        users write. Only the owner may read a new file.

        Raises:
            ConfigError: `bad-option`.
            MachineError: `missing-extra`, `store-newer` or `store-failed`.
        """
        self.url = _url(location)
        self.patience, self.redact = patience, redact
        self.dialect = self.url.get_backend_name()
        self._alone = False  # whether no shared memory is used
        self._engine = self._connect()
        try:
            self._identity = self._made()
            self._migrate()
        except BaseException:
            self._engine.dispose()
            raise

    @property
    def name(self) -> str:
        """The location, without a password."""
        if self.dialect == "sqlite":
            return self.url.database or ""
        secrets = [key for key in self.url.query if "password" in key]
        return self.url.difference_update_query(secrets).render_as_string(hide_password=True)

    def run(self, kind: TransactionKind, work: Callable[[Connection], Result]) -> Result:
        """Do `work` in one transaction and return its result; a failing database is a MachineError, `store-failed`."""
        engine = self._engine.execution_options(rung=kind)
        if kind != "read" and self._file is not None and _identity(self._file) != self._identity:
            problem, hint = (
                f"{self.name} was removed or replaced",
                "put it back and start again; nothing is written now",
            )
            raise MachineError("store-failed", problem, hint=hint)
        start, wait = time.monotonic(), 0.05
        while True:
            try:
                with engine.begin() as connection:
                    return work(connection)
            except UnicodeDecodeError as error:
                raise damaged(f"{self.name}: {error}") from error
            except exc.DBAPIError as error:
                if kind == "read" and self._without_shared_memory(error):
                    engine = self._engine.execution_options(rung=kind)
                    continue
                if not self._transient(error) or time.monotonic() - start + wait > self.patience:
                    self._raise(error)
                if wait == 0.1 and self.dialect != "sqlite":  # the second failure
                    LOG.warning("%s does not answer; trying for %g s: %s", self.name, self.patience, _first_line(error))
            time.sleep(wait)
            wait = min(2 * wait, 1.0)

    def compact(self) -> None:
        """Let what was deleted leave the file."""
        if self._file is not None:
            try:
                with closing(sqlite3.connect(self._file, timeout=self.patience)) as connection:
                    connection.execute("VACUUM")
                    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            except sqlite3.Error as error:
                raise MachineError(
                    "store-failed", f"what was deleted is still in the free pages of {self.name}: {error}",
                    hint="free some space, end what uses the store, and purge again",
                ) from error  # fmt: skip

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        self.close()

    def _connect(self) -> sa.Engine:
        if self.dialect == "sqlite":
            engine = sa.create_engine(self.url, connect_args={"timeout": self.patience})
            sa.event.listen(engine, "connect", _prepare_alone if self._alone else _prepare_sqlite)
            sa.event.listen(engine, "begin", _begin_sqlite)
            return engine
        try:
            # A connection pooler in front of the server may not support prepared statements.
            return sa.create_engine(self.url, pool_pre_ping=True, connect_args={"prepare_threshold": None})
        except (ImportError, exc.NoSuchModuleError) as missing:
            raise MachineError(
                "missing-extra", f"{self.name} needs psycopg", hint=install_command("postgres")
            ) from missing

    @property
    def _file(self) -> Path | None:
        """The file of an SQLite store."""
        return Path(self.url.database or "") if self.dialect == "sqlite" else None

    def _made(self) -> tuple[int, int] | None:
        """Make the file of a new store, which only its owner may read, and identify it."""
        if self._file is None:
            return None
        with suppress(FileExistsError, OSError):  # opening it gives a better error
            os.close(os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        return _identity(self._file)

    def _without_shared_memory(self, error: exc.DBAPIError) -> bool:
        """Read on without the file of shared memory, which a full disk or a read-only folder does not let SQLite make.

        The store is locked for other processes meanwhile; it is not, where one of them has made that file.
        """
        name = str(getattr(error.orig, "sqlite_errorname", ""))
        if self.dialect != "sqlite" or self._alone or not name.startswith(_NO_ROOM):
            return False
        self._alone = True
        self._engine.dispose()
        self._engine = self._connect()
        return True

    def _migrate(self) -> None:
        version = self.run("read", _version)
        if version is not None and version > HEAD:
            problem = f"{self.name} was migrated to version {version} by a newer Rung; this one knows {HEAD}"
            hint = "update Rung: this version could lose data that the newer one stored"
            raise MachineError("store-newer", problem, hint=hint)
        if version != HEAD:
            self.run("durable", self._upgrade)

    def _upgrade(self, connection: Connection) -> None:
        """Run the migrations; when several processes open a new store at once, the others wait and find it done."""
        from alembic import command
        from alembic.config import Config

        if self.dialect == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
        config = Config()
        config.set_main_option("script_location", "rung.feedback:migrations")
        config.attributes["connection"] = connection
        command.upgrade(config, "head")

    def _transient(self, error: exc.DBAPIError) -> bool:
        if self.dialect == "sqlite":
            # The driver waits for a lock itself, except where another process is switching a new file to WAL.
            return str(getattr(error.orig, "sqlite_errorname", "")).startswith("SQLITE_BUSY")
        state = getattr(error.orig, "sqlstate", None)
        if state is None and _refusal(error) is not None:
            return False
        # A failed connection attempt has no state.
        return error.connection_invalidated or state is None or state in _TRANSIENT or state.startswith("08")

    def _raise(self, error: exc.DBAPIError) -> NoReturn:
        state = getattr(error.orig, "sqlite_errorname", None) or getattr(error.orig, "sqlstate", None) or ""
        first = _first_line(error)
        if not state and self.dialect != "sqlite" and (refused := _refusal(error)) is not None:
            problem, hint = refused
            raise MachineError("store-failed", f"{problem}: {self.name}: {first}", hint=hint) from error
        for states, problem, hint in _EXPLAINED:
            if state.startswith(states):
                raise MachineError("store-failed", f"{problem}: {self.name}: {first}", hint=hint) from error
        if isinstance(error, exc.IntegrityError | exc.ProgrammingError | exc.NotSupportedError | exc.DataError):
            raise error  # a bug in Rung: keep its traceback
        raise MachineError(
            "store-failed", f"{self.name} does not answer: {first}",
            hint="nothing acknowledged is lost; start the database, or name another store with --store",
        ) from error  # fmt: skip


def _first_line(error: exc.DBAPIError) -> str:
    return next(iter(str(error.orig).strip().splitlines()), type(error.orig).__name__)


def _refusal(error: exc.DBAPIError) -> tuple[str, str] | None:
    """What is wrong with a connection that was refused, and what to do; None where time may help."""
    said = str(error.orig).lower()
    said = said.rpartition("failed: ")[2] or said  # without the address, which may have any name in it
    if "failed to resolve" in said or any(word in said for word in _STARTING):
        return None
    return next(((problem, hint) for words, problem, hint in _REFUSED if any(word in said for word in words)), None)


def _url(location: str | Path) -> URL:
    """The database's URL; a text without `://` is the path of an SQLite file."""
    if isinstance(location, Path) or "://" not in location:
        return sa.URL.create("sqlite", database=str(Path(location).expanduser().absolute()))
    try:
        url = sa.make_url(location)
    except (exc.ArgumentError, ValueError):
        url = None
    if url is None or "@" in f"{url.host}{url.database}":
        # The message leaves the URL out: it may hold a password.
        hint = "write postgresql://user:password@host:5432/name, and in a password %40 for @, %2F for / and %23 for #"
        raise ConfigError("bad-option", "the store's URL cannot be read", hint=hint)
    if url.get_backend_name() not in ("sqlite", "postgresql"):
        raise ConfigError(
            "bad-option", f"{url.get_backend_name()} is not supported as a store", hint="use sqlite or postgresql"
        )
    return url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url


def _version(connection: Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    version: str | None = connection.execute(sa.text("select version_num from alembic_version")).scalar()
    return version


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # `_begin_sqlite` begins transactions, not the driver
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _prepare_alone(connection: Any, _record: Any) -> None:
    connection.isolation_level = None
    connection.execute("PRAGMA locking_mode=EXCLUSIVE")


def _identity(file: Path) -> tuple[int, int] | None:
    """What tells a file from another one that took its name; None if there is none."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def damaged(problem: str) -> MachineError:
    """The error of a store whose contents cannot be read."""
    return MachineError("store-failed", f"the store is damaged: {problem}", hint="restore a copy of it")


def _begin_sqlite(connection: Connection) -> None:
    kind = connection.get_execution_options().get("rung", "read")
    if kind != "read":
        connection.exec_driver_sql(f"PRAGMA synchronous={'FULL' if kind == 'durable' else 'NORMAL'}")
    # A writer takes the lock at once: a transaction that reads first and writes later could not wait for another.
    connection.exec_driver_sql("BEGIN" if kind == "read" else "BEGIN IMMEDIATE")


class UtcDateTime(sa.types.TypeDecorator[datetime]):
    """A point in time, in UTC on every database; SQLite stores no time zone."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        """Convert to UTC before storing."""
        if value is not None and value.tzinfo is None:
            raise ValueError(f"{value} has no time zone")
        utc = value and value.astimezone(UTC)
        return utc.replace(tzinfo=None) if utc and dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, _dialect: Any) -> datetime | None:
        """Convert what was stored to UTC."""
        return value and (value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC))


# The tables. `migrations/` creates them; a test compares the two.

METADATA = sa.MetaData()


def _columns(kind: Any, *names: str, **options: Any) -> list[sa.Column[Any]]:
    """Columns of one type, without nulls."""
    return [sa.Column(name, kind, nullable=False, **options) for name in names]


def _log(name: str, *columns: sa.Column[Any]) -> sa.Table:
    """A table to which rows are only added; the token makes a repeated insert harmless."""
    number = sa.Column("number", sa.Integer, primary_key=True, autoincrement=True)
    common = [number, *_columns(sa.String(32), "token", unique=True), *_columns(UtcDateTime, "at")]
    return sa.Table(name, METADATA, *common, *columns)


def _of_interaction() -> sa.Column[Any]:
    return sa.Column("interaction", sa.String(80), sa.ForeignKey("interactions.id"), nullable=False, index=True)


interactions = sa.Table(
    "interactions",
    METADATA,
    sa.Column("id", sa.String(80), primary_key=True),
    *_columns(UtcDateTime, "at"),
    *_columns(sa.Text, "task", "system", "template", "inputs", "actual", "finish"),  # inputs: JSON
    *_columns(sa.String(64), "artifact", "model", "template_version", "prompt_sha256"),
    *_columns(sa.Integer, "prompt_tokens", "completion_tokens"),
    *_columns(sa.Float, "seconds"),
    *_columns(sa.String(16), "input_id"),
    *_columns(sa.String(5), "split"),
    sa.Column("confidence", sa.Float),
    sa.Column("key", sa.Text),
    *_columns(sa.String(32), "trial", server_default=""),
    *_columns(sa.String(80), "shadows", server_default=""),
    *_columns(sa.Boolean, "missed", server_default=sa.false()),
    sa.Index("interactions_by_task", "task", "at"),
    sa.Index("interactions_by_trial", "trial"),
    sa.Index("interactions_by_shadowed", "shadows"),
)
feedback = _log(
    "feedback",
    _of_interaction(),
    *_columns(sa.Text, "source", "comment"),  # source: see `Feedback`
    sa.Column("thumb", sa.String(4)),
    sa.Column("score", sa.Float),
    sa.Column("expected", sa.Text),
    sa.Column("key", sa.Text),
)
corrections = _log(  # in force is the last correction that no later row undoes
    "corrections",
    _of_interaction(),
    *_columns(sa.Text, "reviewer", "comment"),
    sa.Column("expected", sa.Text),
    sa.Column("undoes", sa.Integer, sa.ForeignKey("corrections.number"), index=True),
)
promotions = _log(
    "promotions",
    *_columns(sa.Text, "task", index=True),
    *_columns(sa.String(8), "kind"),
    *_columns(sa.String(64), "artifact"),
    *_columns(sa.Text, "folder", "reviewer", "evidence"),  # evidence: JSON
    sa.Column("below", sa.String(32)),
)
