"""Where passages lie: a LanceDB table on disk or in an object store, with one index for words and one for vectors.

LanceDB keeps every version of a table, so a reader that opened one is not disturbed by a writer.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import cached_property, lru_cache, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from rung.data.rows import hash_of
from rung.data.spec import OBJECT_STORE_URL
from rung.engines.api_options import check_reachable
from rung.engines.base import Floats
from rung.errors import ArtifactError, ConfigError, needed_by
from rung.models.cache import cache_dir, known_sha256
from rung.models.files import locked, write_atomically
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

Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")


def _reaching(
    method: Callable[Concatenate[PassageTable, Parameters], Returned],
) -> Callable[Concatenate[PassageTable, Parameters], Returned]:
    """Run a method of a table inside `reached`."""

    @wraps(method)
    def inside(self: PassageTable, /, *args: Parameters.args, **settings: Parameters.kwargs) -> Returned:
        with reached(self.address):
            return method(self, *args, **settings)

    return inside


class PassageTable:
    """One table of passages in a folder or at the URL of an object store, with some columns of metadata."""

    def __init__(self, address: str, name: str, metadata: int) -> None:
        self.address, self._name = address, name
        self._database: Any = connected(address)
        self._metadata = [f"metadata_{number}" for number in range(metadata)]
        self._opened: Any = None

    @property
    def _table(self) -> Any:
        if self._opened is None:
            self._opened = self._database.open_table(self._name)
        return self._opened

    @_reaching
    def exists(self) -> bool:
        """Whether a build began it."""
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

        texts = ["id", "document", "hash", "source", "title", "text", "terms"]
        positions = [("page", pa.int32()), ("start", pa.int64()), ("end", pa.int64())]
        columns = [*((name, pa.string()) for name in texts), *positions, *((n, pa.string()) for n in self._metadata)]
        return pa.schema([*columns, ("vector", pa.list_(pa.float32(), dimension))])

    # ---- writing

    @_reaching
    def add(self, rows: Mapping[str, Sequence[Any]], vectors: Floats) -> None:
        """Write passages in one commit: all or none."""
        import pyarrow as pa

        schema = self._schema(vectors.shape[1])
        flat = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(vectors).ravel()), vectors.shape[1])
        columns = [flat if field.name == "vector" else pa.array(rows[field.name], field.type) for field in schema]
        self._table.add(pa.table(columns, schema=schema))

    @_reaching
    def documents(self) -> dict[tuple[str, str], str]:
        """Map every (document, hash) in the table to its source."""
        sources = {}
        columns = ["document", "hash", "source"]
        for batch in self._table.search().select(columns).to_batches(65_536):
            rows = zip(*(batch.column(name).to_pylist() for name in columns), strict=True)
            sources.update({(document, digest): source for document, digest, source in rows})
        return sources

    @_reaching
    def places(self) -> list[tuple[str, int, str, str]]:
        """List document, start, title and text of all passages, which may overlap, in order."""
        columns = ["document", "start", "title", "text"]
        batches = self._table.search().select(columns).to_batches(65_536)
        return sorted(
            place for batch in batches for place in zip(*(batch.column(c).to_pylist() for c in columns), strict=True)
        )

    @_reaching
    def delete(self, documents: Iterable[tuple[str, str]]) -> None:
        """Remove versions of documents, given as (document, hash)."""
        versions = list(documents)
        for first in range(0, len(versions), 500):
            some = versions[first : first + 500]
            self._table.delete(" OR ".join(f"(document = {_quoted(d)} AND hash = {_quoted(h)})" for d, h in some))

    @_reaching
    def latest_count(self) -> int:
        """Count the passages of the newest version, whoever wrote it."""
        self._table.checkout_latest()
        return self.count()

    @_reaching
    def finish(self, *, changed: bool, previous: int | None) -> int:
        """Index new passages, compact the table and remove old versions; return the version to read.

        `previous` is the version published so far, which readers may have open: it and later ones are kept.
        """
        if changed or not self._indexed("terms"):
            self._index()
            with warnings.catch_warnings():  # it warns that readers of older versions fail: there are none
                warnings.simplefilter("ignore", UserWarning)
                self._table.optimize(cleanup_older_than=self._age(previous))
        return int(self._table.version)

    def _age(self, version: int | None) -> timedelta:
        """Measure how long ago a version was written, and add a second; zero for one that does not exist."""
        written: dict[int | None, datetime] = {
            known["version"]: known["timestamp"] for known in self._table.list_versions()
        }
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
            # RaBitQ (Gao & Long, SIGMOD 2024) finds as much as product quantization and trains 100 times faster.
            config = IvfRq(distance_type="dot", num_partitions=max(1, rows // PARTITION))
            self._table.create_index("vector", config=config)

    def _indexed(self, column: str) -> bool:
        return any(column in index.columns for index in self._table.list_indices())

    # ---- reading

    def checkout(self, version: int) -> None:
        """Read this version from now on, even while others write.

        Raises:
            LookupError: the table or the version does not exist.
        """
        try:
            self._table.checkout(version)
        except ValueError as problem:
            if re.search("no longer exists|was not found", str(problem)):
                raise LookupError(str(problem).splitlines()[0]) from problem
            raise

    def count(self) -> int:
        """Count the passages."""
        return int(self._table.count_rows())

    @_reaching
    def nearest(self, vectors: Floats, limit: int, where: str | None) -> Hits:
        """Find the passages with the largest dot products to each vector."""
        search = self._table.search(vectors).distance_type("dot").limit(limit).select(["_distance"]).with_row_id(True)
        if (count := self.count()) > EXACT:
            partitions = max(1, count // PARTITION)
            fewest = FEWEST_REFINED * max(1.0, math.sqrt(count / AMONG))
            factor = max(REFINED, math.ceil(fewest / limit))
            search = search.nprobes(max(8, math.ceil(PROBES * partitions))).refine_factor(factor)
        hits = (search.where(where, prefilter=True) if where else search).to_arrow()
        which = hits["query_index"].to_numpy() if "query_index" in hits.schema.names else np.zeros(len(hits), int)
        ids, scores = hits["_rowid"].to_numpy().astype(np.int64), 1 - hits["_distance"].to_numpy()
        return [_best_first(ids[which == query], scores[which == query]) for query in range(len(vectors))]

    @_reaching
    def matching(self, terms: Sequence[str], limit: int, where: str | None) -> Hits:
        """Find the passages with the largest BM25 scores for each query's terms, joined by spaces."""
        from lancedb.query import MatchQuery

        ask: Any = MatchQuery  # its defaults are not in its types

        def match(query: str) -> tuple[Ids, Floats]:
            if not query:
                return np.zeros(0, np.int64), np.zeros(0, np.float32)
            search = self._table.search(ask(query, "terms"), query_type="fts").limit(limit)
            search = search.select(["_score"]).with_row_id(True)
            hits = (search.where(where, prefilter=True) if where else search).to_arrow()
            return _best_first(hits["_rowid"].to_numpy().astype(np.int64), hits["_score"].to_numpy())

        with ThreadPoolExecutor(SEARCHES) as workers:
            return list(workers.map(match, terms))

    @_reaching
    def take(self, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
        """Read passages by row id, as mappings of their columns with the vector."""
        if not len(ids):
            return {}
        columns = ["id", "document", "title", "text", "page", "start", "end", *self._metadata, "vector"]
        table = self._table.take_row_ids([int(row) for row in ids]).with_row_id().select(columns).to_arrow()
        rows = table.drop_columns(["vector"]).to_pylist()
        matrix = table["vector"].combine_chunks().flatten().to_numpy().reshape(len(rows), -1)
        return {row.pop("_rowid"): {**row, "vector": vector} for row, vector in zip(rows, matrix, strict=True)}


def _best_first(ids: Ids, scores: Floats) -> tuple[Ids, Floats]:
    """Sort hits by score; ties go to the smaller row id."""
    order = np.lexsort((ids, -scores))
    return ids[order], scores[order].astype(np.float32)


def condition(filters: Mapping[str, str | Sequence[str]], metadata: Sequence[str]) -> str | None:
    """Write filters as SQL: every column has to hold its value, or one of its values.

    Filters are by `document`, `source`, `title`, or a column of `corpus.metadata`, which `metadata` lists.

    Raises:
        ConfigError: a filter names another column.
    """
    known = {name: name for name in ("document", "source", "title")}
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


# ---- reaching LanceDB


def connected(address: str) -> Any:
    """Connect to a folder or an object store with LanceDB, which reads nothing yet.

    Raises:
        MachineError: LanceDB is not installed.
    """
    with needed_by("retrieval", extra="rag"):
        import lancedb
    with reached(address):
        return lancedb.connect(address)


def names(database: Any) -> list[str]:
    """List all tables."""
    tables: list[str] = []
    token = None
    while True:
        page = database.list_tables(page_token=token)
        tables += page.tables
        if not (token := page.page_token):
            return tables


@contextmanager
def reached(address: str) -> Iterator[None]:
    """Turn LanceDB's errors into one that names the address.

    Raises:
        ArtifactError: `index-unreachable`.
    """
    try:
        yield
    except Exception as problem:
        if not is_of_lancedb(problem):
            raise
        raise unreachable(address, problem) from problem


def is_of_lancedb(problem: Exception) -> bool:
    """Whether LanceDB raises this where a table is missing, damaged or out of reach; a panic's class has no import."""
    return isinstance(problem, ValueError | RuntimeError | OSError) or type(problem).__name__ == "RustPanic"


def unreachable(address: str, problem: Exception) -> ArtifactError:
    """Explain why LanceDB cannot use the tables at an address, with the object store's own code and message."""
    answer = re.search(r"<Code>([^<]*+)</Code>(?:\s*+<Message>([^<]*+)</Message>)?", str(problem))
    cause = ": ".join(filter(None, answer.groups())) if answer else str(problem).splitlines()[0][:300]
    return ArtifactError(
        "index-unreachable", f"the index at {address} cannot be read or written: {cause}",
        hint="`rung explain index-unreachable` lists the usual causes, and the variables of object stores",
    )  # fmt: skip


# ---- locations
#
# An index is in a folder or at the URL of an object store. In a folder, `index.json` says what the index holds. An
# object store cannot replace a file that others read, so there the LanceDB table `index` has one row with that text.

MANIFEST = "index.json"
TABLES = "passages.lance"
HINT = "latest_version_hint.json"
STATE = "index"  # the table of an object store that holds what index.json does
KEPT = timedelta(days=1)  # older states are removed; a reader may be reading a younger one

IndexLocation = Path | str  # a folder, or the URL of an object store


def location_of(text: str | Path) -> IndexLocation:
    """Tell a URL, without the slash at its end, from a folder."""
    return text.rstrip("/") if isinstance(text, str) and OBJECT_STORE_URL.fullmatch(text) else Path(text).expanduser()


def open_location(location: IndexLocation) -> _Folder | _Bucket:
    """Open the folder or object store of an index; nothing is read yet."""
    return _bucket(location) if isinstance(location, str) else _Folder(location.absolute())


@contextmanager
def building(location: IndexLocation, progress: Progress) -> Iterator[None]:
    """Keep two builds on this machine apart: the second waits. The lock of a process that died is free."""
    if isinstance(location, str):  # an object store has no locks; this keeps builds of one user apart
        lock = cache_dir() / "locks" / f"{hash_of([location], 32)}.lock"
    else:
        lock = location.absolute() / ".lock"
    with locked(lock, lambda: progress.say("waiting for another build of this index ...")):
        yield


def published(location: IndexLocation) -> str:
    """Read a text that changes when a new version of the index is published."""
    if isinstance(location, str):
        return hash_of([open_location(location).read()], 16)
    file = location / MANIFEST
    return str(file.stat().st_mtime_ns) if file.exists() else ""


def table_hashes(location: IndexLocation, table: str) -> dict[str, str]:
    """The sha256 of a table's files, by name; none of an object store, which keeps hashes of its own.

    LanceDB never changes a file, except for its hint at the newest version, which no reader of Rung takes.
    """
    if isinstance(location, str):
        return {}
    folder = location.absolute() / TABLES / f"{table}.lance"
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != HINT)
    return {str(file.relative_to(folder)): known_sha256(file) for file in files}


class _Folder:
    def __init__(self, folder: Path) -> None:
        self._manifest = folder / MANIFEST
        self.tables = str(folder / TABLES)

    def read(self) -> str | None:
        """The text published last, or None."""
        return self._manifest.read_text("utf-8") if self._manifest.exists() else None

    def publish(self, text: str) -> None:
        """Replace the text at once."""
        write_atomically(self._manifest, text)

    def withdraw(self) -> None:
        """Remove the text."""
        self._manifest.unlink(missing_ok=True)


class _Bucket:
    def __init__(self, url: str) -> None:
        self.tables = url
        self._seen: tuple[int, str | None] = (0, None)  # version of the state, and its text

    @cached_property
    def _database(self) -> Any:
        check_reachable(self.tables)
        return connected(self.tables)

    @cached_property
    def _state(self) -> Any:
        return self._database.open_table(STATE)

    def read(self) -> str | None:
        """The text published last, or None."""
        with reached(self.tables):
            if "_state" not in vars(self) and STATE not in names(self._database):
                return None
            self._state.checkout_latest()
            if (version := self._state.version) != self._seen[0]:
                (row,) = self._state.to_arrow().to_pylist()
                self._seen = (version, row["text"] or None)
            return self._seen[1]

    def publish(self, text: str) -> None:
        """Replace the text at once."""
        with reached(self.tables):
            state = self._database.create_table(STATE, [{"text": text}], mode="overwrite")
            state.optimize(cleanup_older_than=KEPT)

    def withdraw(self) -> None:
        """Remove the text."""
        self.publish("")


_bucket = lru_cache(maxsize=8)(_Bucket)
