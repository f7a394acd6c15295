import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from rung.artifact.lexical import BLOCKS, Lexicon
from rung.artifact.sentences import Sentence, SentenceDecoder, ranked
from rung.retrieval.passage import Passage

ENCODER = "embedded-encoder"


def passage(text, start=0, document="a.md"):
    return Passage(f"{document}:{start}", document, "", text, None, start, start + len(text))


def sentence(number, start, similarity):
    return Sentence(number, passage("x", start), similarity)


@pytest.mark.parametrize(
    ("share", "most", "expected"),
    [
        (1.0, 5, [(1, 9)]),
        (0.9, 5, [(1, 9), (2, 4)]),
        (0.7, 5, [(1, 2), (1, 9), (2, 4)]),
        (0.7, 2, [(1, 9), (2, 4)]),
        (0.1, 9, [(1, 2), (1, 9), (2, 4), (3, 0)]),
    ],
)
def test_those_near_the_best_are_quoted_as_they_stand(share, most, expected):
    sentences = [sentence(3, 0, 0.2), sentence(2, 4, 0.75), sentence(1, 9, 0.8), sentence(1, 2, 0.6)]
    found = SentenceDecoder(ENCODER, share, most).chosen(sentences)
    assert [(one.number, one.passage.start) for one in found] == expected


def test_where_nothing_is_similar_the_best_is_quoted_alone():
    found = SentenceDecoder(ENCODER, 0.9, 5).chosen([sentence(1, 0, -0.2), sentence(1, 5, -0.1)])
    assert [one.passage.start for one in found] == [5]
    assert SentenceDecoder(ENCODER, 0.9, 5).chosen([]) == ()


def test_sentences_have_their_places_and_count_once():
    first = passage("# Zoo\n\nLions sleep all day. Bears eat honey!", 100)
    overlapping = passage("Bears eat honey! Cats drink milk.", 100 + len("# Zoo\n\nLions sleep all day. "))
    elsewhere = passage("Bears eat honey!", 0, "b.md")
    (found,) = ranked(ENCODER, ["What do bears eat?"], [[first, overlapping, elsewhere]])
    places = [(one.number, one.passage.document, one.passage.start, one.passage.text) for one in found]
    assert places == [
        (1, "a.md", 107, "Lions sleep all day."),
        (1, "a.md", 128, "Bears eat honey!"),
        (2, "a.md", 145, "Cats drink milk."),
        (3, "b.md", 0, "Bears eat honey!"),
    ]
    assert all(one.passage.end == one.passage.start + len(one.passage.text) for one in found)
    assert found[1].similarity == found[3].similarity > max(found[0].similarity, found[2].similarity)
    assert ranked(ENCODER, ["x", "y"], [[], []]) == [[], []]


def test_with_a_lexicon_tfidf_is_compared_as_scikit_learn_does():
    shown = [passage("Lions sleep all day. Bears eat honey! Bears sleep in winter."), passage("Cats drink milk.", 200)]
    texts = ["Lions sleep all day.", "Bears eat honey!", "Bears sleep in winter.", "Cats drink milk."]
    lexicon = Lexicon.fit(texts, blocks=("words",))
    (found,) = ranked(ENCODER, ["What do bears eat?"], [shown], lexicon=lexicon)
    vectors = TfidfVectorizer(**BLOCKS["words"]).fit(texts)
    wanted = (vectors.transform(texts) @ vectors.transform(["What do bears eat?"]).T).toarray().ravel()
    assert [one.passage.text for one in found] == texts
    assert [one.similarity for one in found] == pytest.approx(wanted.tolist())
    assert ranked(ENCODER, ["x", "y"], [[], shown], lexicon=lexicon)[0] == []
