"""Where adapters are put: PEFT's settings of LoRA against PEFT itself, and what is refused."""

import copy
import json
import re

import pytest
import torch
import toys
import transformers
from test_methods import BASE, Engine, logits, written
from torch.nn.functional import softmax

from rung.engines.changes import attach, family_of, read_settings
from rung.errors import ArtifactError, ConfigError, EngineError, TrainingError
from rung.rungs import DoRA, LoRA
from rung.training.changes import OUTPUT, plain_parameters, start_from
from rung.training.config import TrainConfig
from rung.training.kernels import LowRankLinear
from rung.training.loop import train
from rung.training.peft import peft, quiet_peft
from rung.training.targets import expert_parameters, linear_layers, reached_share

IDS = torch.arange(1, 13).view(2, 6)
MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}


class Tokens(Engine):
    """An engine whose tokenizer knows the tokens t0 to t96."""

    class tokenizer:  # noqa: N801
        @staticmethod
        def token_id(token):
            number = token.removeprefix("t")
            return int(number) if number.isdigit() and int(number) < 97 else None


ATTENTION = r"self_attn\.[qkvo]_proj"
STACKED = ("mlp.experts.down_proj", "mlp.experts.gate_up_proj")
PARALLEL = ("block_sparse_moe.input_linear.weight", "block_sparse_moe.output_linear.weight")
HYBRID = {
    "layer_types": ["mamba", "attention"], "shared_intermediate_size": 48, "mamba_n_heads": 8, "mamba_d_head": 8,
    "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 16,
}  # fmt: skip
# Settings, the router, the linear layers that are adapted, and the tensors of experts.
MIXTURES = {
    "Mixtral": ({}, r"mlp\.gate", ATTENTION, STACKED),
    "Qwen3Moe": ({}, r"mlp\.gate", ATTENTION, STACKED),
    "GraniteMoe": ({}, r"router", ATTENTION, PARALLEL),
    "GraniteMoeHybrid": (HYBRID, r"router", rf"{ATTENTION}|mamba\.in_proj|shared_mlp\.(in|out)put_linear", PARALLEL),
    # PEFT takes the names of the dense layers beside their experts for those of the experts.
    "HunYuanMoEV1": ({"moe_topk": 2}, r"mlp\.gate\.", ATTENTION, STACKED),
    "Afmoe": ({"num_dense_layers": 1}, r"router", ATTENTION, STACKED),
    "Qwen2Moe": ({"shared_expert_intermediate_size": 24}, r"mlp\.gate\.", rf"{ATTENTION}|shared_expert", STACKED),
    "Dbrx": (
        {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0}, "n_heads": 4, "n_layers": 2,
         "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
         "d_model": 32}, r"router", r"Wqkv|out_proj", (),
    ),
    "JetMoe": (
        {"kv_channels": 8}, r"router", r"kv_proj",
        ("mlp.input_linear.weight", "mlp.output_linear.weight", "self_attention.experts.input_linear.weight",
         "self_attention.experts.output_linear.weight"),
    ),
}  # fmt: skip


def moe(kind):
    torch.manual_seed(0)
    sizes = toys.SIZES | MOE | {"num_hidden_layers": 2}
    config = getattr(transformers, f"{kind}Config")(**sizes | MIXTURES[kind][0])
    model = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return model


def peft_reads(base, folder):
    with quiet_peft():  # it warns of the base model's fingerprint
        return peft().PeftModel.from_pretrained(copy.deepcopy(base), folder)


SETTINGS = {
    "names": {"target_modules": ("q_proj", "model.layers.1.mlp.up_proj")},
    "patterns": {"rank_pattern": {"q_proj": 2, r"1\..*down_proj": 6}, "alpha_pattern": {"up_proj": 3}},
    "whole": {"modules_to_save": ("model.norm", "lm_head")},
    "embeddings": {"modules_to_save": ("embed_tokens",)},
    "tokens": {"trained_tokens": ("t3", "t5")},
}


def trained(model, rung):
    """The change after three steps, and the model that it is on."""
    change = rung.change(Tokens(model), None)
    schedule = TrainConfig(epochs=1, batch_size=4, learning_rate=0.05, precision="float32")
    train(model, change, toys.rows(4, 12), schedule)
    return change


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", SETTINGS)
def test_peft_reads_the_same_adapter_and_the_base_model_stays(name, tied, tmp_path):
    base = toys.llama(tied=tied, initializer_range=0.2)
    model = copy.deepcopy(base)
    change = trained(model, LoRA(rank=4, **SETTINGS[name]))
    ours = logits(model, change)
    assert (ours - logits(base)).abs().max() > 0.01
    assert torch.equal(logits(model), logits(base))
    folder = written(change, tmp_path / "adapter")
    theirs = peft_reads(base, folder)
    assert torch.allclose(ours, logits(theirs), atol=1e-5)
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert settings["rank_pattern"] == dict(SETTINGS[name].get("rank_pattern", {}))

    merged, plain = change.merged(), copy.deepcopy(base)
    if OUTPUT in merged and tied:
        plain.lm_head.weight = torch.nn.Parameter(merged.pop(OUTPUT).clone())
    for key, tensor in merged.items():
        plain.get_parameter(key).data = tensor
    assert torch.allclose(softmax(logits(plain), -1), softmax(ours, -1), atol=1e-5)

    change.remove()
    assert [type(m) for m in model.modules()] == [type(m) for m in base.modules()]
    assert all(torch.equal(p, base.get_parameter(n)) for n, p in model.named_parameters())
    again = attach(model, folder, fingerprint=BASE)
    assert torch.allclose(logits(model, again), ours, atol=1e-6)
    more = LoRA(rank=4, continue_from=str(folder)).change(Tokens(copy.deepcopy(base)), None)
    start_from(more, folder, fingerprint=BASE)
    assert torch.allclose(logits(more.base, more), ours, atol=1e-6)


@pytest.mark.parametrize("kind", MIXTURES)
def test_routers_have_no_adapter_and_experts_can_be_named(kind):
    base = moe(kind)
    _, router, adapted, experts = MIXTURES[kind]
    assert any(re.search(router, name) for name in plain_parameters(base))
    core, table = base.base_model, base.get_input_embeddings().weight
    matrices = {n: p.numel() for n, p in core.named_parameters() if p.dim() > 1 and p is not table}
    layers = {name for name in matrices if re.search(adapted, name) and not name.endswith(experts)}
    assert expert_parameters(base) == list(experts)
    for named in ((), experts):
        rung = LoRA(rank=2, target_parameters=named)
        expected = sum(size for name, size in matrices.items() if name in layers or name.endswith(named or "-"))
        assert rung.reached_share(Tokens(base)) == pytest.approx(expected / sum(matrices.values()))
    change = LoRA(rank=2).change(Tokens(base), None)
    changed = {re.sub(r"\.lora_[AB]\..*", "", name) for name in change.parameters()}
    assert changed == {f"{base.base_model_prefix}.{name}".removesuffix(".weight") for name in layers}
    change.remove()


@pytest.mark.parametrize(
    ("kind", "expert"), [("Mixtral", STACKED[0]), ("Qwen3Moe", STACKED[0]), ("GraniteMoe", PARALLEL[1])]
)
def test_experts_are_reached_where_they_are_named(kind, expert, tmp_path):
    base = moe(kind)
    rung = LoRA(rank=2, target_parameters=(expert,))
    model = copy.deepcopy(base)
    change = trained(model, rung)
    ours = logits(model, change)
    folder = written(change, tmp_path / "adapter")
    theirs = peft_reads(base, folder)
    assert torch.allclose(ours, logits(theirs), atol=1e-5)
    plain = copy.deepcopy(base)
    for key, tensor in change.merged().items():
        plain.get_parameter(key).data = tensor
    assert torch.allclose(softmax(logits(plain), -1), softmax(ours, -1), atol=1e-5)
    change.remove()
    assert torch.equal(logits(model), logits(base))


def test_dense_models_are_reached_whole():
    assert LoRA().reached_share(Tokens(toys.llama())) == 1


def test_towers_and_mamba_projections_have_no_adapter():
    from transformers import FalconH1Config, Gemma3Config, SiglipVisionConfig

    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = toys.SIZES | {"num_hidden_layers": 2, "head_dim": 8}
    config = Gemma3Config(
        text_config=text, vision_config=SiglipVisionConfig(image_size=28, patch_size=14, **tower).to_dict()
    )
    mamba = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "head_dim": 8}
    hybrid = FalconH1Config(**toys.SIZES | mamba | {"num_hidden_layers": 2, "mamba_chunk_size": 8, "mamba_n_groups": 1})
    for one, left, pattern in (
        (config, "model.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj", "q_proj"),
        (hybrid, "model.layers.0.mamba.out_proj", None),
    ):
        model = transformers.AutoModelForCausalLM.from_config(one)
        change = LoRA(rank=2).change(Tokens(model), None)
        names = list(change.parameters())
        assert left in linear_layers(model)[1]
        assert names
        assert not any("vision" in name or "mamba.out_proj" in name for name in names)
        assert pattern is None or any(pattern in name for name in names)
        change.remove()


def small(kind, **settings):
    config = getattr(transformers, f"{kind}Config")(**toys.SIZES | {"num_hidden_layers": 4} | settings)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


MEMORY = {"mamba_d_state": 8, "n_mamba_heads": 4, "mamba_ngroups": 1, "chunk_size": 8, "num_key_value_heads": 4}
STREAMS = {
    "vocab_size_per_layer_input": 97, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0, "laurel_rank": 4,
    "head_dim": 8, "activation_sparsity_pattern": [0.0] * 4, "altup_num_inputs": 2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "settings", "unread"),
    [
        ("MBart", {"d_model": 32, "is_encoder_decoder": False, "is_decoder": True, "decoder_layers": 2,
                   "decoder_attention_heads": 4, "decoder_ffn_dim": 48}, "encoder_attn"),
        ("Gemma3nText", STREAMS, "correction_coefs"),
        ("Git", {"num_hidden_layers": 2, "vision_config": {"hidden_size": 16, "intermediate_size": 16, "patch_size": 14,
                 "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}}, "image_encoder"),
    ],
)  # fmt: skip
def test_what_a_training_on_text_does_not_reach_has_no_adapter(kind, settings, unread):
    model = small(kind, **settings).train()
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    assert any(unread in name for name in linear_layers(model)[1])
    change = LoRA(rank=2).change(Tokens(model), None)
    change.enable()
    for p in change.parameters().values():
        p.requires_grad_(True)
    logits = model(input_ids=IDS, use_cache=False).logits
    (logits * torch.randn_like(logits)).sum().backward()
    assert not [name for name, p in change.parameters().items() if "lora_B" in name and not p.grad.any()]
    change.remove()


def test_an_adapter_on_weights_that_layers_share_is_not_merged():
    kinds = ["mamba", "hybrid"] * 2
    model = small("Zamba2", **MEMORY, hidden_size=64, layers_block_type=kinds, hybrid_layer_ids=[1, 3])
    shared = "model.layers.1.shared_transformer.self_attn.q_proj"
    for names in (["q_proj"], [shared]):  # of the second, the other layer would get the update of the first
        change = LoRA(rank=2, target_modules=names).change(Tokens(model), None)
        for p in change.parameters().values():
            p.data += 0.1
        with pytest.raises(TrainingError, match=f"2 layers share {shared}.weight") as refused:
            change.merged()
        assert refused.value.code == "export-unsupported"
        change.remove()


@pytest.mark.parametrize(
    ("settings", "named", "there"),
    [
        ({"target_modules": ["qproj"]}, "qproj", "q_proj"),
        ({"target_modules": ["model.layers.7.self_attn.q_proj"]}, "layers.7", "q_proj"),
        ({"rank_pattern": {"embed_tokens": 4}}, "embed_tokens", "q_proj"),
        ({"alpha_pattern": {"gate": 4}, "target_modules": ["q_proj"]}, "gate", "adapted layers are q_proj"),
        ({"modules_to_save": ["head"]}, "head", "lm_head"),
        ({"modules_to_save": ["layers"]}, "layers", "lm_head"),
        ({"target_parameters": ["mlp.experts.w"]}, "experts", "none"),
        ({"trained_tokens": ["<new>"]}, "<new>", "resize_token_embeddings"),
    ],
)
def test_names_that_stand_for_nothing_are_refused_with_those_that_there_are(settings, named, there):
    with pytest.raises(ConfigError) as refused:
        LoRA(**settings).change(Tokens(toys.llama()), None)
    assert refused.value.code == "bad-setting"
    assert named in refused.value.message
    assert there in refused.value.hint


# Python's engine matches these for minutes and years, or not at all.
SLOW = ("(a+)+q_proj", "(.|m)*k", ".*.*.*.*.*.*.*.*x", "q_proj|(o_proj", "[a-z]{1,99}[a-z]+[a-z]+[a-z]+x")


@pytest.mark.parametrize("pattern", SLOW)
def test_patterns_that_may_match_for_ever_are_refused(pattern, tmp_path):
    with pytest.raises(ConfigError, match="rank_pattern"):
        LoRA(rank_pattern={pattern: 4}).change(Tokens(toys.llama()), None)
    for settings in ({"alpha_pattern": {pattern: 4}}, {"target_modules": pattern}, {"exclude_modules": pattern}):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **settings}))
        (tmp_path / "adapter_model.safetensors").touch()
        with pytest.raises(ArtifactError, match=r"adapter_config\.json"):
            read_settings(tmp_path)


def test_patterns_as_people_write_them_are_read(tmp_path):
    for pattern in (r".*self_attn\.(q|k|v|o)_proj", r"layers\.[0-9]+\.mlp\.down_proj", r"^.*layers\.(0|1)\..*_proj$"):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "target_modules": pattern}))
        (tmp_path / "adapter_model.safetensors").touch()
        assert read_settings(tmp_path)["target_modules"] == pattern


@pytest.mark.parametrize(
    "settings", [{"rank_pattern": {"q_proj": 0}}, {"alpha_pattern": {"q_proj": 1.5}}, {"target_modules": [3]}]
)
def test_settings_have_bounds(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        LoRA(**settings)


def test_what_peft_cannot_do_is_said_before(tmp_path):
    experts = {"target_parameters": ["mlp.experts.down_proj"]}
    assert "dropout" in LoRA(dropout=0.1, **experts).reason_against(None)
    assert "DoRA" in DoRA(**experts).reason_against(None)
    assert "target_modules" in LoRA(target_modules=["q_proj"], continue_from=str(tmp_path)).reason_against(None)


def foreign(tmp_path, base, **changes):
    """An adapter that PEFT wrote, without the keys whose change is None, as older versions write them."""
    torch.manual_seed(5)
    theirs = peft().get_peft_model(copy.deepcopy(base), peft().LoraConfig(r=8, lora_alpha=8, target_modules=["q_proj"]))
    for name, p in theirs.named_parameters():
        if "lora_B" in name:
            p.data.normal_()
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return theirs


def test_training_goes_on_from_an_adapter_without_newer_keys(tmp_path):
    base = toys.llama(initializer_range=0.2)
    missing = dict.fromkeys(
        ["use_rslora", "use_dora", "alpha_pattern", "rank_pattern", "lora_alpha", "modules_to_save"]
    )
    theirs = foreign(tmp_path, base, **missing)
    change = LoRA(rank=8, alpha=8, continue_from=str(tmp_path)).change(Tokens(base), None)
    start_from(change, tmp_path, fingerprint=BASE)
    assert torch.allclose(logits(base, change), logits(theirs), atol=1e-6)
    change.remove()
    change = LoRA(continue_from=str(tmp_path)).change(Tokens(base), None)
    with pytest.raises(ArtifactError) as refused:
        start_from(change, tmp_path, fingerprint=BASE)
    assert refused.value.hint == "set rank: 8, alpha: 8"


def test_settings_that_this_peft_does_not_know_are_refused(tmp_path):
    base = toys.llama()
    foreign(tmp_path, base, use_something_new=False, also_new=None)
    attach(base, tmp_path, fingerprint=BASE).remove()
    foreign(tmp_path, base, use_something_new={"a": 1})
    with pytest.raises(EngineError, match="use_something_new") as refused:
        attach(base, tmp_path, fingerprint=BASE)
    assert refused.value.code == "adapter-unsupported"
    assert "merge_and_unload" in refused.value.hint


def test_an_adapter_with_whole_modules_takes_turns_with_others(tmp_path):
    base = toys.llama(tied=False, initializer_range=0.2)
    engine = Tokens(copy.deepcopy(base))
    folders = {}
    for name, settings in {"plain": {}, "whole": {"modules_to_save": ("lm_head",)}, "other": {}}.items():
        torch.manual_seed(len(folders))
        change = LoRA(rank=2, **settings).change(engine, None)
        for p in change.parameters().values():
            p.data += 0.1 * torch.randn_like(p)
        folders[name] = written(change, tmp_path / name), logits(engine.model, change)
        change.remove()
    assert family_of(folders["plain"][0]) == family_of(folders["other"][0]) == "LORA"
    for name in ("plain", "whole", "other", "whole", "plain"):
        engine.use(str(folders[name][0]))
        assert torch.allclose(engine.model(IDS).logits, folders[name][1], atol=1e-6)
    engine.make_room("nothing")
    assert torch.equal(logits(engine.model), logits(base))


def test_reached_share_counts_whole_modules():
    base = toys.llama()
    config = peft().LoraConfig(target_modules=["q_proj"], modules_to_save=["layers.1.mlp"])
    sizes = {n: p.numel() for n, p in base.model.layers.named_parameters() if p.dim() > 1}
    reached = sum(size for n, size in sizes.items() if "q_proj" in n or n.startswith("1.mlp"))
    assert reached_share(base, config) == pytest.approx(reached / sum(sizes.values()))


def test_what_follows_a_lean_layer_may_change_its_output_in_place():
    """As Llama 4 does with its experts' input."""
    torch.manual_seed(0)
    x, w = torch.randn(2, 3, 4), torch.randn(5, 4)
    down, up = torch.randn(2, 4, requires_grad=True), torch.randn(5, 2, requires_grad=True)
    for bias in (None, torch.randn(5)):
        y = LowRankLinear.apply(x, w, bias, down, up, 0.5)
        y.mul_(2)
        ours = torch.autograd.grad(y.sum(), (down, up))
        plain = 2 * (torch.nn.functional.linear(x, w, bias) + 0.5 * (x @ down.T) @ up.T)
        assert torch.allclose(y, plain, atol=1e-5)
        wanted = torch.autograd.grad(plain.sum(), (down, up))
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(ours, wanted, strict=True))
