"""The Retriever part of an artifact: which passages of the user's documents the prompt shows before the question.

It refers to an index by folder or URL. The index's fingerprint records what was measured; an updated document changes
the next prompt, without training. An index with another encoder or another cut is refused, since no measured score
holds for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from rung.data.rows import NOT_IN_DOCUMENTS, Example, normal
from rung.engines.encoders import TRIED, name_padding, rows_together
from rung.errors import ArtifactError, EngineError, ModelError, needed_by
from rung.models.checkpoint import is_modular_reranker, verify
from rung.models.hub import first_line
from rung.models.reference import resolve
from rung.retrieval.index import Index, Rerank, SearchSettings, read_manifest
from rung.retrieval.passage import Passage
from rung.retrieval.store import IndexLocation, published

Order = Literal["best_first", "best_last"]
DEFAULT, NEAREST_FIRST = SearchSettings(), SearchSettings(mode="dense")
LOCATION = "RUNG_INDEX"  # the variable that names the folder or URL of an index that was moved
BATCH = 32  # pairs that a cross-encoder reads at once
NEAREST = 20  # passages among which the nearest is: a row's own, and those that calibration leaves out, are fewer
SPARE = 4  # passages searched for beyond k: a row's own may be among them
_TABLE_ROW = re.compile(r"^(.*):(\d+)$")


# ---- reranking


@lru_cache(maxsize=2)
def by_cross_encoder(reference: str) -> Rerank:
    """Make a reranker of a sentence-transformers cross-encoder, which reads each passage together with the query.

    All pairs of all queries are sorted by length and run in batches of 32, or one by one where padding would change
    their scores. Scores pass through the activation that the model's configuration names. Of a pair that is longer than
    the model reads, the end of the longer text is cut.

    Raises:
        EngineError: sentence-transformers is not installed.
        ModelError: the model cannot be found or trusted, or is not a cross-encoder with a single score.
    """
    files = resolve(reference)
    # sentence-transformers makes a cross-encoder with random weights of any other model.
    if not files.architecture.endswith("ForSequenceClassification") and not is_modular_reranker(files):
        raise ModelError(
            "reranker-unsupported", f"{reference} is a {files.architecture}, which gives no scores for pairs",
            hint="name a cross-encoder, such as cross-encoder/ms-marco-MiniLM-L6-v2",
        )  # fmt: skip
    with needed_by("a cross-encoder", error=EngineError):
        from sentence_transformers import CrossEncoder
    verify(files, "reranker")
    try:
        model: Any = CrossEncoder(str(files.folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # every module of the library checks its own settings in its own way
        problem = f"{files.name}: sentence-transformers cannot load it: {first_line(error)}"
        raise ModelError("model-unsupported", problem, hint="choose another reranker") from error
    if model.num_labels != 1:
        raise ModelError(
            "reranker-unsupported", f"{reference} gives {model.num_labels} scores for a pair instead of one",
            hint="name a cross-encoder for ranking, such as cross-encoder/ms-marco-MiniLM-L6-v2",
        )  # fmt: skip

    try:
        together = _pairs_together(model)
    except Exception as error:  # likewise: BART's models ask for an end token in every text
        problem = f"{files.name} gives no scores here: {first_line(error)}"
        raise ModelError("model-unsupported", problem, hint="choose another reranker") from error

    def text(passage: Passage) -> str:
        return f"{passage.title}\n{passage.text}" if passage.title else passage.text

    def rerank(queries: Sequence[str], hits: Sequence[Sequence[Passage]]) -> list[list[float]]:
        pairs = [(query, text(passage)) for query, passages in zip(queries, hits, strict=True) for passage in passages]
        scores = iter(model.predict(pairs, batch_size=together, show_progress_bar=False).tolist())
        return [list(islice(scores, len(passages))) for passages in hits]

    return rerank


def _pairs_together(model: Any) -> int:
    """How many pairs may share a pass of a cross-encoder.

    A language model's score is that of the last token that is no padding, which is another where its configuration
    names no padding token or another one than its tokenizer: it gets the tokenizer's, if the scores stay the same.
    """
    import torch

    from rung.engines.apart import mend

    mend(model)
    tokenizer, config = model.tokenizer, model.model.config
    name_padding(tokenizer)
    named = getattr(config, "pad_token_id", None)

    def tried(together: int) -> Any:
        config.pad_token_id = named if together == 1 else tokenizer.pad_token_id
        options = {"batch_size": together, "show_progress_bar": False, "activation_fn": torch.nn.Identity()}
        return model.predict([(TRIED[1], text) for text in TRIED], **options)

    together = rows_together(BATCH, tried, full=model.model.dtype == torch.float32)
    config.pad_token_id = named if together == 1 else tokenizer.pad_token_id
    return together


# ---- retrieving


def is_itself(passage: Passage, row: Example) -> bool:
    """Whether the passage is the row itself, where the corpus is a table that holds the rows.

    It is if it comes from the same line, or from another line of the same file and repeats the whole input.
    """
    line = _TABLE_ROW.match(Path(passage.document).name)
    own = _TABLE_ROW.match(row.source)
    if line is None or own is None or line.group(1) != own.group(1):
        return False
    if line.group(2) == own.group(2):
        return True
    text = normal(passage.text)
    return all(normal(value) in text for value in row.inputs.values() if isinstance(value, str))


@dataclass(frozen=True, slots=True)
class Retrieved:
    """The passages found for one row, best first, and `Retriever.relevance` (None where no threshold needs it)."""

    passages: tuple[Passage, ...]
    relevance: float | None = None


@dataclass(frozen=True, slots=True)
class Retriever:
    """An index and how its passages are shown."""

    folder: IndexLocation  # of the index, or its URL
    fingerprint: str  # of the index that was measured
    instruction: str  # what the system message says about the passages
    k: int = 5  # most passages shown
    token_budget: int = 1024  # most tokens of them; the least relevant are dropped first
    order: Order = "best_last"  # whether the most relevant is first, or last, next to the question
    threshold: float | None = None  # relevance below which the row is refused; None never refuses
    encoder_fingerprint: str = ""  # of the index's encoder
    chunk_tokens: int = 0  # most tokens of a passage of the index
    refusal: str = NOT_IN_DOCUMENTS  # the answer of a refused row
    weight: float | None = DEFAULT.weight  # of meaning against words in the search, 0 to 1; None fuses by ranks
    demonstration_passages: int = 1  # most passages shown with each demonstration, the most relevant
    passage_tokens: float = 0.0  # mean tokens of a passage, for estimates
    reranker: str = ""  # a cross-encoder that reorders what the search finds; empty for none
    reranker_fingerprint: str = ""  # of the cross-encoder that was measured

    @property
    def index(self) -> Index:
        """The index as it is now."""
        return open_index(self.folder)

    def find(self, rows: Sequence[Example], queries: Sequence[str], cost: Callable[[Passage], int]) -> list[Retrieved]:
        """Search for all rows at once; passages that are a row itself are left out.

        The query of a row is its input, never its answer. `cost` counts the tokens of a passage.
        """
        settings = SearchSettings(weight=self.weight)
        rerank = by_cross_encoder(self.reranker) if self.reranker else None
        best = self.index.search(queries, self.k + SPARE, settings, rerank=rerank)
        relevance = [None] * len(rows) if self.threshold is None else self.relevance(rows, queries)
        others = [[p for p in passages if not is_itself(p, row)] for row, passages in zip(rows, best, strict=True)]
        return [
            Retrieved(self.within_budget(passages[: self.k], cost), value)
            for passages, value in zip(others, relevance, strict=True)
        ]

    def within_budget(self, passages: Sequence[Passage], cost: Callable[[Passage], int]) -> tuple[Passage, ...]:
        """Keep the first passages that fit the token budget, and the first in any case."""
        spent, kept = 0, list[Passage]()
        for passage in passages:
            spent += cost(passage)
            if kept and spent > self.token_budget:
                break
            kept.append(passage)
        return tuple(kept)

    def relevance(
        self, rows: Sequence[Example], queries: Sequence[str], but_not: Callable[[Passage, Example], bool] = is_itself
    ) -> list[float]:
        """Compute for every row the cosine of its query with the nearest passage of the corpus; -1 without any passage.

        The scores of a fused search give an order, not the relevance of the best passage, so this searches the same
        index once more. Passages for which `but_not` is true are ignored.
        """
        nearest = self.index.search(queries, NEAREST, NEAREST_FIRST)
        return [
            max((p.score for p in passages if not but_not(p, row)), default=-1.0)
            for row, passages in zip(rows, nearest, strict=True)
        ]

    def refuses(self, found: Retrieved) -> bool:
        """Whether nothing relevant enough was found."""
        return self.threshold is not None and found.relevance is not None and found.relevance < self.threshold

    def arranged(self, passages: Sequence[Passage]) -> tuple[Passage, ...]:
        """Put passages, given best first, in the order in which they are shown."""
        return tuple(passages if self.order == "best_first" else reversed(passages))


def open_index(folder: IndexLocation) -> Index:
    """Open an index, and open it again once it was updated, so that the next answer is from the current documents.

    Raises:
        ArtifactError: there is none, or it was made with another encoder.
    """
    return _opened(folder, published(folder))


@lru_cache(maxsize=4)
def _opened(folder: IndexLocation, version: str) -> Index:
    del version  # part of the cache's key only
    return Index.open(folder)


def check_index(retriever: Retriever, artifact: Path) -> None:
    """Check that the index of a saved artifact exists and was made like the one that was measured; the reranker too.

    Raises:
        ArtifactError: it does not, or was not.
    """
    manifest = read_manifest(retriever.folder)
    if manifest is None:
        raise ArtifactError(
            "index-missing", f"{artifact} looks documents up in {retriever.folder}, which holds no complete index",
            hint=f"`rung index build TASK` builds it; for an index elsewhere: export {LOCATION}=FOLDER or URL",
        )  # fmt: skip
    built = (manifest.encoder_fingerprint, manifest.tokens)
    if built != (retriever.encoder_fingerprint, retriever.chunk_tokens):
        raise ArtifactError(
            "index-mismatch",
            f"{artifact} was measured with passages of {retriever.chunk_tokens} tokens and the encoder "
            f"{retriever.encoder_fingerprint[:12]}; the index {retriever.folder} has {built[1]} and {built[0][:12]}",
            hint="build the index with the settings that were measured, or climb again with the current ones",
        )
    if retriever.reranker and (now := resolve(retriever.reranker).fingerprint) != retriever.reranker_fingerprint:
        raise ArtifactError(
            "artifact-mismatch",
            f"{artifact} was measured with another version of {retriever.reranker}: "
            f"{retriever.reranker_fingerprint[:12]}, this is {now[:12]}",
            hint="restore the version that was measured, or climb again",
        )
