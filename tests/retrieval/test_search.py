import numpy as np
import pytest

from rung.errors import ConfigError
from rung.retrieval.index import fuse, without_duplicates
from rung.retrieval.store import condition


def hits(*pairs):
    return np.array([one for one, _ in pairs], np.int64), np.array([score for _, score in pairs], np.float32)


DENSE = hits((7, 0.9), (3, 0.5), (5, 0.1))
WORDS = hits((3, 12.0), (8, 10.0), (7, 4.0))


def test_ranks_are_fused_reciprocally():
    fused = fuse(DENSE, WORDS, None)
    assert fused == {
        3: pytest.approx(1 / 62 + 1 / 61), 7: pytest.approx(1 / 61 + 1 / 63), 8: pytest.approx(1 / 62),
        5: pytest.approx(1 / 63),
    }  # fmt: skip
    assert list(fused) == [3, 7, 8, 5]


def test_scores_are_combined_by_weight():
    fused = fuse(DENSE, WORDS, 0.25)
    assert fused == {
        3: pytest.approx(0.25 * 0.5 + 0.75), 7: pytest.approx(0.25), 8: pytest.approx(0.75 * 0.75), 5: 0.0
    }  # fmt: skip
    assert list(fuse(DENSE, WORDS, 1.0))[:2] == [7, 3]
    assert list(fuse(DENSE, WORDS, 0.0))[:2] == [3, 8]


def test_one_search_keeps_its_scores_and_none_finds_nothing():
    assert fuse(DENSE, None, None) == {7: pytest.approx(0.9), 3: 0.5, 5: pytest.approx(0.1)}
    assert list(fuse(None, WORDS, 0.5)) == [3, 8, 7]
    assert fuse(hits(), hits(), None) == {}
    assert list(fuse(hits((9, 0.3)), hits((4, 1.0)), None)) == [4, 9]  # a tie: the smaller id


def test_near_duplicates_of_better_ones_go():
    vectors = np.array([[1, 0], [0.999, 0.0447], [0, 1], [0.6, 0.8]], np.float32)
    assert without_duplicates(vectors, 0.98) == [0, 2, 3]
    assert without_duplicates(vectors, 0.79) == [0, 2]
    assert without_duplicates(vectors, 1.1) == [0, 1, 2, 3]


def test_filters_become_conditions_and_values_stay_values():
    assert condition({}, ()) is None
    assert condition({"document": "it's.md"}, ()) == "document IN ('it''s.md')"
    assert condition({"product": ["a", "b"], "title": "T"}, ("x", "product")) == (
        "metadata_1 IN ('a', 'b') AND title IN ('T')"
    )
    assert condition({"title": []}, ()) == "false"
    with pytest.raises(ConfigError, match="no 'prodct' to filter by"):
        condition({"prodct": "a"}, ("product",))
