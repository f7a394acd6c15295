"""The memory of training models of 1B to 70B, from their shapes alone: the table in docs/clusters.md.

What the package counts for itself: the base model's weights (`base_bytes`), a trained parameter's value, gradient and
moments (`TRAINED_BYTES`, `moment_bytes`), the activations that stay for the backward pass (`bytes_per_token`), and room
for logits (`ACTIVATION_BYTES`). The base model is in bfloat16, as on CUDA; what is trained is in float32. Nothing is
downloaded or run: the models are on torch's device `meta`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from rung.rungs import LoRA
from rung.rungs.costs import ACTIVATION_BYTES, NF4_BYTES
from rung.rungs.fine_tune import TRAINED_BYTES
from rung.training.memory import bytes_per_token
from rung.training.optimizers import embeddings, moment_bytes

TOKENS = 2048  # in a forward pass, with gradient checkpointing
BFLOAT16 = 2
SHAPES = {  # hidden, intermediate, layers, heads, heads of keys and values, vocabulary, tied
    "Llama 3.2 1B": (2048, 8192, 16, 32, 8, 128_256, True),
    "Llama 3.2 3B": (3072, 8192, 28, 24, 8, 128_256, True),
    "Llama 3.1 8B": (4096, 14_336, 32, 32, 8, 128_256, False),
    "Qwen2.5 14B": (5120, 13_824, 48, 40, 8, 152_064, False),
    "Qwen2.5 32B": (5120, 27_648, 64, 40, 8, 152_064, False),
    "Llama 3.3 70B": (8192, 28_672, 80, 64, 8, 128_256, False),
}


def build(name: str) -> Any:
    """A model of these shapes, without memory."""
    hidden, wide, layers, heads, keys, words, tied = SHAPES[name]
    kinds = (Qwen2Config, Qwen2ForCausalLM) if name.startswith("Qwen") else (LlamaConfig, LlamaForCausalLM)
    config = kinds[0](
        hidden_size=hidden, intermediate_size=wide, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=keys, vocab_size=words, tie_word_embeddings=tied,
    )  # fmt: skip
    with torch.device("meta"):
        return kinds[1](config).to(torch.bfloat16)


def trained(tensors: list[torch.Tensor], model: Any, copies: int = 0) -> int:
    """The bytes of what is trained: value, gradient, moments, and other copies."""
    count = sum(tensor.numel() for tensor in tensors)
    return (TRAINED_BYTES + copies) * count + moment_bytes("adamw", tensors, embeddings(model))


def rows() -> Iterator[tuple[str, float, float, float, float]]:
    """Name, and GB of the base model alone, LoRA, QLoRA and full fine-tuning, on each device."""
    for name in SHAPES:
        model = build(name)
        every = list(model.parameters())
        count = sum(p.numel() for p in every)
        table = sum(p.numel() for p in embeddings(model))
        whole = table if model.config.tie_word_embeddings else 2 * table  # stays in bfloat16 under 4 bits
        linear = [m for key, m in model.named_modules() if isinstance(m, torch.nn.Linear) and key != "lm_head"]
        rank = LoRA().rank
        with torch.device("meta"):
            updates = [torch.empty(rank, m.in_features + m.out_features) for m in linear]
        beside = ACTIVATION_BYTES + TOKENS * bytes_per_token(model, checkpointing=True)
        base, packed = BFLOAT16 * count, BFLOAT16 * whole + NF4_BYTES * (count - whole)
        lora = trained(updates, model)
        full = base + trained(every, model, copies=BFLOAT16)  # rounded for the forward pass
        yield (
            name,
            *(round(size / 1e9, 1) for size in (base, base + lora + beside, packed + lora + beside, full + beside)),
        )


def table() -> str:
    """The rows as Markdown."""
    lines = ["| model | weights | LoRA | QLoRA | full |", "|---|---|---|---|---|"]
    lines += [f"| {name} | {' | '.join(f'{size:,.1f}' for size in sizes)} |" for name, *sizes in rows()]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
