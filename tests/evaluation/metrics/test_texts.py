"""Metrics of texts against their reference implementations, or values worked out by hand."""

from __future__ import annotations

import pytest
from sacrebleu import corpus_bleu as sacre_bleu
from sacrebleu import corpus_chrf as sacre_chrf
from sacrebleu import sentence_bleu, sentence_chrf
from sklearn.metrics import cohen_kappa_score

from rung.errors import ConfigError
from rung.evaluation.metrics.base import Case
from rung.evaluation.metrics.labels import cohens_kappa
from rung.evaluation.metrics.registry import get_metric
from rung.evaluation.metrics.text import (
    bleu,
    chrf,
    corpus_bleu,
    corpus_chrf,
    edit_similarity,
    exact_match,
    final_number,
    sari,
    token_f1,
)

TEXTS = [
    ("Der Hund bellt laut im Garten.", ["Der Hund bellt im Garten.", "Im Garten bellt laut ein Hund."]),
    ("Sie ging gestern nach Hause.", ["Sie ging gestern nach Hause."]),
    ("", ["Etwas."]),
    ("völlig anders", ["Es regnet seit drei Tagen."]),
]


@pytest.mark.parametrize(("prediction", "references"), TEXTS)
def test_translation_equals_sacrebleu(prediction: str, references: list[str]) -> None:
    assert chrf(prediction, references) == pytest.approx(sentence_chrf(prediction, references).score / 100, abs=1e-12)
    assert bleu(prediction, references) == pytest.approx(sentence_bleu(prediction, references).score / 100, abs=1e-12)


def test_corpus_scores_equal_sacrebleu_with_different_numbers_of_references() -> None:
    predictions = [prediction for prediction, _ in TEXTS]
    references = [row for _, row in TEXTS]
    streams = [[row[0] for row in references], [row[1] if len(row) > 1 else None for row in references]]
    assert corpus_bleu(predictions, references) == pytest.approx(sacre_bleu(predictions, streams).score / 100)
    assert corpus_chrf(predictions, references) == pytest.approx(sacre_chrf(predictions, streams).score / 100)


SOURCE = "about 95 species are currently accepted ."
SIMPLER = [
    "about 95 species are currently known .",
    "about 95 species are now accepted .",
    "95 species are now accepted .",
]


def test_sari_equals_the_corrected_reference_implementation() -> None:
    # The example of the paper's own script; the value is what its corrected version gives (Hugging Face `evaluate`).
    assert sari(SOURCE, "about 95 you now get in .", SIMPLER) == pytest.approx(0.26953601953601954, rel=1e-12)
    glued = [text.replace(" .", ".").capitalize() for text in (SOURCE, "about 95 you now get in .", *SIMPLER)]
    assert sari(glued[0], glued[1], glued[2:]) == pytest.approx(0.26953601953601954, rel=1e-12)
    assert sari(SOURCE, SIMPLER[1], SIMPLER) > sari(SOURCE, SOURCE, SIMPLER)
    # By hand: "b" is rightly deleted and "c" rightly added, everything else kept.
    assert sari("a b", "a c", ["a c"]) == 1.0


def test_sari_reads_its_column() -> None:
    metric = get_metric("sari", settings={"source": "long"})
    assert metric("a c", ["a c"], {"long": "a b"}) == 1.0
    with pytest.raises(ConfigError) as caught:
        metric.scores([Case("a", ["a"], {"text": "a b"})])
    assert caught.value.code == "missing-column"


@pytest.mark.parametrize(
    ("prediction", "reference", "score"),
    [("kitten", "sitting", 1 - 3 / 7), ("", "", 1.0), ("", "abc", 0.0), (" abc\n", "abc", 1.0), ("ab", "ba", 0.0)],
)
def test_edit_similarity(prediction: str, reference: str, score: float) -> None:
    assert edit_similarity(prediction, [reference]) == pytest.approx(score, rel=1e-12)
    assert edit_similarity(reference, ["zzzzzzzzzzzzzzzzzz", prediction]) == pytest.approx(score, rel=1e-12)


@pytest.mark.parametrize(
    ("prediction", "right"),
    [
        ("48 / 2 = 24 and 48 + 24 = 72.", 1.0),
        ("#### 72", 1.0),
        ("It is 72.00 in all", 1.0),
        ("72 clips, not 71", 0.0),
        ("-72", 0.0),
        ("no number", 0.0),
    ],
)
def test_final_number(prediction: str, right: float) -> None:
    assert final_number(prediction, ["48/2 = <<48/2=24>>24\n#### 72"]) == right


def test_final_number_with_thousands() -> None:
    assert final_number("It costs $1,234.50", ["#### 1234.5"]) == 1.0
    assert final_number("none", ["none"]) == 0.0


def test_a_refusal_is_right_only_where_it_is_expected() -> None:
    metric = get_metric("token_f1", refusal="not in the text")
    assert metric("Not in the text.", ["not in the text"]) == 1.0
    assert metric("Not in the text.", ["in the text of 1848"]) == 0.0
    assert metric("in the text", ["not in the text"]) == 0.0  # shared words are no partly right refusal
    assert metric("in the text", ["not in the text", "in the text"]) == 1.0
    assert metric("the year 1848", ["1848"]) == token_f1("the year 1848", ["1848"])
    assert get_metric("exact_match", refusal="none")("1848", ["1848"]) == exact_match("1848", ["1848"]) == 1.0


def test_kappa_equals_scikit_learn() -> None:
    first, second = list("aabbbcabca"), list("abbbacabcc")
    assert cohens_kappa(first, second) == pytest.approx(cohen_kappa_score(first, second), rel=1e-12)
    assert cohens_kappa(["a", "a"], ["a", "a"]) == 1.0
    assert cohens_kappa(["a", "b"], ["b", "a"]) == -1.0
    with pytest.raises(ValueError, match="as many"):
        cohens_kappa(["a"], [])
