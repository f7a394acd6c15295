"""Losses on preferences: pairs of a better and a worse answer (DPO, ORPO, SimPO), and single judged answers (KTO).

Below, p is the probability of an answer given its prompt, the token that ends it included; r = log p - log p_ref, where
the reference is the artifact as it was before training; d is the r of the better answer minus that of the worse one.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from rung.engines.apart import runs_apart
from rung.evaluation.statistics import wilson
from rung.models.files import write_atomically
from rung.training.changes import Change, enabled
from rung.training.config import PairLossName
from rung.training.examples import Completions
from rung.training.loop import has_dropout
from rung.training.loss import StepLoss, pack, packed_layers, token_losses
from rung.training.precision import MatmulDtype, matmul_precision

TOKENS, AT_ONCE = 2048, 8  # tokens and rows that run at once without gradients
BALANCED = (
    1.0,
    4 / 3,
)  # of KTO's weighted answers, the good ones by the bad ones (Ethayarajh et al. 2024, section 4.3)


# ---- rows


@dataclass(frozen=True, slots=True)
class Pair(Completions):
    """A better and a worse answer to one prompt, in this order."""

    reference: tuple[float, ...] = ()  # log p_ref of both


@dataclass(frozen=True, slots=True)
class AnswerVerdict(Completions):
    """One answer that is good or bad, followed by the answer to another prompt, from which KTO estimates z."""

    good: bool = True
    reference: tuple[float, ...] = ()
    z: float = 0.0


def judged_answers(rows: Sequence[Completions], good: Sequence[bool]) -> list[AnswerVerdict]:
    """Make the rows of KTO from single answers; each also gets the answer to the next other prompt, as a mismatch."""
    made = []
    for i, (row, verdict) in enumerate(zip(rows, good, strict=True)):
        following = (rows[(i + k) % len(rows)] for k in range(1, len(rows)))
        other = next((each for each in following if each.prompt != row.prompt), row)
        completions = (*row.completions, *other.completions)
        made.append(AnswerVerdict(row.prompt, completions, row.source, verdict))
    return made


# ---- log-probabilities


def token_logprobs(model: Any, part: Sequence[Completions]) -> list[torch.Tensor]:
    """The log-probabilities of every completion's tokens, one tensor per completion, with gradients.

    A prompt runs once for all its completions, unless the model drops activations at random, or its rows run apart.
    """
    longest = max((len(row.prompt) + len(each) for row in part for each in row.completions), default=0)
    apart, share = runs_apart(model, longest), not has_dropout(model)
    if apart or not share:
        part = [Completions(row.prompt, (each,), row.source) for row in part for each in row.completions]
    if apart:
        return [-token_losses(model, pack([row], model.device)) for row in part]
    losses = token_losses(model, pack(part, model.device, share_prefix=share))
    return list((-losses).split([len(each) for row in part for each in row.completions]))


@torch.no_grad()  # type: ignore[untyped-decorator]
def sequence_logprobs(model: Any, rows: Sequence[Completions]) -> list[tuple[float, ...]]:
    """The summed log-probabilities of every row's completions, without gradients."""
    training = model.training
    model.eval()
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    found: dict[int, tuple[float, ...]] = {}
    with packed_layers(model):
        while order:
            batch = [order.pop()]
            tokens = len(rows[batch[0]])
            while order and (tokens := tokens + len(rows[order[-1]])) <= TOKENS:
                batch.append(order.pop())
            values = iter(token_logprobs(model, [rows[i] for i in batch]))
            for i in batch:
                found[i] = tuple(float(next(values).sum()) for _ in rows[i].completions)
    model.train(training)
    return [found[i] for i in range(len(rows))]


def reference_logprobs(
    model: Any, change: Change, rows: Sequence[Completions], file: Path, dtype: MatmulDtype
) -> list[tuple[float, ...]]:
    """The log-probabilities under the weights as they are before training, from `file` if they were computed before.

    The name of the file has to identify the weights and the rows.
    """
    if file.is_file():
        return [tuple(values) for values in json.loads(file.read_text("utf-8"))]
    with ExitStack() as stack:
        for context in (enabled(change), change.lean(), matmul_precision(dtype)):
            stack.enter_context(context)
        values: list[tuple[float, ...]] = sequence_logprobs(model, rows)
    write_atomically(file, json.dumps(values))
    return values


# ---- losses of pairs


@dataclass(frozen=True, slots=True)
class PairScores:
    """What a loss of pairs reads, each of shape [pairs, 2], the better answer first."""

    logprobs: torch.Tensor  # of the answers, summed over their tokens
    lengths: torch.Tensor  # in tokens
    reference: torch.Tensor  # the log-probabilities under the reference

    @property
    def means(self) -> torch.Tensor:
        """The mean log-probability of a token."""
        return self.logprobs / self.lengths


Objective = Callable[[PairScores], torch.Tensor]  # the loss of every pair, shape [pairs]


def dpo(kind: PairLossName, beta: float, label_smoothing: float) -> Objective:
    """Direct preference optimization (Rafailov et al. 2023, https://arxiv.org/abs/2305.18290, equation 7) and variants.

    ipo: (d - 1 / 2 beta)^2 on means over tokens (Azar et al. 2023, https://arxiv.org/abs/2310.12036, equation 17; the
    means are the authors' correction). hinge: Zhao et al. 2023, https://arxiv.org/abs/2305.10425. cdpo: cross-entropy
    with a share `label_smoothing` of wrong pairs (Mitchell 2023). robust: the same, unbiased (Chowdhury et al. 2024,
    https://arxiv.org/abs/2403.00409). sigmoid_norm: DPO on means over tokens (Lambert et al. 2024,
    https://arxiv.org/abs/2411.15124, equation 6).
    """

    def loss(scores: PairScores) -> torch.Tensor:
        ratios = scores.logprobs - scores.reference
        if kind in ("ipo", "sigmoid_norm"):
            ratios = ratios / scores.lengths
        d = ratios[:, 0] - ratios[:, 1]
        if kind == "ipo":
            return (d - 1 / (2 * beta)) ** 2
        if kind == "hinge":
            return torch.relu(1 - beta * d)
        right, wrong, e = -logsigmoid(beta * d), -logsigmoid(-beta * d), label_smoothing
        if kind == "cdpo":
            return (1 - e) * right + e * wrong
        if kind == "robust":
            return ((1 - e) * right - e * wrong) / (1 - 2 * e)
        return right

    return loss


def orpo(beta: float) -> Objective:
    """The odds ratio of both answers (Hong et al. 2024, https://arxiv.org/abs/2403.07691, equations 6 and 7).

    The likelihood of the better answer, which the paper adds, is `PairLoss.nll`.
    """

    def loss(scores: PairScores) -> torch.Tensor:
        means = scores.means.clamp(max=-1e-7)  # a certain answer has infinite odds
        odds = means - torch.log(-torch.expm1(means))
        return -beta * logsigmoid(odds[:, 0] - odds[:, 1])

    return loss


def simpo(beta: float, gamma_beta_ratio: float) -> Objective:
    """The margin of mean log-probabilities (Meng et al. 2024, https://arxiv.org/abs/2405.14734, equation 6)."""

    def loss(scores: PairScores) -> torch.Tensor:
        return -logsigmoid(beta * (scores.means[:, 0] - scores.means[:, 1] - gamma_beta_ratio))

    return loss


class _Means:
    """Means of what is measured for every row."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = defaultdict(list)

    def add(self, **values: torch.Tensor) -> None:
        """Add values of some rows, by name."""
        for name, value in values.items():
            self._values[name] += value.detach().float().flatten().tolist()

    def take(self) -> dict[str, float]:
        """Give the means, and begin anew."""
        means = {name: sum(values) / len(values) for name, values in self._values.items() if values}
        self._values.clear()
        return means


@dataclass
class JudgedLoss(StepLoss):
    """A loss on judged answers, with the rows on which it is measured besides.

    Attributes:
        model: the model, with the change that is trained switched on.
        held_out: rows that are not trained on, and decide when training stops.
        unseen: rows that decide nothing; where there are none, `held_out` shows how well answers are told apart.
    """

    model: Any
    held_out: Sequence[Any] = ()
    unseen: Sequence[Any] = ()
    means: _Means = field(default_factory=_Means, init=False)

    def measured(self) -> dict[str, float]:
        """Means over the rows of the step."""
        return self.means.take()

    def value(self) -> float:
        """The negative mean loss of the held-out rows: larger is better."""
        rows, total = self.begin(self.held_out, 0), 0.0
        with packed_layers(self.model):
            for first in range(0, len(rows), AT_ONCE):
                total += float(self(rows[first : first + AT_ONCE]))
        self.means.take()
        return -total / len(rows)

    def outcome(self, measures: Sequence[dict[str, float]]) -> dict[str, Any]:
        """How many of the unseen or held-out answers are in order, before training and after it."""
        del measures
        rows = self.unseen or self.held_out
        if not rows:
            return {}
        on = "unseen" if self.unseen else "held out"
        return {"answers_told_apart": {"rows": on, **self._told_apart(rows)}}

    @abstractmethod
    def _told_apart(self, rows: Sequence[Any]) -> dict[str, Any]:
        """Count the rows whose answers are in order."""


@dataclass
class PairLoss(JudgedLoss):
    """The summed loss of pairs: the objective, and `nll` times the better answer's negative mean log-probability.

    The last keeps the better answer likely. Without it DPO lowers both answers where they differ by few tokens, as
    corrections do (Pal et al. 2024, https://arxiv.org/abs/2402.13228); the sum is that of Pang et al. 2024
    (https://arxiv.org/abs/2404.19733, equation 1).
    """

    objective: Objective = field(kw_only=True)
    nll: float = 0.0

    def __call__(self, part: Sequence[Pair]) -> torch.Tensor:
        """Compute the loss of some pairs."""
        logprobs = torch.stack([each.sum() for each in token_logprobs(self.model, part)]).view(-1, 2)
        device = logprobs.device
        lengths = torch.tensor([[len(each) for each in row.completions] for row in part], device=device)
        reference = torch.tensor([row.reference for row in part], device=device)
        scores = PairScores(logprobs, lengths, reference)
        change = logprobs - reference
        self.means.add(
            accuracy=(change[:, 0] > change[:, 1]).float(), margin=change[:, 0] - change[:, 1],
            chosen_change=change[:, 0], rejected_change=change[:, 1],
        )  # fmt: skip
        return (self.objective(scores) - self.nll * scores.means[:, 0]).sum()

    def _told_apart(self, rows: Sequence[Pair]) -> dict[str, Any]:
        before, after = [row.reference for row in rows], sequence_logprobs(self.model, rows)

        def ordered(values: Sequence[Sequence[float]]) -> int:
            lengths = [[len(each) for each in row.completions] for row in rows]
            return sum(v[0] / n[0] > v[1] / n[1] for v, n in zip(values, lengths, strict=True))

        moved = [(new[0] - old[0], new[1] - old[1]) for old, new in zip(before, after, strict=True)]
        right = sum(chosen > rejected for chosen, rejected in moved)
        low, high = wilson(right, len(rows))
        return {
            "pairs": len(rows), "accuracy": right / len(rows), "low": low, "high": high,
            "likelier_before": ordered(before) / len(rows), "likelier_after": ordered(after) / len(rows),
            "chosen_change": sum(chosen for chosen, _ in moved) / len(moved),
        }  # fmt: skip


# ---- KTO


@dataclass
class AnswerVerdictLoss(JudgedLoss):
    """KTO: the loss of good and bad answers (Ethayarajh et al. 2024, https://arxiv.org/abs/2402.01306, equation 8).

    z is the mean r of answers to other prompts, at least 0: an estimate of the divergence from the reference. It is
    computed once for the whole batch of a step, so it does not depend on how the batch is cut; no gradient passes it.
    """

    beta: float = field(kw_only=True)
    good_weight: float = field(kw_only=True)
    bad_weight: float = field(kw_only=True)

    def begin(self, rows: Sequence[AnswerVerdict], step: int) -> Sequence[AnswerVerdict]:
        """Estimate z with the weights as they are."""
        del step
        mismatched = [Completions(row.prompt, row.completions[1:], row.source) for row in rows]
        ratios = [
            now - row.reference[1] for row, (now,) in zip(rows, sequence_logprobs(self.model, mismatched), strict=True)
        ]
        z = max(0.0, sum(ratios) / len(ratios))
        return [replace(row, z=z) for row in rows]

    def __call__(self, part: Sequence[AnswerVerdict]) -> torch.Tensor:
        """Compute the loss of some answers."""
        logprobs = torch.stack([each.sum() for each in token_logprobs(self.model, _answers(part))])
        device = logprobs.device
        ratio = logprobs - torch.tensor([row.reference[0] for row in part], device=device)
        sign = torch.tensor([1.0 if row.good else -1.0 for row in part], device=device)
        weight = torch.tensor([self.good_weight if row.good else self.bad_weight for row in part], device=device)
        z = torch.tensor([row.z for row in part], device=device)
        self.means.add(z=z, good_change=ratio[sign > 0], bad_change=ratio[sign < 0])
        return (weight * (1 - torch.sigmoid(self.beta * sign * (ratio - z)))).sum()

    def _told_apart(self, rows: Sequence[AnswerVerdict]) -> dict[str, Any]:
        after = sequence_logprobs(self.model, _answers(rows))
        moved = [now - row.reference[0] for row, (now,) in zip(rows, after, strict=True)]
        right = sum((change > 0) == row.good for row, change in zip(rows, moved, strict=True))
        low, high = wilson(right, len(rows))
        return {"answers": len(rows), "accuracy": right / len(rows), "low": low, "high": high}


def _answers(rows: Sequence[AnswerVerdict]) -> list[Completions]:
    return [Completions(row.prompt, row.completions[:1], row.source) for row in rows]


def balancing_weights(good: int, bad: int) -> tuple[float, float]:
    """The weights of good and bad answers with which the weighted counts are in proportion (see `BALANCED`)."""
    if not good or not bad:
        return 1.0, 1.0
    low, high = BALANCED
    share = good / bad
    return (low / share, 1.0) if share < low else (1.0, share / high) if share > high else (1.0, 1.0)
