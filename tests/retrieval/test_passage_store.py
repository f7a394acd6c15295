import time

import numpy as np
import pytest

from rung.retrieval import store as stores
from rung.retrieval.store import PassageTable


def rows(texts):
    names = [str(number) for number in range(len(texts))]
    zeros = [0] * len(texts)
    same = dict.fromkeys(("id", "document", "hash", "source", "title"), names)
    return {**same, "text": texts, "terms": texts, "page": zeros, "start": zeros, "end": zeros}


@pytest.fixture
def filled(tmp_path, monkeypatch):
    """A store of 3,000 passages around 60 centres that has an index of its vectors."""
    monkeypatch.setattr(stores, "EXACT", 1000)
    monkeypatch.setattr(stores, "PARTITION", 256)
    chance = np.random.default_rng(0)
    vectors = chance.standard_normal((60, 32))[np.arange(3000) % 60] + 0.5 * chance.standard_normal((3000, 32))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    store = PassageTable(str(tmp_path), "passages-1", 0)
    store.create(32)
    texts = [f"topic{number % 60} item{number} common" for number in range(3000)]
    store.add(rows(texts), vectors)
    store.finish(changed=True, previous=None)
    return store, vectors


def test_the_quantized_index_finds_what_an_exact_search_finds(filled):
    store, vectors = filled
    queries = vectors[::100]
    exact = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    found = 0
    for (ids, scores), best in zip(store.nearest(queries, 100, None), exact, strict=True):
        taken = store.take(ids.tolist())
        for one, score in zip(ids.tolist()[:10], scores, strict=False):
            number = int(taken[one]["document"])
            assert score == pytest.approx(float(vectors[best[0]] @ vectors[number]), abs=1e-4)
            found += number in best
    assert found / exact.size >= 0.95
    assert any("vector" in index.columns for index in store._table.list_indices())


def test_rare_terms_count_more_than_common_ones(filled):
    store, _ = filled
    ids, scores = store.matching(["common item77"], 5, None)[0]
    assert store.take(ids[:1].tolist())[int(ids[0])]["document"] == "77"
    assert scores[0] > 2 * scores[1]
    assert [len(ids) for ids, _ in store.matching(["", "unheard"], 5, None)] == [0, 0]


def test_conditions_hold_before_the_best_are_chosen(filled):
    store, vectors = filled
    where = "document IN ('5', '65', '2999')"
    assert {len(ids) for ids, _ in store.nearest(vectors[:2], 3, where)} == {3}
    ids, _ = store.matching(["topic5 common"], 9, where)[0]
    assert {row["document"] for row in store.take(ids.tolist()).values()} == {"5", "65", "2999"}


def test_a_second_table_is_removed_and_documents_are_deleted(filled, tmp_path):
    store, _ = filled
    other = PassageTable(str(tmp_path), "passages-other", 0)
    other.create(32)
    store.drop_others()
    assert not other.exists()
    store.delete([("7", "7"), ("8", "other")])
    assert (store.count(), len(store.documents())) == (2999, 2999)
    store.delete([])
    assert ("7", "7") not in store.documents()


def test_versions_before_the_one_that_is_read_are_removed(filled):
    store, vectors = filled
    read = store._table.version
    time.sleep(1.1)  # up to a second older ones are kept too
    store.add(rows(["new passage"]), vectors[:1])
    latest = store.finish(changed=True, previous=read)
    assert read in [one["version"] for one in store._table.list_versions()]
    time.sleep(1.1)
    store.add(rows(["newer passage"]), vectors[:1])
    store.finish(changed=True, previous=latest)
    assert read not in [one["version"] for one in store._table.list_versions()]
