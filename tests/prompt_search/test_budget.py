from rung.prompt_search.scorer import Meter, SearchLimits


def test_without_limits_nothing_is_left_to_count():
    assert Meter(SearchLimits()).left() is None


def test_calls():
    meter = Meter(SearchLimits(calls=10))
    assert meter.left() == 10
    meter.add(7, 700)
    assert meter.left() == 3
    meter.add(7, 700)
    assert meter.left() == 0


def test_the_scarcest_limit_decides_by_what_calls_have_cost():
    now = [0.0]
    meter = Meter(SearchLimits(calls=100, tokens=5000, seconds=10, money=0.01), (1.0, 2.0), clock=lambda: now[0])
    meter.add(10, 900, 100)  # 100 tokens and 0.00011 a call
    now[0] = 0.5  # 0.05 seconds a call
    assert meter.left() == 40  # tokens
    now[0] = 5.0
    assert meter.left() == 10  # seconds
    meter.add(10, 4000, 500)
    assert meter.left() == 0


def test_money():
    meter = Meter(SearchLimits(money=1.0), (1.0, 3.0))
    meter.add(2, 100_000, 100_000)
    assert meter.money == 0.4
    assert meter.left() == 3
    assert meter.as_dict()["money"] == 0.4
