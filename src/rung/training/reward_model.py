"""Reward models: a low-rank update and a vector that scores an answer by its last hidden state, learned from pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from rung.engines.apart import runs_apart
from rung.engines.changes import REWARD_HEAD
from rung.engines.torch_engine import end_size
from rung.evaluation.statistics import wilson
from rung.training.changes import Change, read_into, write_tensors
from rung.training.examples import Completions
from rung.training.loop import has_dropout
from rung.training.loss import inputs, pack, packed_layers
from rung.training.preferences import AT_ONCE, JudgedLoss, Pair


class RewardHead(Change):
    """A change of the weights together with the vector of a reward model.

    The vector starts at random, as small as that of Stiennon et al. 2020 (https://arxiv.org/abs/2009.01325, appendix
    B.1), and stays outside of the model: engines read it from its own file.
    """

    def __init__(self, model: Any, inner: Change) -> None:
        self.inner, self.prefix, self.family = inner, inner.prefix, inner.family
        size = end_size(model)
        start = torch.randn(size) / math.sqrt(size + 1)
        self.head = torch.nn.Parameter(start.to(model.device), requires_grad=False)

    def enable(self) -> None:
        """Switch the inner change on."""
        self.inner.enable()

    def disable(self) -> None:
        """Switch the inner change off."""
        self.inner.disable()

    def remove(self) -> None:
        """Take the inner change off the model."""
        self.inner.remove()

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Those of the inner change, and the vector."""
        return {**self.inner.parameters(), "head": self.head}

    def lean(self) -> AbstractContextManager[None]:
        """The lean form of the inner change."""
        return self.inner.lean()

    def penalty(self) -> torch.Tensor | None:
        """That of the inner change."""
        return self.inner.penalty()

    def stepped(self, step: int, steps: int) -> None:
        """Tell the inner change."""
        self.inner.stepped(step, steps)

    def state(self) -> dict[str, torch.Tensor]:
        """That of the inner change."""
        return self.inner.state()

    def set_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restore that of the inner change."""
        self.inner.set_state(state)

    def write(self, folder: Path, fingerprint: str) -> None:
        """Write the inner change, and the vector beside it."""
        self.inner.write(folder, fingerprint)
        write_tensors({"head": self.head}, folder / REWARD_HEAD)

    def read(self, folder: Path) -> None:
        """Read the inner change; the vector only where there is one, as training may start from other weights."""
        self.inner.read(folder)
        if (folder / REWARD_HEAD).is_file():
            read_into({"head": self.head}, folder / REWARD_HEAD)


def answer_scores(model: Any, head: torch.Tensor, part: Sequence[Completions]) -> torch.Tensor:
    """Score every completion after its last token, in the order of the rows, with gradients.

    A prompt runs once for all its completions, unless the model drops activations at random, or its rows run apart.
    """
    longest = max(len(row.prompt) + len(each) for row in part for each in row.completions)
    apart, share = runs_apart(model, longest), not has_dropout(model)
    # One token more: the last token of a completion is never read, as nothing follows it.
    rows = [Completions(row.prompt, tuple((*each, each[-1]) for each in row.completions), row.source) for row in part]
    if apart or not share:
        rows = [Completions(row.prompt, (each,), row.source) for row in rows for each in row.completions]
    scores = []
    for group in ([row] for row in rows) if apart else [rows]:
        packed = pack(group, model.device, share_prefix=share)
        states = model.get_decoder()(**inputs(model, packed)).last_hidden_state[0]
        ends = torch.tensor([len(each) for row in group for each in row.completions], device=states.device).cumsum(0)
        scores.append(states[packed.supervised[ends - 1]].float() @ head)
    return torch.cat(scores)


@dataclass
class BradleyTerryLoss(JudgedLoss):
    """-log sigmoid(s_w - s_l - margin) + center (s_w + s_l)^2, where s scores the better and the worse answer.

    The first term is the likelihood of Bradley & Terry 1952, as in Stiennon et al. 2020
    (https://arxiv.org/abs/2009.01325); the second keeps scores around 0 (Eisenstein et al. 2023,
    https://arxiv.org/abs/2312.09244).
    """

    head: torch.Tensor = field(kw_only=True)
    margin: float = 0.0
    center: float = 0.0

    def __call__(self, part: Sequence[Pair]) -> torch.Tensor:
        """Compute the loss of some pairs."""
        better, worse = answer_scores(self.model, self.head, part).view(-1, 2).unbind(1)
        self.means.add(accuracy=(better > worse).float(), margin=better - worse, score=(better + worse) / 2)
        return (-logsigmoid(better - worse - self.margin) + self.center * (better + worse) ** 2).sum()

    def _told_apart(self, rows: Sequence[Pair]) -> dict[str, Any]:
        right = 0
        with packed_layers(self.model), torch.no_grad():
            for first in range(0, len(rows), AT_ONCE):
                better, worse = (
                    answer_scores(self.model, self.head, rows[first : first + AT_ONCE]).view(-1, 2).unbind(1)
                )
                right += int((better > worse).sum())
        low, high = wilson(right, len(rows))
        longer = sum(len(row.completions[0]) > len(row.completions[1]) for row in rows)
        return {
            "pairs": len(rows),
            "accuracy": right / len(rows),
            "low": low,
            "high": high,
            "longer": longer / len(rows),
        }
