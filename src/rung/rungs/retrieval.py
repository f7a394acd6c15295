"""Rungs that read the task's documents: retrieved passages in the prompt, or sentences quoted as the answer.

Lewis et al. 2020, "Retrieval-augmented generation for knowledge-intensive NLP tasks" (https://arxiv.org/abs/2005.11401);
here the model is trained with passages only if a tuning rung is put on top.

The order of the passages is measured. Models use the beginning or the end of a long context better than its middle (Liu
et al. 2023, "Lost in the Middle", https://arxiv.org/abs/2307.03172), and which end is better differs between models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from rung.artifact.artifact import Artifact
from rung.artifact.decoder import Answer, cites
from rung.artifact.lexical import Lexicon
from rung.artifact.rendering import passage_cost
from rung.artifact.sentences import SentenceDecoder as Selecting
from rung.artifact.sentences import cost_of, ranked
from rung.data.rows import NOT_IN_DOCUMENTS, Data, DataReport, Example, selection_rows
from rung.data.spec import ENCODER
from rung.errors import ConfigError
from rung.evaluation.racing import race_order
from rung.evaluation.scoring import cases, metric_of
from rung.machine import Machine
from rung.models import embedded
from rung.models.checkpoint import ModelKind
from rung.models.reference import resolve
from rung.progress import QUIET, Progress
from rung.prompts.prompt import instruction
from rung.retrieval.fitting import CAUTIOUS, Refusal, calibrate, learn_weight
from rung.retrieval.index import FEWEST_LABELLED, Index, SearchSettings, read_manifest
from rung.retrieval.passage import Passage, holds_answer
from rung.retrieval.retriever import Order, Retriever
from rung.rungs.base import OK, Applicability, Cost, CountOrZero, Fraction, Rung, rung, skip
from rung.rungs.costs import encoder_cost, inference_cost, sizes
from rung.rungs.features import sklearn_missing
from rung.task import Task
from rung.training.config import Count

SEARCH_SECONDS = 0.03  # to find a question's passages and cut them into sentences, for estimates
TYPICAL_TOKENS = 220  # of a passage with its number and title, for estimates
SAMPLE = 32  # rows whose passages give the mean length
WIDER = 3  # times k passages are searched to measure the order, since those with the answer are set apart
DEFAULT_ORDER: Order = "best_last"  # as for demonstrations, the best next to the question
SHARES = (1.0, 0.9, 0.8, 0.7)  # of the best sentence's similarity, tried on training rows
DEFAULT_SHARE = 0.9  # without training rows
MOST_ROWS = 128  # that the choice of the share uses
REFUSAL_ROWS = 256  # that the choice of the threshold for refusing uses, at most


@rung("retrieval", family="retrieval", order=210, default=True)
@dataclass(frozen=True)
class Retrieval(Rung):
    """Show the passages of the task's corpus that are most relevant to the row.

    If at least 30 training rows have gold spans, the search's weight of meaning against words is learned from them.

    Attributes:
        task: the task, whose `corpus` is searched.
        k: passages shown, at most.
        token_budget: tokens of all passages, at most; the least relevant are left out first.
        order: whether the most relevant passage comes first or last; `auto` measures which the model reads better.
        order_rows: training rows for that measurement, each answered twice.
        max_refusal_rate: largest share of the answerable training questions that may be refused because no passage
            seems relevant; 0 never refuses. Labels and records are never refused.
        demonstration_passages: passages shown with each demonstration, at most.
        reranker: a cross-encoder, by Hub id or folder, that reorders the search results; empty for none.
    """

    needs = ("prompt", "no documents", "untuned")
    reads_corpus = True
    opens_ramp = True  # a model has to be tuned with the documents that it will read

    model_settings: ClassVar[Mapping[str, ModelKind]] = {"reranker": "reranker"}

    task: Task | None = None
    k: Count = 5
    token_budget: Count = 1024
    order: Order | Literal["auto"] = "auto"
    order_rows: Count = 16
    max_refusal_rate: Fraction = 0.05
    demonstration_passages: CountOrZero = 1
    reranker: str = ""

    def suits(self, artifact: Artifact, data: Data) -> Applicability:
        """It applies where there are documents."""
        del artifact, data
        return _has_corpus(self.task)

    def estimate(self, artifact: Artifact, data: Data, machine: Machine) -> Cost:
        """Prompts grow by k passages; the rows for measuring the order are answered twice. The index is not counted."""
        extra = min(self.k * TYPICAL_TOKENS, self.token_budget)
        rows = 2 * min(self.order_rows, len(data.train) // 2) if self.order == "auto" else 0
        return inference_cost(artifact, data, machine, fit_rows=rows, extra_tokens=extra)

    def fit(self, artifact: Artifact, data: Data, *, progress: Progress = QUIET) -> Artifact:
        """Add a retriever, whose order and threshold for refusing are chosen on training rows."""
        from rung.retrieval.build import build_index

        if self.task is None:
            raise ConfigError("no-documents", "the rung retrieval was made without a task", hint="Retrieval(task)")
        index = build_index(self.task, progress=progress)
        retriever = replace(
            retriever_on(index, artifact, data, self.k, self.token_budget),
            demonstration_passages=self.demonstration_passages, reranker=self.reranker,
            reranker_fingerprint=resolve(self.reranker).fingerprint if self.reranker else "",
        )  # fmt: skip
        answers_cite = cites(replace(artifact, retriever=retriever))
        retriever = replace(retriever, instruction=instruction(cite=answers_cite))
        plain = replace(artifact, retriever=retriever).with_engine(artifact.open())
        retriever = replace(retriever, passage_tokens=_passage_tokens(plain, data))
        settings: dict[str, Any] = {
            "k": self.k, "token_budget": self.token_budget, "passages": len(index), "weight": retriever.weight,
            "reranker": self.reranker,
        }  # fmt: skip
        if self.order == "auto":
            rows, _ = selection_rows(data, self.order_rows)
            effect = position_effect(plain, rows, positions=(0, -1), folder=data.folder, progress=progress)
            retriever = replace(retriever, order=best_order(effect))
            settings["score_by_position"] = {str(position): score for position, score in effect.items()}
        else:
            retriever = replace(retriever, order=self.order)
        if answers_cite and self.max_refusal_rate > 0:
            refusal = refusal_of(plain, data, passage_cost(plain), self.max_refusal_rate)
            retriever = replace(retriever, threshold=refusal.threshold)
            settings["refusal"] = asdict(refusal)
        settings["order"] = retriever.order
        return artifact.step(self.name, settings, retriever=retriever)


def asking(task: Task, *, progress: Progress = QUIET) -> Artifact:
    """Make the artifact that answers questions from a task's documents without any rows.

    Nothing is chosen on rows. The smallest built-in model makes little use of passages, so with it the answers quote
    sentences; any other model writes them from the passages that it is shown. With the built-in encoder, the artifact
    refuses what is clearly not in the documents.

    Raises:
        ConfigError: the task has rows, which a climb measures first, or no documents.
    """
    if task.data.train is not None:
        hint = "measure first: `rung climb TASK`, then name the artifact that it recommends"
        raise ConfigError("wrong-folder", f"the task {task.name} has rows, and an artifact is expected", hint=hint)
    data = Data((), (), (), (), DataReport(), "", task.folder)
    plain, selection = Artifact.zero_shot(task), SentenceSelection(task)
    quotes = embedded.find(task.model) is embedded.LANGUAGE_MODEL and selection.suits(plain, data).applies
    return (selection if quotes else Retrieval(task, order=DEFAULT_ORDER)).fit(plain, data, progress=progress)


def _has_corpus(task: Task | None) -> Applicability:
    documents = task is not None and task.corpus is not None
    return OK if documents else skip("the task file has no `corpus`", final=True)


def retriever_on(index: Index, artifact: Artifact, data: Data, k: int, token_budget: int) -> Retriever:
    """Search the index for an artifact; training rows with gold spans, if enough, give the weight of meaning."""
    weight = SearchSettings().weight
    queries = [(artifact.prompt.query(row.inputs), row.spans) for row in data.train if row.spans]
    if len(queries) >= FEWEST_LABELLED:
        weight = learn_weight(index, queries, SearchSettings(), k=k).weight
    return Retriever(
        index.folder, index.fingerprint, "", k, token_budget, DEFAULT_ORDER,
        refusal=artifact.signature.refusal or NOT_IN_DOCUMENTS,
        encoder_fingerprint=index.manifest.encoder_fingerprint, chunk_tokens=index.manifest.tokens, weight=weight,
    )  # fmt: skip


def refusal_of(artifact: Artifact, data: Data, cost: Callable[[Passage], int], at_most: float) -> Refusal:
    """Calibrate on training rows when to refuse because nothing relevant was found; `cost` counts tokens."""
    assert artifact.retriever is not None
    rows = race_order(data.train)[:REFUSAL_ROWS]
    queries = [artifact.prompt.query(row.inputs) for row in rows]
    otherwise = CAUTIOUS if artifact.retriever.index.manifest.encoder == ENCODER else None
    return calibrate(artifact.retriever, rows, queries, cost, at_most=at_most, otherwise=otherwise)


def _passage_tokens(artifact: Artifact, data: Data) -> float:
    """The mean tokens of a passage, over a sample of rows."""
    assert artifact.retriever is not None
    rows, cost = data.train[:SAMPLE], passage_cost(artifact)
    hits = artifact.retriever.find(rows, [artifact.prompt.query(row.inputs) for row in rows], cost)
    lengths = [cost(passage) for hit in hits for passage in hit.passages]
    return sum(lengths) / max(1, len(lengths))


def position_effect(
    artifact: Artifact, rows: Sequence[Example], *, positions: Sequence[int] | None = None,
    folder: Path | None = None, progress: Progress = QUIET,
) -> dict[int, float]:  # fmt: skip
    """Measure the mean score by the position, counted from 0, of the passage with the answer among the others.

    Only rows with such a passage are used, and all get equally many passages; empty if no row can be used. Negative
    `positions` count from the end; None measures all. `folder` is the task file's, for a metric of the user's own.
    """
    usable = _with_answer(artifact, rows)
    if not usable:
        return {}
    shown = min(len(others) for _, _, others in usable) + 1
    wanted = sorted({p % shown for p in (range(shown) if positions is None else positions)})
    metric = metric_of(artifact, folder)
    asked = [row for row, _, _ in usable]
    effect = {}
    for position in wanted:
        arranged = [(*o[:position], gold, *o[position : shown - 1]) for _, gold, o in usable]
        answers = artifact.answer(asked, full=False, passages=arranged, progress=progress)
        scores = metric.scores(cases(asked, answers))
        effect[position] = sum(score.value for score in scores) / len(scores)
    return effect


def best_order(effect: Mapping[int, float]) -> Order:
    """The end of the passages that the model reads better; the default if both are equal or not measured."""
    if len(effect) < 2 or effect[min(effect)] == effect[max(effect)]:
        return DEFAULT_ORDER
    return "best_first" if effect[min(effect)] > effect[max(effect)] else "best_last"


def _with_answer(artifact: Artifact, rows: Sequence[Example]) -> list[tuple[Example, Passage, tuple[Passage, ...]]]:
    """Rows with their best passage that holds the answer, and other passages that do not, the best first."""
    retriever = artifact.retriever
    assert retriever is not None
    wide = replace(retriever, k=WIDER * retriever.k, token_budget=WIDER * retriever.token_budget, threshold=None)
    cost = passage_cost(artifact)
    hits = wide.find(rows, [artifact.prompt.query(row.inputs) for row in rows], cost)
    usable = []
    for row, hit in zip(rows, hits, strict=True):
        gold = [p for p in hit.passages if holds_answer(p, row)]
        others = [p for p in hit.passages if not holds_answer(p, row)]
        if gold and others:
            kept = retriever.within_budget([gold[0], *others][: retriever.k], cost)
            if len(kept) > 1:
                usable.append((row, gold[0], kept[1:]))
    return usable


@rung("sentence-selection", family="retrieval", order=200, default=True)
@dataclass(frozen=True)
class SentenceSelection(Rung):
    """Answer with the sentences of the task's corpus that are most similar to the question, without a language model.

    Yu et al. 2014, "Deep learning for answer sentence selection" (https://arxiv.org/abs/1412.1632), here with the
    vectors of a frozen sentence encoder. Training rows decide how similar to the best sentence the others have to be,
    by the task's metric, and below which relevance nothing is quoted.

    Attributes:
        task: the task, whose `corpus` is searched.
        k: passages whose sentences are compared.
        token_budget: tokens of all these passages, at most.
        max_sentences: sentences quoted, at most.
        max_refusal_rate: largest share of the answerable training questions that may be refused because no passage
            seems relevant; 0 never refuses.
    """

    needs = ("prompt", "no documents", "no demonstrations", "untuned")
    reads_corpus = True

    task: Task | None = None
    k: Count = 5
    token_budget: Count = 1280
    max_sentences: Count = 5
    max_refusal_rate: Fraction = 0.05

    def suits(self, artifact: Artifact, data: Data) -> Applicability:
        """It applies where there are documents and answers are free text."""
        del data
        if artifact.signature.kind != "text":
            return skip(f"sentences of documents are no answers of kind {artifact.signature.kind}", final=True)
        if not (corpus := _has_corpus(self.task)).applies:
            return corpus
        return OK if artifact.decoder.unconstrained else skip("answers are held to a form")

    def cache_key(self, artifact: Artifact) -> tuple[object, ...]:
        """The template, which makes the question."""
        return (artifact.prompt.template,)

    def estimate(self, artifact: Artifact, data: Data, machine: Machine) -> Cost:
        """One pass of the encoder over the question and the sentences of the passages. The index is not counted."""
        from rung.retrieval.build import OVERLAP, index_location

        assert self.task is not None
        assert self.task.corpus is not None
        rows, own = min(MOST_ROWS, len(data.train)), float(self.encoded_tokens())
        if (manifest := read_manifest(index_location(self.task))) is not None:  # rows share sentences, as passages do
            own = min(own, manifest.passages * manifest.tokens / max(1, rows))
        tokens = sizes(artifact, data).question + own * (1 - 1 / OVERLAP)
        cost = encoder_cost(self.task.corpus.encoder, tokens, machine, fit_rows=rows)
        searched = SEARCH_SECONDS * (1 + 2 * rows)  # for the threshold, and for the share
        return replace(cost, fit_seconds=cost.fit_seconds + searched, row_seconds=cost.row_seconds + SEARCH_SECONDS)

    def encoded_tokens(self) -> int:
        """The tokens of the passages whose sentences the encoder reads for a question."""
        return min(self.k * TYPICAL_TOKENS, self.token_budget)

    def lexicon(self, index: Index) -> Lexicon | None:
        """The terms that sentences are compared by, where no encoder compares them."""
        del index
        return None

    def fit(self, artifact: Artifact, data: Data, *, progress: Progress = QUIET) -> Artifact:
        """Add a retriever and a decoder that quotes from what the retriever finds."""
        from rung.retrieval.build import build_index

        if self.task is None:
            message = f"the rung {self.name} was made without a task"
            raise ConfigError("no-documents", message, hint="SentenceSelection(task)")
        index = build_index(self.task, progress=progress)
        cost = cost_of(index.manifest.encoder)
        retriever = replace(
            retriever_on(index, artifact, data, self.k, self.token_budget), order="best_first", demonstration_passages=0
        )
        settings: dict[str, Any] = {"k": self.k, "token_budget": self.token_budget, "max_sentences": self.max_sentences}
        if self.max_refusal_rate > 0:
            threshold = refusal_of(replace(artifact, retriever=retriever), data, cost, self.max_refusal_rate).threshold
            retriever = replace(retriever, threshold=threshold)
            settings["threshold"] = threshold
        decoder = Selecting(index.manifest.encoder, DEFAULT_SHARE, self.max_sentences, self.lexicon(index))
        plain = replace(artifact, retriever=retriever, decoder=decoder)
        scores, tokens = _score_shares(plain, decoder, data, progress)
        if scores:
            decoder = replace(decoder, share=max(scores, key=lambda share: scores[share]))
        settings |= {"share": decoder.share, "score_by_share": {str(share): scores[share] for share in scores}}
        return artifact.step(self.name, settings, decoder=decoder, retriever=replace(retriever, passage_tokens=tokens))


@rung("tfidf-sentence", family="yardstick", order=45, default=True, topics=("corpus sentences",))
@dataclass(frozen=True)
class TfidfSentence(SentenceSelection):
    """Answer with the sentences of the task's corpus that share the most telling words with the question.

    Many more passages are searched than a language model could read, since comparing words costs almost nothing.
    """

    k: Count = 20
    token_budget: Count = 8000

    def suits(self, artifact: Artifact, data: Data) -> Applicability:
        """TF-IDF needs scikit-learn."""
        plain = super().suits(artifact, data)
        return sklearn_missing() if plain.applies else plain

    def encoded_tokens(self) -> int:
        """None: words are compared."""
        return 0

    def lexicon(self, index: Index) -> Lexicon:
        """The words of all sentences."""
        return Lexicon.fit(index.sentences(), blocks=("words",))


def _score_shares(
    artifact: Artifact, decoder: Selecting, data: Data, progress: Progress
) -> tuple[dict[float, float], float]:
    """The mean score of every share on training rows, and the mean tokens of a passage."""
    assert artifact.retriever is not None
    rows = race_order(data.train)[:MOST_ROWS]
    queries = [artifact.prompt.query(row.inputs) for row in rows]
    cost = cost_of(decoder.encoder)
    found = [hit.passages for hit in artifact.retriever.find(rows, queries, cost)]
    lengths = [cost(passage) for passages in found for passage in passages]
    tokens = sum(lengths) / max(1, len(lengths))
    if not rows:
        return {}, tokens
    metric, scores = metric_of(artifact, data.folder), dict[float, float]()
    sentences = ranked(decoder.encoder, queries, found, lexicon=decoder.lexicon, progress=progress)
    for share in SHARES:
        chosen = replace(decoder, share=share).chosen
        texts = [" ".join(sentence.passage.text for sentence in chosen(candidates)) for candidates in sentences]
        answers = [Answer(text, None, None, 0, 0, 0.0) for text in texts]
        scores[share] = sum(score.value for score in metric.scores(cases(rows, answers))) / len(rows)
    return scores, tokens
