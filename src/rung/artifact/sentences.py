"""Sentence selection: the decoder that answers with sentences of the documents, word for word.

An encoder, or TF-IDF, compares the question with the sentences of the passages found; no language model writes. Answers
are quotes from the documents, so every citation is exact and nothing is invented.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, Self

from rung.artifact.costs import passage_tokens
from rung.artifact.decoder import Answer, ArtifactReader, ArtifactWriter, Change, Composition, Promptless
from rung.artifact.lexical import Lexicon
from rung.artifact.rendering import Given
from rung.data.rows import Example
from rung.engines.opening import open_encoder
from rung.models.reference import resolve
from rung.progress import QUIET, Progress
from rung.retrieval.chunking import sentence_spans, unwrapped
from rung.retrieval.passage import Citation, Passage
from rung.retrieval.retriever import Retrieved

COUNTED = 16_384  # texts whose tokens are remembered


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence of a passage.

    Attributes:
        number: the number of the passage among those found, from 1.
        passage: the passage, narrowed to the sentence.
        similarity: cosine with the question.
    """

    number: int
    passage: Passage
    similarity: float


@dataclass(frozen=True, slots=True)
class SentenceDecoder(Promptless):
    """The sentences most similar to the question.

    Attributes:
        encoder: reference of the sentence encoder.
        share: sentences at least this share as similar as the best are also quoted; 1 quotes only the best.
        max_sentences: the most sentences to quote.
        lexicon: the terms of all sentences, if TF-IDF compares them instead of the encoder.
    """

    kind: ClassVar[str] = "sentence-selection"
    refusals: ClassVar[Mapping[Change, str]] = {
        **Promptless.refusals,
        "servers": "a search answers, and such servers run language models",
    }
    encoder: str
    share: float
    max_sentences: int
    lexicon: Lexicon | None = None

    def row_flops(self, artifact: Composition, rows: Sequence[Example]) -> float:
        """Estimate one reading of the question and the passages by the encoder."""
        assert artifact.retriever is not None
        return self.encoder_flops(artifact, rows, self.encoder, passage_tokens(artifact.retriever))

    def as_dict(self, writer: ArtifactWriter) -> dict[str, Any]:
        """Save the settings, and the fingerprint of the encoder."""
        if self.lexicon is not None:
            self.lexicon.save(writer)
        return {
            "encoder": self.encoder, "encoder_fingerprint": resolve(self.encoder).fingerprint, "share": self.share,
            "max_sentences": self.max_sentences, "lexicon": self.lexicon is not None,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], reader: ArtifactReader) -> Self:
        """Rebuild the decoder; the encoder must be the one that was measured."""
        settings = dict(values)
        reader.check_model(settings["encoder"], settings.pop("encoder_fingerprint"))
        settings["lexicon"] = Lexicon.load(reader) if settings["lexicon"] else None
        return super(SentenceDecoder, cls).from_dict(settings, reader)

    def answer(
        self, artifact: Composition, examples: Sequence[Example], *, full: bool, passages: Given, progress: Progress
    ) -> list[Answer]:
        """Answer every example with a quote; refuse if no relevant passage is found."""
        del full  # there are no labels
        retriever = artifact.retriever
        assert retriever is not None
        open_encoder(self.encoder, progress=progress)  # loading it is not part of the rows' time
        start = time.perf_counter()
        queries = [artifact.prompt.query(example.inputs) for example in examples]
        if passages is None:
            retrieved = retriever.find(examples, queries, cost_of(self.encoder))
        else:
            retrieved = [Retrieved(tuple(shown)) for shown in passages]
        found = [hits.passages for hits in retrieved]
        sentences = ranked(self.encoder, queries, found, lexicon=self.lexicon, progress=progress)
        seconds = (time.perf_counter() - start) / len(examples)
        answers = []
        for query, hits, candidates in zip(queries, retrieved, sentences, strict=True):
            quoted = () if retriever.refuses(hits) else self.chosen(candidates)
            text = " ".join(unwrapped(sentence.passage.text) for sentence in quoted) or retriever.refusal
            texts = () if self.lexicon else (sentence.passage.text for sentence in candidates)
            read = sum(_tokens(self.encoder, text) for text in (query, *texts))
            answers.append(
                Answer(
                    text, None, None, read, 0, seconds, ({"role": "user", "content": query},),
                    written=text, citations=tuple(Citation(s.number, s.passage) for s in quoted),
                    passages=hits.passages, refused=not quoted,
                )
            )  # fmt: skip
        return answers

    def chosen(self, sentences: Sequence[Sentence]) -> tuple[Sentence, ...]:
        """Choose the sentences to quote, ordered by passage, best first, then by position."""
        best = max((sentence.similarity for sentence in sentences), default=0.0)
        near = [s for s in sentences if s.similarity >= best - (1 - self.share) * abs(best)]
        kept = sorted(near, key=lambda s: -s.similarity)[: self.max_sentences]
        return tuple(sorted(kept, key=lambda s: (s.number, s.passage.start)))


def ranked(
    encoder: str, queries: Sequence[str], passages: Sequence[Sequence[Passage]], *, lexicon: Lexicon | None = None,
    progress: Progress = QUIET,
) -> list[list[Sentence]]:  # fmt: skip
    """Compute the similarity of every query to the sentences of its passages; overlapping passages share sentences.

    With a lexicon, TF-IDF is compared instead of the encoder's vectors.
    """
    cut = [list(_sentences(shown)) for shown in passages]
    texts = list(dict.fromkeys(sentence.text for row in cut for _, sentence in row))
    if not texts:
        return [[] for _ in queries]
    both = [*queries, *texts]
    vectors = open_encoder(encoder).embed(both, progress=progress) if lexicon is None else lexicon.features(both)
    columns = {text: number for number, text in enumerate(texts, start=len(queries))}
    chosen = [[columns[passage.text] for _, passage in sentences] for sentences in cut]
    similar = [vectors[rows] @ vectors[query].T for query, rows in enumerate(chosen)]
    if lexicon is not None:  # of one block, so that its rows are unit vectors
        similar = [each.toarray().ravel() for each in similar]
    return [
        [Sentence(number, passage, float(value)) for (number, passage), value in zip(sentences, values, strict=True)]
        for sentences, values in zip(cut, similar, strict=True)
    ]


def cost_of(encoder: str) -> Callable[[Passage], int]:
    """Make a function that counts the tokens of a passage, as the encoder reads it."""
    return lambda passage: _tokens(encoder, passage.text)


@lru_cache(maxsize=COUNTED)
def _tokens(encoder: str, text: str) -> int:
    """The tokens of a text, as the encoder reads it; a search finds the same passages again and again."""
    return len(open_encoder(encoder).encode(text))


def _sentences(passages: Sequence[Passage]) -> Iterator[tuple[int, Passage]]:
    seen = set()
    for number, passage in enumerate(passages, start=1):
        for first, last in sentence_spans(passage.text):
            start, end = passage.start + first, passage.start + last
            if (passage.document, start, end) not in seen:
                seen.add((passage.document, start, end))
                yield number, replace(passage, text=passage.text[first:last], start=start, end=end)
