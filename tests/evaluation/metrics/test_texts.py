"""Metrics of texts against their reference implementations, or values worked out by hand."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import corpus_bleu as sacre_bleu
from sacrebleu import corpus_chrf as sacre_chrf
from sacrebleu import sentence_bleu, sentence_chrf
from sklearn.metrics import cohen_kappa_score

from rung.data.rows import Example
from rung.errors import ConfigError, DataError
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
    quasi_exact_match,
    rouge1,
    rouge_l,
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


NAMES = (
    "exact_match",
    "quasi_exact_match",
    "token_f1",
    "rouge1",
    "rouge2",
    "rougeL",
    "chrf",
    "bleu",
    "edit_similarity",
)
SENTENCES = [  # a sentence, and one of the same script with other words
    ("Привет мир", "Доброе утро"), ("مرحبا بالعالم", "صباح الخير"), ("今天天气很好", "我们去北京"),
    ("यह नवाबों का शहर है", "मैं किताब पढ़ता हूँ"), ("Größe", "Grüße"), ("สวัสดีครับ", "ขอบคุณมาก"),
    ("ありがとう", "こんにちは"),
    ("한국어 문장", "다른 말"), ("γεια σου κόσμε", "καλημέρα"), ("שלום עולם", "בוקר טוב"), ("ខ្មែរ", "ភាសា"),
    ("ລາວ", "ພາສາ"),
    ("မြန်မာ", "ဘာသာ"), ("བོད་ཡིག", "སྐད་ཆ"), ("😀", "😡"), ("?!", "..."),
]  # fmt: skip


@pytest.mark.parametrize(("text", "other"), SENTENCES)
def test_every_script_is_scored(text: str, other: str) -> None:
    for name in NAMES:
        metric = get_metric(name)
        for form in ("NFC", "NFD"):
            written = unicodedata.normalize(form, text)  # type: ignore[arg-type]
            assert metric(written, [text]) == metric(f" {written}\n", [other, text]) == 1.0, name
        assert metric(text, [other]) < 1.0, name
    assert token_f1(text, [other]) < 0.5


@given(st.text(min_size=1).filter(lambda text: bool(unicodedata.normalize("NFC", text).strip(JUNK))))
def test_a_text_equals_itself(text: str) -> None:
    for name in NAMES:
        assert get_metric(name)(text, [text]) == 1.0, name
    assert sari(text, text, [text]) == 1.0


JUNK = "".join(c for c in map(chr, range(0x110000)) if c.isspace() or unicodedata.category(c) == "Cf")
ENGLISH = st.text(alphabet=st.characters(max_codepoint=127), max_size=60)


@given(ENGLISH, ENGLISH)
def test_english_rouge_equals_rouge_score(prediction: str, reference: str) -> None:
    if prediction.strip() != reference.strip():
        expected = RougeScorer(["rouge1", "rougeL"], use_stemmer=True).score(reference, prediction)
        if any(c.isalnum() for c in prediction) and any(c.isalnum() for c in reference):
            assert rouge1(prediction, [reference]) == expected["rouge1"].fmeasure
            assert rouge_l(prediction, [reference]) == expected["rougeL"].fmeasure


def test_chinese_bleu_equals_sacrebleu_s_chinese_tokenizer() -> None:
    prediction, reference = "今天 天气很好,我们去公园。", "今天天气不错,我们去公园玩。"
    expected = sentence_bleu(prediction, [reference], tokenize="zh").score / 100
    assert bleu(prediction, [reference]) == pytest.approx(expected, rel=1e-12)
    assert 0.5 < token_f1("今天天气很好", ["今天天气好"]) < 1.0


def test_exact_match_keeps_what_makes_answers_different() -> None:
    for text, other in [("3.5", "35"), ("-5", "5"), ("A", "a"), ("C++", "C"), ("The Who", "Who"), ("Maße", "Masse"),
                        ("résumé", "resume"), ("a b", "ab"), ("№5", "No5"), ("x²", "x2")]:  # fmt: skip
        assert exact_match(text, [other]) == 0.0
    for text, other in [("cafe\u0301", "café"), (" ok\n", "ok"), ("ok\u200b", "ok"), ("10\u00a0%", "10 %")]:
        assert exact_match(text, [other]) == quasi_exact_match(text, [other]) == 1.0


def test_a_reference_without_a_number_is_an_error() -> None:
    metric = get_metric("final_number")
    assert metric.check is not None
    metric.check([Example("1", {}, ("#### ١٢",), "a.csv:2")])
    assert metric("die Antwort ist 12,0", ["#### ١٢"]) == 1.0
    with pytest.raises(DataError) as caught:
        metric.check([Example("1", {}, ("twelve",), "a.csv:2")])
    assert caught.value.code == "bad-reference"
    assert "a.csv:2" in caught.value.message


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
