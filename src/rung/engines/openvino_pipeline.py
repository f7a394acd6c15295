"""One openvino-genai pipeline, stepped by whoever waits for it: continuous batching across calls and threads.

`ContinuousBatchingPipeline.generate` refuses a second call while one runs, cannot be cancelled, and looks for cached
prompt beginnings when a request is added: of a batch that shares one, all compute it. Here requests are added while
others run, and the first of a batch goes ahead, so that its followers find their common beginning computed.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rung.engines.base import FinishReason
from rung.engines.shown import Shown
from rung.errors import EngineError
from rung.models.tokenizer import Tokenizer

IN_FLIGHT = 64  # rows of one call that run side by side; more are not faster on CPU, and hold memory


@dataclass(slots=True)
class Row:
    """One completion in the making.

    Attributes:
        prompt: token ids.
        config: an openvino-genai GenerationConfig.
        max_tokens: number of tokens after which it is cut.
        stop: texts that end it; they are left out of `text`.
        follow: keep `text` up to date after every token; otherwise it is set at the end.
        shown: what a stream has given out of `text`.
    """

    index: int
    prompt: tuple[int, ...]
    config: Any
    max_tokens: int
    stop: tuple[str, ...] = ()
    follow: bool = False
    shown: Shown = field(default_factory=Shown)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    text: str = ""
    reason: FinishReason | None = None
    handle: Any = None


class Pipeline:
    """Weights, cache and scheduler of one model (with one adapter, or none). Safe to share between threads."""

    def __init__(self, pipeline: Any, tokenizer: Tokenizer) -> None:
        self._pipeline = pipeline
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._ids = itertools.count()
        self.broken = False

    def run(self, rows: Sequence[Row], cancelled: Callable[[], bool] | None = None) -> Iterator[list[Row]]:
        """Bring `rows` to their end; yield after every step those that ended in it.

        A cancelled run marks what has not ended as `cancelled`. Leaving the iteration early drops what still runs.

        Raises:
            EngineError: the cache cannot hold even one of the rows, or OpenVINO failed.
        """
        # Neighbours in this order share the longest beginnings, which the cache then holds.
        waiting = deque(sorted(rows, key=lambda row: row.prompt))
        active: list[Row] = []
        try:
            while waiting or active:
                self._admit(waiting, active)
                for _, error in self.step(active):
                    raise error
                if cancelled is not None and cancelled():
                    for row in (*active, *waiting):
                        row.reason = row.reason or "cancelled"
                    waiting.clear()
                done = [row for row in active if row.reason is not None]
                active[:] = [row for row in active if row.reason is None]
                yield done
        finally:
            self.drop([row for row in rows if row.handle is not None])

    def _admit(self, waiting: deque[Row], active: list[Row]) -> None:
        """Add requests: one until it has its first token, then as many as may run side by side."""
        ahead = not any(row.tokens for row in active) and any(row.handle is None for row in waiting)
        room = 1 if ahead and not active else 0 if ahead else IN_FLIGHT - len(active)
        for _ in range(min(room, len(waiting))):
            row = waiting.popleft()
            self.begin(row)
            active.append(row)

    def begin(self, row: Row) -> None:
        """Put a row among those under way."""
        import openvino

        ids = openvino.Tensor(np.array([row.prompt], np.int64))
        with self._lock:
            row.handle = self._pipeline.add_request(next(self._ids), ids, row.config)

    def step(self, active: Sequence[Row]) -> list[tuple[Row, EngineError]]:
        """Compute the next token of everything under way, other callers' rows included, and take our share.

        Returns:
            The rows of `active` that cannot go on, and why.

        Raises:
            EngineError: OpenVINO failed.
        """
        failed = []
        with self._lock:
            try:
                if self._pipeline.has_non_finished_requests():
                    self._pipeline.step()
            except RuntimeError as error:
                self.broken = True  # what failed stays inside, and fails every step from here on
                raise EngineError("generation-failed", f"OpenVINO: {error}", hint="use `--engine torch`") from error
            for row in active:
                try:
                    self._collect(row)
                except EngineError as error:
                    failed.append((row, error))
        return failed

    def _collect(self, row: Row) -> None:
        while row.reason is None and row.handle.can_read():
            for output in row.handle.read().values():
                for token, logprob in zip(output.generated_ids, output.generated_log_probs, strict=True):
                    if row.reason is None:
                        self._append(row, token, logprob)
        if row.reason is None and row.handle.get_status().name == "IGNORED":
            raise EngineError(
                "cache-full",
                f"the cache of the openvino engine cannot hold a prompt of {len(row.prompt)} tokens and its answer",
                hint="show fewer demonstrations, or shorten the input",
            )

    def _append(self, row: Row, token: int, logprob: float) -> None:
        """Add a token to a row and see whether it ends there; the rules are those of the torch engine."""
        row.tokens.append(token)
        row.logprobs.append(logprob)
        ended = token in self._tokenizer.eos_ids
        full = len(row.tokens) == row.max_tokens
        if not ended and (row.stop or row.follow or full):
            row.text = self._tokenizer.decode(row.tokens)
        elif ended:
            row.text = self._tokenizer.decode(row.tokens[:-1])
        ends = [] if ended else [found for found in (row.text.find(stop) for stop in row.stop) if found >= 0]
        if ends:
            row.text = row.text[: min(ends)]
        if ended or ends:
            row.reason = "stop"
        elif full:
            row.reason = "length"

    def drop(self, rows: Sequence[Row]) -> None:
        """Cancel what is still under way; the next step of anyone gives its memory back."""
        with self._lock:
            for row in rows:
                if row.handle.get_status().name == "RUNNING":
                    row.handle.cancel()
                row.handle = None
