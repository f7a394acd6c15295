"""Export a model folder to OpenVINO once, in a separate process, into Rung's cache.

The process imports torch, transformers, optimum-intel and nncf, which takes seconds and prints a lot; the caller needs
none of them. It is `python -m rung.engines.openvino_export SOURCE TARGET KIND PRECISION`.

optimum-intel exports some architectures only with older versions of transformers. Then the process gets those versions
before the installed ones, and a second process compares the exported graph with the installed transformers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, get_args

from rung.errors import EngineError, install_command
from rung.machine import peak_memory_of_children
from rung.models.cache import cache_dir, offline, publish, recall, remember
from rung.models.checkpoint import text_class
from rung.models.embedded import installer
from rung.models.hub import loaded_weights, read_settings
from rung.models.reference import ModelFiles
from rung.progress import QUIET, Progress

ExportKind = Literal["causal", "encoder"]  # a language model with its cache as a state of the graph; hidden states
Step = Literal["causal", "encoder", "graph", "finish"]  # what a process does: `causal` in one, or in the last two
ExportPrecision = Literal["int8", "int4", "fp32"]  # of the weights; quantized ones need no calibration data

MODULE = "rung.engines.openvino_export"
GRAPH = "openvino_model.xml"
PACKAGES = ("openvino", "optimum-intel", "nncf")
PULSE_SECONDS = 0.5  # between two reports of progress while the export runs
GROUP_SIZE = 64  # weights that share a scale and a zero point in int4; the embedding and the last layer have 8 bits
LOG_LINES = 8  # of a failed export, that the error repeats
WITH_TORCH = "run the model with torch instead: --engine torch"
# In the last words of an export that may succeed when the machine has more room, or all libraries.
OF_THE_MACHINE = (
    "No space left", "Disk quota", "MemoryError", "Cannot allocate memory", "bad_alloc", "ImportError",
    "No module named",
)  # fmt: skip


def folder_of(files: ModelFiles, kind: ExportKind, precision: ExportPrecision) -> Path:
    """The folder of the export in the cache."""
    return cache_dir() / "openvino" / f"{files.fingerprint}-{kind}-{precision}"


def exported(files: ModelFiles, kind: ExportKind, precision: ExportPrecision, *, progress: Progress = QUIET) -> Path:
    """The folder of a model's OpenVINO export, made at the first call.

    It holds `openvino_model.xml`, `openvino_model.bin` and `config.json`, for a `causal` model also its tokenizer and
    detokenizer as OpenVINO models, which constrained text needs. Processes that need the same export wait for each
    other; a killed one leaves nothing that looks complete.

    Raises:
        EngineError: `missing-extra` where a package is not installed, `export-unsupported` where optimum-intel does not
            know the architecture or its export fails for good, `export-failed` where the machine lacks something.
    """
    if kind == "causal":
        _check_paged(files.folder, files.name)
    folder = folder_of(files, kind, precision)
    if folder.exists():
        return folder
    publish(
        folder,
        lambda target: export_folder(files.folder, target, files.name, kind, precision, progress=progress),
        progress,
    )
    return folder


def _check_paged(source: Path, name: str) -> None:
    """Refuse ALiBi that openvino-genai loses where it pages the cache: of MPT and Falcon (not of BLOOM)."""
    values = read_settings(source / "config.json")
    attention = values.get("attn_config")
    alibi = {
        "mpt": (attention if isinstance(attention, dict) else {}).get("alibi", True),
        "falcon": values.get("alibi"),
    }
    if alibi.get(str(values.get("model_type"))):
        problem = f"{name} attends by distance (ALiBi), which openvino-genai loses in {values['model_type']} models"
        raise EngineError("export-unsupported", problem, hint=WITH_TORCH)


def export_folder(
    source: Path, target: Path, name: str, kind: ExportKind, precision: ExportPrecision, *, progress: Progress = QUIET
) -> None:
    """Export the model `name` in one folder to another, existing one; see `exported`.

    Raises:
        EngineError: `missing-extra`, `export-unsupported` or `export-failed`.
    """
    if (missing := missing_package()) is not None:
        raise EngineError("missing-extra", f"OpenVINO needs {missing}", hint=install_command("local"))
    if kind == "causal":
        _check_paged(source, name)
    weights = weights_bytes(source)
    seconds, gigabytes = expected(weights, precision)
    takes = f"about {max(1, round(seconds / 60))} min and {gigabytes:.1f} GB of memory"
    progress.start(f"exporting {name} to OpenVINO ({precision}), once: {takes}")
    began = time.monotonic()
    code, said = _process(source, target, kind, precision, progress)
    if code != 0 and TOO_NEW in said and kind == "causal" and (older := _older(source)) is not None:
        folder = _fetched(older, progress)
        progress.start(f"exporting {name} to OpenVINO ({precision}) with {older.names}, once")
        code, said = _export_with(folder, source, target, precision, progress)
    if code != 0 or not (target / GRAPH).exists():
        last = said.rpartition("Traceback (most recent call last):")[2].splitlines()
        log = [line for line in last if line.strip() and not line.startswith(" ")][-LOG_LINES:]  # without code
        problem = f"{name} cannot be exported to OpenVINO: {' | '.join(log) or f'exit code {code}'}"
        # A process that is killed ends with a signal. Anything else would fail in the same way at the next attempt.
        again = code < 0 or any(sign in said for sign in OF_THE_MACHINE)
        known = "export-failed" if again else "export-unsupported"
        raise EngineError(known, problem, hint=WITH_TORCH)
    _remember(weights, precision, time.monotonic() - began)
    progress.finish()


def _process(
    source: Path,
    target: Path,
    step: Step,
    precision: ExportPrecision,
    progress: Progress,
    libraries: Path | None = None,
) -> tuple[int, str]:
    """Run a step in a process; its exit code and what it wrote to stderr."""
    # -P: modules in the user's working directory must not replace ours. Rung itself may run from a source tree.
    parts = (str(libraries or ""), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", ""))
    path = os.pathsep.join(filter(None, parts))
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    command = [sys.executable, "-P", "-m", MODULE, str(source), str(target), step, precision]
    return _run(command, environment, progress)


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


# ---- older versions of transformers, for architectures that optimum-intel exports with those alone
#
# A few wheels in a folder of the cache, which the exporting process reads before the installed packages; torch and
# everything else are the installed ones. Older versions read other keys of config.json, so they get a copy with both.
# What a key means may still differ: the exported graph is compared with the installed transformers before it is used.

TOO_NEW = "does not allow for the export of the model"  # optimum-intel, of the version of transformers
COMPARED_TOKENS = 96  # of one text
MAX_EXPORT_DIFF: Mapping[str, float] = {"int8": 0.5, "int4": 1.0, "fp32": 0.01}  # of log-probabilities, mean, in nats


@dataclass(frozen=True, slots=True)
class Libraries:
    """Packages of the package index, with the hashes of their wheels."""

    requirements: tuple[str, ...]
    megabytes: int  # to download

    @property
    def names(self) -> str:
        """Package and version of each."""
        return " and ".join(line.split()[0].replace("==", " ") for line in self.requirements)


VERSION_4 = Libraries((
    "transformers==4.57.6 --hash=sha256:4c9e9de11333ddfe5114bc872c9f370509198acf0b87a832a0ab9458e2bd0550",
    "huggingface-hub==0.36.0 --hash=sha256:7bcc9ad17d5b3f07b57c78e79d527102d08313caa278a641993acddcb894548d",
), 13)  # fmt: skip
VERSION_5_2 = Libraries(
    ("transformers==5.2.0 --hash=sha256:9ecaf243dc45bee11a7d93f8caf03746accc0cb069181bbf4ad8566c53e854b4",), 10
)
# By `model_type`: those whose export is exact in the table of families (benchmarks/model_matrix.py), and no others.
OLDER = {
    "exaone4": VERSION_4, "gemma2": VERSION_4, "gemma3_text": VERSION_4, "lfm2": VERSION_4, "qwen3_next": VERSION_4,
    "qwen3_5_text": VERSION_5_2,
}  # fmt: skip


def _older(source: Path) -> Libraries | None:
    config = json.loads((source / "config.json").read_text("utf-8"))
    return OLDER.get(config.get("model_type"))


def _export_with(
    folder: Path, source: Path, target: Path, precision: ExportPrecision, progress: Progress
) -> tuple[int, str]:
    """Export with the libraries in a folder, then write the tokenizer and compare with the installed ones."""
    with tempfile.TemporaryDirectory(prefix="rung-export-") as scratch:
        for file in source.iterdir():
            if file.suffix == ".safetensors" or file.name in ("model.safetensors.index.json", "generation_config.json"):
                (Path(scratch) / file.name).symlink_to(file.resolve())
        config = older_config(json.loads((source / "config.json").read_text("utf-8")))
        (Path(scratch) / "config.json").write_text(json.dumps(config), "utf-8")
        code, said = _process(Path(scratch), target, "graph", precision, progress, folder)
    if code == 0:
        code, said = _process(source, target, "finish", precision, progress)
    return code, said


def older_config(config: dict[str, Any]) -> dict[str, Any]:
    """A config.json that transformers 4 reads as version 5 reads the given one: `rope_parameters` in its old keys."""
    rope = config.get("rope_parameters") or {}
    local = rope.get("sliding_attention")
    rope = rope.get("full_attention", rope)
    values = dict(config)
    if "rope_theta" in rope:
        values["rope_theta"] = rope["rope_theta"]
        scaled = rope.get("rope_type", "default") != "default"
        values["rope_scaling"] = {k: v for k, v in rope.items() if k != "rope_theta"} if scaled else None
    if "partial_rotary_factor" in rope:
        values["partial_rotary_factor"] = rope["partial_rotary_factor"]
    if local:
        values["rope_local_base_freq"] = local["rope_theta"]
    return values


def _fetched(older: Libraries, progress: Progress) -> Path:
    """The folder of the packages, downloaded at the first call.

    Raises:
        EngineError: `export-failed` without the network, or where the download fails.
    """
    folder = cache_dir() / "export-libraries" / older.names.replace(" ", "-")
    if folder.exists():
        return folder
    what = f"exporting this architecture needs {older.names} ({older.megabytes} MB) beside the installed version"
    if offline():
        hint = "unset RUNG_OFFLINE and HF_HUB_OFFLINE for `rung models pull MODEL --openvino`, or use `--engine torch`"
        raise EngineError("export-failed", f"{what}, and the network is switched off", hint=hint)
    progress.start(f"{what}: downloading it once")

    def install(target: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="rung-export-") as scratch:
            wanted = Path(scratch) / "requirements.txt"
            wanted.write_text("\n".join(older.requirements), "utf-8")
            code, said = _run([*installer(target), "--require-hashes", "-r", str(wanted)], os.environ, progress)
        if code != 0:
            log = said.strip().splitlines()
            problem = f"{what}; its download failed: {log[-1] if log else f'exit code {code}'}"
            raise EngineError("export-failed", problem, hint="check the network, or use `--engine torch`")

    publish(folder, install, progress)
    progress.finish()
    return folder


def finish(source: Path, target: Path, precision: ExportPrecision) -> None:
    """Write the tokenizer of an export, and compare its graph with the model in the installed transformers."""
    import numpy as np
    import openvino
    import torch

    from rung.engines.apart import mend

    _export_tokenizer(source, target)
    loader = text_class(read_settings(source / "config.json").get("model_type", ""))
    model = loader.from_pretrained(source, dtype=torch.float32, local_files_only=True, trust_remote_code=False)
    mend(model)
    tokens = np.random.default_rng(0).integers(0, model.get_input_embeddings().weight.shape[0], (1, COMPARED_TOKENS))
    with torch.inference_mode():
        expected = torch.log_softmax(model(input_ids=torch.from_numpy(tokens)).logits[0], -1).numpy()
    graph = openvino.Core().compile_model(target / GRAPH, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    inputs = {
        "input_ids": tokens, "attention_mask": np.ones_like(tokens),
        "position_ids": np.arange(COMPARED_TOKENS)[None], "beam_idx": np.zeros(1, np.int32),
    }  # fmt: skip
    names = {port.get_any_name() for port in graph.inputs}
    logits = torch.from_numpy(graph({name: inputs[name] for name in names})["logits"])
    best = expected.argmax(-1)[:, None]
    found = torch.log_softmax(logits[0].float(), -1).numpy()
    difference = float(np.abs(np.take_along_axis(found - expected, best, 1)).mean())
    if difference > MAX_EXPORT_DIFF[precision]:
        raise SystemExit(
            f"the exported graph differs from the model: log-probabilities are {difference:.3f} nats apart"
        )


# ---- what an export takes: both figures grow with the weights, above what the libraries take
#
# The typical figures are those of 135M and 0.5B parameters in int8 on two AVX2 cores. They are corrected by the largest
# export that this machine has made.

FIXED_SECONDS, SECONDS_PER_GB = 16.0, 40.0
FIXED_GB, MEMORY_PER_GB = 1.3, 1.35  # at the peak of the exporting process


def weights_bytes(folder: Path) -> int:
    """The bytes of a model's weights."""
    return sum(file.stat().st_size for file in loaded_weights(folder))


def expected(weights: int, precision: ExportPrecision) -> tuple[float, float]:
    """Seconds and gigabytes of memory that the export of a model with so many bytes of weights is expected to take."""
    seconds, gigabytes = _typical(weights)
    if known := json.loads(recall(f"openvino-export-{precision}") or "null"):
        typical_seconds, typical_gigabytes = _typical(known["weights"])
        seconds *= known["seconds"] / typical_seconds
        gigabytes *= known["memory"] / 1e9 / typical_gigabytes
    return seconds, gigabytes


def _typical(weights: int) -> tuple[float, float]:
    """Seconds and gigabytes."""
    return FIXED_SECONDS + SECONDS_PER_GB * weights / 1e9, FIXED_GB + MEMORY_PER_GB * weights / 1e9


def _remember(weights: int, precision: ExportPrecision, seconds: float) -> None:
    known = json.loads(recall(f"openvino-export-{precision}") or "null")
    if known is None or known["weights"] <= weights:
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


def export(source: Path, target: Path, step: Step, precision: ExportPrecision) -> None:
    """Take one step of an export in this process."""
    if step == "finish":
        finish(source, target, precision)
        return
    from optimum.intel import OVModelForCausalLM, OVModelForFeatureExtraction, OVWeightQuantizationConfig

    model_class = OVModelForFeatureExtraction if step == "encoder" else OVModelForCausalLM
    quantization = {
        "int8": OVWeightQuantizationConfig(bits=8),
        "int4": OVWeightQuantizationConfig(bits=4, group_size=GROUP_SIZE, group_size_fallback="adjust"),
        "fp32": None,
    }[precision]
    model = model_class.from_pretrained(
        source, export=True, compile=False, load_in_8bit=None if quantization else False, local_files_only=True,
        trust_remote_code=False, quantization_config=quantization,
    )  # fmt: skip
    model.save_pretrained(target)
    if step == "causal":
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
    source, target, step, precision = arguments
    if step not in get_args(Step) or precision not in get_args(ExportPrecision):
        steps, precisions = "|".join(get_args(Step)), "|".join(get_args(ExportPrecision))
        raise SystemExit(f"usage: {MODULE} SOURCE TARGET {steps} {precisions}")
    export(Path(source), Path(target), step, precision)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(sys.argv[1:])
