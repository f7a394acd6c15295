"""Convert GGUF files to ordinary model folders: fp32 safetensors, config.json and a rebuilt tokenizer.json.

Reading a GGUF file takes tens of seconds at every start; the folder takes one. transformers reads the weights, as its
tensor maps cover its supported architectures; this module builds the tokenizer.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import struct
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rung.errors import ModelError, needed_by
from rung.models.cache import cache_dir, known_sha256, publish
from rung.progress import QUIET, Progress

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer


# ---- the tokenizer, built from the file's metadata
#
# transformers 5.5 makes a CodeLlama tokenizer of every `llama` GGUF: for SmolLM2 that adds five tokens beyond the
# vocabulary (without an embedding row: an index error at run time) and a wrong end token. So this module builds
# byte-level BPE vocabularies, with the pre-tokenizers that llama.cpp names (`llama_vocab::impl::load` in llama.cpp's
# src/llama-vocab.cpp); for SentencePiece it uses transformers' bare converter, and checks the result.

USE_ORIGINAL = "use the model's original safetensors folder or Hub id instead of the GGUF file"
CONTROL, USER_DEFINED = 3, 4  # tokenizer.ggml.token_type
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

    if "tokenizer.ggml.tokens" not in metadata:
        raise ModelError("gguf-unsupported", f"{name} has no tokenizer", hint="use a GGUF file of a whole model")
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    special = {
        role: int(metadata[key])
        for role, gguf_name in ROLES.items()
        if (key := f"tokenizer.ggml.{gguf_name}_token_id") in metadata and int(metadata[key]) < len(tokens)
    }
    family = (
        _PRE.get(str(metadata.get("tokenizer.ggml.pre"))) if metadata.get("tokenizer.ggml.model") == "gpt2" else None
    )
    if metadata.get("tokenizer.ggml.model") == "llama":  # SentencePiece's own, where the file does not say
        special = {"bos": 1, "eos": 2, "unk": 0} | special
    if "eos" in special:
        special.setdefault("pad", special["eos"])
    tokenizer = _converted(metadata, name) if family is None else _byte_level_bpe(metadata, family)
    _add_special(tokenizer, metadata, special)
    begins = family in BEGINS if family else metadata.get("tokenizer.ggml.model") == "llama"
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


def _converted(metadata: Mapping[str, Any], name: str) -> Tokenizer:
    """A tokenizer of another kind by transformers' bare converter, without its CodeLlama wrapper."""
    kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind != "llama":
        problem = f"{name}: the tokenizer (model {kind!r}, pre-tokenizer {pre!r}) cannot be rebuilt exactly from GGUF"
        raise ModelError("gguf-unsupported", problem, hint=USE_ORIGINAL)
    with needed_by("reading a GGUF tokenizer", error=ModelError):
        from transformers.integrations.ggml import convert_gguf_tokenizer
    prefix = "tokenizer.ggml."
    values = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    values["tokenizer_type"] = kind
    tokenizer, _ = convert_gguf_tokenizer(metadata["general.architecture"], values)
    return tokenizer


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
FILE_CONVERSION = 2  # the same for files that users bring, in which llama.cpp's end tokens are looked for


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
        _convert_weights(file if len(parts) == 1 else _joined(parts, metadata, Path(scratch)), folder)
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


def _convert_weights(file: Path, folder: Path) -> None:
    with needed_by("reading a GGUF file", error=ModelError):
        import torch
        from transformers import AutoModelForCausalLM
    try:
        # transformers draws a progress bar per tensor that cannot be disabled; errors are exceptions.
        with contextlib.redirect_stderr(io.StringIO()):
            model, info = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=torch.float32, local_files_only=True, trust_remote_code=False,
                output_loading_info=True,
            )  # fmt: skip
    except Exception as unsupported:  # every architecture checks the file's settings in its own way
        raise ModelError("gguf-unsupported", f"{file}: {unsupported}", hint=USE_ORIGINAL) from unsupported
    if missing := sorted(info["missing_keys"]):
        problem = f"{file.name} lacks {len(missing)} tensors of its model, such as {missing[0]}"
        raise ModelError("model-damaged", problem, hint="download the whole model again")
    with contextlib.redirect_stderr(io.StringIO()):
        model.save_pretrained(folder, safe_serialization=True)


def _write_json(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
