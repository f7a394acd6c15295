"""Export a model folder to OpenVINO once, in a separate process, into Rung's cache.

The process imports torch, transformers, optimum-intel and nncf, which takes seconds and prints a lot; the caller needs
none of them. It is `python -m rung.engines.openvino_export SOURCE TARGET KIND PRECISION`.

Of a model that also reads images, its text decoder is exported, as a model of its own. optimum-intel exports some
architectures only with older versions of transformers: then the process gets those before the installed ones. What any
of these ways has made is compared with the installed transformers before it is used.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, get_args

from rung.errors import EngineError, install_command
from rung.machine import peak_memory_of_children
from rung.models.cache import cache_dir, offline, publish, recall, remember
from rung.models.checkpoint import text_class
from rung.models.embedded import installer
from rung.models.hub import loaded_weights, read_settings, text_settings
from rung.models.reference import ModelFiles
from rung.progress import QUIET, Progress

ExportKind = Literal["causal", "encoder"]  # a language model with its cache as a state of the graph; hidden states
Step = Literal["causal", "encoder", "decoder", "graph", "finish"]  # what a process does: `causal` is the last three
ExportPrecision = Literal["int8", "int4", "fp32"]  # of the weights; quantized ones need no calibration data

MODULE = "rung.engines.openvino_export"
GRAPH = "openvino_model.xml"
PACKAGES = ("openvino", "optimum-intel", "nncf")
PULSE_SECONDS = 0.5  # between two reports of progress while the export runs
GROUP_SIZE = 64  # weights that share a scale and a zero point in int4; the embedding and the last layer have 8 bits
LOG_LINES = 8  # of a failed export, that the error repeats
WITH_TORCH = "run the model with torch instead: --engine torch"
REFUSED = "refused: "  # before the last words of a process that a library refuses to go on with
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
    older = OLDER.get(str(text_settings(source).get("model_type")))
    if code != 0 and TOO_NEW in said and kind == "causal" and older is not None:
        folder = _fetched(older, progress)
        progress.start(f"exporting {name} to OpenVINO ({precision}) with {older.names}, once")
        code, said = _export_with(folder, source, target, precision, progress)
    if code != 0 or not (target / GRAPH).exists():
        _, refused, why = said.rpartition(REFUSED)
        last = why.rpartition("Traceback (most recent call last):")[2].splitlines()
        log = [line for line in last if line.strip() and not line.startswith(" ")][-LOG_LINES:]  # without code
        problem = f"{name} cannot be exported to OpenVINO: {' | '.join(log) or f'exit code {code}'}"
        # What a library refuses, it refuses at the next attempt too. A kill or a bug says nothing of the model.
        again = not refused or any(sign in why for sign in OF_THE_MACHINE)
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
COMPARED_TOKENS, WRITTEN_TOKENS = 96, 16  # of a random prompt, and of its answer
DECODERS = {"qwen2_5_vl_text": "qwen2", "qwen3_vl_text": "qwen3"}  # which they are, as text has one position a token
MAX_EXPORT_DIFF: Mapping[str, float] = {"int8": 0.5, "int4": 2.0, "fp32": 0.05}  # mean, in nats


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
COPIED = ("model.safetensors.index.json", "generation_config.json")  # beside the weights and config.json
# By `model_type`: those whose export is exact in the table of families (benchmarks/model_matrix.py), and no others.
OLDER = {
    "exaone4": VERSION_4, "lfm2": VERSION_4, "qwen3_next": VERSION_4, "qwen3_5_text": VERSION_5_2,
}  # fmt: skip


def _export_with(
    folder: Path, source: Path, target: Path, precision: ExportPrecision, progress: Progress
) -> tuple[int, str]:
    """Export with the libraries in a folder, then write the tokenizer and compare with the installed ones."""
    with tempfile.TemporaryDirectory(prefix="rung-export-") as scratch:
        copy = Path(scratch)
        if is_wrapper(source):
            code, said = _process(source, copy, "decoder", precision, progress)
            if code != 0:
                return code, said
        else:
            for file in (*source.glob("*.safetensors"), *map(source.joinpath, COPIED)):
                if file.exists():
                    (copy / file.name).symlink_to(file.resolve())
        config = older_config(json.loads(((copy if is_wrapper(source) else source) / "config.json").read_text("utf-8")))
        (copy / "config.json").write_text(json.dumps(config), "utf-8")
        code, said = _process(copy, target, "graph", precision, progress, folder)
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


def finish(source: Path, target: Path, precision: ExportPrecision, *, compare: bool = True) -> None:
    """Write the tokenizer of an export, and compare what openvino-genai writes with it with the model in transformers.

    openvino-genai changes the graph. It does not see where positions come from unless they are an input.
    """
    import numpy as np
    import openvino
    import openvino_genai
    import torch

    from rung.engines.apart import mend

    _export_tokenizer(source, target)
    if not compare:
        return
    model = _loaded(source, torch.float32)
    mend(model)
    table = model.get_input_embeddings().weight
    prompt = np.random.default_rng(0).integers(0, len(table), (1, COMPARED_TOKENS))
    properties = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    # Drawn, as greedy text repeats itself, which every similar model finds likely.
    asked = openvino_genai.GenerationConfig(
        max_new_tokens=WRITTEN_TOKENS, ignore_eos=True, logprobs=1, do_sample=True, top_k=len(table), rng_seed=0
    )
    with _refusing():
        scheduler = openvino_genai.SchedulerConfig()
        pipeline = openvino_genai.ContinuousBatchingPipeline(target, scheduler, "CPU", properties)
        handle = pipeline.add_request(0, openvino.Tensor(prompt), asked)
        while pipeline.has_non_finished_requests():
            pipeline.step()
        (written,) = handle.read_all()
    tokens = torch.tensor([[*prompt[0], *written.generated_ids]])
    with torch.inference_mode():
        expected = torch.log_softmax(model(input_ids=tokens, use_cache=False).logits[0, COMPARED_TOKENS - 1 : -1], -1)
    found = torch.tensor(written.generated_log_probs)
    difference = float((expected.gather(1, tokens[0, COMPARED_TOKENS:, None])[:, 0] - found).abs().mean())
    if not difference <= MAX_EXPORT_DIFF[precision]:
        problem = f"the export differs from the model: its log-probabilities are {difference:.3f} nats apart"
        raise SystemExit(REFUSED + problem)


@contextmanager
def _refusing() -> Iterator[None]:
    """End the process where a library raises, with its words."""
    try:
        yield
    except Exception as error:  # of any kind: libraries tell in their own ways that they cannot export a model
        raise SystemExit(f"{REFUSED}{type(error).__name__}: {error}") from error


# ---- wrappers of a text decoder, which also read images


def is_wrapper(source: Path) -> bool:
    """Whether config.json describes a text decoder within another model."""
    return isinstance(read_settings(source / "config.json").get("text_config"), dict)


def write_decoder(source: Path, folder: Path) -> None:
    """Write the text decoder of a wrapper as a model of its own: optimum-intel exports wrappers for images alone."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    wrapper = _loaded(source, "auto")
    values = wrapper.config.get_text_config().to_dict()
    kind = values.pop("model_type")
    head = wrapper.get_output_embeddings().weight
    tied = head is wrapper.get_input_embeddings().weight
    inner = wrapper.get_decoder().state_dict().items()
    with _refusing():
        config = AutoConfig.for_model(DECODERS.get(kind, kind), **values | {"tie_word_embeddings": tied})
        with torch.device("meta"):
            decoder = AutoModelForCausalLM.from_config(config)
        tensors = {f"{decoder.base_model_prefix}.{name}": tensor for name, tensor in inner}
        decoder.load_state_dict(tensors | {"lm_head.weight": head}, assign=True)
    decoder.generation_config = wrapper.generation_config
    decoder.save_pretrained(folder)


def _loaded(source: Path, precision: Any) -> Any:
    loader = text_class(read_settings(source / "config.json").get("model_type", ""))
    return loader.from_pretrained(source, dtype=precision, local_files_only=True, trust_remote_code=False)


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
    elif step == "decoder":
        write_decoder(source, target)
    elif step == "causal" and is_wrapper(source):
        with tempfile.TemporaryDirectory(prefix="rung-export-") as scratch:
            write_decoder(source, Path(scratch))
            _export_graph(Path(scratch), target, "graph", precision)
        finish(source, target, precision)
    else:
        inputs = _export_graph(source, target, step, precision)
        if step == "causal":
            finish(source, target, precision, compare="position_ids" not in inputs)


def _export_graph(source: Path, target: Path, step: Step, precision: ExportPrecision) -> set[str]:
    """Write the graph of a model; gives the names of its inputs."""
    from optimum.exporters.openvino.model_configs import GemmaOpenVINOConfig
    from optimum.intel import OVModelForCausalLM, OVModelForFeatureExtraction, OVWeightQuantizationConfig

    # It says 5.0, for all versions of Gemma: they are exact with newer ones too, and are compared.
    GemmaOpenVINOConfig.MAX_TRANSFORMERS_VERSION = None
    model_class = OVModelForFeatureExtraction if step == "encoder" else OVModelForCausalLM
    quantization = {
        "int8": OVWeightQuantizationConfig(bits=8),
        "int4": OVWeightQuantizationConfig(bits=4, group_size=GROUP_SIZE, group_size_fallback="adjust"),
        "fp32": None,
    }[precision]
    with _refusing():
        model = model_class.from_pretrained(
            source, export=True, compile=False, load_in_8bit=None if quantization else False, local_files_only=True,
            trust_remote_code=False, quantization_config=quantization,
        )  # fmt: skip
    model.save_pretrained(target)
    return {port.get_any_name() for port in model.model.inputs}


def _export_tokenizer(source: Path, target: Path) -> None:
    """Write tokenizer and detokenizer: openvino-genai reads the vocabulary of constrained text from them."""
    import openvino
    from openvino_tokenizers import convert_tokenizer
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    with _refusing():
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
