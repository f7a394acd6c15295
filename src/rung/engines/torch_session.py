"""Completions on torch that come and go: what waits begins as a batch of its own, and all batches take turns.

A batch of padded rows cannot take a row in once it runs, so new rows do not wait for its end but run beside it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rung.engines.base import Delta, GenerateRequest
from rung.engines.cuda_batching import side_by_side
from rung.engines.shown import Shown
from rung.engines.torch_decoding import Row, steps
from rung.engines.tree_scoring import batches
from rung.errors import RungError

if TYPE_CHECKING:
    from rung.engines.torch_engine import TorchEngine


@dataclass(slots=True)
class _Member:
    """One completion: its row in a batch, and how much of it was given out."""

    key: int
    row: Row
    shown: Shown = field(default_factory=Shown)
    told: int = 0  # tokens given out


@dataclass(slots=True)
class _Batch:
    """Completions of one adapter and one way of sampling that began together."""

    request: GenerateRequest
    members: list[_Member]
    steps: Iterator[None]


class TorchSession:
    """A `Session` on the torch engine; texts are those of `TorchEngine.generate`."""

    def __init__(self, engine: TorchEngine) -> None:
        self._engine = engine
        self._waiting: dict[int, tuple[GenerateRequest, tuple[int, ...]]] = {}
        self._batches: list[_Batch] = []

    @property
    def active(self) -> int:
        """How many completions have not ended."""
        return len(self._waiting) + sum(len(batch.members) for batch in self._batches)

    def add(self, key: int, request: GenerateRequest) -> None:
        """Take a completion in; it begins with the next step, or when there is room."""
        prompt = self._engine.prompt_tokens(request.prompt, request.sampling.max_tokens, request.adapter)
        self._waiting[key] = request, prompt

    def cancel(self, key: int) -> None:
        """Drop a completion."""
        self._waiting.pop(key, None)
        for batch in self._batches:
            for member in batch.members:
                if member.key == key:
                    member.row.reason = "cancelled"  # then the row leaves its batch at the next step
            batch.members = [member for member in batch.members if member.key != key]
        self._batches = [batch for batch in self._batches if batch.members]

    def step(self) -> list[Delta]:
        """Go on by one token in every batch."""
        self._begin()
        deltas: list[Delta] = []
        for batch in self._batches:
            deltas += self._advance(batch)
        self._batches = [batch for batch in self._batches if batch.members]
        return deltas

    def _begin(self) -> None:
        """Make batches of what waits, as far as there is room."""
        if not self._waiting:
            return
        model = self._engine.model
        tokens, most = side_by_side(model)
        room = most - sum(len(batch.members) for batch in self._batches)
        groups: dict[Any, list[int]] = defaultdict(list)
        for key in list(self._waiting)[: max(0, room)]:
            request = self._waiting[key][0]
            alike = (request.adapter, request.sampling, request.constraint)
            # A seed makes a row repeatable only where no other row draws from it; and a constraint that cannot be
            # followed further ends the batch that it stands in.
            alone = request.constraint is not None or (request.sampling.temperature > 0)
            groups[(alike, key) if alone else alike].append(key)
        for keys in groups.values():
            first = self._waiting[keys[0]][0]
            lengths = [len(self._waiting[key][1]) for key in keys]
            for wide in batches(lengths, first.sampling.max_tokens, 1, tokens=tokens):
                self._batches.append(self._batch(first, [keys[i] for i in wide]))

    def _batch(self, like: GenerateRequest, keys: list[int]) -> _Batch:
        prompts = [self._waiting.pop(key)[1] for key in keys]
        members = [_Member(key, Row(i, len(prompts[i]))) for i, key in enumerate(keys)]
        rows = [member.row for member in members]
        engine = self._engine
        running = steps(
            engine.model, engine.tokenizer, prompts, rows, like.sampling, like.constraint, None, live=True
        )  # fmt: skip
        return _Batch(like, members, running)

    def _advance(self, batch: _Batch) -> list[Delta]:
        try:
            with self._engine.running(batch.request.adapter):
                ended = next(batch.steps, "ended") == "ended"
        except RungError as error:
            failed = [Delta(member.key, error=error) for member in batch.members]
            batch.members = []
            return failed
        deltas, going = [], []
        for member in batch.members:
            full = len(member.row.tokens) == batch.request.sampling.max_tokens
            over = ended or full or member.row.reason != "length"
            deltas.append(_delta(member, batch.request, ended=over))
            if not over:
                going.append(member)
        batch.members = going
        return deltas


def _delta(member: _Member, request: GenerateRequest, *, ended: bool) -> Delta:
    row, told = member.row, member.told
    member.told = len(row.tokens)
    return Delta(
        key=member.key,
        text=member.shown.more(row.text, request.sampling.stop, ended=ended),
        tokens=tuple(row.tokens[told:]),
        logprobs=tuple(row.logprobs[told:]),
        prompt_tokens=row.prompt_tokens,
        completion_tokens=len(row.tokens),
        reason=row.reason if ended else None,
    )
