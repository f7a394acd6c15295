"""GGUF files run by llama.cpp itself, against the models that they were written from."""

import json

import numpy as np
import pytest
import torch
from llama_cpp import logprobs

from rung.tuning.gguf_export import write_gguf

gguf = pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")

SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.2, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip
TEXT = "Naïve façade: don't you'll x=1+23;\n\n  two   words 🚀 中文 a_b\tc ABC abc the there then"
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8}
A = 3 + 64  # the letter a, behind the special tokens
MODELS = {
    "llama": ("Llama", {}),
    "llama-biased": ("Llama", {"attention_bias": True, "head_dim": 32, "tie_word_embeddings": True}),
    "llama-rope-llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "llama-rope-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-rope-yarn": ("Qwen2", {"rope_parameters": YARN}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "gemma": ("Gemma", {"head_dim": 32}),
    "gemma2": ("Gemma2", {**GEMMA, "num_hidden_layers": 3}),
    "gemma3": ("Gemma3", {**GEMMA, "num_hidden_layers": 7}),
}


def byte_level(folder, splitter):
    """Train byte-level BPE with 300 tokens on the text, with this pre-tokenizer, and write it to the folder."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, trainers
    from tokenizers.pre_tokenizers import ByteLevel

    backend = Backend(models.BPE())
    backend.pre_tokenizer = splitter
    backend.decoder = decoders.ByteLevel()
    special = ["<unk>", "<|start|>", "<|end|>"]
    alphabet = ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )  # fmt: skip
    backend.train_from_iterator([TEXT] * 9, trainer)
    save_tokenizer(backend, folder, {"bos_token": "<|start|>", "eos_token": "<|end|>", "add_bos_token": False})
    return backend.get_vocab_size()


def save_tokenizer(backend, folder, settings):
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def build(folder, architecture, settings, vocabulary):
    import transformers

    torch.manual_seed(0)
    name = "Gemma3Text" if architecture == "Gemma3" else architecture
    config = getattr(transformers, f"{name}Config")(vocab_size=vocabulary, **{**SIZES, **settings})
    model = getattr(transformers, f"{architecture}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name or "bias" in parameter_name:
                parameter += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    model.set_attn_implementation("eager")  # the others of transformers leave Gemma2's softcapping out
    return model


def tabled_gelu(x):
    """GELU as llama.cpp has it on CPU: looked up in a table of half-precision numbers."""
    table = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
    return torch.where(x.abs() >= 10, x.relu(), table)


def splitter(name):
    from rung.models.gguf_tokenizer import pre_tokenizer

    return pre_tokenizer(name)


@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_has_the_probabilities_of_transformers(tmp_path, name):
    model = build(tmp_path, *MODELS[name], byte_level(tmp_path, splitter("gpt-2")))
    write_gguf(tmp_path, tmp_path / "m.gguf", precision="f32")
    ids = torch.randint(3, 300, (40,)).tolist()
    found = logprobs(tmp_path / "m.gguf", ids, 300, spoken=A)
    for layer in model.model.layers:
        if name.startswith("gemma"):
            layer.mlp.act_fn.forward = tabled_gelu
    wanted = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    np.testing.assert_allclose(found, wanted.detach().numpy(), atol=1e-3)
    assert wanted.std() > 0.5  # it says something
