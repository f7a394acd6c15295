"""Build an index or bring it up to date: only new and changed documents are read, cut into passages and embedded.

The table of passages records what is done: a document's passages are written in one commit, with the document's hash.
Passages that are still wanted are kept, so a killed build goes on where it was. Passages that are no longer wanted are
removed after all new ones are written, so readers miss nothing meanwhile. The manifest is published last and names the
version of the table to read (see `rung.retrieval.store`).
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rung.data.rows import hash_of
from rung.data.spec import Corpus
from rung.engines.encoders import SentenceEncoder
from rung.engines.opening import open_encoder
from rung.errors import ArtifactError, ConfigError, DataError
from rung.models.cache import cache_dir
from rung.progress import QUIET, Progress, default_progress
from rung.retrieval.chunking import Chunk, Chunker
from rung.retrieval.documents import (
    CorpusSource,
    Listing,
    Problem,
    SourceDocument,
    list_sources,
    read_documents,
    refuse_measured_rows,
)
from rung.retrieval.formats import rejoined
from rung.retrieval.index import FORMAT, Index, Manifest, check_files, read_manifest, terms
from rung.retrieval.store import PREFIX, IndexLocation, PassageTable, building, location_of, open_location, table_hashes
from rung.yamlfile import sealed

if TYPE_CHECKING:
    from rung.task import Task

TOKENS = 250  # of a passage, where the task does not say
OVERLAP = 3  # the last third of a passage begins the next one too, where the task does not say
BATCH = 1024  # passages embedded and written together: what a killed build loses
EMBEDDED = 256  # passages embedded at once: how often progress shows


def build_index(task: Task, *, again: bool = False, progress: Progress | None = None) -> Index:
    """Build or update the index of a task's corpus in the cache or its object store (see `build`), and open it.

    Raises:
        ConfigError: the task has no corpus, or it holds rows that are measured.
    """
    corpus = corpus_of(task)
    with task.located("corpus", "files"):
        refuse_measured_rows(corpus, task.data, task.folder)
    return build(index_location(task), corpus, task.folder, again=again, progress=progress or default_progress())


def corpus_of(task: Task) -> Corpus:
    """Look up the corpus of a task.

    Raises:
        ConfigError: it has none.
    """
    if task.corpus is None:
        raise ConfigError("no-documents", f"the task {task.name} has no `corpus`", hint="corpus: {files: documents/}")
    return task.corpus


def index_location(task: Task) -> IndexLocation:
    """Name the object store of a task's index, or a folder for its settings in the cache."""
    corpus = corpus_of(task)
    if corpus.store is not None:
        return location_of(corpus.store)
    digest = hash_of([str(task.folder), _settings(corpus, "max_megabytes")], 12)
    return cache_dir() / "indexes" / f"{task.name}-{digest}"


def _settings(corpus: Corpus, *left_out: str) -> dict[str, Any]:
    """The settings that tell one index from another; indexes were in fp32 before there was a choice of precision."""
    values = corpus.model_dump(exclude=set(left_out))
    if corpus.precision == "fp32":
        del values["precision"]
    return values


def build(
    location: IndexLocation, corpus: Corpus, base: Path, *, again: bool = False, progress: Progress = QUIET
) -> Index:
    """Build or update an index, and open it. Two builds on one machine wait for each other.

    Relative paths of the corpus resolve from `base`. `again` builds from scratch.

    Raises:
        DataError: nothing could be read.
        ConfigError: a named file does not exist, the encoder reads less than a passage, or the URL holds the index of
            other settings.
        ArtifactError: the object store cannot be reached, or another machine wrote to it meanwhile.
    """
    location = location if isinstance(location, str) else location.absolute()
    encoder = open_encoder(corpus.encoder, precision=corpus.precision, progress=progress)
    with building(location, progress):
        _Build(location, corpus, base, encoder, progress).run(again=again)
    return Index.open(location)


@dataclass(frozen=True, slots=True)
class Changes:
    """Files that were added, changed or removed since an index was built."""

    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self.added or self.changed or self.removed)


def changes_since(index: Index, base: Path) -> Changes:
    """Compare the files of an index with those that exist now below `base`; data sets of the Hub are not compared."""
    before = index.manifest.sources
    now = {source.id: source.sha256 for source in list_sources(index.manifest.corpus, base).sources}
    return Changes(
        tuple(name for name in now if name not in before),
        tuple(name for name, sha256 in now.items() if before.get(name, sha256) != sha256),
        tuple(name for name in before if name not in now),
    )


class _Build:
    """One run over a corpus."""

    def __init__(
        self, location: IndexLocation, corpus: Corpus, base: Path, encoder: SentenceEncoder, progress: Progress
    ) -> None:
        self.location, self.corpus, self.base, self.encoder, self.progress = location, corpus, base, encoder, progress
        self.opened = open_location(location)
        self.tokens = _passage_tokens(corpus, encoder)
        settings = _settings(corpus, "max_megabytes", "store")
        self.name = (
            f"{PREFIX}{hash_of([FORMAT, settings, self.tokens, encoder.fingerprint, *encoder.prompts.items()], 12)}"
        )
        self.table = PassageTable(self.opened.tables, self.name, len(corpus.metadata))
        overlap = self.tokens // OVERLAP if corpus.overlap_tokens is None else corpus.overlap_tokens
        self.chunker = Chunker(lambda text: len(encoder.encode(text)), self.tokens, overlap)
        self.wanted: set[tuple[str, str]] = set()  # (document, hash)

    def run(self, *, again: bool) -> None:
        """Bring table and manifest up to date."""
        before = None if again else read_manifest(self.location)  # it may be damaged
        if before is None and not again and self.opened.read() is not None:
            self._withdraw(again=False)
            self.progress.say(f"another version of Rung made the index {self.location}: it is built again")
            again = True
        elif again or (before is not None and before.table != self.name):
            self._withdraw(again=again)
            before = None
        if before is not None:
            check_files(self.location, before)
        if again:
            self.table.drop()
        listing = list_sources(self.corpus, self.base)
        if not self.table.exists():
            self.table.create(self.encoder.embed([]).shape[1])
            before = None  # its sources are those of a table that was lost
        known, count = self.table.documents(), self.table.latest_count()
        added = self._write(self._unread(listing, known, before), known, listing.problems)
        stale = known.keys() - self.wanted
        self._check_alone(count + added)
        self.table.delete(stale)
        if not self.table.count():
            first = "\n".join(f"{problem.source}: {problem.what}" for problem in listing.problems[:5])
            raise DataError("no-documents", f"no text was found in {', '.join(self.corpus.sources)}", hint=first)
        changed = bool(added or stale or before is None)
        version = self.table.finish(changed=changed, previous=before.version if before else None)
        self.table.drop_others()
        self._publish(listing, version)

    def _withdraw(self, *, again: bool) -> None:
        """Withdraw the published index of other settings, at a URL only if asked for: others may read it."""
        if isinstance(self.location, str) and not again:
            raise ConfigError(
                "file-exists",
                f"{self.location} holds an index that was made with other settings, another encoder or version of Rung",
                hint="set `corpus.store` to another URL, or replace that index: `rung index build TASK --again`",
            )  # fmt: skip
        self.opened.withdraw()

    def _unread(
        self, listing: Listing, known: dict[tuple[str, str], str], before: Manifest | None
    ) -> list[CorpusSource]:
        """List the sources to read; of those that did not change since a finished build, keep what is there."""
        if before is None:
            return listing.sources
        hashes = before.sources
        same = {source.id for source in listing.sources if source.sha256 and hashes.get(source.id) == source.sha256}
        self.wanted |= {document for document, source in known.items() if source in same}
        listing.problems += [problem for problem in before.problems if problem.source in same]
        return [source for source in listing.sources if source.id not in same]

    def _write(self, sources: list[CorpusSource], known: dict[tuple[str, str], str], problems: list[Problem]) -> int:
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
        vectors, size, shown = [], sum(document.size for document, _ in batch), 0
        for first in range(0, len(pairs), EMBEDDED):
            texts = [chunk.embedded for _, chunk in pairs[first : first + EMBEDDED]]
            vectors.append(self.encoder.embed(texts, role="document", progress=self.progress))
            share = size * (first + len(texts)) // len(pairs)
            self.progress.advance(share - shown)
            shown = share
        rows = [_row(document, chunk) for document, chunk in pairs]
        self.table.add({name: [row[name] for row in rows] for name in rows[0]}, np.concatenate(vectors))

    def _check_alone(self, expected: int) -> None:
        """Refuse to publish what another machine wrote at the same time: passages would be in the table twice."""
        if (count := self.table.latest_count()) != expected:
            raise ArtifactError(
                "index-conflict",
                f"another build changed the index at {self.location} meanwhile: {count} passages instead of {expected}",
                hint="let one machine build at a time, then run `rung index build TASK --again`",
            )

    def _publish(self, listing: Listing, version: int) -> None:
        manifest = Manifest(
            format=FORMAT,
            fingerprint=hash_of([self.name, sorted(self.wanted)], 64),
            corpus=self.corpus,
            encoder=self.corpus.encoder,
            encoder_fingerprint=self.encoder.fingerprint,
            dimension=self.encoder.embed([]).shape[1],
            tokens=self.tokens,
            table=self.name,
            files=table_hashes(self.location, self.name),
            version=version,
            passages=self.table.count(),
            documents=len(self.wanted),
            sources={source.id: source.sha256 for source in listing.sources},
            problems=listing.problems,
        )
        self.opened.publish(sealed(manifest.model_dump(mode="json"), indent=1))


def _passage_tokens(corpus: Corpus, encoder: SentenceEncoder) -> int:
    """Find how many tokens a passage may have.

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


def _row(document: SourceDocument, chunk: Chunk) -> dict[str, Any]:
    """Build a passage's row of the table, without its vector."""
    return {
        "id": f"{document.id}:{chunk.start}-{chunk.end}",
        "document": document.id,
        "hash": document.hash,
        "source": document.source,
        "title": chunk.title,
        "text": document.text[chunk.start : chunk.end],
        "terms": " ".join(terms(rejoined([chunk.embedded])[0])),
        "page": bisect.bisect_right(document.pages, chunk.start) if document.pages else None,
        "start": chunk.start,
        "end": chunk.end,
        **{f"metadata_{number}": value for number, value in enumerate(document.metadata)},
    }
