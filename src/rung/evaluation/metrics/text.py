"""Metrics of texts: short answers, summaries, translations, completions and rewritten texts.

All compare texts in the form that `rung.data.texts.canonical` gives them: NFC, nothing invisible, plain spaces. Equal
texts always score 1. docs/metrics.md says what each does to a text.
"""

from __future__ import annotations

import functools
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rung.data.rows import Example
from rung.data.texts import canonical, distance, numbers, spaced, words, words_and_marks
from rung.errors import ConfigError, DataError, needed_by
from rung.evaluation.metrics.base import Case, Metric, MetricFunction, RowScore, multiset_f1, some
from rung.progress import Progress

_ARTICLES = ("a", "an", "the")
# Marks that are part of a word: of numbers (-5, 3.5, .5, 3,5), of C++ and C#, of grades (B-).
_KEPT = re.compile(
    r"(?<![\w.,])-(?=[.,]?\d)|(?<=\d)\.(?=\d)|(?<![\w.,])\.(?=\d)|(?<=\d),(?=\d{1,2}(?!\d))"
    r"|(?<=\w)[+#]+(?!\w)|(?<=(?<!\w)\w)-(?!\w)"
)
_ASCII_SYMBOLS = "$+<=>^`|~"  # `string.punctuation` has them; Unicode does not count them as punctuation


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """Score 1 if the prediction is a reference, character by character, in Unicode's canonical form; else 0.

    Case, accents, punctuation and words all count. Outer whitespace, and which code Unicode gives a character, do not.
    """
    return float(_is_one_of(prediction, references))


def quasi_exact_match(prediction: str, references: Sequence[str]) -> float:
    """Score 1 if prediction and a reference are equal after SQuAD's normalization (`squad_words`), else 0.

    The name is HELM's (Liang et al. 2022, https://arxiv.org/abs/2211.09110).
    """
    found = squad_words(prediction)
    return float(any(found == squad_words(reference) for reference in some(references)))


def token_f1(prediction: str, references: Sequence[str]) -> float:
    """Compute SQuAD's F1 over the words that prediction and reference share, the best over all references.

    Rajpurkar et al., EMNLP 2016; for empty references, ACL 2018. Scripts without spaces count by characters.
    """
    found = Counter(squad_words(prediction))
    return max(multiset_f1(found, Counter(squad_words(reference))) for reference in some(references))


def final_number(prediction: str, references: Sequence[str]) -> float:
    """Score 1 if the last number of the prediction is the last number of a reference, else 0.

    This is the usual rule for grade-school mathematics (Cobbe et al. 2021, https://arxiv.org/abs/2110.14168), whose
    references end in `#### 72`. `rung.data.texts.numbers` says how numbers are read.
    """
    wanted = [number for reference in some(references) for number in numbers(reference)[-1:]]
    pairs = ((float(a), float(b)) for a in numbers(prediction)[-1:] for b in wanted)
    return float(any(math.isclose(a, b, rel_tol=1e-9) for a, b in pairs))


def read_final_number(prediction: str) -> str:
    """Give the last number of an answer, empty if there is none."""
    return repr(float(found[-1])) if (found := numbers(prediction)) else ""


def check_final_numbers(examples: Sequence[Example]) -> None:
    """Raise DataError `bad-reference` for an expected answer without a number, which no answer could match."""
    for example in examples:
        for reference in example.outputs:
            if not numbers(reference):
                raise DataError(
                    "bad-reference", f"{example.source}: the expected answer has no number: {reference[:80]!r}",
                    hint="write the number in digits at its end, leave the row out, or use another metric",
                )  # fmt: skip


def refusing(function: MetricFunction, refusal: str) -> MetricFunction:
    """Make a metric for which `refusal` is right only where it is expected, and is then the only right answer.

    Sharing words with a refusal earns nothing: the score is then 0 or 1, as for SQuAD 2.0's questions without an
    answer. Case, punctuation and articles do not matter.
    """
    declined = squad_words(refusal)

    def score(prediction: str, references: Sequence[str]) -> float:
        refused = squad_words(prediction) == declined
        answers = [reference for reference in some(references) if squad_words(reference) != declined]
        if refused:
            return float(len(answers) < len(references))
        return function(prediction, answers) if answers else 0.0

    return score


def squad_words(text: str) -> list[str]:
    """Lower-case, drop punctuation, then a, an and the, then split at whitespace: the order of SQuAD's script.

    Beyond the script: punctuation of all languages goes, but a minus sign and a decimal mark stay in their number (3.5
    is not 35), as do the signs of C++, C# and B-; scripts without spaces give one word per character; a text of only
    punctuation or articles keeps it (`A`, `?`).
    """
    lower = unicodedata.normalize("NFC", canonical(text).lower())
    kept = {i for match in _KEPT.finditer(lower) for i in range(*match.span())}
    bare = "".join(c for i, c in enumerate(lower) if i in kept or not _is_punctuation(c))
    found = [word for word in spaced(bare).split() if word not in _ARTICLES]
    return found or lower.split()


@functools.lru_cache(maxsize=4096)
def _is_punctuation(char: str) -> bool:
    return char in _ASCII_SYMBOLS or unicodedata.category(char).startswith("P")


def _is_one_of(prediction: str, references: Sequence[str]) -> bool:
    text = canonical(prediction)
    return any(text == canonical(reference) for reference in some(references))


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
    if _is_one_of(prediction, references):  # also where there are no pairs of words
        return float(bool(canonical(prediction)))
    scorer = _rouge_scorer(kind)
    return max(float(scorer.score(reference, prediction)[kind].fmeasure) for reference in some(references))


@functools.cache
def _rouge_scorer(kind: str) -> Any:
    # The package imports NLTK, which takes seconds: import it only here.
    with needed_by(f"the metric {kind}"):
        from rouge_score.rouge_scorer import RougeScorer
    return RougeScorer([kind], tokenizer=_RougeWords())


class _RougeWords:
    """Words of all scripts, with rouge_score's stems of English ones, for its scorer."""

    def tokenize(self, text: str) -> list[str]:
        return [_stem(word) if len(word) > 3 and word.isascii() else word for word in words(text)]


@functools.lru_cache(maxsize=2**16)
def _stem(word: str) -> str:
    return str(_stemmer().stem(word))


@functools.cache
def _stemmer() -> Any:
    from nltk.stem import porter

    return porter.PorterStemmer()


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
    if _is_one_of(prediction, references):
        return float(bool(canonical(prediction)))
    scorer, texts = _translation_scorer(kind, one=True), [_for_sacrebleu(kind, text) for text in references]
    score = float(scorer.sentence_score(_for_sacrebleu(kind, prediction), texts).score)
    return min(1.0, score / 100)  # rounding lifts a perfect text slightly above 100


def _corpus(kind: Literal["bleu", "chrf"], predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    longest = max(len(some(row)) for row in references)
    # sacrebleu expects one list per reference stream, with None where a row has fewer references.
    streams = [[_for_sacrebleu(kind, row[k]) if k < len(row) else None for row in references] for k in range(longest)]
    answers = [_for_sacrebleu(kind, text) for text in predictions]
    return min(1.0, float(_translation_scorer(kind, one=False).corpus_score(answers, streams).score) / 100)


def _for_sacrebleu(kind: Literal["bleu", "chrf"], text: str) -> str:
    """BLEU's words are split at spaces, which not all scripts have; chrF ignores them."""
    return spaced(canonical(text)) if kind == "bleu" else canonical(text)


@functools.cache
def _translation_scorer(kind: Literal["bleu", "chrf"], *, one: bool) -> Any:
    with needed_by(f"the metric {kind}"):
        from sacrebleu.metrics import BLEU, CHRF
    return CHRF() if kind == "chrf" else BLEU(effective_order=one)


# ---- completions and rewritten texts: the size of the edit, and whether the right words were edited

_ORDERS = (1, 2, 3, 4)


def edit_similarity(prediction: str, references: Sequence[str]) -> float:
    """Compute 1 - Levenshtein distance / length of the longer text, in characters; the best over all references."""
    pairs = [(canonical(prediction), canonical(reference)) for reference in some(references)]
    return max(1 - distance(a, b) / max(len(a), len(b), 1) for a, b in pairs)


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
    found = words_and_marks(text)
    return Counter(" ".join(found[i : i + n]) for i in range(len(found) - n + 1))


def sari_metric(settings: Mapping[str, Any]) -> Metric:
    """Make the metric from `SariSettings`; `source` names the column that was rewritten."""
    column = settings["source"]

    def scores(cases: Sequence[Case], _: Progress) -> list[RowScore]:
        for case in cases:
            if column not in case.row:
                raise ConfigError(
                    "missing-column", f"the metric sari reads the column {column!r}, which the row lacks",
                    hint=f"`metric.source` must be one of the task's inputs: {', '.join(case.row)}",
                )  # fmt: skip
        return [RowScore(sari(str(case.row[column]), case.prediction, case.references)) for case in cases]

    return Metric("sari", None, "words kept, deleted and added as in the references", ("text",), rows=scores)
