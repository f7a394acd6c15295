"""Frozen features with a trained linear head: the baselines that every classification rung must beat.

The features are the vectors of a sentence encoder, the TF-IDF of words and runs of characters, or both. The head is
multinomial logistic regression, or one logistic regression per label where a row may have several (binary relevance).
Cross-validation on the training rows chooses the penalty, and whether labels with few rows weigh as much as the others;
for several labels it chooses the thresholds (Yang 2001, A study of thresholding strategies for text categorization):
each label's own, where its F1 is best, or one for all, whichever gives the better mean F1 over the labels of a row,
which is the metric of such tasks. The first finds rare labels; the second leaves rows without labels alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import numpy as np

from rung.artifact.artifact import Artifact
from rung.artifact.heads import Head, features
from rung.artifact.lexical import MOST_TERMS, Lexicon
from rung.artifact.parts import BASE
from rung.data.rows import Data, Example, labels_of
from rung.engines.base import Floats
from rung.engines.opening import open_encoder
from rung.errors import ConfigError, install_command
from rung.machine import Machine
from rung.models.reference import is_endpoint, resolve
from rung.progress import QUIET, Progress
from rung.prompts.prompt import verbalize
from rung.rungs.base import OK, Applicability, Cost, CountOrZero, Rung, rung, skip
from rung.rungs.costs import encoder_cost, forward_cost, head_cost, lexical_cost, sizes, width_of
from rung.rungs.linear import ROTATED, row_weights, train_head, train_label_heads

FEWER_TERMS = 30_000  # of each block where there are so many rows that the head is fitted on the terms themselves
REMEMBERED = 2  # sets of training texts whose vectors are kept in memory
_VECTORS: dict[tuple[tuple[object, ...], tuple[str, ...]], Floats] = {}  # by what reads, and the texts in their order


@rung("llm-features", family="features", order=510, default=True, topics=("hidden states",), encoder="", tfidf=False)
@rung("features", family="features", order=50, default=True, tfidf=False)
@dataclass(frozen=True)
class Features(Rung):
    """A linear head on frozen features.

    Attributes:
        encoder: reference of a sentence encoder; empty for the base model's own hidden states, None for none.
        tfidf: whether the TF-IDF of words and runs of characters are features too.
        label_names: also train on the labels' names and descriptions, one more row for each. On BANKING77 that gained
            two points of validation accuracy with five rows a label, and lost two with ten.
        seed: seed of the folds.
    """

    encoder: str | None = "embedded-encoder"
    tfidf: bool = False
    label_names: bool = False
    seed: CountOrZero = 0

    @property
    def name(self) -> str:
        """`features`, or `llm-features` for the base model's hidden states."""
        return "llm-features" if self.encoder == "" else "features"

    @property
    def refits(self) -> bool:  # type: ignore[override]
        """Whether fitting takes seconds: a language model reads the rows for minutes."""
        return self.encoder != ""

    def __post_init__(self) -> None:
        """Check that there are features."""
        super().__post_init__()
        if self.encoder is None and not self.tfidf:
            message = f"{self.name}.encoder: null leaves no features"
            raise ConfigError("bad-setting", message, hint="name an encoder, or use the rung tfidf-head")

    def suits(self, artifact: Artifact, data: Data) -> Applicability:
        """It applies to categories, once."""
        if self.encoder == "" and is_endpoint(artifact.model):
            return skip("an endpoint does not show its hidden states", final=True)
        return head_applies(artifact, data)

    def cache_key(self, artifact: Artifact) -> tuple[object, ...]:
        """The rows' text as in the prompt, and the base model if its hidden states are the features."""
        model = (artifact.model, artifact.engine, artifact.weights.base) if self.encoder == "" else ()
        return (*head_key(artifact, names=self.label_names), *model)

    @property
    def encoders(self) -> tuple[str, ...]:
        """The one that reads the rows, if any."""
        return (self.encoder,) if self.encoder else ()

    def estimate(self, artifact: Artifact, data: Data, machine: Machine) -> Cost:
        """One pass of the encoder over the training rows, and the fits of the head on a range of penalties."""
        several = artifact.signature.kind == "multilabel"
        lexical = lexical_cost(artifact, data, machine, outputs=len(data.labels))
        if self.encoder is None:
            return lexical.after(head_cost(data, machine, math.inf, several=several))
        read = reading_cost(artifact, self.encoder, data, machine)
        if self.tfidf:
            return read.after(lexical).after(head_cost(data, machine, math.inf, mixed=True, several=several))
        return read.after(head_cost(data, machine, width_of(self.encoder or artifact.model), several=several))

    def fit(self, artifact: Artifact, data: Data, *, progress: Progress = QUIET) -> Artifact:
        """Replace the decoder by a head."""
        labels, encoder, rows = data.labels, self.encoder, data.train
        several = artifact.signature.kind == "multilabel"
        if several:
            texts = texts_of(artifact, rows)
        else:
            texts, truth = labelled_texts(artifact, rows, labels, names=self.label_names)
        lexicon, terms = lexicon_of(texts) if self.tfidf else (None, [])
        blocks = [] if encoder is None else [vectors_of(artifact, encoder, texts, data.known, progress=progress)]
        blocks += terms
        settings: dict[str, Any] = {
            "encoder": artifact.model if encoder == "" else encoder, "tfidf": self.tfidf, "rows": len(rows),
            "label_names": self.label_names, **(read_in_windows(encoder, texts) if encoder else {}),
        }  # fmt: skip
        if several:
            given = [set(labels_of(example.outputs[0], "multilabel")) for example in rows]
            truths = np.array([[label in row for label in labels] for row in given])
            weight, intercept, penalty, thresholds = train_label_heads(
                blocks, truths, self.seed, weights=row_weights(rows), progress=progress
            )
            head = Head(labels, encoder, weight, intercept, thresholds=thresholds, lexicon=lexicon)
        else:
            weight, intercept, best = train_head(
                blocks,
                truth,
                len(labels),
                seed=self.seed,
                weights=row_weights(rows, len(texts) - len(rows)),
                progress=progress,
            )
            head = Head(labels, encoder, weight, intercept, lexicon=lexicon)
            penalty, settings["class_weight"] = best.penalty, "balanced" if best.balanced else None
            settings |= {"tfidf_variance": best.lexical} if self.tfidf and encoder is not None else {}
        return answering_alone(artifact, self.name, {**settings, "inverse_penalty": penalty}, head)


@rung("features-tfidf", family="features", order=60, default=True, tfidf=True)
@dataclass(frozen=True)
class FeaturesAndTfidf(Features):
    """A linear head on the vectors of a sentence encoder and on TF-IDF, side by side."""

    tfidf: bool = True


@rung("tfidf-head", family="yardstick", order=30, default=True, topics=("label heads",), encoder=None, tfidf=True)
@dataclass(frozen=True)
class TfidfHead(Features):
    """A linear head on the TF-IDF of words and runs of characters: no neural network at all."""

    encoder: str | None = None
    tfidf: bool = True


def answering_alone(artifact: Artifact, name: str, settings: dict[str, Any], decoder: Any) -> Artifact:
    """Put a decoder that reads only the row in the place of all that answers a prompt."""
    return artifact.step(name, settings, decoder=decoder, demonstrations=None, retriever=None, weights=BASE)


def lexicon_of(texts: Sequence[str]) -> tuple[Lexicon, list[Any]]:
    """Collect the terms of the training texts, fewer where there are many rows; and compute the texts' TF-IDF."""
    return Lexicon.fit_with_blocks(texts, most_terms=MOST_TERMS if len(texts) <= ROTATED else FEWER_TERMS)


def vectors_of(
    artifact: Artifact, encoder: str, texts: Sequence[str], known: Sequence[Example] = (), *,
    progress: Progress = QUIET,
) -> Floats:  # fmt: skip
    """Compute the features of training texts, shape [texts, dimension], by a sentence encoder or the artifact's model.

    Several rungs, and the fits of several folds, ask for the same texts. So those of the `known` rows are read once, in
    an order that does not depend on who asks first: the last digits of a vector depend on what runs beside its text.
    """
    whole = tuple(sorted({*texts, *texts_of(artifact, known)}))
    key = (reader_of(artifact, encoder), whole)
    if key not in _VECTORS:
        while len(_VECTORS) >= REMEMBERED:
            del _VECTORS[next(iter(_VECTORS))]
        _VECTORS[key] = features(artifact, encoder, whole, progress=progress)
    places = {text: place for place, text in enumerate(whole)}
    chosen: Floats = _VECTORS[key][[places[text] for text in texts]]
    return chosen


def reader_of(artifact: Artifact, encoder: str) -> tuple[object, ...]:
    """What computes the vectors of texts, for comparison."""
    weights = (resolve(encoder).fingerprint,) if encoder else (artifact.model, artifact.engine, artifact.weights.base)
    return (encoder, *weights)


def reading_cost(artifact: Artifact, encoder: str, data: Data, machine: Machine) -> Cost:
    """Estimate what `vectors_of` the training rows takes, which the fits of several folds and rungs share."""
    s, rows = sizes(artifact, data), -(-len(data.train) // max(1, len(data.folds)))
    if encoder:
        cost = encoder_cost(encoder, s.question, machine, fit_rows=rows)
    else:
        cost = forward_cost(s.parameters, s.question, machine, fit_rows=rows)
    return replace(cost, shared=((f"vectors by {reader_of(artifact, encoder)}", cost.fit_seconds),))


def read_in_windows(encoder: str, texts: Sequence[str]) -> dict[str, int]:
    """Count the texts that the encoder reads in several windows, and the windows of the longest."""
    opened = open_encoder(encoder)
    counts = [len(opened.windows(text)) for text in texts]
    return {"rows_in_windows": sum(count > 1 for count in counts), "most_windows": max(counts)}


def sklearn_missing() -> Applicability:
    """Say that a rung needs scikit-learn, unless it is installed."""
    if find_spec("sklearn") is None:
        return skip(f"it needs scikit-learn: {install_command('local')}", final=True)
    return OK


def head_applies(artifact: Artifact, data: Data) -> Applicability:
    """Say whether a head on an encoder can replace an artifact's decoder, or why not."""
    if not data.labels:
        return skip("a head answers categories only", final=True)
    if not (installed := sklearn_missing()).applies:
        return installed
    if len({e.outputs[0] for e in data.train}) < 2:
        return skip("the training rows all have the same answer", final=True)
    if not artifact.decoder.reads_prompt:
        return skip("a head is trained already")
    if artifact.weights.adapter is not None:
        return skip("a head would not see the tuned language model")
    return OK


def head_key(artifact: Artifact, *, names: bool) -> tuple[object, ...]:
    """All parts of an artifact that `labelled_texts` and a head's predictions read, for comparison."""
    prompt = artifact.prompt
    return (artifact.signature, prompt.template, prompt.chat_column, prompt.descriptions if names else ())


def texts_of(artifact: Artifact, rows: Sequence[Example]) -> list[str]:
    """The rows as they appear in prompts."""
    return [artifact.prompt.question(example.inputs) for example in rows]


def labelled_texts(
    artifact: Artifact, rows: Sequence[Example], labels: Sequence[str], *, names: bool
) -> tuple[list[str], np.ndarray[Any, Any]]:
    """The texts and label numbers that a head is trained on: the rows, and with `names` the labels themselves."""
    texts = texts_of(artifact, rows)
    truth = [labels.index(example.outputs[0]) for example in rows]
    if names:
        described = dict(artifact.prompt.descriptions)
        spoken = verbalize(labels)
        texts += [f"{text}: {described[text]}" if text in described else text for text in spoken]
        truth += range(len(labels))
    return texts, np.array(truth)
