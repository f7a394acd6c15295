"""Convert GGUF files to ordinary model folders: fp32 safetensors, config.json and a rebuilt tokenizer.json.

Reading a GGUF file takes tens of seconds at every start; the folder takes one. transformers reads the weights and most
settings, as its maps cover its supported architectures. This module builds the tokenizer, reads the settings that
transformers skips, such as those of the rotary embeddings, and refuses a file of which anything is left unread.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import struct
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rung.errors import ModelError, needed_by
from rung.models.cache import cache_dir, known_sha256, publish
from rung.progress import QUIET, Progress

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer

    Factors = dict[str, np.ndarray[Any, Any]]


# ---- the tokenizer, built from the file's metadata
#
# transformers 5.5 makes a CodeLlama tokenizer of every `llama` GGUF: for SmolLM2 that adds five tokens beyond the
# vocabulary (without an embedding row: an index error at run time) and a wrong end token. Its converters for other
# architectures lose spaces or take another algorithm. So this module builds byte-level BPE, with the pre-tokenizers
# that llama.cpp names (`llama_vocab::impl::load` in llama.cpp's src/llama-vocab.cpp), and SentencePiece's BPE
# (`llm_tokenizer_spm` in the same file), and checks the result.

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
    "gpt-2": "gpt-2", "smollm": "smollm", "starcoder": "smollm", "llama-bpe": "llama-bpe", "llama3": "llama-bpe",
    "llama-v3": "llama-bpe", "qwen2": "qwen2", "deepseek-r1-qwen": "qwen2", "tekken": "tekken",
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
        _write_json(folder / "tokenizer_config.json", config)
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
    """The pre-tokenizer of a family: `gpt-2`, `smollm`, `llama-bpe`, `qwen2` or `tekken`."""
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


SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)  # how gguf-split names the parts of a model
CONVERSION = 1  # version of the conversion, part of the folders' names and fingerprints: raise it with each change
FILE_CONVERSION = 3  # the same for files that users bring, in which llama.cpp's end tokens are looked for


def ensure(file: Path, *, progress: Progress = QUIET) -> tuple[Path, str]:
    """The converted folder of a GGUF file and its fingerprint; it is converted at the first call.

    Raises:
        ModelError: the file is not GGUF, or its architecture or tokenizer is not supported.
    """
    sources = [known_sha256(part) for part in _parts(file, read_metadata(file) if SPLIT.search(file.name) else {})]
    if len(sources) > 1:
        sources = [hashlib.sha256("".join(sources).encode()).hexdigest()]
    source = f"{sources[0]}-{FILE_CONVERSION}"
    folder = cache_dir() / "models" / f"gguf-{source}"
    if not folder.exists():
        publish(folder, lambda target: convert(file, target, find_ends=True, progress=progress), progress)
    return folder, f"gguf-{source}"


def convert(
    file: Path, folder: Path, *, licence: str | None = None, find_ends: bool = False, progress: Progress = QUIET
) -> None:
    """Write the model of a GGUF file to an existing `folder`; with `find_ends`, texts end where llama.cpp ends them.

    Raises:
        ModelError: as `ensure`.
    """
    progress.start(f"converting {file.name} to safetensors (once)")
    metadata = read_metadata(file)
    parts = _parts(file, metadata)
    tokenizer = build(metadata, file.name)
    tokenizer.save(folder)
    with tempfile.TemporaryDirectory(prefix=".joined-", dir=folder.parent) as scratch:
        whole = file if len(parts) == 1 else _joined(parts, metadata, Path(scratch))
        _convert_weights(whole, folder, metadata, file.name)
    special: dict[str, Any] = {f"{role}_token_id": i for role, i in tokenizer.special.items() if role != "unk"}
    if find_ends and tokenizer.ends:
        special["eos_token_id"] = [*(i for i in [tokenizer.special.get("eos")] if i is not None), *tokenizer.ends]
    _write_json(folder / "generation_config.json", special)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    _write_json(folder / "config.json", {**config, **special})
    licence = licence or metadata.get("general.license")
    front = f"---\nlicense: {licence}\n---\n\n" if licence else ""
    (folder / "README.md").write_text(f"{front}Converted by Rung from {file.name}.\n", encoding="utf-8")
    progress.finish()


def read_metadata(file: Path) -> dict[str, Any]:
    """The metadata of a GGUF file as plain Python values.

    Raises:
        ModelError: the gguf package is missing, or the file is damaged or not GGUF.
    """
    with needed_by("reading a GGUF file", error=ModelError):
        from gguf import GGUFReader
    try:
        tensors = _check_header(file)
        reader = GGUFReader(file)
        metadata = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
        layers = metadata.get(f"{metadata.get('general.architecture')}.block_count", 0)
        if int(layers) > max(tensors, int(metadata.get("split.tensors.count", 0))):
            raise ValueError(f"it says {layers} layers, and has {tensors} tensors")
    except (ValueError, LookupError, OSError, TypeError, ArithmeticError, AttributeError, struct.error) as broken:
        problem = f"{file} cannot be read as GGUF: {broken}"
        raise ModelError("model-damaged", problem, hint="download the file again") from broken
    return metadata


_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes, by GGUF's number of the type
_STRING, _ARRAY = 8, 9
MAX_PAIRS, MAX_TENSORS, MAX_ITEMS = 100_000, 1_000_000, 10_000_000


def _check_header(file: Path) -> int:
    """Compare the lengths in the header with the file's size before the library reads it; the number of tensors.

    Raises:
        ValueError: a length leads beyond the end of the file, or a count is beyond any model's.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:

        def number(form: str) -> int:
            return int(struct.unpack(form, stream.read(struct.calcsize(form)))[0])

        def skip(length: int) -> None:
            if stream.seek(length, io.SEEK_CUR) > size:
                raise ValueError(f"its header leads beyond its {size:,} bytes")

        def skip_value(kind: int, *, nested: bool = False) -> None:
            if kind == _STRING:
                skip(min(number("<Q"), size + 1))
            elif kind == _ARRAY and not nested:
                item, count = number("<I"), number("<Q")
                if count > MAX_ITEMS:
                    raise ValueError(f"an array in its header has {count:,} items")
                if item in _SIZES:
                    skip(_SIZES[item] * count)
                else:
                    for _ in range(count):
                        skip_value(item, nested=True)
            else:
                skip(_SIZES[kind])

        if stream.read(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        number("<I")  # the version, which the library checks
        tensors, pairs = number("<Q"), number("<Q")
        if tensors > MAX_TENSORS or pairs > MAX_PAIRS:
            raise ValueError(f"its header counts {tensors:,} tensors and {pairs:,} settings")
        for _ in range(pairs):
            skip_value(_STRING)
            skip_value(number("<I"))
    return tensors


def _parts(file: Path, metadata: Mapping[str, Any]) -> list[Path]:
    """The files of a model that llama.cpp's gguf-split cut into several, in order; the file itself if it is whole."""
    count = int(metadata.get("split.count", 1))
    if count <= 1:
        return [file]
    number = SPLIT.search(file.name)
    if number is None or int(number[2]) != count:
        problem = f"{file} is part {int(metadata.get('split.no', 0)) + 1} of {count}, and its name does not say so"
        raise ModelError("model-damaged", problem, hint=f"name the parts NAME-00001-of-{count:05d}.gguf and so on")
    parts = [
        file.with_name(f"{file.name[: number.start(1)]}{i:05d}{file.name[number.end(1) :]}")
        for i in range(1, count + 1)
    ]
    if missing := [part for part in parts if not part.is_file()]:
        problem = f"{missing[0]} is missing: the model has {count} parts"
        raise ModelError("model-damaged", problem, hint="download all parts into one folder, and name the first one")
    if file != parts[0]:
        raise ModelError("model-damaged", f"{file} is not the first part of its model", hint=f"name {parts[0]}")
    return parts


def _joined(parts: Sequence[Path], metadata: Mapping[str, Any], folder: Path) -> Path:
    """Write the parts of a model into one file, as transformers reads no others."""
    from gguf import GGUFReader, GGUFValueType, GGUFWriter

    target, readers = folder / "whole.gguf", [GGUFReader(part) for part in parts]
    writer = GGUFWriter(target, metadata["general.architecture"], use_temp_file=True)
    for name, entry in readers[0].fields.items():
        if not name.startswith(("GGUF.", "split.")) and name != "general.architecture":
            items = entry.types[1] if entry.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(name, entry.contents(), entry.types[0], items)
    tensors = [tensor for reader in readers for tensor in reader.tensors]
    if len(tensors) != (expected := int(metadata.get("split.tensors.count", len(tensors)))):
        problem = f"{parts[0]} and its other parts hold {len(tensors)} tensors instead of {expected}"
        raise ModelError("model-damaged", problem, hint="download all parts again")
    for tensor in tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


# ---- the settings and the weights
#
# transformers skips, without a word, every setting and tensor that its maps do not have. So this module names what
# transformers reads and reads the rest itself, as llama.cpp does (`llama_model_base::load_hparams` in its source).

ROPE_FACTORS, LONG_FACTORS, SHORT_FACTORS = (f"rope_{n}.weight" for n in ("freqs", "factors_long", "factors_short"))
LOW, HIGH = 1.0, 4.0  # `low_freq_factor` and `high_freq_factor` of every Llama 3, which its factors do not tell apart
ODD_SCALE_LAYERS = {"gemma2": 46, "gemma3": 62}  # with so many, hidden size over heads scales attention
_ATTRIBUTES = {  # model_type -> settings that transformers skips -> their attributes in its config
    "falcon": {"attention.layer_norm_epsilon": "layer_norm_epsilon"},
    "gemma2": {f"{part}_logit_softcapping": f"{part}_logit_softcapping" for part in ("attn", "final")},
    "gemma3": {"final_logit_softcapping": "final_logit_softcapping"},
    "nemotron": {"attention.layer_norm_epsilon": "norm_eps"},
    "phi3": {"attention.sliding_window": "sliding_window"},  # 0: none
    "qwen2_moe": {
        "expert_feed_forward_length": "moe_intermediate_size",
        "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    },
    "qwen3_moe": {"expert_feed_forward_length": "moe_intermediate_size"},
    "stablelm": {"use_parallel_residual": "use_parallel_residual"},
}
_BIASES = {"attn_output.bias": "attention_bias", "ffn_down.bias": "mlp_bias"}  # tensors -> what they are in a config
_INERT = ("vocab_size", "tensor_data_layout", "rope.scaling.finetuned")  # settings that change nothing


def _convert_weights(file: Path, folder: Path, metadata: Mapping[str, Any], name: str) -> None:
    with needed_by("reading a GGUF file", error=ModelError):
        import torch
        from gguf import GGUFReader, dequantize
        from transformers import AutoConfig, AutoModelForCausalLM
    source: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True, "trust_remote_code": False}
    architecture = str(metadata["general.architecture"])
    settings = {
        key.removeprefix(f"{architecture}."): value
        for key, value in metadata.items()
        if key.startswith(f"{architecture}.")
    }
    try:
        tensors = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
        rope = {key: tensors[key] for key in (ROPE_FACTORS, LONG_FACTORS, SHORT_FACTORS) if key in tensors}
        factors = {key: dequantize(tensor.data, tensor.tensor_type) for key, tensor in rope.items()}
        config = AutoConfig.from_pretrained(file.parent, **source)
        _complete(config, settings, tensors, factors)
        known = rope.keys() - factors.keys()
        unread = [f"{architecture}.{key}" for key in settings]
        unread += [key for key in _without_place(config, tensors, architecture) if key not in known]
        if not unread:
            # transformers draws a progress bar per tensor that cannot be disabled; errors are exceptions.
            with contextlib.redirect_stderr(io.StringIO()):
                model, info = AutoModelForCausalLM.from_pretrained(
                    file.parent, config=config, dtype=torch.float32, output_loading_info=True, **source
                )
    except Exception as unsupported:  # every architecture checks the file's settings in its own way
        raise ModelError("gguf-unsupported", f"{name}: {unsupported}", hint=USE_ORIGINAL) from unsupported
    if unread:
        problem = f"{name} has {len(unread)} settings or tensors that Rung cannot convert: {', '.join(unread[:6])}"
        raise ModelError("gguf-unsupported", problem, hint=USE_ORIGINAL)
    if missing := sorted(info["missing_keys"]):
        problem = f"{name} lacks {len(missing)} tensors of its model, such as {missing[0]}"
        raise ModelError("model-damaged", problem, hint="download the whole model again")
    with contextlib.redirect_stderr(io.StringIO()):
        model.save_pretrained(folder, safe_serialization=True)


def _without_place(config: Any, names: Iterable[str], architecture: str) -> list[str]:
    """The tensors of a file that transformers drops when it loads the model."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    places = get_gguf_hf_weights_map(model, TENSOR_PROCESSORS.get(architecture, TensorProcessor)())
    # The names of experts have no ending there.
    return [name for name in names if name not in places and name.removesuffix(".weight") not in places]


def _complete(config: Any, settings: dict[str, Any], tensors: Collection[str], factors: Factors) -> None:
    """Set in `config` what transformers skips. All that is read leaves `settings` and `factors`."""
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    kind = str(config.model_type).removesuffix("_text")
    if getattr(config, "rope_parameters", None):
        _complete_rope(config, settings, factors)
    for key, attribute in _ATTRIBUTES.get(kind, {}).items():
        if key in settings:
            setattr(config, attribute, settings.pop(key) or None)
    mapped = GGUF_CONFIG_MAPPING[kind]  # None: transformers skips the key
    for key in [*(key for key in mapped if mapped[key] is not None and key != "rope.dimension_count"), *_INERT]:
        settings.pop(key, None)
    for name, attribute in _BIASES.items():
        if f"blk.0.{name}" in tensors and hasattr(config, attribute):
            setattr(config, attribute, True)
    if layers := ODD_SCALE_LAYERS.get(kind):
        odd = config.num_hidden_layers == layers
        config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads if odd else config.head_dim


def _complete_rope(config: Any, settings: dict[str, Any], factors: Factors) -> None:
    whole, context = config.hidden_size // config.num_attention_heads, config.max_position_embeddings
    size = int(settings.pop("attention.key_length", whole))
    if (getattr(config, "head_dim", None) or whole) != size:
        config.head_dim = size
    if settings.get("attention.value_length") == size:
        del settings["attention.value_length"]
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": float(settings.pop("rope.freq_base", 10_000.0))}
    rotated = settings.get("rope.dimension_count", size)
    if "partial_rotary_factor" in config.rope_parameters:
        rope["partial_rotary_factor"] = rotated / size
    if rotated == size or "partial_rotary_factor" in rope:
        settings.pop("rope.dimension_count", None)
    scaling = settings.get("rope.scaling.type", "linear")  # llama.cpp's own default
    factor = float(settings.get("rope.scaling.factor", settings.get("rope.scale_linear")) or 1)
    original = int(settings.get("rope.scaling.original_context_length", context))
    phi3 = config.model_type == "phi3"
    if scaling == "none" or (scaling == "linear" and factor == 1 and not factors):
        pass
    elif scaling == "linear" and factor == 1 and ROPE_FACTORS in factors and config.model_type == "llama":
        if (llama3 := _llama3(factors[ROPE_FACTORS], rope["rope_theta"], size)) is not None:
            rope |= llama3
            del factors[ROPE_FACTORS]
    elif scaling in ("linear", "longrope") and factor == 1 and phi3 and {LONG_FACTORS, SHORT_FACTORS} <= factors.keys():
        config.original_max_position_embeddings = original
        rope |= {
            "rope_type": "longrope", "original_max_position_embeddings": original,
            "attention_factor": float(settings.pop("rope.scaling.attn_factor", 1.0)),
            "long_factor": factors.pop(LONG_FACTORS).tolist(), "short_factor": factors.pop(SHORT_FACTORS).tolist(),
        }  # fmt: skip
    elif scaling == "linear" and not phi3:
        rope |= {"rope_type": "linear", "factor": factor}
    elif scaling == "yarn" and not phi3:
        rope |= {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    else:
        return  # what remains in `settings` and `factors` is refused
    for key in ("scaling.type", "scaling.factor", "scaling.original_context_length", "scale_linear"):
        settings.pop(f"rope.{key}", None)
    if config.model_type == "gemma3_text":  # the layers with a window have frequencies of their own
        near = {"rope_type": "default", "rope_theta": float(settings.pop("rope.freq_base_swa", 10_000.0))}
        config.rope_parameters = {"full_attention": rope, "sliding_attention": near}
    else:
        config.rope_parameters = rope


def _llama3(factors: np.ndarray[Any, Any], theta: float, size: int) -> dict[str, Any] | None:
    """The settings from which Llama 3 computes these divisors of its frequencies; None if no settings give them."""
    import numpy as np

    most = float(factors.max())
    if len(factors) != size // 2 or most <= 1 or factors.min() <= 0:
        return None
    waves = 2 * np.pi * theta ** (np.arange(0, size, 2) / size)
    slopes = (1 / factors.astype(np.float64) - 1 / most) / (1 - 1 / most)
    middle = int(np.abs(slopes - 0.5).argmin())
    original = round(waves[middle] * (LOW + (HIGH - LOW) * slopes[middle]))
    computed = ((original / waves - LOW) / (HIGH - LOW)).clip(0, 1)
    if not np.allclose(computed, slopes, atol=1e-4):
        return None
    return {
        "rope_type": "llama3", "factor": most, "low_freq_factor": LOW, "high_freq_factor": HIGH,
        "original_max_position_embeddings": original,
    }  # fmt: skip


def _write_json(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
