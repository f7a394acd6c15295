"""Trials: the error rate under peeking, the power, the pairing, the stop."""

import random

import pytest

from rung.failures.trial import Decision, Trial, arm_of


def run(p_a, p_b, seed, most=400, binary=False):
    draw, trial = random.Random(seed), Trial(most=most, binary=binary)
    while True:
        found = trial.add_pair(float(draw.random() < p_a), float(draw.random() < p_b))
        if found.stop:
            return found


@pytest.mark.parametrize("binary", [False, True])
def test_equally_good_artifacts_are_seldom_told_apart_though_every_row_is_looked_at(binary):
    states = [run(0.7, 0.7, seed, 100, binary).state for seed in range(120)]
    assert sum(state != "none" for state in states) <= 0.05 * 120 + 3 * (120 * 0.05 * 0.95) ** 0.5


@pytest.mark.parametrize("binary", [False, True])
def test_a_clear_difference_is_found_in_both_directions_and_early(binary):
    better = [run(0.5, 0.8, seed, binary=binary) for seed in range(20)]
    worse = [run(0.8, 0.5, seed, binary=binary) for seed in range(20)]
    assert [d.state for d in better].count("b") >= 18
    assert [d.state for d in worse].count("a") >= 18
    assert max(d.n for d in better if d.state == "b") < 400
    assert all(d.p <= 0.05 for d in better if d.state == "b")


def test_a_decided_trial_stays_decided():
    trial = Trial()
    while not trial.add_pair(0.0, 1.0).stop:
        pass
    decided = trial.decision()
    assert (decided.state, decided.delta, decided.fixed, decided.broken) == ("b", 1.0, decided.n, 0)
    for _ in range(50):
        assert trial.add_pair(1.0, 0.0) == decided


def test_single_answers_are_paired_in_order_and_the_rows_run_out():
    trial = Trial(most=2)
    assert trial.decision() == Decision("open", 0, 0.0, 0, 0, 1.0)
    for arm, score in (("a", 1.0), ("a", 0.0), ("a", 0.5)):
        assert trial.add(arm, score).n == 0
    assert trial.add("b", 0.25).delta == -0.75
    found = trial.add("b", 1.0)
    assert (found.state, found.n, found.delta, found.fixed, found.broken) == ("none", 2, 0.125, 1, 1)
    assert found.stop
    for a, b in ((2.0, 0.0), (float("nan"), 0.0)):
        with pytest.raises(ValueError, match="scores must lie"):
            trial.add_pair(a, b)
    with pytest.raises(ValueError, match="binary"):
        Trial(binary=True).add_pair(0.5, 1.0)
    with pytest.raises(ValueError, match="alpha"):
        Trial(alpha=1.0)


def test_requests_keep_their_arm_and_another_trial_draws_anew():
    arms = [arm_of(f"r{i}", share=0.2) for i in range(2000)]
    assert arms == [arm_of(f"r{i}", share=0.2) for i in range(2000)]
    assert 0.16 < arms.count("b") / 2000 < 0.24
    assert arms != [arm_of(f"r{i}", share=0.2, salt="next") for i in range(2000)]
