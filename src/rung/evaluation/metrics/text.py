"""Short answers, as SQuAD scores them (Rajpurkar et al., EMNLP 2016; for questions without an answer, ACL 2018)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from rung.evaluation.metrics.base import MetricFunction, multiset_f1, some

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """Return 1 if prediction and a reference are equal after SQuAD's normalization, else 0."""
    words = squad_words(prediction)
    return float(any(words == squad_words(reference) for reference in some(references)))


def token_f1(prediction: str, references: Sequence[str]) -> float:
    """Return SQuAD's F1 over the words that prediction and reference share, the best over all references.

    Where either has no words left after normalization, they must both have none (SQuAD 2.0).
    """
    words = squad_words(prediction)
    return max(multiset_f1(Counter(words), Counter(squad_words(reference))) for reference in some(references))


def final_number(prediction: str, references: Sequence[str]) -> float:
    """Return 1 if the last number of the prediction is that of a reference, else 0.

    The rule by which answers to grade-school mathematics are usually read (Cobbe et al. 2021,
    https://arxiv.org/abs/2110.14168), whose references end in `#### 72`. Commas between digits do not matter, nor do
    zeros behind the decimal point. A reference without a number is never met.
    """
    found = _last_number(prediction)
    return float(found is not None and any(found == _last_number(reference) for reference in some(references)))


def refusing(function: MetricFunction, refusal: str) -> MetricFunction:
    """Return the metric with `refusal` as the one right answer where it is expected, and a wrong one elsewhere.

    Words shared with a refusal are no partly right answer: scores are then 0 or 1, as for SQuAD 2.0's questions
    without an answer. Case, punctuation and articles do not matter.
    """
    words = squad_words(refusal)

    def score(prediction: str, references: Sequence[str]) -> float:
        refused = squad_words(prediction) == words
        answers = [reference for reference in some(references) if squad_words(reference) != words]
        if refused:
            return float(len(answers) < len(references))
        return function(prediction, answers) if answers else 0.0

    return score


def squad_words(text: str) -> list[str]:
    """Lower-case, drop punctuation, then articles, then split at whitespace: the order of SQuAD's script."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _last_number(text: str) -> float | None:
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None
