"""The tokenizer of a GGUF file, built from its metadata.

transformers 5.5 makes a CodeLlama tokenizer of every `llama` GGUF: for SmolLM2 that adds five tokens beyond the
vocabulary (without an embedding row: an index error at run time) and a wrong end token. Its converters for other
architectures lose spaces or take another algorithm. So this module builds byte-level BPE, with the pre-tokenizers
that llama.cpp names (`llama_vocab::impl::load` in llama.cpp's src/llama-vocab.cpp), and SentencePiece's BPE
(`llm_tokenizer_spm` in the same file), and checks the result.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rung.errors import ModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer

USE_ORIGINAL = "use the model's original safetensors folder or Hub id instead of the GGUF file"
UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6  # tokenizer.ggml.token_type
SPACE = "▁"  # what SentencePiece writes for a space
BYTES = [f"<0x{value:02X}>" for value in range(256)]
ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}  # role -> its name in GGUF keys

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (  # words in which capitals come before small letters
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
)
_SPLITS = {
    "llama-bpe": rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}",
    "dbrx": rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}",
    "qwen2": rf"{_WORDS}|\p{{N}}|{_REST}",
    "tekken": rf"{_CASED}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
WHOLE_WORDS = ("llama-bpe", "tekken")  # families in which a word that is a token is not merged from smaller ones
BEGINS = ("llama-bpe", "tekken")  # in which texts begin with the token for it, where the file does not say
ENDS = (  # tokens at which llama.cpp ends a text wherever the vocabulary has them (`llama_vocab::impl::load`)
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>",
)  # fmt: skip
_PRE = {  # tokenizer.ggml.pre -> family
    "gpt-2": "gpt-2", "olmo": "gpt-2", "smollm": "smollm", "starcoder": "smollm", "llama-bpe": "llama-bpe",
    "llama3": "llama-bpe", "llama-v3": "llama-bpe", "dbrx": "dbrx", "qwen2": "qwen2", "deepseek-r1-qwen": "qwen2",
    "tekken": "tekken",
}  # fmt: skip


@dataclass(frozen=True)
class GgufTokenizer:
    """A tokenizer and its settings: special token ids by role (bos, eos, unk, pad) and the chat template.

    `ends` are the ids at which a text ends besides `eos`.
    """

    tokenizer: Tokenizer
    special: dict[str, int]
    adds_bos: bool
    context: int
    chat_template: str | None = None
    tokens: list[str] = field(default_factory=list, repr=False)
    ends: tuple[int, ...] = ()

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and chat_template.jinja to `folder`."""
        self.tokenizer.save(str(folder / "tokenizer.json"))
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
            "model_max_length": self.context, "add_bos_token": self.adds_bos, "padding_side": "left",
        }  # fmt: skip
        config |= {f"{role}_token": self.tokens[i] for role, i in self.special.items()}
        write_json(folder / "tokenizer_config.json", config)
        if self.chat_template:
            (folder / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")


def build(metadata: Mapping[str, Any], name: str) -> GgufTokenizer:
    """Build the tokenizer that the metadata of the GGUF file `name` describes.

    Raises:
        ModelError: this kind of vocabulary cannot be rebuilt exactly.
    """
    from tokenizers import processors

    kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    family = _PRE.get(str(pre)) if kind == "gpt2" else None
    needed = ["general.architecture", "tokenizer.ggml.tokens"]
    needed += ["tokenizer.ggml.scores", "tokenizer.ggml.token_type"] if kind == "llama" else []
    needed += ["tokenizer.ggml.merges"] if family else []
    if missing := [key for key in needed if key not in metadata]:
        hint = f"use a GGUF file of a whole model, or {USE_ORIGINAL}"
        raise ModelError("gguf-unsupported", f"{name} has no {' and no '.join(missing)}", hint=hint)
    if kind != "llama" and family is None:
        problem = f"{name}: the tokenizer (model {kind!r}, pre-tokenizer {pre!r}) cannot be rebuilt exactly from GGUF"
        raise ModelError("gguf-unsupported", problem, hint=USE_ORIGINAL)
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    special = {
        role: int(metadata[key])
        for role, gguf_name in ROLES.items()
        if (key := f"tokenizer.ggml.{gguf_name}_token_id") in metadata and int(metadata[key]) < len(tokens)
    }
    if kind == "llama":  # SentencePiece's own, where the file does not say
        special = {"bos": 1, "eos": 2, "unk": 0} | special
    if "eos" in special:
        special.setdefault("pad", special["eos"])
    tokenizer = _sentencepiece(metadata, name) if family is None else _byte_level_bpe(metadata, family)
    _add_special(tokenizer, metadata, special)
    begins = family is None or family in BEGINS
    adds_bos = bool(metadata.get("tokenizer.ggml.add_bos_token", begins)) and "bos" in special
    if adds_bos:
        bos = tokens[special["bos"]]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], pair=[bos, "$A", f"{bos}:1", "$B:1"], special_tokens=[(bos, special["bos"])]
        )
    else:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    _check(tokenizer, tokens, name)
    context = int(metadata.get(f"{metadata['general.architecture']}.context_length", 0)) or 1 << 20
    template = metadata.get("tokenizer.chat_template")
    return GgufTokenizer(tokenizer, special, adds_bos, context, template, tokens, _ends(metadata, tokens, special))


def _ends(metadata: Mapping[str, Any], tokens: Sequence[str], special: Mapping[str, int]) -> tuple[int, ...]:
    """The ids at which llama.cpp ends a text, besides the end token: of the end of a turn, and those of usual names."""
    keys = (f"tokenizer.ggml.{role}_token_id" for role in ("eot", "eom"))
    named = [int(metadata[key]) for key in keys if key in metadata]
    usual = [i for i, token in enumerate(tokens) if token in ENDS]
    if {"<|return|>", "<|call|>"} <= set(tokens):  # gpt-oss ends its parts, and not its answers, with <|end|>
        usual = [i for i in usual if tokens[i] != "<|end|>"]
    return tuple(sorted({i for i in (*named, *usual) if i < len(tokens)} - {special.get("eos")}))


def _byte_level_bpe(metadata: Mapping[str, Any], family: str) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocabulary = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=family in WHOLE_WORDS))
    if family == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizer(family)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def pre_tokenizer(family: str) -> PreTokenizer:
    """The pre-tokenizer of a family: `gpt-2`, `smollm`, `llama-bpe`, `dbrx`, `qwen2` or `tekken`."""
    from tokenizers import Regex, pre_tokenizers
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Split

    if family == "gpt-2":
        return ByteLevel(add_prefix_space=False, use_regex=True)
    if family == "smollm":
        return pre_tokenizers.Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    split = Split(Regex(_SPLITS[family]), behavior="isolated")
    return pre_tokenizers.Sequence([split, ByteLevel(add_prefix_space=False, use_regex=False)])


def _sentencepiece(metadata: Mapping[str, Any], name: str) -> Tokenizer:
    """SentencePiece's BPE: the neighbours that make the token with the highest score merge first."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    parts = {  # tokens that merges make: a text matches user-defined tokens before, and never becomes a control token
        token: score
        for token, score, kind in zip(
            tokens, metadata["tokenizer.ggml.scores"], metadata["tokenizer.ggml.token_type"], strict=True
        )
        if kind not in (UNKNOWN, CONTROL, BYTE) and (kind != USER_DEFINED or SPACE in token)
    }
    merges = [
        (token[:i], token[i:])
        for token in sorted(parts, key=lambda token: -parts[token])
        for i in range(1, len(token))
        if token[:i] in parts and token[i:] in parts
    ]
    merged = list(dict.fromkeys(left + right for left, right in merges))
    if lacking := [byte for byte in BYTES if byte not in vocabulary]:
        raise _inexact(name, f"it has no tokens for {len(lacking)} of the 256 bytes", lacking)
    # llama.cpp merges the left one of two with the same score, and `tokenizers` the first in its list.
    if same := [a for a, b in pairwise(merged) if parts[a] == parts[b]]:
        raise _inexact(name, f"{len(same)} of its tokens share their score with another one", same)
    # llama.cpp also merges characters that are no tokens, and `tokenizers` reads them as bytes.
    bare = [
        token
        for token in parts
        for one, rest in ((token[:1], token[1:]), (token[-1:], token[:-1]))
        if rest and one not in vocabulary and (rest in parts or (len(rest) == 1 and rest not in vocabulary))
    ]
    if bare:
        raise _inexact(name, f"{len(bare)} of its tokens have a character that is no token", bare)
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    unknown = int(metadata.get("tokenizer.ggml.unknown_token_id", 0))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=tokens[unknown], byte_fallback=True))
    spaces = normalizers.Replace(" ", SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces] if prefix else [spaces])
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return tokenizer


def _inexact(name: str, why: str, tokens: Sequence[str]) -> ModelError:
    shown = ", ".join(map(repr, tokens[:3]))
    problem = f"{name}: the SentencePiece tokenizer cannot be rebuilt exactly: {why}, such as {shown}"
    return ModelError("gguf-unsupported", problem, hint=USE_ORIGINAL)


def _add_special(tokenizer: Tokenizer, metadata: Mapping[str, Any], special: Mapping[str, int]) -> None:
    """Control tokens are matched whole in rendered text and skipped in decoding; user-defined ones only matched."""
    from tokenizers import AddedToken

    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    types: list[int] = metadata.get("tokenizer.ggml.token_type", [])
    control = {i for i, kind in enumerate(types) if kind == CONTROL} | {i for r, i in special.items() if r != "unk"}
    control |= {i for i, token in enumerate(tokens) if token in ENDS}
    own = [i for i, kind in enumerate(types) if kind == USER_DEFINED and i not in control]
    tokenizer.add_special_tokens([AddedToken(tokens[i], special=True, normalized=False) for i in sorted(control)])
    tokenizer.add_tokens([AddedToken(tokens[i], special=False, normalized=False) for i in own])


def _check(tokenizer: Tokenizer, tokens: list[str], name: str) -> None:
    """Every token must have the id of its embedding row."""
    built = tokenizer.get_vocab(with_added_tokens=True)
    wrong = [token for token, i in built.items() if i >= len(tokens) or tokens[i] != token]
    if wrong or len(built) != len(set(tokens)):
        problem = f"{name}: the rebuilt tokenizer disagrees with the file on {len(wrong)} tokens, such as {wrong[:3]}"
        raise ModelError("gguf-unsupported", problem, hint=USE_ORIGINAL)


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    """Write a settings file of a model folder."""
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
