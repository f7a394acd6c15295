import pytest

from rung.retrieval.index import LONGEST, terms


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The bank's card, 3.5% (v2)!", ["the", "bank", "card", "3", "5", "v2"]),
        ("Straße ÄRGER résumés", ["strass", "arger", "resume"]),
        ("payments Zahlungen AB1234567", ["paymen", "zahlun", "ab1234567"]),
        ("Γειά ΣΟΥ", ["γεια", "σου"]),
        ("Привет, мир", ["привет", "мир"]),
        ("東京都 に", ["東京", "京都", "に"]),
        ("ﾃｽﾄ 電車x12", ["テス", "スト", "電車", "x12"]),
        ("snake_case don't", ["snake", "case", "don't"]),
        ("sub\u00adscrip\u00adtion \ufeffx", ["subscr", "x"]),
        ("हिन्दी की किताबें पुस्तकालयों", ["हिन्दी", "की", "किताबें", "पुस्तकालयों"[:11]]),
        ("الْكِتَابُ الكتاب שָׁלוֹם שלום", ["الكتاب", "الكتاب", "שלום", "שלום"]),
        ("ไทย", ["ไท", "ทย"]),
        ("", []),
        (" \n—… ", []),
    ],
)
def test_words_and_pairs_of_characters(text, expected):
    assert terms(text) == expected


def test_terms_are_bounded_and_hold_no_space():
    assert terms("a1" * 500) == ["a1" * (LONGEST // 2)]
    assert all(" " not in term for term in terms("one two\u00a0three\u3000四五"))


def test_korean_words_survive_decomposition():
    assert terms("한국어 검색") == terms("한국어 검색")
    assert len(terms("한국어 검색")) == 2
