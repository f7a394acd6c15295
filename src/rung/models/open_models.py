"""A catalogue of open models by published facts, to search by task, language, licence, memory and context.

The facts come from `open_models.yaml`, as their sources state them; a fact that no source states is None, and never
makes a model suitable. `refresh` asks the Hub for newer facts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from functools import lru_cache
from importlib import resources
from typing import Any, Literal

import yaml

from rung.errors import ConfigError, ModelError
from rung.machine import Machine
from rung.models.cache import cache_dir, offline
from rung.models.files import write_atomically
from rung.progress import QUIET, Progress
from rung.yamlfile import read_object

ModelKind = Literal["language model", "sentence encoder", "reranker"]

PERMISSIVE = frozenset({"apache-2.0", "mit", "bsd-3-clause", "bsd-2-clause", "isc", "cc0-1.0", "unlicense"})
PRECISIONS: Mapping[str, float] = {"fp32": 4.0, "bf16": 2.0, "int8": 1.0, "int4": 0.5}  # bytes a parameter
ROOM = 2**30  # bytes for activations and the cache of a few thousand tokens

# The benchmarks of each task: models are sorted by the first one, and the others are shown.
TASKS: Mapping[str, tuple[str, ...]] = {
    "chat": ("IFEval", "MMLU"),
    "classification": ("IFEval", "MMLU", "MMLU-Pro"),
    "code": ("HumanEval",),
    "completion": ("MMLU", "MMLU-Pro"),
    "extraction": ("IFEval",),
    "question-answering": ("MMLU-Pro", "FACTS Grounding", "MMLU"),
    "reranking": (),
    "reasoning": ("GSM8K", "MATH", "MATH-500"),
    "rewriting": ("IFEval",),
    "similarity": (),
    "sql": ("HumanEval", "Bird-SQL"),
    "summarization": ("IFEval", "TLDR9+", "FACTS Grounding"),
    "translation": ("MGSM", "WMT24++"),
}


KINDS: Mapping[str, ModelKind] = {"similarity": "sentence encoder", "reranking": "reranker"}  # of models, by task


@dataclass(frozen=True, slots=True)
class PublishedScore:
    """A published score in percent, with its setting, source and date."""

    benchmark: str
    value: float
    setting: str
    source: str
    date: str


@dataclass(frozen=True, slots=True)
class OpenModel:
    """One model of the Hub."""

    id: str
    kind: ModelKind
    parameters: int | None
    context: int | None  # tokens that it reads as published
    scaled_context: int | None  # tokens that it reads with rope scaling, where its maker supports that
    languages: tuple[str, ...] | None  # codes of the languages that its maker lists, or None without a list
    languages_stated: str  # how many languages its maker mentions, beyond the list
    licence: str | None  # the Hub's identifier
    access: str | None  # `open`, or `gated` where the Hub requires an agreement
    released: str  # year and month
    source: str  # of the facts
    scores: tuple[PublishedScore, ...] = ()
    checked: str = ""  # the day of a refresh from the Hub
    thinking: str = ""  # `no`, or what the template does where nothing is said: `off`, `on`; empty where it is unknown
    note: str = ""  # what is special when the model is customized
    prompts: Mapping[str, str] = field(default_factory=dict)  # what an encoder expects before a `query` or `document`

    @property
    def permissive(self) -> bool | None:
        """Whether the licence allows any use; None where it is unknown."""
        return None if self.licence is None else self.licence in PERMISSIVE

    def memory(self) -> dict[str, int] | None:
        """The bytes needed at each precision, for weights and activations."""
        if self.parameters is None:
            return None
        return {name: round(self.parameters * size) + ROOM for name, size in PRECISIONS.items()}

    def fits(self, limit: int) -> str | None:
        """The finest precision that fits into `limit` bytes, or None."""
        needed = self.memory() or {}
        return next((name for name, size in needed.items() if size <= limit), None)

    def tokens_per_second(self, machine: Machine) -> float | None:
        """Estimated prompt tokens per second in fp32 on the processor of `machine`."""
        return None if self.parameters is None else 1 / machine.inference_seconds(2 * self.parameters)

    def score(self, benchmark: str) -> PublishedScore | None:
        """The published score on a benchmark, if there is one."""
        return next((score for score in self.scores if score.benchmark == benchmark), None)


@dataclass(frozen=True, slots=True)
class ModelQuery:
    """The requirements on a model; None for no requirement."""

    task: str | None = None
    language: str | None = None
    licence: str | None = None
    memory: int | None = None
    context: int | None = None


@dataclass(frozen=True, slots=True)
class ModelMatches:
    """Suitable models, best published score first; and models that lack a fact to decide, with that fact."""

    suitable: tuple[OpenModel, ...]
    unknown: tuple[tuple[OpenModel, str], ...]


def load() -> tuple[OpenModel, ...]:
    """All models, with refreshed facts where there are any."""
    refreshed = _refreshed()
    return tuple(replace(model, **refreshed[model.id]) if model.id in refreshed else model for model in _shipped())


def find(reference: str) -> OpenModel | None:
    """The model with this Hub id; a revision is ignored."""
    wanted = reference.partition("@")[0].lower()
    return next((model for model in load() if model.id.lower() == wanted), None)


def wanted_from(
    task: str | None, language: str | None, licence: str | None, memory: str | None, context: str | None
) -> ModelQuery:
    """Check and parse the options of `rung models search`.

    Raises:
        ConfigError: `unknown-name`: an unknown task, language or licence; `bad-option`: an invalid size.
    """
    models = load()
    if task is not None and task not in TASKS:
        near = get_close_matches(task, TASKS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(TASKS)}"
        raise ConfigError("unknown-name", f"no task is named {task!r}", hint=hint)
    if language is not None:
        language = language.strip().lower()
        if not re.fullmatch("[a-z]{2,3}", language):
            known = sorted({listed for model in models for listed in model.languages or ()})
            hint = f"write German as de; makers list {', '.join(known)}"
            raise ConfigError("unknown-name", f"{language!r} is not the code of a language", hint=hint)
    if licence is not None:
        licence = licence.strip().lower()
        known = ["permissive", *sorted({model.licence for model in models if model.licence})]
        if licence not in known:
            problem = f"no model of the catalogue has the licence {licence!r}"
            raise ConfigError("unknown-name", problem, hint=f"give {', '.join(known)}")
    memory_bytes = _size("--memory", memory, bytes_of, "16GB")
    return ModelQuery(task, language, licence, memory_bytes, _size("--context", context, tokens_of, "32k"))


def _size(option: str, text: str | None, read: Callable[[str], int | None], example: str) -> int | None:
    size = None if text is None else read(text)
    if text is not None and (size is None or size <= 0):
        raise ConfigError("bad-option", f"{option} {text!r} is not a size", hint=f"write {option} {example}")
    return size


def search(wanted: ModelQuery) -> ModelMatches:
    """The models that meet the requirements.

    A task sorts by the first benchmark of `TASKS`; without one, or without a score, larger models come first.
    """
    suitable, unknown = [], []
    for model in load():
        if model.kind != KINDS.get(wanted.task or "", "language model"):
            continue
        verdicts = _verdicts(model, wanted)
        missing = [name for name, verdict in verdicts.items() if verdict is None]
        if not missing and all(verdicts.values()):
            suitable.append(model)
        elif missing and all(verdict is not False for verdict in verdicts.values()):
            unknown.append((model, missing[0]))
    return ModelMatches(tuple(sorted(suitable, key=lambda model: _order(model, wanted.task))), tuple(unknown))


def _verdicts(model: OpenModel, wanted: ModelQuery) -> dict[str, bool | None]:
    """Whether the model meets each requirement; None where that is unknown."""
    verdicts: dict[str, bool | None] = {}
    if wanted.language is not None:
        verdicts["languages"] = None if model.languages is None else wanted.language in model.languages
        if verdicts["languages"] is False and model.languages_stated:
            verdicts["languages"] = None
    if wanted.licence == "permissive":
        verdicts["licence"] = model.permissive
    elif wanted.licence is not None:
        verdicts["licence"] = None if model.licence is None else model.licence == wanted.licence
    if wanted.memory is not None:
        verdicts["parameters"] = None if model.parameters is None else model.fits(wanted.memory) is not None
    if wanted.context is not None:
        reads = max((c for c in (model.context, model.scaled_context) if c is not None), default=None)
        verdicts["context"] = None if reads is None else reads >= wanted.context
    return verdicts


def _order(model: OpenModel, task: str | None) -> tuple[Any, ...]:
    first = TASKS[task][0] if task and TASKS[task] else ""
    score = model.score(first)
    return (score is None, -(score.value if score else 0.0), -(model.parameters or 0), model.id)


def families() -> dict[str, Any]:
    """What `benchmarks/model_matrix.py` measured of families of models: `versions`, and cells by family and column."""
    table: dict[str, Any] = json.loads(resources.files("rung.models").joinpath("matrix.json").read_text("utf-8"))
    return table


# ---- the shipped file


@lru_cache(maxsize=1)
def _shipped() -> tuple[OpenModel, ...]:
    text = resources.files("rung.models").joinpath("open_models.yaml").read_text("utf-8")
    return tuple(_model(entry) for entry in yaml.safe_load(text))


def _model(entry: Mapping[str, Any]) -> OpenModel:
    published = entry.get("scores", {"values": ()})
    languages = entry.get("languages")
    source, date = published.get("source"), published.get("date")
    scores = tuple(
        PublishedScore(score["benchmark"], score["value"], score.get("setting", ""), source, date)
        for score in published["values"]
    )
    optional_names = ("parameters", "context", "scaled_context", "licence", "access")
    optional: dict[str, Any] = {name: entry.get(name) for name in optional_names}
    return OpenModel(
        id=entry["id"], kind=entry["kind"], languages=None if languages is None else tuple(languages),
        languages_stated=entry.get("languages_stated", ""), released=entry["released"], source=entry["source"],
        scores=scores, thinking=entry.get("thinking", ""), note=entry.get("note", ""),
        prompts=entry.get("prompts", {}), **optional,
    )  # fmt: skip


def as_dict(model: OpenModel, machine: Machine) -> dict[str, Any]:
    """The model as JSON values, with memory and speed."""
    speed = model.tokens_per_second(machine)
    computed = {"permissive": model.permissive, "memory_bytes": model.memory(), "prompt_tokens_per_second": speed}
    return {**asdict(model), **computed}


# ---- refreshing from the Hub


def _refreshed() -> dict[str, dict[str, Any]]:
    file = cache_dir() / "open_models.json"
    if not file.is_file():
        return {}
    facts: dict[str, dict[str, Any]] = read_object(file)
    for values in facts.values():
        if isinstance(values.get("languages"), list):
            values["languages"] = tuple(values["languages"])
    return facts


def refresh(today: str, *, progress: Progress = QUIET) -> tuple[int, list[str]]:
    """Ask the Hub for parameters, licence, languages and access of every model, and keep the answers in the cache.

    Returns:
        How many were refreshed, and why the others were not.

    Raises:
        ModelError: huggingface-hub is missing, or the network is switched off.
    """
    from rung.models import hub

    facts, failures = dict(_refreshed()), []
    if offline():
        problem = "the facts of open models cannot be downloaded: the network is switched off"
        raise ModelError("network-off", problem, hint="unset RUNG_OFFLINE and HF_HUB_OFFLINE")
    progress.start("asking the Hub", len(_shipped()))
    for model in _shipped():
        progress.advance()
        try:
            answer = hub.facts(model.id)
        except ModelError as error:
            failures.append(str(error))
            continue
        facts[model.id] = {name: value for name, value in answer.items() if value is not None} | {"checked": today}
    progress.finish()
    write_atomically(cache_dir() / "open_models.json", json.dumps(facts, indent=1, sort_keys=True))
    return len(_shipped()) - len(failures), failures


def bytes_of(text: str) -> int | None:
    """The bytes of `16GB`, `16GiB`, `512MB` or a plain number; None for anything else."""
    return _with_unit(text, {"gib": 2**30, "gb": 10**9, "g": 10**9, "mib": 2**20, "mb": 10**6, "m": 10**6, "": 1})


def tokens_of(text: str) -> int | None:
    """The tokens of `32k`, `128K` or a plain number; a thousand is 1,024, as usual for context sizes."""
    return _with_unit(text, {"k": 1024, "": 1})


def _with_unit(text: str, units: Mapping[str, int]) -> int | None:
    lowered = text.strip().lower().replace(",", "")
    number = lowered.rstrip("abcdefghijklmnopqrstuvwxyz ")
    unit = lowered[len(number) :].strip()
    try:
        return round(float(number) * units[unit])
    except (ValueError, KeyError, OverflowError):
        return None
