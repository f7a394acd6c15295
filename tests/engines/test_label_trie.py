import numpy as np
import pytest

from rung.engines.label_trie import build_trie, common_prefix

LABELS = ((1, 2, 3), (1, 2, 4), (5,), (1, 2))


def test_nodes_are_the_beginnings_of_labels():
    trie = build_trie(LABELS)
    assert trie.size == 2  # (1,) and (1, 2): last tokens need no node
    assert trie.tokens.tolist() == [1, 2]
    assert trie.depths.tolist() == [1, 2]
    assert trie.visible.tolist() == [[True, False], [True, True]]


def test_totals_are_sums_along_paths():
    trie = build_trie(LABELS)
    rng = np.random.default_rng(0)
    edges = rng.normal(size=(3, len(trie.edge_nodes))).astype(np.float32)
    names = {(int(n), int(t)): i for i, (n, t) in enumerate(zip(trie.edge_nodes, trie.edge_tokens, strict=True))}
    by_hand = [
        edges[:, names[0, 1]] + edges[:, names[1, 2]] + edges[:, names[2, 3]],
        edges[:, names[0, 1]] + edges[:, names[1, 2]] + edges[:, names[2, 4]],
        edges[:, names[0, 5]],
        edges[:, names[0, 1]] + edges[:, names[1, 2]],
    ]
    np.testing.assert_allclose(trie.total(edges), np.stack(by_hand, 1), rtol=1e-6)


def test_duplicates_share_a_path():
    trie = build_trie(((1, 2), (1, 2)))
    assert trie.paths[0].tolist() == trie.paths[1].tolist()


@pytest.mark.parametrize("bad", [(), ((),), ((1,), ())])
def test_nothing_to_score_is_refused(bad):
    with pytest.raises(ValueError, match="at least one"):
        build_trie(bad)


def test_common_prefix_leaves_every_row_a_token():
    assert common_prefix([[1, 2, 3], [1, 2, 4]]) == 2
    assert common_prefix([[1, 2, 3], [1, 2, 3]]) == 2
    assert common_prefix([[1], [1, 2]]) == 0
    assert common_prefix([[1, 2], [3, 4]]) == 0
