"""What the pages compute: quantiles, differences, progress of a climb, sessions."""

import os

import pytest
from prometheus_client import CollectorRegistry

from rung.climbing.store import watch_lines
from rung.errors import ConfigError
from rung.serving import access as sessions
from rung.serving.access import COOKIE, KeyRing, Sessions, create_key, revoke_key
from rung.serving.metrics import KEPT, SECONDS, History, MetricsSample, quantile, rates
from rung.serving.web.general import polyline
from rung.serving.web.review import MAX_WORDS, ReviewQuery, differences
from rung.serving.web.runs import ArtifactProgress, progress_of, report_of, run_folder, run_folders, seconds_spent
from rung.yamlfile import sealed


def cumulative(**counts):
    """Cumulative counts at every bound, from counts by the bound's place."""
    found, total = [], 0
    for place in range(len(SECONDS) + 1):
        total += counts.get(f"b{place}", 0)
        found.append(total)
    return found


def test_quantiles_are_linear_within_a_bucket():
    buckets = cumulative(b1=10, b3=10)  # ten up to 10 ms, ten between 25 and 50 ms
    assert quantile(buckets, 0.25) == pytest.approx(0.0075)
    assert quantile(buckets, 0.5) == pytest.approx(0.01)
    assert quantile(buckets, 0.75) == pytest.approx(0.0375)
    assert quantile(cumulative(b14=3), 0.5) == 120  # beyond the last bound
    assert quantile(cumulative(), 0.5) is None


def test_rates_and_lines():
    samples = [MetricsSample(float(at), 0, 0, tokens, 0, ()) for at, tokens in ((0, 0), (2, 10), (4, 10))]
    assert rates(samples, "tokens") == [5, 0]
    assert polyline([0, 5], KEPT - 1, 60, 5) == f"{KEPT - 2:.1f},60.0 {KEPT - 1:.1f},0.0"
    assert polyline([0], 300, 60, 0) == "300.0,60.0"


def test_a_history_ends_when_it_is_closed():
    history = History(CollectorRegistry(), every=0.01)
    history.start()
    history.close()
    assert not history._thread.is_alive()
    assert {(one.queue, one.tokens) for one in history.look()} == {(0, 0)}


@pytest.mark.parametrize(
    ("actual", "expected", "pieces"),
    [
        ("age_limit", "card_arrival", [("gone", "age_limit"), ("new", "card_arrival")]),
        ("a big dog", "a small dog", [("same", "a "), ("gone", "big"), ("new", "small"), ("same", " dog")]),
        ("one, two", "three, four", [("gone", "one, two"), ("new", "three, four")]),
        ("yes", "yes!", [("same", "yes"), ("new", "!")]),
        ("same", "same", [("same", "same")]),
        ("", "new", [("new", "new")]),
        ("", "", []),
    ],
)
def test_differences(actual, expected, pieces):
    assert differences(actual, expected) == pieces


def test_differences_hold_both_texts_whatever_they_are():
    for actual, expected in (
        ("a  b\n\tc, d\r\n", "a b\nd,\u2028c"),
        ("x " * MAX_WORDS, "y x " * MAX_WORDS),
        ("\x00", "é e\u0301"),
    ):
        pieces = differences(actual, expected)
        assert "".join(text for kind, text in pieces if kind != "new") == actual
        assert "".join(text for kind, text in pieces if kind != "gone") == expected


# ---- run folders


@pytest.fixture
def climbing(tmp_path):
    folder = tmp_path / "letters"
    (folder / "rungs" / "zero-shot").mkdir(parents=True)
    (folder / "climb.json").write_text(sealed({"task": "mail", "rungs": ["lora", "dora"]}))
    lines = [{"event": "skipped", "name": "dora", "reason": "no time"}, {"event": "spent", "seconds": 2.5},
             {"event": "spent", "seconds": 1.5}]  # fmt: skip
    (folder / "journal.jsonl").write_text("".join(sealed(line) + "\n" for line in lines) + '{"event": "fit')
    rows = [{"split": "validation", "score": 1.0}, {"split": "validation", "score": 0.5}, {"split": "test", "score": 0}]
    (folder / "rungs" / "zero-shot" / "predictions.jsonl").write_text("".join(sealed(r) + "\n" for r in rows))
    return folder


def test_a_climb_is_watched_without_a_change(climbing):
    before = (climbing / "journal.jsonl").read_bytes()
    run = run_folder(climbing.parent, "letters")
    assert (run.task, run.state, run.improvement) == ("mail", "climbing", False)
    assert progress_of(run) == [
        ArtifactProgress("zero-shot", "measured", {"validation": 2, "test": 1}, 0.75, ""),
        ArtifactProgress("dora", "skipped", {"validation": 0, "test": 0}, None, "no time"),
        ArtifactProgress("lora", "to come", {"validation": 0, "test": 0}, None, ""),
    ]
    assert seconds_spent(run) == 4
    assert (climbing / "journal.jsonl").read_bytes() == before
    assert watch_lines(climbing / "none.jsonl") == []


def test_a_climb_that_nothing_was_written_of_for_long_has_stopped(climbing):
    for file in climbing.rglob("*.json*"):
        os.utime(file, (1, 1))
    assert run_folder(climbing.parent, "letters").state == "stopped"
    assert run_folder(climbing.parent, "../letters") is None
    assert run_folders(climbing / "nowhere") == []


def test_a_damaged_report_is_said(climbing):
    (climbing / "report.json").write_text('{"rungs": [')
    with pytest.raises(ConfigError, match=r"report\.json is not JSON") as caught:
        report_of(run_folder(climbing.parent, "letters"))
    assert caught.value.code == "unreadable-file"


# ---- sessions, addresses


def test_a_session_lasts_until_its_key_its_time_or_it_ends(tmp_path, monkeypatch):
    file = tmp_path / "keys.jsonl"
    secret, key = create_key(file, "Ann")
    known = Sessions(KeyRing(file))
    assert known.sign_in("rung-wrong") is None
    cookies = [f"{COOKIE}={known.sign_in(secret)}" for _ in range(3)]
    assert [known.key(one).id for one in cookies] == [key.id] * 3
    assert known.key("") is None
    assert known.key(f"{COOKIE}=guess") is None
    known.sign_out(cookies[0])
    assert known.key(cookies[0]) is None
    assert known.is_form_token(cookies[1], known.form_token(cookies[1]))
    assert not known.is_form_token(cookies[2], known.form_token(cookies[1]))
    assert not known.is_form_token(cookies[1], "é")
    now = sessions.time.monotonic()
    monkeypatch.setattr(sessions.time, "monotonic", lambda: now + 3600 * sessions.HOURS + 1)
    assert known.key(cookies[1]) is None
    monkeypatch.undo()
    assert known.key(cookies[1]) == key
    revoke_key(file, key.id)
    assert known.key(cookies[1]) is None


def test_an_address_says_only_what_is_not_usual():
    assert ReviewQuery().query() == ""
    assert ReviewQuery(text="a&b", start=50).query(view="all") == "?view=all&text=a%26b&start=50"
    assert ReviewQuery(view="all", start=50).query(view="queue", start=0) == ""
