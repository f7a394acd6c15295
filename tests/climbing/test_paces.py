"""What an arm is expected to take follows what was measured of the same model, and of nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rung.climbing.paces import Paces
from rung.machine import this_machine
from rung.rungs.base import Cost
from rung.rungs.costs import forward_cost


def test_estimates_are_corrected_by_arms_of_the_same_model_only():
    model, encoder, none = (Cost(0, 0.0, 2.0, 100, flops, 0.1, 0) for flops in (2.7e10, 4.4e9, 0.0))
    none = replace(none, row_tokens=0)
    paces = Paces(speedup=4.0)
    paces.model = model
    assert [paces.row_seconds("x", each) for each in (model, encoder, none)] == [0.025, 0.1, 0.1]
    paces.rows["zero-shot"] = (model, 6.0)
    assert paces.row_seconds("few-shot", replace(model, row_tokens=200, row_flops=5.4e10)) == pytest.approx(6.0)
    assert [paces.row_seconds("x", each) for each in (encoder, none)] == [0.1, 0.1]
    assert [paces.fit_seconds(each, trains=False) for each in (encoder, none)] == [2.0, 2.0]
    assert paces.fit_seconds(model, trains=False) == pytest.approx(120.0)


def test_what_takes_far_longer_than_all_before_is_not_slower_than_they_were():
    """Of far more work, what does not grow with it is a smaller share."""
    row = Cost(0, 0.0, 0.0, 100, 2.7e10, 0.1, 0)
    fit, less = replace(row, fit_seconds=20.0), replace(row, row_seconds=0.001)
    for real, expected in ((6.0, 20.0), (0.01, 2.0)):
        paces = Paces()
        paces.rows["zero-shot"] = (row, real)
        assert paces.fit_seconds(fit, trains=False) == pytest.approx(expected)
        assert paces.row_seconds("short", less) == pytest.approx(0.001)


def test_a_model_that_writes_to_its_limit_does_not_make_others_look_slow():
    """Written tokens take four times as long as read ones; zero-shot wrote 80 where 20 were expected."""
    machine, slower = this_machine(), 3.0
    zero, shown = (forward_cost(10**8, read + 20, machine, fit_rows=0, written=20) for read in (100, 500))
    a_token = machine.inference_seconds(2 * 10**8)
    assert shown.row_seconds == pytest.approx((500 + 4 * 20) * a_token)
    paces = Paces()
    paces.rows["zero-shot"], paces.written["zero-shot"] = (zero, slower * (100 + 4 * 80) * a_token), 80.0
    assert paces.row_seconds("zero-shot", zero) == pytest.approx(slower * 420 * a_token)
    assert paces.row_seconds("few-shot", shown) == pytest.approx(slower * shown.row_seconds)
