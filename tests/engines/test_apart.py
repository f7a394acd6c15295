"""Families whose rows cannot share a pass, as tiny random models, against transformers' plain forward."""

import json

import numpy as np
import pytest
import torch
import transformers

from rung.engines import apart, torch_engine
from rung.engines.apart import mend, runs_apart
from rung.engines.base import GenerateRequest, Sampling, ScoreRequest
from rung.engines.opening import open_torch
from rung.engines.torch_engine import DEPTH, TorchEngine, end_size, end_states, mean_states
from rung.errors import EngineError
from rung.models.checkpoint import text_class
from rung.training.activation_cache import _reason_against
from rung.training.config import TrainConfig
from rung.training.examples import Completions, TokenizedExample
from rung.training.loss import AnswerLoss, packed_layers
from rung.training.preferences import sequence_logprobs
from rung.training.reward_model import answer_scores
from rung.training.targets import linear_layers

pytestmark = pytest.mark.filterwarnings("ignore:.input_embeds. is deprecated:FutureWarning")  # of Nemotron-H

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
CHAT = (
    "t3{% for m in messages %}{% if m.role == 'assistant' %} t4{% endif %} {{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %} t4{% endif %}"
)
TEXT = BASE | {"head_dim": 8, "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}
SCALED = TEXT | {
    "rope_parameters": TEXT["rope_parameters"] | {"llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 16}
}
TURNED = TEXT | {"rope_parameters": TEXT["rope_parameters"] | {"mrope_section": [2, 1, 1]}}
SIGHT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "depth": 1,
         "num_heads": 2, "out_hidden_size": 32, "image_size": 28, "patch_size": 14}  # fmt: skip
DECODER = {"is_decoder": True} | dict.fromkeys(
    (
        "dropout",
        "attention_dropout",
        "activation_dropout",
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "resid_pdrop",
        "embd_pdrop",
        "attn_pdrop",
    ),
    0.0,
)
FAMILIES = {  # name: configuration, its settings, whether rows run apart
    "llama": ("LlamaConfig", {}, False),
    "gpt2": ("GPT2Config", {"n_positions": 256, "n_embd": 32, "n_layer": 3, "n_head": 4}, False),
    "falcon": ("FalconConfig", {"new_decoder_architecture": True, "num_kv_heads": 2}, False),
    "mistral3": (
        "Mistral3Config",
        {"text_config": TEXT | {"model_type": "mistral"}, "vision_config": SIGHT | {"model_type": "pixtral"}}, False,
    ),
    "ministral3": (
        "Mistral3Config",
        {"text_config": SCALED | {"model_type": "ministral3"}, "vision_config": SIGHT | {"model_type": "pixtral"}},
        False,
    ),
    "mllama": (
        "MllamaConfig",
        {"text_config": TEXT | {"cross_attention_layers": [3], "num_hidden_layers": 5},
         "vision_config": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "attention_heads": 2,
                           "image_size": 28, "patch_size": 14, "num_global_layers": 1, "vision_output_dim": 64,
                           "intermediate_layers_indices": [0], "supported_aspect_ratios": [[1, 1]]}},
        True,
    ),
    "qwen2.5-vl": ("Qwen2_5_VLConfig", {"text_config": TURNED, "vision_config": SIGHT}, False),
    "qwen3-vl": (
        "Qwen3VLConfig", {"text_config": TURNED, "vision_config": SIGHT | {"deepstack_visual_indexes": [0]}}, False,
    ),
    "gemma3": ("Gemma3TextConfig", {"head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8}, False),
    "qwen3.5": ("Qwen3_5TextConfig", {"head_dim": 8, **LINEAR}, True),
    "lfm2": ("Lfm2Config", {"full_attn_idxs": [1, 3], "block_auto_adjust_ff_dim": False}, True),
    "granite4": (
        "GraniteMoeHybridConfig",
        {"num_local_experts": 0, "shared_intermediate_size": 48, "layer_types": ["attention"] * 4,
         "position_embedding_type": "rope", "mamba_n_heads": 8, "mamba_d_head": 8},
        False,
    ),
    "granite4-h": (
        "GraniteMoeHybridConfig",
        {"num_local_experts": 0, "shared_intermediate_size": 48, "layer_types": ["mamba", "attention"] * 2,
         "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 16},
        True,
    ),
    "jamba": ("JambaConfig", {"num_experts": 2, "expert_layer_period": 2, "attn_layer_period": 2,
                              "attn_layer_offset": 1, "mamba_d_state": 8, "use_mamba_kernels": False}, True),
    "nemotron-h": (
        "NemotronHConfig",
        {"head_dim": 8, "layers_block_type": ["mamba", "attention", "mamba", "moe"], "mamba_num_heads": 8,
         "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 1, "chunk_size": 16, "n_routed_experts": 4,
         "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 1,
         "moe_shared_expert_intermediate_size": 32, "n_group": 1, "topk_group": 1},
        True,
    ),
    "zamba2": (
        "Zamba2Config",
        {"hidden_size": 64, "num_key_value_heads": 4, "mamba_d_state": 16, "n_mamba_heads": 4, "mamba_ngroups": 1,
         "chunk_size": 16, "layers_block_type": ["mamba", "mamba", "hybrid", "mamba"], "hybrid_layer_ids": [2]},
        True,
    ),
    "doge": ("DogeConfig", {}, True),
    "minimax": ("MiniMaxConfig", {"num_local_experts": 2, "head_dim": 8, "block_size": 8}, True),
    "roberta": ("RobertaConfig", DECODER, True),
    "rembert": (
        "RemBertConfig", DECODER | {"input_embedding_size": 16, "output_embedding_size": 24}, True,
    ),
    "plbart": (
        "PLBartConfig",
        DECODER | {"d_model": 32, "is_encoder_decoder": False, "decoder_layers": 4, "decoder_attention_heads": 4,
                   "decoder_ffn_dim": 48}, True,
    ),
    "trocr": ("TrOCRConfig", {"d_model": 32, "decoder_layers": 4, "decoder_attention_heads": 4,
                              "decoder_ffn_dim": 48}, True),
    "gpt": ("OpenAIGPTConfig", DECODER | {"n_positions": 256, "n_embd": 32, "n_layer": 2, "n_head": 4}, True),
    "opt-350m": ("OPTConfig", {"ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False}, False),
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


def written(kind, settings, folder):
    """Write a random model with this configuration to the folder."""
    config = getattr(transformers, kind)(**(settings if "text_config" in settings else BASE | settings))
    torch.manual_seed(0)
    model = text_class(config.model_type).from_config(config)
    model.save_pretrained(folder)
    vocabulary = {f"t{i}": i for i in range(120)}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "t0"}
    tokenizer = {"version": "1.0", "pre_tokenizer": {"type": "WhitespaceSplit"}, "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    named = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "t2",
        "chat_template": CHAT,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(named))


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request, tmp_path_factory):
    """A model's name, its engine, and transformers' own model with plain attention.

    In a row of one chunk there is nothing that transformers' scan of Nemotron-H and Zamba 2 could sum wrongly. Their
    kernels have no smallest step of time.
    """
    folder = tmp_path_factory.mktemp(request.param.replace(".", "-"))
    written(*FAMILIES[request.param][:2], folder)
    one_chunk = {"chunk_size": 256, "time_step_min": 1e-30} if "chunk_size" in FAMILIES[request.param][1] else {}
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    oracle = text_class(kind).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **one_chunk)
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
    kept, left = linear_layers(family[1].model)
    assert kept
    assert not [name for name in kept if name.rpartition(".")[2].isdigit()]  # PEFT would find every list's
    assert not [name for name in kept if "vis" in name]  # no text reaches a tower for images
    assert bool([name for name in left if "vis" in name]) == ("text_config" in FAMILIES[family[0]][1])


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


@torch.no_grad()
def test_embeddings_are_means_of_the_plain_forward(family):
    _, engine, oracle = family
    layers = oracle.config.get_text_config().num_hidden_layers
    for prompt, found in zip(PROMPTS, mean_states(engine.use(None), PROMPTS), strict=True):
        states = oracle(input_ids=torch.tensor([prompt]), use_cache=False, output_hidden_states=True).hidden_states
        mean = states[round(layers * DEPTH)][0].mean(0)
        assert np.allclose(found, mean / mean.norm(), atol=1e-5)


def test_states_that_are_several_of_each_token_are_no_embedding(tmp_path):
    streams = {"vocab_size_per_layer_input": 120, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0,
               "laurel_rank": 4, "activation_sparsity_pattern": [0.0] * 4, "altup_num_inputs": 2}  # fmt: skip
    written("Gemma3nTextConfig", TEXT | streams, tmp_path)
    with pytest.raises(EngineError, match="gives no single state of each token") as raised:
        open_torch(str(tmp_path)).embed(["t5 t6", "t7"])
    assert raised.value.code == "embedding-unsupported"


def test_a_prompt_is_what_the_template_writes(family):
    _, engine, _ = family
    assert engine.tokens(({"role": "user", "content": "t5 t6"},)) == (3, 5, 6, 4)


def test_token_scores_and_states_are_those_of_row_by_row(family):
    _, engine, oracle = family
    texts = [prompt + CONTINUATIONS[1] for prompt in PROMPTS]
    assert min(map(len, texts)) < LONGROPE["original_max_position_embeddings"] < max(map(len, texts))
    for text, scored in zip(texts, engine.read(texts), strict=True):
        with torch.no_grad():
            logprobs = torch.log_softmax(oracle(input_ids=torch.tensor([text]), use_cache=False).logits[0], -1)
        expected = [float(logprobs[i, token]) for i, token in enumerate(text[1:])]
        np.testing.assert_allclose(scored.logprobs[1:], expected, atol=1e-4)
    for states in (mean_states, end_states):
        alone = np.concatenate([states(engine.use(None), [text]) for text in texts])
        np.testing.assert_allclose(states(engine.use(None), texts), alone, atol=1e-4)


def test_log_probabilities_of_judged_answers_are_those_of_the_plain_forward(family):
    _, engine, oracle = family
    model = engine.use(None)
    rows = [Completions(prompt, CONTINUATIONS, "row") for prompt in PROMPTS]
    apart = [[Completions(row.prompt, (each,), "row") for each in row.completions] for row in rows]
    expected = []
    for row in rows:
        for each in row.completions:
            ids = torch.tensor([(*row.prompt, *each[:-1])])  # nothing is predicted after the last token
            with torch.no_grad():
                logits = oracle(input_ids=ids, use_cache=False).logits[0, len(row.prompt) - 1 :]
            expected.append(float(torch.log_softmax(logits, -1)[range(len(each)), each].sum()))
    np.testing.assert_allclose(np.ravel(sequence_logprobs(model, rows)), expected, atol=1e-3)
    with torch.no_grad():
        head = torch.ones(end_size(model))
        alone = torch.cat([answer_scores(model, head, [one]) for row in apart for one in row])
        assert torch.allclose(answer_scores(model, head, rows), alone, atol=1e-3)


@pytest.mark.parametrize("longest", [44, 45])
def test_states_of_rows_that_run_apart_are_not_kept(family, longest):
    name, engine, _ = family
    reason = _reason_against(engine.model, 2, TrainConfig(learning_rate=1e-3), longest)
    apart = FAMILIES[name][2] or (name == "phi3-longrope" and longest == 45)
    assert (reason == "each of its rows needs a pass of its own") is apart


def test_continuous_batching_has_only_rows_that_may_share_a_pass(family, monkeypatch):
    name, engine, _ = family
    paged = []
    monkeypatch.setattr(engine, "_paged", "anything")
    monkeypatch.setattr(torch_engine, "suits", lambda model, *_, **__: not runs_apart(model))
    monkeypatch.setattr(torch_engine, "generate_paged", lambda *rows, **_: paged.append(rows[2]) or rows[2])
    for prompts in (PROMPTS, [p[:20] for p in PROMPTS]):
        engine.generate([GenerateRequest(p, Sampling(max_tokens=2)) for p in prompts])
    wanted = [] if FAMILIES[name][2] else [5] if name == "phi3-longrope" else [5, 5]
    assert [len(prompts) for prompts in paged] == wanted


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
    output = ("o_proj.weight", "out_proj.weight", "dense.weight", "c_proj.weight")
    name = next(n for n, p in oracle.named_parameters() if n.endswith(output) and "vis" not in n)
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


@pytest.mark.parametrize(
    ("name", "settings", "change"),
    [
        ("zamba2", {}, lambda model: None),
        ("llama", {"initializer_range": 0.005}, lambda model: setattr(model.config, "is_causal", False)),
    ],
)
def test_a_model_whose_tokens_read_ahead_is_refused(tmp_path, monkeypatch, name, settings, change):
    monkeypatch.setenv("RUNG_CACHE", str(tmp_path / "cache"))  # nothing is known of this model
    (tmp_path / "model").mkdir()
    written(FAMILIES[name][0], FAMILIES[name][1] | settings, tmp_path / "model")
    monkeypatch.setattr("rung.engines.torch_engine.mend", change)
    with pytest.raises(EngineError, match="a token reads what follows it") as raised:
        open_torch(str(tmp_path / "model"))
    assert raised.value.code == "model-unsupported"


@pytest.mark.parametrize("kind", ["sliding_attention", "full_attention"])
def test_olmo_3_scales_its_layers_without_a_window_alone(kind):
    yarn = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 8.0, "original_max_position_embeddings": 32}
    ropes = {"scaled": yarn, "plain": {"rope_type": "default", "rope_theta": 10_000.0}}
    ids, logits = torch.arange(3, 103)[None], {}
    for name, rope in ropes.items():
        torch.manual_seed(0)
        settings = {"layer_types": [kind] * 4, "sliding_window": 16, "rope_parameters": rope}
        model = transformers.Olmo3ForCausalLM(transformers.Olmo3Config(**(BASE | settings))).eval()
        logits[name, "before"] = model(ids).logits
        mend(model)
        logits[name, "mended"] = model(ids).logits
    same = "plain" if kind == "sliding_attention" else "scaled"
    assert (logits["scaled", "before"] - logits["plain", "before"]).abs().max() > 0.01
    assert torch.equal(logits["scaled", "mended"], logits[same, "before"])
    assert torch.equal(logits["plain", "mended"], logits["plain", "before"])


def test_what_was_tried_once_is_not_tried_again(family, monkeypatch):
    name, engine, _ = family
    tried = []
    monkeypatch.setattr(apart, "_check_causal", tried.append)
    again = TorchEngine(engine.files)
    assert (tried, runs_apart(again.model)) == ([], FAMILIES[name][2])
    assert again.model.config._attn_implementation == engine.model.config._attn_implementation
