import datetime
import json

import numpy as np
import pytest
from sklearn.metrics import silhouette_score

from rung.clustering import Grouping, candidates, group, label_agreement, write_clusters
from rung.data.rows import Record
from rung.errors import ConfigError


def around(directions, rows, noise, seed=0):
    """Unit vectors around unit vectors; the first direction gets one row more than the second, and so on."""
    generator = np.random.default_rng(seed)
    made = [
        center + noise * generator.standard_normal((rows + len(directions) - i, len(center)))
        for i, center in enumerate(directions)
    ]
    vectors = np.concatenate(made).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.repeat(
        np.arange(len(made)), list(map(len, made))
    )


def test_auto_finds_the_number_of_clusters_and_numbers_them_by_size():
    vectors, truth = around(np.eye(8)[:5], 20, 0.05)
    found = group(vectors)
    assert found.count == 5
    assert found.clusters.tolist() == truth.tolist()  # the largest is the first
    assert found.silhouette == pytest.approx(silhouette_score(vectors, truth))
    assert max(found.tried, key=found.tried.get) == 5


def test_a_given_number_is_kept_and_one_cluster_has_no_silhouette():
    vectors, _ = around(np.eye(8)[:5], 20, 0.05)
    assert group(vectors, k=3).count == 3
    one = group(vectors, k=1)
    assert (one.count, one.silhouette) == (1, None)


def test_hdbscan_finds_clusters_and_leaves_rows_out():
    vectors, truth = around(np.eye(8)[:3], 30, 0.02)
    lonely = np.eye(8, dtype=np.float32)[5:7]
    found = group(np.concatenate([vectors, lonely]), method="hdbscan")
    assert found.count == 3
    assert found.clusters.tolist() == [*truth.tolist(), -1, -1]
    assert found.centrality[-2:].tolist() == [0, 0]


def test_central_texts_are_those_nearest_the_mean_each_once():
    vectors = np.array([[1, 0], [0.8, 0.6], [0.6, 0.8], [0.8, 0.6]], np.float32)
    found = group(vectors, k=1)
    assert found.central(0, ["a", "b", "c", "b"], 2) == ["b", "c"]
    mean = vectors.mean(0) / np.linalg.norm(vectors.mean(0))
    np.testing.assert_allclose(found.centrality, vectors @ mean, rtol=1e-6)


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (np.eye(3), {"k": 4}, "3 different rows cannot form 4 clusters"),
        (np.eye(3)[[0, 0, 0, 0]], {"k": 2}, "1 different rows cannot form 2"),
        (np.eye(3)[[0, 1, 0]], {}, "cannot be chosen from 2 different rows"),
        (np.eye(3), {"method": "hdbscan", "k": 2}, "finds the number of clusters itself"),
        (np.eye(3), {"method": "hdbscan"}, "3 rows are fewer than the minimum of a cluster, 5"),
    ],
)
def test_what_cannot_be_grouped_is_refused(rows, settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        group(rows.astype(np.float32), **settings)
    assert caught.value.code == "bad-option"


def test_candidates():
    assert candidates(12) == [2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert candidates(1000)[8:15] == [10, 11, 12, 13, 14, 15, 16]
    assert candidates(1000)[-1] <= 100


def test_agreement_with_labels_by_hand():
    def agreement(labels, clusters):
        records = [Record({"label": label}, f"row {i}") for i, label in enumerate(labels)]
        found = label_agreement(records, "label", Grouping(np.array(clusters), np.ones(len(clusters)), None))
        assert found["labels"] == len(set(labels))
        return found["adjusted_rand"], found["normalized_mutual_information"]

    assert agreement("aabb", [1, 1, 0, 0]) == (1, pytest.approx(1))
    assert agreement("aabb", [0, 1, 0, 1]) == (pytest.approx(-0.5), pytest.approx(0, abs=1e-12))
    assert agreement("aaaa", [0, 0, 0, 0]) == (1, 1)


def test_values_of_every_type_are_written_beside_their_cluster(tmp_path):
    day = datetime.date(2024, 1, 31)
    records = [Record({"text": "a", "day": day, "n": float("nan")}, "a.parquet:1")]
    grouping = Grouping(np.array([0]), np.array([1.0], np.float32), None)
    write_clusters(tmp_path / "a.jsonl", records, grouping, ["first"])
    row = {"text": "a", "day": "2024-01-31", "n": None, "cluster": 0, "cluster_name": "first", "centrality": 1.0}
    assert json.loads((tmp_path / "a.jsonl").read_text()) == row
    write_clusters(tmp_path / "a.csv", records, grouping, ["first"])
    assert (tmp_path / "a.csv").read_text().splitlines()[1] == "a,2024-01-31,,0,first,1.0"
