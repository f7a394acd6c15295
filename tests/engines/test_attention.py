"""Models whose layers see only the last tokens, or cap their scores: as transformers' eager attention has them."""

import numpy as np
import pytest
import torch

from rung.engines.base import Sampling
from rung.engines.label_trie import build_trie
from rung.engines.torch_decoding import decode
from rung.engines.tree_scoring import CAPPED, best_attention, score_all, score_best
from rung.progress import QUIET

WINDOW = 8
SHAPE = {
    "vocab_size": 26, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "initializer_range": 0.6,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def models():
    from transformers import (
        Gemma2Config,
        Gemma2ForCausalLM,
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        MistralConfig,
        MistralForCausalLM,
        Qwen3Config,
        Qwen3ForCausalLM,
    )

    layers = ["sliding_attention", "full_attention"] * 2
    yield "mistral", MistralForCausalLM, MistralConfig(**SHAPE, sliding_window=WINDOW)
    yield (
        "qwen3",
        Qwen3ForCausalLM,
        Qwen3Config(**SHAPE, sliding_window=WINDOW, use_sliding_window=True, layer_types=layers),
    )
    yield (
        "gemma2",
        Gemma2ForCausalLM,
        Gemma2Config(**SHAPE, sliding_window=WINDOW, layer_types=layers, attn_logit_softcapping=2.0),
    )
    yield "gemma3", Gemma3ForCausalLM, Gemma3TextConfig(**SHAPE, sliding_window=WINDOW, layer_types=layers)


@pytest.fixture(scope="module", params=["mistral", "qwen3", "gemma2", "gemma3"])
def pair(request, tmp_path_factory):
    """The model as Rung runs it, and transformers' eager one with the same weights."""
    name, kind, config = next(one for one in models() if one[0] == request.param)
    folder = tmp_path_factory.mktemp(name)
    torch.manual_seed(0)
    kind(config).save_pretrained(folder)
    ours = kind.from_pretrained(folder, attn_implementation=best_attention(config)).eval()
    return ours, kind.from_pretrained(folder, attn_implementation="eager").eval()


def prompts(count=5):
    rng = np.random.default_rng(1)
    head = tuple(rng.integers(3, 26, 7).tolist())
    return [head + tuple(rng.integers(3, 26, 6 + 3 * i).tolist()) for i in range(count)]


def plain(model, prompt, label):
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *label]])).logits[0].log_softmax(-1)
    return sum(logits[len(prompt) - 1 + i, token].item() for i, token in enumerate(label))


LABELS = ((3, 4, 5, 6), (3, 4, 7), (8, 9, 10, 11, 12), (8,), (13, 14))


def test_scores_are_those_of_the_plain_forward_pass(pair):
    model, oracle = pair
    trie = build_trie(LABELS)
    wanted = np.array([[plain(oracle, prompt, label) for label in LABELS] for prompt in prompts()])
    np.testing.assert_allclose(score_all(model, prompts(), trie), wanted, atol=1e-3)
    ones, zeros = np.ones(len(LABELS), np.float32), np.zeros(len(LABELS), np.float32)
    best, _ = score_best(model, prompts(), trie, ones, zeros)
    assert (best.argmax(1) == wanted.argmax(1)).all()
    known = np.isfinite(best)
    np.testing.assert_allclose(best[known], wanted[known], atol=1e-3)


def test_texts_are_those_of_one_row_at_a_time(pair, tiny_tokenizer):
    model, oracle = pair
    made = decode(
        model, tiny_tokenizer, prompts(), Sampling(max_tokens=12), None, logprobs=True, progress=QUIET, cancelled=None
    )
    for prompt, one in zip(prompts(), made, strict=True):
        tokens = list(prompt)
        for logprob in one.logprobs:
            with torch.inference_mode():
                log_probs = oracle(torch.tensor([tokens])).logits[0, -1].log_softmax(-1)
            assert log_probs.max().item() == pytest.approx(logprob, abs=1e-3)
            tokens.append(int(log_probs.argmax()))


def test_only_models_that_cap_scores_leave_the_fast_attention():
    chosen = {name: best_attention(config) for name, _, config in models()}
    assert chosen == {"mistral": "sdpa", "qwen3": "sdpa", "gemma2": CAPPED, "gemma3": "sdpa"}
