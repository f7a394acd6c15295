"""Trials beside what is served: started and stopped in the registry, judged from what was captured and corrected."""

from dataclasses import replace

import pytest

from rung.artifact.artifact import Artifact
from rung.artifact.files import fingerprint
from rung.errors import ArtifactError, ConfigError
from rung.evaluation.metrics.registry import METRICS
from rung.evaluation.statistics import Interval
from rung.feedback.records import ABTest, CaseFilter, Feedback
from rung.feedback.registry import Follower, Registry
from rung.feedback.store import FeedbackStore
from rung.feedback.trials import SequentialDecision, SequentialTest, TrialStanding, standing, start, stop

ACCURACY = METRICS["accuracy"]


@pytest.fixture
def registry(tmp_path):
    return Registry(tmp_path / "registry", "intents")


@pytest.fixture
def file_store(tmp_path):
    with FeedbackStore(tmp_path / "f.db") as opened:
        yield opened


def code_of(call, *arguments, **options):
    with pytest.raises((ConfigError, ArtifactError)) as raised:
        call(*arguments, **options)
    return raised.value.code


def test_started_once_against_what_is_served_and_stopped(registry, file_store, folders):
    assert registry.trial() is None
    assert code_of(start, registry, folders[1], mode="shadow") == "nothing-served"
    now = registry.promote(folders[0], file_store, evidence={}, reviewer="Ann")
    assert code_of(start, registry, folders[0], mode="shadow") == "already-served"
    assert code_of(stop, registry) == "no-trial"
    begun = start(registry, folders[1], mode="ab", share=0.25, max_pairs=50)
    assert begun == registry.trial()
    assert (begun.mode, begun.share, begun.most, begun.ended) == ("ab", 0.25, 50, None)
    assert (begun.artifact, begun.against) == (fingerprint(folders[1]), fingerprint(folders[0]))
    assert Artifact.load(registry.path(begun)).prompt.system == "two"
    assert begun.runs(now)
    assert code_of(start, registry, folders[2], mode="shadow") == "trial-running"
    ended = stop(registry)
    assert ended == registry.trial()
    assert not ended.runs(now)
    assert code_of(stop, registry) == "no-trial"
    assert start(registry, folders[2], mode="shadow", share=0.25).share == 1.0
    later = registry.promote(folders[1], file_store, evidence={}, reviewer="Ann")
    assert not registry.trial().runs(later)  # it was started against something else
    assert start(registry, folders[2], mode="shadow").against == fingerprint(folders[1])
    (registry.folder / "trial").write_text("[]")
    assert code_of(registry.trial) == "artifact-damaged"


def test_a_challenger_has_to_fit_what_is_served(registry, file_store, folders, zero, tmp_path):
    registry.promote(folders[0], file_store, evidence={}, reviewer="Ann")
    prompt = replace(zero.prompt, template="{subject}")
    other = replace(zero, signature=replace(zero.signature, inputs=("subject",)), prompt=prompt)
    assert code_of(start, registry, other.save(tmp_path / "columns"), mode="ab") == "trial-mismatch"
    other = replace(zero, signature=replace(zero.signature, task="other"))
    assert code_of(start, registry, other.save(tmp_path / "task"), mode="ab") == "promotion-refused"
    assert registry.trial() is None


def test_a_follower_begins_and_ends_trials_and_notes_challengers_that_are_refused(registry, file_store, folders):
    challenges = []

    def challenge(name, what):
        if what is not None and Artifact.load(what[0]).prompt.system == "three":
            raise ArtifactError("artifact-damaged", "refused")
        challenges.append((name, what and what[1]))

    follower = Follower(registry.folder.parent, lambda folder, name: None, challenge)
    registry.promote(folders[0], file_store, evidence={}, reviewer="Ann")
    follower.look_at_trial(registry)
    assert challenges == []
    begun = start(registry, folders[1], mode="shadow")
    for _ in range(2):
        follower.look_at_trial(registry)
    assert challenges == [("intents", begun)]
    stop(registry)
    for _ in range(2):
        follower.look_at_trial(registry)
    assert challenges == [("intents", begun), ("intents", None)]
    again = start(registry, folders[1], mode="shadow")
    follower.look_at_trial(registry)
    registry.promote(folders[1], file_store, evidence={}, reviewer="Ann")
    follower.look_at_trial(registry)
    assert challenges[2:] == [("intents", again), ("intents", None)]
    start(registry, folders[2], mode="shadow")
    follower.start().close()
    assert follower.errors == {"intents": "refused"}
    assert len(challenges) == 4


# ---- judging


@pytest.fixture
def trial(make):
    return ABTest("t" * 32, make(0).at, "intents", "shadow", 1.0, 100, "b", "artifacts/b", "a")


def shadowed(make, number, ours, theirs, trial):
    sent = make(number, artifact="a", actual=ours, trial=trial.token)
    behind = make(
        number, id=f"s{number}", artifact="b", actual=theirs, trial=trial.token, shadows=f"r{number}",
        inputs=dict(sent.inputs),
    )  # fmt: skip
    return [sent, behind]


def test_both_answers_of_a_shadow_are_held_against_what_was_expected(store, make, trial):
    rows = [("x", "y"), ("x", "y"), ("y", "y"), ("y", "x"), ("x", "x"), ("x", "y")]
    for number, (ours, theirs) in enumerate(rows):
        store.record(shadowed(make, number, ours, theirs, trial))
    store.record([make(90, actual="x"), make(91, artifact="a", trial=trial.token)])  # outside, and not answered again
    empty = TrialStanding(
        SequentialDecision("open", 0, 0.0, 0, 0, 1.0),
        Interval(-1.0, 1.0),
        {"a": 7, "b": 6},
        {"a": 0, "b": 0},
        both=6,
        differing=4,
    )
    assert standing(store, trial, ACCURACY) == empty
    store.add_feedback(Feedback("r2", thumb="up"))  # says nothing of the challenger
    for number in (3, 0, 1, 4):
        store.correct(f"r{number}", "y", "Ann")
    store.add_feedback(Feedback("r2", expected="y"))
    store.add_feedback(Feedback("r5", expected="y", source="artifact:c"))  # no user, no reviewer
    store.correct("r91", "y", "Ann")
    by_hand = SequentialTest(max_pairs=100, binary=True)
    # Three of the four rows that differ are judged, and stand for them all: two rows in six do not differ.
    for ours, theirs in ((1, 0), (0, 0), (0, 1), (0, 1)):
        by_hand.add_pair(ours, theirs)
    figures = standing(store, trial, ACCURACY)
    assert figures.judged == {"a": 5, "b": 5}
    assert (figures.decision.n, figures.decision.fixed, figures.decision.broken) == (4, 2, 1)
    assert figures.decision.delta == pytest.approx(0.25)
    assert figures.decision.p == by_hand.decision().p
    store.undo("r0", "Ann")
    store.correct("r1", "x", "Ann")
    decision = standing(store, trial, ACCURACY).decision
    assert (decision.n, decision.fixed, decision.broken) == (3, 0, 2)
    assert standing(store, replace(trial, most=3), ACCURACY).decision.state == "none"


def test_a_clear_winner_stops_the_trial(store, make, trial):
    for number in range(12):
        store.record(shadowed(make, number, "x", "y", trial))
        store.correct(f"r{number}", "y", "Ann")
    decision = standing(store, trial, ACCURACY).decision
    assert (decision.state, decision.stop) == ("b", True)
    assert (decision.delta, decision.fixed, decision.broken) == (1.0, decision.n, 0)
    assert decision.p <= 0.05


def test_answers_of_an_ab_trial_are_paired_by_what_users_and_reviewers_said(store, make, trial):
    trial = replace(trial, mode="ab", share=0.5)
    rows = [make(n, artifact="ab"[n % 2], actual="y", trial=trial.token) for n in range(8)]
    store.record([*rows, make(8, artifact="b")])
    store.add_feedback(Feedback("r0", comment="no score"))
    store.add_feedback(Feedback("r0", thumb="down"))
    store.add_feedback(Feedback("r0", thumb="up"))  # the first one counts
    store.add_feedback(Feedback("r1", score=0.75))
    store.add_feedback(Feedback("r2", thumb="down"))
    store.correct("r2", "y", "Ann")  # a reviewer says otherwise
    store.add_feedback(Feedback("r3", thumb="down", source="check"))
    store.add_feedback(Feedback("r5", expected="x"))
    store.add_feedback(Feedback("r8", thumb="up"))  # outside
    by_hand = SequentialTest(max_pairs=100)
    for arm, score in (("a", 0.0), ("b", 0.75), ("a", 1.0), ("b", 0.0)):
        by_hand.add(arm, score)
    figures = standing(store, trial, ACCURACY)
    assert figures == TrialStanding(by_hand.decision(), by_hand.interval(), {"a": 4, "b": 4}, {"a": 2, "b": 2}, rated=2)
    assert figures.response_rates == (0.5, 0.5)
    assert not figures.uneven
    assert replace(figures, answered={"a": 400, "b": 400}, judged={"a": 40, "b": 80}).uneven  # z = 3.96
    assert not replace(figures, answered={"a": 400, "b": 400}, judged={"a": 40, "b": 56}).uneven  # z = 1.74
    assert (figures.decision.n, figures.decision.fixed, figures.decision.broken) == (2, 1, 1)


def test_answers_in_the_shadow_are_no_cases_but_say_where_to_look(store, make, trial):
    store.record(shadowed(make, 0, "x", "y", trial) + shadowed(make, 1, "x", "x", trial))
    cases = store.cases(CaseFilter(trial=trial.token))
    assert [(case.interaction.id, case.reasons, case.suggestion) for case in cases] == [
        ("r0", ("disagreement",), "y"), ("r1", (), "x"),
    ]  # fmt: skip
    assert store.count() == 2
    assert store.count(CaseFilter(trial="none")) == 0
    assert [row.id for row in store.shadows("r0")] == ["s0"]
    assert {row.id for row in store.in_trial(trial.token)} == {"r0", "r1", "s0", "s1"}
    store.add_feedback(Feedback("r0", expected="z"))
    assert store.case("r0").suggestion == "z"
