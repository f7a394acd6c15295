import copy
import math
import random
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from toys import llama

from rung.training.checkpoints import Checkpoints
from rung.training.config import TrainConfig
from rung.training.examples import Completions
from rung.training.loop import train
from rung.training.loss import pack, packed_layers
from rung.training.peft import PeftAdapter, peft
from rung.training.preferences import (
    AnswerVerdict,
    AnswerVerdictLoss,
    Pair,
    PairLoss,
    PairScores,
    balancing_weights,
    dpo,
    judged_answers,
    orpo,
    reference_logprobs,
    sequence_logprobs,
    simpo,
    token_logprobs,
)

SCHEDULE = TrainConfig(epochs=1, batch_size=4, learning_rate=1e-3, precision="float32")


def some(rng, low, high):
    return tuple(rng.randrange(3, 97) for _ in range(rng.randint(low, high)))


def prompts(count, completions, *, shared=4, seed=0):
    """Rows whose prompts share a beginning, each with so many completions of one to seven tokens."""
    rng = random.Random(seed)
    head = some(rng, shared, shared)
    return [
        Completions(head + some(rng, 1, 9), tuple(some(rng, 1, 7) for _ in range(completions)), f"row {i}")
        for i in range(count)
    ]


def pairs(count, seed=0):
    return [Pair(row.prompt, row.completions, row.source) for row in prompts(count, 2, seed=seed)]


@pytest.fixture(scope="module")
def tiny():
    return llama(initializer_range=0.3).requires_grad_(True)


def plain(model, rows):
    """The log-probabilities of transformers itself: one prompt and one completion at a time."""
    found = []
    for row in rows:
        for completion in row.completions:
            ids = torch.tensor([[*row.prompt, *completion]])
            logprobs = torch.log_softmax(model(input_ids=ids).logits[0], -1)
            at = torch.arange(len(row.prompt), ids.shape[1])
            found.append(logprobs[at - 1, ids[0, at]])
    return found


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("joined", [0, 3, 10**9], ids=["apart", "partly", "together"])
@pytest.mark.parametrize("layered", [True, False])
def test_a_tree_is_one_row_at_a_time(layered, joined, window, monkeypatch):
    """Values and gradients, in the attention of packed rows and through a mask over the whole sequence."""
    monkeypatch.setattr("rung.training.examples.JOINED", joined)
    if window is None:
        model = llama(initializer_range=0.3)
    else:
        from transformers import MistralConfig, MistralForCausalLM

        torch.manual_seed(0)
        model = MistralForCausalLM(MistralConfig(**llama().config.to_dict() | {"sliding_window": window})).eval()
    model.requires_grad_(True)
    rows = [*prompts(3, 3), *prompts(2, 2, seed=0)]
    weights = torch.randn(sum(len(each) for row in rows for each in row.completions))
    found = []
    for way in (token_logprobs, plain):
        model.zero_grad()
        with packed_layers(model) if layered and way is token_logprobs else nullcontext():
            values = way(model, rows)
        (torch.cat(values) * weights).sum().backward()
        found.append((values, torch.cat([p.grad.flatten() for p in model.parameters()])))
    for one, other in zip(*(values for values, _ in found), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-4, rtol=1e-4)


def test_a_prompt_runs_once_for_all_its_completions():
    rows = prompts(4, 8)
    read = pack(rows, "cpu").ids.shape[1]
    shared = 4
    assert read == shared + sum(
        len(row.prompt) - shared + sum(len(each) - 1 for each in row.completions) for row in rows
    )
    long = [Completions((5,) * 10, ((7,) * 500, (8,) * 500), "long")]
    assert pack(long, "cpu").ids.shape[1] == 2 * (10 + 499)  # attention to each other would cost more than the prompt


def test_models_whose_rows_run_apart_and_dropout_give_the_same(tiny, monkeypatch):
    rows = prompts(2, 3)
    wanted = plain(tiny, rows)
    for name in ("runs_apart", "has_dropout"):
        with monkeypatch.context() as patch:
            patch.setattr(f"rung.training.preferences.{name}", lambda *_: True)
            for one, other in zip(token_logprobs(tiny, rows), wanted, strict=True):
                torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def scores(logprobs, lengths=((2.0, 4.0),), reference=((0.0, 0.0),)):
    return PairScores(*(torch.tensor(each, dtype=torch.float64) for each in (logprobs, lengths, reference)))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


# d = (-3 + 4) - (-5 + 4.5) = 1.5; of means: 0.5 - (-0.125) = 0.625
AT = scores(((-3.0, -5.0),), reference=((-4.0, -4.5),))
E, B = 0.1, 0.5
CLOSED = {
    "sigmoid": -math.log(sigmoid(B * 1.5)),
    "cdpo": -(1 - E) * math.log(sigmoid(B * 1.5)) - E * math.log(sigmoid(-B * 1.5)),
    "robust": (-(1 - E) * math.log(sigmoid(B * 1.5)) + E * math.log(sigmoid(-B * 1.5))) / (1 - 2 * E),
    "hinge": 1 - B * 1.5,
    "ipo": (0.625 - 1 / (2 * B)) ** 2,
    "sigmoid_norm": -math.log(sigmoid(B * 0.625)),
}


@pytest.mark.parametrize("kind", CLOSED)
def test_losses_are_the_papers_formulas(kind):
    assert float(dpo(kind, B, E)(AT)) == pytest.approx(CLOSED[kind])


def test_losses_without_a_reference_are_the_papers_formulas():
    means, odds = (-1.5, -1.25), [math.exp(m) / (1 - math.exp(m)) for m in (-1.5, -1.25)]
    assert float(simpo(2.5, 0.5)(AT)) == pytest.approx(-math.log(sigmoid(2.5 * (means[0] - means[1]) - 1.25)))
    assert float(orpo(0.1)(AT)) == pytest.approx(-0.1 * math.log(sigmoid(math.log(odds[0] / odds[1]))))
    assert torch.isfinite(orpo(0.1)(scores(((0.0, -1.0),))))  # a certain answer


def adapter(model):
    torch.manual_seed(3)
    return PeftAdapter(model, peft().LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))


def with_reference(model, rows):
    return [replace(row, reference=values) for row, values in zip(rows, sequence_logprobs(model, rows), strict=True)]


def trained(tiny, rows, schedule=SCHEDULE, *, make=None, **options):
    model = copy.deepcopy(tiny).requires_grad_(False)
    change = adapter(model)
    rows = with_reference(model, rows)
    loss = make(model) if make else PairLoss(model, objective=dpo("sigmoid", 0.5, 0.0))
    course = train(model, change, rows, schedule, loss=loss, **options)
    change.enable()
    after = sequence_logprobs(model, rows)
    change.disable()
    same = sequence_logprobs(model, rows)
    assert [row.reference for row in rows] == same  # the reference is what it was
    return course, rows, after, [p.detach().clone() for p in change.parameters().values()]


def test_training_starts_at_ln_2_and_moves_the_answers_apart(tiny):
    course, rows, after, _ = trained(tiny, pairs(16), replace(SCHEDULE, epochs=8))
    assert course.losses[0][1] == pytest.approx(math.log(2), abs=1e-5)
    assert course.measures[0]["margin"] == pytest.approx(0, abs=1e-4)
    assert course.measures[-1]["margin"] > 1
    moved = [
        (new[0] - old[0], new[1] - old[1]) for old, new in zip((row.reference for row in rows), after, strict=True)
    ]
    assert all(chosen > rejected for chosen, rejected in moved)


def test_the_likelihood_of_the_better_answer_keeps_it_likely(tiny):
    """Corrections differ by few tokens: DPO alone lowers both answers."""
    rows = [replace(row, completions=(row.completions[0], (*row.completions[0][:-1], 5))) for row in pairs(16)]

    def gained(nll):
        course, *_ = trained(
            tiny,
            rows,
            replace(SCHEDULE, epochs=6),
            make=lambda model: PairLoss(model, objective=dpo("sigmoid", 0.1, 0.0), nll=nll),
        )
        return course.measures[-1]["chosen_change"]

    assert gained(1.0) > gained(0.0)


def test_a_small_beta_is_the_difference_of_likelihoods(tiny):
    rows = with_reference(tiny, pairs(4))
    gradients = []
    for loss in (
        lambda part: PairLoss(tiny, objective=dpo("sigmoid", 1e-4, 0.0))(part) / 1e-4,
        lambda part: sum((-1) ** (i + 1) * each.sum() for i, each in enumerate(token_logprobs(tiny, part))) / 2,
    ):
        tiny.zero_grad()
        loss(rows).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in tiny.parameters()]))
    assert float(torch.cosine_similarity(*gradients, dim=0)) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(*gradients, atol=1e-3, rtol=1e-2)


def kto(model):
    return AnswerVerdictLoss(model, beta=0.1, good_weight=1.0, bad_weight=1.0)


def judged(count):
    rows = prompts(count, 1)
    return judged_answers(rows, [i % 3 != 0 for i in range(count)])


@pytest.mark.parametrize(("rows", "make"), [(pairs(16), None), (judged(16), kto)], ids=["dpo", "kto"])
def test_a_step_does_not_depend_on_how_it_is_cut(tiny, rows, make):
    courses = [trained(tiny, rows, replace(SCHEDULE, micro_batch_size=size), make=make)[0] for size in (None, 1)]
    for one, other in pairwise(courses):
        assert [v for _, v in one.losses] == pytest.approx([v for _, v in other.losses], abs=1e-5)
        assert one.norms == pytest.approx(other.norms, abs=1e-4)


@pytest.mark.parametrize(("rows", "make"), [(pairs(16), None), (judged(16), kto)], ids=["dpo", "kto"])
def test_a_run_that_goes_on_ends_the_same(tiny, rows, make, tmp_path):
    whole, _, _, wanted = trained(tiny, rows, make=make)
    store = Checkpoints(tmp_path)
    trained(tiny, rows, make=make, checkpoints=store, stop_after=2)
    again, _, _, tensors = trained(tiny, rows, make=make, checkpoints=store)
    assert again.losses == whole.losses
    assert again.measures == whole.measures
    assert all(torch.equal(a, b) for a, b in zip(tensors, wanted, strict=True))


def test_kto_raises_good_answers_and_lowers_bad_ones(tiny):
    rows = judged(16)
    _, rows, after, _ = trained(tiny, rows, replace(SCHEDULE, epochs=8), make=kto)
    moved = [now[0] - row.reference[0] for row, now in zip(rows, after, strict=True)]
    assert all((change > 0) == row.good for row, change in zip(rows, moved, strict=True))


def test_mismatched_answers_are_those_of_the_next_row():
    rows = judged(3)
    assert [row.completions[1] for row in rows] == [rows[i].completions[0] for i in (1, 2, 0)]
    assert all(isinstance(row, AnswerVerdict) for row in rows)


@pytest.mark.parametrize(("good", "bad"), [(10, 10), (90, 10), (10, 90), (5, 0)])
def test_weights_balance_good_and_bad_answers(good, bad):
    good_weight, bad_weight = balancing_weights(good, bad)
    if bad:
        assert 1 - 1e-9 <= good_weight * good / (bad_weight * bad) <= 4 / 3 + 1e-9
    assert min(good_weight, bad_weight) == 1.0


def test_the_reference_is_computed_once(tiny, tmp_path, monkeypatch):
    model, rows, file = copy.deepcopy(tiny).requires_grad_(False), pairs(6), tmp_path / "reference.json"
    change = adapter(model)
    first = reference_logprobs(model, change, rows, file, "float32")
    assert first == [pytest.approx(values, abs=1e-4) for values in sequence_logprobs(model, rows)]
    monkeypatch.setattr("rung.training.preferences.sequence_logprobs", lambda *_: pytest.fail("computed again"))
    assert reference_logprobs(model, change, rows, file, "float32") == first
