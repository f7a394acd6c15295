"""Batched autoregressive decoding on torch: greedy or sampled, with a shared prompt beginning and early leavers.

Kept apart from transformers' `generate` for three reasons: the beginning that all prompts share runs once, finished
rows leave the batch, and one loop serves batches and streams, so both give the same text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from rung.engines.attention import layer_masks
from rung.engines.base import Constraint, FinishReason, Generation, Sampling
from rung.engines.constraints import TokenMask, constrained_text
from rung.engines.cuda_batching import side_by_side
from rung.engines.label_trie import common_prefix
from rung.engines.shown import Shown
from rung.engines.tree_scoring import batches, left_padded, run_prefix
from rung.models.tokenizer import Tokenizer
from rung.progress import Progress


@dataclass(slots=True)
class Row:
    """One completion in the making."""

    index: int
    prompt_tokens: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    text: str = ""  # kept up to date where a stop text or a stream needs it, made at the end elsewhere
    reason: FinishReason = "length"


def decode(
    model: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[tuple[int, ...]],
    sampling: Sampling,
    constraint: Constraint | None,
    *,
    logprobs: bool,
    progress: Progress,
    cancelled: Callable[[], bool] | None,
) -> list[Generation]:
    """Complete every prompt; results come in the order of the prompts."""
    results: dict[int, Generation] = {}
    tokens, most = side_by_side(model)
    for wide in batches([len(p) for p in prompts], sampling.max_tokens, 1, tokens=tokens):
        for first in range(0, len(wide), most):
            batch = wide[first : first + most]
            start = time.perf_counter()
            rows = [Row(i, len(prompts[i])) for i in batch]
            live = bool(sampling.stop)  # reading the text at every step costs more than a step of a fast device
            for _ in steps(model, tokenizer, [prompts[i] for i in batch], rows, sampling, constraint, cancelled, live):
                pass
            for row in rows if not live else ():
                row.text = _read(row, tokenizer, constraint)
            seconds = (time.perf_counter() - start) / len(batch)
            for row in rows:
                results[row.index] = Generation(
                    text=row.text,
                    prompt_tokens=row.prompt_tokens,
                    completion_tokens=len(row.tokens),
                    finish_reason=row.reason,
                    seconds=seconds,
                    logprobs=tuple(row.logprobs) if logprobs else (),
                )
            progress.advance(len(batch))
    return [results[i] for i in range(len(prompts))]


def stream(
    model: Any, tokenizer: Tokenizer, prompt: tuple[int, ...], sampling: Sampling, constraint: Constraint | None
) -> Iterator[str]:
    """Yield the text of one completion piece by piece; the pieces joined are `decode`'s text."""
    row, shown = Row(0, len(prompt)), Shown()
    for _ in steps(model, tokenizer, [prompt], [row], sampling, constraint, None, live=True):
        if piece := shown.more(row.text, sampling.stop, ended=False):
            yield piece
    if piece := shown.more(row.text, sampling.stop, ended=True):
        yield piece


@torch.inference_mode()
def steps(
    model: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[tuple[int, ...]],
    rows: Sequence[Row],
    sampling: Sampling,
    constraint: Constraint | None,
    cancelled: Callable[[], bool] | None,
    live: bool,
) -> Iterator[None]:
    """Run the batch to its end, one token a step, filling in `rows`; `live`: their texts too."""
    shared = common_prefix(prompts) if len(prompts) > 1 else 0
    prefix = run_prefix(model, prompts[0][:shared])
    ids, mask, positions = left_padded(prefix, [p[shared:] for p in prompts])
    cache, device = prefix.cache(len(prompts)), model.device
    visible, position, places = mask[:, -1], positions[:, -1], prefix.before(positions)
    generator = torch.Generator(device).manual_seed(sampling.seed) if sampling.seed is not None else None
    allowed = None
    if constraint is not None:
        width = model.config.get_text_config().vocab_size
        allowed = TokenMask(tokenizer, constraint, len(prompts), width)
    active = list(rows)
    for step in range(sampling.max_tokens):
        logits = (
            model(
                input_ids=ids.to(device),
                attention_mask=layer_masks(model, mask, positions, places),
                position_ids=positions.to(device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            .logits[:, -1]
            .float()
        )
        chosen = _choose(_masked(logits, allowed), sampling, generator)
        likelihood = torch.log_softmax(logits, -1).gather(1, chosen[:, None])[:, 0]
        finished = allowed.advance(chosen.tolist()) if allowed is not None else [False] * len(active)
        for row, token, logprob, complete in zip(active, chosen.tolist(), likelihood.tolist(), finished, strict=True):
            row.tokens.append(token)
            row.logprobs.append(logprob)
            if complete or token in tokenizer.eos_ids:
                row.reason = "stop"
            if live:
                row.text = _read(row, tokenizer, constraint)
                _stop(row, sampling)
        if cancelled is not None and cancelled():
            for row in active:
                row.reason = "cancelled" if row.reason == "length" else row.reason
            return
        yield
        going = [i for i, row in enumerate(active) if row.reason == "length"]
        if not going or step + 1 == sampling.max_tokens:
            return
        if len(going) < len(active):
            index = torch.tensor(going)
            cache.batch_select_indices(index.to(device))
            if allowed is not None:
                allowed.keep(going)
            active, visible, position, places, chosen = (
                [active[i] for i in going],
                visible[index],
                position[index],
                places[index],
                chosen[index],
            )
        visible = torch.cat([visible, torch.ones(len(active), 1, dtype=torch.bool)], 1)
        position = position + 1
        places = torch.cat([places, position[:, None]], 1)
        ids, mask, positions = chosen[:, None].cpu(), visible[:, None], position[:, None]


def _choose(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator | None) -> torch.Tensor:
    """Pick one token per row: the likeliest, or one drawn from the nucleus (Holtzman et al. 2020, arXiv:1904.09751)."""
    if sampling.temperature <= 0:
        return logits.argmax(-1)
    chances = torch.softmax(logits / sampling.temperature, -1)
    if sampling.top_p < 1:
        ordered, index = chances.sort(-1, descending=True)
        outside = ordered.cumsum(-1) - ordered >= sampling.top_p
        chances = torch.zeros_like(chances).scatter(-1, index, ordered.masked_fill(outside, 0.0))
    return torch.multinomial(chances, 1, generator=generator)[:, 0]


def _masked(logits: torch.Tensor, allowed: TokenMask | None) -> torch.Tensor:
    """Return logits [rows, vocabulary] with minus infinity for what the constraint forbids."""
    if allowed is None:
        return logits
    return logits.masked_fill(~torch.from_numpy(allowed.allowed()).to(logits.device), -torch.inf)


def _read(row: Row, tokenizer: Tokenizer, constraint: Constraint | None) -> str:
    """Return the text of a row's tokens, without the token that ended it."""
    tokens = row.tokens[:-1] if row.tokens and row.tokens[-1] in tokenizer.eos_ids else row.tokens
    return tokenizer.decode(tokens) if constraint is None else constrained_text(tokenizer, tokens)


def _stop(row: Row, sampling: Sampling) -> None:
    """End a row where a stop text begins."""
    ends = [found for found in (row.text.find(stop) for stop in sampling.stop) if found >= 0]
    if ends:
        row.text, row.reason = row.text[: min(ends)], "stop"
