"""PEFT LoRA adapters for OpenVINO: read, checked, and handed over with their scale folded in.

openvino-genai adds `B @ A` of every layer whose name it finds in the graph, and only warns of the others on stderr; it
does not read adapter_config.json. What it would get wrong is refused here, and the scale (lora_alpha / r, with
rsLoRA / sqrt(r), both also by pattern) goes into B, so that nothing is left for it to decide.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rung.errors import ArtifactError, EngineError
from rung.models.reference import ModelFiles
from rung.training.changes import BASE_FINGERPRINT

TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<part>[AB])\.weight")
PLAIN = ("use_dora", "modules_to_save", "fan_in_fan_out", "lora_bias", "layer_replication", "trainable_token_indices")


def unsupported(folder: Path) -> str | None:
    """Return why OpenVINO cannot run the adapter in `folder`, or nothing where it can."""
    if not (folder / "adapter_config.json").is_file() and any(folder.glob("*.safetensors")):
        return "it is not a LoRA adapter"
    config = _config(folder)
    if config.get("peft_type") != "LORA":
        return f"its type is {config.get('peft_type')}, not LORA"
    extras = [name for name in PLAIN if config.get(name)]
    if config.get("bias", "none") != "none":
        extras.append("bias")
    return f"it uses {', '.join(extras)}" if extras else None


def adapter_bytes(folder: Path, files: ModelFiles, graph: Path) -> bytes:
    """Return the adapter as a safetensors file in memory, scaled, in fp32.

    Args:
        folder: adapter_model.safetensors and adapter_config.json.
        files: the base model.
        graph: openvino_model.xml of the export, whose nodes are named after the model's layers.

    Raises:
        ArtifactError: no adapter is there (`not-an-adapter`), or it was trained on another model (`model-mismatch`).
        EngineError: OpenVINO cannot run it (`adapter-unsupported`).
    """
    from safetensors.numpy import save

    config = _config(folder)
    made_with = config.get(BASE_FINGERPRINT)
    if made_with is not None and made_with != files.fingerprint:
        raise ArtifactError(
            "model-mismatch",
            f"the adapter in {folder} was trained on another base model "
            f"({made_with[:12]}, not {files.fingerprint[:12]})",
            hint="open it on the model that it was trained on",
        )
    if why := unsupported(folder):
        raise _refused(folder, why)
    nodes = graph.read_text("utf-8")
    scaled = {}
    for name, tensor in _tensors(folder).items():
        found = TENSOR.fullmatch(name)
        if found is None:
            raise _refused(folder, f"it holds the tensor {name}")
        if f"__module.{found['module']}/" not in nodes:
            raise _refused(folder, f"the graph has no layer {found['module']}")
        scale = _scale(config, found["module"], tensor.shape[1]) if found["part"] == "B" else 1.0
        scaled[name] = np.ascontiguousarray(tensor * np.float32(scale))
    return bytes(save(scaled))


def _scale(config: dict[str, Any], module: str, rank: int) -> float:
    """Return what PEFT multiplies the product of one layer's matrices with."""
    alpha = next(
        (value for pattern, value in (config.get("alpha_pattern") or {}).items() if _matches(pattern, module)),
        config["lora_alpha"],
    )
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _matches(pattern: str, module: str) -> bool:
    return re.match(rf"(.*\.)?({pattern})$", module) is not None


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "adapter_config.json"
    if not file.is_file() or not (folder / "adapter_model.safetensors").is_file():
        raise ArtifactError(
            "not-an-adapter",
            f"{folder} holds no adapter_model.safetensors and adapter_config.json",
            hint="pickled adapters (.bin) are not read; save the adapter as safetensors",
        )
    config: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return config


def _tensors(folder: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Read the tensors as fp32; numpy knows no bfloat16, which is the upper half of an fp32."""
    from safetensors import SafetensorError, deserialize

    tensors = {}
    try:
        for name, tensor in deserialize((folder / "adapter_model.safetensors").read_bytes()):  # type: ignore[no-untyped-call]
            data, kind = tensor["data"], tensor["dtype"]
            if kind == "BF16":
                values = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
            else:
                values = np.frombuffer(data, {"F32": np.float32, "F16": np.float16}[kind]).astype(np.float32)
            tensors[name] = values.reshape(tensor["shape"])
    except (SafetensorError, KeyError) as unread:
        raise _refused(folder, f"its tensors cannot be read ({unread})") from unread
    return tensors


def _refused(folder: Path, why: str) -> EngineError:
    return EngineError(
        "adapter-unsupported",
        f"the openvino engine cannot run the adapter in {folder}: {why}",
        hint="use `--engine torch`",
    )
