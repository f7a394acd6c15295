import threading
from datetime import UTC, datetime

import pytest

from rung.engines.api_transport import ApiBudget, ApiOptions, Attempt, Retry, completed, max_prompt_tokens, retry_after
from rung.errors import EngineError
from rung.models.messages import encode_messages
from rung.models.reference import resolve
from rung.models.tokenizer import Tokenizer

NOON = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "Thu, 01 Jan 2026 12:00:20 GMT"}, 20.0),
        ({"retry-after": "Thu, 01 Jan 2026 11:00:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
    ],
)
def test_how_long_a_server_asks_to_wait(headers, seconds):
    assert retry_after(headers, NOON) == seconds


def test_nothing_is_sent_again_when_nobody_waits():
    stopped, sent = threading.Event(), []

    def attempt():
        sent.append(1)
        stopped.set()
        raise Attempt(EngineError("endpoint-failed", "no"))

    with pytest.raises(EngineError):
        Retry(5, scale=0).run(attempt, stopped)
    assert len(sent) == 1


def test_a_consumer_that_goes_away_stops_the_work():
    begun, stops, go_on = [], [], threading.Event()

    def work(index, stopped):
        begun.append(index)
        if index:
            stops.append(stopped)
            go_on.wait(5)
        return index

    results = completed(100, work, concurrency=2)
    assert next(results) == (0, 0)
    results.close()
    assert stops
    assert stops[0].is_set()
    go_on.set()
    assert len(begun) <= 4


def test_the_first_failure_comes_after_what_was_in_flight():
    both = threading.Barrier(2)

    def work(index, stopped):
        both.wait(5)
        if index == 0:
            raise ValueError("zero")
        return index

    made = []
    with pytest.raises(ValueError, match="zero"):
        made.extend(completed(2, work, concurrency=2))
    assert made == [(1, 1)]


def test_a_request_waits_for_those_in_flight_before_the_budget_counts_as_spent():
    budget = ApiBudget(ApiOptions(price_output=1e6, budget=100.0))
    first = budget.reserve(0, 80)
    admitted = threading.Event()

    def second():
        budget.settle(budget.reserve(0, 50), (0, 50))
        admitted.set()

    threading.Thread(target=second, daemon=True).start()
    assert not admitted.wait(0.05)
    budget.settle(first, (0, 40))
    assert admitted.wait(5)
    assert budget.spent.money == 90
    with pytest.raises(EngineError, match="90 of the budget of 100"):
        budget.reserve(0, 11)


def test_the_bound_on_tokens_holds_for_the_embedded_model():
    tokenizer = Tokenizer.load(resolve("embedded").folder)
    for text in ("", "a b c", "\x00\x01 ﷽ 𓂀 é", "naïve " * 50):
        prompt = ({"role": "user", "content": text},)
        assert len(encode_messages(tokenizer, prompt)) <= max_prompt_tokens(prompt)
