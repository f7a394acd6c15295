"""Where passages lie: a LanceDB table on disk or in an object store, with one index for words and one for vectors.

LanceDB keeps every version of a table, so a reader that opened one is not disturbed by a writer.
"""

from __future__ import annotations

import math
import re
import secrets
import socket
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cached_property, lru_cache, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from rung.data.rows import hash_of
from rung.engines.base import Floats
from rung.errors import ArtifactError, ConfigError, needed_by
from rung.models.cache import cache_dir, lock_file, write_atomically
from rung.progress import Progress

Ids = npt.NDArray[np.int64]
Hits = list[tuple[Ids, Floats]]  # per query: row ids and scores, best first

PREFIX = "passages-"  # of the names of all tables of passages
EXACT = 20_000  # up to so many passages every vector is compared; above, a quantized index finds candidates
SEARCHES = 4  # side by side
PARTITION = 4096  # vectors of one partition of the index
PROBES = 0.06  # share of the partitions that a search looks into
# What the index finds is compared exactly: so many times the wanted vectors, and at least so many of 100,000 passages;
# of more, in the root of their number, as more of them are nearly as near.
REFINED, FEWEST_REFINED, AMONG = 3, 300, 100_000


Given = ParamSpec("Given")
Returned = TypeVar("Returned")


def _reaching(method: Callable[Concatenate[Store, Given], Returned]) -> Callable[Concatenate[Store, Given], Returned]:
    """Let a method tell what LanceDB says as `reached` does."""

    @wraps(method)
    def told(self: Store, /, *args: Given.args, **settings: Given.kwargs) -> Returned:
        with reached(self.address):
            return method(self, *args, **settings)

    return told


class Store:
    """One table of passages.

    Args:
        address: a folder, or the URL of an object store.
        name: the table's.
        metadata: how many columns of metadata its passages have.
    """

    def __init__(self, address: str, name: str, metadata: int) -> None:
        self.address, self._name = address, name
        self._database: Any = connected(address)
        self._metadata = metadata
        self._opened: Any = None

    @property
    def columns(self) -> list[str]:
        """What a passage is made of, without vector and terms."""
        extra = [f"metadata_{number}" for number in range(self._metadata)]
        return ["id", "document", "title", "text", "page", "start", "end", *extra]

    @property
    def _table(self) -> Any:
        if self._opened is None:
            self._opened = self._database.open_table(self._name)
        return self._opened

    @_reaching
    def exists(self) -> bool:
        """Tell whether the table was begun."""
        return self._name in names(self._database)

    @_reaching
    def create(self, dimension: int) -> None:
        """Make the empty table."""
        self._opened = self._database.create_table(self._name, schema=self._schema(dimension))

    @_reaching
    def drop(self) -> None:
        """Remove the table, where there is one."""
        self._opened = None
        if self.exists():
            self._database.drop_table(self._name)

    @_reaching
    def drop_others(self) -> None:
        """Remove tables of passages that were made with other settings."""
        for name in names(self._database):
            if name.startswith(PREFIX) and name != self._name:
                self._database.drop_table(name)

    def _schema(self, dimension: int) -> Any:
        import pyarrow as pa

        text = [(name, pa.string()) for name in ("id", "document", "hash", "source", "title", "text", "terms")]
        places = [("page", pa.int32()), ("start", pa.int64()), ("end", pa.int64())]
        extra = [(f"metadata_{number}", pa.string()) for number in range(self._metadata)]
        return pa.schema([*text, *places, *extra, ("vector", pa.list_(pa.float32(), dimension))])

    # ---- writing

    @_reaching
    def add(self, rows: Mapping[str, Sequence[Any]], vectors: Floats) -> None:
        """Write passages at once: all of them are there afterwards, or none."""
        import pyarrow as pa

        schema = self._schema(vectors.shape[1])
        flat = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(vectors).ravel()), vectors.shape[1])
        columns = [flat if field.name == "vector" else pa.array(rows[field.name], field.type) for field in schema]
        self._table.add(pa.table(columns, schema=schema))

    @_reaching
    def documents(self) -> dict[tuple[str, str], str]:
        """Return the source of every (document, hash) that is there."""
        found = {}
        reader = self._table.search().select(["document", "hash", "source"]).to_batches(65_536)
        for batch in reader:
            names = (batch.column(name).to_pylist() for name in ("document", "hash", "source"))
            found.update({(document, digest): source for document, digest, source in zip(*names, strict=True)})
        return found

    @_reaching
    def delete(self, documents: Iterable[tuple[str, str]]) -> None:
        """Remove versions of documents, given as (document, hash)."""
        all_of_them = list(documents)
        for first in range(0, len(all_of_them), 500):
            some = all_of_them[first : first + 500]
            self._table.delete(" OR ".join(f"(document = {_quoted(d)} AND hash = {_quoted(h)})" for d, h in some))

    @_reaching
    def finish(self, *, changed: bool, previous: int | None) -> int:
        """Index what was written, compact the table, remove old versions; return the version to read.

        Args:
            changed: whether anything was written.
            previous: the version that was to be read so far, which readers may have open: it and later ones are kept.
        """
        if changed or not self._indexed("terms"):
            self._index()
            with warnings.catch_warnings():  # it warns that readers of older versions fail: there are none
                warnings.simplefilter("ignore", UserWarning)
                self._table.optimize(cleanup_older_than=self._age(previous))
        return int(self._table.version)

    def _age(self, version: int | None) -> timedelta:
        """Return how long ago a version was written, and a little more; zero for one that is not there."""
        written: dict[int | None, datetime] = {one["version"]: one["timestamp"] for one in self._table.list_versions()}
        if version not in written:
            return timedelta(0)
        stamp = written[version]
        return max(timedelta(0), datetime.now(stamp.tzinfo) - stamp) + timedelta(seconds=1)

    def _index(self) -> None:
        from lancedb.index import FTS, IvfRq

        rows = self.count()
        if not self._indexed("terms"):
            words = FTS(
                base_tokenizer="whitespace", lower_case=False, stem=False, remove_stop_words=False,
                ascii_folding=False, max_token_length=None,
            )  # fmt: skip
            self._table.create_index("terms", config=words)
        if rows > EXACT and not self._indexed("vector"):
            # RaBitQ (Gao & Long, SIGMOD 2024): found as much as product quantization, and is trained in a hundredth of
            # the time.
            config = IvfRq(distance_type="dot", num_partitions=max(1, rows // PARTITION))
            self._table.create_index("vector", config=config)

    def _indexed(self, column: str) -> bool:
        return any(column in index.columns for index in self._table.list_indices())

    # ---- reading

    def checkout(self, version: int) -> None:
        """Read this version, whatever is written meanwhile.

        Raises:
            LookupError: the table or the version is not there.
        """
        try:
            self._table.checkout(version)
        except ValueError as problem:
            if re.search("no longer exists|was not found", str(problem)):
                raise LookupError(str(problem).splitlines()[0]) from problem
            raise

    def count(self) -> int:
        """Return the number of passages."""
        return int(self._table.count_rows())

    @_reaching
    def nearest(self, vectors: Floats, limit: int, where: str | None) -> Hits:
        """Return the passages with the largest dot products to each vector."""
        search = self._table.search(vectors).distance_type("dot").limit(limit).select(["_distance"]).with_row_id(True)
        if (count := self.count()) > EXACT:
            partitions = max(1, count // PARTITION)
            fewest = FEWEST_REFINED * max(1.0, math.sqrt(count / AMONG))
            factor = max(REFINED, math.ceil(fewest / limit))
            search = search.nprobes(max(8, math.ceil(PROBES * partitions))).refine_factor(factor)
        found = (search.where(where, prefilter=True) if where else search).to_arrow()
        which = found["query_index"].to_numpy() if "query_index" in found.schema.names else np.zeros(len(found), int)
        ids, scores = found["_rowid"].to_numpy().astype(np.int64), 1 - found["_distance"].to_numpy()
        hits = []
        for query in range(len(vectors)):
            mine = np.flatnonzero(which == query)
            mine = mine[np.lexsort((ids[mine], -scores[mine]))]
            hits.append((ids[mine], scores[mine].astype(np.float32)))
        return hits

    @_reaching
    def matching(self, terms: Sequence[str], limit: int, where: str | None) -> Hits:
        """Return the passages with the largest BM25 scores for each query's terms, joined by spaces."""
        from lancedb.query import MatchQuery

        ask: Any = MatchQuery  # its defaults are not in its types

        def one(query: str) -> tuple[Ids, Floats]:
            if not query:
                return np.zeros(0, np.int64), np.zeros(0, np.float32)
            search = self._table.search(ask(query, "terms"), query_type="fts").limit(limit)
            search = search.select(["_score"]).with_row_id(True)
            found = (search.where(where, prefilter=True) if where else search).to_arrow()
            ids, scores = found["_rowid"].to_numpy().astype(np.int64), found["_score"].to_numpy()
            order = np.lexsort((ids, -scores))
            return ids[order], scores[order].astype(np.float32)

        with ThreadPoolExecutor(SEARCHES) as workers:
            return list(workers.map(one, terms))

    @_reaching
    def take(self, ids: Sequence[int], *, vectors: bool) -> dict[int, dict[str, Any]]:
        """Return passages by row id, as mappings of their columns; `vector` is among them where asked for."""
        if not len(ids):
            return {}
        columns = [*self.columns, "vector"] if vectors else self.columns
        found = self._table.take_row_ids([int(one) for one in ids]).with_row_id().select(columns).to_arrow()
        rows = found.drop_columns(["vector"] if vectors else []).to_pylist()
        if vectors:
            dense = found["vector"].combine_chunks()
            matrix = dense.flatten().to_numpy().reshape(len(rows), -1)
            for row, vector in zip(rows, matrix, strict=True):
                row["vector"] = vector
        return {row.pop("_rowid"): row for row in rows}


def condition(filters: Mapping[str, str | Sequence[str]], metadata: Sequence[str]) -> str | None:
    """Return filters as SQL: every column has to hold its value, or one of its values.

    Args:
        filters: by `document`, `source`, `title`, or a column of `corpus.metadata`.
        metadata: the columns of `corpus.metadata`.

    Raises:
        ConfigError: a filter names another column.
    """
    known = {"document": "document", "source": "source", "title": "title"}
    known |= {name: f"metadata_{number}" for number, name in enumerate(metadata)}
    parts = []
    for name, wanted in filters.items():
        if name not in known:
            raise ConfigError(
                "unknown-name", f"passages have no {name!r} to filter by", hint=f"there are {', '.join(known)}"
            )
        values = [wanted] if isinstance(wanted, str) else list(wanted)
        parts.append(f"{known[name]} IN ({', '.join(map(_quoted, values))})" if values else "false")
    return " AND ".join(parts) or None


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def connected(address: str) -> Any:
    """Return LanceDB's connection to a folder or an object store; nothing is reached yet.

    Raises:
        MachineError: LanceDB is not installed.
    """
    with needed_by("retrieval", extra="rag"):
        import lancedb
    with reached(address):
        return lancedb.connect(address)


def names(database: Any) -> list[str]:
    """Return the names of all tables."""
    found: list[str] = []
    token = None
    while True:
        page = database.list_tables(page_token=token)
        found += page.tables
        token = page.page_token
        if not token:
            return found


@contextmanager
def reached(address: str) -> Iterator[None]:
    """Tell what LanceDB says of a place that it cannot read or write.

    Raises:
        ArtifactError: `index-unreachable`.
    """
    try:
        yield
    except (ValueError, RuntimeError, OSError) as problem:  # LanceDB's own, by what is missing
        raise unreachable(address, problem) from problem


def unreachable(address: str, problem: Exception) -> ArtifactError:
    """Return the error that tells why the tables at an address cannot be used."""
    return ArtifactError(
        "index-unreachable",
        f"the index at {address} cannot be read or written: {_cause(str(problem))}",
        hint="`rung explain index-unreachable` tells what to look at, and the variables of object stores",
    )


def _cause(text: str) -> str:
    """Return the code and message of an object store's answer, or the beginning of what LanceDB says."""
    answer = re.search(r"<Code>(.*?)</Code>(?:\s*<Message>(.*?)</Message>)?", text)
    if answer:
        return ": ".join(part for part in answer.groups() if part)
    return text.splitlines()[0][:300]


# --------------------
# Where an index lies, a folder or the URL of an object store: what it holds, and who may build it.
#
# In a folder `index.json` says what the index holds, and a lock of the file system, which ends with its process, keeps
# two builds apart. An object store has neither. There the LanceDB table `index` has one row with the same text and the
# name of who builds. An update of it is one conditional write, so that of two that take the lock at once one does.


MANIFEST = "index.json"
TABLES = "passages.lance"
STATE = "index"  # the table of an object store that holds what index.json does, and the lock
KEPT = timedelta(days=1)  # that older states stay, for who reads meanwhile
TRIES = 5  # of a write that met another one
CONFLICT = re.compile("commit conflict|incompatible with concurrent")
URL = re.compile(r"(s3|gs|az)://[^/?#\s][^?#\s]*")

Place = Path | str  # a folder, or the URL of an object store


class IndexPlace(Protocol):
    """What a build and a reader need of the place of an index."""

    @property
    def tables(self) -> str:
        """Where LanceDB keeps the passages."""

    def read(self) -> str | None:
        """Return what was published last; None where nothing is."""

    def building(self, progress: Progress, *, unlock: bool = False) -> Any:
        """Return a context in which no other process builds here; `unlock` takes the lock of a build that died."""

    def check(self) -> None:
        """Check that this build still has the lock; to be called in `building`, before every write."""

    def publish(self, text: str) -> None:
        """Replace what `read` returns, at once."""

    def withdraw(self) -> None:
        """Make `read` return None."""


def place_of(text: str | Path) -> Place:
    """Return a folder as a path, and a URL as it is, without a slash at its end."""
    return text.rstrip("/") if isinstance(text, str) and URL.fullmatch(text) else Path(text).expanduser()


def open_place(place: Place) -> IndexPlace:
    """Return the place at a folder or URL."""
    return _bucket(place) if isinstance(place, str) else _Folder(place.absolute())


class _Folder:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.tables = str(folder / TABLES)

    def read(self) -> str | None:
        file = self._folder / MANIFEST
        return file.read_text("utf-8") if file.exists() else None

    @contextmanager
    def building(self, progress: Progress, *, unlock: bool = False) -> Iterator[None]:
        del unlock  # the lock of a process that died is free
        with _alone_here(str(self._folder), progress):
            yield

    def check(self) -> None:
        """The lock cannot be lost."""

    def publish(self, text: str) -> None:
        write_atomically(self._folder / MANIFEST, text)

    def withdraw(self) -> None:
        (self._folder / MANIFEST).unlink(missing_ok=True)


class _Bucket:
    def __init__(self, url: str) -> None:
        self.tables = url
        self._seen: tuple[int, str | None] = (0, None)  # version of the state, and its text

    @cached_property
    def _database(self) -> Any:
        return connected(self.tables)

    @cached_property
    def _state(self) -> Any:
        return self._database.open_table(STATE)

    @cached_property
    def _me(self) -> str:
        """The machine and its cache, whose lock files keep its own processes apart."""
        return f"{socket.gethostname()}/{_cache_id()}"

    def read(self) -> str | None:
        with reached(self.tables):
            if "_state" not in vars(self) and STATE not in names(self._database):
                return None
            self._state.checkout_latest()
            if (version := self._state.version) != self._seen[0]:
                self._seen = (version, self._row()["text"] or None)
            return self._seen[1]

    def _row(self) -> dict[str, str]:
        (row,) = self._state.to_arrow().to_pylist()
        return dict(row)

    @contextmanager
    def building(self, progress: Progress, *, unlock: bool = False) -> Iterator[None]:
        with _alone_here(self.tables, progress):
            self._take(unlock=unlock)
            try:
                yield
            finally:
                self._update(f"owner = '{self._me}'", owner="", since="")

    def _take(self, *, unlock: bool) -> None:
        """Take the lock. One with this machine's name was left by a process that died: `_alone_here` says so.

        Raises:
            ArtifactError: another machine has it.
        """
        with reached(self.tables):
            if STATE not in names(self._database):
                self._begin()
        free = "true" if unlock else f"owner IN ('', '{self._me}')"
        if not self._update(free, owner=self._me, since=datetime.now(UTC).isoformat(" ", "seconds")):
            row = self._row()
            raise ArtifactError(
                "index-locked",
                f"{row['owner'].partition('/')[0]} builds the index {self.tables}, since {row['since']}",
                hint="wait until it is done; if that build has died, `rung index build TASK --unlock` goes on with it",
            )

    def _begin(self) -> None:
        import pyarrow as pa

        try:
            empty = pa.table({"owner": [""], "since": [""], "text": [""]})
            self._database.create_table(STATE, empty, exist_ok=True)
        except RuntimeError as problem:
            if not CONFLICT.search(str(problem)):
                raise  # else another machine made it at the same time

    def _update(self, where: str, **values: str) -> int:
        """Change the row if the condition holds; return 1 if it did, else 0."""
        with reached(self.tables):
            for _ in range(TRIES - 1):
                try:
                    return self._update_once(where, values)
                except RuntimeError as problem:
                    if not CONFLICT.search(str(problem)):
                        raise
            return self._update_once(where, values)

    def _update_once(self, where: str, values: dict[str, str]) -> int:
        self._state.checkout_latest()
        return int(self._state.update(where=where, values=values).rows_updated)

    def check(self) -> None:
        with reached(self.tables):
            self._state.checkout_latest()
            owner = self._row()["owner"]
        if owner != self._me:
            raise self._lost()

    def publish(self, text: str) -> None:
        with reached(self.tables):
            self._state.optimize(cleanup_older_than=KEPT)
        if not self._update(f"owner = '{self._me}'", text=text):
            raise self._lost()

    def withdraw(self) -> None:
        self.publish("")

    def _lost(self) -> ArtifactError:
        return ArtifactError(
            "index-locked",
            f"another build took the lock of {self.tables} meanwhile",
            hint="let that one finish, then run `rung index build TASK` again: it keeps what is there",
        )


@lru_cache(maxsize=8)
def _bucket(url: str) -> _Bucket:
    return _Bucket(url)


@contextmanager
def _alone_here(address: str, progress: Progress) -> Iterator[None]:
    """Wait for other builds on this machine."""
    progress.start("waiting for another build of this index")
    with FileLock(lock_file(Path(address))):
        progress.finish()
        yield


def _cache_id() -> str:
    """Return a random name of this cache, made at the first call."""
    file = cache_dir() / "locks" / "id"
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock_file(file)):
        if not file.exists():
            write_atomically(file, secrets.token_hex(16))
        return file.read_text("utf-8")


def stamp(place: Place) -> str:
    """Return what changes when an index was published anew."""
    if isinstance(place, str):
        return hash_of([open_place(place).read()], 16)
    file = place / MANIFEST
    return str(file.stat().st_mtime_ns) if file.exists() else ""
