"""The rules of the decision guide: each asks one question, answers it from the facts, and says what follows.

A rule never decides: it says what to expect of which techniques, and why. The climb measures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from rung.data.rows import LABELLED, Data, labels_of
from rung.machine import Machine
from rung.models.reference import is_endpoint
from rung.rungs.reasoning import UNREASONED
from rung.task import Needs, Task

# --------------------
# What the decision guide knows before anything is downloaded or run: task file, rows, model and machine.


CHARACTERS_PER_TOKEN = 4  # of English text under usual vocabularies
DEMONSTRATIONS = 5  # shown at once, as the few-shot rungs do


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is known of the task's model.

    Attributes:
        reference: as the task file writes it.
        endpoint: whether it is behind an API.
        remote: whether that API is on another machine.
        parameters, context: None where nothing tells them without a download.
    """

    reference: str
    endpoint: bool
    remote: bool
    parameters: int | None
    context: int | None


@dataclass(frozen=True, slots=True)
class Facts:
    """What the rules look at. Token counts are estimates from characters, the longest of 20 rows left out.

    `documents` are those of `data.text`; `corpus` says whether there are any to look answers up in, and `reflection`
    whether a model is named that rewrites prompts.
    """

    kind: str
    labels: int
    train: int
    rows_per_label: float
    described: bool
    system: bool
    documents: int
    input_tokens: int
    output_tokens: int
    model: ModelFacts
    machine: Machine
    needs: Needs
    corpus: bool = False
    reflection: bool = False

    @property
    def few_shot_tokens(self) -> int:
        """Tokens of a prompt with demonstrations, the answer included."""
        return (DEMONSTRATIONS + 1) * (self.input_tokens + self.output_tokens)

    @property
    def few_shot_seconds(self) -> float | None:
        """Expected time of one such prediction on this machine; None for endpoints and unknown models."""
        if self.model.parameters is None or self.model.endpoint:
            return None
        return self.machine.inference_seconds(2 * self.model.parameters * self.few_shot_tokens)


def gather(task: Task, data: Data, machine: Machine) -> Facts:
    """Collect the facts of a task. Nothing is downloaded and no weights are read."""
    counts = Counter(label for row in data.train for label in labels_of(row.outputs[0], task.output.kind))
    return Facts(
        kind=task.output.kind,
        labels=len(data.labels),
        train=len(data.train),
        rows_per_label=median(counts.values()) if counts else 0.0,
        described=bool(task.output.descriptions),
        system=task.system is not None,
        documents=len(data.text),
        input_tokens=_tokens([" ".join(map(str, row.inputs.values())) for row in data.train]),
        output_tokens=_tokens([row.outputs[0] for row in data.train]),
        model=model_facts(task.model),
        machine=machine,
        needs=task.needs or Needs(),
        corpus=task.corpus is not None,
        reflection=bool(task.rungs.get("gepa", {}).get("reflection")),
    )


def model_facts(reference: str) -> ModelFacts:
    """Return what the catalogues, or a model's own folder, tell of a model."""
    from rung.models import embedded, open_models
    from rung.models.reference import resolve

    if is_endpoint(reference):
        return ModelFacts(reference, True, not _is_loopback(reference), None, None)
    if (built_in := embedded.find(reference)) is not None:
        return ModelFacts(reference, False, False, built_in.parameters, built_in.context)
    if (known := open_models.find(reference)) is not None:
        return ModelFacts(reference, False, False, known.parameters, known.context)
    if Path(reference).expanduser().is_dir():
        files = resolve(reference)
        return ModelFacts(reference, False, False, files.parameters, files.context)
    return ModelFacts(reference, False, False, None, None)


def _is_loopback(reference: str) -> bool:
    return urlsplit(reference).hostname in ("localhost", "127.0.0.1", "::1")


def _tokens(texts: list[str]) -> int:
    """Return the 95th percentile of the lengths in tokens, at least 1."""
    if not texts:
        return 1
    lengths = sorted(map(len, texts))
    return max(1, round(lengths[round(0.95 * (len(lengths) - 1))] / CHARACTERS_PER_TOKEN))


# --------------------
# The publications that the rules of the decision guide rest on.


class Source(NamedTuple):
    """A publication: how it is cited, and where it is."""

    citation: str
    url: str


def _arxiv(citation: str, number: str) -> Source:
    return Source(citation, f"https://arxiv.org/abs/{number}")


CALIBRATION = _arxiv("Zhou et al. 2024, Batch calibration", "2309.17249")
FROZEN_FEATURES = _arxiv("Tunstall et al. 2022, Efficient few-shot learning without prompts", "2209.11055")
PROMPT_WORTH = _arxiv("Le Scao & Rush 2021, How many data points is a prompt worth?", "2103.08493")
LIMA = _arxiv("Zhou et al. 2023, LIMA: less is more for alignment", "2305.11206")
NEIGHBOURS = _arxiv("Liu et al. 2022, What makes good in-context examples for GPT-3?", "2101.06804")
PEFT_CHEAPER = _arxiv("Liu et al. 2022, Few-shot parameter-efficient fine-tuning is better and cheaper", "2205.05638")
RETRIEVAL = _arxiv("Lewis et al. 2020, Retrieval-augmented generation", "2005.11401")
INJECTION = _arxiv("Ovadia et al. 2024, Fine-tuning or retrieval?", "2312.05934")
REASONING = _arxiv("Sprague et al. 2024, To CoT or not to CoT?", "2409.12183")
REASONING_SCALE = _arxiv("Wei et al. 2022, Chain-of-thought prompting", "2201.11903")
SOFT_PROMPT_SCALE = _arxiv("Lester et al. 2021, The power of scale for prompt tuning", "2104.08691")
DOMAIN = _arxiv("Gururangan et al. 2020, Don't stop pretraining", "2004.10964")
QLORA = _arxiv("Dettmers et al. 2023, QLoRA", "2305.14314")
OPERATIONS = _arxiv("Kaplan et al. 2020, Scaling laws, section 2.1", "2001.08361")


YesNo = Literal["yes", "no", "unknown"]
Expect = Literal["help", "not", "unknown"]

FEW_ROWS, FEW_PER_LABEL = 100, 8
THOUSAND = 1000
SMALL_MODEL = 1_000_000_000
REASONING_MODEL = 1_500_000_000
OFTEN = 10_000  # answers a day from which a shorter prompt pays for training

# Families of rungs, and single rungs where they differ from their family.
TUNING = ("parameter-efficient", "partial", "full")
TRAINED = (*TUNING, "soft prompts", "features")
OF_ONE_LABEL = ("calibrate", "written-label", "demonstration-ensemble", "fine-tuned-encoder", "ensemble")


@dataclass(frozen=True, slots=True)
class Effect:
    """What to expect of some rungs: names, or families of them. What `excludes` a rung outweighs all else."""

    rungs: tuple[str, ...]
    expect: Expect
    reason: str
    excludes: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """One question of the guide, answered.

    Attributes:
        key: short name.
        question: what is asked.
        answer: yes, no, or unknown where neither the task file nor the data tells.
        observed: what the answer rests on.
        yes, no: what either answer means, for the chart.
        effects: what follows from the answer.
        source: what the rule rests on, where it is not plain.
        ask: the key of the task file that would answer an unknown.
    """

    key: str
    question: str
    answer: YesNo
    observed: str
    yes: str
    no: str
    effects: tuple[Effect, ...]
    source: Source | None
    ask: str | None = None


def walk(facts: Facts) -> Iterator[Step]:
    """Yield every step of the guide, in the order of the chart."""
    for rule in RULES:
        yield rule(facts)


def _answer(value: bool | None) -> YesNo:
    return "unknown" if value is None else "yes" if value else "no"


# The task


def _labels(facts: Facts) -> Step:
    yes = facts.kind in LABELLED
    if facts.kind == "category":
        effects = _one_label(facts)
    elif yes:
        effects = _several_labels(facts)
    else:
        why = "there is no set of labels"
        effects = (Effect(("features", *OF_ONE_LABEL, "label-descriptions", "label-thresholds"), "not", why, True),)
    observed = f"{facts.labels} labels" + (", several a row" if facts.kind == "multilabel" else "")
    return Step(
        "labels", "Is the answer out of a set of labels?", _answer(yes),
        observed if yes else f"the output is of kind {facts.kind}",
        "score the labels instead of writing them, calibrate, and train a head on frozen features",
        "the model writes the answer: prompts, demonstrations, tuning",
        effects, CALIBRATION if yes else FROZEN_FEATURES,
    )  # fmt: skip


def _one_label(facts: Facts) -> tuple[Effect, ...]:
    effects = (
        Effect(("features",), "help", "a trained head on frozen features is strong for labels from few rows"),
        Effect(("ensemble",), "unknown", "members that err on different rows correct each other, at the cost of all"),
        _described(facts),
        Effect(("label-thresholds",), "not", "a row has one label", excludes=True),
    )
    if facts.model.endpoint:
        why = "it depends on whether the endpoint scores labels"
        return (Effect(("calibrate", "written-label"), "unknown", why), *effects)
    return (
        Effect(("calibrate",), "help", "a model prefers some labels to every row; that preference is taken away"),
        Effect(("written-label",), "not", "scoring looks at every label, writing at one token after the other"),
        *effects,
    )


def _several_labels(facts: Facts) -> tuple[Effect, ...]:
    thresholds = (
        Effect(("label-thresholds",), "not", "an endpoint scores labels in many requests", excludes=True)
        if facts.model.endpoint
        else Effect(("label-thresholds",), "help", "a model lists some labels too readily; each gets its own threshold")
    )
    return (
        Effect(("features",), "help", "a trained head for each label is strong from few rows"),
        Effect(OF_ONE_LABEL, "not", "a row may have several labels", excludes=True),
        _described(facts),
        thresholds,
    )


def _described(facts: Facts) -> Effect:
    if facts.described:
        return Effect(("label-descriptions",), "help", "`output.descriptions` says what labels mean")
    return Effect(("label-descriptions",), "unknown", "it helps where a label's name does not say what it means")


def _reasoning(facts: Facts) -> Step:
    needed, size = facts.needs.reasoning, facts.model.parameters
    effects: tuple[Effect, ...] = ()
    thoughts = ("chain-of-thought", "self-consistency")
    if facts.kind in UNREASONED:
        effects = (Effect(thoughts, "not", f"an answer of kind {facts.kind} is the whole text", excludes=True),)
    elif needed is False or (needed is None and facts.kind == "category"):
        effects = (Effect(thoughts, "not", "writing steps down pays on mathematics and logic, and hardly elsewhere"),)
    elif needed and size is not None and size < REASONING_MODEL:
        effects = (Effect(thoughts, "not", "small models gain nothing by writing steps down"),)
    elif needed:
        effects = (Effect(thoughts, "help", "several steps of calculation or logic go better written down"),)
    else:
        effects = (Effect(thoughts, "unknown", "it pays where the answer takes steps: say so in needs.reasoning"),)
    return Step(
        "reasoning", "Does it take several steps of calculation or logic?", _answer(needed),
        "needs.reasoning" if needed is not None else "",
        "have the steps written down, if the model is large enough", "answer at once",
        effects, REASONING_SCALE if needed else REASONING, "needs.reasoning",
    )  # fmt: skip


def _style(facts: Facts) -> Step:
    needed = facts.needs.style
    effects: tuple[Effect, ...] = ()
    if needed:
        effects = (
            Effect(TUNING, "help", "tone and format are learnt from examples more firmly than from instructions"),
            Effect(("in-context",), "help", "demonstrations show the tone and the format"),
        )
    return Step(
        "style", "Must answers keep to a tone or format of their own?", _answer(needed),
        "needs.style" if needed is not None else "",
        "show it in demonstrations, and tune on it from some hundred rows on", "the instruction says enough",
        effects, LIMA, "needs.style",
    )  # fmt: skip


# The facts that answers rest on


def _knowledge(facts: Facts) -> Step:
    needed = facts.needs.knowledge
    effects: tuple[Effect, ...] = ()
    if needed:
        effects = (
            Effect(
                ("retrieval",),
                "help",
                "what is not in the input can be looked up and put there"
                + ("" if facts.corpus else ": name documents in `corpus`"),
            ),
            Effect(TUNING, "not", "facts are learnt from tuning badly; retrieval brings them more reliably"),
        )
    elif needed is False:
        effects = (Effect(("retrieval",), "not", "everything that the answer needs stands in the input"),)
    return Step(
        "knowledge", "Does the answer need facts that are not in the input?", _answer(needed),
        "needs.knowledge" if needed is not None else "",
        "retrieve them from documents", "no documents are needed", effects, INJECTION, "needs.knowledge",
    )  # fmt: skip


def _facts_change(facts: Facts) -> Step:
    pace = facts.needs.facts_change
    often = None if pace is None else pace in ("daily", "weekly", "monthly")
    effects: tuple[Effect, ...] = ()
    if often:
        effects = (
            Effect(("retrieval",), "help", f"facts change {pace}: an index is updated at once"),
            Effect(TUNING, "not", f"facts change {pace}: what is trained in would be out of date"),
        )
    return Step(
        "facts-change", "Do the facts change once a month or more often?", _answer(often),
        f"needs.facts_change: {pace}" if pace else "",
        "keep facts in an index, not in weights", "weights may hold them", effects, RETRIEVAL,
        "needs.facts_change",
    )  # fmt: skip


def _documents(facts: Facts) -> Step:
    yes = facts.documents > 0
    effects = (
        (Effect(("domain-adaptation",), "help", "there is plain text of the domain to adapt the model to"),)
        if yes
        else (Effect(("domain-adaptation",), "not", "`data.text` names no text of the domain", excludes=True),)
    )
    return Step(
        "documents", "Is there plain text of the domain?", _answer(yes), f"{facts.documents} documents in data.text",
        "adapt the model to the domain first", "skip domain adaptation", effects, DOMAIN,
    )  # fmt: skip


# The rows


def _are_few(facts: Facts) -> bool:
    return facts.train < FEW_ROWS or (facts.kind == "category" and facts.rows_per_label < FEW_PER_LABEL)


def _few_rows(facts: Facts) -> Step:
    few = _are_few(facts)
    effects = (
        (
            Effect(("in-context",), "help", "a few rows are worth most when they are shown"),
            Effect(TUNING, "not", "so few rows leave tuning to chance"),
        )
        if few
        else (
            Effect(("few-shot-knn", "few-shot-mmr"), "help", "rows like the one asked about can be found and shown"),
            Effect(("in-context",), "unknown", "rows shown whatever is asked say less than near ones"),
        )
    )
    searched = (
        Effect(("prompt-learning",), "not", "a search takes rows to search on and others to decide by")
        if facts.train < FEW_ROWS
        else Effect(
            ("prompt-learning",), "unknown", "what wording does cannot be foreseen, and most searches gain little"
        )
    )
    observed = f"{facts.train:,} training rows"
    if facts.kind == "category":
        observed += f", {facts.rows_per_label:g} a label"
    return Step(
        "few-rows", f"Fewer than {FEW_ROWS} rows, or {FEW_PER_LABEL} a label?", _answer(few), observed,
        "write a good prompt and show the rows", "show the nearest rows; training is worth measuring",
        (*effects, searched), PROMPT_WORTH if few else NEIGHBOURS,
    )  # fmt: skip


def _thousand(facts: Facts) -> Step:
    failures = facts.needs.failures or 0
    yes = facts.train >= THOUSAND or failures >= THOUSAND
    effects: tuple[Effect, ...] = ()
    if yes:
        effects = (Effect(TUNING, "help", "about a thousand good rows are enough for tuning to pay"),)
    elif not _are_few(facts):
        effects = (Effect(TUNING, "unknown", f"{facts.train:,} rows: enough to try, too few to be sure that it pays"),)
    return Step(
        "thousand", "A thousand labelled rows, or failures collected?", _answer(yes),
        f"{facts.train:,} training rows, {failures:,} failures", "tune: LoRA first",
        f"collect failures; {THOUSAND - max(facts.train, failures):,} to go", effects, LIMA,
    )  # fmt: skip


def _context(facts: Facts) -> Step:
    context = facts.model.context
    fits = None if context is None else facts.few_shot_tokens < context
    observed = f"about {facts.few_shot_tokens:,} tokens with {DEMONSTRATIONS} demonstrations"
    if context is not None:
        observed += f", {context:,} read"
    effects: tuple[Effect, ...] = ()
    if fits is False:
        effects = (
            Effect(("in-context",), "not", f"{observed}: demonstrations do not fit beside the row", excludes=True),
        )
    return Step(
        "context", "Do demonstrations fit the model's context?", _answer(fits), observed,
        "demonstrations are possible", "tune instead, or choose a model with a longer context",
        effects, NEIGHBOURS, None if context is not None else "model",
    )  # fmt: skip


# Use


def _latency(facts: Facts) -> Step:
    limit, expected = facts.needs.latency_ms, facts.few_shot_seconds
    exceeded = None if limit is None or expected is None else 1000 * expected > limit
    effects: tuple[Effect, ...] = ()
    if exceeded:
        why = f"about {1000 * expected:,.0f} ms are expected, and {limit:,} allowed"  # type: ignore[operator]
        effects = (
            Effect(("in-context", "retrieval"), "not", f"long prompts are slow: {why}"),
            Effect((*TUNING, "soft prompts"), "help", "a trained model needs no demonstrations in its prompt"),
        )
        if facts.kind == "category":
            effects = (*effects, Effect(("features",), "help", "an encoder with a head answers in milliseconds"))
    observed = "" if expected is None else f"about {1000 * expected:,.0f} ms a row with demonstrations"
    return Step(
        "latency", "Are long prompts too slow?", _answer(exceeded),
        observed + (f", {limit:,} ms allowed" if limit else ""),
        "put what demonstrations say into weights, or use a head", "long prompts are fast enough",
        effects, OPERATIONS, None if limit is not None else "needs.latency_ms",
    )  # fmt: skip


def _volume(facts: Facts) -> Step:
    rows = facts.needs.rows_per_day
    many = None if rows is None else rows >= OFTEN
    effects: tuple[Effect, ...] = ()
    if many:
        effects = (
            Effect((*TUNING, "soft prompts"), "help", "training is paid once, demonstrations with every answer"),
        )
    return Step(
        "volume", f"{OFTEN:,} answers a day or more?", _answer(many), f"needs.rows_per_day: {rows:,}" if rows else "",
        "training once is cheaper than long prompts for ever", "cost hardly matters", effects, PEFT_CHEAPER,
        "needs.rows_per_day",
    )  # fmt: skip


def _privacy(facts: Facts) -> Step:
    local = None if facts.needs.privacy is None else facts.needs.privacy == "local"
    effects: tuple[Effect, ...] = ()
    if local and facts.model.remote:
        why = f"data must stay here, and {facts.model.reference} is on another machine: choose a model of this one"
        effects = (Effect(("prompting", "prompt-learning", "in-context", "retrieval"), "not", why, excludes=True),)
    return Step(
        "privacy", "Must the data stay on this machine?", _answer(local),
        f"needs.privacy: {facts.needs.privacy}" if facts.needs.privacy else "",
        "a model of this machine only: rung models search", "endpoints may be used as well",
        effects, None, "needs.privacy",
    )  # fmt: skip


# The model and the machine


def _endpoint(facts: Facts) -> Step:
    yes = facts.model.endpoint
    effects = (
        Effect(
            (*TUNING, "soft prompts", "llm-features"),
            "not",
            "the weights of an endpoint cannot be trained",
            excludes=True,
        ),
    )
    return Step(
        "endpoint", "Is the model behind an endpoint?", _answer(yes), facts.model.reference,
        "prompts, demonstrations and retrieval only", "its weights can be trained",
        effects if yes else (), None,
    )  # fmt: skip


def _memory(facts: Facts) -> Step:
    size, memory = facts.model.parameters, facts.machine.memory_bytes
    if facts.model.endpoint or size is None:
        enough, observed = None, "" if facts.model.endpoint else f"the size of {facts.model.reference} is not known"
    else:
        # fp32 weights; full tuning adds gradients and two moments
        lora, full = 4 * size, 16 * size
        enough = full < memory
        observed = (
            f"{full / 2**30:.1f} GiB to train all weights, {lora / 2**30:.1f} for adapters, {memory / 2**30:.1f} there"
        )
    effects: tuple[Effect, ...] = ()
    if enough is False and size is not None:
        effects = (Effect(("full",), "not", f"it takes {observed}", excludes=True),)
        if 4 * size > memory:
            why = f"the weights alone take {4 * size / 2**30:.1f} GiB of {memory / 2**30:.1f}"
            adapters = tuple(name for name in TUNING if name != "full")
            effects = (*effects, Effect((*adapters, "soft prompts"), "not", why, excludes=True))
            effects = (*effects, Effect(("qlora",), "help", "a base in 4 bits takes an eighth of the memory"))
    return Step(
        "memory", "Does training all weights fit this machine's memory?", _answer(enough), observed,
        "every method is possible", "train adapters, or on a base in 4 bits", effects, QLORA,
        "model" if size is None and not facts.model.endpoint else None,
    )  # fmt: skip


def _small(facts: Facts) -> Step:
    size = facts.model.parameters
    small = None if size is None else size < SMALL_MODEL
    effects = (
        Effect(("soft prompts",), "not", "below a billion parameters soft prompts stay behind adapters")
        if small
        else Effect(
            ("soft prompts",), "unknown", "the larger the model, the nearer soft prompts come to tuning all of it"
        ),
    )
    return Step(
        "small-model", "Has the model less than a billion parameters?", _answer(small),
        "" if size is None else f"{size / 1e6:,.0f} million parameters",
        "prefer adapters to soft prompts", "soft prompts are worth measuring", effects, SOFT_PROMPT_SCALE,
        "model" if size is None and not facts.model.endpoint else None,
    )  # fmt: skip


RULES: tuple[Callable[[Facts], Step], ...] = (
    _labels, _reasoning, _style, _knowledge, _facts_change, _documents, _few_rows, _thousand, _context, _latency,
    _volume, _privacy, _endpoint, _memory, _small,
)  # fmt: skip
