import numpy as np
import pytest
from tests.rendered import messages_of

from rung.engines.opening import open_encoder
from rung.prompts.demonstrations import balanced
from rung.rungs import FewShot


def shown_texts(messages):
    return [m["content"] for m in messages if m["role"] == "user"][:-1]


@pytest.fixture(scope="module", params=["fixed", "random", "balanced", "knn", "mmr"])
def few(request, zero, data):
    return FewShot(request.param, k=3).fit(zero, data)


def test_a_row_never_shows_itself(few, data):
    for example, messages in zip(data.train, messages_of(few, data.train), strict=True):
        shown = shown_texts(messages)
        assert len(shown) == 3
        assert example.inputs["text"] not in shown


def test_the_same_question_shows_the_same_rows(few, data):
    assert few.render(data.test[:4]) == few.render(data.test[:4])


def test_nearest_rows_are_shown_most_similar_last(zero, data):
    few = FewShot("knn", k=3).fit(zero, data)
    encoder = open_encoder("embedded-encoder")
    pool = encoder.embed([e.inputs["text"] for e in data.train])
    for example, messages in zip(data.test[:5], messages_of(few, data.test[:5]), strict=True):
        similarity = pool @ encoder.embed([example.inputs["text"]])[0]
        nearest = [data.train[i].inputs["text"] for i in np.argsort(-similarity)[:3]]
        assert shown_texts(messages) == nearest[::-1]


def test_answers_are_shown_as_the_model_should_write_them(zero, data):
    few = FewShot("knn", k=1).fit(zero, data)
    shown = messages_of(few, data.train[:1])[0][2]
    assert shown["role"] == "assistant"
    assert shown["content"] in few.decoder.texts


def test_balanced_rows_go_round_the_labels(data):
    chosen = balanced(data.train, 12, seed=0)
    counts = [sum(data.train[i].outputs[0] == label for i in chosen) for label in data.labels]
    assert counts == [2] * 6


def test_the_token_budget_holds_and_the_least_similar_give_way(zero, data):
    free = FewShot("knn", k=4).fit(zero, data)
    tight = FewShot("knn", k=4, token_budget=110).fit(zero, data)
    for loose, cut in zip(messages_of(free, data.test[:6]), messages_of(tight, data.test[:6]), strict=True):
        kept = shown_texts(cut)
        assert len(kept) < 4
        assert shown_texts(loose)[4 - len(kept) :] == kept


def test_too_few_rows_is_a_reason(zero, data):
    verdict = FewShot("knn", k=100).applies(zero, data)
    assert not verdict.applies
    assert "too few" in verdict.reason
