"""Build an index, or bring it up to date: only what changed is read, cut and embedded.

The table holds the truth about what is done: passages of a document are written at once, with the hash of the
document. What is there and still asked for is kept, so a build that was killed goes on where it was; what is there
and no longer asked for is removed after everything new was written, so a reader misses nothing meanwhile.
What the index holds is published last and names the version of the table to read (see `place`).
"""

from __future__ import annotations

import bisect
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rung.data.rows import hash_of
from rung.engines.encoders import SentenceEncoder
from rung.engines.opening import open_encoder
from rung.errors import ConfigError
from rung.models.cache import cache_dir
from rung.progress import QUIET, Progress
from rung.retrieval.chunking import Chunk, Chunker
from rung.retrieval.corpus import Corpus
from rung.retrieval.documents import (
    Listing,
    Problem,
    Source,
    SourceDocument,
    check_read,
    list_sources,
    read_documents,
)
from rung.retrieval.index import FORMAT, Index, Manifest, Told, read_manifest, terms
from rung.retrieval.store import PREFIX, Place, Store, open_place, place_of

if TYPE_CHECKING:
    from rung.task import Task

TOKENS = 250  # of a passage, where the task does not say
OVERLAP = 3  # a passage's last third begins the next one too, where the task does not say
BATCH = 1024  # passages embedded and written together: what a killed build loses


def build_index(task: Task, *, again: bool = False, unlock: bool = False, progress: Progress = QUIET) -> Index:
    """Build or update the index of a task's corpus in the cache or its object store, and open it.

    Args:
        task: a task with a `corpus`.
        again: build it anew, whatever is there.
        unlock: take the lock of an object store from a build on another machine, which died.
        progress: told of every batch of passages.

    Raises:
        ConfigError: the task has no corpus.
        DataError: nothing of it could be read.
    """
    return build(index_folder(task), corpus_of(task), task.folder, again=again, unlock=unlock, progress=progress)


def corpus_of(task: Task) -> Corpus:
    """Return the corpus of a task.

    Raises:
        ConfigError: it has none.
    """
    if task.corpus is None:
        raise ConfigError("no-documents", f"the task {task.name} has no `corpus`", hint="corpus: {files: documents/}")
    return task.corpus


def index_folder(task: Task) -> Place:
    """Return where the index of a task's corpus lies, built or not: its object store, or a folder for its settings."""
    corpus = corpus_of(task)
    if corpus.store is not None:
        return place_of(corpus.store)
    digest = hash_of([str(task.folder), corpus.model_dump(exclude={"max_megabytes"})], 12)
    return cache_dir() / "indexes" / f"{task.name}-{digest}"


def build(
    place: Place, corpus: Corpus, base: Path, *, again: bool = False, unlock: bool = False, progress: Progress = QUIET
) -> Index:
    """Build or update an index, and open it. Two at once on a machine wait for each other.

    Args:
        place: the folder or the URL where it will be.
        corpus: which documents, and how they are cut.
        base: the folder from which relative paths resolve.
        again: build it anew, whatever is there.
        unlock: take the lock of an object store from a build on another machine, which died.
        progress: told of every batch of passages.

    Raises:
        DataError: nothing could be read.
        ConfigError: a file that is named does not exist, or the encoder cannot read passages as long as asked for, or
            the URL holds the index of other settings.
        ArtifactError: another machine builds at this URL, or it cannot be reached.
    """
    place = place if isinstance(place, str) else place.absolute()
    encoder = open_encoder(corpus.encoder, progress=progress)
    with open_place(place).building(progress, unlock=unlock):
        _Build(place, corpus, base, encoder, progress).run(again=again)
    return Index.open(place)


@dataclass(frozen=True, slots=True)
class Changes:
    """Files that came, changed or went since an index was built."""

    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]

    def __bool__(self) -> bool:
        """Tell whether there is any."""
        return bool(self.added or self.changed or self.removed)


def changes_since(index: Index, base: Path) -> Changes:
    """Compare the files of an index with those that are there now; data sets of the Hub are not asked.

    Args:
        index: the index.
        base: the folder from which the corpus' relative paths resolve.
    """
    before = index.manifest.sources
    now = {source.id: source.sha256 for source in list_sources(index.manifest.corpus, base).sources}
    return Changes(
        tuple(name for name in now if name not in before),
        tuple(name for name, sha256 in now.items() if before.get(name, sha256) != sha256),
        tuple(name for name in before if name not in now),
    )


def passage_tokens(corpus: Corpus, encoder: SentenceEncoder) -> int:
    """Return the most tokens of a passage.

    Raises:
        ConfigError: the encoder reads fewer than the corpus asks for, and would cut the rest off.
    """
    if corpus.chunk_tokens is not None and corpus.chunk_tokens > encoder.limit:
        raise ConfigError(
            "bad-value",
            f"`corpus.chunk_tokens` is {corpus.chunk_tokens}, and {corpus.encoder} reads {encoder.limit} tokens",
            hint=f"set it to {encoder.limit} or less, or choose an encoder that reads more",
        )
    return corpus.chunk_tokens or min(TOKENS, encoder.limit)


class _Build:
    """One run over a corpus."""

    def __init__(self, folder: Place, corpus: Corpus, base: Path, encoder: SentenceEncoder, progress: Progress) -> None:
        self.folder, self.corpus, self.base, self.encoder, self.progress = folder, corpus, base, encoder, progress
        self.place = open_place(folder)
        self.tokens = passage_tokens(corpus, encoder)
        settings = corpus.model_dump(exclude={"max_megabytes", "store"})
        self.table = f"{PREFIX}{hash_of([FORMAT, settings, self.tokens, encoder.fingerprint], 12)}"
        self.store = Store(self.place.tables, self.table, len(corpus.metadata))
        overlap = self.tokens // OVERLAP if corpus.overlap_tokens is None else corpus.overlap_tokens
        self.chunker = Chunker(lambda text: len(encoder.encode(text)), self.tokens, overlap)
        self.wanted: set[tuple[str, str]] = set()  # (document, hash)

    def run(self, *, again: bool) -> None:
        """Bring table and manifest up to date."""
        before = read_manifest(self.folder)
        if before is not None and (again or before.table != self.table):
            self._replace(again=again)
            before = None
        if again:
            self.store.drop()
        listing = list_sources(self.corpus, self.base)
        if not self.store.exists():
            self.store.create(self.encoder.embed([]).shape[1])
            before = None  # what it says of sources holds for a table that was lost
        known = self.store.documents()
        added = self._write(self._unread(listing, known, before), known, listing.problems)
        stale = known.keys() - self.wanted
        self.place.check()
        self.store.delete(stale)
        check_read(listing.problems, self.store.count(), self.corpus)
        changed = bool(added or stale or before is None)
        version = self.store.finish(changed=changed, previous=before.version if before else None)
        self.place.check()
        self.store.drop_others()
        self._publish(listing, version)

    def _replace(self, *, again: bool) -> None:
        """Take the index away that is there, made with other settings or asked to be built anew.

        Raises:
            ConfigError: it lies at a URL, where others may read it, and nobody asked.
        """
        if isinstance(self.folder, str) and not again:
            raise ConfigError(
                "file-exists",
                f"{self.folder} holds an index that was made with other settings or another encoder",
                hint="set `corpus.store` to another URL, or replace that index: `rung index build TASK --again`",
            )
        self.place.withdraw()

    def _unread(self, listing: Listing, known: dict[tuple[str, str], str], before: Manifest | None) -> list[Source]:
        """Return the sources to read; of those that did not change since a finished build, keep what is there."""
        same = {
            source.id
            for source in listing.sources
            if before is not None and source.sha256 and before.sources.get(source.id) == source.sha256
        }
        self.wanted |= {document for document, source in known.items() if source in same}
        if before is not None:
            told = (Problem(one.source, one.what, one.left_out) for one in before.problems)
            listing.problems += [one for one in told if one.source in same]
        return [source for source in listing.sources if source.id not in same]

    def _write(self, sources: list[Source], known: dict[tuple[str, str], str], problems: list[Problem]) -> int:
        """Write the documents that the table does not have; return the number of passages."""
        sizes = [source.size for source in sources]
        self.progress.start("indexing bytes", sum(sizes) if all(sizes) else None)
        batch: list[tuple[SourceDocument, list[Chunk]]] = []
        waiting = added = 0
        for source in sources:
            for document in read_documents(source, self.corpus, problems):
                version = (document.id, document.hash)
                if version in self.wanted or version in known:
                    self.wanted.add(version)
                    self.progress.advance(document.size)
                    continue
                self.wanted.add(version)
                batch.append((document, self.chunker.cut(document.text, document.title, markdown=document.markdown)))
                waiting += len(batch[-1][1])
                if waiting >= BATCH:
                    self._flush(batch)
                    added, waiting, batch = added + waiting, 0, []
                    self.progress.advance(0, f"{added} passages")
        self._flush(batch)
        self.progress.finish(f"{added + waiting} passages")
        return added + waiting

    def _flush(self, batch: list[tuple[SourceDocument, list[Chunk]]]) -> None:
        """Embed and write whole documents at once."""
        pairs = [(document, chunk) for document, chunks in batch for chunk in chunks]
        if not pairs:
            return
        vectors = self.encoder.embed([chunk.embedded for _, chunk in pairs], progress=self.progress)
        rows = [_row(document, chunk) for document, chunk in pairs]
        self.place.check()
        self.store.add({name: [row[name] for row in rows] for name in rows[0]}, vectors)
        for document, _ in batch:
            self.progress.advance(document.size)

    def _publish(self, listing: Listing, version: int) -> None:
        manifest = Manifest(
            format=FORMAT,
            fingerprint=hash_of([self.table, sorted(self.wanted)], 64),
            corpus=self.corpus,
            encoder=self.corpus.encoder,
            encoder_fingerprint=self.encoder.fingerprint,
            dimension=self.encoder.embed([]).shape[1],
            tokens=self.tokens,
            table=self.table,
            version=version,
            passages=self.store.count(),
            documents=len(self.wanted),
            sources={source.id: source.sha256 for source in listing.sources},
            problems=[Told(**asdict(problem)) for problem in listing.problems],
        )
        self.place.publish(manifest.model_dump_json(indent=1))


def _row(document: SourceDocument, chunk: Chunk) -> dict[str, Any]:
    """Return a passage as a row of the table, but for its vector."""
    page = bisect.bisect_right(document.pages, chunk.start) if document.pages else None
    return {
        "id": f"{document.id}:{chunk.start}-{chunk.end}",
        "document": document.id,
        "hash": document.hash,
        "source": document.source,
        "title": chunk.title,
        "text": document.text[chunk.start : chunk.end],
        "terms": " ".join(terms(chunk.embedded)),
        "page": page,
        "start": chunk.start,
        "end": chunk.end,
        **{f"metadata_{number}": value for number, value in enumerate(document.metadata)},
    }
