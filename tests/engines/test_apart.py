"""Families whose rows cannot share a pass, as tiny random models, against transformers' plain forward."""

import json

import numpy as np
import pytest
import torch
import transformers

from rung.engines import apart
from rung.engines.apart import runs_apart
from rung.engines.base import GenerateRequest, Sampling, ScoreRequest
from rung.engines.opening import open_torch
from rung.engines.torch_engine import TorchEngine
from rung.errors import EngineError
from rung.training.examples import TokenizedExample
from rung.training.loss import AnswerLoss, packed_layers
from rung.training.targets import linear_layers

BASE = {
    "vocab_size": 120, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.15,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
LINEAR = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10_000.0, "original_max_position_embeddings": 44,
    "short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 3.0, 4.0],
}  # fmt: skip
FAMILIES = {  # name: configuration, its settings, whether rows run apart
    "llama": ("LlamaConfig", {}, False),
    "gemma3": ("Gemma3TextConfig", {"head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8}, False),
    "qwen3.5": ("Qwen3_5TextConfig", {"head_dim": 8, **LINEAR}, True),
    "lfm2": ("Lfm2Config", {"full_attn_idxs": [1, 3], "block_auto_adjust_ff_dim": False}, True),
    "granite4-h": (
        "GraniteMoeHybridConfig",
        {"num_local_experts": 0, "shared_intermediate_size": 48, "layer_types": ["mamba", "attention"] * 2,
         "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 16},
        True,
    ),
    "jamba": ("JambaConfig", {"num_experts": 2, "expert_layer_period": 2, "attn_layer_period": 2,
                              "attn_layer_offset": 1, "mamba_d_state": 8, "use_mamba_kernels": False}, True),
    "doge": ("DogeConfig", {}, True),
    "minimax": ("MiniMaxConfig", {"num_local_experts": 2, "head_dim": 8, "block_size": 8}, True),
    "modernbert-decoder": ("ModernBertDecoderConfig", {"local_attention": 16}, False),
    "recurrent-gemma": ("RecurrentGemmaConfig", {"lru_width": 32, "attention_window_size": 16}, True),
    "gpt-j": ("GPTJConfig", {"n_positions": 256, "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 8}, True),
    "bloom": ("BloomConfig", {"n_layer": 2, "n_head": 4}, True),
    "phi-moe": ("PhimoeConfig", {"num_local_experts": 4, "sliding_window": 16}, False),
    "phi3-longrope": (
        "Phi3Config",
        {"sliding_window": None, "original_max_position_embeddings": 44, "rope_parameters": LONGROPE}, False,
    ),
    "gpt-oss": (
        "GptOssConfig",
        {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16}, True,
    ),
    "llama4": (
        "Llama4TextConfig",
        {"intermediate_size_mlp": 48, "head_dim": 8, "num_local_experts": 4, "attention_chunk_size": 24,
         "interleave_moe_layer_step": 2, "no_rope_layer_interval": 4},
        True,
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request, tmp_path_factory):
    """A model's name, its engine, and transformers' own model with plain attention."""
    config, settings, _ = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp(request.param.replace(".", "-"))
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**(BASE | settings)))
    model.save_pretrained(folder)
    vocabulary = {f"t{i}": i for i in range(120)}
    tokenizer = {"version": "1.0", "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "t0"}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "t2", "chat_template": "{{ messages }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    oracle = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return request.param, open_torch(str(folder)), oracle.eval()


def drawn(seed, count, low, high):
    draw = np.random.default_rng(seed)
    return [tuple(int(t) for t in draw.integers(3, 120, draw.integers(low, high))) for _ in range(count)]


PROMPTS = [tuple(range(3, 13)) + own for own in drawn(0, 5, 4, 40)]
CONTINUATIONS = tuple(drawn(1, 4, 1, 4))


@torch.no_grad()
def plain_scores(oracle, prompt):
    values = []
    for continuation in CONTINUATIONS:
        ids = torch.tensor([[*prompt, *continuation]])
        logprobs = torch.log_softmax(oracle(input_ids=ids, use_cache=False).logits[0], -1)
        values.append(sum(float(logprobs[len(prompt) + i - 1, t]) for i, t in enumerate(continuation)))
    return values


def test_adapters_reach_layers_of_every_family(family):
    assert linear_layers(family[1].model)[0]


def test_which_families_run_apart(family):
    name, engine, _ = family
    assert runs_apart(engine.model) is FAMILIES[name][2]


def test_scores_are_those_of_the_plain_forward(family):
    _, engine, oracle = family
    expected = np.array([plain_scores(oracle, prompt) for prompt in PROMPTS])
    scored = engine.score([ScoreRequest(prompt, CONTINUATIONS) for prompt in PROMPTS])
    assert np.allclose([row.logprobs for row in scored], expected, atol=1e-4)
    best = engine.score([ScoreRequest(prompt, CONTINUATIONS, best=True) for prompt in PROMPTS])
    assert [int(np.argmax(row.logprobs)) for row in best] == expected.argmax(1).tolist()


def test_greedy_texts_are_those_of_the_plain_forward(family):
    _, engine, oracle = family
    for prompt, done in zip(
        PROMPTS, engine.generate([GenerateRequest(p, Sampling(max_tokens=12)) for p in PROMPTS]), strict=True
    ):
        ids, made = list(prompt), []
        for _ in range(12):
            with torch.no_grad():
                token = int(oracle(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
            if token == 2:
                break
            ids.append(token)
            made.append(f"t{token}")
        assert done.text.replace(" ", "") == "".join(made)


def test_the_loss_and_its_gradients_are_those_of_row_by_row(family):
    _, engine, oracle = family
    rows = [
        TokenizedExample.answered(p, c, f"row{i}")
        for i, (p, c) in enumerate(zip(PROMPTS, drawn(2, 5, 2, 5), strict=True))
    ]
    output = ("o_proj.weight", "out_proj.weight", "dense.weight")
    name = next(n for n, p in oracle.named_parameters() if n.endswith(output))
    expected = torch.zeros(())
    oracle.requires_grad_(True)
    for row in rows:
        first, last = row.spans[0]
        logits = oracle(input_ids=torch.tensor([row.tokens]), use_cache=False).logits[0, first - 1 : last - 1]
        expected = expected + torch.nn.functional.cross_entropy(
            logits, torch.tensor(row.tokens[first:last]), reduction="sum"
        )
    expected.backward()
    parameter = dict(engine.use(None).named_parameters())[name]
    parameter.requires_grad_(True)
    try:
        with packed_layers(engine.model):
            loss = AnswerLoss(engine.model)(rows)
            loss.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        assert torch.allclose(parameter.grad, oracle.get_parameter(name).grad, atol=1e-4, rtol=1e-3)
    finally:
        parameter.requires_grad_(False)
        parameter.grad = None
        oracle.zero_grad()


def test_a_model_whose_tokens_read_ahead_is_refused(tmp_path):
    settings = {"num_key_value_heads": 4, "mamba_d_state": 16, "n_mamba_heads": 4, "mamba_ngroups": 1, "chunk_size": 16}
    kinds = {"layers_block_type": ["mamba", "mamba", "hybrid", "mamba"], "hybrid_layer_ids": [2]}
    torch.manual_seed(0)
    config = transformers.Zamba2Config(**(BASE | {"hidden_size": 64} | settings | kinds))
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    vocabulary = {f"t{i}": i for i in range(120)}
    tokenizer = {"version": "1.0", "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "t0"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    with pytest.raises(EngineError, match="a token reads what follows it") as raised:
        open_torch(str(tmp_path))
    assert raised.value.code == "model-unsupported"


def test_what_was_tried_once_is_not_tried_again(family, monkeypatch):
    name, engine, _ = family
    tried = []
    monkeypatch.setattr(apart, "_check_causal", tried.append)
    again = TorchEngine(engine.files)
    assert (tried, runs_apart(again.model)) == ([], FAMILIES[name][2])
    assert again.model.config._attn_implementation == engine.model.config._attn_implementation
