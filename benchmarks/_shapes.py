"""Models of well-known shapes with random weights: they cost as much as trained ones and need no download."""

from __future__ import annotations

from typing import Any

SHAPES = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16},
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64},
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "head_dim": 128},
}
COMMON = {
    "vocab_size": 128_256, "num_key_value_heads": 8, "max_position_embeddings": 8192, "rope_theta": 500_000.0,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip


def build(shape: str, device: str) -> Any:
    """Return a random Llama of this shape on the device, in bf16; on a CPU in fp32, which is faster there."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    heads = 8 if shape == "tiny" else 32
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    config = LlamaConfig(
        **COMMON, **SHAPES[shape], num_attention_heads=heads, tie_word_embeddings=shape == "1B", dtype=dtype
    )
    config._attn_implementation = "sdpa"
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)
