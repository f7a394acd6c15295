"""Fine-tuning a sentence encoder: a tiny random one for mechanics, the real one for quality."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from rung.artifact.artifact import Artifact
from rung.engines import encoders
from rung.engines.encoders import open_sentence_encoder
from rung.errors import ArtifactError, ModelError, TrainingError
from rung.machine import this_machine
from rung.models.reference import resolve
from rung.rungs import FineTunedEncoder
from rung.training.checkpoints import Checkpoints
from rung.training.config import TrainConfig
from rung.training.encoder import (
    HEAD_RATE,
    EncoderWithHead,
    LabelledText,
    LabelLoss,
    contrastive_loss,
    of_similar_length,
)
from rung.training.loop import train

TEXTS = ("Where is my card?", "I have not received my new card, which I ordered a week ago", "How old must I be?")


@pytest.fixture(autouse=True)
def _with_torch(monkeypatch):
    """An export to OpenVINO takes longer than everything here; tests/engines compare both."""
    monkeypatch.setattr(encoders, "choose_backend", lambda files, *, device="auto": "torch")


def labelled(trained, labels=(0, 0, 1, 1, 2, 2)):
    texts = ("my card", "the card", "how old must I be", "what age", "top up failed", "it failed to top up my account")
    return [LabelledText(t, label) for t, label in zip(trained.tokenize(texts), labels, strict=True)]


def with_head(tiny_encoder, labels=3):
    trained = EncoderWithHead(resolve(str(tiny_encoder)))
    rng = np.random.default_rng(0)
    trained.set_head(rng.normal(size=(labels, 32)).astype(np.float32), rng.normal(size=labels).astype(np.float32))
    return trained


# ---- the encoder


def test_untrained_vectors_are_those_of_sentence_transformers():
    files = resolve("embedded-encoder")
    ours = EncoderWithHead(files)
    wanted = open_sentence_encoder(files, backend="torch").embed(TEXTS)
    np.testing.assert_allclose(ours.embed(ours.tokenize(TEXTS)), wanted, atol=2e-6)


def test_groups_hold_texts_of_similar_length():
    assert list(of_similar_length([3, 10, 6, 7, 5, 1])) == [[1, 3, 2], [4, 0], [5]]  # 6 of 10, 3 of 5: just long enough
    assert list(of_similar_length([4, 4])) == [[0, 1]]


def test_vectors_and_gradients_are_those_of_each_text_alone(tiny_encoder):
    texts = [*TEXTS, "card", "my card is lost", "a week ago I have ordered a new card, which I have not received " * 2]
    found = []
    for alone in (False, True):
        trained = EncoderWithHead(resolve(str(tiny_encoder)))
        rows = trained.tokenize(texts)
        assert len(list(of_similar_length([len(row) for row in rows]))) > 2
        trained.model.eval().requires_grad_(True)
        vectors = torch.cat([trained.vectors([row]) for row in rows]) if alone else trained.vectors(rows)
        (vectors * torch.arange(32)).sum().backward()
        found.append((vectors, {name: p.grad for name, p in trained.parameters().items() if p.grad is not None}))
    (vectors, gradients), (wanted, each) = found
    torch.testing.assert_close(vectors, wanted, atol=1e-6, rtol=1e-5)
    assert gradients.keys() == each.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, each[name], atol=1e-4, rtol=1e-4)


def test_the_head_is_kept_in_other_units(tiny_encoder):
    trained = with_head(tiny_encoder)
    weight, intercept = trained.head()
    vectors = torch.from_numpy(trained.embed(trained.tokenize(TEXTS)))
    wanted = vectors @ torch.from_numpy(weight).T + torch.from_numpy(intercept)
    torch.testing.assert_close(trained.logits(vectors), wanted)
    np.testing.assert_allclose(trained.parameters()["head.weight"].detach().numpy(), weight / HEAD_RATE)


def test_encoders_with_other_modules_are_refused(tiny_encoder, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(tiny_encoder, folder)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 256, "do_lower_case": true}')
    with pytest.raises(ModelError) as caught:
        EncoderWithHead(resolve(str(folder)))
    assert caught.value.code == "tuning-unsupported"


# ---- the loss


def test_the_contrastive_loss_is_that_of_the_paper():
    rng = np.random.default_rng(0)
    labels = [0, 1, 0, 2, 1, 2, 0]
    z = rng.normal(size=(7, 5))
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    losses = []
    for i in range(7):
        below = sum(np.exp(z[i] @ z[a] / 0.2) for a in range(7) if a != i)
        alike = [p for p in range(7) if p != i and labels[p] == labels[i]]
        losses.append(-np.mean([np.log(np.exp(z[i] @ z[p] / 0.2) / below) for p in alike]))
    found = contrastive_loss(torch.from_numpy(z), torch.tensor(labels), 0.2)
    np.testing.assert_allclose(found.numpy(), losses, rtol=1e-12)


def test_without_contrast_the_loss_is_cross_entropy(tiny_encoder):
    trained = with_head(tiny_encoder)
    trained.model.eval()
    rows = labelled(trained)
    logits = trained.logits(torch.from_numpy(trained.embed([row.tokens for row in rows])))
    wanted = cross_entropy(logits, torch.tensor([row.label for row in rows]), reduction="sum")
    torch.testing.assert_close(LabelLoss(trained, rows, 0.0, 0.1)(rows), wanted)


def test_with_contrast_every_text_brings_another_of_its_label(tiny_encoder):
    trained = with_head(tiny_encoder)
    trained.model.eval()
    rows = labelled(trained)  # two of a label, so the other one is known
    whole = [*rows, *(rows[i] for i in (1, 0, 3, 2, 5, 4))]
    vectors = torch.from_numpy(trained.embed([row.tokens for row in whole]))
    labels = torch.tensor([row.label for row in whole])
    contrast = contrastive_loss(vectors, labels, 0.1).mean()
    entropy = cross_entropy(trained.logits(vectors), labels)
    loss = LabelLoss(trained, rows, 0.3, 0.1)(rows)
    torch.testing.assert_close(loss, 6 * (0.3 * contrast + 0.7 * entropy), atol=1e-4, rtol=1e-5)


def test_a_row_of_weight_2_is_a_row_that_is_there_twice(tiny_encoder):
    trained = with_head(tiny_encoder)
    trained.model.eval()
    rows = labelled(trained)
    heavy = [replace(rows[0], mass=2.0), *rows[1:]]
    loss = LabelLoss(trained, rows, 0.0, 0.1)
    torch.testing.assert_close(loss(heavy), loss([rows[0], *rows]))
    assert sum(row.mass for row in heavy) == 7
    assert loss(heavy) - loss(rows) > 0.01


@pytest.mark.parametrize("contrast", [0.0, 0.5, 1.0])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tiny_encoder, tmp_path, contrast):
    schedule = TrainConfig(epochs=3, batch_size=4, learning_rate=1e-3, lr_scheduler="linear", warmup_ratio=0.1, seed=5)

    def run(name, *stops):
        for stop in stops:
            trained = with_head(tiny_encoder)
            rows = labelled(trained)
            loss = LabelLoss(trained, rows, contrast, 0.1)
            kept = Checkpoints(tmp_path / name)
            train(trained.model, trained, rows, schedule, loss=loss, checkpoints=kept, stop_after=stop)
        return {name: p.detach().clone() for name, p in trained.parameters().items()}

    whole, resumed = run(f"whole{contrast}", 6), run(f"resumed{contrast}", 2, 3, 6)
    fresh = with_head(tiny_encoder).parameters()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name
        still = (contrast == 1.0 and name.startswith("head.")) or "token_type" in name
        assert still or not torch.equal(tensor, fresh[name]), name


# ---- the rung


def rung(tiny_encoder, **settings):
    return FineTunedEncoder(encoder=str(tiny_encoder), epochs=1, batch_size=16, **settings)


@pytest.fixture(scope="module")
def tuned(tiny_encoder, zero, data):
    return rung(tiny_encoder).fit(zero, data)


def test_the_input_and_the_encoder_stay_as_they_were(tiny_encoder, zero, tuned):
    assert zero.decoder.kind == "label-scoring"
    assert tuned.name == "fine-tuned-encoder"
    assert tuned.decoder.encoder == str(tiny_encoder)
    assert tuned.decoder.tuned != tiny_encoder
    assert tuned.settings["fine-tuned-encoder"]["encoder_fingerprint"] == resolve(str(tiny_encoder)).fingerprint


def test_the_same_seed_gives_the_same_encoder(tiny_encoder, zero, data, tuned):
    again, other = rung(tiny_encoder).fit(zero, data), rung(tiny_encoder, seed=1).fit(zero, data)
    assert again.decoder.tuned == tuned.decoder.tuned
    np.testing.assert_array_equal(again.decoder.weight, tuned.decoder.weight)
    assert other.decoder.tuned != tuned.decoder.tuned


def test_answers_survive_saving(tuned, data, tmp_path):
    loaded = Artifact.load(tuned.save(tmp_path / "artifact"))
    assert loaded.decoder.tuned == tmp_path / "artifact" / "encoder"
    before, after = ([a.probabilities for a in one.answer(data.test)] for one in (tuned, loaded))
    assert before == after
    again = Artifact.load(loaded.save(tmp_path / "again"))
    assert [a.probabilities for a in again.answer(data.test)] == before


def test_a_changed_encoder_is_refused(tuned, tmp_path):
    folder = tuned.save(tmp_path / "artifact")
    weights = folder / "encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(ArtifactError, match=r"model\.safetensors was changed"):
        Artifact.load(folder)


def test_training_stops_early_on_held_out_rows(tiny_encoder, zero, data):
    stopped = replace(rung(tiny_encoder, patience=1, holdout=0.2), epochs=9, learning_rate=1e-9).fit(zero, data)
    settings = stopped.settings["fine-tuned-encoder"]
    assert len(settings["evaluations"]) == 2  # the second was no better
    assert settings["rows"] < len(data.train) + len(data.labels)
    with pytest.raises(TrainingError) as caught:
        rung(tiny_encoder, patience=1, holdout=1e-9).fit(zero, data)
    assert caught.value.code == "too-few-rows"


def test_when_it_applies_and_what_it_costs(tiny_encoder, zero, data, tuned):
    wanted = rung(tiny_encoder)
    assert wanted.applies(zero, data).applies
    assert wanted.applies(tuned, data).reason == "a head is trained already"
    assert wanted.applies(zero, replace(data, labels=())).reason == "a head answers categories only"
    several = replace(zero, signature=replace(zero.signature, kind="multilabel"))
    assert wanted.applies(several, data).reason == "it learns one label a row"
    one, two = (FineTunedEncoder(epochs=epochs).estimate(zero, data, this_machine()) for epochs in (1, 2))
    assert two.fit_flops - one.fit_flops == pytest.approx(2 * 3 * one.row_flops * len(data.train))
    assert tuned.decoder.row_flops(tuned, data.train) < zero.decoder.row_flops(zero, data.train)


def test_the_real_encoder_learns(zero, data):
    fitted = FineTunedEncoder(epochs=2).fit(zero, data)
    right = [a.text == e.outputs[0] for a, e in zip(fitted.answer(data.test), data.test, strict=True)]
    assert np.mean(right) >= 0.9
    losses = [loss for _, loss in fitted.settings["fine-tuned-encoder"]["losses"]]
    assert losses[-1] < losses[0]
