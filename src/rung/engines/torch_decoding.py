"""Batched autoregressive decoding on torch: greedy or sampled, with a shared prompt prefix.

It differs from transformers' `generate` in three ways: the common prefix of all prompts runs once, and so does a prompt
of several rows; finished rows leave the batch; and one loop serves batches and streams, so both give the same text.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from rung.engines.apart import RowsApart, runs_apart
from rung.engines.base import Cancelled, Constraint, FinishReason, Generation, RunningRow, Sampling
from rung.engines.constraints import TokenMask, constrained_text
from rung.engines.label_trie import common_prefix
from rung.engines.tree_scoring import attending, batches, forward, left_padded, run_prefix
from rung.errors import EngineError
from rung.models.tokenizer import Tokenizer
from rung.progress import Progress

# Decoded side by side on CPUs: every step reads all weights, once for all rows. The tokens are the fewest and the most;
# in between, their keys and values take `CPU_CACHE` bytes.
CPU_TOKENS, CPU_CACHE, CPU_ROWS = (2048, 8192), 2**29, 128
CUDA_ROWS = 512
MEMORY_SHARE = 0.4  # of the free memory, for keys and values; activations and the growing cache need the rest
POLL_SECONDS = 0.1


def preferred_dtype(device: str) -> Any:
    """The torch dtype for a device: on CUDA bf16 from compute capability 8.0 (Ampere) and fp16 before; on CPUs fp32.

    CPUs with bf16 units use fp32 too: torch is the reference for other engines, and in bf16 a row's scores depend on
    its batch, enough to change answers after a resume. The fast CPU engine is OpenVINO.
    """
    if device != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16


def side_by_side(model: Any) -> tuple[int, int]:
    """How many tokens (prompts and answers together) and how many rows may be decoded at once."""
    if model.device.type != "cuda":
        fewest, most = CPU_TOKENS
        return max(fewest, min(most, CPU_CACHE // cache_bytes(model))), CPU_ROWS
    free, _ = torch.cuda.mem_get_info(model.device)
    return max(CPU_TOKENS[0], int(free * MEMORY_SHARE / cache_bytes(model))), CUDA_ROWS


def cache_bytes(model: Any) -> int:
    """The bytes that keys and values of one token take in all layers."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * size * model.dtype.itemsize)


def decode(
    model: Any, tokenizer: Tokenizer, prompts: Sequence[tuple[int, ...]], sampling: Sampling,
    constraint: Constraint | None, *, logprobs: bool, progress: Progress, cancelled: Cancelled | None,
) -> list[Generation]:  # fmt: skip
    """Complete every prompt; results come in the order of the prompts."""
    results: dict[int, Generation] = {}
    max_batch_tokens, max_rows = side_by_side(model)
    generator = generator_of(model, sampling)  # for all batches: the same numbers would draw the same answers
    for wide in batches([len(p) for p in prompts], sampling.max_tokens, 1, tokens=max_batch_tokens):
        for first in range(0, len(wide), max_rows):
            batch = wide[first : first + max_rows]
            start = time.perf_counter()
            rows = [RunningRow(i, len(prompts[i])) for i in batch]
            live = bool(sampling.stop)  # reading the text at every step costs more than a step of a fast device
            batched = [prompts[i] for i in batch]
            for _ in steps(model, tokenizer, batched, rows, sampling, constraint, cancelled, live, generator):
                progress.advance(0)
            for row in rows if not live else ():
                row.text = _read(row, tokenizer, constraint, tokenizer.eos_ids, call_marks=sampling.call_marks)
            seconds = (time.perf_counter() - start) / len(batch)
            for row in rows:
                generation = Generation(
                    row.text, row.prompt_tokens, len(row.tokens), row.reason or "length", seconds,
                    tuple(row.logprobs) if logprobs else (), tokens=tuple(row.tokens) if logprobs else (),
                )  # fmt: skip
                results[row.index] = generation
            progress.advance(len(batch))
    return [results[i] for i in range(len(prompts))]


def generator_of(model: Any, sampling: Sampling) -> torch.Generator | None:
    """The random numbers that a seed stands for; None without one."""
    return None if sampling.seed is None else torch.Generator(model.device).manual_seed(sampling.seed)


@torch.inference_mode()
def steps(
    model: Any, tokenizer: Tokenizer, prompts: Sequence[tuple[int, ...]], rows: Sequence[RunningRow],
    sampling: Sampling, constraint: Constraint | None, cancelled: Cancelled | None, live: bool,
    generator: torch.Generator | None,
) -> Iterator[None]:  # fmt: skip
    """Run the batch to its end, one token a step, and fill in `rows`; with `live`, their texts too."""
    apart = runs_apart(model, max(map(len, prompts)) + sampling.max_tokens)
    running = RowsApart(model, prompts) if apart else _RowsTogether(model, prompts)
    width = model.config.get_text_config().vocab_size
    allowed = None if constraint is None else TokenMask(tokenizer, constraint, len(prompts), width)
    active, ends = list(rows), tokenizer.ends(sampling.stop)
    for step in range(sampling.max_tokens):
        logits = running.logits()
        possible = logits
        if allowed is not None:
            possible = logits.masked_fill(~torch.from_numpy(allowed.allowed()).to(logits.device), -torch.inf)
        chosen = _choose(possible, sampling, generator)
        likelihood = torch.log_softmax(logits, -1).gather(1, chosen[:, None])[:, 0]
        finished = allowed.advance(chosen.tolist()) if allowed is not None else [False] * len(active)
        for row, token, logprob, complete in zip(active, chosen.tolist(), likelihood.tolist(), finished, strict=True):
            row.tokens.append(token)
            row.logprobs.append(logprob)
            if complete or token in ends:
                row.reason = "stop"
            if live:
                row.text = _read(row, tokenizer, constraint, ends, call_marks=sampling.call_marks)
                row.end_at(sampling.stop)
        if cancelled is not None and cancelled():
            for row in active:
                row.reason = row.reason or "cancelled"
            return
        yield
        unfinished = [i for i, row in enumerate(active) if row.reason is None]
        if not unfinished or step + 1 == sampling.max_tokens:
            return
        if allowed is not None and len(unfinished) < len(active):
            allowed.keep(unfinished)
        running.advance(unfinished, chosen)
        active = [active[i] for i in unfinished]


class _RowsTogether:
    """Completions that run in one batch, padded on the left, after a beginning that all of them share."""

    def __init__(self, model: Any, prompts: Sequence[tuple[int, ...]]) -> None:
        self._model = model
        different = list(dict.fromkeys(prompts))
        shared = common_prefix(different) if len(different) > 1 else 0
        prefix = run_prefix(model, different[0][:shared])
        self._ids, self._mask, self._positions = left_padded(prefix, [p[shared:] for p in different])
        self._cache, self._visible = prefix.cache(len(different)), self._mask[:, -1]
        self._position, self._keys = self._positions[:, -1], prefix.before(self._positions)
        numbers = {prompt: number for number, prompt in enumerate(different)}
        # Which of the different prompts each row has, until it is run.
        self._spread = [numbers[prompt] for prompt in prompts] if len(different) < len(prompts) else []

    def logits(self) -> torch.Tensor:
        """The logits of the next token of every row, shape [rows, vocabulary]."""
        ids, mask, positions = self._ids, self._mask, self._positions
        logits = forward(self._model, ids, mask, positions, self._keys, self._cache, keep=1)[:, -1].float()
        if self._spread:
            logits = logits[self._select(self._spread).to(logits.device)]
            self._spread = []
        return logits

    def _select(self, rows: Sequence[int]) -> torch.Tensor:
        """Go on with these rows, of which one may be there several times; returns their numbers as a tensor."""
        index = torch.tensor(rows)
        self._cache.batch_select_indices(index.to(self._model.device))
        self._visible, self._position, self._keys = self._visible[index], self._position[index], self._keys[index]
        return index

    def advance(self, kept: Sequence[int], chosen: torch.Tensor) -> None:
        """Go on with these rows only, and append each row's chosen token."""
        if len(kept) < len(self._position):
            chosen = chosen[self._select(kept).to(chosen.device)]
        self._visible = torch.cat([self._visible, torch.ones(len(kept), 1, dtype=torch.bool)], 1)
        self._position = self._position + 1
        self._keys = torch.cat([self._keys, self._position[:, None]], 1)
        self._ids, self._mask, self._positions = chosen[:, None].cpu(), self._visible[:, None], self._position[:, None]


def _choose(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator | None) -> torch.Tensor:
    """Pick one token per row: the likeliest, or one drawn from the nucleus (Holtzman et al. 2020, arXiv:1904.09751)."""
    if sampling.temperature <= 0:
        return logits.argmax(-1)
    probs = torch.softmax(logits / sampling.temperature, -1)
    if sampling.top_p < 1:
        ordered, index = probs.sort(-1, descending=True)
        outside = ordered.cumsum(-1) - ordered >= sampling.top_p
        probs = torch.zeros_like(probs).scatter(-1, index, ordered.masked_fill(outside, 0.0))
    # The inverse of the distribution function: on CPUs faster than `torch.multinomial`.
    below = probs.double().cumsum(-1)
    drawn = torch.rand(len(probs), 1, dtype=below.dtype, device=below.device, generator=generator) * below[:, -1:]
    return torch.searchsorted(below, drawn, right=True)[:, 0].clamp(max=probs.shape[-1] - 1)


def _read(
    row: RunningRow, tokenizer: Tokenizer, constraint: Constraint | None, ends: frozenset[int], *, call_marks: bool
) -> str:
    """The text of a row's tokens, without the token that ended it."""
    tokens = row.tokens[:-1] if row.tokens and row.tokens[-1] in ends else row.tokens
    return constrained_text(tokenizer, tokens) if constraint else tokenizer.decode(tokens, call_marks=call_marks)


# ---- continuous batching on CUDA (transformers' `ContinuousBatchingManager`), not run on hardware
#
# Written and tested without a GPU: a CPU runs continuous batching itself, with the same texts as the loop above, but
# precision, memory and flash attention follow the documentation; `benchmarks/gpu_generation.py` measures them.
#
# A paged cache, requests that join and leave at every step, common prefixes shared. It pays only with a paged attention
# kernel, so it needs flash-attn: the plain fallback lets every token see the cache of all requests and masks the rest.
# What it cannot do (constraints, log-probabilities, stop texts, streams) runs in the loop above.


def paged_attention(device: str) -> str | None:
    """The installed attention kernel that reads a paged cache, or None; nothing is downloaded."""
    if device != "cuda":
        return None
    from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

    capability = torch.cuda.get_device_capability()
    if capability >= (9, 0) and is_flash_attn_3_available():
        return "flash_attention_3"
    return "flash_attention_2" if capability >= (8, 0) and is_flash_attn_2_available() else None


def suits(model: Any, sampling: Sampling, constraint: Constraint | None, *, logprobs: bool) -> bool:
    """Whether continuous batching can run the request.

    It runs adapters inside the layers (such as LoRA), and would ignore those that change the prompt.
    """
    return constraint is None and not logprobs and not sampling.stop and _inner(model) is not None


def generate_paged(
    model: Any, tokenizer: Tokenizer, prompts: Sequence[tuple[int, ...]], sampling: Sampling, *, attention: str,
    progress: Progress, cancelled: Cancelled | None, memory: dict[str, int] | None = None,
) -> list[Generation]:  # fmt: skip
    """Complete every prompt by continuous batching; results come in the order of the prompts.

    A seed makes the whole call repeatable. `attention` is the kernel's name, from `paged_attention`; `memory` has
    `block_size`, `num_blocks` and `max_batch_tokens` of the cache, which by default follow from the free memory.

    Raises:
        EngineError: a request failed, or generation broke down.
    """
    from transformers import GenerationConfig
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    inner = _inner(model)
    if inner is None:
        raise ValueError("this adapter is not inside the model's layers: ask `suits` first")
    how: dict[str, Any] = {"do_sample": False}
    if sampling.temperature > 0:
        how = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    config = GenerationConfig(
        max_new_tokens=sampling.max_tokens, eos_token_id=sorted(tokenizer.eos_ids) or -1,
        pad_token_id=tokenizer.pad_id, **how,
    )  # fmt: skip
    start = time.perf_counter()
    if sampling.seed is not None:
        torch.manual_seed(sampling.seed)
    with attending(inner, f"paged|{attention}"):
        batching = ContinuousBatchingConfig(**(memory or {}))
        manager = inner.init_continuous_batching(generation_config=config, continuous_batching_config=batching)
        # All requests are queued before the loop begins, so that batches, and with them seeded samples, are repeatable.
        # Sorted, prompts with a common prefix are neighbours and share it.
        for index in sorted(range(len(prompts)), key=lambda i: prompts[i]):
            manager.add_request(
                list(prompts[index]), request_id=str(index), max_new_tokens=sampling.max_tokens,
                streaming=cancelled is not None,
            )  # fmt: skip
        results = _collect(manager, len(prompts), progress, cancelled)
    seconds = (time.perf_counter() - start) / len(prompts)
    generations = []
    for index, prompt in enumerate(prompts):
        tokens, complete = results.get(index, ([], False))
        ended = bool(tokens) and tokens[-1] in tokenizer.eos_ids
        reason: FinishReason = "stop" if ended else "length" if complete else "cancelled"
        text = tokenizer.decode(tokens[:-1] if ended else tokens, call_marks=sampling.call_marks)
        generations.append(Generation(text, len(prompt), len(tokens), reason, seconds))
    return generations


def _collect(
    manager: Any, requests: int, progress: Progress, cancelled: Cancelled | None
) -> dict[int, tuple[list[int], bool]]:
    """Run the manager's loop to its end; gives tokens by request, and whether each is complete."""
    results: dict[int, tuple[list[int], bool]] = {}
    complete = 0
    manager.start()
    try:
        while complete < requests:
            output = manager.get_result(timeout=POLL_SECONDS)
            if output is None:
                if not manager.is_running():
                    raise _broken("its loop ended early, most likely out of memory")
            elif output.error:
                raise _broken(output.error)
            else:
                results[int(output.request_id)] = (output.generated_tokens, output.is_finished())
                if output.is_finished():
                    complete += 1
                    progress.advance(1)
            if cancelled is not None and cancelled():
                break
    finally:
        while manager.batch_processor is None and manager.is_running():
            time.sleep(POLL_SECONDS / 10)  # until it is set up, it ignores a cancellation
        for request in range(requests):  # the loop would otherwise finish those that still wait
            if not results.get(request, ([], False))[1]:
                manager.cancel_request(str(request))
        manager.stop(block=True)
    return results


def _broken(why: str) -> EngineError:
    hint = 'free memory on the device, lower `max_tokens`, or use the CPU: CUDA_VISIBLE_DEVICES=""'
    return EngineError("generation-failed", f"continuous batching failed: {why}", hint=hint)


def _inner(model: Any) -> Any | None:
    """The transformers model itself, or None where an adapter works outside its layers."""
    if not hasattr(model, "peft_config"):
        return model
    active = [model.peft_config[name] for name in model.active_adapters]
    if any(config.is_prompt_learning or config.is_adaption_prompt for config in active):
        return None
    return model.get_base_model()
