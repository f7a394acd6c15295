"""The techniques, one file each, and the registry that names them. Nothing else knows their names."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from rung.errors import ConfigError
from rung.rungs.adapters import IA3, BottleneckAdapter, LlamaAdapter
from rung.rungs.base import Cost, Rung, Verdict, with_settings
from rung.rungs.encoder import FineTunedEncoder
from rung.rungs.ensemble import Ensemble
from rung.rungs.features import Features
from rung.rungs.few_shot import DemonstrationEnsemble, FewShot
from rung.rungs.full import Full, LastLayers, OutputLayer
from rung.rungs.lora import AdaLoRA, DomainAdaptation, DoRA, LoRA, QLoRA, RsLoRA
from rung.rungs.prompt_search import Gepa, PromptSearch
from rung.rungs.prompting import Calibrate, LabelDescriptions, LabelThresholds, SystemPrompt, WrittenLabel
from rung.rungs.reasoning import ChainOfThought, SelfConsistency
from rung.rungs.retrieval import Retrieval, SentenceSelection
from rung.rungs.soft_prompts import PrefixTuning, PromptTuning, PTuning

if TYPE_CHECKING:
    from rung.task import Task

__all__ = [
    "DEFAULT",
    "IA3",
    "RUNGS",
    "AdaLoRA",
    "BottleneckAdapter",
    "Calibrate",
    "ChainOfThought",
    "Cost",
    "DemonstrationEnsemble",
    "DoRA",
    "DomainAdaptation",
    "Ensemble",
    "Features",
    "FewShot",
    "FineTunedEncoder",
    "Full",
    "Gepa",
    "LabelDescriptions",
    "LabelThresholds",
    "LastLayers",
    "LlamaAdapter",
    "LoRA",
    "OutputLayer",
    "PTuning",
    "PrefixTuning",
    "PromptSearch",
    "PromptTuning",
    "QLoRA",
    "Retrieval",
    "RsLoRA",
    "Rung",
    "SelfConsistency",
    "SentenceSelection",
    "SystemPrompt",
    "Verdict",
    "WrittenLabel",
    "build",
]

# In the order of the ramp. Every value makes the rung for a task and a seed.
RUNGS: Mapping[str, Callable[[Task, int], Rung]] = {
    "system-prompt": lambda task, seed: SystemPrompt(task.system_prompts),
    "label-descriptions": lambda task, seed: LabelDescriptions(seed=seed),
    "written-label": lambda task, seed: WrittenLabel(),
    "chain-of-thought": lambda task, seed: ChainOfThought(),
    "self-consistency": lambda task, seed: SelfConsistency(seed=seed),
    "calibrate": lambda task, seed: Calibrate(),
    "label-thresholds": lambda task, seed: LabelThresholds(),
    "sentence-selection": lambda task, seed: SentenceSelection(task),
    "retrieval": lambda task, seed: Retrieval(task),
    "few-shot-fixed": lambda task, seed: FewShot("fixed", seed=seed),
    "few-shot-random": lambda task, seed: FewShot("random", seed=seed),
    "few-shot-balanced": lambda task, seed: FewShot("balanced", seed=seed),
    "few-shot-knn": lambda task, seed: FewShot("knn", seed=seed),
    "few-shot-mmr": lambda task, seed: FewShot("mmr", seed=seed),
    "demonstration-ensemble": lambda task, seed: DemonstrationEnsemble(seed=seed),
    "prompt-search": lambda task, seed: PromptSearch(seed=seed, systems=task.system_prompts),
    "gepa": lambda task, seed: Gepa(seed=seed),
    "features": lambda task, seed: Features(seed=seed),
    "llm-features": lambda task, seed: Features(encoder="", seed=seed),
    "fine-tuned-encoder": lambda task, seed: FineTunedEncoder(seed=seed),
    "prompt-tuning": lambda task, seed: PromptTuning(seed=seed),
    "p-tuning": lambda task, seed: PTuning(seed=seed),
    "prefix-tuning": lambda task, seed: PrefixTuning(seed=seed),
    "ia3": lambda task, seed: IA3(seed=seed),
    "llama-adapter": lambda task, seed: LlamaAdapter(seed=seed),
    "bottleneck": lambda task, seed: BottleneckAdapter(seed=seed),
    "domain-adaptation": lambda task, seed: DomainAdaptation(seed=seed),
    "lora": lambda task, seed: LoRA(seed=seed),
    "rslora": lambda task, seed: RsLoRA(seed=seed),
    "dora": lambda task, seed: DoRA(seed=seed),
    "qlora": lambda task, seed: QLoRA(seed=seed),
    "adalora": lambda task, seed: AdaLoRA(seed=seed),
    "output-layer": lambda task, seed: OutputLayer(seed=seed),
    "last-layers": lambda task, seed: LastLayers(seed=seed),
    "full": lambda task, seed: Full(seed=seed),
    "ensemble": lambda task, seed: Ensemble(make=lambda name, seed: build((name,), task, seed)[0], seed=seed),
}

# Fixed and random demonstrations differ from balanced ones only by chance; they run when asked for.
DEFAULT = (
    "system-prompt", "chain-of-thought", "self-consistency", "calibrate", "label-thresholds", "sentence-selection",
    "retrieval", "few-shot-balanced", "few-shot-knn", "features", "llm-features", "domain-adaptation", "lora",
)  # fmt: skip


def build(names: tuple[str, ...], task: Task, seed: int) -> tuple[Rung, ...]:
    """Return the named rungs in the order of the ramp, with the task's settings for them.

    Raises:
        ConfigError: a name or a setting is unknown.
    """
    for name in names:
        if name not in RUNGS:
            near = difflib.get_close_matches(name, RUNGS, n=1)
            raise ConfigError(
                "unknown-name",
                f"no rung is named {name!r}",
                hint=f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(RUNGS)}",
            )
    return tuple(
        with_settings(make(task, seed), task.rungs.get(name, {})) for name, make in RUNGS.items() if name in names
    )
