import copy
from contextlib import nullcontext

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from toys import SIZES, llama, rows
from transformers import AutoConfig, AutoModelForCausalLM

from rung.training.kernels import is_gated, recomputed_gates
from rung.training.loss import AnswerLoss
from rung.training.peft import PeftAdapter, peft
from rung.training.targets import all_linear

LAYERS, WIDE = 2, 64


def model_of(kind):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SIZES | {"num_hidden_layers": LAYERS, "pad_token_id": 0})
    return AutoModelForCausalLM.from_config(config).requires_grad_(False)


def all_of_it(model):
    return list(model.requires_grad_(True).parameters())


def adapter(**settings):
    def put_on(model):
        torch.manual_seed(3)
        config = {**all_linear(model), "task_type": "CAUSAL_LM"} | settings
        change = PeftAdapter(model, peft().get_peft_config(config))
        change.enable()
        trained = list(change.parameters().values())
        with torch.no_grad():
            for parameter in trained:
                parameter.copy_(torch.randn_like(parameter)).requires_grad_(True)
        return trained

    return put_on


WAYS = {
    "all of it": all_of_it,
    "LoRA": adapter(peft_type="LORA", r=4),
    "LoRA with dropout": adapter(peft_type="LORA", r=4, lora_dropout=0.5),
    "DoRA": adapter(peft_type="LORA", r=4, use_dora=True),
    "IA3": adapter(peft_type="IA3", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
}


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "stablelm"])
def test_networks_of_llama_s_form_are_known(kind):
    assert sum(map(is_gated, model_of(kind).modules())) == LAYERS


@pytest.mark.parametrize("kind", ["gpt_neox", "phi3"])
def test_others_are_left_as_they_are(kind):
    assert not any(map(is_gated, model_of(kind).modules()))


@pytest.mark.parametrize("kind", ["llama", "gemma"])
@pytest.mark.parametrize("way", WAYS)
def test_loss_and_gradients_are_the_same_to_the_last_bit(kind, way):
    found = []
    for lean in (recomputed_gates, lambda model: nullcontext()):
        model = model_of(kind).train()
        trained = WAYS[way](model)
        torch.manual_seed(5)
        with lean(model):
            loss = AnswerLoss(model, share_prefix=False)(rows(3, 8))
            loss.backward()
        assert all(p.grad is not None and p.grad.any() for p in trained)
        found.append((loss, *(p.grad for p in trained)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def kept_bytes(model, lean):
    """What a forward pass leaves in memory for the backward pass."""
    states = torch.randn(1, 50, 32, requires_grad=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched, lean(model):
        out = model.model.layers[0].mlp(states)
    assert out.requires_grad
    return sum(event.self_cpu_memory_usage for event in watched.key_averages())


@pytest.mark.parametrize("way", ["all of it", "LoRA"])
def test_two_wide_tensors_are_kept_and_not_four(way):
    model = llama()
    WAYS[way](model)
    saved = kept_bytes(model, lambda model: nullcontext()) - kept_bytes(model, recomputed_gates)
    assert saved == 2 * 50 * WIDE * 4


def test_layers_that_run_again_are_left_as_they_are():
    model = copy.deepcopy(llama()).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with recomputed_gates(model):
        assert not any("forward" in vars(m) for m in model.modules())
    model.gradient_checkpointing_disable()
    with recomputed_gates(model):
        assert sum("forward" in vars(m) for m in model.modules()) == LAYERS
        with recomputed_gates(model):  # an evaluation inside training
            pass
        assert sum("forward" in vars(m) for m in model.modules()) == LAYERS
    assert not any("forward" in vars(m) for m in model.modules())
