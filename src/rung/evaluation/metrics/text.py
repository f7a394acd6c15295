"""Metrics of texts: short answers, summaries, translations, completions and rewritten texts.

Short answers are scored as in SQuAD (Rajpurkar et al., EMNLP 2016; for questions without an answer, ACL 2018).
"""

from __future__ import annotations

import functools
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rung.errors import ConfigError, needed_by
from rung.evaluation.metrics.base import Case, Metric, MetricFunction, RowScore, multiset_f1, some

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """Score 1 if prediction and a reference are equal after SQuAD's normalization, else 0."""
    words = squad_words(prediction)
    return float(any(words == squad_words(reference) for reference in some(references)))


def token_f1(prediction: str, references: Sequence[str]) -> float:
    """Compute SQuAD's F1 over the words that prediction and reference share, the best over all references.

    If either has no words left after normalization, both must have none (SQuAD 2.0).
    """
    words = squad_words(prediction)
    return max(multiset_f1(Counter(words), Counter(squad_words(reference))) for reference in some(references))


def final_number(prediction: str, references: Sequence[str]) -> float:
    """Score 1 if the last number of the prediction is the last number of a reference, else 0.

    This is the usual rule for grade-school mathematics (Cobbe et al. 2021, https://arxiv.org/abs/2110.14168), whose
    references end in `#### 72`. Commas between digits and zeros after the decimal point do not matter. A reference
    without a number never matches.
    """
    number = _last_number(prediction)
    return float(number is not None and any(number == _last_number(reference) for reference in some(references)))


def refusing(function: MetricFunction, refusal: str) -> MetricFunction:
    """Make a metric for which `refusal` is right only where it is expected, and is then the only right answer.

    Sharing words with a refusal earns nothing: the score is then 0 or 1, as for SQuAD 2.0's questions without an
    answer. Case, punctuation and articles do not matter.
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
    numbers = _NUMBER.findall(text)
    return float(numbers[-1].replace(",", "")) if numbers else None


# ---- summaries: ROUGE (Lin 2004) with Porter stemming, the best over all references


def rouge1(prediction: str, references: Sequence[str]) -> float:
    """Compute ROUGE-1 F: shared words."""
    return _rouge("rouge1", prediction, references)


def rouge2(prediction: str, references: Sequence[str]) -> float:
    """Compute ROUGE-2 F: shared word pairs."""
    return _rouge("rouge2", prediction, references)


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """Compute ROUGE-L F: longest common subsequence of words."""
    return _rouge("rougeL", prediction, references)


def _rouge(kind: str, prediction: str, references: Sequence[str]) -> float:
    scorer = _rouge_scorer(kind)
    return max(float(scorer.score(reference, prediction)[kind].fmeasure) for reference in some(references))


@functools.cache
def _rouge_scorer(kind: str) -> Any:
    # The package imports NLTK, which takes seconds: import it only here.
    with needed_by(f"the metric {kind}"):
        from rouge_score.rouge_scorer import RougeScorer
    return RougeScorer([kind], use_stemmer=True)


# ---- translations: chrF and BLEU as sacrebleu computes them, with all references at once


def chrf(prediction: str, references: Sequence[str]) -> float:
    """Compute chrF2 of one text: F2 over character 6-grams (Popović 2015), from 0 to 1."""
    return _sentence("chrf", prediction, references)


def bleu(prediction: str, references: Sequence[str]) -> float:
    """Compute BLEU of one text with effective order and exponential smoothing (Papineni et al. 2002), from 0 to 1.

    BLEU is defined for whole sets. Its mean over rows can compare two systems on the same rows, but papers print
    `corpus_bleu`.
    """
    return _sentence("bleu", prediction, references)


def corpus_bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Compute BLEU of the whole set, from 0 to 1; rows may have different numbers of references."""
    return _corpus("bleu", predictions, references)


def corpus_chrf(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Compute chrF2 of the whole set, from 0 to 1; rows may have different numbers of references."""
    return _corpus("chrf", predictions, references)


def _sentence(kind: Literal["bleu", "chrf"], prediction: str, references: Sequence[str]) -> float:
    score = float(_translation_scorer(kind, one=True).sentence_score(prediction, list(some(references))).score)
    return min(1.0, score / 100)  # rounding lifts a perfect text slightly above 100


def _corpus(kind: Literal["bleu", "chrf"], predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    longest = max(len(some(row)) for row in references)
    # sacrebleu expects one list per reference stream, with None where a row has fewer references.
    streams = [[row[k] if k < len(row) else None for row in references] for k in range(longest)]
    return min(1.0, float(_translation_scorer(kind, one=False).corpus_score(list(predictions), streams).score) / 100)


@functools.cache
def _translation_scorer(kind: Literal["bleu", "chrf"], *, one: bool) -> Any:
    with needed_by(f"the metric {kind}"):
        from sacrebleu.metrics import BLEU, CHRF
    return CHRF() if kind == "chrf" else BLEU(effective_order=one)


# ---- completions and rewritten texts: the size of the edit, and whether the right words were edited

_ORDERS = (1, 2, 3, 4)
_WORD = re.compile(r"\w+|[^\w\s]")


def edit_similarity(prediction: str, references: Sequence[str]) -> float:
    """Compute 1 - Levenshtein distance / length of the longer text, in characters; the best over all references."""
    pairs = [(prediction.strip(), reference.strip()) for reference in some(references)]
    return max(1 - _distance(a, b) / max(len(a), len(b), 1) for a, b in pairs)


def _distance(a: str, b: str) -> int:
    """Count the characters to insert, delete or replace (Levenshtein distance)."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]


def sari(source: str, prediction: str, references: Sequence[str]) -> float:
    """Compute SARI: the mean of how well words were kept, deleted and added, over 1- to 4-grams of lower-case words.

    Punctuation marks count as words. Xu et al., Optimizing statistical machine translation for text simplification,
    TACL 2016, with the later correction of the recall of kept words, and 1 for parts in which there is nothing to do.
    """
    parts = [_sari_parts(_ngrams(source, n), _ngrams(prediction, n), [_ngrams(r, n) for r in some(references)])
             for n in _ORDERS]  # fmt: skip
    return sum(map(sum, parts)) / (3 * len(_ORDERS))


def _sari_parts(
    source: Counter[str], answer: Counter[str], references: Sequence[Counter[str]]
) -> tuple[float, float, float]:
    """Compute F1 of kept, precision of deleted and F1 of added n-grams; the references weight the counts."""
    wanted = Counter[str]()
    for reference in references:
        wanted.update(reference)
    n = len(references)
    had = Counter({gram: n * count for gram, count in source.items()})
    has = Counter({gram: n * count for gram, count in answer.items()})
    kept, keepable = had & has, had & wanted
    right = kept & wanted
    keep = _harmonic(_mean_ratio(right, kept), right.total() / keepable.total() if keepable else 1.0)
    deleted = had - has
    delete = _mean_ratio(deleted - wanted, deleted)
    added, addable = answer.keys() - source.keys(), wanted.keys() - source.keys()
    hits = len(added & wanted.keys())
    add = _harmonic(hits / len(added) if added else 1.0, hits / len(addable) if addable else 1.0)
    return keep, delete, add


def _mean_ratio(right: Counter[str], all_of: Counter[str]) -> float:
    return sum(count / all_of[gram] for gram, count in right.items()) / len(all_of) if all_of else 1.0


def _harmonic(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _ngrams(text: str, n: int) -> Counter[str]:
    words = _WORD.findall(text.lower())
    return Counter(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))


def sari_metric(settings: Mapping[str, Any]) -> Metric:
    """Make the metric from `SariSettings`; `source` names the column that was rewritten."""
    column = settings["source"]

    def scores(cases: Sequence[Case]) -> list[RowScore]:
        for case in cases:
            if column not in case.row:
                raise ConfigError(
                    "missing-column", f"the metric sari reads the column {column!r}, which the row lacks",
                    hint=f"`metric.source` must be one of the task's inputs: {', '.join(case.row)}",
                )  # fmt: skip
        return [RowScore(sari(str(case.row[column]), case.prediction, case.references)) for case in cases]

    return Metric("sari", None, "words kept, deleted and added as in the references", ("text",), rows=scores)
