"""Learning from rewards: answers are sampled with the weights as they are, scored, and made likelier or less likely.

One update per batch: the answers come from the very weights that are trained, so the ratio of both probabilities is 1
and nothing is clipped.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from rung.data.rows import Example
from rung.engines.api import ApiEngine
from rung.engines.base import GenerateRequest, Generation, Sampling
from rung.engines.torch_engine import TorchEngine
from rung.errors import EngineError
from rung.training.changes import Change
from rung.training.config import AdvantageName
from rung.training.examples import Completions
from rung.training.loss import StepLoss, packed_layers
from rung.training.preferences import AT_ONCE, sequence_logprobs, token_logprobs

Reward = Callable[[Sequence[Example], Sequence[str]], Sequence[float]]  # of each answer; NaN if it cannot be scored
STD = 1e-4  # added to standard deviations, as in the papers
MEASURED = 4  # groups of a step on which the divergence is measured where it is no part of the loss
EARLY = 0.1  # share of the steps that are compared with as many of the last ones
FARTHEST = math.log(3.0)  # that a served answer's log-probability may be from ours, for an answer to be learned from
SHRUNK, GROWN = 0.5, 2.0  # of distinct answers, and of lengths, from which the report warns


@dataclass(frozen=True, slots=True)
class Question(Completions):
    """A row to sample answers to; its completion is the expected answer, which is not trained on."""

    example: Example = field(kw_only=True)
    room: int = field(kw_only=True)  # tokens that all of its sampled answers may take

    @property
    def content(self) -> list[Any]:
        """What identifies the row: the prompt, and what its answers are compared with."""
        return [self.prompt, self.example.outputs]

    def __len__(self) -> int:
        return len(self.prompt) + self.room


@dataclass(frozen=True, slots=True)
class Group(Completions):
    """The sampled answers to one prompt."""

    weights: tuple[float, ...] = ()  # of each answer's likelihood in the loss
    shares: tuple[float, ...] = ()  # of each answer's tokens in the mean divergence
    reference: tuple[tuple[float, ...], ...] = ()  # log p_ref of their tokens, where the divergence is measured


def advantages(rewards: Sequence[float], kind: AdvantageName) -> list[float]:
    """How much better each answer of a group is than the others; 0 for those that cannot be scored (NaN).

    rloo: the reward less the mean of the others (Ahmadian et al. 2024, https://arxiv.org/abs/2402.14740). grpo, dapo:
    less the mean, in standard deviations (Shao et al. 2024, https://arxiv.org/abs/2402.03300; Yu et al. 2025,
    https://arxiv.org/abs/2503.14476). dr_grpo: less the mean (Liu et al. 2025, https://arxiv.org/abs/2503.20783).
    """
    scored = [reward for reward in rewards if not math.isnan(reward)]
    n = len(scored)
    if n < 2:
        return [0.0] * len(rewards)
    mean = sum(scored) / n
    scale = 1.0
    if kind == "rloo":
        scale = n / (n - 1)
    elif kind in ("grpo", "dapo"):
        scale = 1 / (math.sqrt(sum((reward - mean) ** 2 for reward in scored) / (n - 1)) + STD)
    return [0.0 if math.isnan(reward) else scale * (reward - mean) for reward in rewards]


def grouped(
    questions: Sequence[Completions], answers: Sequence[Sequence[tuple[int, ...]]], rewards: Sequence[Sequence[float]],
    kind: AdvantageName, longest: int, *, keep_equal: bool,
) -> tuple[list[Group], int]:  # fmt: skip
    """Make the groups to train on, and count those that are left out as all of their answers are equally good.

    The sum of a step's losses is divided by the number of its groups. So the weights bring the mean over all answers
    that were scored, those of groups that are left out included: leaving them out changes no gradient. grpo divides an
    answer's loss by its length, dapo by the mean length, dr_grpo by the `longest` length allowed, rloo not at all.
    """
    scored = [[not math.isnan(reward) for reward in group] for group in rewards]
    count = sum(map(sum, scored))
    tokens = sum(len(a) for group, ok in zip(answers, scored, strict=True) for a, y in zip(group, ok, strict=True) if y)
    groups = []
    for question, group, of_group, ok in zip(questions, answers, rewards, scored, strict=True):
        gains = advantages(of_group, kind)
        if not keep_equal and not any(gains):
            continue
        per = [_length(kind, len(answer), longest, tokens / max(1, count)) for answer in group]
        shares = tuple(y / (count * length) for length, y in zip(per, ok, strict=True))
        weights = tuple(gain * share for gain, share in zip(gains, shares, strict=True))
        groups.append(Group(question.prompt, tuple(group), question.source, weights, shares))
    kept = len(groups)
    groups = [
        Group(g.prompt, g.completions, g.source, tuple(kept * w for w in g.weights), tuple(kept * s for s in g.shares))
        for g in groups
    ]
    return groups, len(questions) - kept


def _length(kind: AdvantageName, own: int, longest: int, mean: float) -> float:
    """What the loss of an answer of `own` tokens is divided by."""
    return {"rloo": 1.0, "grpo": own, "dr_grpo": longest, "dapo": mean}[kind]


# ---- answers from a vLLM server; tested against a server that records what it is asked, not run on hardware


@dataclass(frozen=True, slots=True)
class ServedRollouts:
    """Answers sampled by a server, which gets the adapter as it is before each step, under a new name.

    A server that loads other weights under a known name goes on with that adapter's cached prefixes. `load_adapter`
    names an adapter by its content, so every step has a name of its own; the name before it is unloaded.
    """

    server: ApiEngine
    change: Change
    fingerprint: str  # of the base model

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation]:
        """Complete every request with the change as it is.

        Raises:
            EngineError: `adapter-unsupported`, `endpoint-...`; `scoring-unsupported`: it gives no tokens.
        """
        with tempfile.TemporaryDirectory(prefix="rung-rollout-") as folder:
            self.change.write(Path(folder), self.fingerprint)
            try:
                done = self.server.generate([replace(request, adapter=folder) for request in requests])
            finally:
                self.server.unload_adapter(folder)
        if any(len(each.tokens) != len(each.logprobs) for each in done):
            problem = f"{self.server.endpoint.base_url} gave answers without their tokens"
            hint = "`rollout_model` needs vLLM 0.10.2 or later (`return_token_ids`)"
            raise EngineError("scoring-unsupported", problem, hint=hint)
        return done


@dataclass
class RewardLoss(StepLoss):
    """The policy gradient of sampled answers, with a divergence from the reference.

    Attributes:
        engine: runs the weights as trained so far, under the name `live`.
        change: what is trained; as it is when the loss is made, it is the reference.
        rewards: score answers, by name.
        weights: of the rewards, by name; the reward of an answer is their weighted mean.
        unseen: further measures of answers, by name: they are reported, and nothing is trained on them.
        advantage: how rewards become gradients.
        size: answers to each question.
        sampling: how they are sampled.
        beta: weight of the divergence (k3: Schulman 2020), per token; at 0 it is measured on some groups of a step.
        seed: of the samples of all steps.
        served: samples the answers in place of `engine`.
    """

    engine: TorchEngine
    change: Change
    live: str
    rewards: Mapping[str, Reward]
    weights: Mapping[str, float]
    unseen: Mapping[str, Reward]
    advantage: AdvantageName
    size: int
    sampling: Sampling
    beta: float
    seed: int
    served: ServedRollouts | None = None

    def __post_init__(self) -> None:
        self._start = {name: p.detach().clone() for name, p in self.change.parameters().items()}
        self._measures: dict[str, float] = {}
        self._parts: dict[str, float] = {}
        self._divergence: list[float] = []

    def reward(self, asked: Sequence[Example], texts: Sequence[str]) -> list[float]:
        """The reward of every answer; NaN where a part of it cannot be told."""
        parts = {name: list(reward(asked, texts)) for name, reward in self.rewards.items()}
        if len(parts) > 1:
            self._parts = {name: _mean(values) for name, values in parts.items()}
        total = sum(self.weights.values())
        return [
            sum(self.weights[name] * value for name, value in zip(parts, values, strict=True)) / total
            for values in zip(*parts.values(), strict=True)
        ]

    def begin(self, rows: Sequence[Question], step: int) -> Sequence[Group]:
        """Sample answers, score them and make the groups of the step."""
        sampling = Sampling(self.sampling.max_tokens, self.sampling.temperature, seed=self.seed * 1_000_003 + step)
        requests = [
            GenerateRequest(row.prompt, sampling, None, self.live, logprobs=True)
            for row in rows
            for _ in range(self.size)
        ]
        done = (self.served or self.engine).generate(requests)
        asked = [row.example for row in rows for _ in range(self.size)]
        texts = [each.text.strip() for each in done]
        # An answer that was cut is a wrong one: it lacks its end.
        rewards = [
            value if each.finish_reason == "stop" else 0.0
            for value, each in zip(self.reward(asked, texts), done, strict=True)
        ]
        strange = self._strange(rows, done) if self.served is not None else set[int]()
        rewards = [math.nan if i in strange else value for i, value in enumerate(rewards)]
        self._measure(rewards, done, texts, asked)
        if self.served is not None:
            self._measures["off_policy"] = len(strange) / len(done)
        groups, equal = grouped(
            rows, [[each.tokens for each in part] for part in self._by_row(done)], self._by_row(rewards),
            self.advantage, sampling.max_tokens, keep_equal=self.beta > 0,
        )  # fmt: skip
        self._measures["equal_groups"] = equal / len(rows)
        return self._with_reference(groups)

    def _strange(self, rows: Sequence[Question], done: Sequence[Generation]) -> set[int]:
        """The numbers of answers that the server samples from clearly other probabilities than ours."""
        answers = self._by_row([each.tokens for each in done])
        asked = [Completions(row.prompt, tuple(part), row.source) for row, part in zip(rows, answers, strict=True)]
        self.change.enable()
        own = [value for values in sequence_logprobs(self.engine.model, asked) for value in values]
        pairs = zip(own, done, strict=True)
        return {i for i, (value, each) in enumerate(pairs) if abs(value - sum(each.logprobs)) > FARTHEST}

    def _by_row(self, values: Sequence[Any]) -> list[Sequence[Any]]:
        return [values[i : i + self.size] for i in range(0, len(values), self.size)]

    def _measure(
        self, rewards: Sequence[float], done: Sequence[Generation], texts: Sequence[str], asked: Sequence[Example]
    ) -> None:
        scored = [reward for reward in rewards if not math.isnan(reward)]
        logprobs = [value for each in done for value in each.logprobs]
        self._measures = {
            "reward": _mean(rewards), "unscorable": 1 - len(scored) / len(rewards),
            "finished": sum(each.finish_reason == "stop" for each in done) / len(done),
            "length": sum(each.completion_tokens for each in done) / len(done),
            "distinct": sum(len(set(part)) for part in self._by_row(texts)) / len(texts),
            "entropy": -sum(logprobs) / max(1, len(logprobs)),
        }  # fmt: skip
        self._measures |= {f"reward {name}": value for name, value in self._parts.items()}
        self._measures |= {name: _mean(measure(asked, texts)) for name, measure in self.unseen.items()}

    @contextmanager
    def _as_it_was(self) -> Iterator[None]:
        """Let the change be what it was before training."""
        parameters = self.change.parameters()
        now = {name: p.detach().clone() for name, p in parameters.items()}
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(self._start[name])
            self.change.enable()
            self.change.stepped(0, 0)  # where the model runs on rounded copies
            try:
                yield
            finally:
                for name, p in parameters.items():
                    p.copy_(now[name])
                self.change.stepped(0, 0)

    def _with_reference(self, groups: Sequence[Group]) -> list[Group]:
        made, count = [], len(groups) if self.beta else MEASURED
        model = self.engine.model
        with self._as_it_was(), packed_layers(model), torch.no_grad():
            for first in range(0, len(groups[:count]), AT_ONCE):
                part = groups[first : min(first + AT_ONCE, count)]
                values = iter(token_logprobs(model, part))
                for group in part:
                    reference = tuple(tuple(next(values).tolist()) for _ in group.completions)
                    made.append(replace(group, reference=reference))
        return [*made, *groups[count:]]

    def __call__(self, part: Sequence[Group]) -> torch.Tensor:
        """Compute the loss of some groups."""
        logprobs = token_logprobs(self.engine.model, part)
        weights = [
            (w, s, r)
            for g in part
            for w, s, r in zip(g.weights, g.shares, g.reference or [None] * len(g.weights), strict=True)
        ]
        total = logprobs[0].sum() * 0
        for own, (weight, share, reference) in zip(logprobs, weights, strict=True):
            ratio = own.sum() - own.sum().detach() if self.advantage == "rloo" else own - own.detach()
            total = total - weight * torch.exp(ratio).sum()
            if reference is not None:
                behind = torch.tensor(reference, device=own.device) - own
                divergence = torch.exp(behind) - behind - 1
                self._divergence.append(float(divergence.detach().sum()))
                total = total + self.beta * share * divergence.sum()
        return total

    def measured(self) -> dict[str, float]:
        """The rewards and what else was measured of the step's answers."""
        divergence, self._divergence = self._divergence, []
        return {**self._measures, "divergence": sum(divergence) / max(1, len(divergence))}

    def outcome(self, measures: Sequence[dict[str, float]]) -> dict[str, Any]:
        """How the measures moved from the first steps to the last, and what looks like a reward that is gamed."""
        count = max(1, round(EARLY * len(measures)))
        if len(measures) < 2 * count:
            return {}
        first, last = (
            {name: sum(each[name] for each in part) / count for name in part[0]}
            for part in (measures[:count], measures[-count:])
        )
        return {"rewards": {"first": first, "last": last, "warnings": warnings(first, last, tuple(self.unseen))}}


def _mean(values: Sequence[float]) -> float:
    """The mean of those that can be told."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / max(1, len(known))


def warnings(first: dict[str, float], last: dict[str, float], unseen: Sequence[str]) -> list[str]:
    """Say what is suspicious about a run whose measures, of which some are `unseen`, went from `first` to `last`."""
    found = []
    gained = last["reward"] > first["reward"]
    found += [
        f"the reward rose while `{name}`, on which nothing is trained, fell"
        for name in unseen
        if gained and last[name] < first[name]
    ]
    if last["distinct"] < SHRUNK * first["distinct"]:
        found.append("answers to a question became alike: there is little left to learn from")
    if last["length"] > GROWN * first["length"]:
        found.append("answers became much longer")
    return found
