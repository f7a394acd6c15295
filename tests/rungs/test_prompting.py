"""Chain-of-thought, self-consistency, written labels, descriptions and ensembles, with an engine made by hand."""

from dataclasses import replace

import numpy as np
import pytest
from tests.rendered import messages_of

from fake_engine import FakeEngine, noise
from rung.artifact.artifact import Artifact
from rung.artifact.heads import Head
from rung.artifact.labels import LabelScoring
from rung.artifact.parts import Signature
from rung.artifact.text import Generate, Reasoning
from rung.data.rows import Data, Example, example_id
from rung.data.texts import number_pattern
from rung.errors import ConfigError, TrainingError
from rung.prompts.answer_form import number_form
from rung.prompts.extraction import REQUEST
from rung.prompts.prompt import Prompt
from rung.rungs import (
    ChainOfThought,
    DemonstrationEnsemble,
    FewShot,
    LabelDescriptions,
    LoRA,
    PromptSearch,
    SelfConsistency,
    SystemPrompt,
    WrittenLabel,
)

LABELS = ("card_arrival", "top_up")
TEXTS = ("card arrival", "top up")
ENDPOINT = "http://127.0.0.1:9/v1#m"


def rows(n, outputs):
    made = [{"text": f"message {i}"} for i in range(n)]
    return tuple(Example(example_id(i), i, (outputs(k),), f"t:{k}") for k, i in enumerate(made))


def numbers(n):
    return Data(rows(n, str), (), (), (), None, "f")


def labelled(n):
    return Data(rows(n, lambda k: LABELS[k % 2]), (), (), LABELS, None, "f")


def scoring(engine):
    prompt = Prompt("Which intent?", "{text}", labels=TEXTS)
    signature = Signature("t", ("text",), "category", "accuracy", LABELS)
    return Artifact(signature, ENDPOINT, prompt, LabelScoring(LABELS, TEXTS), path=("zero-shot",)).with_engine(engine)


def texts(engine):
    signature = Signature("t", ("text",), "text", "exact_match")
    return Artifact(signature, ENDPOINT, Prompt("Solve.", "{text}"), Generate(8), path=("zero-shot",)).with_engine(
        engine
    )


# ---- chain-of-thought


def test_steps_come_first_and_the_answer_is_extracted():
    engine = FakeEngine(write=lambda messages, sampling: "2 and 2 make 4.\nAnswer: 1,004 apples")
    data = numbers(5)
    artifact = ChainOfThought(max_tokens=99).fit(texts(engine), data).with_engine(engine)
    assert artifact.decoder == Reasoning("number", 99)
    assert artifact.prompt.instruction == f"Solve.\n\n{REQUEST}"
    (answer,) = artifact.answer(data.train[:1])
    assert (answer.text, answer.confidence) == ("1004", None)
    assert engine.generated[0].sampling.max_tokens == 99
    assert engine.generated[0].sampling.temperature == 0


def test_labels_are_named_and_answers_become_labels():
    engine = FakeEngine(write=lambda messages, sampling: "It is late.\nAnswer: Top Up.")
    data = labelled(4)
    plain = scoring(engine)
    unnamed = replace(plain, prompt=replace(plain.prompt, labels=())).with_engine(engine)
    artifact = ChainOfThought(when="always").fit(unnamed, data).with_engine(engine)
    assert "Answer with one of: card arrival, top up" in artifact.messages({"text": "x"})[0]["content"]
    assert artifact.answer(data.train[:1])[0].text == "top_up"


def stars(engine):
    form = number_form(1, 5, "stars", whole=True)
    prompt, decoder = Prompt("Rate.", "{text}", answer_form=form), Generate(8, regex=number_pattern(1, 5, whole=True))
    signature = Signature("t", ("text",), "number", "closeness", metric_settings={"scale": 4.0})
    return Artifact(signature, ENDPOINT, prompt, decoder, path=("zero-shot",)).with_engine(engine)


def test_numbers_may_follow_steps_and_stay_in_their_range():
    chains = iter(["2 of 5 is poor.\nAnswer: 2.0", "Answer: 3.5", "Answer: 9", "nothing"])
    engine = FakeEngine(write=lambda messages, sampling: next(chains))
    data = numbers(4)
    assert ChainOfThought().applies(stars(engine), data).applies
    artifact = ChainOfThought().fit(stars(engine), data).with_engine(engine)
    assert artifact.decoder == Reasoning("number", regex="1|2|3|4|5")
    assert artifact.messages({"text": "x"})[0]["content"] == (
        f"Rate.\n\n{REQUEST}\n\nAnswer with a whole number from 1 to 5, in stars."
    )
    assert [answer.text for answer in artifact.answer(data.train)] == ["2", "", "", ""]


def test_chains_vote_by_the_value_of_a_number():
    said = {0: "Answer: 4.0", 1: "Answer: 5", 2: "Answer: 4", 3: "Answer: 7", 4: "Answer: 7"}
    engine = FakeEngine(write=lambda messages, sampling: said[sampling.seed])
    voted = SelfConsistency().fit(ChainOfThought().fit(stars(engine), numbers(4)), numbers(4)).with_engine(engine)
    (answer,) = voted.answer(numbers(1).train)
    assert (answer.text, answer.confidence) == ("4", 0.4)  # 7 is no answer


def test_demonstrations_answer_behind_the_marker():
    engine = FakeEngine()
    artifact = ChainOfThought(when="always").fit(scoring(engine), labelled(9)).with_engine(engine)
    shown = FewShot("fixed", k=1).fit(artifact, labelled(9)).with_engine(engine)
    turn = next(m for m in shown.messages({"text": "x"}) if m["role"] == "assistant")
    assert turn["content"] in ("Answer: card arrival", "Answer: top up")


def test_by_itself_it_stays_away_from_labels_small_models_and_long_texts():
    engine = FakeEngine()
    assert ChainOfThought().applies(texts(engine), numbers(5)).applies
    assert "choose a label" in ChainOfThought().applies(scoring(engine), labelled(4)).reason
    small = replace(texts(engine), model="embedded")
    assert "million parameters" in ChainOfThought().applies(small, numbers(5)).reason
    long = Data(rows(5, lambda k: "word " * 30), (), (), (), None, "f")
    assert "texts of 30 words" in ChainOfThought().applies(texts(engine), long).reason
    for artifact, data in ((scoring(engine), labelled(4)), (small, numbers(5)), (texts(engine), long)):
        assert ChainOfThought(when="always").applies(artifact, data).applies


@pytest.mark.parametrize(
    ("decoder", "reason"),
    [
        (Reasoning("text"), "already"),
        (Generate(8, regex="[0-9]+"), "regular expression"),  # of a task of kind text
        (Head((), "e", np.zeros((1, 1), np.float32), np.zeros(1, np.float32)), "does not write"),
    ],
)
def test_where_reasoning_cannot_be_put(decoder, reason):
    artifact = replace(texts(FakeEngine()), decoder=decoder)
    assert reason in ChainOfThought(when="always").applies(artifact, numbers(5)).reason


# ---- self-consistency


def test_most_chains_win_and_their_share_is_the_confidence():
    said = {0: "Answer: 3", 1: "Answer: 4", 2: "no idea", 3: "Answer: 4", 4: "Answer: 3.5"}
    engine = FakeEngine(write=lambda messages, sampling: said[sampling.seed])
    data = numbers(5)
    artifact = ChainOfThought().fit(texts(engine), data)
    rung = SelfConsistency(samples=5, temperature=0.5)
    assert not rung.applies(texts(engine), data).applies
    voted = rung.fit(artifact, data).with_engine(engine)
    assert not rung.applies(voted, data).applies
    first, second = voted.answer(data.train[:2])
    # "no idea" holds no number, so 4 has two of five votes.
    assert (first.text, first.confidence) == ("4", 0.4)
    assert (second.text, second.completion_tokens) == ("4", sum(map(len, said.values())))
    assert [r.sampling.seed for r in engine.generated] == [0, 1, 2, 3, 4] * 2
    assert {r.sampling.temperature for r in engine.generated} == {0.5}


@pytest.mark.parametrize("settings", [{"samples": 1}, {"temperature": 0.0}])
def test_chains_that_cannot_differ_are_refused(settings):
    with pytest.raises(ConfigError, match=r"self-consistency\.(samples: 1|temperature: 0\.0) should be"):
        SelfConsistency(**settings)


def test_reasoning_is_kept_with_the_artifact(tmp_path):
    engine = FakeEngine()
    artifact = SelfConsistency().fit(ChainOfThought(when="always").fit(scoring(engine), labelled(4)), labelled(4))
    loaded = Artifact.load(artifact.save(tmp_path / "a"))
    assert loaded.decoder == artifact.decoder == Reasoning("label", 512, 5, 0.7, 0, TEXTS)
    assert loaded.prompt == artifact.prompt


def test_weights_are_not_trained_to_skip_the_steps():
    artifact = ChainOfThought().fit(replace(texts(FakeEngine()), model="embedded"), numbers(5))
    assert "without the steps" in LoRA().applies(artifact, numbers(5)).reason


# ---- system prompts


def test_of_several_system_prompts_the_best_is_taken():
    def helped(messages, text):
        good = "careful" in messages[0]["content"] and text == TEXTS[int(messages[-1]["content"].split()[-1]) % 2]
        return 2 * good + noise(messages[-1]["content"], text)

    engine = FakeEngine(likes=helped)
    rung = SystemPrompt(("Be quick.", "Be careful.", "Be kind.", "Be brief."))
    artifact = rung.fit(scoring(engine), labelled(80))
    assert artifact.prompt.system == "Be careful."
    assert artifact.settings["system-prompt"]["raced"]["Be careful."] > 0.9
    assert len(engine.scored) <= 0.5 * 4 * 64
    assert not rung.applies(artifact, labelled(80)).applies


def test_a_single_system_prompt_is_put_without_a_race():
    engine = FakeEngine(likes=likes)
    artifact = SystemPrompt(("Be quick.",)).fit(scoring(engine), labelled(8))
    assert artifact.settings["system-prompt"] == {"text": "Be quick."}
    assert not engine.scored


# ---- written labels and regular expressions


def test_a_written_label_is_held_to_the_label_set():
    engine = FakeEngine(write=lambda messages, sampling: "top up")
    artifact = WrittenLabel().fit(scoring(engine), labelled(4)).with_engine(engine)
    assert artifact.answer(labelled(4).train[:1])[0].text == "top_up"
    assert engine.generated[0].constraint.value == TEXTS
    assert not WrittenLabel().applies(artifact, labelled(4)).applies


def test_a_regular_expression_of_the_task_file_reaches_the_engine(small_task_file, tmp_path):
    from rung.task import Task

    file = small_task_file.parent / "dates.yaml"
    file.write_text(
        "name: dates\ninstruction: When?\ninputs: [text]\n"
        "output: {column: category, kind: text, regex: '[0-9]{4}'}\ndata: {train: train.csv}\n"
    )
    artifact = Artifact.zero_shot(Task.load(file))
    assert artifact.decoder.constraint.kind == "regex"
    assert artifact.decoder.constraint.value == "[0-9]{4}"
    engine = FakeEngine()
    kept = Artifact.load(replace(artifact, model=ENDPOINT, engine="api").with_engine(engine).save(tmp_path / "a"))
    assert kept.decoder == artifact.decoder


def test_a_regular_expression_belongs_to_text(small_task_file):
    from rung.task import Task

    file = small_task_file.parent / "wrong.yaml"
    file.write_text(small_task_file.read_text().replace("kind: category", "kind: category, regex: x"))
    with pytest.raises(ConfigError, match="`regex` belongs to kind text"):
        Task.load(file)


# ---- descriptions


def test_descriptions_are_written_from_rows_and_stand_beside_the_labels():
    engine = FakeEngine(write=lambda messages, sampling: "Description: It waits.")
    artifact = LabelDescriptions().fit(scoring(engine), labelled(20))
    assert "- card arrival: It waits.\n- top up: It waits." in artifact.messages({"text": "x"})[0]["content"]
    assert artifact.prompt.instruction.startswith("Which intent?\n\nCompare the input")
    assert artifact.settings["label-descriptions"]["spent"]["calls"] == 2


def test_descriptions_of_the_task_file_need_no_writer():
    engine = FakeEngine()
    plain = scoring(engine)
    own = replace(plain, prompt=replace(plain.prompt, descriptions=(("top up", "money comes"),))).with_engine(engine)
    artifact = LabelDescriptions().fit(own, labelled(20))
    assert artifact.prompt.descriptions == (("top up", "money comes"),)
    assert not engine.generated


def test_descriptions_that_copy_rows_are_refused_and_none_left_is_an_error():
    copy = FakeEngine(write=lambda messages, sampling: "For example the long message number 3 of all")
    plain = labelled(20)
    told = [{"text": f"the long message number {i} of all"} for i in range(20)]
    long = replace(plain, train=tuple(replace(r, inputs=i) for r, i in zip(plain.train, told, strict=True)))
    with pytest.raises(TrainingError) as caught:
        LabelDescriptions().fit(scoring(copy), long)
    assert caught.value.code == "reply-unreadable"
    assert "it repeats the training row t:3" in caught.value.message


def test_too_many_labels_are_not_described():
    assert "too long" in LabelDescriptions(max_labels=1).applies(scoring(FakeEngine()), labelled(20)).reason


# ---- ensembles


def likes(messages, text):
    return 3 * noise(messages[-1]["content"], text) + noise("".join(m["content"] for m in messages), text)


def test_an_ensemble_is_the_mean_of_its_members_calibrated():
    engine, data = FakeEngine(likes=likes), labelled(40)
    rung = DemonstrationEnsemble(sets=3, k=2, rows="balanced", unlabelled=16)
    artifact = rung.fit(scoring(engine), data).with_engine(engine)
    members = artifact.prompt_variants()
    assert len(members) == 3
    examples = rows(60, lambda k: LABELS[k % 2])[40:]
    prompts = [messages_of(member, examples) for member in members]
    assert len({str(member[0]) for member in prompts}) == 3
    raw = [[[likes(prompt, text) for text in TEXTS] for prompt in member] for member in prompts]
    expected = np.mean(raw, 0) - np.array(artifact.decoder.bias)
    answers = artifact.answer(examples)
    assert [a.text for a in answers] == [LABELS[i] for i in expected.argmax(1)]
    probs = np.exp(expected) / np.exp(expected).sum(1, keepdims=True)
    np.testing.assert_allclose([a.probabilities for a in answers], probs, rtol=1e-4)
    assert answers[0].prompt_tokens == sum(engine.count(member[0]) for member in prompts)
    calibration = sorted(data.train, key=lambda e: e.id)[:16]
    seen = np.mean(
        [[[likes(p, t) for t in TEXTS] for p in messages_of(member, calibration)] for member in members], (0, 1)
    )
    np.testing.assert_allclose(artifact.decoder.bias, seen, rtol=1e-4)


def test_an_ensemble_is_kept_with_the_artifact(tmp_path):
    engine, data = FakeEngine(likes=likes), labelled(40)
    artifact = DemonstrationEnsemble(sets=2, k=2, rows="balanced").fit(scoring(engine), data)
    loaded = Artifact.load(artifact.save(tmp_path / "a")).with_engine(engine)
    assert loaded.demonstrations == artifact.demonstrations
    assert len(loaded.prompt_variants()) == 2
    answers = [a.probabilities for a in loaded.answer(data.train[:4])]
    assert answers == [a.probabilities for a in artifact.with_engine(engine).answer(data.train[:4])]


def test_what_is_averaged_is_neither_trained_nor_written():
    artifact = DemonstrationEnsemble(sets=2, k=2, rows="balanced").fit(
        scoring(FakeEngine(likes=likes)), labelled(40)
    )  # fmt: skip
    artifact = artifact.with_engine(FakeEngine(likes=likes))
    assert (
        "several prompts"
        in LoRA().applies(replace(artifact, model="embedded").with_engine(artifact.open()), labelled(40)).reason
    )
    assert "several prompts" in WrittenLabel().applies(artifact, labelled(40)).reason
    assert "several prompts" in ChainOfThought(when="always").applies(artifact, labelled(40)).reason


def test_settings_that_are_no_ensemble_are_refused():
    with pytest.raises(ConfigError, match=r"demonstration-ensemble\.sets: 1 should be at least 2"):
        DemonstrationEnsemble(sets=1)
    with pytest.raises(ConfigError, match=r"prompt-search\.adoption: 1\.0 should be less than 1"):
        PromptSearch(adoption=1.0)
