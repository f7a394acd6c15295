"""Models for OpenVINO: exported once per model, kind and precision, by optimum-intel, in a process of its own.

The export imports torch, transformers and nncf and prints a great deal. In a subprocess all of that stays out of the
process that asked, and its memory (the weights several times over) is given back when it ends.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal, cast

from rung.errors import EngineError
from rung.models.cache import cache_dir, publish
from rung.models.reference import ModelFiles
from rung.progress import QUIET, Progress

Kind = Literal["causal", "encoder"]
Precision = Literal["int8", "fp32"]
REQUIRED = ("openvino", "optimum", "nncf", "torch", "transformers")
SHOWN_LINES = 12  # last lines of a failed export that the error repeats


def exported_folder(files: ModelFiles, kind: Kind, precision: Precision) -> Path:
    """Return where the export of a model is, or would be."""
    return cache_dir() / "openvino" / f"{files.fingerprint}-{kind}-{precision}"


def exported(files: ModelFiles, kind: Kind, precision: Precision, *, progress: Progress = QUIET) -> Path:
    """Return the folder with the model as OpenVINO reads it, exporting it first where that was not done yet.

    The folder holds openvino_model.xml, openvino_model.bin and config.json, and for a `causal` model its tokenizer and
    detokenizer as OpenVINO models, which constrained text needs. It appears complete or not at all; processes that
    want the same export wait for the first.

    Args:
        files: the checked model.
        kind: `causal` for language models, `encoder` for the token states of sentence encoders.
        precision: of the weights: `int8` (one scale per output channel) or `fp32`. Activations stay as they are.
        progress: told of an export.

    Raises:
        EngineError: something to export with is not installed (`missing-extra`), or it failed (`export-failed`).
    """
    folder = exported_folder(files, kind, precision)
    if folder.exists():
        return folder
    missing = [name for name in REQUIRED if importlib.util.find_spec(name) is None]
    if missing:
        raise EngineError(
            "missing-extra", f"an export to OpenVINO needs {', '.join(missing)}", hint="uv pip install 'rung[local]'"
        )
    progress.start(f"exporting {files.name} to OpenVINO, {precision}")
    publish(folder, lambda target: _export_apart(files, target, kind, precision))
    progress.finish("once per model")
    return folder


def _export_apart(files: ModelFiles, target: Path, kind: Kind, precision: Precision) -> None:
    """Run this module as a program; -P keeps the working folder out of what it may import."""
    command = [sys.executable, "-P", "-m", __name__, str(files.folder), str(target), kind, precision]
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        command, env={**os.environ, **quiet}, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = "\n".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-SHOWN_LINES:])
        raise EngineError(
            "export-failed",
            f"{files.name} could not be exported to OpenVINO (exit status {done.returncode}):\n{said}",
            hint="use `--engine torch`",
        )


def _export(source: Path, target: Path, kind: Kind, precision: Precision) -> None:
    """Export here and now."""
    from optimum.intel import OVModelForCausalLM, OVModelForFeatureExtraction, OVWeightQuantizationConfig

    model_class = OVModelForCausalLM if kind == "causal" else OVModelForFeatureExtraction
    # Without a word on precision, optimum-intel compresses models beyond a billion weights by itself.
    weights = (
        {"quantization_config": OVWeightQuantizationConfig(bits=8)} if precision == "int8" else {"load_in_8bit": False}
    )
    model = model_class.from_pretrained(
        source, export=True, compile=False, local_files_only=True, trust_remote_code=False, **weights
    )
    model.save_pretrained(target)
    if kind == "causal":
        _export_tokenizer(source, target)


def _export_tokenizer(source: Path, target: Path) -> None:
    """Write tokenizer and detokenizer: openvino-genai reads the vocabulary of constrained text from them."""
    import openvino
    from openvino_tokenizers import convert_tokenizer
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    for name, model in zip(
        ("openvino_tokenizer.xml", "openvino_detokenizer.xml"),
        convert_tokenizer(tokenizer, with_detokenizer=True),
        strict=True,
    ):
        openvino.save_model(model, target / name)


if __name__ == "__main__":
    _source, _target, _kind, _precision = sys.argv[1:]
    _export(Path(_source), Path(_target), cast("Kind", _kind), cast("Precision", _precision))
