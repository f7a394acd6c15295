"""How good is one answer? Metrics per row, and two whole-set views for categories.

A metric is a plain function `(prediction, references) -> score in [0, 1]`; with several references the best match
counts. Task files name one (`metric: rougeL`) or point at the user's own (`metric: mymodule:score`).
"""

from __future__ import annotations

import difflib
import functools
import json
import re
import string
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rung.errors import ConfigError, DataError, MachineError

Kind = Literal["category", "text", "json", "chat"]
MetricFunction = Callable[[str, Sequence[str]], float]
OTHER = "(other)"  # stands for every prediction that is not one of the labels


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric by name. `kinds` are the output kinds it suits; `binary` says that every score is 0 or 1."""

    name: str
    function: MetricFunction
    description: str
    kinds: tuple[Kind, ...]
    binary: bool = False

    def __call__(self, prediction: str, references: Sequence[str]) -> float:
        """Score one prediction against its references, in [0, 1]."""
        return self.function(prediction, references)


@dataclass(frozen=True, slots=True)
class Confusion:
    """`count` rows of the label `expected` were predicted to be `predicted`; `rows` are their indices."""

    expected: str
    predicted: str
    count: int
    rows: tuple[int, ...]


# Categories and short answers


def accuracy(prediction: str, references: Sequence[str]) -> float:
    """Return 1 if the prediction is one of the references, outer whitespace aside, else 0."""
    return float(any(prediction.strip() == reference.strip() for reference in _some(references)))


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """Return 1 if prediction and a reference are equal after SQuAD's normalization, else 0.

    Rajpurkar et al., SQuAD: 100,000+ questions for machine comprehension of text, EMNLP 2016.
    """
    words = _squad_words(prediction)
    return float(any(words == _squad_words(reference) for reference in _some(references)))


def token_f1(prediction: str, references: Sequence[str]) -> float:
    """Return SQuAD's F1 over the words that prediction and reference share, the best over all references.

    Where either has no words left after normalization, they must both have none (SQuAD 2.0).
    """
    words = _squad_words(prediction)
    return max(_multiset_f1(Counter(words), Counter(_squad_words(reference))) for reference in _some(references))


_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _squad_words(text: str) -> list[str]:
    """Lower-case, drop punctuation, then articles, then split at whitespace: the order of SQuAD's script."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _multiset_f1(found: Counter[Any], wanted: Counter[Any]) -> float:
    """2 |found and wanted| / (|found| + |wanted|), counting repetitions; two empty sets agree."""
    total = found.total() + wanted.total()
    return 2 * (found & wanted).total() / total if total else 1.0


# Longer texts


def rouge1(prediction: str, references: Sequence[str]) -> float:
    """Return ROUGE-1 F: shared words after Porter stemming, the best over all references (Lin, ROUGE, 2004)."""
    return _rouge("rouge1", prediction, references)


def rouge2(prediction: str, references: Sequence[str]) -> float:
    """Return ROUGE-2 F: shared word pairs after Porter stemming, the best over all references."""
    return _rouge("rouge2", prediction, references)


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """Return ROUGE-L F: longest common subsequence of stemmed words, the best over all references."""
    return _rouge("rougeL", prediction, references)


def _rouge(kind: str, prediction: str, references: Sequence[str]) -> float:
    scorer = _rouge_scorer(kind)
    return max(float(scorer.score(reference, prediction)[kind].fmeasure) for reference in _some(references))


@functools.cache
def _rouge_scorer(kind: str) -> Any:
    # The package brings NLTK and takes seconds to import, hence only here and only once.
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ModuleNotFoundError as error:
        raise MachineError(
            "missing-extra",
            f"the metric {kind} needs the package rouge-score",
            hint="install it with: pip install 'rung[local]'",
        ) from error
    return RougeScorer([kind], use_stemmer=True)


# JSON


def json_exact(prediction: str, references: Sequence[str]) -> float:
    """Return 1 if the prediction is valid JSON and equal to a reference, else 0.

    The order of keys, and runs of whitespace inside strings, do not matter; the order of lists does.

    Raises:
        DataError: `bad-json-reference` if a reference is not valid JSON.
    """
    wanted = [_canonical(_reference_json(reference)) for reference in _some(references)]
    found = _parse_json(prediction)
    return float(found is not None and _canonical(found.value) in wanted)


def json_field_f1(prediction: str, references: Sequence[str]) -> float:
    """Return the micro F1 over the fields of prediction and reference, the best over all references.

    A field is a leaf with its path, such as ("lines[].price", 4.5). Items of a list share one path and are matched
    in any order, as in Donut's evaluation (Kim et al., OCR-free document understanding transformer, ECCV 2022), so
    one missing item costs only its own fields. Runs of whitespace in strings count as one space, 1 equals 1.0, an
    empty object or list is a leaf, and invalid JSON scores 0.

    Raises:
        DataError: `bad-json-reference` if a reference is not valid JSON.
    """
    wanted = [Counter(_leaves(_reference_json(reference))) for reference in _some(references)]
    found = _parse_json(prediction)
    if found is None:
        return 0.0
    fields = Counter(_leaves(found.value))
    return max(_multiset_f1(fields, reference) for reference in wanted)


class _Json(NamedTuple):
    """A parsed value, so that the value `null` differs from no value."""

    value: Any


_DEEPEST = 100  # a model can write "[[[[" for ever; no real record is nested this deeply


def _parse_json(text: str) -> _Json | None:
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return _Json(value) if _depth_within(value, _DEEPEST) else None


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def _depth_within(value: Any, limit: int) -> bool:
    if not isinstance(value, dict | list):
        return True
    children = value.values() if isinstance(value, dict) else value
    return limit > 0 and all(_depth_within(child, limit - 1) for child in children)


def _reference_json(text: str) -> Any:
    parsed = _parse_json(text)
    if parsed is None:
        raise DataError(
            "bad-json-reference",
            f"an expected output is not valid JSON: {text[:80]!r}",
            hint="with `kind: json`, the output column must hold one JSON value per row",
        )
    return parsed.value


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, canonical leaf). A dot and [] cannot be confused with a key's: keys are written as JSON."""
    if isinstance(value, dict) and value:
        for key, child in value.items():
            yield from _leaves(child, f"{path}.{json.dumps(key)}")
    elif isinstance(value, list) and value:
        for child in value:
            yield from _leaves(child, f"{path}[]")
    else:
        yield path, _canonical(value)


def _canonical(value: Any) -> Any:
    """A value that compares as JSON does: Python would take True for 1, and 1.0 for 1 is wanted."""
    if isinstance(value, dict):
        return ("object", frozenset((key, _canonical(child)) for key, child in value.items()))
    if isinstance(value, list):
        return ("list", tuple(_canonical(child) for child in value))
    if isinstance(value, str):
        return ("string", " ".join(value.split()))
    return ("literal", value) if value is None or isinstance(value, bool) else ("number", value)


def _some(references: Sequence[str]) -> Sequence[str]:
    if isinstance(references, str) or not references:
        raise ValueError(f"references must be a list of at least one text, got {references!r}")
    return references


# The registry


_TEXTS: tuple[Kind, ...] = ("text", "chat")

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", accuracy, "the answer is the expected label", ("category",), binary=True),
        Metric("exact_match", exact_match, "same words, case and articles aside", ("category", *_TEXTS), binary=True),
        Metric("token_f1", token_f1, "F1 over shared words, as in SQuAD", _TEXTS),
        Metric("rouge1", rouge1, "F1 over shared stemmed words", _TEXTS),
        Metric("rouge2", rouge2, "F1 over shared pairs of stemmed words", _TEXTS),
        Metric("rougeL", rouge_l, "F1 over the longest common subsequence of stemmed words", _TEXTS),
        Metric("json_exact", json_exact, "the same JSON value", ("json",), binary=True),
        Metric("json_field_f1", json_field_f1, "F1 over the fields of the JSON value", ("json",)),
    )
}

_DEFAULTS: dict[Kind, str] = {"category": "accuracy", "text": "rougeL", "json": "json_field_f1", "chat": "rougeL"}


def default_metric(kind: Kind) -> str:
    """Return the name of the metric that a task with this output kind uses unless it names one."""
    return _DEFAULTS[kind]


def get_metric(name: str, folder: Path | None = None) -> Metric:
    """Return a built-in metric by name, or the user's own, written `module:function`.

    Args:
        name: One of `METRICS`, or a module (beside the task file, in the current folder, or installed) and the
            function in it that takes (prediction, references).
        folder: The folder of the task file.

    Raises:
        ConfigError: `unknown-metric`, or one of the codes of `rung.evaluation.user_metric.load`.
    """
    if name in METRICS:
        return METRICS[name]
    if ":" in name:
        from rung.evaluation import user_metric

        return Metric(
            name, user_metric.load(name, folder), "the task's own metric", ("category", "text", "json", "chat")
        )
    by_lower = {known.lower(): known for known in METRICS}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    guess = f"did you mean {by_lower[close[0]]!r}? " if close else ""
    raise ConfigError(
        "unknown-metric",
        f"there is no metric {name!r}",
        hint=f"{guess}metrics: {', '.join(METRICS)}; or your own function as module:function",
    )


# Whole-set views for categories


def macro_f1(predictions: Sequence[str], expected: Sequence[str]) -> float:
    """Return the mean over the labels that occur in `expected` of each label's F1.

    Predictions of any other text count against the label they missed, and add no label of their own.

    Raises:
        ValueError: If the two differ in length or are empty.
    """
    pairs = _pairs(predictions, expected)
    hits = Counter(truth for guess, truth in pairs if guess == truth)
    guessed = Counter(guess for guess, _ in pairs)
    true = Counter(truth for _, truth in pairs)
    return sum(2 * hits[label] / (guessed[label] + true[label]) for label in true) / len(true)


def confusion(predictions: Sequence[str], expected: Sequence[str], labels: Sequence[str]) -> list[Confusion]:
    """Return the pairs of labels that were confused, most frequent first, ties in the order of `labels`.

    Predictions that are none of the labels are gathered under `OTHER`.

    Raises:
        ValueError: If lengths differ, there are no rows, or an expected label is none of `labels`.
    """
    order = {label.strip(): rank for rank, label in enumerate(labels)}
    rows: dict[tuple[str, str], list[int]] = {}
    for row, (guess, truth) in enumerate(_pairs(predictions, expected)):
        if truth not in order:
            raise ValueError(f"row {row}: expected label {truth!r} is not one of the labels")
        if guess != truth:
            rows.setdefault((truth, guess if guess in order else OTHER), []).append(row)
    found = [Confusion(truth, guess, len(indices), tuple(indices)) for (truth, guess), indices in rows.items()]
    return sorted(found, key=lambda c: (-c.count, order[c.expected], order.get(c.predicted, len(order))))


def _pairs(predictions: Sequence[str], expected: Sequence[str]) -> list[tuple[str, str]]:
    if len(predictions) != len(expected) or not expected:
        raise ValueError(f"need as many predictions as expected labels, got {len(predictions)} and {len(expected)}")
    return [(guess.strip(), truth.strip()) for guess, truth in zip(predictions, expected, strict=True)]
