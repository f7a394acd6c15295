"""Convert GGUF files to ordinary model folders: fp32 safetensors, config.json and a rebuilt tokenizer.json.

Reading a GGUF file takes tens of seconds at every start; the folder takes one. transformers reads the weights and most
settings, as its maps cover its supported architectures. This module adds architectures to them, reads the settings
that transformers skips, such as those of the rotary embeddings, and refuses a file of which anything is left unread.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import re
import struct
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rung.errors import ModelError, needed_by
from rung.models.cache import cache_dir, check_space, known_sha256, publish, remove_model
from rung.models.gguf_tokenizer import USE_ORIGINAL, build, write_json
from rung.progress import QUIET, Progress

if TYPE_CHECKING:
    import numpy as np

    Factors = dict[str, np.ndarray[Any, Any]]


SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)  # how gguf-split names the parts of a model
CONVERSION = 1  # version of the conversion, part of the folders' names and fingerprints: raise it with each change
FOLDER, CONVERTED = "gguf-", "Converted by Rung from "  # how a folder of a user's file and its card begin
FILE_CONVERSION = 3  # the same for files that users bring, in which llama.cpp's end tokens are looked for


def ensure(file: Path, *, progress: Progress = QUIET) -> tuple[Path, str]:
    """The converted folder of a GGUF file and its fingerprint; it is converted at the first call.

    Raises:
        ModelError: the file is not GGUF, or its architecture or tokenizer is not supported.
    """
    folder = folder_of(file)
    if not folder.exists():
        publish(folder, lambda target: convert(file, target, find_ends=True, progress=progress), progress)
    return folder, folder.name


def folder_of(file: Path) -> Path:
    """The folder in the cache of a GGUF file's converted model; its name changes with its content.

    Raises:
        ModelError: `model-damaged`: a part of the model is missing, or the file is not the first.
    """
    number = SPLIT.search(file.name)  # converting compares it with the metadata, whose reading takes seconds
    sources = [known_sha256(part) for part in _parts(file, {"split.count": number[2]} if number else {})]
    if len(sources) > 1:
        sources = [hashlib.sha256("".join(sources).encode()).hexdigest()]
    return cache_dir() / "models" / f"{FOLDER}{sources[0]}-{FILE_CONVERSION}"


def converted() -> Iterator[tuple[Path, str, str | None]]:
    """The folders in the cache of users' converted GGUF files, each with the file's name and its licence."""
    for folder in sorted((cache_dir() / "models").glob(f"{FOLDER}*")):
        card = (folder / "README.md").read_text("utf-8")
        licence = card.partition("license: ")[2].partition("\n")[0]
        yield folder, card.rpartition(CONVERTED)[2].strip().removesuffix("."), licence or None


def remove(path: Path) -> int | None:
    """Remove what the cache has of a GGUF file, or of a converted folder there; the bytes freed, None if neither."""
    if path.suffix.lower() == ".gguf" and path.is_file():
        path = folder_of(path.absolute())
    if path.parent != cache_dir() / "models" or not path.name.startswith(FOLDER):
        return None
    return remove_model(path.name, path)


def convert(
    file: Path, folder: Path, *, licence: str | None = None, find_ends: bool = False, progress: Progress = QUIET
) -> None:
    """Write the model of a GGUF file to an existing `folder`; with `find_ends`, texts end where llama.cpp ends them.

    Raises:
        ModelError: as `ensure`.
    """
    progress.start(f"converting {file.name} to safetensors (once)")
    first, metadata = read_file(file)
    tensors = _tensors(parts := _parts(file, metadata), first)
    numbers, joined = sum(tensor.n_elements for tensor in tensors.values()), sum(part.stat().st_size for part in parts)
    needed = 4 * int(numbers) + (2 * joined if len(parts) > 1 else 0)
    check_space(folder, needed, f"{file.name}, whose weights are kept in 32 bits,")
    tokenizer = build(metadata, file.name)
    tokenizer.save(folder)
    with tempfile.TemporaryDirectory(prefix=".joined-", dir=folder.parent) as scratch:
        whole = file if len(parts) == 1 else _joined(file, first, tensors, Path(scratch))
        _convert_weights(whole, folder, metadata, tensors, file.name)
    special: dict[str, Any] = {f"{role}_token_id": i for role, i in tokenizer.special.items() if role != "unk"}
    if find_ends and tokenizer.ends:
        special["eos_token_id"] = [*(i for i in [tokenizer.special.get("eos")] if i is not None), *tokenizer.ends]
    write_json(folder / "generation_config.json", special)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    write_json(folder / "config.json", {**config, **special})
    licence = licence or metadata.get("general.license")
    front = f"---\nlicense: {licence}\n---\n\n" if licence else ""
    (folder / "README.md").write_text(f"{front}{CONVERTED}{file.name}.\n", encoding="utf-8")
    progress.finish()


def read_file(file: Path) -> tuple[Any, dict[str, Any]]:
    """The gguf package's reader of a file, and its metadata as plain Python values; a vocabulary takes seconds to read.

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
    return reader, metadata


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


def _tensors(parts: list[Path], first: Any) -> dict[str, Any]:
    """All tensors of a model by their names, of which each part has its own.

    Raises:
        ModelError: `model-damaged`: a part is another one than its name says, or holds what an earlier one holds.
    """
    tensors = {tensor.name: tensor for tensor in first.tensors}
    for number, part in enumerate(parts[1:], start=1):
        reader, said = read_file(part)
        if (place := (int(said.get("split.no", -1)), int(said.get("split.count", 0)))) != (number, len(parts)):
            found = "no part of a model" if place[0] < 0 else f"part {place[0] + 1} of {place[1]}"
            raise ModelError("model-damaged", f"{part} holds {found}", hint="download this part again")
        if twice := sorted(tensors.keys() & {tensor.name for tensor in reader.tensors}):
            problem = f"{part} holds {len(twice)} tensors that an earlier part holds too, such as {twice[0]}"
            raise ModelError("model-damaged", problem, hint="download all parts of one model again")
        tensors |= {tensor.name: tensor for tensor in reader.tensors}
    return tensors


def _joined(file: Path, first: Any, tensors: Mapping[str, Any], folder: Path) -> Path:
    """Write the parts of a model, the first of which is `file`, into one file, as transformers reads no others."""
    from gguf import GGUFValueType, GGUFWriter

    fields = {name: entry for name, entry in first.fields.items() if not name.startswith("GGUF.")}
    target = folder / "whole.gguf"
    writer = GGUFWriter(target, fields.pop("general.architecture").contents(), use_temp_file=True)
    for name, entry in fields.items():
        if not name.startswith("split."):
            items = entry.types[1] if entry.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(name, entry.contents(), entry.types[0], items)
    count = fields.get("split.tensors.count")
    if count is not None and len(tensors) != (expected := int(count.contents())):
        problem = f"{file} and its other parts hold {len(tensors)} tensors instead of {expected}"
        raise ModelError("model-damaged", problem, hint="download all parts again")
    for tensor in tensors.values():
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
# Architectures that transformers has no map of -> one whose tensors are stored alike. Their settings are Qwen2's.
_LIKE = {"gemma": "gemma2", "olmo": "llama", "olmo2": "qwen2", "smollm3": "llama"}
_ATTRIBUTES = {  # model_type -> settings that transformers skips -> their attributes in its config
    "falcon": {"attention.layer_norm_epsilon": "layer_norm_epsilon"},
    "gemma2": {f"{part}_logit_softcapping": f"{part}_logit_softcapping" for part in ("attn", "final")},
    "gemma3": {"final_logit_softcapping": "final_logit_softcapping"},
    "nemotron": {"attention.layer_norm_epsilon": "norm_eps"},
    "olmo": {"attention.clamp_kqv": "clip_qkv"},
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


def _convert_weights(
    file: Path, folder: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Any], name: str
) -> None:
    with needed_by("reading a GGUF file", error=ModelError):
        import torch
        from gguf import dequantize
        from transformers import AutoConfig, AutoModelForCausalLM
    _add_architectures()
    source: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True, "trust_remote_code": False}
    architecture = str(metadata["general.architecture"])
    settings = {
        key.removeprefix(f"{architecture}."): value
        for key, value in metadata.items()
        if key.startswith(f"{architecture}.")
    }
    try:
        rope = {key: tensors[key] for key in (ROPE_FACTORS, LONG_FACTORS, SHORT_FACTORS) if key in tensors}
        factors = {key: dequantize(tensor.data, tensor.tensor_type) for key, tensor in rope.items()}
        config = AutoConfig.from_pretrained(file.parent, **source)
        if architecture == "olmo2" and "attention.sliding_window" in settings:
            config = _olmo3(config, settings)
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


def _add_architectures() -> None:
    """Add to transformers' maps what they lack: it reads these models and their tensors as those of their likes."""
    from transformers import modeling_gguf_pytorch_utils as theirs
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    for name, like in _LIKE.items():
        if name not in theirs.GGUF_SUPPORTED_ARCHITECTURES:
            theirs.GGUF_SUPPORTED_ARCHITECTURES.append(name)
            GGUF_CONFIG_MAPPING[name] = dict(GGUF_CONFIG_MAPPING["qwen2"])
            theirs.TENSOR_PROCESSORS[name] = theirs.TENSOR_PROCESSORS.get(like, theirs.TensorProcessor)


def _olmo3(config: Any, settings: dict[str, Any]) -> Any:
    """The configuration of OLMo 3, whose files are those of OLMo 2 with a window."""
    from transformers import Olmo3Config

    own = {key: value for key, value in config.to_dict().items() if key not in ("model_type", "architectures")}
    made = Olmo3Config(**own, sliding_window=settings.pop("attention.sliding_window"))
    made.model_type = config.model_type  # by which transformers finds the tensors' names; it saves that of the class
    return made


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


def _complete(config: Any, settings: dict[str, Any], tensors: Mapping[str, Any], factors: Factors) -> None:
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
    if kind == "olmo" and math.isclose(settings.get("attention.layer_norm_epsilon", 1e-5), 1e-5, rel_tol=1e-6):
        settings.pop("attention.layer_norm_epsilon", None)  # transformers has no other
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
