"""Prices of predictions against arithmetic by hand, and what an endpoint really bills."""

from dataclasses import dataclass, replace

import pytest

from rung.data.sections import MachineSpec, Needs
from rung.data.spec import DataSource, Output
from rung.engines.api_options import ApiOptions
from rung.evaluation.prices import Prices, order_of_cheaper, price_per_row, token_money
from rung.evaluation.result import Prediction
from rung.machine import this_machine
from rung.task import Task

REMOTE, LOCAL_SERVER = "https://models.example/v1#big", "http://localhost:8080/v1#small"


@dataclass(frozen=True)
class Decoding:
    uses_llm: bool = True


@dataclass(frozen=True)
class Composed:
    model: str
    decoder: Decoding = Decoding()


def task(**more):
    output, data = Output(kind="category", column="label"), DataSource(train="none.csv")
    return Task(name="t", instruction="i", inputs=["text"], output=output, data=data, **more)


def row(money=0.0, seconds=0.0, prompt=100, completion=10):
    return Prediction(
        "1", "rows.csv:2", "test", {"text": "a"}, "", ("a",), "a", 1.0, None, prompt, seconds,
        completion_tokens=completion, money=money,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def no_prices(monkeypatch):
    for name in ("INPUT", "OUTPUT", "CACHED"):
        monkeypatch.delenv(f"RUNG_API_PRICE_{name}", raising=False)


def test_an_endpoint_bills_input_output_and_cached_tokens(monkeypatch):
    monkeypatch.setenv("RUNG_API_PRICE_INPUT", "2")
    monkeypatch.setenv("RUNG_API_PRICE_OUTPUT", "8")
    assert token_money(Composed(REMOTE), 1000, 100, 600) == pytest.approx((1000 * 2 + 100 * 8) / 1e6)
    monkeypatch.setenv("RUNG_API_PRICE_CACHED", "0.5")
    assert token_money(Composed(REMOTE), 1000, 100, 600) == pytest.approx((400 * 2 + 600 * 0.5 + 100 * 8) / 1e6)
    assert token_money(Composed("embedded"), 1000, 100, 0) == 0
    assert token_money(Composed(REMOTE, Decoding(uses_llm=False)), 1000, 100, 0) == 0
    prices = Prices.of(task())
    assert (prices.input, prices.output, prices.cached) == (2, 8, 0.5)


def test_an_endpoint_without_prices_has_an_unknown_price_and_a_server_on_this_machine_costs_its_time():
    assert token_money(Composed(REMOTE), 1000, 100, 0) is None
    assert price_per_row([row(money=None)], Composed(REMOTE), task()) is None
    assert not Prices.of(task()).known([REMOTE])
    priced = task(machine=MachineSpec(price_per_hour=3.6))
    assert token_money(Composed(LOCAL_SERVER), 1000, 100, 0) == 0
    assert price_per_row([row(seconds=0.5), row(seconds=1.5)], Composed(LOCAL_SERVER), priced) == pytest.approx(0.001)


def test_the_price_of_a_row_has_its_share_of_training():
    priced = task(machine=MachineSpec(price_per_hour=3.6), needs=Needs(rows_per_day=10))
    rows = [row(seconds=2.0)]
    price = price_per_row(rows, Composed("embedded"), priced, fit_seconds=1000, fit_money=0.5)
    assert price == pytest.approx(2 * 0.001 + (1000 * 0.001 + 0.5) / 900)
    # waiting for an endpoint does not keep this machine from other work
    assert price_per_row([row(money=0.01, seconds=9)], Composed(REMOTE), priced) == pytest.approx(0.01)


def test_defaults_are_stated():
    prices = Prices.of(task())
    assert prices.machine_hour == pytest.approx(0.05 * this_machine().cores)
    assert not prices.machine_given
    assert prices.predictions == 90_000


def test_cheaper_is_by_price_and_by_operations_among_prices_that_agree_in_two_digits():
    priced = task(machine=MachineSpec(price_per_hour=3.6))

    def order(seconds, operations):
        return order_of_cheaper([row(seconds=seconds)], Composed("embedded"), priced, operations)

    assert order(0.156, 4.7e10) < order(0.540, 4.4e10)  # measured time, not operations
    assert order(0.2001, 1e9) < order(0.1999, 2e9)
    assert order(0.20, 1e14) < order(0.21, 1e3)
    free = task(machine=MachineSpec(price_per_hour=0.0))
    assert 0 < order_of_cheaper([row(seconds=1)], Composed("embedded"), free, 10) < order(1e-6, 10)
    unknown = [replace(row(money=None), prompt_tokens=each) for each in (100, 1000)]
    cheap, dear = (order_of_cheaper([one], Composed(REMOTE), priced, 0) for one in unknown)
    assert cheap < dear


def test_a_price_has_to_be_a_number_from_0():
    assert ApiOptions(price_input=1, price_cached=0).price(10, 0, 10) == 0
    with pytest.raises(Exception, match="price_cached"):
        ApiOptions(price_cached=-1.0)
