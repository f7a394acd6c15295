"""Fields: a record filled field by field, by linear models that read the text alone."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from rung.artifact.artifact import Artifact
from rung.artifact.lexical import Lexicon
from rung.artifact.records import (
    ABSENT,
    FIRST,
    INSIDE,
    MOST_TOKENS,
    How,
    Path,
    RecordDecoder,
    RecordField,
    Tagger,
    Tokens,
    best_tags,
    cased,
    leaves,
    number_in,
    padded,
)
from rung.data.rows import Data
from rung.engines.base import Floats
from rung.evaluation.metrics.base import f1
from rung.evaluation.metrics.records import compare_fields
from rung.machine import Machine
from rung.progress import QUIET, Progress
from rung.rungs.base import Applicability, Cost, CountOrZero, rung, skip
from rung.rungs.costs import lexical_cost
from rung.rungs.features import answering_alone, lexicon_of, sklearn_missing, texts_of
from rung.rungs.linear import train_head, train_label_heads
from rung.rungs.yardsticks import Yardstick, typical_value
from rung.training.config import Count

HELD = 3  # one row in so many decides how each field is filled
MOST_VALUES = 200  # distinct values of a field that a head chooses from
CLOSED = 0.8  # share of a field's values that occur more than once, from which a head may choose among them
FEWEST_SPANS = 0.2  # share of a field's values that occur in their texts, below which no tagger is tried
REQUIRED = 0.95  # share of the rows with a value from which the best span is always taken
TOKENS_AN_EPOCH = 200_000  # that the tagger reads at most, of rows drawn by the seed
SECONDS_A_TOKEN = 1.5e-5  # of an epoch, for estimates
TYPICAL_VALUES = 20  # of a field that a head chooses, for estimates
FEWEST_USES = 2  # of a feature in the training rows, below which the tagger leaves it out


@rung("record-fields", family="yardstick", order=40, default=True, topics=("record fields",))
@dataclass(frozen=True)
class RecordFields(Yardstick):
    """Fill each field of a record by itself, in the way that is best on held-out training rows.

    A field gets its most frequent value, one of few values by a linear head on the TF-IDF of the text, a value that is
    known from the training rows and occurs in the text, or a span of the text. Spans are found by an averaged
    perceptron over tags of tokens (Collins 2002, Discriminative training methods for hidden Markov models,
    https://aclanthology.org/W02-1001).

    Attributes:
        epochs: how often the tagger sees every training row.
        seed: seed of the order of the rows.
    """

    epochs: Count = 8
    seed: CountOrZero = 0

    def suits(self, artifact: Artifact, data: Data) -> Applicability:
        """It applies to records."""
        if artifact.signature.kind != "json":
            return skip("it fills the fields of records", final=True)
        plain = super().suits(artifact, data)
        return sklearn_missing() if plain.applies else plain

    def estimate(self, artifact: Artifact, data: Data, machine: Machine) -> Cost:
        """Two fits: one to choose how each field is filled, one on all rows."""
        cost = lexical_cost(artifact, data, machine, outputs=TYPICAL_VALUES)
        characters = sum(map(len, texts_of(artifact, data.train)))
        tagging = self.epochs * min(characters / 4, TOKENS_AN_EPOCH) * SECONDS_A_TOKEN
        return replace(cost, fit_seconds=cost.fit_seconds + (2 - 1 / HELD) * tagging)

    def fit(self, artifact: Artifact, data: Data, *, progress: Progress = QUIET) -> Artifact:
        """Choose how each field is filled, and learn to fill it from all rows."""
        texts = texts_of(artifact, data.train)
        records = [json.loads(example.outputs[0]) for example in data.train]
        order = np.random.default_rng(self.seed).permutation(len(texts))
        held = set(order[: len(texts) // HELD].tolist())
        parts = [[n for n in range(len(texts)) if (n in held) is part] for part in (False, True)]
        fields = fields_of(records)
        progress.start("filling the fields", 2)
        scores: dict[str, dict[str, float]] = {}
        if parts[0] and parts[1]:
            (seen, known), (asked, wanted) = ([[x[n] for n in part] for x in (texts, records)] for part in parts)
            chosen = []
            tried = [[replace(field, how=how) for how in options(field, texts, records)] for field in fields]
            trained = self._train([one for field in tried for one in field], seen, known)
            columns = iter(trained.columns(asked))
            for field in tried:
                own = {one.how: field_f1(one, next(columns), wanted) for one in field}
                scores[".".join(field[0].path)] = {how: round(score, 4) for how, score in own.items()}
                chosen.append(replace(field[0], how=max(own, key=lambda how: own[how])))
            fields = chosen
        progress.advance()
        decoder = self._train(fields, texts, records)
        progress.advance()
        progress.finish()
        settings = {"rows": len(texts), "epochs": self.epochs, "f1_by_field": scores}
        return answering_alone(artifact, self.name, settings, decoder)

    def _train(self, fields: Sequence[RecordField], texts: Sequence[str], records: Sequence[Any]) -> RecordDecoder:
        """Learn to fill every field in its way."""
        lexicon: Lexicon | None = None
        made, heads = list[RecordField](), dict[int, tuple[Floats, Floats]]()
        if any(field.how in ("head", "labels") for field in fields):
            lexicon, blocks = lexicon_of(texts)
        values_of = [dict(leaves(record)) for record in records]
        for number, field in enumerate(fields):
            own = [values.get(field.path) for values in values_of]
            full = replace(field, values=tuple(known(field, own)))
            if field.how == "head" and len(full.values) < 2:
                full = replace(full, how="constant")
            elif field.how == "head":
                truth = np.array([full.values.index(as_json(value)) for value in own])
                heads[number] = train_head(blocks, truth, len(full.values), seed=self.seed)[:2]
            elif field.how == "labels":
                given = [{as_json(item) for item in value or ()} for value in own]
                truths = np.array([[value in row for value in full.values] for row in given])
                weight, intercept, _, thresholds = train_label_heads(blocks, truths, self.seed)
                heads[number], full = (weight, intercept), replace(full, thresholds=thresholds)
            made.append(full)
        spans = [field for field in made if field.how == "tagger"]
        tagger = None
        if spans:
            tagger = train_tagger(spans, texts, values_of, epochs=self.epochs, seed=self.seed)
        return RecordDecoder(tuple(made), heads, lexicon if heads else None, tagger)


# ---- fields of training records


def as_json(value: Any) -> str:
    """Write a value as comparable JSON."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def fields_of(records: Sequence[Any]) -> list[RecordField]:
    """List the fields of the records, each as a constant, with what stands for no value."""
    counts: dict[Path, int] = Counter(path for record in records for path, _ in leaves(record))
    columns: dict[Path, list[Any]] = defaultdict(list)
    for record in records:
        for path, value in leaves(record):
            columns[path].append(value)
    fields = []
    for path, own in columns.items():
        lists = sum(isinstance(value, list) for value in own)
        many = 2 * lists > len(own)
        nothing = [value for value in own if is_empty(value)]
        empty = Counter(map(as_json, nothing)).most_common(1)[0][0] if nothing else ABSENT
        if not nothing and counts[path] == len(records):
            empty = "[]" if many else "null"
        full = [value for value in own if not is_empty(value)]
        numbers = bool(full) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in full)
        fields.append(
            RecordField(
                path, "constant", many, empty, number=numbers, case=usual_case(full),
                required=not many and len(full) >= REQUIRED * len(records),
            )
        )  # fmt: skip
    return fields


def is_empty(value: Any) -> bool:
    """Whether a value says that there is nothing."""
    return value is None or value in ("", [], {})


def usual_case(values: Sequence[Any]) -> str:
    """In which case texts are written: `lower` or `upper` if all are and some letters could be otherwise."""
    texts = [text for text in values if isinstance(text, str) and text.lower() != text.upper()]
    cases = [case for case in ("lower", "upper") if texts and all(cased(text, case) == text for text in texts)]
    return cases[0] if cases else "same"


def options(field: RecordField, texts: Sequence[str], records: Sequence[Any]) -> list[How]:
    """List the ways that may fill a field, the simplest first."""
    own = [dict(leaves(record)).get(field.path) for record in records]
    items = [item for value in own for item in (value if isinstance(value, list) else [value]) if not is_empty(item)]
    counts = Counter(map(as_json, items if field.many else own))
    closed = sum(count for count in counts.values() if count > 1) >= CLOSED * sum(counts.values())
    ways: list[How] = ["constant"]
    if 1 < len(counts) <= MOST_VALUES and closed:
        ways.append("labels" if field.many else "head")
    if items and all(isinstance(item, str | int | float) and not isinstance(item, bool) for item in items):
        found = sum(
            bool(occurrences(Tokens.of(text), value))
            for text, value in zip(texts, own, strict=True)
            if not is_empty(value)
        )
        if found >= FEWEST_SPANS * sum(not is_empty(value) for value in own):
            ways += ["list", "tagger"]
    return ways


def known(field: RecordField, own: Sequence[Any]) -> list[str]:
    """The values that a way of filling a field chooses from, as JSON, the most frequent first."""
    if field.how == "constant":
        return [as_json(typical_value(own))]
    if field.how == "tagger":
        return []
    items = [item for value in own for item in (value if isinstance(value, list) else [value]) if not is_empty(item)]
    values = own if field.how == "head" else items
    return [value for value, _ in Counter(map(as_json, values)).most_common()]


def field_f1(field: RecordField, found: Sequence[Any], records: Sequence[Any]) -> float:
    """The F1 of one field over all records, as the metric of records counts it."""
    shared = given = wanted = 0
    for value, record in zip(found, records, strict=True):
        expected = dict(leaves(record)).get(field.path)
        if is_empty(value):
            value = [] if field.many else None
        counts = compare_fields({"field": value}, {"field": expected})
        shared, given, wanted = shared + counts.shared, given + counts.found, wanted + counts.wanted
    return f1(shared, given, wanted)


# ---- the tagger


def occurrences(tokens: Tokens, value: Any) -> list[tuple[int, int]]:
    """Find where a value, or the items of a list, occur in a text: first and last tokens. Case does not matter."""
    spans = []
    for item in value if isinstance(value, list) else [value]:
        if is_empty(item) or isinstance(item, bool | dict | list):
            continue
        if isinstance(item, int | float):
            spans += _numbers(tokens, float(item))
            continue
        wanted = Tokens.of(item).lower
        if 0 < len(wanted) <= MOST_TOKENS:
            starts = [n for n, word in enumerate(tokens.lower) if word == wanted[0]]
            spans += [(n, n + len(wanted) - 1) for n in starts if tokens.lower[n : n + len(wanted)] == wanted]
    return spans


def _numbers(tokens: Tokens, value: float) -> list[tuple[int, int]]:
    """Find where a number is written, with a point, commas, or a sign."""
    spans = []
    for first, word in enumerate(tokens.lower):
        if not (word.isdigit() or word in ("-", ".")):
            continue
        for last in range(first, min(first + 6, len(tokens.lower))):
            text = tokens.span(first, last)
            if " " in text:
                break
            if (read := number_in(text) if any(map(str.isdigit, text)) else None) is not None and read == value:
                longer = tokens.span(first, min(last + 2, len(tokens.lower) - 1))
                if number_in(longer) is None or last + 1 >= len(tokens.lower) or longer == text:
                    spans.append((first, last))
    return spans


def tags_of(tokens: Tokens, value: Any) -> npt.NDArray[np.int64] | None:
    """The tags of the tokens of a text; None where the value is not in the text."""
    tags = np.zeros(len(tokens.lower), np.int64)
    if is_empty(value):
        return tags
    spans = sorted(occurrences(tokens, value), key=lambda span: (span[0] - span[1], span[0]))
    for first, last in spans:  # the longest first
        if not tags[first : last + 1].any():
            tags[first], tags[first + 1 : last + 1] = FIRST, INSIDE
    return tags if spans else None


def train_tagger(
    fields: Sequence[RecordField], texts: Sequence[str], values: Sequence[Mapping[Path, Any]], *, epochs: int, seed: int
) -> Tagger:
    """Train an averaged perceptron on the best tags of every text."""
    rng = np.random.default_rng(seed)
    tokens, read = list[Tokens](), 0
    gold = list[list[npt.NDArray[np.int64] | None]]()
    for n in rng.permutation(len(texts)).tolist():
        each = Tokens.of(texts[n])
        read += len(each.lower)
        if read > TOKENS_AN_EPOCH and tokens:
            break
        if each.lower:
            tokens.append(each)
            gold.append([tags_of(each, values[n].get(field.path)) for field in fields])
    features = [each.features() for each in tokens]
    uses = Counter(name for row in features for own in row for name in own)
    terms = {name: number for number, name in enumerate(name for name, count in uses.items() if count >= FEWEST_USES)}
    numbers = [padded([[terms[f] for f in own if f in terms] for own in row], len(terms)) for row in features]
    del features
    weight = np.zeros((len(terms) + 1, len(fields), 3), np.float32)  # the last row stays zero
    moves = np.zeros((len(fields), 3, 3), np.float32)
    late_weight, late_moves = np.zeros_like(weight, np.float64), np.zeros_like(moves, np.float64)
    step = 1
    for _ in range(epochs):
        for n in rng.permutation(len(tokens)).tolist():
            rows = numbers[n]
            guessed = best_tags(weight[rows].sum(1), moves)
            for f, tags in enumerate(gold[n]):
                if tags is None or (tags == guessed[:, f]).all():
                    continue
                for at in np.flatnonzero(tags != guessed[:, f]).tolist():
                    for tag, sign in ((tags[at], 1.0), (guessed[at, f], -1.0)):
                        weight[rows[at], f, tag] += sign
                        late_weight[rows[at], f, tag] += sign * step
                for path, sign in ((tags, 1.0), (guessed[:, f], -1.0)):
                    np.add.at(moves[f], (path[:-1], path[1:]), sign)
                    np.add.at(late_moves[f], (path[:-1], path[1:]), sign * step)
            weight[-1] = late_weight[-1] = 0
            step += 1
    weight -= (late_weight / step).astype(np.float32)
    moves -= (late_moves / step).astype(np.float32)
    kept = np.flatnonzero(weight.any((1, 2)))
    names = list(terms)
    return Tagger({names[row]: number for number, row in enumerate(kept.tolist())}, weight[kept], moves)
