"""Export a model folder to OpenVINO once, in a separate process, into Rung's cache.

The process imports torch, transformers, optimum-intel and nncf, which takes seconds and prints a lot; the caller needs
none of them. It is `python -m rung.engines.openvino_export SOURCE TARGET KIND PRECISION`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, get_args

from rung.errors import EngineError
from rung.machine import peak_memory_of_children
from rung.models.cache import cache_dir, publish, recall, remember
from rung.models.reference import ModelFiles
from rung.progress import QUIET, Progress

ExportKind = Literal["causal", "encoder"]  # a language model with its cache as a state of the graph; hidden states
ExportPrecision = Literal["int8", "fp32"]  # of the weights; int8 is symmetric per channel, without calibration data

MODULE = "rung.engines.openvino_export"
GRAPH = "openvino_model.xml"
PACKAGES = ("openvino", "optimum-intel", "nncf")
PULSE_SECONDS = 0.5  # between two reports of progress while the export runs
LOG_LINES = 8  # of a failed export, that the error repeats


def folder_of(files: ModelFiles, kind: ExportKind, precision: ExportPrecision) -> Path:
    """The folder of the export in the cache."""
    return cache_dir() / "openvino" / f"{files.fingerprint}-{kind}-{precision}"


def exported(files: ModelFiles, kind: ExportKind, precision: ExportPrecision, *, progress: Progress = QUIET) -> Path:
    """The folder of a model's OpenVINO export, made at the first call.

    It holds `openvino_model.xml`, `openvino_model.bin` and `config.json`, for a `causal` model also its tokenizer and
    detokenizer as OpenVINO models, which constrained text needs. Processes that need the same export wait for each
    other; a killed one leaves nothing that looks complete.

    Raises:
        EngineError: `missing-extra` where a package is not installed, `export-failed` where the export fails.
    """
    folder = folder_of(files, kind, precision)
    if folder.exists():
        return folder
    publish(
        folder,
        lambda target: export_folder(files.folder, target, files.name, kind, precision, progress=progress),
        progress,
    )
    return folder


def export_folder(
    source: Path, target: Path, name: str, kind: ExportKind, precision: ExportPrecision, *, progress: Progress = QUIET
) -> None:
    """Export the model `name` in one folder to another, existing one; see `exported`.

    Raises:
        EngineError: `missing-extra` or `export-failed`.
    """
    if (missing := missing_package()) is not None:
        raise EngineError("missing-extra", f"OpenVINO needs {missing}", hint="uv pip install 'rung[local]'")
    weights = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    progress.start(f"exporting {name} to OpenVINO ({precision}), once{_expected(weights, precision)}")
    began = time.monotonic()
    # -P: modules in the user's working directory must not replace ours. Rung itself may run from a source tree.
    home = str(Path(__file__).parents[2])
    path = os.pathsep.join(part for part in (home, os.environ.get("PYTHONPATH", "")) if part)
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    command = [sys.executable, "-P", "-m", MODULE, str(source), str(target), kind, precision]
    code, said = _run(command, environment, progress)
    _remember(weights, precision, time.monotonic() - began)
    if code != 0 or not (target / GRAPH).exists():
        log = [line for line in said.splitlines() if line.strip()][-LOG_LINES:]
        problem = f"{name} cannot be exported to OpenVINO: {' | '.join(log) or f'exit code {code}'}"
        raise EngineError("export-failed", problem, hint="run the model with torch instead: --engine torch")
    progress.finish()


def _run(command: list[str], environment: Mapping[str, str], progress: Progress) -> tuple[int, str]:
    """Run a process to its end; its exit code and what it wrote to stderr. It is killed if `progress` stops it."""
    with subprocess.Popen(
        command, text=True, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        try:
            while True:
                try:
                    _, said = process.communicate(timeout=PULSE_SECONDS)
                    return process.returncode, said
                except subprocess.TimeoutExpired:
                    progress.advance(0)
        except BaseException:
            process.kill()
            raise


# What an export took, by the bytes of the model's weights: seconds, and the peak of its process's memory.


def _expected(weights: int, precision: ExportPrecision) -> str:
    """What the export is expected to take, from the largest one that this machine has made; empty without one."""
    known = json.loads(recall(f"openvino-export-{precision}") or "null")
    if not known or not weights:
        return ""
    share = max(1.0, weights / known["weights"])  # a smaller model still imports the libraries
    minutes, gigabytes = share * known["seconds"] / 60, share * known["memory"] / 1e9
    return f": about {max(1, round(minutes))} min and {gigabytes:.1f} GB of memory"


def _remember(weights: int, precision: ExportPrecision, seconds: float) -> None:
    known = json.loads(recall(f"openvino-export-{precision}") or "null")
    if known and known["weights"] > weights:
        return
    values = {"weights": weights, "seconds": seconds, "memory": peak_memory_of_children()}
    remember(f"openvino-export-{precision}", json.dumps(values))


def missing_package() -> str | None:
    """The first package that an export needs and that is not installed; nothing is imported."""
    for package in PACKAGES:
        try:
            version(package)
        except PackageNotFoundError:
            return package
    return None


def export(source: Path, target: Path, kind: ExportKind, precision: ExportPrecision) -> None:
    """Export in this process."""
    from optimum.intel import OVModelForCausalLM, OVModelForFeatureExtraction, OVWeightQuantizationConfig

    model_class = OVModelForCausalLM if kind == "causal" else OVModelForFeatureExtraction
    weights = {"quantization_config": OVWeightQuantizationConfig(bits=8)} if precision == "int8" else {}
    model = model_class.from_pretrained(
        source, export=True, compile=False, load_in_8bit=None if weights else False, local_files_only=True,
        trust_remote_code=False, **weights,
    )  # fmt: skip
    model.save_pretrained(target)
    if kind == "causal":
        _export_tokenizer(source, target)


def _export_tokenizer(source: Path, target: Path) -> None:
    """Write tokenizer and detokenizer: openvino-genai reads the vocabulary of constrained text from them."""
    import openvino
    from openvino_tokenizers import convert_tokenizer
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    models = convert_tokenizer(tokenizer, with_detokenizer=True)
    for name, model in zip(("openvino_tokenizer.xml", "openvino_detokenizer.xml"), models, strict=True):
        openvino.save_model(model, target / name)


def main(arguments: list[str]) -> None:
    """Run `export` with the words of the command line."""
    source, target, kind, precision = arguments
    if kind not in get_args(ExportKind) or precision not in get_args(ExportPrecision):
        kinds, precisions = "|".join(get_args(ExportKind)), "|".join(get_args(ExportPrecision))
        raise SystemExit(f"usage: {MODULE} SOURCE TARGET {kinds} {precisions}")
    export(Path(source), Path(target), kind, precision)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(sys.argv[1:])
