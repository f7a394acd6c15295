"""What a climb tries, in which order, when it stops, and what it says; scores and times are planted."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from planted import Planted, examples
from rung.climbing import arms as arms_module
from rung.climbing import choice
from rung.climbing import run as run_module
from rung.climbing.budget import Budget, Limits
from rung.climbing.store import RunStore
from rung.errors import ArtifactError
from rung.evaluation.report import words
from rung.evaluation.report.html import write_html
from rung.evaluation.result import YARDSTICK

HEAD = Planted("head", 0.8, row=0.001, takes=1.0)
WEAK = Planted("weak", 0.25, row=0.001, takes=0.5)


class Yard(Planted):
    family = YARDSTICK


class Quick(Planted):
    refits = True


def by_name(climbed):
    return {rung.name: rung for rung in climbed.result.rungs}


# ---- order, races


def test_what_takes_seconds_is_measured_before_zero_shot_which_answers_few_rows(stage):
    play = stage(HEAD, WEAK, Planted("prompt", 0.4, row=0.5, takes=2.0))
    done = play.climb()
    chosen = [entry["name"] for entry in RunStore(done.folder).all_noted("chosen")]
    assert set(chosen[:2]) == {"head", "weak"}
    assert chosen[2] == "zero-shot"
    assert len(play.rows("zero-shot", "validation")) <= 24
    assert len(play.rows("zero-shot", "test")) <= 64
    assert len(play.rows("head", "test")) == 200  # its rows take no time, so its score is known well
    assert done.result.recommended == "head"
    c = next(c for c in done.result.comparisons if c.b == "head")
    assert c.low > 0
    assert re.match(r"Use head: \+\d+\.\d points \[\+\d.*\] over zero-shot on \d+ test rows, ", done.result.decision)
    assert "times cheaper" in done.result.decision


def test_yardsticks_are_measured_though_the_start_took_long_and_nothing_is_expected_of_them(stage, monkeypatch):
    """What others are held against costs next to nothing, so neither a late start nor a perfect leader stops it."""
    monkeypatch.setattr(choice, "CHEAP_SHARE", -1.0)  # as if indexing had taken it
    play = stage(Yard("yard", 0.1, row=0.0001, takes=0.5), Yard("long", 0.1, row=0.01, takes=2.95), zero=0.999)
    done = play.climb(30.0)
    chosen = [entry["name"] for entry in RunStore(done.folder).all_noted("chosen")]
    assert chosen[:2] == ["yard", "zero-shot"]  # "long" takes more than a sliver of what is left
    assert by_name(done)["yard"].score is not None


def test_where_the_budget_ends_the_rows_their_whole_is_tested(stage):
    """Bets keep a part for rows that do not come: 11 of them did not prove a gain of more than 50 points."""
    play = stage(
        Planted("head", 0.95, row=0.001, takes=1.0), Planted("minutes", 0.95, row=0.5, takes=100.0), zero=0.3,
        zero_row=20.0,
    )  # fmt: skip
    done = play.climb(480.0, rungs=("head", "minutes"))
    answered = len(play.rows("zero-shot", "test"))
    assert answered < 16
    assert f"confirmed on {answered} of {len(play.rows('head', 'test'))} test rows" in done.result.notes[0]
    assert done.result.recommended == "head"
    assert "better" in {c.outcome for c in done.result.comparisons if c.b == "head"}
    assert RunStore(done.folder).noted("confirmed", ended=True) is not None


def test_slow_rows_are_answered_eight_together(stage, monkeypatch):
    """One by one, each took up to nine times as long; the first two alone tell how slow they are."""
    play, sizes = stage(HEAD, zero_row=6.0), list[int]()
    plain = play.evaluate

    def counted(artifact: Any, rows: Any, *more: Any, **options: Any) -> Any:
        sizes.extend([len(rows)] if artifact.name == "zero-shot" else [])
        return plain(artifact, rows, *more, **options)

    monkeypatch.setattr(arms_module, "evaluate", counted)
    play.climb(900.0, rungs=("head",))
    assert sizes[:2] == [2, 6]  # until the first look
    assert max(sizes) == 8


def test_what_a_metric_takes_counts_in_the_time_of_rows(stage, monkeypatch):
    """Verdicts of a judge, three seconds each, once ran on in batches: the answers alone took no time."""
    play = stage(HEAD, zero_row=0.001)
    plain = play.evaluate

    def judged(artifact: Any, rows: Any, *more: Any, **options: Any) -> Any:
        play.clock += 3.0 * len(rows)
        return plain(artifact, rows, *more, **options)

    monkeypatch.setattr(arms_module, "evaluate", judged)
    play.climb(20.0)
    assert play.clock <= 25


@pytest.mark.parametrize(("budget", "seconds"), [(None, 165.0), (60.0, 45.0), (480.0, 45.0), (900.0, 85.0)])
def test_a_base_goes_before_what_takes_longer_than_the_few_rows_that_it_can_afford(budget, seconds):
    """Without its rows nothing is proven; an arm of two minutes once went first, as eight of its rows took longer."""
    state: Any = SimpleNamespace(
        budget=SimpleNamespace(limits=Limits(budget, None)), search=range(240), row_seconds=lambda arm: 20.0,
        opening=lambda artifact: 5.0, some=lambda arm: None,
    )  # fmt: skip
    assert choice.first_look(state, ["zero-shot"]) == seconds


def test_a_download_is_not_part_of_the_budget(stage, monkeypatch):
    """A machine needs it once, so the first climb measures as much as the second."""
    play = stage(replace(HEAD, encoder="embedded-encoder"))

    def download(name: str, **_: Any) -> None:
        assert name == "embedded-encoder"
        play.clock += 100

    monkeypatch.setattr(run_module, "is_exported", lambda *_: False)
    monkeypatch.setattr(run_module, "open_encoder", download)
    done = play.climb(60.0)
    assert done.result.recommended == "head"
    assert 100 < play.clock < 160


def test_what_is_made_in_seconds_learns_from_the_validation_rows_too_before_it_is_confirmed(stage):
    """Those rows chose it, so the test rows alone say how good it is; none of them is learnt from."""
    play = stage(Quick("quick", 0.8, row=0.001, takes=1.0), Planted("slow", 0.5, row=0.001, takes=2.0))
    done = play.climb()
    assert [rows for name, rows, _ in play.fitted if name == "quick"] == [200, 400]
    assert {rows for name, rows, _ in play.fitted if name == "slow"} == {200}
    validation, test = ({row.id for row in part} for part in (play.data.validation, play.data.test))
    learnt = set(done.recommended.settings["quick"]["rows"])
    assert done.result.recommended == "quick"
    assert validation <= learnt
    assert not test & learnt
    assert not (done.folder / "rungs" / "quick" / "folds").exists()
    assert "learnt from the validation rows too" in done.result.notes[0]


def test_what_is_not_made_twice_is_put_on_what_saw_no_validation_row(stage):
    """Its answers to the validation rows would else be looked up, not learnt."""
    play = stage(
        Quick("pool", 0.6, row=0.001, takes=1.0, opens=True), Planted("slow", 0.8, row=0.001, takes=2.0), zero=0.2
    )
    done = play.climb(rungs=("pool", "slow"))
    validation = {row.id for row in play.data.validation}
    settings = done.artifact("pool+slow").settings
    assert not validation & set(settings["pool"]["rows"])
    assert not validation & set(settings["slow"]["rows"])
    assert done.artifact("pool").settings == {"pool": settings["pool"]}  # it was not confirmed


def test_the_leader_is_proven_before_slow_arms_are_made(stage):
    play = stage(HEAD, Planted("slow", 0.7, row=0.5, takes=300.0))
    said = []
    progress = type(
        "Said", (), {"say": said.append, **dict.fromkeys(("board", "start", "advance", "finish"), lambda *a, **k: None)}
    )
    play.climb(progress=progress, rungs=("head", "slow"))
    assert any("head leads with" in text and "proven" in text for text in said)
    first = next(i for i, (name, split, _) in enumerate(play.answered) if (name, split) == ("zero-shot", "test"))
    assert not any(name == "slow" for name, _, _ in play.answered[:first])


def test_the_board_shows_where_the_arms_stand(stage):
    play = stage(HEAD, WEAK, Planted("slow", 0.7, row=0.5, takes=300.0))
    boards = []
    quiet = dict.fromkeys(("say", "start", "advance", "finish"), lambda *a, **k: None)
    progress = type("Shown", (), {"board": lambda lines, news="": boards.append((list(lines), news)), **quiet})
    play.climb(600.0, progress=progress)
    assert boards[4] == (
        [
            "climb: 3 s of 10 min",
            "  head                      87.5 %       8 of 200 rows  leads",
            "  zero-shot                  0.0 %       2 of 200 rows  answering",
            "  weak                      12.5 %       8 of 200 rows  left the race",
            "  to come: slow",
        ],
        "3 s of 10 min: zero-shot 0.0 % on 2 rows; head leads",
    )
    assert boards[-1] == ([], "")  # the results take its place


def test_the_board_tells_the_money_where_it_counts(monkeypatch):
    boards = []
    monkeypatch.setattr(Budget, "spent", lambda self: 65.0)
    for limits, money in ((Limits(None, 5.0), 0.001), (Limits(None, None), 0.001), (Limits(90.0, None), 1.234)):
        budget = Budget(SimpleNamespace(board=lambda lines, news="": boards.append((lines[0], news))), limits)
        budget.money = lambda money=money: money
        budget.board(["  head"], "head answers")
    assert boards == [
        ("climb: 1 min 05 s, cost 0.001 of 5", "1 min 05 s, cost 0.001 of 5: head answers"),
        ("climb: 1 min 05 s", "1 min 05 s: head answers"),
        ("climb: 1 min 05 s of 1 min 30 s, cost 1.23", "1 min 05 s of 1 min 30 s, cost 1.23: head answers"),
    ]


def test_the_first_look_decides_against_what_is_hopeless(stage):
    play = stage(HEAD, Planted("hopeless", 0.02, row=1.0, takes=10.0))
    done = play.climb(rungs=("head", "hopeless"))
    assert len(play.rows("hopeless", "validation")) <= 16
    assert by_name(done)["hopeless"].status == "beaten"
    assert by_name(done)["hopeless"].reason


def test_a_cheap_arm_that_is_nearly_as_good_stays_and_is_recommended(stage):
    play = stage(Planted("dear", 0.8, row=2.0, takes=5.0), Planted("cheap", 0.798, row=0.01, takes=5.0), rows=400)
    done = play.climb(rungs=("dear", "cheap"))
    assert done.result.recommended == "cheap"
    assert "points below the best in expectation" in done.result.decision or by_name(done)["dear"].status == "beaten"


def test_arms_are_put_on_several_good_bases_not_only_on_the_leader(stage):
    """A head leads, on which nothing can be put; the prompt is still a base."""
    play = stage(Planted("one", 0.5, row=0.01), Planted("two", 0.55, row=0.01))
    done = play.climb(rungs=("one", "two"))
    assert {"one", "two"} < set(by_name(done))
    assert {"one+two", "two+one"} & (set(by_name(done)) | set(done.result.unfinished))


def test_what_promises_little_for_its_time_is_put_off_and_named(stage):
    play = stage(HEAD, Planted("slow", 0.7, row=1.0, takes=4000.0))
    play.climb()
    done = play.climb(resume=True)
    slow = by_name(done)["slow"]
    assert slow.status == "skipped"
    assert slow.reason.startswith("put off: expected to take 1 h")
    assert "slow" in done.result.unfinished
    assert not [name for name, _, _ in play.fitted if name == "slow"]
    again = play.climb(resume=True, rungs=("slow",))  # asked for by name, in the same run folder
    assert again.folder == done.folder
    assert by_name(again)["slow"].score is not None
    assert by_name(again)["head"].score is not None


def test_what_opens_the_ramp_has_the_other_rungs_on_top_of_it(stage):
    play = stage(Planted("documents", 0.3, row=0.05, opens=True), Planted("tuned", 0.6, row=0.05, takes=20.0))
    done = play.climb(rungs=("documents", "tuned"))
    assert "documents+tuned" in set(by_name(done)) | set(done.result.unfinished)


def test_a_training_that_cannot_reach_the_leader_stops_after_a_quarter(stage):
    play = stage(HEAD, Planted("tuned", 0.3, row=0.2, takes=400.0, parts=((0.25, 0.05), (0.5, 0.2))))
    done = play.climb(rungs=("head", "tuned"))
    tuned = by_name(done)["tuned"]
    assert tuned.status == "stopped"
    assert tuned.reason.startswith("stopped after 25 % of its training: ")
    assert 8 <= tuned.n <= 32
    assert [share for name, _, share in play.fitted if name == "tuned"] == [0.25]
    assert play.climb(resume=True, rungs=("head", "tuned")).result.decision == done.result.decision


def test_a_training_that_may_reach_it_goes_on(stage):
    play = stage(HEAD, Planted("tuned", 0.95, row=0.2, takes=400.0, parts=((0.25, 0.6), (0.5, 0.8))))
    done = play.climb(rungs=("head", "tuned"))
    assert [share for name, _, share in play.fitted if name == "tuned"] == [0.25, 0.5, 1.0]
    assert done.result.recommended == "tuned"


# ---- the budget


@pytest.mark.parametrize("seconds", [3.0, 10.0, 30.0, 100.0, 400.0])
def test_a_climb_ends_within_its_budget(stage, seconds):
    play = stage(HEAD, WEAK, Planted("prompt", 0.5, row=1.5, takes=5.0), Planted("slow", 0.9, row=0.5, takes=200.0))
    done = play.climb(seconds)
    assert play.clock <= seconds + 2
    for name in done.result.unfinished:
        assert by_name(done)[name].score is None
    measured = [rung for rung in by_name(done).values() if rung.score is not None]
    if len(measured) <= 1:
        assert "no rung" not in done.result.decision
        assert "not tried for lack of budget" in done.result.decision


def test_dear_rows_of_zero_shot_leave_the_budget_to_the_rungs(stage):
    """One look before the rungs, and no time kept for its rows once it is beaten."""
    play = stage(WEAK, Planted("head", 0.9, row=0.01, takes=12.0), zero_row=6.0)
    done = play.climb(300.0)
    assert len(play.rows("zero-shot", "validation")) == 8
    assert done.result.recommended == "head"
    assert play.clock <= 302


def test_very_dear_rows_of_zero_shot_are_two_before_the_rungs(stage):
    """A tenth of the budget is what it may take before it is clear that it matters."""
    play = stage(HEAD, Planted("slow", 0.7, row=0.01, takes=60.0), zero_row=20.0)
    done = play.climb(500.0)
    assert len(play.rows("zero-shot", "validation")) == 2
    assert done.result.recommended == "head"
    assert by_name(done)["slow"].score is not None


def test_proving_a_leader_leaves_the_budget_to_what_is_better(stage):
    """A small gain needs many rows of zero-shot; what gains much needs few."""
    play = stage(Planted("little", 0.45, row=0.01, takes=1.0), Planted("much", 0.9, row=0.01, takes=40.0), zero_row=4.0)
    done = play.climb(300.0)
    assert done.result.recommended == "much"
    before = play.answered.index(next(each for each in play.answered if each[0] == "much"))
    assert 4.0 * sum(name == "zero-shot" and split == "test" for name, split, _ in play.answered[:before]) <= 0.15 * 300


def test_no_answer_of_a_dear_arm_lacks_its_pair_when_the_budget_ends(stage):
    play = stage(Planted("head", 0.9, row=0.01, takes=1.0), zero_row=3.0)
    done = play.climb(60.0)
    answered = len(play.rows("zero-shot", "test"))
    assert 0 < answered < 200
    assert len(play.rows("head", "test")) >= answered
    assert next(c for c in done.result.comparisons if c.b == "head").n == answered


def test_a_model_is_not_opened_where_no_time_is_left_for_it(stage):
    play = stage(HEAD, zero_row=0.1)
    done = play.climb(4.5)
    assert not play.rows("zero-shot", "validation")
    assert not play.rows("zero-shot", "test")
    assert "zero-shot" in done.result.unfinished


def test_a_fit_is_stopped_when_the_time_is_up_and_goes_on_with_more(stage):
    play = stage(Planted("slow", 0.9, row=0.01, takes=200.0), zero_row=0.1)
    play.rungs["slow"] = Planted("slow", 0.9, row=0.01, takes=200.0)
    estimate = Planted.estimate
    play.climb(1.0)
    try:
        Planted.estimate = lambda self, *a: estimate(Planted("x", takes=1.0), *a)  # far too optimistic
        done = play.climb(60.0, resume=True)
    finally:
        Planted.estimate = estimate
    assert play.clock <= 64
    slow = by_name(done)["slow"]
    assert (slow.status, slow.score) == ("skipped", None)
    assert slow.reason == "stopped after 40 s: it took longer than expected, and the budget was left to others"
    assert "ot tried for lack of budget: slow" in done.result.decision
    more = play.climb(1000.0, resume=True)
    assert more.folder == done.folder
    assert more.result.recommended == "slow"
    assert more.result.unfinished == ()


def test_without_a_row_nothing_is_claimed(stage):
    done = stage(HEAD, zero_row=50.0).climb(1.5)
    assert done.result.decision == "Nothing was measured: not tried for lack of budget: zero-shot, head."
    assert all(rung.score is None for rung in done.result.rungs)
    assert "Nothing was measured" in write_html(done.result, done.predictions, done.folder).read_text()
    assert not any("answered" in note or "confirmed" in note for note in done.result.notes)
    with pytest.raises(ArtifactError, match=r"recommends nothing: it did not measure zero-shot"):
        _ = done.recommended


def test_what_was_not_tried_is_one_line_with_time_and_gain(stage):
    rungs = [Planted(f"slow{i}", 0.9, row=0.5, takes=200.0 * (i + 1)) for i in range(3)]
    done = stage(HEAD, *rungs).climb(40.0)
    line, how = words.unfinished_notes(done.result)
    assert re.match(
        r"not tried yet, with the time and the gain to expect: slow0 \(\d min \d+ s, \+\d+\.\d points\), ", line
    )
    assert line.index("slow0") < line.index("slow1") < line.index("slow2")
    assert "--resume" in how
    assert words.left_out_lines(done.result) == []


# ---- resumed


def test_killed_anywhere_it_ends_like_one_that_was_not(stage, tmp_path):
    rungs = (
        HEAD,
        Planted("prompt", 0.5, row=0.1, takes=2.0),
        Planted("tuned", 0.7, row=0.05, takes=30.0, parts=((0.5, 0.6),)),
    )
    names = tuple(rung.name for rung in rungs)
    whole = stage(*rungs, rows=80).climb(rungs=names)
    expected = [(r.name, r.score, r.n, r.status) for r in whole.result.rungs]
    play = stage(*rungs, rows=80)
    play.folder = tmp_path / "killed"
    for stop in range(20, 400, 45):
        play.stop_after = stop
        try:
            play.climb(rungs=names, resume=True)
            break
        except KeyboardInterrupt:
            continue
    play.stop_after = None
    done = play.climb(rungs=names, resume=True)
    assert [(r.name, r.score, r.n, r.status) for r in done.result.rungs] == expected
    assert done.result.decision == whole.result.decision
    assert [folder.name for folder in play.folder.iterdir() if folder.is_dir()] == ["intents"]


def test_each_decision_on_the_same_rows_asks_for_more_evidence_and_a_resumed_one_is_the_same(stage):
    play = stage(HEAD, rows=40)
    results = [play.climb(rungs=("head",), resume=resume).result for resume in (False, False, True)]
    assert [result.level for result in results] == [0.05, 0.0125, 0.0125]
    assert "climb number" not in results[0].decision
    assert "These rows decide climb number 2, so p must be below 0.0125." in results[1].decision
    assert results[2].decision == results[1].decision
    assert "an interval leaves out 0 where p < 0.0125" in words.quality_notes(results[1])[0]
    other = replace(play.data, test=examples(40, "other"))
    play.data = other
    assert play.climb(rungs=("head",)).result.level == 0.05


def test_a_climb_that_fails_at_once_leaves_no_folder(stage):
    play = stage(HEAD)
    play.stop_after = 1
    with pytest.raises(KeyboardInterrupt):
        play.climb(rungs=())
    assert len(list(play.folder.iterdir())) <= 1
    broken = stage(HEAD)
    broken.folder = play.folder / "other"
    broken.rungs = {}
    with pytest.raises(KeyError):
        broken.climb(rungs=("missing",))
    assert not broken.folder.exists()


# ---- folds


def test_with_folds_every_row_is_answered_by_what_was_made_without_it(stage):
    play = stage(HEAD, Planted("tuned", 0.5, row=0.01, takes=5.0), rows=60, folds=True)
    done = play.climb(rungs=("head", "tuned"))
    result = done.result
    assert (result.recommended, result.rows) == ("head", "folds")
    assert by_name(done)["head"].n == 60
    fits = [rows for name, rows, _ in play.fitted if name == "head"]
    assert fits == [48] * 5 + [60]  # one for each fold, and the one that is served
    assert len(done.artifact("head").settings["head"]["rows"]) == 60
    assert not list(done.folder.glob("rungs/*/folds"))
    assert "60 rows (out of fold)" in result.decision
    assert result.notes[0].startswith("60 labelled rows are few")
    again = play.climb(rungs=("head", "tuned"), resume=True)
    assert again.result.decision == result.decision


@pytest.mark.parametrize("seconds", [4.0, 8.0, 16.0, 32.0, 64.0])
def test_with_folds_a_climb_ends_within_its_budget_with_an_artifact_or_a_word_why_not(stage, seconds):
    play = stage(HEAD, Planted("tuned", 0.9, row=0.01, takes=20.0), rows=60, folds=True)
    done = play.climb(seconds)
    assert play.clock <= seconds + 3
    made = by_name(done)[done.result.recommended].artifact is not None
    assert made or any("is not made from all rows yet" in note for note in done.result.notes)


def test_with_folds_what_reads_no_rows_is_made_once(stage):
    play = stage(Planted("prompt", 0.8, row=0.1, takes=1.0, reads=False), rows=60, folds=True)
    done = play.climb(rungs=("prompt",))
    assert [rows for name, rows, _ in play.fitted] == [60]
    assert done.result.recommended == "prompt"


def test_with_folds_and_a_test_file_the_file_confirms(stage):
    play = stage(HEAD, rows=60, folds=True, test=True)
    done = play.climb(rungs=("head",))
    assert (done.result.recommended, done.result.rows) == ("head", "test")
    assert len(play.rows("head", "test")) == 60
    assert play.rows("head", "folds")
    assert len(done.artifact("head").settings["head"]["rows"]) == 60


def test_small_files_are_decided(stage):
    """A gain of 50 points on 40 rows: the rule before could never tell."""
    done = stage(HEAD, rows=40, folds=True).climb(rungs=("head",))
    assert done.result.recommended == "head"
    c = next(c for c in done.result.comparisons if c.b == "head")
    assert c.p < 0.001 or c.n < 40


# ---- what is said


def test_stay_is_said_only_where_the_incumbent_is_as_good(stage):
    done = stage(WEAK, Planted("worse", 0.02, row=0.6, takes=1.0)).climb(rungs=("weak", "worse"))
    assert done.result.recommended == "zero-shot"
    assert done.result.decision.startswith(("Stay with zero-shot: it is as good as", "Cannot tell yet: "))
    worse = stage(Planted("worse", 0.02, row=0.6, takes=1.0), zero=0.6)
    worse.folder = worse.folder / "two"
    assert worse.climb(rungs=("worse",)).result.decision.startswith(
        "Stay with zero-shot: it is as good as the other one"
    )


def test_what_cannot_be_told_is_said_with_the_rows_that_would_tell(stage):
    done = stage(Planted("little", 0.33, row=0.5, takes=1.0), rows=60).climb(rungs=("little",))
    assert re.match(
        r"Cannot tell yet: the best so far is little, \+.* on 60 test rows, \d+ % likely better than zero-shot; "
        r"about \d+ more rows would tell\.",
        done.result.decision,
    )
    assert done.result.recommended == "zero-shot"


def test_limits_of_price_and_time_forbid_to_recommend_and_say_so(stage):
    play = stage(Planted("slow", 0.9, row=0.7, takes=1.0), Planted("fast", 0.7, row=0.01, takes=1.0))
    limits = play.task.constraints.model_copy(update={"max_latency": 0.6})
    play.task = play.task.model_copy(update={"constraints": limits})
    done = play.climb(rungs=("slow", "fast"))
    assert done.result.recommended == "fast"
    assert by_name(done)["slow"].score is not None


def test_a_rung_that_fails_is_named_and_costs_the_others_nothing(stage):
    done = stage(HEAD, Planted("broken", fails=True)).climb(rungs=("head", "broken"))
    broken = by_name(done)["broken"]
    assert (broken.status, broken.score) == ("failed", None)
    assert broken.reason.startswith("ValueError: planted; see ")
    assert done.result.recommended == "head"


def test_estimates_stand_beside_what_was_measured(stage):
    play = stage(Planted("first", 0.5, row=0.2, takes=2.0), Planted("second", 0.6, row=0.2, takes=2.0), zero_row=0.2)
    done = play.climb(rungs=("first", "second"))
    second = by_name(done)["second"]
    assert second.expected_row_seconds == pytest.approx(0.2, rel=1.0)
    assert second.seconds / second.n == pytest.approx(0.2)
    report = json.loads(json.dumps(done.result.summary()))
    assert report["decision"] == done.result.decision
