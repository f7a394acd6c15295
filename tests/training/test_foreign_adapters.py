"""Adapters that PEFT wrote, on a base model that other changes share: as PEFT runs them alone, or refused."""

import copy
import json
import warnings

import pytest
import torch
import toys
from safetensors.torch import load_file, save_file
from toys import logits

from rung.engines.changes import attach
from rung.errors import ArtifactError, EngineError
from rung.models.reference import ModelFiles
from rung.rungs.adapters import another_model
from rung.training.peft import peft, quiet_peft

QUERIES = {"target_modules": ["q_proj"]}
KINDS = {  # one that reads each of the base model's layers in its own way
    "queries": QUERIES,
    "embeddings": {"target_modules": ["embed_tokens"]},
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "both": {"target_modules": ["embed_tokens", "lm_head"], "use_dora": True},
}


@pytest.fixture(scope="module")
def base():
    return toys.llama(initializer_range=0.2, tied=False)


def foreign(base, folder, seed=0, kind="LoraConfig", **settings):
    """Write an adapter as PEFT does; give the folder, and what PEFT alone computes with it."""
    torch.manual_seed(seed)
    with quiet_peft():
        model = peft().get_peft_model(copy.deepcopy(base), getattr(peft(), kind)(task_type="CAUSAL_LM", **settings))
        for p in model.parameters():
            p.data += torch.randn_like(p) * 0.1 if p.requires_grad else 0
        model.save_pretrained(folder)
        return folder, logits(peft().PeftModel.from_pretrained(copy.deepcopy(base), folder))


def edited(folder, **values):
    file = folder / "adapter_config.json"
    settings = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in settings.items() if value != "absent"}))


def changed(folder, part, change):
    """Change one tensor of the adapter; give its name."""
    tensors = load_file(folder / "adapter_model.safetensors")
    name = next(name for name in tensors if part in name)
    tensors[name] = change(tensors[name])
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return name


def refused(base, folder, kind, code):
    """Check that an adapter is refused, and leaves nothing on the model."""
    model = copy.deepcopy(base)
    types = [type(m) for m in model.modules()]
    with pytest.raises(kind) as caught:
        attach(model, folder, fingerprint="")
    assert caught.value.code == code
    assert str(folder) in str(caught.value)
    assert [type(m) for m in model.modules()] == types
    assert torch.equal(logits(model), logits(base))
    return str(caught.value)


@pytest.mark.parametrize("second", KINDS)
@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("tied", [False, True])
def test_two_adapters_on_one_model_compute_what_each_does_alone(tmp_path, first, second, tied):
    base = toys.llama(initializer_range=0.2, tied=tied)
    model = copy.deepcopy(base)
    made = [foreign(base, tmp_path / str(i), seed=i, **KINDS[name]) for i, name in enumerate((first, second))]
    changes = [attach(model, folder, fingerprint="") for folder, _ in made]
    for i in (0, 1, 0):
        assert torch.equal(logits(model, changes[i]), made[i][1])
        assert torch.equal(logits(model), logits(base))
    for i in (0, 1):  # as Rung writes them, PEFT reads them
        (tmp_path / f"kept{i}").mkdir()
        changes[i].write(tmp_path / f"kept{i}", "")
        assert not [name for name in load_file(tmp_path / f"kept{i}/adapter_model.safetensors") if "base_layer" in name]
        with quiet_peft():
            again = peft().PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / f"kept{i}")
        assert torch.equal(logits(again), made[i][1])
        changes[i].remove()
    assert torch.equal(logits(model), logits(base))


@pytest.mark.parametrize("kind", ["VeraConfig", "LoHaConfig"])
def test_adapters_of_types_that_share_tensors_take_turns(base, tmp_path, kind):
    from rung.engines.changes import family_of

    seeds = [{"projection_prng_key": i} if kind == "VeraConfig" else {} for i in (1, 2)]
    made = [foreign(base, tmp_path / str(i), i, kind, r=4, **QUERIES, **seeds[i]) for i in (0, 1)]
    assert family_of(made[0][0]) != family_of(made[1][0])
    model = copy.deepcopy(base)
    for i in (0, 1, 0):
        change = attach(model, made[i][0], fingerprint="")
        assert torch.equal(logits(model, change), made[i][1])
        change.remove()


@pytest.mark.parametrize("name", ["embeddings", "head"])
def test_copies_of_the_base_model_s_tensors_are_compared_and_not_loaded(base, tmp_path, name):
    folder, wanted = foreign(base, tmp_path / "adapter", **KINDS[name])
    model = copy.deepcopy(base)
    assert torch.equal(logits(model, attach(model, folder, fingerprint="")), wanted)
    changed(folder, "base_layer", lambda tensor: tensor.bfloat16())  # as of a model that ran at a lower precision
    model = copy.deepcopy(base)
    assert torch.equal(logits(model, attach(model, folder, fingerprint="")), wanted)
    damaged = changed(folder, "base_layer", lambda tensor: tensor.float() + 0.5)
    assert damaged in refused(base, folder, ArtifactError, "adapter-mismatch")
    changed(folder, "base_layer", lambda tensor: tensor[:-1])
    assert "another shape" in refused(base, folder, ArtifactError, "adapter-mismatch")


@pytest.mark.parametrize(
    "settings",
    [
        {"alora_invocation_tokens": [9, 10]},
        {"use_bdlora": {"target_modules_bd_a": ["q_proj"], "nblocks": 2}},
        {"kasa_config": {}, "r": 2},
        {"use_qalora": True, "qalora_group_size": 4},
        {"monteclora_config": {}},
        {"init_lora_weights": "mica", "r": 2},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_what_would_compute_something_else_is_refused(base, tmp_path, settings):
    name = next(iter(settings))
    folder, _ = foreign(base, tmp_path / "adapter", **QUERIES, **settings)
    assert name in refused(base, folder, EngineError, "adapter-unsupported")


def test_a_variant_that_a_later_peft_brings_is_refused(base, tmp_path, monkeypatch):
    from rung.training import peft as module

    folder, _ = foreign(base, tmp_path / "adapter", use_dora=True, **QUERIES)
    monkeypatch.setattr(module, "LORA_VARIANTS", ())
    assert "use_dora" in refused(base, folder, EngineError, "adapter-unsupported")


def test_a_prompt_of_a_type_that_rung_does_not_run_is_refused(base, tmp_path):
    settings = {"cpt_token_ids": [1, 2], "cpt_tokens_type_mask": [1, 2]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft().get_peft_model(copy.deepcopy(base), peft().CPTConfig(task_type="CAUSAL_LM", **settings))
        model.save_pretrained(tmp_path / "adapter")
    assert "CPT" in refused(base, tmp_path / "adapter", EngineError, "adapter-unsupported")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["LoraConfig", "PromptTuningConfig"])
def test_tensors_that_are_no_numbers_are_refused(base, tmp_path, kind, value):
    settings = QUERIES if kind == "LoraConfig" else {"num_virtual_tokens": 2}
    folder, _ = foreign(base, tmp_path / "adapter", 0, kind, **settings)
    name = changed(folder, "", lambda tensor: tensor.index_fill(1, torch.tensor([0]), value))
    assert name in refused(base, folder, ArtifactError, "artifact-damaged")


@pytest.mark.parametrize(
    ("values", "kind", "code", "message"),
    [
        ({"peft_type": "absent"}, ArtifactError, "artifact-damaged", "adapter_config.json: peft_type is missing"),
        ({"peft_type": None}, ArtifactError, "artifact-damaged", "peft_type is missing, or no text"),
        ({"peft_type": "FANCY"}, EngineError, "adapter-unsupported", "peft_type is 'FANCY'"),
        ({"r": None}, ArtifactError, "artifact-damaged", "r is null, not a number such as 8"),
        ({"lora_alpha": "16"}, ArtifactError, "artifact-damaged", 'lora_alpha is "16", not a number'),
        ({"layers_pattern": "h"}, ArtifactError, "artifact-damaged", "`layers_to_transform` must also"),
        ({"kasa_config": {}}, EngineError, "adapter-unsupported", "kasa_config"),
        ({"rank_pattern": {"layers.1.self_attn.q_proj": 0}}, EngineError, "adapter-unsupported", "positive integer"),
    ],
)
def test_settings_that_nobody_can_run_are_refused(base, tmp_path, values, kind, code, message):
    folder, _ = foreign(base, tmp_path / "adapter", **QUERIES)
    edited(folder, **values)
    assert message in refused(base, folder, kind, code)


@pytest.mark.parametrize(
    ("kind", "wrong"), [("PROMPT_TUNING", "num_virtual_tokens"), ("ADAPTION_PROMPT", "adapter_layers")]
)
@pytest.mark.parametrize("value", [None, 0, "2"])
def test_a_prompt_without_a_length_is_refused(base, tmp_path, kind, wrong, value):
    folder, _ = foreign(base, tmp_path / "adapter", **QUERIES)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": kind, "adapter_len": 2, wrong: value}))
    assert f"{wrong} is {json.dumps(value)}" in refused(base, folder, ArtifactError, "artifact-damaged")


def test_settings_that_are_not_there_have_peft_s_defaults(base, tmp_path):
    folder, wanted = foreign(base, tmp_path / "adapter", **QUERIES)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({"peft_type": "LORA", "target_modules": ["q_proj"]}))
    model = copy.deepcopy(base)
    assert torch.equal(logits(model, attach(model, folder, fingerprint="")), wanted)


def test_a_broken_file_is_refused(base, tmp_path):
    folder, _ = foreign(base, tmp_path / "adapter", **QUERIES)
    (folder / "adapter_model.safetensors").write_bytes(b"\0" * 40)
    refused(base, folder, ArtifactError, "artifact-damaged")


@pytest.mark.parametrize(
    ("named", "reference", "settings", "another"),
    [
        ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B-Instruct", {}, "Qwen2.5-0.5B-Instruct"),
        ("unsloth/Meta-Llama-3.1-8B-bnb-4bit", "meta-llama/Llama-3.1-8B@main", {}, ""),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "embedded", {}, ""),
        ("HuggingFaceTB/SmolLM2-135M", "embedded", {}, "smollm2-135m-instruct"),
        ("some/other-7b", "FOLDER", {}, "500,000,000"),
        ("some/other-0.6b", "FOLDER", {}, ""),
        ("some/other-7b", "FOLDER", {"quantization_config": {"bits": 4}}, ""),
        ("some/other", "FOLDER", {"_name_or_path": "my/own"}, "my/own"),
        ("some/other", "FOLDER", {"_name_or_path": "/data/own"}, ""),
        ("/data/models/other-7b", "FOLDER", {}, ""),
        ("gpt2", "FOLDER", {}, ""),
        ("", "FOLDER", {}, ""),
    ],
)
def test_a_base_model_of_another_name_is_told_from_a_copy(tmp_path, named, reference, settings, another):
    (tmp_path / "config.json").write_text(json.dumps(settings))
    reference = str(tmp_path) if reference == "FOLDER" else reference
    name = "smollm2-135m-instruct" if reference == "embedded" else "mine"
    files = ModelFiles(reference, tmp_path, "f", name, 500_000_000, 64, "LlamaForCausalLM", None)
    why = another_model(named, files)
    assert another in why if another else why == ""
