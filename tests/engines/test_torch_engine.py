import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rung.engines import torch_decoding
from rung.engines.base import Constraint, GenerateRequest, Sampling, ScoreRequest
from rung.engines.opening import open_torch
from rung.errors import EngineError

QUESTIONS = ("Where is my card?", "I lost my card in the train yesterday, what now?", "How old must I be?", "Rates?")


@pytest.fixture(scope="module")
def engine():
    return open_torch("embedded")


@pytest.fixture(scope="module")
def oracle(engine):
    return AutoModelForCausalLM.from_pretrained(engine.files.folder, dtype=torch.float32).eval()


def messages(text):
    return ({"role": "system", "content": "Which intent is this?"}, {"role": "user", "content": text})


def one_by_one(model, prompt, labels):
    """The plain way: every label behind the prompt in a pass of its own."""
    scores = []
    for label in labels:
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *label]])).logits[0].log_softmax(-1)
        scores.append(sum(logits[len(prompt) - 1 + i, token].item() for i, token in enumerate(label)))
    return np.array(scores)


def many_labels(engine, count):
    words = ["card", "cash", "transfer", "top up", "refund", "limit", "fee", "pin", "rate", "account"]
    texts = [f"{a} {b} {c}" for a in words for b in words for c in words][:count]
    return tuple(engine.encode(text) for text in texts)


@pytest.mark.parametrize("count", [2, 24])
def test_scores_equal_the_plain_forward_pass(engine, oracle, count):
    labels = many_labels(engine, count)
    scored = engine.score([ScoreRequest(messages(text), labels) for text in QUESTIONS])
    for text, result in list(zip(QUESTIONS, scored, strict=True))[:2]:
        expected = one_by_one(oracle, engine.tokens(messages(text)), labels)
        per_token = np.array([len(label) for label in labels])
        np.testing.assert_allclose(result.logprobs / per_token, expected / per_token, atol=1e-4)


def test_five_hundred_labels_score_the_same_alone_and_together(engine):
    labels = many_labels(engine, 500)
    together = engine.score([ScoreRequest(messages(text), labels) for text in QUESTIONS[:2]])
    alone = engine.score([ScoreRequest(messages(QUESTIONS[1]), labels)])[0]
    np.testing.assert_allclose(together[1].logprobs, alone.logprobs, atol=2e-4)


def test_best_first_search_finds_the_argmax_exactly(engine):
    labels = many_labels(engine, 40)
    rng = np.random.default_rng(0)
    bias = tuple(rng.normal(scale=3, size=len(labels)).tolist())
    divisor = tuple(float(len(label)) for label in labels)
    full = engine.score([ScoreRequest(messages(text), labels) for text in QUESTIONS])
    for options in ({}, {"divisor": divisor, "bias": bias}):
        best = engine.score([ScoreRequest(messages(text), labels, best=True, **options) for text in QUESTIONS])
        d, b = np.array(options.get("divisor", 1.0)), np.array(options.get("bias", 0.0))
        for one, other in zip(full, best, strict=True):
            assert np.argmax(one.logprobs / d - b) == np.argmax(other.logprobs / d - b)
            known = np.isfinite(other.logprobs)
            np.testing.assert_allclose(other.logprobs[known], one.logprobs[known], atol=2e-4)


def test_greedy_text_equals_transformers(engine, oracle):
    requests = [GenerateRequest(messages(text), Sampling(max_tokens=12)) for text in QUESTIONS]
    for request, made in zip(requests, engine.generate(requests), strict=True):
        prompt = torch.tensor([engine.tokens(request.prompt)])
        with torch.inference_mode():
            out = oracle.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False, pad_token_id=2
            )
        assert made.text == engine.tokenizer.decode(out[0, prompt.shape[1] :].tolist())
        assert made.prompt_tokens == prompt.shape[1]


def test_stream_is_the_text(engine):
    request = GenerateRequest(messages("Name three fruits."), Sampling(max_tokens=24))
    assert "".join(engine.stream(request)) == engine.generate([request])[0].text


def test_stop_text_is_left_out(engine):
    free = engine.generate([GenerateRequest(messages("Count to five."), Sampling(max_tokens=24))])[0].text
    stop = free[4:7]
    request = GenerateRequest(messages("Count to five."), Sampling(max_tokens=24, stop=(stop,)))
    cut = engine.generate([request])[0]
    assert cut.text == free[: free.index(stop)]
    assert cut.finish_reason == "stop"
    assert "".join(engine.stream(request)) == cut.text


def test_sampling_repeats_with_its_seed(engine):
    request = GenerateRequest(messages("Tell me a story."), Sampling(max_tokens=16, temperature=1.0, top_p=0.9, seed=3))
    other = GenerateRequest(messages("Tell me a story."), Sampling(max_tokens=16, temperature=1.0, top_p=0.9, seed=4))
    first, again, different = (engine.generate([r])[0].text for r in (request, request, other))
    assert first == again != different


def test_answers_to_one_prompt_differ_in_every_batch(engine, monkeypatch):
    """A prompt that several rows have runs once; batches after the first draw other numbers."""
    sampling = Sampling(max_tokens=12, temperature=1.0, seed=3)
    monkeypatch.setattr(torch_decoding, "side_by_side", lambda model: (2048, 2))
    made = engine.generate([GenerateRequest(messages("Tell me a story."), sampling, logprobs=True)] * 6)
    assert len({each.text for each in made}) == 6
    read = engine.read([(*engine.tokens(messages("Tell me a story.")), *each.tokens) for each in made])
    for each, scored in zip(made, read, strict=True):
        np.testing.assert_allclose(each.logprobs, scored.logprobs[-len(each.tokens) :], atol=1e-3)


def test_cancelling_returns_what_was_made(engine):
    made = engine.generate(
        [GenerateRequest(messages("Tell me a story."), Sampling(max_tokens=50))], cancelled=lambda: True
    )
    assert made[0].finish_reason == "cancelled"
    assert made[0].completion_tokens == 1


def test_overflow_is_an_error_not_a_cut(engine):
    with pytest.raises(EngineError) as caught:
        engine.generate([GenerateRequest(messages("word " * 9000), Sampling(max_tokens=4))])
    assert caught.value.code == "context-overflow"


def test_embeddings_do_not_depend_on_their_batch(engine):
    together, alone = engine.embed(QUESTIONS), np.concatenate([engine.embed([text]) for text in QUESTIONS])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("tokens", range(1, 9))
def test_a_cut_answer_ends_with_a_whole_character(engine, tokens):
    text = "यह शहर है 😀"
    request = GenerateRequest(messages("?"), Sampling(max_tokens=tokens), Constraint("choices", (text,)))
    answer = engine.generate([request])[0]
    assert answer.finish_reason == "length"
    assert text.startswith(answer.text)
    assert "".join(engine.stream(request)) == answer.text
