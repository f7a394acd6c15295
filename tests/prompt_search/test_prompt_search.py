import json
from dataclasses import replace

import numpy as np
import pytest

from fake_engine import noise
from rung.artifact.artifact import Artifact
from rung.artifact.heads import EnsembleDecoder, Head
from rung.artifact.labels import LabelScoring
from rung.errors import ConfigError, EngineError
from rung.evaluation.metrics.registry import get_metric
from rung.prompt_search.candidates import SearchSpace
from rung.prompt_search.scorer import CandidateScorer, Meter, SearchLimits
from rung.prompt_search.search import no_headroom, split
from rung.rungs import PromptSearch


def truth(messages):
    return "pos" if messages[-1]["content"].rstrip('"').split("\n")[0].endswith("yes") else "neg"


def likes_templates(messages, text):
    """Understand rows better where they are named, and prefer `pos`."""
    question = messages[-1]["content"]
    named = 3.0 * question.startswith("Text:")
    return named * (text.lower() == truth(messages)) + 2.0 * (text.lower() == "pos") + 3.0 * noise(question, text)


def contrary(messages, text):
    """Always be wrong."""
    return float(text != truth(messages))


def likes_nothing(messages, text):
    """Answer by chance, whatever the prompt."""
    return noise(messages[0]["content"], messages[-1]["content"], text)


def searched(artifact, rows, **settings):
    rung = PromptSearch(encoder="", **settings)
    assert rung.applies(artifact, rows).applies
    found = rung.fit(artifact, rows)
    return found, found.settings["prompt-search"]


def test_a_better_prompt_is_found_and_adopted_on_rows_apart(scoring, rows):
    artifact = scoring(likes_templates)
    found, record = searched(artifact, rows)
    assert record["adopted"]
    assert found.prompt.template.startswith("Text:")
    assert record["comparison"]["p"] < 0.05
    assert record["comparison"]["n"] == record["adoption_rows"] > 100
    assert record["spent"]["calls"] <= 1500
    answers = found.with_engine(artifact.open()).answer(rows.test)
    assert sum(a.text == e.outputs[0] for a, e in zip(answers, rows.test, strict=True)) >= 45


def test_what_was_adopted_was_never_searched_on(scoring, rows):
    artifact = scoring(likes_templates)
    searched_on, deciding = split(rows.train, 0.5, 0)
    assert {row.id for row in searched_on}.isdisjoint(row.id for row in deciding)
    assert len(searched_on) + len(deciding) == len(rows.train)
    searched(artifact, rows)
    questions = [request.prompt[-1]["content"] for request in artifact.open().scored]
    last = questions[-2 * len(deciding) :]
    assert all(any(row.inputs["text"] in q for row in deciding) for q in last)
    assert not any(row.inputs["text"] in q for row in deciding[:40] for q in questions[: -2 * len(deciding)])


def test_noise_is_hardly_ever_adopted(scoring, rows):
    adopted = 0
    for seed in range(15):
        artifact = scoring(lambda m, text, seed=seed: noise(str(seed), m[0]["content"], m[-1]["content"], text))
        found, record = searched(artifact, rows, seed=seed, calls=500, population=6, adoption_rows=80)
        adopted += record["adopted"]
        if not record["adopted"]:
            assert found.prompt == artifact.prompt
            assert found.decoder == artifact.decoder
            assert found.demonstrations is None
    assert adopted <= 2  # the level is 0.05, on one side half of it


def test_without_headroom_nothing_is_searched(scoring, rows):
    artifact = scoring(lambda messages, text: float(text == truth(messages)))
    _, record = searched(artifact, rows, adoption=0.1)
    assert not record["adopted"]
    assert record["reason"].startswith("no headroom: the incumbent falls short on 0 of 32 rows")
    assert len(record["candidates"]) == 1
    assert record["spent"]["calls"] == 32 + 6


@pytest.mark.parametrize(
    ("wrong", "seen", "deciding", "there"), [(0, 32, 50, True), (0, 32, 300, False), (3, 32, 100, False)]
)
def test_headroom(wrong, seen, deciding, there):
    """Wilson's upper end for 0 of 32 is 0.107: 5.4 of 50 rows, 32 of 300."""
    assert bool(no_headroom([0.0] * wrong + [1.0] * (seen - wrong), deciding)) is there


def test_a_budget_is_kept_whatever_its_unit(scoring, rows):
    for limits in ({"calls": 700}, {"calls": 0, "tokens": 40_000}):
        artifact = scoring(likes_templates)
        _, record = searched(artifact, rows, **limits, adoption_rows=100)
        spent = record["spent"]
        assert spent["calls"] <= limits["calls"] or not limits["calls"]
        # Token budgets are kept by what calls cost on average: prompts with demonstrations are longer.
        assert spent["prompt_tokens"] + spent["completion_tokens"] <= 1.5 * limits.get("tokens", 10**9)


def test_a_budget_that_is_too_small_says_so(scoring, rows):
    _, record = searched(scoring(likes_templates), rows, calls=100)
    assert record["reason"].startswith("the budget of 94 calls is too small")


def test_a_small_budget_is_spent_on_one_round(scoring, rows):
    _, record = searched(scoring(likes_templates), rows, calls=180, instructions=0, adoption_rows=40)
    assert {one["round"] for one in record["candidates"]} == {0, 1}
    assert 2 <= len(record["candidates"]) <= 4
    assert record["spent"]["calls"] <= 180


def test_a_budget_without_calls_for_candidates_says_so(scoring, rows):
    few = replace(rows, train=rows.train[:40])
    searched_on, _ = split(few.train, 0.5, 0)
    calls = 2 * 10 + 2 * len(searched_on)
    _, record = searched(scoring(contrary), few, calls=calls, instructions=0, adoption_rows=10)
    assert record["reason"] == "the budget leaves no calls for a candidate"


def test_money_needs_prices(scoring, rows, monkeypatch):
    monkeypatch.delenv("RUNG_API_PRICE_INPUT", raising=False)
    with pytest.raises(ConfigError) as caught:
        searched(scoring(likes_templates), rows, money=1.0)
    assert caught.value.code == "bad-setting"


def test_a_copied_row_never_becomes_an_instruction(scoring, rows):
    artifact = scoring(likes_templates, write=lambda messages, sampling: f"Look at train row {sampling.seed} says no")
    _, record = searched(artifact, rows)
    assert len(record["refused"]) == 3  # even seeds are rows that exist
    copied = {one["text"] for one in record["refused"]}
    assert not any(one["instruction"] in copied for one in record["candidates"])


def test_every_candidate_is_in_the_saved_artifact(scoring, rows, tmp_path):
    artifact = replace(scoring(likes_templates), model="http://127.0.0.1:9/v1#m")
    engine = scoring(likes_templates).open()
    found, record = searched(artifact.with_engine(engine), rows)
    kept = Artifact.load(found.save(tmp_path / "artifact"))
    assert json.dumps(kept.settings["prompt-search"]) == json.dumps(record)
    assert kept.prompt == found.prompt
    assert kept.demonstrations == found.demonstrations
    names = [one["name"] for one in record["candidates"]]
    assert names == ["incumbent", *(f"candidate-{i}" for i in range(1, len(names)))]
    assert all(one["rows"] >= 12 for one in record["candidates"])


def test_the_search_repeats_itself(scoring, rows):
    (a, first), (b, second) = (searched(scoring(likes_templates), rows, seed=4) for _ in range(2))
    assert a.prompt == b.prompt
    assert {**first, "spent": 0} == {**second, "spent": 0}


def test_texts_are_searched_by_the_metric(writing, rows):
    def write(messages, sampling):
        return truth(messages) if "Text:" in messages[-1]["content"] else "?"

    found, record = searched(writing(write), rows, instructions=0)
    assert record["adopted"]
    assert "Text:" in found.prompt.template
    assert not any(one["calibrated"] for one in record["candidates"])


def test_racing_scores_are_calibrated_probabilities_of_the_gold_label(scoring, rows):
    artifact = scoring(likes_templates)
    space = SearchSpace(artifact, ("Classify.",), ("{text}", "Text: {text}"), {})
    scorer = CandidateScorer(space, rows.train[:40], get_metric("accuracy"), Meter(SearchLimits()))
    name = scorer.add(replace(space.start, template="Text: {text}"), 1)
    scores = scorer.score(name, 20)
    assert scorer.score(name, 20) == scores
    assert len(artifact.open().scored) == 20  # asked once
    logits = np.array(
        [[likes_templates(({"content": f"Text: {r.inputs['text']}"},), t) for t in ("neg", "pos")] for r in scorer.rows]
    )
    bias = logits[:20].mean(0)
    scorer.score(name, 40)
    assert scorer.scored[name].artifact.decoder.bias == pytest.approx(tuple(bias), rel=1e-5)
    probs = np.exp(logits - bias) / np.exp(logits - bias).sum(1, keepdims=True)
    gold = [["neg", "pos"].index(row.outputs[0]) for row in scorer.rows]
    assert scorer.scored[name].scores == pytest.approx(probs[range(40), gold], rel=1e-4)


def test_the_incumbent_is_judged_as_it_is(scoring, rows):
    artifact = scoring(likes_templates)
    scorer = CandidateScorer(
        SearchSpace(artifact, ("Classify.",), ("{text}",), {}),
        rows.train,
        get_metric("accuracy"),
        Meter(SearchLimits()),
    )
    scorer.score("incumbent", 30)
    answers = artifact.answer(rows.train[:30])
    assert scorer.scored["incumbent"].metric == [
        float(a.text == r.outputs[0]) for a, r in zip(answers, rows.train, strict=False)
    ]
    assert isinstance(scorer.scored["incumbent"].artifact.decoder, LabelScoring)
    assert scorer.scored["incumbent"].artifact.decoder.bias == ()


def test_a_prompt_that_does_not_fit_scores_nothing_and_ends_nothing(scoring, rows):
    def likes(messages, text):
        if len(messages) > 2:
            raise EngineError("context-overflow", "too long")
        return likes_templates(messages, text)

    _, record = searched(scoring(likes), rows)
    failed = [one for one in record["candidates"] if one.get("failed")]
    assert failed
    assert all(one["score"] == 0.0 for one in failed)
    assert record["adopted"]


def test_what_reads_no_prompt_is_a_reason(scoring, rows):
    artifact = scoring(likes_nothing)
    head = Head(("neg", "pos"), "none", np.eye(2), np.zeros(2))
    for decoder, what in (
        (EnsembleDecoder((artifact,), (1.0,), (1.0,)), "its answers do not depend on the prompt"),
        (head, "a head on frozen features does not read the prompt"),
    ):
        verdict = PromptSearch().applies(replace(artifact, decoder=decoder), rows)
        assert verdict.reason == what


def test_too_few_rows_is_a_reason(scoring, rows):
    few = replace(rows, train=rows.train[:20])
    assert "too few" in PromptSearch().applies(scoring(likes_nothing), few).reason
