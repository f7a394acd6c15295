from rung.prompts.prompt import continuations, verbalize


def test_identifiers_become_words():
    assert verbalize(["card_arrival", "atm  support"]) == ("card arrival", "atm support")


def test_labels_stay_where_words_would_be_the_same():
    assert verbalize(["a_b", "a b"]) == ("a_b", "a b")


def test_end_only_where_a_label_begins_another():
    tokens = {"a": (1,), "ab": (1, 2), "c": (3,)}
    assert continuations(["a", "c"], tokens.__getitem__, 9) == ((1,), (3,))
    assert continuations(["a", "ab", "c"], tokens.__getitem__, 9) == ((1, 9), (1, 2, 9), (3, 9))
