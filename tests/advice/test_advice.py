import json
import subprocess
import sys
from dataclasses import replace

import pytest

from rung.advice import Advice, advise, latest_run
from rung.advice.facts import Facts, ModelFacts, gather, model_facts
from rung.advice.rules import RULES, walk
from rung.data.sections import Needs
from rung.machine import Machine
from rung.rungs import names, registered
from rung.task import Task
from rung.yamlfile import sealed

MACHINE = Machine(2, 8 * 2**30, 100e9)
EMBEDDED = ModelFacts("embedded", False, False, 134_515_008, 8192)


@pytest.fixture
def facts():
    return Facts(
        kind="category", labels=6, train=600, rows_per_label=100, described=False, documents=0,
        input_tokens=20, output_tokens=2, model=EMBEDDED, machine=MACHINE, needs=Needs(),
    )  # fmt: skip


def step(facts, key):
    return next(step for step in walk(facts) if step.key == key)


def effects(facts, key):
    """What a step expects: of families by their names, of topics by the names of the rungs that have them."""
    expected = {}
    for effect in step(facts, key).effects:
        for about in effect.rungs:
            for name in [entry.name for entry in registered() if about in entry.topics] or [about]:
                expected[name] = effect.expect
    return expected


def test_facts_of_a_task(task, data):
    facts = gather(task, data, MACHINE)
    assert (facts.kind, facts.labels, facts.train, facts.rows_per_label) == ("category", 6, 48, 8)
    lengths = sorted(len(row.inputs["text"]) for row in data.train)
    assert facts.input_tokens == round(lengths[round(0.95 * 47)] / 4)
    assert facts.model == EMBEDDED


def test_model_facts_need_no_download(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNG_CACHE", str(tmp_path))
    assert model_facts("Qwen/Qwen2.5-7B-Instruct").parameters == 7_610_000_000
    assert model_facts("org/none") == ModelFacts("org/none", False, False, None, None)
    assert model_facts("http://localhost:8000/v1#m") == ModelFacts(
        "http://localhost:8000/v1#m", True, False, None, None
    )
    assert model_facts("https://api.example.com/v1#m").remote


def test_every_rule_answers_and_asks_for_what_it_cannot_know(facts):
    steps = list(walk(facts))
    assert len({step.key for step in steps}) == len(RULES) == 20
    for answered in steps:
        assert answered.answer in ("yes", "no", "unknown")
        assert answered.answer != "unknown" or answered.ask
        assert answered.source is None or answered.source.url.startswith("https://arxiv.org/abs/")
    keys = {
        answered.ask.removeprefix("needs.") for answered in steps if answered.ask and answered.ask.startswith("needs.")
    }
    assert keys == set(Needs.model_fields) - {"failures"}


def test_rules_speak_of_families_and_topics_that_exist(facts, task):
    families = {entry.rung_type.family for entry in registered()}
    topics = {topic for entry in registered() for topic in entry.topics}
    endpoint = ModelFacts("http://h/v1#m", True, True, None, None)
    needs = Needs(facts_change="daily", knowledge=True, style=True, reasoning=True, latency_ms=1, rows_per_day=10**6,
                  privacy="local", failures=2000)  # fmt: skip
    for kind in ("category", "text"):
        for model in (EMBEDDED, endpoint, replace(EMBEDDED, parameters=10**11, context=10)):
            for train in (5, 5000):
                changed = replace(facts, kind=kind, model=model, needs=needs, train=train)
                named = {name for step in walk(changed) for effect in step.effects for name in effect.rungs}
                assert named <= families | topics


def test_labels(facts):
    assert effects(facts, "labels") == {
        "features": "help", "calibrate": "help", "written-label": "not", "ensemble": "unknown",
        "label-descriptions": "unknown", "label-thresholds": "not",
    }  # fmt: skip
    assert effects(replace(facts, described=True), "labels")["label-descriptions"] == "help"
    assert set(effects(replace(facts, kind="text"), "labels").values()) == {"not"}
    assert effects(replace(facts, kind="text"), "labels").keys() >= {"features", "calibrate", "ensemble"}


def test_yardsticks_come_first_records_are_tuned_for_and_documents_are_read(facts):
    assert next(walk(facts)).key == "yardsticks"
    assert effects(facts, "yardsticks")["yardstick"] == "help"
    assert effects(facts, "yardsticks")["record-fields"] == "not"
    assert effects(replace(facts, kind="json"), "yardsticks")["tfidf-head"] == "not"
    assert "record-fields" not in effects(replace(facts, kind="json"), "yardsticks")
    assert effects(replace(facts, kind="json"), "records")["parameter-efficient"] == "help"
    assert effects(facts, "records") == {}
    assert effects(replace(facts, corpus=True), "corpus") == {
        "retrieval": "help", "parameter-efficient": "not", "partial": "not", "full": "not"
    }  # fmt: skip
    assert effects(facts, "corpus") == {}


def test_several_labels(facts):
    several = replace(facts, kind="multilabel")
    assert step(several, "labels").answer == "yes"
    assert step(several, "labels").observed == "6 labels, several a row"
    verdicts = effects(several, "labels")
    assert (verdicts["features"], verdicts["label-thresholds"]) == ("help", "help")
    assert {verdicts[name] for name in ("calibrate", "written-label", "fine-tuned-encoder", "ensemble")} == {"not"}
    endpoint = replace(several, model=ModelFacts("http://h/v1#m", True, True, None, None))
    assert effects(endpoint, "labels")["label-thresholds"] == "not"


def test_preferences_are_learned_where_texts_differ_in_more_than_right_and_wrong(facts):
    assert effects(facts, "preferences") == {"preference": "not"}
    pairs, thumbs = replace(facts, kind="text", pairs=90), replace(facts, kind="text", verdicts=90)
    of_pairs = {"dpo": "help", "orpo": "help", "simpo": "help", "reward-model": "help", "kto": "unknown"}
    assert effects(pairs, "preferences") == of_pairs
    of_thumbs = {"dpo": "not", "orpo": "not", "simpo": "not", "reward-model": "not", "kto": "help"}
    assert effects(thumbs, "preferences") == of_thumbs
    assert effects(replace(facts, pairs=90), "preferences") == {"preference": "not"}


def test_rewards_need_a_program_that_checks_answers(facts):
    assert effects(facts, "checker") == {"reinforcement": "not", "best-of-n": "not"}  # gold labels
    text = replace(facts, kind="text", metric="rougeL")
    assert effects(text, "checker") == {"reinforcement": "unknown", "best-of-n": "unknown"}
    checked = replace(text, metric="sql_execution")
    assert step(checked, "checker").answer == "yes"
    assert effects(checked, "checker") == {"reinforcement": "help", "best-of-n": "help"}
    assert effects(replace(text, kind="number"), "checker")["reinforcement"] == "help"


def test_prompt_search_wants_rows(facts):
    assert effects(facts, "few-rows")["prompt-learning"] == "unknown"
    assert effects(replace(facts, train=99), "few-rows")["prompt-learning"] == "not"
    few_a_label = replace(facts, rows_per_label=5)  # 600 rows all the same
    assert effects(few_a_label, "few-rows")["prompt-learning"] == "unknown"


def test_no_rung_is_passed_over(task, data):
    for kind in ("category", "text"):
        asked = task.model_copy(update={"output": task.output.model_copy(update={"kind": kind})})
        for expectation in advise(asked, data, MACHINE).expectations:
            assert expectation.reasons != ("no rule is about it",), expectation.rung
    advice = advise(task, data, MACHINE)
    assert expected(advice, "gepa").reasons == ("`rungs: {gepa: {reflection: ...}}` names no model",)
    assert expected(advice, "retrieval").reasons == ("`corpus` names no documents",)
    assert expected(advice, "domain-adaptation").reasons == ("`data.text` names no text of the domain",)


def test_few_rows_a_thousand_and_between(facts):
    few, many = replace(facts, rows_per_label=5), replace(facts, train=1000)
    assert step(few, "few-rows").answer == "yes"
    assert effects(few, "few-rows")["parameter-efficient"] == "not"
    assert effects(few, "thousand") == {}
    assert effects(facts, "thousand")["full"] == "unknown"
    assert effects(many, "thousand")["full"] == "help"
    assert step(replace(facts, needs=Needs(failures=1000)), "thousand").answer == "yes"


def test_facts_that_change_and_knowledge(facts):
    changing = replace(facts, needs=Needs(facts_change="weekly", knowledge=False))
    assert effects(changing, "facts-change")["retrieval"] == "help"
    assert effects(changing, "facts-change")["full"] == "not"
    assert effects(changing, "knowledge") == {"retrieval": "not"}
    assert step(replace(facts, needs=Needs(facts_change="yearly")), "facts-change").answer == "no"


def test_reasoning_depends_on_the_models_size(facts):
    large = replace(EMBEDDED, parameters=7 * 10**9)
    assert effects(replace(facts, needs=Needs(reasoning=True)), "reasoning")["chain-of-thought"] == "not"
    assert effects(replace(facts, needs=Needs(reasoning=True), model=large), "reasoning")["chain-of-thought"] == "help"
    assert effects(facts, "reasoning")["chain-of-thought"] == "not"  # categories
    assert effects(replace(facts, kind="text"), "reasoning")["self-consistency"] == "unknown"
    assert effects(replace(facts, kind="json", needs=Needs(reasoning=True)), "reasoning")["chain-of-thought"] == "not"


def test_context_and_latency_by_hand(facts):
    assert facts.few_shot_tokens == 6 * 22
    assert facts.few_shot_ms / 1000 == pytest.approx(2 * 134_515_008 * 132 / (100e9 * 0.6))
    assert step(facts, "context").answer == "yes"
    assert effects(replace(facts, model=replace(EMBEDDED, context=132)), "context") == {"in-context": "not"}
    assert step(replace(facts, needs=Needs(latency_ms=591)), "latency").answer == "yes"
    assert step(replace(facts, needs=Needs(latency_ms=592)), "latency").answer == "no"


def test_memory(facts):
    assert step(facts, "memory").answer == "yes"
    billion = replace(facts, model=replace(EMBEDDED, parameters=10**9))
    assert effects(billion, "memory") == {"full": "not"}
    seven = replace(facts, model=replace(EMBEDDED, parameters=7 * 10**9))
    assert effects(seven, "memory")["qlora"] == "help"
    assert effects(seven, "memory")["parameter-efficient"] == "not"


def test_privacy_and_endpoints(facts):
    remote = ModelFacts("https://api.example.com/v1#m", True, True, None, None)
    private = replace(facts, model=remote, needs=Needs(privacy="local"))
    assert effects(private, "privacy")["prompting"] == "not"
    assert effects(replace(private, model=replace(remote, remote=False)), "privacy") == {}
    assert effects(private, "endpoint")["parameter-efficient"] == "not"


def expected(advice: Advice, name):
    return next(expectation for expectation in advice.expectations if expectation.rung == name)


def test_expectations_gather_every_reason(task, data):
    asked = task.model_copy(update={"needs": Needs(style=True, rows_per_day=50_000)})
    advice = advise(asked, data, MACHINE)
    assert [expectation.rung for expectation in advice.expectations] == ["zero-shot", *names()]
    lora = expected(advice, "lora")  # tone and volume speak for it, 48 rows against it
    assert lora.expect == "unknown"
    assert len(lora.reasons) == 3
    assert expected(advice, "few-shot-knn").expect == "help"
    assert expected(advice, "domain-adaptation").expect == "not"
    assert expected(advice, "system-prompt").reasons == ("`system` is not set",)
    assert "needs.knowledge" in advice.open_questions
    assert "needs.style" not in advice.open_questions


def test_what_is_said_of_a_rung_overrides_what_is_said_of_its_family(task, data):
    advice = advise(task.model_copy(update={"model": "Qwen/Qwen2.5-7B-Instruct"}), data, MACHINE)
    assert any("4 bits" in reason for reason in expected(advice, "qlora").reasons)
    assert not any("weights alone" in reason for reason in expected(advice, "qlora").reasons)
    assert any("weights alone" in reason for reason in expected(advice, "lora").reasons)


def test_unknown_needs_are_errors(small_task_file):
    from rung.errors import ConfigError

    with pytest.raises(ConfigError) as caught:
        Task.load(small_task_file, {"needs.fact_change": "daily"})
    assert (caught.value.code, caught.value.hint) == ("unknown-key", "did you mean 'facts_change'?")


def test_the_latest_run_of_the_task_is_found(task, tmp_path):
    import os

    assert latest_run(task, tmp_path) is None
    for number, (name, fingerprint) in enumerate((("intents", task.fingerprint()), ("intents", "old"), ("other", "x"))):
        folder = tmp_path / f"run{number}"
        folder.mkdir()
        (folder / "climb.json").write_text(sealed({"task": name, "task_fingerprint": fingerprint}))
        (folder / "report.json").write_text("{}")
        os.utime(folder / "report.json", (number, number))
    assert latest_run(task, tmp_path) == (tmp_path / "run1", False)


def test_the_command_needs_neither_torch_nor_a_model(small_task_file, tmp_path):
    code = (
        "import sys\nfrom rung.cli.main import main\n"
        f"sys.argv = ['rung', 'advise', {str(small_task_file)!r}, '--runs', {str(tmp_path)!r}, '--json']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'sklearn', 'openvino', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    import os

    environment = {**os.environ, "RUNG_CACHE": str(tmp_path / "empty")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert values["measured"] is None
    assert values["steps"][0]["answer"] == "yes"
    assert values["steps"][0]["source"]["url"].startswith("https://")
    assert list((tmp_path / "empty").glob("*")) == []
