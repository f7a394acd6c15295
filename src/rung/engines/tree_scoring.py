"""Label log-likelihoods by tree attention: one forward pass a row for all labels, or a search for the best one.

The rows of a call share the prompt's common prefix (instruction, fixed demonstrations): it runs once, and every row
uses its keys and values. Each row's own text follows, padded on the left so that the prompt's last token is in the same
column for all rows, and then the nodes of the label trie.

Everything goes through the model's own `forward` with a four-dimensional mask and explicit positions, so the logits are
the model's own (scaling and soft-capping included), with or without an adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from rung.engines.base import Floats
from rung.engines.label_trie import LabelTrie, common_prefix
from rung.models.checkpoint import text_class

# ---- attention: masks, and capped scores
#
# Rung runs several rows after one shared prefix, so it makes its own masks; layers that see only the last tokens
# (Gemma 2 and 3, Mistral, Cohere 2) get a narrower one. Torch's fast attention cannot cap scores
# (Gemma 2), and transformers silently skips the cap when that attention is chosen.

CAPPED = "rung_capped"


def layer_masks(model: Any, mask: torch.Tensor, queries: torch.Tensor, keys: torch.Tensor) -> Any:
    """The attention mask in the form that the model takes: one, or one for each kind of layer.

    `mask` [rows, queries, keys] says which tokens each token may attend to. `queries` and `keys` are the positions of
    the tokens that run, [rows, queries], and of those they may attend to, [rows, keys].
    """
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    whole = mask[:, None].to(model.device)
    if window is None or (kinds is not None and "sliding_attention" not in kinds):
        return whole
    near = (queries[:, :, None] - keys[:, None, :]) < window
    narrow = (mask & near)[:, None].to(model.device)
    return narrow if kinds is None else {"full_attention": whole, "sliding_attention": narrow}


def forward(
    model: Any, ids: torch.Tensor, mask: torch.Tensor, queries: torch.Tensor, keys: torch.Tensor, cache: DynamicCache,
    *, keep: int,
) -> torch.Tensor:  # fmt: skip
    """The logits of the last `keep` columns of `ids`, shape [rows, keep, vocabulary]; see `layer_masks`."""
    device = model.device
    logits: torch.Tensor = model(
        input_ids=ids.to(device), attention_mask=layer_masks(model, mask, queries, keys),
        position_ids=queries.to(device), past_key_values=cache, use_cache=True, logits_to_keep=keep,
    ).logits  # fmt: skip
    return logits


@contextmanager
def attending(model: Any, name: str) -> Iterator[None]:
    """Switch the model to another attention implementation inside the block."""
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def best_attention(config: Any) -> str:
    """The name of the fastest attention that computes what the model's configuration asks for."""
    if getattr(config.get_text_config(), "attn_logit_softcapping", None) is None:
        model = text_class(config.model_type)._model_mapping[type(config)]
        return "sdpa" if getattr(model, "_supports_sdpa", False) else "eager"  # gpt-oss, GPT-J, Bloom, MPT
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(CAPPED, capped_attention)
    AttentionMaskInterface.register(CAPPED, sdpa_mask)
    return CAPPED


def capped_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None, *,
    dropout: float = 0.0, scaling: float | None = None, softcap: float | None = None, **_: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Attend with scores capped to `softcap * tanh(scores / softcap)`, with the signature that transformers expects.

    `query` has the shape [rows, heads, tokens, size]; `key` and `value` may have fewer heads and more tokens. The mask
    is true where a token attends, or None for all tokens before it. The output, [rows, tokens, heads, size], comes
    without weights.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    tokens, seen = scores.shape[-2:]
    if attention_mask is None:
        attention_mask = torch.ones(tokens, seen, dtype=torch.bool, device=scores.device).tril(seen - tokens)
    scores = scores.masked_fill(~attention_mask[..., :seen], torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype)
    weights = torch.nn.functional.dropout(weights, dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), None


LOGIT_BYTES = 384 * 2**20  # logits materialized at once
TOKENS_PER_BATCH = 2048  # tokens run at once, where the logits allow
LOGIT_ROWS = 32  # rows of logits normalized at once
# Nodes per row in the first round of the best-first search, and the limit to which each round doubles it: a peaked
# distribution is decided in one small round, a flat one in few large rounds.
EXPAND, MAX_EXPAND = 6, 48


@dataclass(slots=True)
class Prefix:
    """Keys and values of a prompt prefix, one pair per layer, each [1, heads, length, size]."""

    length: int
    layers: list[tuple[torch.Tensor, torch.Tensor]]

    def cache(self, rows: int) -> DynamicCache:
        """A fresh cache that shares this prefix with `rows` rows."""
        cache = DynamicCache()
        for index, (keys, values) in enumerate(self.layers):
            cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), index)
        return cache

    def before(self, positions: torch.Tensor) -> torch.Tensor:
        """The positions of this prefix and of what follows it, shape [rows, length + columns]."""
        return torch.cat([torch.arange(self.length).expand(len(positions), -1), positions], 1)


def run_prefix(model: Any, tokens: Sequence[int]) -> Prefix:
    """Run the tokens that all rows share once."""
    if not tokens:
        return Prefix(0, [])
    cache = DynamicCache()
    ids = torch.tensor([list(tokens)], device=model.device)
    model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return Prefix(len(tokens), [(layer.keys, layer.values) for layer in cache.layers])


@torch.inference_mode()
def score_all(
    model: Any, prompts: Sequence[tuple[int, ...]], trie: LabelTrie, *, done: Callable[[int], None] = lambda rows: None
) -> Floats:
    """The log-likelihood of every continuation after every prompt, shape [prompts, continuations]."""
    shared = common_prefix(prompts) if len(prompts) > 1 else 0
    prefix = run_prefix(model, prompts[0][:shared])
    result = np.empty((len(prompts), len(trie.paths)), np.float32)
    for batch in batches([len(p) - shared for p in prompts], trie.size, model.config.get_text_config().vocab_size):
        rows = [prompts[i][shared:] for i in batch]
        logits = _forward_tree(model, prefix, rows, trie)
        result[batch] = trie.total(_edge_logprobs(logits, trie.edge_nodes, trie.edge_tokens))
        done(len(batch))
    return result


def batches(
    lengths: Sequence[int], tree: int, vocabulary: int, *, tokens: int = TOKENS_PER_BATCH
) -> Iterator[list[int]]:
    """Group rows of similar length, longest first, so that padding and memory (`tokens` a batch) stay small."""
    max_rows = max(1, LOGIT_BYTES // (4 * vocabulary * (tree + 1)))
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        width = (lengths[batch[0]] if batch else lengths[index]) + tree
        if batch and (len(batch) >= max_rows or (len(batch) + 1) * width > tokens):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _forward_tree(model: Any, prefix: Prefix, rows: Sequence[Sequence[int]], trie: LabelTrie) -> torch.Tensor:
    """Run rows and trie in one pass; return logits [rows, 1 + nodes, vocabulary], the root first."""
    ids, mask, positions = left_padded(prefix, rows)
    width, nodes = ids.shape[1], trie.size
    total = torch.zeros(len(rows), width + nodes, prefix.length + width + nodes, dtype=torch.bool)
    total[:, :width, : prefix.length + width] = mask
    total[:, width:, : prefix.length + width] = mask[:, -1:, :]
    total[:, width:, prefix.length + width :] = torch.from_numpy(trie.visible)
    tree = torch.from_numpy(trie.tokens).expand(len(rows), -1)
    depths = positions[:, -1:] + torch.from_numpy(trie.depths)
    queries = torch.cat([positions, depths], 1)
    ids, cache = torch.cat([ids, tree], 1), prefix.cache(len(rows))
    return forward(model, ids, total, queries, prefix.before(queries), cache, keep=nodes + 1)


def left_padded(prefix: Prefix, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pad rows on the left; return ids [R, W], causal mask [R, W, prefix + W] and positions [R, W].

    Padding attends only to itself: a query that attends to nothing would become NaN.
    """
    width = max(map(len, rows))
    pads = torch.tensor([width - len(row) for row in rows])
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
    columns = torch.arange(width)
    real = columns >= pads[:, None]
    mask = torch.zeros(len(rows), width, prefix.length + width, dtype=torch.bool)
    mask[:, :, : prefix.length] = real[:, :, None]
    mask[:, :, prefix.length :] = (columns[None, :] <= columns[:, None]) & real[:, None, :] & real[:, :, None]
    mask[:, columns, prefix.length + columns] = True
    positions = (prefix.length + columns - pads[:, None]).clamp(min=0)
    return ids, mask, positions


def _log_normalizer(logits: torch.Tensor) -> torch.Tensor:
    """The log of the summed exponentials over the vocabulary, in float32.

    A few rows of logits at a time, so that they stay in the processor's cache instead of main memory.
    """
    parts = logits.flatten(0, -2).split(LOGIT_ROWS)
    return torch.cat([part.float().logsumexp(-1) for part in parts]).view(logits.shape[:-1])


def _edge_logprobs(logits: torch.Tensor, nodes: np.ndarray[Any, Any], tokens: np.ndarray[Any, Any]) -> Floats:
    """The log-probability of each edge (`nodes` index the second dimension) from `logits` [R, nodes, V]."""
    normalizer = _log_normalizer(logits)
    where = torch.from_numpy(nodes).to(logits.device)
    picked = logits[:, where, torch.from_numpy(tokens).to(logits.device)].float() - normalizer[:, where]
    result: Floats = picked.cpu().numpy()
    return result


@torch.inference_mode()
def score_best(
    model: Any, prompts: Sequence[tuple[int, ...]], trie: LabelTrie, divisor: Floats, bias: Floats, *,
    done: Callable[[int], None] = lambda rows: None,
) -> tuple[Floats, int]:  # fmt: skip
    """Find the exact argmax of `logprob / divisor - bias` per row, running only the nodes that can decide it.

    A log-probability never rises along a path, so the known part of a label bounds its value from above (A* with a zero
    heuristic). Labels are opened in the order of their bounds until the best finished one is above all open ones.
    Gives log-likelihoods, shape [prompts, continuations], `-inf` where a label was never finished, and the number of
    nodes that were run.
    """
    shared = common_prefix(prompts) if len(prompts) > 1 else 0
    prefix = run_prefix(model, prompts[0][:shared])
    result = np.empty((len(prompts), len(trie.paths)), np.float32)
    opened, vocabulary = 0, model.config.get_text_config().vocab_size
    for batch in batches([len(p) - shared for p in prompts], min(trie.size, MAX_EXPAND), vocabulary):
        rows = [prompts[i][shared:] for i in batch]
        search = _BestFirstSearch(model, prefix, rows, trie, divisor, bias)
        result[batch] = search.run()
        opened += search.opened
        done(len(batch))
    return result, opened


class _BestFirstSearch:
    """Best-first search over one batch of rows; decided rows leave the batch."""

    def __init__(
        self, model: Any, prefix: Prefix, rows: Sequence[Sequence[int]], trie: LabelTrie, divisor: Floats, bias: Floats
    ) -> None:
        self.model, self.trie, self.divisor, self.bias = model, trie, divisor, bias
        ids, mask, positions = left_padded(prefix, rows)
        self.cache = prefix.cache(len(rows))
        self.keys = prefix.before(positions)  # positions of all keys, [R, columns]
        logits = forward(model, ids, mask, positions, self.keys, self.cache, keep=1)
        self.prompt_mask = mask[:, -1]  # what the prompt's last token attends to, [R, columns]
        self.last = positions[:, -1]
        self.rows = np.arange(len(rows))  # undecided rows, by their position in the batch
        self.edges = np.zeros((len(rows), len(trie.edge_nodes)), np.float32)  # 0 bounds an unknown edge
        self.column = np.full((len(rows), trie.size + 1), -1)  # tree column of each node, -1 before it runs
        self.column[:, 0] = 0
        self.columns = 0
        self.opened = 0
        self.expand = EXPAND
        root = trie.edge_nodes == 0
        self.edges[:, root] = _edge_logprobs(logits, trie.edge_nodes[root], trie.edge_tokens[root])

    def run(self) -> Floats:
        result = np.full((len(self.rows), len(self.trie.paths)), -np.inf, np.float32)
        while True:
            partial = self.trie.total(self.edges)
            bound = partial / self.divisor - self.bias
            run = self.column >= 0
            finished = np.asarray(run[:, self.trie.node_paths].all(-1))
            best = np.where(finished, bound, -np.inf).max(1)
            open_bound = np.where(finished, -np.inf, bound).max(1)
            decided = np.asarray(best >= open_bound)
            if decided.any():
                result[self.rows[decided]] = np.where(finished, partial, -np.inf)[decided]
                if decided.all():
                    return result
                self._keep(np.flatnonzero(~decided))
                bound, finished = bound[~decided], finished[~decided]
            self._expand(self._choose(np.where(finished, -np.inf, bound)))

    def _keep(self, kept: np.ndarray[Any, Any]) -> None:
        index = torch.from_numpy(kept)
        self.cache.batch_select_indices(index.to(self.model.device))
        self.rows, self.edges, self.column = self.rows[kept], self.edges[kept], self.column[kept]
        self.prompt_mask, self.last, self.keys = self.prompt_mask[index], self.last[index], self.keys[index]

    def _choose(self, bound: Floats) -> list[list[int]]:
        """Per row, the nodes to run next: whole paths of the most promising labels, parents first."""
        chosen = []
        for row, order in enumerate(np.argsort(-bound, axis=1, kind="stable")):
            nodes: list[int] = []
            for label in order:
                missing = [n for n in self.trie.node_paths[label] if self.column[row, n] < 0 and n not in nodes]
                if nodes and (len(nodes) + len(missing) > self.expand or bound[row, label] == -np.inf):
                    break
                nodes += missing
            chosen.append(nodes)
        return chosen

    def _expand(self, chosen: list[list[int]]) -> None:
        """Run the chosen nodes of every row in one pass and read their edges."""
        rows, width, trie = len(chosen), max(map(len, chosen)), self.trie
        ids = torch.zeros(rows, width, dtype=torch.long)
        depths = torch.ones(rows, width, dtype=torch.long)
        visible = torch.zeros(rows, width, self.columns + width, dtype=torch.bool)
        visible[:, torch.arange(width), self.columns + torch.arange(width)] = True
        for row, nodes in enumerate(chosen):
            ids[row, : len(nodes)] = torch.from_numpy(trie.tokens[np.array(nodes) - 1])
            depths[row, : len(nodes)] = torch.from_numpy(trie.depths[np.array(nodes) - 1])
            for offset, node in enumerate(nodes):
                self.column[row, node] = self.columns + offset
                visible[row, offset, self.column[row, 1:][trie.visible[node - 1, :]]] = True
        mask = torch.cat([self.prompt_mask[:, None].expand(-1, width, -1), visible], 2)
        positions = self.last[:, None] + depths
        self.keys = torch.cat([self.keys, positions], 1)
        logits = forward(self.model, ids, mask, positions, self.keys, self.cache, keep=width)
        self.columns += width
        self.opened += sum(map(len, chosen))
        self.expand = min(2 * self.expand, MAX_EXPAND)
        self._read(logits, chosen)

    def _read(self, logits: torch.Tensor, chosen: list[list[int]]) -> None:
        """Store the log-probabilities of the edges out of the nodes that just ran."""
        normalizer = _log_normalizer(logits)
        where_row: list[int] = []
        where_node: list[int] = []
        where_edge: list[int] = []
        for row, nodes in enumerate(chosen):
            for offset, node in enumerate(nodes):
                low, high = np.searchsorted(self.trie.edge_nodes, [node, node + 1])
                where_row += [row] * (high - low)
                where_node += [offset] * (high - low)
                where_edge += range(low, high)
        tokens = torch.from_numpy(self.trie.edge_tokens[where_edge]).to(logits.device)
        values = logits[where_row, where_node, tokens].float() - normalizer[where_row, where_node]
        self.edges[where_row, where_edge] = values.cpu().numpy()
