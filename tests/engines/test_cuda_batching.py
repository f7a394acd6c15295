"""What of the CUDA path a CPU can run: continuous batching gives the texts of Rung's own loop."""

import threading

import pytest
import torch

from rung.engines.base import Constraint, Sampling
from rung.engines.torch_decoding import (
    CPU_ROWS,
    CPU_TOKENS,
    cache_bytes,
    decode,
    generate_paged,
    paged_attention,
    preferred_dtype,
    side_by_side,
    suits,
)
from rung.errors import EngineError
from rung.progress import QUIET

MEMORY = {"block_size": 32, "num_blocks": 32, "max_batch_tokens": 64}


@pytest.fixture(scope="module")
def model(tiny_tokenizer, tiny_model):
    model = tiny_model(tiny_tokenizer.vocabulary_size)
    model.set_attn_implementation("sdpa")
    return model


@pytest.fixture(scope="module")
def prompts(tiny_tokenizer):
    rng = torch.Generator().manual_seed(3)
    shared = tuple(torch.randint(3, tiny_tokenizer.vocabulary_size, (40,), generator=rng).tolist())
    own = [torch.randint(3, tiny_tokenizer.vocabulary_size, (n,), generator=rng).tolist() for n in (5, 30, 2, 7, 70, 1)]
    return [*[(*shared, *row) for row in own[:4]], *map(tuple, own)]


def run(model, tiny_tokenizer, prompts, sampling, **more):
    options = {"attention": "sdpa", "progress": QUIET, "cancelled": None, "memory": MEMORY, **more}
    return generate_paged(model, tiny_tokenizer, prompts, sampling, **options)


def test_greedy_texts_are_those_of_the_loop(model, tiny_tokenizer, prompts):
    sampling = Sampling(max_tokens=20)
    own = decode(model, tiny_tokenizer, prompts, sampling, None, logprobs=False, progress=QUIET, cancelled=None)
    paged = run(model, tiny_tokenizer, prompts, sampling)
    for one, other in zip(own, paged, strict=True):
        assert (one.text, one.finish_reason) == (other.text, other.finish_reason)
        assert (one.prompt_tokens, one.completion_tokens) == (other.prompt_tokens, other.completion_tokens)
    assert {one.finish_reason for one in own} == {"stop", "length"}
    assert model.config._attn_implementation == "sdpa"  # scoring and training go on with their own kernel


def test_sampling_repeats_with_its_seed(model, tiny_tokenizer, prompts):
    def texts(seed):
        sampling = Sampling(max_tokens=12, temperature=2.0, top_p=0.9, seed=seed)
        return [one.text for one in run(model, tiny_tokenizer, prompts, sampling)]

    assert texts(1) == texts(1) != texts(2)


def test_cancelled_it_returns_what_was_made_and_leaves_no_thread(model, tiny_tokenizer, prompts):
    before = threading.active_count()
    asked = iter([False] * 3)
    made = run(model, tiny_tokenizer, prompts * 5, Sampling(max_tokens=50), cancelled=lambda: next(asked, True))
    assert "cancelled" in {one.finish_reason for one in made}
    assert len(made) == len(prompts) * 5
    assert threading.active_count() == before


def test_a_failure_is_an_error_and_the_model_is_as_before(model, tiny_tokenizer):
    with pytest.raises(EngineError) as caught:  # 1,000 tokens fit no cache of 1,024 with 64 more, nor the positions
        run(model, tiny_tokenizer, [tuple([3] * 1000)], Sampling(max_tokens=64), memory={**MEMORY, "num_blocks": 2})
    assert caught.value.code == "generation-failed"
    assert model.config._attn_implementation == "sdpa"


def test_what_it_does_not_suit_goes_another_way(model):
    from peft import LoraConfig, PromptTuningConfig, get_peft_model

    greedy = Sampling()
    assert suits(model, greedy, None, logprobs=False)
    assert not suits(model, greedy, None, logprobs=True)
    assert not suits(model, Sampling(stop=("x",)), None, logprobs=False)
    assert not suits(model, greedy, Constraint("regex", "a"), logprobs=False)
    inside = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    assert suits(inside, greedy, None, logprobs=False)
    inside.unload()
    before = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    assert not suits(before, greedy, None, logprobs=False)


def test_an_adapter_in_the_layers_is_run(model, tiny_tokenizer, prompts):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    tuned = get_peft_model(model, config).eval()
    try:
        sampling = Sampling(max_tokens=12)
        own = decode(tuned, tiny_tokenizer, prompts, sampling, None, logprobs=False, progress=QUIET, cancelled=None)
        assert [o.text for o in own] == [p.text for p in run(tuned, tiny_tokenizer, prompts, sampling)]
        with tuned.disable_adapter():
            assert [o.text for o in own] != [p.text for p in run(tuned, tiny_tokenizer, prompts, sampling)]
    finally:
        tuned.unload()


def test_what_the_cpu_does_best(model):
    assert preferred_dtype("cpu") == torch.float32
    assert paged_attention("cpu") is None
    assert side_by_side(model) == (CPU_TOKENS[1], CPU_ROWS)
    assert cache_bytes(model) == 2 * 2 * 2 * 8 * 4  # keys and values, layers, heads, head size, bytes
