import math
from dataclasses import replace

import pytest
import torch
from toys import llama

from rung.training.examples import Completions
from rung.training.preferences import sequence_logprobs, token_logprobs
from rung.training.rewards import RewardLoss, advantages, grouped, warnings

REWARDS = [1.0, 0.0, 0.5, 0.0]
KINDS = ("rloo", "grpo", "dr_grpo", "dapo")


def test_advantages_are_the_papers():
    others = [(sum(REWARDS) - reward) / 3 for reward in REWARDS]
    assert advantages(REWARDS, "rloo") == pytest.approx([a - b for a, b in zip(REWARDS, others, strict=True)])
    centred = torch.tensor(REWARDS) - torch.tensor(REWARDS).mean()
    assert advantages(REWARDS, "dr_grpo") == pytest.approx(centred.tolist())
    for kind in ("grpo", "dapo"):
        assert advantages(REWARDS, kind) == pytest.approx((centred / (torch.tensor(REWARDS).std() + 1e-4)).tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_that_cannot_be_scored_leaves_the_group(kind):
    found = advantages([*REWARDS[:2], math.nan, *REWARDS[2:]], kind)
    assert found[2] == 0.0
    assert [*found[:2], *found[3:]] == pytest.approx(advantages(REWARDS, kind))
    assert advantages([1.0, math.nan], kind) == [0.0, 0.0]


QUESTIONS = [Completions((5, 6), (), "a"), Completions((7, 8, 9), (), "b"), Completions((5, 7), (), "c")]
ANSWERS = [[(10, 11, 2), (12, 2), (13, 14, 15, 2), (16, 2)], [(17, 2)] * 4, [(18, 2), (19, 20, 2), (21, 2), (22, 2)]]
OF_GROUPS = [REWARDS, [1.0] * 4, [0.0, 1.0, math.nan, 0.0]]


def loss_of(model, groups, kind):
    loss = RewardLoss.__new__(RewardLoss)
    loss.engine = type("Engine", (), {"model": model})()
    loss.advantage, loss.beta, loss._divergence = kind, 0.0, []
    none = [tuple((0.0,) * len(each) for each in group.completions) for group in groups]
    return loss([replace(group, reference=r) for group, r in zip(groups, none, strict=True)]) / len(groups)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_the_mean_over_all_answers(kind):
    """Also over those of a group that is left out, as all of its answers are equally good; nan counts nowhere."""
    model = llama(initializer_range=0.3).requires_grad_(True)
    groups, equal = grouped(QUESTIONS, ANSWERS, OF_GROUPS, kind, 6, keep_equal=False)
    assert (len(groups), equal) == (2, 1)
    model.zero_grad()
    loss_of(model, groups, kind).backward()
    ours = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    count, tokens, total = 11, 26, 0.0  # 3 + 2 + 4 + 2, 4 * 2, 2 + 3 + 2
    for question, answers, rewards in zip(QUESTIONS, ANSWERS, OF_GROUPS, strict=True):
        own = token_logprobs(model, [Completions(question.prompt, tuple(answers), "")])
        for logprobs, answer, gain in zip(own, answers, advantages(rewards, kind), strict=True):
            length = {"rloo": 1, "grpo": len(answer), "dr_grpo": 6, "dapo": tokens / count}[kind]
            total = total - gain * logprobs.sum() / length / count
    total.backward()
    wanted = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(ours, wanted, atol=1e-6, rtol=1e-4)


def test_a_rewarded_answer_becomes_likelier():
    model = llama(initializer_range=0.3).requires_grad_(True)
    answers = ((10, 11), (12, 13))
    row = Completions((5, 6), answers, "")
    (before,) = sequence_logprobs(model, [row])
    groups, _ = grouped([Completions((5, 6), (), "a")], [list(answers)], [[1.0, 0.0]], "rloo", 2, keep_equal=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loss_of(model, groups, "rloo").backward()
    optimizer.step()
    (after,) = sequence_logprobs(model, [row])
    assert after[0] > before[0]
    assert after[1] < before[1]


def test_a_gamed_reward_is_told():
    first = {"reward": 0.2, "exact": 0.5, "distinct": 0.9, "length": 10.0}
    assert warnings(first, first | {"reward": 0.6, "exact": 0.7}, ["exact"]) == []
    told = warnings(first, {"reward": 0.6, "exact": 0.4, "distinct": 0.2, "length": 30.0}, ["exact"])
    assert len(told) == 3
    assert "`exact`" in told[0]
