"""The loop: what is trained on, what is held out, what is recommended against what is served, and its promotion."""

from dataclasses import replace

import pytest

from rung.artifact.artifact import Artifact
from rung.artifact.decoder import Answer
from rung.artifact.files import fingerprint
from rung.artifact.heads import Head
from rung.climbing.options import ClimbOptions
from rung.errors import ConfigError, DataError, ThresholdError
from rung.feedback.corrections import (
    CorrectionCounts,
    check,
    contradictions,
    invalidity,
    matched_label,
    with_corrections,
)
from rung.feedback.improve import improve, promote, rungs_for
from rung.feedback.records import CaseFilter, Feedback, SplitRule
from rung.feedback.registry import Registry
from rung.feedback.store import FeedbackStore
from rung.rungs import Features
from rung.task import Task
from rung.yamlfile import read_sealed, sealed


@pytest.fixture
def store(tmp_path):
    with FeedbackStore(tmp_path / "f.db") as opened:
        yield opened


def review(store, make, rows):
    """Record (id, text, split, expected) rows that were answered `age_limit`, and correct those with an answer."""
    store.record([make(number, inputs={"text": text}, split=split) for number, text, split, _ in rows])
    for number, _, _, expected in rows:
        if expected:
            store.correct(f"r{number}", expected, "Ann")
    return store.cases(CaseFilter(reviewed=True))


def test_only_reviewed_interactions_of_the_training_side_are_trained_on(store, make, task, data):
    known, held = data.train[0], data.test[0]
    cases = review(
        store, make,
        [
            (1, "My card never came", "train", "card_arrival"),
            (2, "Held out at capture", "test", "card_arrival"),
            (3, held.inputs["text"].upper(), "train", "card_arrival"),
            (4, data.validation[0].inputs["text"], "train", "card_arrival"),
            (5, "Not reviewed", "train", None),
            (6, "How old must I be?", "train", "age_limit"),
            (7, known.inputs["text"] + " ", "train", "top_up_failed"),
            (8, "my  CARD never came", "train", "lost_or_stolen_card"),
        ],
    )  # fmt: skip
    changed, taken = with_corrections(task, data, cases)
    added = {(row.inputs["text"], *row.outputs) for row in changed.train} - {
        (row.inputs["text"], *row.outputs) for row in data.train
    }
    assert added == {
        ("my  CARD never came", "lost_or_stolen_card"),  # the later of two with one input
        ("How old must I be?", "age_limit"),
        (known.inputs["text"] + " ", "top_up_failed"),
    }
    assert (taken.failures, taken.confirmed, taken.replaced, taken.held_out, taken.superseded) == (2, 1, 1, 3, 1)
    assert len(changed.train) == len(data.train) + 2
    assert (changed.test, changed.validation) == (data.test, data.validation)
    assert changed.fingerprint != data.fingerprint
    assert not {row.id for row in changed.train} & {row.id for row in (*data.test, *data.validation)}


def test_the_tasks_own_rule_holds_out_what_another_rule_captured_for_training(store, make, tmp_path):
    rows = "".join(f"question {i},{'yes' if i % 2 else 'no'}\n" for i in range(100))
    (tmp_path / "rows.csv").write_text("text,label\n" + rows)
    (tmp_path / "task.yaml").write_text(
        "name: intents\ninstruction: Answer.\ninputs: [text]\noutput: {column: label, kind: category}\n"
        "data: {train: rows.csv, split: {test: 0.5, validation: 0.1, seed: 3}}\n"
    )
    task = Task.load(tmp_path / "task.yaml")
    texts = [f"new {i}" for i in range(60)]
    cases = review(store, make, [(i, text, "train", "yes") for i, text in enumerate(texts)])
    changed, taken = with_corrections(task, task.read(), cases)
    rule = SplitRule.of(task)
    expected = {text for text in texts if rule.side({"text": text}) == "train"}
    assert {row.inputs["text"] for row in changed.train if row.inputs["text"].startswith("new")} == expected
    assert taken.held_out == 60 - len(expected) > 10


def test_redaction_does_not_open_the_test_side(store, make, task, data):
    row = make(1, inputs=dict(data.test[0].inputs))
    store.record([replace(row, inputs={"text": "[email]"})])  # input_id is still that of the test row
    store.correct("r1", "card_arrival", "Ann")
    changed, taken = with_corrections(task, data, store.cases())
    assert (taken.held_out, changed.train) == (1, data.train)


def test_a_correction_that_does_not_fit_the_task_names_its_interaction(store, make, task, data):
    cases = review(store, make, [(1, "My card never came", "train", "card_arival")])
    with pytest.raises(DataError, match="interaction r1: 'card_arival' is none of") as raised:
        with_corrections(task, data, cases)
    assert "card_arrival" in raised.value.hint


def test_few_failures_change_prompts_and_a_thousand_tune_weights(task):
    few, why = rungs_for(task, CorrectionCounts(failures=30, pairs=30), ClimbOptions())
    assert "few-shot-knn" in few
    assert not {"lora", "domain-adaptation"} & set(few)
    assert "30 failures" in why
    many, _ = rungs_for(task, CorrectionCounts(failures=1000, pairs=1000), ClimbOptions())
    assert "lora" in many
    assert set(few) < set(many)
    assert "dpo" not in many  # a label is right or wrong: the corrections say it all
    text = task.model_copy(update={"output": task.output.model_copy(update={"kind": "text", "labels": None})})
    judged, why = rungs_for(text, CorrectionCounts(pairs=60, thumbs=40), ClimbOptions())
    assert {"dpo", "kto"} <= set(judged)
    assert "60 pairs and 40 thumbs" in why


def test_corrections_and_thumbs_become_preferences(store, make, task, data):
    """What is held out measures; what was reviewed counts once; users who disagree say nothing."""
    asked = {1: "My card never came", 2: "Where is it?", 3: "How old must I be?", 4: "Which rate?", 5: "Held out"}
    store.record([make(i, inputs={"text": text}, split="test" if i == 5 else "train") for i, text in asked.items()])
    for number, thumb in ((1, "down"), (2, "down"), (3, "up"), (3, "up"), (4, "up"), (4, "down"), (5, "down")):
        store.add_feedback(Feedback(f"r{number}", thumb=thumb))
    store.add_feedback(Feedback("r4", thumb="up", source="check"))
    store.correct("r1", "card_arrival", "Ann")
    cases = store.cases(CaseFilter(task=task.name, reviewed=True))
    changed, taken = with_corrections(task, data, cases, None, store.thumbs(task.name))
    told = {
        each.row.inputs["text"]: tuple(None if one is None else one.outputs[0] for one in (each.chosen, each.rejected))
        for each in changed.preferences
    }
    assert told == {
        asked[1]: ("card_arrival", "age_limit"),
        asked[2]: (None, "age_limit"),
        asked[3]: ("age_limit", None),
    }
    assert [each.row.inputs["text"] for each in changed.unseen_preferences] == [asked[5]]
    assert (taken.pairs, taken.thumbs, taken.disputed) == (1, 2, 1)
    assert changed.fingerprint != with_corrections(task, data, cases)[0].fingerprint


# ---- the whole loop, with what a small sentence encoder learns


@pytest.fixture
def fake_zero(monkeypatch):
    """Have zero-shot answer one label always, so that no language model has to run."""
    real = Artifact.answer

    def answer(self, examples, **options):
        if isinstance(self.decoder, Head):
            return real(self, examples, **options)
        return [Answer("age_limit", None, None, 1, 0, 0.0) for _ in examples]

    monkeypatch.setattr(Artifact, "answer", answer)
    monkeypatch.setattr(Artifact, "text", lambda self, messages: "")


def test_improved_promoted_and_watched(store, make, task, data, tmp_path, zero, fake_zero):
    registry, options = Registry(tmp_path / "registry", "intents"), ClimbOptions(rungs=("features",), out=tmp_path)
    with pytest.raises(ConfigError, match="no reviewed failure"):
        improve(task, store, registry, options=options)
    two = [row for row in data.train if row.outputs[0] in ("age_limit", "top_up_failed")]
    weak = Features().fit(zero, replace(data, train=tuple(two)))
    first = registry.promote(weak.save(tmp_path / "weak"), store, evidence={}, reviewer="Ann")
    review(
        store, make,
        [
            (1, "My card has still not arrived in the post", "train", "card_arrival"),
            (2, "Someone stole my card", "train", "lost_or_stolen_card"),
            (3, "I lost my card, please block it", "test", "lost_or_stolen_card"),
        ],
    )  # fmt: skip
    improvement = improve(task, store, registry, options=options)
    result = improvement.climb.result
    assert result.rungs[0].name == "served"
    assert {r.name for r in result.rungs} >= {"served", "zero-shot", "features"}
    assert improvement.better
    assert (improvement.served, improvement.taken.failures, improvement.taken.held_out) == (first.artifact, 2, 1)
    assert (improvement.comparison.a, improvement.comparison.b) == ("served", result.recommended)
    assert improvement.comparison.fixed > improvement.comparison.broken
    assert improvement.outcome.of_train == (2, 2)
    assert improvement.outcome.of_test == (1, 1)
    assert store.fixed() == set()  # it is not served yet

    promotion = promote(improvement.climb.folder, registry, store, reviewer="Ann")
    assert promotion.artifact == improvement.recommended == registry.current().artifact
    assert store.fixed() == {"r1", "r2", "r3"}
    assert promotion.evidence["comparison"]["fixed"] == improvement.comparison.fixed
    with pytest.raises(ConfigError) as raised:
        promote(improvement.climb.folder, registry, store, reviewer="Ann")
    assert raised.value.code == "promotion-refused"

    again = improve(task, store, registry, options=options)
    assert not again.better  # nothing was added: what is served stays
    assert again.recommended == promotion.artifact
    with pytest.raises(ConfigError) as raised:
        promote(again.climb.folder, registry, store, reviewer="Ann")
    assert raised.value.code == "already-served"

    # A later artifact that breaks what was fixed once is stopped.
    values = read_sealed(improvement.climb.folder / "improvement.json")
    values |= {"served": promotion.artifact, "artifact": str(tmp_path / "weak")}
    values["failures"] |= {"regressions": ["r3"], "watched": 3}
    (improvement.climb.folder / "improvement.json").write_text(sealed(values))
    with pytest.raises(ThresholdError, match="1 of 3 failures"):
        promote(improvement.climb.folder, registry, store, reviewer="Ann")
    promote(improvement.climb.folder, registry, store, reviewer="Ann", accept_regressions=True)
    assert registry.current().artifact == fingerprint(tmp_path / "weak")


def test_checks_find_invalid_answers_and_disagreement_once(store, make, zero, data, tmp_path):
    artifact = Features().fit(zero, data)
    store.record(
        [
            make(1, inputs={"text": "My card has not arrived yet"}, actual="age_limit"),
            make(2, inputs={"text": "What is the exchange rate?"}, actual="exchange_rate"),
            make(3, actual="no label"),
            make(4, task="other", actual=""),
            make(5, artifact="b", actual=" "),
        ]
    )
    counts = check(store, artifact, "b")
    assert (counts.looked_at, counts.invalid) == (4, 2)
    assert store.case("r1").reasons == ("disagreement",)
    assert store.case("r1").suggestion == "card_arrival"
    assert store.case("r2").reasons == ()
    assert "invalid output" in store.case("r3").reasons
    assert store.case("r5").reasons == ("invalid output",)  # its own answer is no second opinion
    before = sum(len(store.feedback(f"r{i}")) for i in range(1, 6))
    assert (check(store, artifact, "b").invalid, check(store, artifact, "b").disagreed) == (0, 0)
    assert sum(len(store.feedback(f"r{i}")) for i in range(1, 6)) == before


def test_what_breaks_the_rules_of_a_json_task(zero):
    from rung.artifact.text import Generate

    schema = '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}'
    artifact = replace(zero, signature=replace(zero.signature, kind="json"), decoder=Generate(64, schema))
    assert invalidity(artifact, '{"n": 1}') == ""
    assert "not valid JSON" in invalidity(artifact, '{"n": 1')
    assert "does not fit the schema" in invalidity(artifact, '{"n": "1"}')
    assert invalidity(artifact, "[" * 100_000) != ""
    assert invalidity(artifact, " ") == "the answer is empty"


def test_reviewers_who_contradict_each_other_are_heard_before_anything_is_trained(store, make, task, tmp_path):
    store.record([make(1), make(2, inputs={"text": "where is  CARD 1?"}), make(3)])
    store.correct("r1", "card_arrival", "Ann")
    store.correct("r2", "exchange_rate", "Bob")
    store.correct("r3", "card_arrival", "Ann")
    with pytest.raises(ConfigError) as raised:
        improve(task, store, Registry(tmp_path / "registry", "intents"))
    assert raised.value.code == "contested-corrections"
    assert "1 inputs of intents, first Ann: 'card_arrival', Bob: 'exchange_rate'" in raised.value.message
    assert [case.interaction.id for case in store.cases(CaseFilter(contested=True))] == ["r2", "r1"]
    store.correct("r1", "card_arrival", "Carla")  # two of three
    assert contradictions(task, store) == []
    assert store.count(CaseFilter(contested=True)) == 0
    changed, taken = with_corrections(
        task, task.read(), store.cases(CaseFilter(reviewed=True)), store.opinions("intents")
    )
    assert taken.superseded == 1
    assert ("Where is card 1?", "card_arrival") in {(row.inputs["text"], *row.outputs) for row in changed.train}


def test_one_reviewer_may_change_her_mind(store, make, task):
    store.record([make(1)])
    for expected in ("card_arrival", "exchange_rate"):
        store.correct("r1", expected, "Ann")
    assert contradictions(task, store) == []
    store.correct("r1", "card_arrival", "Bob")
    assert len(contradictions(task, store)) == 1
    store.undo("r1", "Bob")
    assert contradictions(task, store) == []
    assert store.case("r1").expected == "exchange_rate"


@pytest.mark.parametrize("typed", ["Card arrival", " card-arrival ", "CARD_ARRIVAL"])
def test_a_label_as_people_type_it_is_the_task_s(typed):
    assert matched_label(typed, ("card_arrival", "card"), "x") == "card_arrival"
    with pytest.raises(DataError):
        matched_label(typed, ("card arrival x", "Card_Arrival", "card-arrival_"), "x")
