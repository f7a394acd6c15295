"""Ensembles: weights and temperatures against brute force, and mixtures of two heads on a tiny encoder."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from rung.artifact.artifact import Artifact
from rung.artifact.heads import Head, tempered
from rung.engines import encoders
from rung.errors import ConfigError, EngineError
from rung.machine import this_machine
from rung.rungs import Ensemble, build
from rung.rungs import ensemble as module
from rung.rungs.base import OK, Cost, Rung, skip
from rung.rungs.ensemble import best_temperature, held_apart, log_loss, mixture_weights


@pytest.fixture(autouse=True)
def _with_torch(monkeypatch):
    """An export to OpenVINO takes longer than everything here."""
    monkeypatch.setattr(encoders, "choose_backend", lambda files, *, device="auto": "torch")


@pytest.fixture(autouse=True)
def _with_given(monkeypatch, tiny_encoder):
    """Every member is a rung that is given."""
    monkeypatch.setattr(module, "get", lambda name, seed: Given(str(tiny_encoder), seed, name))


@dataclass(frozen=True)
class Given(Rung):
    """A rung that puts a random head on the tiny encoder."""

    encoder: str
    seed: int
    label: str = "given"

    family = "features"

    @property
    def name(self):
        return self.label

    def suits(self, artifact, data):
        return skip("it was asked not to") if self.name == "never" else OK

    def estimate(self, artifact, data, machine):
        return Cost(10, 20.0, 30.0, 40.0, 50.0, 60.0, 70 + self.seed)

    def fit(self, artifact, data, *, progress=None):
        if self.name == "silent":
            return artifact
        rng = np.random.default_rng(self.seed)
        weight = 30 * rng.normal(size=(len(data.labels), 32)).astype(np.float32)
        record = {"rows": len(data.train), "seed": self.seed}
        return artifact.step(
            self.name, record, decoder=Head(data.labels, self.encoder, weight, np.zeros(6, np.float32))
        )


def ensemble(tiny_encoder, *members, seed=0, **settings):
    return Ensemble(members=members, seed=seed, **settings)


@pytest.fixture(scope="module")
def mixed(tiny_encoder, zero, data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoders, "choose_backend", lambda files, *, device="auto": "torch")
        patch.setattr(module, "get", lambda name, seed: Given(str(tiny_encoder), seed, name))
        return ensemble(tiny_encoder, "given", "given", holdout=0.5).fit(zero, data)


def softmax(logits):
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    return (probs / probs.sum(-1, keepdims=True)).astype(np.float32)


def test_tempered_probabilities_are_those_of_divided_logits():
    logits = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_allclose(tempered(softmax(logits), 2.5), softmax(logits / 2.5), rtol=1e-5)


def test_the_temperature_undoes_overconfidence():
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(4000, 5))
    truth = np.array([rng.choice(5, p=p / p.sum()) for p in softmax(logits).astype(np.float64)])
    assert best_temperature(softmax(3 * logits), truth) == pytest.approx(3.0, rel=0.1)


def test_the_weights_are_the_best_of_all():
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 4, 300)
    signal = np.eye(4)[truth]
    probs = [softmax(strength * signal + rng.normal(size=(300, 4))) for strength in (2.0, 1.5, 0.0)]
    weights = mixture_weights(probs, truth)
    steps = np.linspace(0.001, 0.998, 101)
    grid = [(a, b, 1 - a - b) for a in steps for b in steps if a + b < 0.9995]

    def improbability(one):
        """Of the rows, and of weights by which each member had one row right before."""
        return log_loss(sum(w * c for w, c in zip(one, probs, strict=True)), truth) - np.log(one).sum() / 300

    assert weights.sum() == pytest.approx(1)
    assert improbability(weights) <= min(map(improbability, grid)) + 1e-6
    assert weights[2] < 0.02  # it knows nothing


@pytest.mark.parametrize("rows", [1, 2, 4, 8])
def test_a_few_rows_do_not_decide_alone(rows):
    """Members that know the same both stay, and nobody's probabilities are bent to the end of the scale."""
    rng, lone, bent = np.random.default_rng(rows), 0, 0
    for _ in range(100):
        truth = rng.integers(0, 4, rows)
        probs = [softmax(2 * np.eye(4)[truth] + rng.normal(size=(rows, 4))) for _ in range(2)]
        lone += min(mixture_weights(probs, truth)) < 0.02
        bent += not 0.3 < best_temperature(probs[0], truth) < 3
    assert (lone, bent) == (0, 0)


def test_answers_are_the_weighted_average_of_the_members(mixed, data):
    mixture = mixed.decoder
    assert len(mixture.members) == 2
    parts = [
        weight * tempered(np.array([a.probabilities for a in member.answer(data.test)], np.float32), temperature)
        for member, weight, temperature in zip(mixture.members, mixture.weights, mixture.temperatures, strict=True)
    ]
    answers = mixed.answer(data.test)
    np.testing.assert_allclose([a.probabilities for a in answers], sum(parts), atol=1e-6)
    assert [a.text for a in answers] == [data.labels[i] for i in sum(parts).argmax(1)]
    assert [a.confidence for a in answers] == [max(a.probabilities) for a in answers]
    one = mixture.members[0].answer(data.test)
    assert [a.prompt_tokens for a in answers] == [2 * a.prompt_tokens for a in one]
    assert mixed.messages({"text": "hi"}) == mixture.members[0].messages({"text": "hi"})
    assert mixed.text(mixed.messages({"text": "hi"})) == "hi"
    assert mixed.decoder.row_flops(mixed, data.train) == 2 * mixture.members[0].decoder.row_flops(
        mixture.members[0], data.train
    )


def test_answers_survive_saving(mixed, data, tmp_path):
    loaded = Artifact.load(mixed.save(tmp_path / "artifact"))
    assert [a.probabilities for a in loaded.answer(data.test)] == [a.probabilities for a in mixed.answer(data.test)]
    assert Artifact.load(tmp_path / "artifact" / "members" / "1").decoder.kind == "head"


def test_a_member_that_is_named_again_gets_the_next_seed(tiny_encoder):
    made = ensemble(tiny_encoder, "given", "other", "given", seed=3).rungs()
    assert [(one.name, one.seed) for one in made] == [("given", 3), ("other", 3), ("given", 4)]


def test_useless_members_are_left_out(tiny_encoder, zero, data, monkeypatch):
    chosen = iter(([0.005, 0.005, 0.99], [1.0]))
    monkeypatch.setattr(module, "mixture_weights", lambda probs, truth: np.array(next(chosen)))
    fitted = ensemble(tiny_encoder, "given", "given", "given").fit(zero, data)
    assert fitted.settings["ensemble"]["kept"] == [2]
    (member,) = fitted.decoder.members
    assert member.settings["given"] == {"rows": len(data.train), "seed": 2}


def test_when_it_applies_and_what_it_costs(tiny_encoder, zero, data):
    two = ensemble(tiny_encoder, "given", "given")
    assert two.applies(zero, data).applies
    assert two.applies(zero, replace(data, validation=())).applies
    few = replace(data, train=data.train[:1])
    assert two.applies(zero, few).reason == "its weights are chosen on 10% of the training rows, which here is none"
    assert ensemble(tiny_encoder, "given", "never").applies(zero, data).reason == "never: it was asked not to"
    n = 0.1 * len(data.train)
    fit = pytest.approx(1.9 * 40 + 100 * n), pytest.approx(1.9 * 60 + 120 * n)
    assert two.estimate(zero, data, this_machine()) == Cost(38, *fit, 80.0, 100.0, 120.0, 71)
    once = replace(two, refit=False).estimate(zero, data, this_machine())
    assert (once.fit_tokens, once.row_seconds) == (18, 120.0)


def test_rows_held_out_leave_every_label_one_to_learn_from(data):
    learn, weigh = held_apart(data.train, 0.1, 0)
    assert {row.id for row in learn} | {row.id for row in weigh} == {row.id for row in data.train}
    assert len(learn) + len(weigh) == len(data.train)
    assert weigh
    assert held_apart(data.train[::-1], 0.1, 0)[1] == weigh[::-1]
    assert held_apart(data.train, 0.1, 1)[1] != weigh
    labels = {row.outputs[0] for row in data.train}
    twice = replace(data.train[0], outputs=("only here",))
    for seed in range(20):
        learn, _ = held_apart((*data.train, twice), 1.0, seed)
        assert {row.outputs[0] for row in learn} == labels | {"only here"}
    learn, weigh = held_apart(data.train, 1.0, 0)
    assert sorted(row.outputs[0] for row in learn) == sorted(labels)
    assert len(weigh) == len(data.train) - len(labels)


def test_members_are_weighed_by_held_out_rows_and_learn_from_all(tiny_encoder, zero, data, monkeypatch):
    seen, real = [], Given.fit
    monkeypatch.setattr(
        Given, "fit", lambda self, artifact, given, **k: (seen.append(given.train), real(self, artifact, given, **k))[1]
    )
    rung = ensemble(tiny_encoder, "given", "given", holdout=0.5)
    most, held_out = held_apart(data.train, 0.5, 0)
    again = rung.fit(zero, data)
    assert seen == [most, most, data.train, data.train]
    assert [one.settings["given"]["rows"] for one in again.decoder.members] == [len(data.train)] * 2
    assert again.settings["ensemble"]["rows"] == len(held_out)
    seen.clear()
    once = replace(rung, refit=False).fit(zero, replace(data, validation=()))
    assert seen == [most, most]
    assert once.decoder.weights == again.decoder.weights


def test_a_killed_run_fits_no_member_again(tiny_encoder, zero, data, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "cache_dir", lambda: tmp_path)
    rung = ensemble(tiny_encoder, "given", "given", "given", holdout=0.5)
    whole = rung.fit(zero, data)
    assert not any((tmp_path / "members").iterdir())
    real, seen = Given.fit, []

    def dying(self, artifact, given, *, progress=None):
        if len(seen) == 4:
            raise KeyboardInterrupt
        seen.append((self.seed, len(given.train)))
        return real(self, artifact, given)

    monkeypatch.setattr(Given, "fit", dying)
    with pytest.raises(KeyboardInterrupt):
        rung.fit(zero, data)
    before = [*seen]
    seen.clear()
    again = rung.fit(zero, data)
    most, rows = len(held_apart(data.train, 0.5, 0)[0]), len(data.train)
    assert before + seen == [*((i, most) for i in range(3)), *((i, rows) for i in range(3))]
    assert [a.probabilities for a in again.answer(data.test)] == [a.probabilities for a in whole.answer(data.test)]
    saved = Artifact.load(again.save(tmp_path / "artifact"))
    assert [a.probabilities for a in saved.answer(data.test)] == [a.probabilities for a in whole.answer(data.test)]


def test_what_cannot_be_mixed_is_an_error(tiny_encoder, zero, data, monkeypatch):
    for members in ((), ("given",), ("given", "ensemble")):
        with pytest.raises(ConfigError) as caught:
            ensemble(tiny_encoder, *members).rungs()
        assert caught.value.code == "bad-setting"
    monkeypatch.setattr(
        Artifact, "answer", lambda self, rows, **_: [type("Silent", (), {"probabilities": None})()] * len(rows)
    )
    with pytest.raises(EngineError) as refused:
        ensemble(tiny_encoder, "silent", "silent").fit(zero, data)
    assert refused.value.code == "no-probabilities"


def test_members_take_the_settings_of_the_task(task):
    settings = {"ensemble": {"members": ["features", "fine-tuned-encoder"]}, "fine-tuned-encoder": {"epochs": 7}}
    (made,) = build(("ensemble",), task.model_copy(update={"rungs": settings}), 2)
    features, tuned = made.rungs()
    assert (features.name, tuned.name, tuned.epochs, tuned.seed) == ("features", "fine-tuned-encoder", 7, 2)
