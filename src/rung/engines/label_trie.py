"""A set of continuations as a token trie, so that common prefixes are computed once.

Naive scoring of L labels after one prompt runs every token of every label. But the node before a label's last token
gives that token's probability, so last tokens need no forward pass, and labels with a common prefix share nodes.
BANKING77's labels have 693 padded tokens, but 139 inner nodes.

The tree runs in one forward pass after the prompt: every node attends to the prompt and to its own ancestors
(tree attention, as in SpecInfer, Miao et al. 2024, https://arxiv.org/abs/2305.09781).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from rung.engines.base import Floats

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class LabelTrie:
    """Inner nodes are numbered 1..N in breadth-first order; 0 is the root, the prompt's last token."""

    tokens: Ints  # token on the edge into each inner node, shape [N]
    depths: Ints  # distance from the root, 1 for its children, shape [N]
    visible: Bools  # [i, j]: inner node i+1 attends to inner node j+1 (itself and ancestors), shape [N, N]
    edge_nodes: Ints  # for every edge of the trie, the node whose output predicts it, shape [E]
    edge_tokens: Ints  # the token on the edge, shape [E]
    paths: Ints  # edges of every continuation in order, padded with E, shape [L, longest]
    node_paths: Ints  # inner nodes of every continuation in order, padded with 0, shape [L, longest]

    @property
    def size(self) -> int:
        """Number of inner nodes, the tokens a full scoring has to run."""
        return len(self.tokens)

    def total(self, edge_logprobs: Floats) -> Floats:
        """Sum edge log-probabilities [..., E] along each continuation, giving [..., L]."""
        padded = np.concatenate([edge_logprobs, np.zeros((*edge_logprobs.shape[:-1], 1), np.float32)], axis=-1)
        summed: Floats = padded[..., self.paths].sum(axis=-1, dtype=np.float64).astype(np.float32)
        return summed


@lru_cache(maxsize=64)
def build_trie(continuations: tuple[tuple[int, ...], ...]) -> LabelTrie:
    """Build the trie of `continuations`, each a non-empty tuple of token ids; duplicates are allowed.

    Raises:
        ValueError: a continuation is empty, or there is none.
    """
    if not continuations or not all(continuations):
        raise ValueError("a trie needs at least one continuation, and none may be empty")
    inner = sorted({c[:n] for c in continuations for n in range(1, len(c))}, key=lambda prefix: (len(prefix), prefix))
    number: dict[tuple[int, ...], int] = {(): 0} | {prefix: i for i, prefix in enumerate(inner, start=1)}
    edges = sorted({*inner, *continuations}, key=lambda prefix: (len(prefix), prefix))
    edge_number = {prefix: i for i, prefix in enumerate(edges)}
    longest = max(map(len, continuations))
    paths = np.full((len(continuations), longest), len(edges), np.int64)
    node_paths = np.zeros((len(continuations), longest), np.int64)
    for row, c in enumerate(continuations):
        paths[row, : len(c)] = [edge_number[c[:n]] for n in range(1, len(c) + 1)]
        node_paths[row, : len(c) - 1] = [number[c[:n]] for n in range(1, len(c))]
    visible = np.zeros((len(inner), len(inner)), np.bool_)
    for i, prefix in enumerate(inner):
        visible[i, [number[prefix[:n]] - 1 for n in range(1, len(prefix) + 1)]] = True
    return LabelTrie(
        tokens=np.array([prefix[-1] for prefix in inner], np.int64),
        depths=np.array([len(prefix) for prefix in inner], np.int64),
        visible=visible,
        edge_nodes=np.array([number[prefix[:-1]] for prefix in edges], np.int64),
        edge_tokens=np.array([prefix[-1] for prefix in edges], np.int64),
        paths=paths,
        node_paths=node_paths,
    )


def common_prefix(sequences: Sequence[tuple[int, ...]]) -> int:
    """How many leading tokens all `sequences` share, with at least one token left in each."""
    first, last = min(sequences), max(sequences)
    limit = min(map(len, sequences)) - 1
    for i in range(limit):
        if first[i] != last[i]:
            return i
    return max(limit, 0)
