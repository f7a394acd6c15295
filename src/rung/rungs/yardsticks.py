"""Yardsticks: what ten lines of code answer, in seconds and without a language model.

They are candidates like any other rung, and the measure of the others: an artifact that costs more has to beat them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median_low
from typing import Any

import numpy as np

from rung.artifact.artifact import Artifact
from rung.artifact.labels import listed
from rung.artifact.lexical import side_by_side
from rung.artifact.yardsticks import ConstantAnswer, CopiedRow, NumberHead
from rung.data.rows import Data, labels_of
from rung.data.texts import number_text
from rung.evaluation.metrics.base import multiset_f1
from rung.evaluation.metrics.text import squad_words
from rung.machine import Machine
from rung.progress import QUIET, Progress
from rung.rungs.base import OK, Applicability, Cost, Rung, rung, skip
from rung.rungs.costs import lexical_cost, one_thread_seconds, rotation_flops
from rung.rungs.features import (
    answering_alone,
    head_key,
    lexicon_of,
    reading_cost,
    sklearn_missing,
    texts_of,
    vectors_of,
)
from rung.rungs.linear import row_weights, train_number

MOST_COMPARED = 200  # answers compared with each other to find the most typical one
SECONDS_A_PAIR = 1e-5  # of it, for estimates
SAVING = 0.01  # seconds to save what takes no time to make, for estimates


class Yardstick(Rung):
    """A rung whose artifacts answer by the text of the row alone."""

    needs = ("training rows", "untuned")
    refits = True

    def suits(self, artifact: Artifact, data: Data) -> Applicability:
        """It applies where a prompt is answered."""
        del data
        return answers_anew(artifact)

    def cache_key(self, artifact: Artifact) -> tuple[object, ...]:
        """The rows' text as the prompt shows it."""
        return head_key(artifact, names=False)


def answers_anew(artifact: Artifact) -> Applicability:
    """Say whether a decoder without a prompt may replace an artifact's, or why not."""
    if artifact.decoder.fixed:
        return skip("the task itself asks for another way to answer", final=True)
    return OK if artifact.decoder.reads_prompt else skip("it answers without a prompt already")


@rung("majority", family="yardstick", order=5, default=True)
@dataclass(frozen=True)
class Majority(Yardstick):
    """Give every row the most frequent answer.

    Of numbers, the median. Of several labels a row, those that more than half of the rows have; of records, each
    field's most frequent value, if most rows have the field; of texts that are all different, the one that shares the
    most words with the others.
    """

    def estimate(self, artifact: Artifact, data: Data, machine: Machine) -> Cost:
        """Counting costs almost nothing; texts that are all different are compared with each other."""
        del machine
        outputs = [example.outputs[0] for example in data.train]
        different = artifact.signature.kind == "text" and len(set(outputs)) == len(outputs)
        compared = min(MOST_COMPARED, len(outputs)) if different else 0
        return Cost(0, 0.0, SAVING + 1e-5 * len(data.train) + SECONDS_A_PAIR * compared**2, 0, 0.0, 0.0, 0)

    def fit(self, artifact: Artifact, data: Data, *, progress: Progress = QUIET) -> Artifact:
        """Count the answers."""
        del progress
        outputs, kind = [example.outputs[0] for example in data.train], artifact.signature.kind
        shares: tuple[float, ...] = ()
        if kind == "multilabel":
            counts = Counter(label for output in outputs for label in labels_of(output, kind))
            constant = listed(data.labels, [2 * counts[label] > len(outputs) for label in data.labels])
        elif kind == "json":
            constant = json.dumps(typical_value([json.loads(output) for output in outputs]), ensure_ascii=False)
        elif kind == "category":
            counts = Counter(outputs)
            constant = max(data.labels, key=lambda label: counts[label])
            shares = tuple(counts[label] / len(outputs) for label in data.labels)
        elif kind == "number":
            constant = number_text(median_low([float(output) for output in outputs]))  # no constant has a smaller MAE
        else:
            constant = most_typical([output for example in data.train for output in example.outputs])
        return answering_alone(artifact, self.name, {"rows": len(outputs)}, ConstantAnswer(constant, shares))


def typical_value(values: Sequence[Any]) -> Any:
    """Give the most frequent of JSON values; of objects, field by field, each if most of them have it."""
    objects = [value for value in values if isinstance(value, dict)]
    if 2 * len(objects) > len(values):
        fields = dict.fromkeys(name for value in objects for name in value)
        own = {name: [value[name] for value in objects if name in value] for name in fields}
        return {name: typical_value(known) for name, known in own.items() if 2 * len(known) > len(objects)}
    texts = Counter(json.dumps(value, ensure_ascii=False, sort_keys=True) for value in values)
    return json.loads(texts.most_common(1)[0][0])


def most_typical(texts: Sequence[str]) -> str:
    """Give the most frequent text; if all are different, the one that shares the most words with the others."""
    best, count = Counter(texts).most_common(1)[0]
    if count > 1 or len(texts) < 3:
        return best
    compared = texts[:MOST_COMPARED]
    words = [Counter(squad_words(text)) for text in compared]
    likeness = [sum(multiset_f1(own, other) for other in words) for own in words]
    return compared[int(np.argmax(likeness))]


@rung("nearest-row-encoder", family="yardstick", order=20, default=True)
@rung("nearest-row", family="yardstick", order=10, default=True, encoder=None)
@dataclass(frozen=True)
class NearestRow(Yardstick):
    """Copy the answer of the most similar training row.

    Attributes:
        encoder: reference of the sentence encoder that compares rows; None compares TF-IDF of words and characters.
    """

    encoder: str | None = "embedded-encoder"

    @property
    def name(self) -> str:
        """By what compares the rows."""
        return "nearest-row" if self.encoder is None else "nearest-row-encoder"

    def suits(self, artifact: Artifact, data: Data) -> Applicability:
        """TF-IDF needs scikit-learn."""
        plain = super().suits(artifact, data)
        return plain if self.encoder is not None or not plain.applies else sklearn_missing()

    @property
    def encoders(self) -> tuple[str, ...]:
        """The one that compares the rows, if any."""
        return (self.encoder,) if self.encoder else ()

    def estimate(self, artifact: Artifact, data: Data, machine: Machine) -> Cost:
        """One reading of the training rows."""
        if self.encoder is None:
            return lexical_cost(artifact, data, machine)
        return reading_cost(artifact, self.encoder, data, machine)

    def fit(self, artifact: Artifact, data: Data, *, progress: Progress = QUIET) -> Artifact:
        """Take the training rows as the table."""
        texts, outputs = texts_of(artifact, data.train), tuple(example.outputs[0] for example in data.train)
        if self.encoder is None:
            lexicon, terms = lexicon_of(texts)
            decoder = CopiedRow(None, outputs, side_by_side(terms, len(texts)), lexicon)
        else:
            vectors = vectors_of(artifact, self.encoder, texts, data.known, progress=progress)
            decoder = CopiedRow(self.encoder, outputs, vectors)
        settings = {"encoder": self.encoder, "rows": len(outputs)}
        return answering_alone(artifact, self.name, settings, decoder)


@rung("ridge-encoder", family="features", order=65, default=True, topics=("number heads",))
@rung("ridge", family="yardstick", order=35, default=True, topics=("number heads",), encoder=None)
@dataclass(frozen=True)
class NumberRidge(Yardstick):
    """Predict a number by ridge regression on TF-IDF, with or without the vectors of a sentence encoder.

    Leave-one-out errors of the training rows choose the penalty. Answers stay between the least and the greatest number
    of the training rows, and are whole where those are.

    Attributes:
        encoder: reference of the sentence encoder whose vectors are features too; None for TF-IDF alone.
    """

    encoder: str | None = "embedded-encoder"

    @property
    def name(self) -> str:
        """By the features."""
        return "ridge" if self.encoder is None else "ridge-encoder"

    def suits(self, artifact: Artifact, data: Data) -> Applicability:
        """It applies to numbers."""
        if artifact.signature.kind != "number":
            return skip("it predicts numbers", final=True)
        if len({float(example.outputs[0]) for example in data.train}) < 2:
            return skip("the training rows all have the same answer", final=True)
        plain = super().suits(artifact, data)
        return sklearn_missing() if plain.applies else plain

    def estimate(self, artifact: Artifact, data: Data, machine: Machine) -> Cost:
        """One reading of the training rows, and the fit."""
        lexical, turned = lexical_cost(artifact, data, machine, outputs=1), 2 * rotation_flops(len(data.train))
        lexical = replace(lexical, fit_seconds=lexical.fit_seconds + one_thread_seconds(turned, machine))
        if self.encoder is None:
            return lexical
        return reading_cost(artifact, self.encoder, data, machine).after(lexical)

    def fit(self, artifact: Artifact, data: Data, *, progress: Progress = QUIET) -> Artifact:
        """Replace the decoder by a linear model of the number."""
        texts, numbers = texts_of(artifact, data.train), [float(example.outputs[0]) for example in data.train]
        lexicon, blocks = lexicon_of(texts)
        if self.encoder is not None:
            blocks = [vectors_of(artifact, self.encoder, texts, data.known, progress=progress), *blocks]
        weight, intercept, penalty = train_number(blocks, numbers, row_weights(data.train))
        whole = all(number.is_integer() for number in numbers)
        head = NumberHead(self.encoder, weight, intercept, min(numbers), max(numbers), whole, lexicon)
        settings = {"encoder": self.encoder, "rows": len(texts), "penalty": penalty}
        return answering_alone(artifact, self.name, settings, head)
