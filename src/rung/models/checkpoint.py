"""Whether a model's files are the model: every tensor is there, fits, and holds numbers, and it can write text.

transformers fills a tensor that a checkpoint lacks with random numbers and only logs it. Such a model answers, and its
score says nothing. So every model is verified before its first use, once for its contents and this transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from importlib.metadata import PackageNotFoundError, distributions, version
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

from rung.errors import ModelError, install_command, needed_by
from rung.models.cache import file_sha256, fingerprint, known_sha256, recall, remember
from rung.models.hub import first_line, head_weights, is_static, loaded_weights, read_json, read_settings
from rung.models.reference import SETTINGS, ModelFiles
from rung.models.tokenizer import Tokenizer

ModelKind = Literal["language model", "encoder", "reranker"]
VERSION = 8  # of the checks: raise it with each change, so that models are verified again
OTHER_MODEL = (
    "choose another model (`rung models search`), or serve it elsewhere and name its endpoint: http://HOST/v1#MODEL"
)
SHOWN = 3  # tensors that an error names

# Modules that text does not need: towers for images and sound, heads that predict several tokens at once.
OTHER_PARTS = {
    "vision_tower", "vision_model", "vision_encoder", "visual", "embed_vision", "image_newline", "audio_tower",
    "audio_encoder", "audio_model", "embed_audio", "speech_encoder", "multi_modal_projector", "mm_projector", "mtp",
}  # fmt: skip
_BUFFERS = ("position_ids", "inv_freq", "masked_bias")  # constants that older versions saved
_HEAD, _TABLES = "lm_head.weight", ("embed_tokens.weight", "wte.weight", "word_embeddings.weight")
_POOLER = "pooler."  # of an encoder: sentence encoders pool by themselves
# Models in a wrapper, which transformers does not have among its language models.
_READ_IMAGES = ("mistral3", "mllama", "qwen2_5_vl", "qwen3_vl")
_BOTH_WAYS = {  # settings of config.json, and the values with which tokens read what follows them
    "is_causal": (False,), "causal": (False,), "use_bidirectional_attention": (True, "all"),
}  # fmt: skip
_UNPACKED = ("fp8", "mxfp4")  # quantizations that transformers itself can turn into full precision
_LIBRARIES = {  # quantizations -> the packages that run them, by their names in the package index
    "aqlm": "aqlm", "auto-round": "auto-round", "awq": "gptqmodel", "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors", "eetq": "kernels", "fbgemm_fp8": "fbgemm-gpu",
    "fouroversix": "fouroversix", "fp_quant": "fp_quant", "gptq": "optimum gptqmodel",
    "higgs": "flute-kernel fast_hadamard_transform", "hqq": "hqq", "mxfp4": "kernels", "quanto": "optimum-quanto",
    "quark": "amd-quark", "sinq": "sinq", "spqr": "spqr_quant", "torchao": "torchao", "vptq": "vptq",
}  # fmt: skip
_UNQUANTIZED = "choose the model in full precision or as GGUF, or serve it elsewhere (`http://HOST/v1#MODEL`)"
_TRAINERS = {  # prefixes that trainers leave in a checkpoint, and how the right one is written
    "_orig_mod.": "torch.compile: save `model._orig_mod`, or remove the prefix",
    "module.": "DataParallel or DeepSpeed: save `model.module`, or remove the prefix",
    "base_model.model.": "PEFT: save `model.merge_and_unload()`",
}


def verify(files: ModelFiles, kind: ModelKind | None = None) -> None:
    """Check that a model's files hold exactly the model that its config.json describes.

    By default it is checked as the kind that `kind_of` finds.

    Raises:
        ModelError: `model-unsupported` where the model cannot write text (or its quantization needs a library that is
            not here), `model-damaged` where tensors are missing, left over, of another shape, or not numbers, or the
            tokenizer writes tokens that the model does not have; `missing-extra` without transformers.
    """
    kind = kind or kind_of(files)
    try:
        library = version("transformers")  # its import takes seconds
    except PackageNotFoundError as missing:
        problem, hint = "reading a model needs transformers", install_command("local")
        raise ModelError("missing-extra", problem, hint=hint) from missing
    name = f"{files.fingerprint}-{kind.split()[0]}-{library}-{VERSION}"
    contents, known = fingerprint(_own_files(files)), recall(name)
    if known and known != contents:  # only of conversions: other models' names change with their contents
        raise _changed(files.folder)
    if known is not None:
        if not known:  # an earlier version of Rung kept no contents
            remember(name, contents)
        return
    config = None if kind == "encoder" and is_static(files.folder) else _config(files)
    if kind == "language model":
        _check_writes_text(files, config)
    packed = _packed(files, config)
    if config is None:
        static_table(files.folder)
    else:
        # Where only another library reads the packed tensors, the engine's own loading checks them.
        whole = not packed or _unpacks(files, config, packed)
        rows = _check_tensors(files, config, kind) if whole else config.get_text_config().vocab_size
        _check_vocabulary(files, rows, kind)
    _check_numbers(files, kind, packed=bool(packed))
    if kind != "language model" and (files.folder / "modules.json").exists():
        _check_modules(files.folder)
    remember(name, contents)


def hash_again(files: ModelFiles) -> int:
    """Read every byte of a model, and compare it with the hashes from the first time; the number of bytes.

    Rung hashes a file again when its size or its time changes. This finds what changes neither: a failing disk.

    Raises:
        ModelError: `model-damaged`.
    """
    own = _own_files(files)
    for file in own:
        if file_sha256(file) != known_sha256(file):
            raise _changed(file)
    return sum(file.stat().st_size for file in own)


def _own_files(files: ModelFiles) -> list[Path]:
    settings = [file for pattern in SETTINGS for file in sorted(files.folder.glob(pattern))]
    return settings + loaded_weights(files.folder) + head_weights(files.folder)


def _changed(place: Path) -> ModelError:
    problem = f"{place} is not what it was when the model was first used"
    return ModelError(
        "model-damaged", problem, hint="remove the folder, and fetch the model again: rung models pull MODEL"
    )


def is_encoder(files: ModelFiles) -> bool:
    """Whether the folder is one of sentence-transformers, which says how to make vectors of a text."""
    return (files.folder / "modules.json").exists() and not is_modular_reranker(files)


def is_modular_reranker(files: ModelFiles) -> bool:
    """Whether sentence-transformers scores pairs with the folder's model and a head that has files of its own."""
    file = files.folder / "config_sentence_transformers.json"
    modular = (files.folder / "modules.json").exists() and file.exists()
    return modular and read_settings(file).get("model_type") == "CrossEncoder"


def kind_of(files: ModelFiles) -> ModelKind:
    """What a folder seems to hold: a reranker scores a pair of texts with one number."""
    if is_modular_reranker(files):
        return "reranker"
    if files.architecture.endswith("ForSequenceClassification"):
        values = read_settings(files.folder / "config.json")
        if len(values.get("id2label") or ()) == 1 or values.get("num_labels") == 1:
            return "reranker"
    return "encoder" if is_encoder(files) else "language model"


def check_loaded(
    files: ModelFiles, info: dict[str, Any], kind: ModelKind = "language model", model: Any = None
) -> None:
    """Check what transformers reports of a loading (`output_loading_info`); of other kinds, with the `model`.

    Raises:
        ModelError: `model-damaged`.
    """
    missing = [key for key in sorted(info["missing_keys"]) if kind != "encoder" or _POOLER not in key]
    extra = [
        key
        for key in sorted(info["unexpected_keys"])
        if not key.endswith(_BUFFERS) and OTHER_PARTS.isdisjoint(_modules_above(key))
    ]
    written_by = next((why for prefix, why in _TRAINERS.items() if any(key.startswith(prefix) for key in extra)), None)
    if model is not None:
        # An encoder may be read from a model with a head of any name on top: what lies outside the base is not its.
        base = model.base_model
        own = {base.base_model_prefix, *(name for part in (model, base) for name, _ in part.named_children())}
        extra = [key for key in extra if key.split(".")[0] in own and _POOLER not in key]
    if not missing and not extra:
        return
    parts = [
        f"{len(keys)} tensors {what}, such as {', '.join(keys[:SHOWN])}"
        for keys, what in ((missing, "are missing"), (extra, "have no place in the model"))
        if keys
    ]
    hint = f"the prefix comes from {written_by}" if written_by else "save the whole model with `save_pretrained`"
    problem = f"{files.place} does not fit its config.json ({files.architecture}): {'; '.join(parts)}"
    raise ModelError("model-damaged", problem, hint=hint)


def text_class(model_type: str) -> Any:
    """The class of transformers that loads language models of this type, with the towers that they have for images."""
    import transformers

    wrapped = model_type in _READ_IMAGES
    return transformers.AutoModelForImageTextToText if wrapped else transformers.AutoModelForCausalLM


def _modules_above(key: str) -> Iterator[str]:
    """The parts of a tensor's name before the first number: names within the layers of a text decoder say nothing."""
    return takewhile(lambda part: not part.isdigit(), key.split("."))


def _config(files: ModelFiles) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(files.folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of a config.json by others: every class of transformers checks it in its own way
        raise _unsupported(files, f"transformers cannot read its config.json: {first_line(error)}") from error


def _check_writes_text(files: ModelFiles, config: Any) -> None:
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    kind, architecture = config.model_type, files.architecture
    if getattr(config, "is_encoder_decoder", False):
        problem = f"{files.name} is an encoder-decoder model ({architecture}): Rung runs models that continue a text"
        raise ModelError(
            "model-unsupported", problem, hint="choose a decoder model, such as those of `rung models search`"
        )
    masked, text = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES, config.get_text_config()
    written = kind in (*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *_READ_IMAGES)
    if not written and not masked:
        raise _unsupported(files, f"transformers has no language model for its type {kind!r} ({architecture})")
    causal = architecture.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration"))
    # transformers runs as an encoder what may be both and does not say that it is a decoder.
    encodes = not written or ((masked or kind == "bert-generation") and not getattr(config, "is_decoder", causal))
    both_ways = [f"{name}: {value}" for name in _BOTH_WAYS if (value := getattr(text, name, None)) in _BOTH_WAYS[name]]
    if encodes or both_ways:
        because = f", as its tokens read what follows them ({both_ways[0]} in its config.json)" if both_ways else ""
        problem = f"{files.name} is an encoder ({architecture}): it writes no text{because}"
        hint = "use it as an encoder (`--set encoder=...`, the rungs features and fine-tuned-encoder)"
        raise ModelError("model-unsupported", problem, hint=hint)


def _packed(files: ModelFiles, config: Any) -> dict[str, Any]:
    """What config.json says of the model's quantization; empty without one.

    Raises:
        ModelError: `model-unsupported`: it is in a format of other tools, or nothing says in which.
    """
    values = getattr(config, "quantization_config", None)
    if isinstance(getattr(config, "quantization", None), dict):
        method = "MLX"
    elif isinstance(values, dict) and values.get("quant_method"):
        return values
    elif isinstance(values, dict) and (values.get("load_in_4bit") or values.get("load_in_8bit")):
        return values | {"quant_method": "bitsandbytes"}
    elif config is not None and (files.folder / "hf_quant_config.json").exists():
        method = "ModelOpt"
    elif values is None:
        return {}
    else:
        problem = f"{files.place}: the quantization_config of config.json names no quant_method: {values}"
        raise ModelError("model-unsupported", problem, hint=_UNQUANTIZED)
    raise ModelError(
        "model-unsupported", f"{files.name}: it is quantized for {method}, which nothing here runs", hint=_UNQUANTIZED
    )


def _unpacks(files: ModelFiles, config: Any, values: dict[str, Any]) -> bool:
    """Whether transformers itself can load the tensors in full precision, which `config` asks for from here on."""
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AutoHfQuantizer

    method = values["quant_method"]
    missing = [package for package in _LIBRARIES.get(method, "").split() if not any(distributions(name=package))]
    try:
        AutoHfQuantizer.from_config(values, pre_quantized=True).validate_environment(device_map=None)
    except Exception as error:  # every library says in its own way that it is missing, NameError included
        said = f"it needs {' and '.join(missing)}" if isinstance(error, NameError) and missing else first_line(error)
        if method not in _LIBRARIES | AUTO_QUANTIZATION_CONFIG_MAPPING:
            said = "transformers does not read this format"
        hint = (
            f"install what it needs (`pip install {' '.join(missing)}`), or {_UNQUANTIZED}" if missing else _UNQUANTIZED
        )
        problem = f"{files.name}: it is quantized ({method}), which cannot run here: {said}"
        raise ModelError("model-unsupported", problem, hint=hint) from error
    if method not in _UNPACKED:
        return False
    config.quantization_config = values | {"dequantize": True}
    return True


def _check_tensors(files: ModelFiles, config: Any, kind: ModelKind) -> int:
    """Load the names and shapes alone, by transformers itself: it knows renamed, merged and tied tensors.

    Returns the number of embeddings.
    """
    import transformers

    level = transformers.logging.get_verbosity()
    loader = {
        "language model": text_class(config.model_type), "encoder": transformers.AutoModel,
        "reranker": transformers.AutoModelForSequenceClassification,
    }["encoder" if is_modular_reranker(files) else kind]  # fmt: skip
    text = config.get_text_config()
    tied = getattr(text if hasattr(text, "tie_word_embeddings") else config, "tie_word_embeddings", False)
    if kind == "language model" and tied and _holds_tied_head(files):
        config = deepcopy(config)  # transformers compares the two tensors too, which fails without their values
        config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        model, info = loader.from_pretrained(
            files.folder, config=config, device_map="meta", output_loading_info=True, ignore_mismatched_sizes=True,
            local_files_only=True, trust_remote_code=False,
        )  # fmt: skip
    except Exception as error:  # likewise
        raise _unsupported(files, f"transformers cannot load it: {first_line(error)}") from error
    finally:
        transformers.logging.set_verbosity(level)
    if wrong := sorted(info["mismatched_keys"], key=str):
        key, found, expected = wrong[0]
        problem = (
            f"{files.place} does not fit its config.json ({files.architecture}): {len(wrong)} tensors have another "
            f"shape, such as {key}: {list(found)} instead of {list(expected)}"
        )
        raise ModelError("model-damaged", problem, hint="use the config.json that was saved with these weights")
    check_loaded(files, info, kind, None if kind == "language model" else model)
    return int(model.get_input_embeddings().weight.shape[0])


def _check_vocabulary(files: ModelFiles, rows: int, kind: ModelKind) -> None:
    """Check that the model has an embedding for every token that can reach it, and one that ends an answer."""
    vocabulary, added = _tokens(files.folder)
    if not vocabulary and not added and kind != "language model":
        return  # without a tokenizer.json, the encoder's own library reads its vocabulary
    tokenizer = Tokenizer.load(files.folder)
    # A reranker's own library encodes, and finds all added tokens in a text.
    beyond = {token: text for token, text in vocabulary.items() if token >= rows} | {
        token: text
        for token, text in added.items()
        if token >= rows and (kind == "reranker" or tokenizer.writes(token, text))
    }
    if beyond:
        token = max(beyond)
        what = f"the tokenizer writes {beyond[token]!r} as token {token}, and the model has {rows} embeddings"
        hint = "call `model.resize_token_embeddings(len(tokenizer))` before saving, or use the model's own tokenizer"
        raise ModelError("model-damaged", f"{files.place}: {what}", hint=hint)
    if kind == "language model" and not any(0 <= end < rows for end in tokenizer.eos_ids):
        problem = f"{files.place} names no token that ends an answer, or one that the model does not have"
        hint = 'write its id into config.json: "eos_token_id": 2, for example'
        raise ModelError("model-damaged", problem, hint=hint)


def _holds_tied_head(files: ModelFiles) -> bool:
    """Whether the weights hold the output layer that config.json ties to the embeddings, a second time.

    Raises:
        ModelError: `model-damaged`: the two differ, so that nobody knows which of them is meant.
    """
    import torch

    pair = {
        ending: tensor
        for name, tensor in _tensors(loaded_weights(files.folder), (_HEAD, *_TABLES))
        for ending in (_HEAD, *_TABLES)
        if name.endswith(ending)
    }
    if _HEAD not in pair or len(pair) < 2:
        return False
    head, table = pair.pop(_HEAD), pair.popitem()[1]
    if not torch.equal(head, table):
        problem = f"{files.place}: config.json ties the output layer to the embeddings, and the weights have another"
        hint = 'write "tie_word_embeddings": false into config.json, or remove lm_head.weight from the weights'
        raise ModelError("model-damaged", problem, hint=hint)
    return True


def _check_modules(folder: Path) -> None:
    """Load what sentence-transformers runs after a model, by itself: it knows which tensors each module has."""
    for module in read_json(folder / "modules.json"):
        kind, place = str(module.get("type", "")), str(module.get("path", ""))
        if not place or kind.rpartition(".")[2] in ("Pooling", "Normalize"):
            continue
        with needed_by("a sentence encoder", error=ModelError):
            from sentence_transformers.util import import_from_string
        try:
            import_from_string(kind).load(str(folder), subfolder=place, local_files_only=True)
        except Exception as error:  # every module of the library checks its own settings in its own way
            said = " ".join(str(error).split()) or type(error).__name__
            problem = f"{folder / place}: sentence-transformers cannot load this module: {said}"
            hint = "fetch the whole model again, or save it again with sentence-transformers' `save_pretrained`"
            raise ModelError("model-damaged", problem, hint=hint) from error


def static_table(folder: Path) -> Any:
    """The table of token vectors in a folder of an encoder without a forward pass, as numpy's float32.

    Raises:
        ModelError: `model-unsupported`: it holds more than a table; `model-damaged`: it does not fit its tokenizer.
    """
    import numpy as np
    from safetensors.numpy import load_file

    tensors = load_file(folder / "model.safetensors")
    if len(tensors) != 1 or next(iter(tensors)) not in ("embedding.weight", "embeddings"):
        what = f"{folder} holds {', '.join(sorted(tensors))}, and not one table of token vectors"
        raise ModelError(
            "model-unsupported", what, hint="choose another encoder: `rung models search --task similarity`"
        )
    table = next(iter(tensors.values())).astype(np.float32)
    tokens = max([-1, *(token for part in _tokens(folder) for token in part)]) + 1
    if table.ndim != 2 or tokens > len(table):
        problem = f"{folder}: the tokenizer has {tokens} tokens and the table {len(table)} rows"
        raise ModelError("model-damaged", problem, hint="use the tokenizer.json that was saved with the table")
    return table


def _tokens(folder: Path) -> tuple[dict[int, str], dict[int, str]]:
    """The texts of tokenizer.json by id: its vocabulary, and the tokens added to it; none without the file."""
    if not (file := folder / "tokenizer.json").is_file():
        return {}, {}
    values = read_settings(file)
    try:
        vocabulary = values.get("model", {}).get("vocab") or ()
        ids = vocabulary.items() if isinstance(vocabulary, dict) else ((v[0], i) for i, v in enumerate(vocabulary))
        added = {int(token["id"]): str(token["content"]) for token in values.get("added_tokens") or ()}
        return {int(number): str(text) for text, number in ids}, added
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        problem = f"{file} is not a tokenizer: {first_line(error)}"
        raise ModelError("model-damaged", problem, hint="download the model again") from error


def _check_numbers(files: ModelFiles, kind: ModelKind, *, packed: bool) -> None:
    import torch

    integers = packed or kind == "encoder"
    names, scaled = set[str](), list[str]()
    heads = [] if kind == "language model" else head_weights(files.folder)
    for name, tensor in _tensors(loaded_weights(files.folder) + heads):
        names.add(name)
        if packed and tensor.dtype in (torch.float8_e4m3fn, torch.float8_e5m2) and name.endswith(".weight"):
            scaled.append(name)  # transformers would take it as it is where its scale is lost
        narrow = tensor.is_floating_point() and tensor.dtype.itemsize == 1 and not packed
        whole = not tensor.is_floating_point() and not integers and name.endswith(".weight") and tensor.dim() > 1
        if narrow or whole:
            what = "numbers of 8 bits without a scale" if narrow else "integers"
            problem = f"{files.place}: the tensor {name} holds {what}, and config.json names no quantization"
            hint = "restore the quantization_config of config.json, or save the model in full precision"
            raise ModelError("model-damaged", problem, hint=hint)
        if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
            problem = f"{files.place}: the tensor {name} holds values that are no numbers (NaN or infinite)"
            raise ModelError(
                "model-damaged", problem, hint="its training has diverged, or the file is damaged: fetch it again"
            )
    if lost := [name for name in scaled if not {f"{name}_scale", f"{name}_scale_inv"} & names]:
        problem = f"{files.place}: {len(lost)} tensors of 8 bits have no scale, such as {lost[0]}"
        raise ModelError("model-damaged", problem, hint="save the whole model with `save_pretrained`")


def _tensors(weights: Sequence[Path], endings: tuple[str, ...] = ("",)) -> Iterator[tuple[str, Any]]:
    from safetensors import safe_open

    for file in weights:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                if name.endswith(endings):
                    yield name, tensors.get_tensor(name)


def _unsupported(files: ModelFiles, why: str) -> ModelError:
    return ModelError("model-unsupported", f"{files.name}: {why}", hint=OTHER_MODEL)
