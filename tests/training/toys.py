"""Tiny random models and rows, and the plain loss that everything is compared with."""

import random
from dataclasses import replace

import torch

from rung.training.examples import TokenizedExample

SIZES = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}  # fmt: skip
IDS = torch.arange(1, 13).view(2, 6)


def llama(layers=2, *, tied=True, **settings):
    """A random Llama, the same every time."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**SIZES | {"num_hidden_layers": layers, "tie_word_embeddings": tied} | settings)
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def logits(model, change=None):
    """The logits of `IDS`, with a change of the model switched on or without any."""
    with torch.no_grad():
        if change is None:
            return model(IDS).logits
        change.enable()
        try:
            return model(IDS).logits
        finally:
            change.disable()


def rows(shared=4, count=12, seed=0):
    """Rows of random tokens whose prompts share so many."""
    rng = random.Random(seed)

    def some(low, high):
        return tuple(rng.randrange(97) for _ in range(rng.randint(low, high)))

    head = some(shared, shared)
    return [TokenizedExample.answered(head + some(1, 9), some(1, 5), f"row {i}") for i in range(count)]


def turns(count=5):
    """Rows with several supervised stretches, and text behind the last one."""
    rng = random.Random(1)
    head = tuple(rng.randrange(97) for _ in range(4))
    return [
        TokenizedExample((*head, *(rng.randrange(97) for _ in range(20))), ((5 + i, 8 + i), (11 + i, 15)), f"row {i}")
        for i in range(count)
    ]


def weighed(part):
    """The rows with weights of 1, 1.5, 2, and so on."""
    return [replace(row, weight=1 + i / 2) for i, row in enumerate(part)]


def plain_loss(model, part):
    """The loss of transformers itself, row by row, all that is not supervised masked."""
    total = 0.0
    for row in part:
        ids = torch.tensor([row.tokens])
        labels = torch.full_like(ids, -100)
        for first, last in row.spans:
            labels[0, first:last] = ids[0, first:last]
        total = total + model(input_ids=ids, labels=labels).loss * row.mass
    return total
