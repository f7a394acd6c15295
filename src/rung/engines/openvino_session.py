"""Completions on OpenVINO that come and go: the pipelines are stepped here, by the one thread that serves."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from rung.engines.base import Delta, GenerateRequest
from rung.engines.openvino_pipeline import IN_FLIGHT, Pipeline, Row
from rung.errors import EngineError


@dataclass(slots=True)
class _Lane:
    """The completions of one adapter: one pipeline."""

    pipeline: Pipeline
    waiting: deque[Row] = field(default_factory=deque)
    running: list[Row] = field(default_factory=list)

    def admit(self) -> None:
        """Begin rows; where nothing has run yet, one goes ahead, so that the others find a common beginning cached."""
        ahead = not any(row.tokens for row in self.running)
        room = (0 if self.running else 1) if ahead else IN_FLIGHT - len(self.running)
        for _ in range(min(room, len(self.waiting))):
            row = self.waiting.popleft()
            self.pipeline.begin(row)
            self.running.append(row)


class OpenVinoSession:
    """A `Session` over one pipeline per adapter, each stepped in turn.

    Args:
        row: makes a pipeline's row of a request, with an index.
        pipeline: returns the pipeline that runs an adapter.
    """

    def __init__(self, row: Callable[[int, GenerateRequest], Row], pipeline: Callable[[str | None], Pipeline]) -> None:
        self._row, self._pipeline = row, pipeline
        self._lanes: dict[str | None, _Lane] = {}

    @property
    def active(self) -> int:
        """How many completions have not ended."""
        return sum(len(lane.waiting) + len(lane.running) for lane in self._lanes.values())

    def add(self, key: int, request: GenerateRequest) -> None:
        """Take a completion in; it begins with the next step, or when there is room."""
        row = self._row(key, request)
        row.follow = True
        if request.adapter not in self._lanes:
            self._lanes[request.adapter] = _Lane(self._pipeline(request.adapter))
        self._lanes[request.adapter].waiting.append(row)

    def cancel(self, key: int) -> None:
        """Drop a completion."""
        for adapter, lane in list(self._lanes.items()):
            lane.waiting = deque(row for row in lane.waiting if row.index != key)
            dropped = [row for row in lane.running if row.index == key]
            lane.pipeline.drop(dropped)
            lane.running = [row for row in lane.running if row.index != key]
            self._leave(adapter)

    def step(self) -> list[Delta]:
        """Compute the next token of every completion."""
        deltas = []
        for adapter, lane in list(self._lanes.items()):
            deltas += self._advance(lane)
            self._leave(adapter)
        return deltas

    def _advance(self, lane: _Lane) -> list[Delta]:
        lane.admit()
        before = [len(row.tokens) for row in lane.running]
        try:
            failed = {row.index: error for row, error in lane.pipeline.step(lane.running)}
        except EngineError as error:  # the pipeline is lost, and all that runs on it; the next request gets a new one
            lost = [Delta(row.index, error=error) for row in (*lane.running, *lane.waiting)]
            lane.running.clear()
            lane.waiting.clear()
            return lost
        deltas = []
        for row, had in zip(lane.running, before, strict=True):
            if row.index in failed:
                deltas.append(Delta(row.index, error=failed[row.index]))
            elif len(row.tokens) > had:
                deltas.append(_delta(row, had))
        ended = [row for row in lane.running if row.reason is not None or row.index in failed]
        lane.pipeline.drop(ended)
        lane.running = [row for row in lane.running if row.handle is not None]
        return deltas

    def _leave(self, adapter: str | None) -> None:
        """Let go of a pipeline that has nothing to do: the engine may need its memory for another adapter."""
        lane = self._lanes[adapter]
        if not lane.running and not lane.waiting:
            del self._lanes[adapter]


def _delta(row: Row, had: int) -> Delta:
    return Delta(
        key=row.index,
        text=row.shown.more(row.text, row.stop, ended=row.reason is not None),
        tokens=tuple(row.tokens[had:]),
        logprobs=tuple(row.logprobs[had:]),
        prompt_tokens=len(row.prompt),
        completion_tokens=len(row.tokens),
        reason=row.reason,
    )
