"""A model folder as one GGUF file: the architecture, its tensors and its tokenizer as llama.cpp reads them.

It writes the architectures of `FAMILIES`, one tensor at a time, so that memory holds only one. llama.cpp has some facts
of a family built in (patterns of sliding windows, the scale of attention). A model that deviates from them is refused:
it would run and be wrong. llama.cpp also knows pre-tokenizers by name and not by their rules, so a tokenizer is only
written when one of the names in `rung.models.gguf_tokenizer` splits text as it does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rung.engines.base import Floats
from rung.errors import EngineError, ModelError, needed_by
from rung.models.gguf import LONG_FACTORS, ODD_SCALE_LAYERS, ROPE_FACTORS, SHORT_FACTORS
from rung.models.gguf_tokenizer import (
    BYTE,
    BYTES,
    CONTROL,
    ENDS,
    SPACE,
    UNKNOWN,
    USER_DEFINED,
    WHOLE_WORDS,
    pre_tokenizer,
)
from rung.models.hub import loaded_weights
from rung.models.messages import end_token
from rung.models.tokenizer import Tokenizer
from rung.progress import QUIET, Progress

GgufPrecision = Literal["f32", "f16", "q8_0"]
Load = Callable[[], Floats]

FILE_TYPES: dict[GgufPrecision, int] = {"f32": 0, "f16": 1, "q8_0": 7}  # llama.cpp's `llama_ftype`
BLOCK = 32  # weights that share a scale in Q8_0; rows of other lengths stay F16


@dataclass(frozen=True)
class Family:
    """What llama.cpp assumes of an architecture."""

    arch: str  # its name in GGUF
    activation: str = "silu"  # beginning of the activation function's name
    norm_shift: float = 0.0  # added to the weights of norms: Gemma's are stored minus one
    pairs: bool = False  # rotary embeddings rotate neighbouring values, not halves: queries and keys are reordered
    window_period: int = 0  # the last of every `window_period` layers attends to everything; 0: all layers do
    windowless: bool = False  # llama.cpp ignores a window: the model must not have one within its context
    rotated: int = 0  # the last of every so many layers has no rotary embeddings; 0: all have
    layer_norm: bool = False  # norms subtract the mean, and have no weights


FAMILIES = {
    "LlamaForCausalLM": Family("llama", pairs=True),
    "Qwen2ForCausalLM": Family("qwen2"),
    "Qwen3ForCausalLM": Family("qwen3"),
    "GemmaForCausalLM": Family("gemma", "gelu", norm_shift=1.0),
    "Gemma2ForCausalLM": Family("gemma2", "gelu", norm_shift=1.0, window_period=2),
    "Gemma3ForCausalLM": Family("gemma3", "gelu", norm_shift=1.0, window_period=6),
    "MistralForCausalLM": Family("llama", pairs=True, windowless=True),
    "OlmoForCausalLM": Family("olmo", pairs=True, layer_norm=True),
    "Olmo2ForCausalLM": Family("olmo2"),
    "Olmo3ForCausalLM": Family("olmo2", window_period=4),
    "Phi3ForCausalLM": Family("phi3", windowless=True),
    "SmolLM3ForCausalLM": Family("smollm3", pairs=True, rotated=4),
}


def write_gguf(
    folder: Path, file: Path, *, precision: GgufPrecision = "f16", name: str = "", licence: str | None = None,
    progress: Progress = QUIET,
) -> None:  # fmt: skip
    """Write the model in a Hugging Face folder (config.json, safetensors weights, tokenizer.json) to one GGUF file.

    The precision is that of matrices; vectors (norms, biases) are always f32.

    Raises:
        EngineError: `export-unsupported`: llama.cpp would run this architecture or tokenizer differently;
            `missing-extra`: the gguf package is not installed.
    """
    with needed_by("writing a GGUF file", error=EngineError):
        import gguf
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    family = _family(config)
    writer = gguf.GGUFWriter(file, family.arch)
    writer.add_type("model")
    writer.add_name(name or folder.name)
    if licence:
        writer.add_license(licence)
    writer.add_file_type(FILE_TYPES[precision])
    if precision == "q8_0":
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_shape(writer, config, family)
    rope_tensors = _add_rope(writer, config, gguf)
    _add_vocabulary(writer, folder, config.vocab_size)
    tensors = list(_tensors(folder, config, family, gguf))
    tensors[:0] = [(name, factors.shape, partial(np.array, factors)) for name, factors in rope_tensors.items()]
    for name, shape, _ in tensors:
        kind = _tensor_type(gguf, precision, shape)
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        size = int(np.prod(shape)) // int(block) * int(block_bytes)
        writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    progress.start(f"writing {file.name}", len(tensors))
    for name, shape, load in tensors:
        packed = gguf.quants.quantize(load(), _tensor_type(gguf, precision, shape))
        if packed.dtype == np.float16 and not np.isfinite(packed).all():
            hint = "export with `--precision f32`"
            raise ModelError("export-unsupported", f"{name} has values that f16 cannot hold", hint=hint)
        writer.write_tensor_data(packed)
        progress.advance()
    writer.close()
    progress.finish()


def _unsupported(what: str) -> EngineError:
    return EngineError("export-unsupported", what, hint="export with `--to huggingface`, and convert it elsewhere")


# ---- the architecture


def _family(config: Any) -> Family:
    name = (config.architectures or ["unknown"])[0]
    if name not in FAMILIES:
        raise _unsupported(f"{name} is not one of the supported architectures: {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    if not activation.startswith(family.activation):
        raise _unsupported(f"{name} with the activation {activation!r}, which llama.cpp runs as {family.activation}")
    if getattr(config, "use_bidirectional_attention", None):
        raise _unsupported(f"{name} with attention in both directions")
    layers, context = config.num_hidden_layers, config.max_position_embeddings
    if family.windowless and (getattr(config, "sliding_window", None) or context) < context:
        problem = (
            f"{name} with a window of {config.sliding_window} tokens in a context of {context}, which llama.cpp ignores"
        )
        raise _unsupported(problem)
    if family.rotated:
        wanted = [int(bool((i + 1) % family.rotated)) for i in range(layers)]
        if list(config.no_rope_layers) != wanted:
            raise _unsupported(f"{name} whose layers without rotary embeddings are not the pattern of llama.cpp")
    if getattr(config, "attention_bias", False) and family.arch in ("olmo", "olmo2", "phi3"):
        raise _unsupported(f"{name} with biases in attention")
    kinds = list(getattr(config, "layer_types", None) or ["full_attention"] * layers)
    period = family.window_period
    windows = [period and (i + 1) % period for i in range(config.num_hidden_layers)]
    if not family.windowless and kinds != ["sliding_attention" if window else "full_attention" for window in windows]:
        raise _unsupported(f"{name} whose layers' windows do not follow the pattern that llama.cpp assumes")
    if odd_layers := ODD_SCALE_LAYERS.get(family.arch):
        odd = config.num_hidden_layers == odd_layers
        scale = config.hidden_size / config.num_attention_heads if odd else config.head_dim
        if (scalar := config.query_pre_attn_scalar) != scale:
            raise _unsupported(f"{name} with query_pre_attn_scalar {scalar}, where llama.cpp assumes {scale:g}")
    return family


def _head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _rotated_size(config: Any) -> int:
    """How many values of each head rotate."""
    return int(_head_size(config) * (dict(config.rope_parameters).get("partial_rotary_factor") or 1.0))


def _add_shape(writer: Any, config: Any, family: Family) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    if family.layer_norm:
        writer.add_layer_norm_eps(1e-5)  # transformers' own
        if config.clip_qkv is not None:
            writer.add_clamp_kqv(config.clip_qkv)
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    size = _head_size(config)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(_rotated_size(config))
    if family.arch == "phi3":
        writer.add_sliding_window(0)  # llama.cpp reads the key, and runs no window
    if family.window_period:
        writer.add_sliding_window(config.sliding_window)
    soft = {"attn_logit_softcapping": writer.add_attn_logit_softcapping,
            "final_logit_softcapping": writer.add_final_logit_softcapping}  # fmt: skip
    for key, add in soft.items():
        value = getattr(config, key, None)
        if value is None and family.arch == "gemma2":
            raise _unsupported(f"Gemma2 without {key}, which llama.cpp always applies")
        if value is not None and family.arch not in ("gemma2", "gemma3"):
            raise _unsupported(f"{family.arch} with {key}")
        if value is not None and family.arch == "gemma3" and key == "attn_logit_softcapping":
            raise _unsupported(f"Gemma3 with {key}")
        if value is not None:
            add(value)


def _add_rope(writer: Any, config: Any, gguf: Any) -> dict[str, Floats]:
    """Write the rotary embeddings' parameters; returns the tensors of a factor per frequency that their type needs."""
    rope = dict(config.rope_parameters)
    if "full_attention" in rope:
        near = rope["sliding_attention"]
        if near["rope_type"] != "default" or near["rope_theta"] != 10_000.0:
            raise _unsupported(f"rotary embeddings {near} in the layers with a window, where llama.cpp assumes 10000")
        rope = dict(rope["full_attention"])
    kind = rope.get("rope_type", "default")
    if rope.get("partial_rotary_factor", 1.0) != 1.0 and config.model_type != "phi3":
        raise _unsupported("rotary embeddings on a part of each head")
    writer.add_rope_freq_base(rope["rope_theta"])
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif kind == "yarn" and _is_usual_yarn(rope):
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        original = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        writer.add_rope_scaling_orig_ctx_len(original)
    elif kind == "llama3":
        return {ROPE_FACTORS: _llama3_factors(config, rope["rope_theta"])}
    elif kind == "longrope" and config.model_type == "phi3":
        original = config.original_max_position_embeddings
        scale = config.max_position_embeddings / original
        attention = rope.get("attention_factor") or (
            np.sqrt(1 + np.log(scale) / np.log(original)) if scale > 1 else 1.0
        )
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(float(attention))
        # llama.cpp takes the long factors where the whole context is longer, transformers where the text is.
        names = {LONG_FACTORS: "long_factor", SHORT_FACTORS: "short_factor"}
        return {name: np.array(rope[factors], np.float32) for name, factors in names.items()}
    elif kind != "default":
        raise _unsupported(f"rotary embeddings of type {kind!r} with {', '.join(sorted(rope))}")
    return {}


def _is_usual_yarn(rope: dict[str, Any]) -> bool:
    """Whether only what llama.cpp reads differs from its own values."""
    usual = {"beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": 1 + 0.1 * np.log(rope["factor"])}
    read = {"rope_type", "rope_theta", "factor", "original_max_position_embeddings"}
    return all(
        key in read or (key in usual and np.isclose(value or usual[key], usual[key])) for key, value in rope.items()
    )


def _llama3_factors(config: Any, theta: float) -> Floats:
    """What llama.cpp divides each frequency by, from the frequencies that transformers computes."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0].double().numpy()
    size = _head_size(config)
    plain = 1.0 / theta ** (np.arange(0, size, 2, dtype=np.float64) / size)
    factors: Floats = (plain / scaled).astype(np.float32)
    return factors


# ---- the tensors


def _tensor_type(gguf: Any, precision: GgufPrecision, shape: tuple[int, ...]) -> Any:
    types = gguf.GGMLQuantizationType
    if len(shape) == 1 or precision == "f32":
        return types.F32
    return types.Q8_0 if precision == "q8_0" and shape[-1] % BLOCK == 0 else types.F16


def _tensors(folder: Path, config: Any, family: Family, gguf: Any) -> Iterator[tuple[str, tuple[int, ...], Load]]:
    """GGUF's name, the shape, and a function that reads it, of every tensor in the folder."""
    from safetensors import safe_open

    files: list[Any] = [safe_open(file, "pt") for file in loaded_weights(folder)]
    file_of = {name: file for file in files for name in file.keys()}  # noqa: SIM118
    if config.tie_word_embeddings:
        file_of.pop("lm_head.weight", None)
    arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == family.arch)
    known = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for name in sorted(file_of):
        target = known.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise _unsupported(f"the tensor {name}, which {family.arch} does not have in llama.cpp")
        shape = tuple(file_of[name].get_slice(name).get_shape())
        yield target, shape, partial(_read, file_of[name], name, config, family)


def _read(file: Any, name: str, config: Any, family: Family) -> Floats:
    values: Floats = file.get_tensor(name).float().numpy()
    if family.pairs and ".q_proj." in name:
        return _as_pairs(values, config.num_attention_heads)
    if family.pairs and ".k_proj." in name:
        return _as_pairs(values, config.num_key_value_heads)
    if name.endswith("norm.weight") and family.norm_shift:
        return values + np.float32(family.norm_shift)
    return values


def _as_pairs(values: Floats, heads: int) -> Floats:
    """Reorder the rows of each head: values that transformers rotates together, in its halves, become neighbours."""
    halves = values.reshape(heads, 2, -1, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))


# ---- the tokenizer: tokens, their types, merges or scores, special tokens, chat template

NORMAL, UNUSED = 1, 5  # tokenizer.ggml.token_type; the reader shares its others
BPE_FAMILIES = ("gpt-2", "smollm", "llama-bpe", "dbrx", "qwen2", "tekken")  # as llama.cpp spells them
PROBE = (  # what pre-tokenizers disagree about: digits, contractions, spaces, line ends, scripts, signs
    "Hello World's 3 33 333 3333 33333 don't DON'T we'll  two   three\n\n \n\t\ttabs\r\n"
    "x=1+2;//* naïve façade Ünï 12.5% $1,000 ___ 中文字符 日本語 кириллица العربية हिन्दी ไทย 🚀🦙 ½ ² é e\u0301 "
    "'s'S 'Tis ....... !!!\n a\n b   c \u00a0d \u2003e 1st2nd (brackets)[x]{y} \n"
)


def _add_vocabulary(writer: Any, folder: Path, size: int) -> None:
    """Write the tokenizer in `folder` as metadata; of the `size` ids, those without a token get an unused one."""
    tokenizer = Tokenizer.load(folder)
    definition = json.loads(tokenizer.definition)
    model = definition["model"]
    if model["type"] != "BPE":
        raise _unsupported_vocabulary(f"a tokenizer of type {model['type']}")
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ", 1)) for m in model["merges"]]
    tokens, types = _tokens(definition, size)
    if model.get("byte_fallback"):
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(tokens)
        writer.add_token_scores(_scores(tokens, merges))
        writer.add_add_space_prefix(_prepends_space(definition))
    elif not merges:
        raise _unsupported_vocabulary("a byte-level tokenizer without merges")
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_bpe_family(definition))
        writer.add_token_list(tokens)
        writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_token_types(types)
    _add_special(writer, tokenizer)


def _tokens(definition: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    known = {i: token for token, i in definition["model"]["vocab"].items()}
    kinds = dict.fromkeys(known, NORMAL)
    if definition["model"].get("byte_fallback"):
        kinds |= {i: BYTE for i, token in known.items() if token in BYTES}
    for added in definition["added_tokens"]:
        known[added["id"]] = added["content"]
        kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    unknown = definition["model"].get("unk_token")
    kinds |= {i: UNKNOWN for i, token in known.items() if unknown is not None and token == unknown}
    if max(known) >= size:
        raise _unsupported_vocabulary(f"a tokenizer with ids up to {max(known)} for a model of {size} embeddings")
    return [known.get(i, f"[PAD{i}]") for i in range(size)], [kinds.get(i, UNUSED) for i in range(size)]


# ---- byte-level BPE


def _bpe_family(definition: dict[str, Any]) -> str:
    """The name of the pre-tokenizer that splits the probe as this one does."""
    from tokenizers import Tokenizer as Backend

    normalizer = definition["normalizer"]
    if normalizer is not None and normalizer["type"] != "NFC":  # llama.cpp leaves text as it is, NFC nearly always is
        raise _unsupported_vocabulary(f"a byte-level tokenizer that normalizes text ({normalizer['type']})")
    own = Backend.from_str(json.dumps(definition)).pre_tokenizer
    whole = bool(definition["model"].get("ignore_merges"))
    for name in BPE_FAMILIES:
        if own is not None and _splits(own) == _splits(pre_tokenizer(name)) and whole == (name in WHOLE_WORDS):
            return name
    raise _unsupported_vocabulary(f"a byte-level tokenizer that splits text like none of {', '.join(BPE_FAMILIES)}")


def _splits(splitter: Any) -> list[str]:
    return [piece for piece, _ in splitter.pre_tokenize_str(PROBE)]


# ---- SentencePiece


def _scores(tokens: list[str], merges: list[tuple[str, ...]]) -> list[float]:
    """Score tokens by minus the rank of the first merge that makes each: llama.cpp merges what scores highest."""
    rank: dict[str, int] = {}
    for i, pair in enumerate(merges):
        rank.setdefault("".join(pair), i)
    return [float(-rank.get(token, len(merges))) for token in tokens]


def _prepends_space(definition: dict[str, Any]) -> bool:
    """Whether a space is put before the text; spaces must become SentencePiece's sign, and nothing else change."""
    normalizer = definition["normalizer"] or {"type": "Sequence", "normalizers": []}
    steps = normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
    splitter = definition["pre_tokenizer"]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = {"type": "Prepend", "prepend": SPACE}
    if steps == [] and splitter is not None and splitter["type"] == "Metaspace" and not splitter.get("split", True):
        scheme = splitter["prepend_scheme"]
        if scheme in ("first", "never"):
            return bool(scheme == "first")
    # Gemma's splitter does nothing: it splits at spaces, of which the normalizer leaves none.
    harmless = splitter is None or (splitter["type"] == "Split" and splitter["pattern"] == {"String": " "})
    if steps in ([replace], [prepend, replace]) and harmless:
        return len(steps) == 2
    raise _unsupported_vocabulary("a SentencePiece tokenizer that changes more in a text than its spaces")


# ---- special tokens


def _add_special(writer: Any, tokenizer: Tokenizer) -> None:
    turn = end_token(tokenizer)
    # llama.cpp ends at these tokens by their texts; there is one key for another one.
    others = [i for i in sorted(tokenizer.eos_ids - {tokenizer.eos_id, turn}) if tokenizer.token(i) not in ENDS]
    if len(others) > 1:
        raise _unsupported_vocabulary(f"one whose answers end at {', '.join(map(repr, map(tokenizer.token, others)))}")
    for add, token in (
        (writer.add_bos_token_id, tokenizer.bos_id),
        (writer.add_eos_token_id, tokenizer.eos_id),
        (writer.add_unk_token_id, tokenizer.unk_id),
        (writer.add_pad_token_id, tokenizer.pad_id),
        (writer.add_eot_token_id, turn),
        (writer.add_eom_token_id, next(iter(others), None)),
    ):
        if token is not None:
            add(token)
    writer.add_add_bos_token(tokenizer.adds_bos)
    writer.add_add_eos_token(False)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)


def _unsupported_vocabulary(what: str) -> EngineError:
    return _unsupported(f"llama.cpp has no tokenizer that does the same as {what}")
