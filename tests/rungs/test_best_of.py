"""Reward models, and the best of several answers."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from tests.rungs.trained import help_task, killed_and_resumed

from rung.artifact.artifact import Artifact
from rung.artifact.best_of import BestOf, best_of
from rung.data.rows import Example
from rung.engines.base import Generation
from rung.engines.opening import open_torch
from rung.engines.torch_engine import TorchEngine
from rung.errors import ArtifactError, ConfigError
from rung.export.export import export, merge
from rung.machine import this_machine
from rung.rungs import DPO, BestOfN, LoRA, RewardModel
from rung.task import Task

QUICK = {"rank": 4, "epochs": 4, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def polite_task(tiny_folder):
    """A task with text answers in which the better answer of every pair says "please"."""
    return help_task(tiny_folder, lambda i: f"please wait {i % 4} days", lambda i: f"go away {i % 3}")


@pytest.fixture(scope="module")
def polite(polite_task):
    return polite_task.read()


@pytest.fixture(scope="module")
def base(polite_task):
    return Artifact.zero_shot(polite_task, engine="torch")


@pytest.fixture(scope="module")
def rated(base, polite):
    return RewardModel(**QUICK).fit(base, polite)


def test_it_learns_to_rate_and_leaves_the_answers_as_they_are(base, polite, rated, tmp_path):
    rung = RewardModel(**QUICK)
    assert rung.applies(base, polite).applies
    assert rung.estimate(base, polite, this_machine()).fit_seconds > 0
    told = rated.settings["reward-model"]["answers_told_apart"]
    assert (told["rows"], told["accuracy"]) == ("unseen", 1.0)  # about validation and test rows: none was learned
    assert told["low"] < 1 == told["high"]
    rows = polite.test[:3]
    wanted = [answer.text for answer in base.answer(rows)]
    loaded = Artifact.load(rated.save(tmp_path / "artifact"))
    assert [answer.text for answer in loaded.answer(rows)] == wanted
    assert loaded.weights == base.weights
    prompts = [each.messages for each in base.render(rows)]
    texts = [["please wait 2 days", "go away 1"]] * 3
    rates = best_of(rated.decoder).rated(rated, prompts, texts)
    assert all(polite > rude for polite, rude in rates)
    assert best_of(loaded.decoder).rated(loaded, prompts, texts) == rates
    assert not rung.applies(rated, polite).applies
    assert "very prompt" in rated.decoder.refuses("demonstrations")


def test_rating_is_one_answer_at_a_time_by_the_last_token(base, rated):
    """Padding, and what else is in the batch, do not matter; nor does a token that means padding inside an answer."""
    engine, folder = open_torch(base.model), best_of(rated.decoder).reward
    end = engine.end_token
    texts = [(5, 6, 7, end), (5, 6, 0, end, 0, 9, end), (5, end), (5, 6, 7, 8, 9, 10, 11, 12, end)]
    together, alone = engine.rate(texts, folder), [engine.rate([text], folder)[0] for text in texts]
    assert together == pytest.approx(alone, abs=1e-5)
    assert len({round(value, 4) for value in together}) == len(texts)
    with pytest.raises(ArtifactError, match="holds no reward model"):
        engine.rate(texts, folder.parent)


def test_a_damaged_reward_model_is_not_loaded(rated, tmp_path):
    folder = rated.save(tmp_path / "artifact")
    (folder / "reward" / "reward_head.safetensors").unlink()
    with pytest.raises(ArtifactError):
        Artifact.load(folder)


def test_a_killed_training_goes_on_and_ends_the_same(base, polite):
    rung = RewardModel(**QUICK | {"epochs": 1}, seed=5)
    whole = rung.fit(base, polite)
    again = killed_and_resumed(lambda: rung.fit(base, polite), after=3)
    folders = [best_of(each.decoder).reward for each in (whole, again)]
    for name in ("reward_head.safetensors", "adapter_model.safetensors"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


@pytest.fixture(scope="module")
def tuned(base, polite):
    return LoRA(**QUICK | {"epochs": 1}).fit(base, polite)


@pytest.fixture(scope="module")
def rated_tuned(tuned, polite):
    return RewardModel(**QUICK | {"epochs": 1}).fit(tuned, polite)


def test_it_starts_from_the_artifacts_own_adapter_and_keeps_it(polite, tuned, rated_tuned):
    assert rated_tuned.weights == tuned.weights
    assert best_of(rated_tuned.decoder).reward != tuned.weights.adapter
    assert DPO(**QUICK | {"epochs": 1}).fit(rated_tuned, polite).decoder == rated_tuned.decoder


def test_tuned_weights_are_exported_without_the_reward_model(rated_tuned, tuned, rated, polite, tmp_path):
    export(BestOfN(samples=2).fit(rated_tuned, polite), "peft", tmp_path / "adapter")
    names = {file.name for file in (tmp_path / "adapter").iterdir()}
    assert names == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    written = (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes()
    assert written == (tuned.weights.adapter / "adapter_model.safetensors").read_bytes()
    card = (tmp_path / "adapter" / "README.md").read_text("utf-8")
    assert "by lora+reward-model+best-of-n with" in card
    assert "- answer: best-of" in card
    with pytest.raises(ArtifactError, match="nothing to merge"):
        merge(rated, tmp_path / "none")


def test_what_answers_without_the_reward_model_is_merged(rated_tuned, polite, tmp_path):
    rows = polite.test[:3]
    votes = BestOfN(samples=2, choose="votes").fit(rated_tuned, polite)
    for number, artifact in enumerate((rated_tuned, votes)):
        merge(artifact, tmp_path / f"{number}")
        merged = Artifact.load(tmp_path / f"{number}" / "artifact")
        assert merged.decoder == replace(artifact.decoder, reward=None)
        assert [answer.text for answer in merged.answer(rows)] == [answer.text for answer in artifact.answer(rows)]
    with pytest.raises(ArtifactError, match="its reward model chooses"):
        merge(BestOfN(samples=2).fit(rated_tuned, polite), tmp_path / "chosen")
    assert not (tmp_path / "chosen").exists()


def generations(texts, monkeypatch):
    """Let the engine write these texts, in their order, and say what it was asked."""
    asked = []

    def generate(self, requests, **_):
        asked.extend(requests)
        return [
            Generation(text.removesuffix("..."), 10, 3, "length" if text.endswith("...") else "stop", 0.5)
            for text, _ in zip(texts, requests, strict=True)
        ]

    monkeypatch.setattr(TorchEngine, "generate", generate)
    return asked


def test_the_best_of_several_answers_is_the_one_with_the_highest_rate(rated, polite, monkeypatch, tmp_path):
    rung = BestOfN(samples=3, seed=7)
    best = rung.fit(rated, polite)
    assert best.settings["best-of-n"]["choose"] == "reward"
    asked = generations(["go away 1", "please wait 2 days", "please please..."], monkeypatch)
    (answer,) = Artifact.load(best.save(tmp_path / "artifact")).answer(polite.test[:1])
    assert answer.text == "please wait 2 days"
    # All samples are paid for, each of its own seed.
    assert (answer.prompt_tokens, answer.completion_tokens, answer.seconds) == (30, 9, pytest.approx(1.5, abs=0.5))
    assert [request.sampling.seed for request in asked] == [7, 8, 9]
    sizes = rung.estimate(rated, polite, this_machine()), rung.estimate(replace_reward(rated), polite, this_machine())
    assert sizes[0].row_tokens > sizes[1].row_tokens  # the reward model reads every answer with its prompt
    assert "single one" in best.decoder.refuses("servers")


def replace_reward(artifact):
    return replace(artifact, decoder=replace(artifact.decoder, reward=None))


def test_answers_are_voted_on_without_a_reward_model(base, polite, monkeypatch):
    best = BestOfN(samples=4).fit(base, polite)
    assert best.settings["best-of-n"]["choose"] == "votes"
    generations(["a", "b", " b ", "cut..."], monkeypatch)
    (answer,) = best.answer(polite.test[:1])
    assert (answer.text, answer.confidence) == ("b", 0.5)
    generations(["cut...", "cut...", "cut...", "cut..."], monkeypatch)
    assert best.answer(polite.test[1:2])[0].text == "cut"


def test_more_samples_cost_more(base, polite):
    few, many = (BestOfN(samples=n).estimate(base, polite, this_machine()) for n in (2, 8))
    assert many.row_flops > few.row_flops
    decoders = [BestOfN(samples=n).fit(base, polite).decoder for n in (2, 8)]
    flops = [decoder.row_flops(base, polite.train) for decoder in decoders]
    assert flops[1] > flops[0]


def test_it_is_refused_where_nothing_is_chosen(base, polite, rated, tiny_zero, data):
    assert "not written" in BestOfN().applies(tiny_zero, data).reason
    assert "`reward-model`" in BestOfN(choose="reward").applies(base, polite).reason
    assert not BestOfN().applies(BestOfN().fit(rated, polite), polite).applies
    with pytest.raises(ConfigError, match="cannot check"):
        BestOfN(choose="check").fit(base, polite)


@pytest.fixture(scope="module")
def shop(tmp_path_factory, tiny_folder):
    """A task of SQL queries, and the folder of its database."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "shop.sql").write_text("create table t (a integer); insert into t values (1), (2), (3);")
    (folder / "rows.jsonl").write_text(
        "\n".join(json.dumps({"q": f"how many are above {i}?", "a": f"select count(*) from t where a > {i}"})
                  for i in range(30))
    )  # fmt: skip
    (folder / "task.yaml").write_text(
        "name: shop\ninstruction: Write SQL.\ninputs: [q]\noutput: {kind: text, column: a, max_tokens: 16}\n"
        "metric: {name: sql_execution, database: shop.sql}\n"
        f"data: {{train: rows.jsonl, split: {{method: holdout}}}}\nmodel: {tiny_folder}\n"
    )
    return Task.load(folder / "task.yaml")


def test_queries_that_run_and_agree_win(shop, monkeypatch, tmp_path):
    data = shop.read()
    best = BestOfN(samples=5).fit(Artifact.zero_shot(shop, engine="torch"), data)
    assert best.settings["best-of-n"]["choose"] == "check"
    written = ["select nothing", "select nothing", "select 3", "select count(*) from t", "select 4"]
    for number, artifact in enumerate((best, Artifact.load(best.save(tmp_path / "artifact")))):
        generations(written, monkeypatch)  # the failing query is the most common text
        (answer,) = artifact.answer([Example(f"{number}", {"q": f"how many are there? ({number})"}, (), "row 1")])
        assert (answer.text, answer.confidence) == ("select 3", 0.4)
    assert isinstance(best.decoder, BestOf)


def test_the_packed_rates_of_training_are_those_of_the_engine(base, rated, polite):
    """With the prompt run once for both answers, and gradients."""
    from rung.training.changes import enabled
    from rung.training.examples import Completions
    from rung.training.loss import packed_layers
    from rung.training.reward_model import RewardHead, answer_scores

    engine, folder = open_torch(base.model), best_of(rated.decoder).reward
    from rung.engines.changes import attach

    change = RewardHead(engine.model, attach(engine.model, folder, fingerprint=engine.base_fingerprint))
    change.read(folder)
    rows = [Completions((5, 6, i), ((7, 8, 2), (9, 2)), "") for i in range(3)]
    with enabled(change), packed_layers(engine.model), torch.no_grad():
        packed = answer_scores(engine.model, change.head, rows).tolist()
    change.remove()
    assert packed == pytest.approx(
        engine.rate([(*row.prompt, *each) for row in rows for each in row.completions], folder), abs=1e-5
    )
