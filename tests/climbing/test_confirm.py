import numpy as np

from rung.climbing.race import beats, compare_all, recommend
from rung.evaluation.statistics import compare


def scores(right, n=200, seed=0):
    return (np.random.default_rng(seed).permutation(n) < right).astype(float).tolist()


def test_zero_shot_stays_where_nothing_beats_it():
    found = compare_all({"zero-shot": scores(100), "b": scores(101), "c": scores(102)}, "accuracy", seed=0)
    assert recommend(found, {"zero-shot": 9.0, "b": 1.0, "c": 2.0}, "zero-shot") == "zero-shot"


def test_the_cheapest_of_equals_is_taken():
    base = scores(40)
    good = scores(160, seed=1)
    nearly = list(good)
    nearly[good.index(1.0)] = 0.0
    found = compare_all({"zero-shot": base, "dear": good, "cheap": nearly}, "accuracy", seed=0)
    assert beats(found, "dear", "zero-shot")
    assert not beats(found, "dear", "cheap")
    assert recommend(found, {"zero-shot": 0.1, "dear": 5.0, "cheap": 1.0}, "zero-shot") == "cheap"


def test_a_cheaper_one_that_is_clearly_worse_is_not_taken():
    found = compare_all({"zero-shot": [0.0] * 200, "cheap": scores(60), "dear": [1.0] * 200}, "accuracy", seed=0)
    assert recommend(found, {"zero-shot": 0.1, "cheap": 1.0, "dear": 5.0}, "zero-shot") == "dear"


def test_p_values_are_corrected_over_all_pairs():
    each = {"a": scores(90), "b": scores(110, seed=1), "c": scores(100, seed=2)}
    found = compare_all(each, "accuracy", seed=0)
    assert len(found) == 3
    assert all(c.p >= compare(each[c.a], each[c.b], seed=0).p for c in found)
    assert found[0].fixed - found[0].broken == round(found[0].delta * 200)
