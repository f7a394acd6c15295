"""The rules of the decision guide as rows: a question, how the facts answer it, and what follows for which rungs.

A rule never decides. It says what to expect of which techniques, and why; the climb measures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from rung.advice.facts import DEMONSTRATIONS, FEW_PER_LABEL, FEW_ROWS, Facts
from rung.data.rows import LABELLED
from rung.rungs.reasoning import UNREASONED

YesNo = Literal["yes", "no", "unknown"]
Expect = Literal["help", "not", "unknown"]
Text = str | Callable[[Facts], str]
Condition = Callable[[Facts], bool | None]

THOUSAND = 1000
SMALL_MODEL = 1_000_000_000
REASONING_MODEL = 1_500_000_000
OFTEN = 10_000  # answers a day from which a shorter prompt pays for training


class Source(NamedTuple):
    """A publication: how it is cited, and where it is."""

    citation: str
    url: str


def _arxiv(citation: str, number: str) -> Source:
    return Source(citation, f"https://arxiv.org/abs/{number}")


SIMPLE_BASELINES = _arxiv("Dacrema et al. 2019, Are we really making much progress?", "1907.06902")
CALIBRATION = _arxiv("Zhou et al. 2024, Batch calibration", "2309.17249")
FROZEN_FEATURES = _arxiv("Tunstall et al. 2022, Efficient few-shot learning without prompts", "2209.11055")
PROMPT_WORTH = _arxiv("Le Scao & Rush 2021, How many data points is a prompt worth?", "2103.08493")
LIMA = _arxiv("Zhou et al. 2023, LIMA: less is more for alignment", "2305.11206")
PREFERENCES = _arxiv("Rafailov et al. 2023, Direct preference optimization", "2305.18290")
MAJORITY = _arxiv("Wang et al. 2023, Self-consistency improves chain of thought reasoning", "2203.11171")
OVEROPTIMIZED = _arxiv("Gao et al. 2023, Scaling laws for reward model overoptimization", "2210.10760")
NEIGHBOURS = _arxiv("Liu et al. 2022, What makes good in-context examples for GPT-3?", "2101.06804")
PEFT_CHEAPER = _arxiv("Liu et al. 2022, Few-shot parameter-efficient fine-tuning is better and cheaper", "2205.05638")
RETRIEVAL = _arxiv("Lewis et al. 2020, Retrieval-augmented generation", "2005.11401")
INJECTION = _arxiv("Ovadia et al. 2024, Fine-tuning or retrieval?", "2312.05934")
REASONING = _arxiv("Sprague et al. 2024, To CoT or not to CoT?", "2409.12183")
REASONING_SCALE = _arxiv("Wei et al. 2022, Chain-of-thought prompting", "2201.11903")
SOFT_PROMPT_SCALE = _arxiv("Lester et al. 2021, The power of scale for prompt tuning", "2104.08691")
DOMAIN = _arxiv("Gururangan et al. 2020, Don't stop pretraining", "2004.10964")
QLORA = _arxiv("Dettmers et al. 2023, QLoRA", "2305.14314")
EXTRACTION = _arxiv("Dunn et al. 2022, Structured information extraction with fine-tuned models", "2212.05238")
OPERATIONS = _arxiv("Kaplan et al. 2020, Scaling laws, section 2.1", "2001.08361")


@dataclass(frozen=True, slots=True)
class Effect:
    """What to expect of some rungs, by family or topic, and why.

    It holds `when` the facts say so (default: the answer is yes). An effect that `excludes` a rung outweighs the rest.
    """

    rungs: tuple[str, ...]
    expect: Expect
    reason: Text
    when: Condition | None = None
    excludes: bool = False


@dataclass(frozen=True, slots=True)
class AdviceStep:
    """One question of the guide, answered."""

    key: str
    question: str
    answer: YesNo  # unknown where neither the task file nor the data tells
    observed: str  # what the answer is based on
    yes: str  # what this answer means, for the chart
    no: str
    effects: tuple[Effect, ...]  # what follows from the answer
    source: Source | None  # the publication that the rule is based on
    ask: str | None = None  # the key of the task file that would answer an unknown


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the guide; the fields are those of `AdviceStep`, with texts and conditions that read the facts."""

    key: str
    question: str
    holds: Condition
    observed: Text
    yes: str
    no: Text
    effects: tuple[Effect, ...]
    source: Source | Callable[[Facts], Source] | None = None
    ask: str | Callable[[Facts], str | None] | None = None

    def step(self, facts: Facts) -> AdviceStep:
        """Answer the question from the facts."""
        holds = self.holds(facts)
        effects = tuple(
            replace(effect, reason=_resolve(effect.reason, facts), when=None)
            for effect in self.effects
            if (holds if effect.when is None else effect.when(facts))
        )
        return AdviceStep(
            self.key, self.question, "unknown" if holds is None else "yes" if holds else "no",
            _resolve(self.observed, facts), self.yes, _resolve(self.no, facts), effects,
            _resolve(self.source, facts), _resolve(self.ask, facts),
        )  # fmt: skip


def _resolve(value: Any, facts: Facts) -> Any:
    return value(facts) if callable(value) else value


def walk(facts: Facts) -> Iterator[AdviceStep]:
    """Yield every step of the guide, in the order of the chart."""
    return (rule.step(facts) for rule in RULES)


# The conditions and texts that several rows share.

TUNING = ("parameter-efficient", "partial", "full")


def _need(name: str) -> dict[str, Any]:
    """The answer that the task file gives under `needs`: as a rule's condition, observation and question."""
    return {
        "holds": lambda f: getattr(f.needs, name),
        "observed": lambda f: "" if getattr(f.needs, name) is None else f"needs.{name}",
        "ask": f"needs.{name}",
    }


def _kind(*kinds: str, endpoint: bool | None = None) -> Condition:
    """Whether the output is of one of these kinds, and the model an endpoint or not, if that matters."""
    return lambda f: f.kind in kinds and endpoint in (None, f.model.endpoint)


def _by_label(f: Facts) -> str:
    if f.kind != "category":
        return ""
    uneven = f.rarest is not None and f.rarest < f.rows_per_label
    return f", {f.rows_per_label:g} a label" + (f" (median; {f.rarest} of the rarest)" if uneven else "")


def _small(f: Facts) -> bool | None:
    return None if f.model.parameters is None else f.model.parameters < SMALL_MODEL


def _steps(case: str) -> Condition:
    """Whether this is what decides if written steps help: whole text, no steps, unknown, small model, or steps."""

    def decides(f: Facts) -> bool:
        if f.kind in UNREASONED:
            return case == "whole text"
        if f.needs.reasoning is False or (f.needs.reasoning is None and f.kind == "category"):
            return case == "no steps"
        if f.needs.reasoning is None:
            return case == "unknown"
        small = f.model.parameters is not None and f.model.parameters < REASONING_MODEL
        return case == ("small model" if small else "steps")

    return decides


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f}"


def _memory(f: Facts) -> str:
    if f.model.endpoint:
        return ""
    if (weights := f.weights_bytes) is None:
        return f"the size of {f.model.reference} is not known"
    # full tuning adds gradients and two moments to the fp32 weights
    there = _gib(f.machine.memory_bytes)
    return f"{_gib(4 * weights)} GiB to train all weights, {_gib(weights)} for adapters, {there} there"


def _full_fits(f: Facts) -> bool | None:
    return None if f.weights_bytes is None else 4 * f.weights_bytes < f.machine.memory_bytes


def _adapters_too_large(f: Facts) -> bool:
    return f.weights_bytes is not None and f.weights_bytes > f.machine.memory_bytes


def _too_slow(f: Facts) -> bool | None:
    return None if f.needs.latency_ms is None or f.few_shot_ms is None else f.few_shot_ms > f.needs.latency_ms


def _context_text(f: Facts) -> str:
    text = f"about {f.few_shot_tokens:,} tokens with {DEMONSTRATIONS} demonstrations"
    return text if f.model.context is None else f"{text}; the model reads {f.model.context:,}"


def _size_key(f: Facts) -> str | None:
    return "model" if f.model.parameters is None and not f.model.endpoint else None


RULES = (
    # the task
    Rule(
        "yardsticks", "Are there rows to count and to copy?", lambda f: f.train > 0, lambda f: f"{f.train:,} rows",
        "measure the yardsticks first: seconds each, without a language model", "nothing can be learnt from rows",
        (
            Effect(("yardstick",), "help", "it takes seconds, and whatever costs more has to beat it"),
            Effect(("label heads",), "not", "there is no set of labels", lambda f: f.kind not in LABELLED, True),
            Effect(("number heads",), "not", "the answer is no number", lambda f: f.kind != "number", True),
            Effect(("number heads",), "help", "it takes seconds, and whatever costs more has to beat it",
                    _kind("number")),
            Effect(("corpus sentences",), "not", "`corpus` names no documents", lambda f: not f.corpus, True),
            Effect(("record fields",), "not", "the answer has no fields", lambda f: f.kind != "json", True),
        ),
        SIMPLE_BASELINES,
    ),
    Rule(
        "labels", "Is the answer one of a set of labels?", lambda f: f.kind in LABELLED,
        lambda f: (
            f"the output is of kind {f.kind}" if f.kind not in LABELLED
            else f"{f.labels} labels" + (", several a row" if f.kind == "multilabel" else "")
        ),
        "score the labels instead of generating them, calibrate, and train a head on frozen features",
        "the model writes the answer: use prompts, demonstrations, tuning",
        (
            Effect(("calibration", "generated label"), "unknown", "it depends on whether the endpoint scores labels",
                    _kind("category", endpoint=True)),
            Effect(("calibration",), "help", "a model prefers some labels for every row; calibration removes that bias",
                    _kind("category", endpoint=False)),
            Effect(("generated label",), "not", "scoring compares whole labels, generation decides token by token",
                    _kind("category", endpoint=False)),
            Effect(("features",), "help", "a trained head on frozen features is strong with few rows",
                    _kind("category")),
            Effect(("averaging",), "unknown", "members that err on different rows correct each other, at the cost of "
                    "them all", _kind("category")),
            Effect(("thresholds",), "not", "a row has one label", _kind("category"), excludes=True),
            Effect(("features",), "help", "a trained head for each label is strong with few rows", _kind("multilabel")),
            Effect(("single label",), "not", "a row may have several labels", _kind("multilabel"), excludes=True),
            Effect(("thresholds",), "not", "an endpoint needs many requests to score labels",
                    _kind("multilabel", endpoint=True), excludes=True),
            Effect(("thresholds",), "help", "a model lists some labels too readily; each label gets its own threshold",
                    _kind("multilabel", endpoint=False)),
            Effect(("label descriptions",), "help", "`output.descriptions` says what the labels mean",
                    lambda f: f.kind in LABELLED and f.described),
            Effect(("label descriptions",), "unknown", "it helps if a label's name does not say what it means",
                    lambda f: f.kind in LABELLED and not f.described),
            Effect(("features", "single label", "label descriptions", "thresholds"), "not",
                    "there is no set of labels", lambda f: f.kind not in LABELLED, excludes=True),
        ),
        lambda f: FROZEN_FEATURES if f.kind not in LABELLED else CALIBRATION,
    ),
    Rule(
        "reasoning", "Does it take several steps of calculation or logic?",
        yes="let the model write down its steps, if it is large enough", no="answer at once",
        effects=(
            Effect(("reasoning",), "not", lambda f: f"an answer of kind {f.kind} is the whole text",
                    _steps("whole text"), excludes=True),
            Effect(("reasoning",), "not", "written steps pay on mathematics and logic, and hardly elsewhere",
                    _steps("no steps")),
            Effect(("reasoning",), "not", "small models gain nothing from written steps", _steps("small model")),
            Effect(("reasoning",), "help", "several steps of calculation or logic go better when written down",
                    _steps("steps")),
            Effect(("reasoning",), "unknown", "it pays if the answer takes several steps: set needs.reasoning",
                    _steps("unknown")),
        ),
        source=lambda f: REASONING_SCALE if f.needs.reasoning else REASONING,
        **_need("reasoning"),
    ),
    Rule(
        "style", "Must answers follow a special tone or format?",
        yes="show it in demonstrations, and tune on it once there are a few hundred rows",
        no="the instruction is enough",
        effects=(
            Effect(TUNING, "help", "models learn tone and format better from examples than from instructions"),
            Effect(("in-context",), "help", "demonstrations show the tone and the format"),
        ),
        source=LIMA, **_need("style"),
    ),
    Rule(
        "records", "Is the answer a record with fields?", lambda f: f.kind == "json",
        lambda f: f"the output is of kind {f.kind}",
        "tune: models learn which words of the text go into which field", "there are no fields to fill",
        (
            Effect(TUNING, "help", "small models write the fields of records well only once they are tuned to"),
            Effect(("in-context",), "unknown", "demonstrations show the form of a record, tuning what goes into it"),
        ),
        EXTRACTION,
    ),
    # the facts that answers need
    Rule(
        "corpus", "Does the task name documents?", lambda f: f.corpus,
        lambda f: "`corpus` names documents" if f.corpus else "no `corpus`",
        "look the answers up in them before any training", "answers come from the input and the weights",
        (
            Effect(("retrieval",), "help", "the answers are in documents that the task names"),
            Effect(TUNING, "not", "a model tuned without the documents has to remember what they say"),
        ),
        RETRIEVAL,
    ),
    Rule(
        "knowledge", "Does the answer need facts that are not in the input?",
        yes="retrieve them from documents", no="no documents are needed",
        effects=(
            Effect(("retrieval",), "help", lambda f: (
                "retrieval finds what the input lacks" + ("" if f.corpus else ": name documents in `corpus`"))),
            Effect(TUNING, "not", "models learn facts badly from tuning; retrieval supplies them more reliably"),
            Effect(("retrieval",), "not", "the input holds everything that the answer needs",
                    lambda f: f.needs.knowledge is False),
        ),
        source=INJECTION, **_need("knowledge"),
    ),
    Rule(
        "facts-change", "Do the facts change once a month or more often?",
        lambda f: None if f.needs.facts_change is None else f.needs.facts_change in ("daily", "weekly", "monthly"),
        lambda f: f"needs.facts_change: {f.needs.facts_change}" if f.needs.facts_change else "",
        "keep facts in an index, not in weights", "weights may hold them",
        (
            Effect(("retrieval",), "help", lambda f: f"facts change {f.needs.facts_change}: an index follows at once"),
            Effect(TUNING, "not", lambda f: f"facts change {f.needs.facts_change}: trained facts would be out of date"),
        ),
        RETRIEVAL, "needs.facts_change",
    ),
    Rule(
        "documents", "Is there plain text of the domain?", lambda f: f.documents > 0,
        lambda f: f"{f.documents} documents in data.text",
        "adapt the model to the domain first", "skip domain adaptation",
        (
            Effect(("domain text",), "help", "there is plain text of the domain to adapt the model to"),
            Effect(("domain text",), "not", "`data.text` names no text of the domain", lambda f: not f.documents, True),
        ),
        DOMAIN,
    ),
    # the rows
    Rule(
        "few-rows", f"Fewer than {FEW_ROWS} rows, or {FEW_PER_LABEL} a label?", lambda f: f.few,
        lambda f: f"{f.train:,} training rows{_by_label(f)}",
        "write a good prompt and show the rows", "show the nearest rows; training is worth measuring",
        (
            Effect(("in-context",), "help", "a few rows are worth most as demonstrations"),
            Effect(TUNING, "not", "with so few rows, the result of tuning is chance"),
            Effect(("nearest rows",), "help", "demonstrations can resemble the row in question", lambda f: not f.few),
            Effect(("in-context",), "unknown", "fixed demonstrations say less than similar ones", lambda f: not f.few),
            Effect(("prompt-learning",), "not", "a search needs rows to search on and other rows to decide by",
                    lambda f: f.train < FEW_ROWS),
            Effect(("prompt-learning",), "unknown", "the effect of wording is unclear; most searches gain little",
                    lambda f: f.train >= FEW_ROWS),
        ),
        lambda f: PROMPT_WORTH if f.few else NEIGHBOURS,
    ),
    Rule(
        "preferences", "Did people compare or judge answers?", lambda f: f.pairs + f.verdicts > 0,
        lambda f: f"{f.pairs:,} pairs and {f.verdicts:,} verdicts in data.preferences",
        "learn from them, after the expected answers", "collect them: corrections are pairs, thumbs are verdicts",
        (
            Effect(("preference",), "not", "`data.preferences` names no judged answers",
                    lambda f: not f.pairs + f.verdicts, True),
            Effect(("answer pairs",), "not", "there are verdicts on single answers only",
                    lambda f: f.verdicts > 0 and not f.pairs, True),
            Effect(("preference",), "not", "a row has one right answer, and training on it is the better form",
                    lambda f: f.pairs + f.verdicts > 0 and f.kind not in ("text", "chat", "json")),
            Effect(("answer pairs",), "help", "what makes one text better than another shows in pairs",
                    lambda f: f.pairs > 0 and f.kind in ("text", "chat", "json")),
            Effect(("answer verdicts",), "help", "verdicts on single answers teach what to write and what not to",
                    lambda f: f.verdicts > 0 and f.kind in ("text", "chat", "json")),
            Effect(("answer verdicts",), "unknown", "pairs say more than their answers apart",
                    lambda f: f.pairs > 0 and not f.verdicts and f.kind in ("text", "chat", "json")),
        ),
        PREFERENCES,
    ),
    Rule(
        "checker", "Can a program check an answer?", lambda f: f.checked,
        lambda f: f"the metric is {f.metric}",
        "let it choose among several answers, and reward those that are right after fine-tuning",
        "a reward would be a model's opinion, or the distance from the expected text",
        (
            Effect(("reinforcement",), "not", "the label is known: training on it is the same objective, without noise",
                    lambda f: f.kind in LABELLED, True),
            Effect(("reinforcement",), "help", "after fine-tuning, answers of its own that are right teach it more",
                    lambda f: f.checked and f.kind not in LABELLED),
            Effect(("reinforcement",), "unknown", "without a program that checks answers, a reward is easily gamed",
                    lambda f: not f.checked and f.kind not in LABELLED),
            Effect(("best of several",), "not", "the labels are scored: there is nothing to choose among",
                    lambda f: f.kind in LABELLED, True),
            Effect(("best of several",), "help", "answers that come to the same result are right more often",
                    lambda f: f.checked and f.kind not in LABELLED),
            Effect(("best of several",), "unknown", "it costs as many answers as it samples, and a reward model tells "
                    "them apart only where people compared answers",
                    lambda f: not f.checked and f.kind not in LABELLED),
        ),
        lambda f: MAJORITY if f.checked else OVEROPTIMIZED,
    ),
    Rule(
        "thousand", "A thousand labelled rows, or failures collected?",
        lambda f: max(f.train, f.needs.failures or 0) >= THOUSAND,
        lambda f: f"{f.train:,} training rows, {f.needs.failures or 0:,} failures",
        "tune: LoRA first", lambda f: f"collect failures; {THOUSAND - max(f.train, f.needs.failures or 0):,} to go",
        (
            Effect(TUNING, "help", "about a thousand good rows are enough for tuning to pay"),
            Effect(TUNING, "unknown", lambda f: f"{f.train:,} rows: enough to try tuning, too few to be sure of a gain",
                    lambda f: max(f.train, f.needs.failures or 0) < THOUSAND and not f.few),
        ),
        LIMA,
    ),
    Rule(
        "context", "Do demonstrations fit the model's context?",
        lambda f: None if f.model.context is None else f.few_shot_tokens < f.model.context, _context_text,
        "demonstrations are possible", "tune instead, or choose a model with a longer context",
        (
            Effect(("in-context",), "not", lambda f: f"{_context_text(f)}: demonstrations do not fit",
                    lambda f: f.model.context is not None and f.few_shot_tokens >= f.model.context, excludes=True),
        ),
        NEIGHBOURS, lambda f: "model" if f.model.context is None else None,
    ),
    # use
    Rule(
        "latency", "Are long prompts too slow?", _too_slow,
        lambda f: (
            ("" if f.few_shot_ms is None else f"about {f.few_shot_ms:,.0f} ms a row with demonstrations")
            + (f", {f.needs.latency_ms:,} ms allowed" if f.needs.latency_ms else "")
        ),
        "put what demonstrations say into weights, or use a head", "long prompts are fast enough",
        (
            Effect(("in-context", "retrieval"), "not", lambda f: (
                f"long prompts are slow: about {f.few_shot_ms:,.0f} ms expected, {f.needs.latency_ms:,} ms allowed")),
            Effect((*TUNING, "soft prompts"), "help", "a trained model needs no demonstrations in its prompt"),
            Effect(("features",), "help", "an encoder with a head answers in milliseconds",
                    lambda f: bool(_too_slow(f)) and f.kind == "category"),
        ),
        OPERATIONS, lambda f: "needs.latency_ms" if f.needs.latency_ms is None else None,
    ),
    Rule(
        "volume", f"{OFTEN:,} answers a day or more?",
        lambda f: None if f.needs.rows_per_day is None else f.needs.rows_per_day >= OFTEN,
        lambda f: f"needs.rows_per_day: {f.needs.rows_per_day:,}" if f.needs.rows_per_day else "",
        "training once is cheaper than long prompts for ever", "cost hardly matters",
        (
            Effect((*TUNING, "soft prompts"), "help", "training is paid once, demonstrations with every answer"),
        ),
        PEFT_CHEAPER, "needs.rows_per_day",
    ),
    Rule(
        "privacy", "Must the data stay on this machine?",
        lambda f: None if f.needs.privacy is None else f.needs.privacy == "local",
        lambda f: f"needs.privacy: {f.needs.privacy}" if f.needs.privacy else "",
        "use a model on this machine only: rung models search", "endpoints may be used as well",
        (
            Effect(("prompting", "prompt-learning", "in-context", "retrieval"), "not", lambda f: (
                f"data must stay here, and {f.model.reference} is on another machine: choose a local model"),
                lambda f: f.needs.privacy == "local" and f.model.remote, excludes=True),
        ),
        ask="needs.privacy",
    ),
    # the model and the machine
    Rule(
        "endpoint", "Is the model an endpoint?", lambda f: f.model.endpoint, lambda f: f.model.reference,
        "prompts, demonstrations and retrieval only", "its weights can be trained",
        (
            Effect((*TUNING, "soft prompts", "hidden states"), "not", "the weights of an endpoint cannot be trained",
                    excludes=True),
        ),
    ),
    Rule(
        "memory", "Does training all weights fit this machine's memory?", _full_fits, _memory,
        "every method is possible", "train adapters, or on a base in 4 bits",
        (
            Effect(("full",), "not", lambda f: f"it takes {_memory(f)}", lambda f: _full_fits(f) is False, True),
            Effect((*(name for name in TUNING if name != "full"), "soft prompts"), "not", lambda f: (
                f"the weights alone take {_gib(f.weights_bytes or 0)} GiB of {_gib(f.machine.memory_bytes)}"),
                _adapters_too_large, True),
            Effect(("quantized base",), "help", "a base in 4 bits takes an eighth of the memory", _adapters_too_large),
        ),
        QLORA, _size_key,
    ),
    Rule(
        "small-model", "Has the model less than a billion parameters?", _small,
        lambda f: "" if f.model.parameters is None else f"{f.model.parameters / 1e6:,.0f} million parameters",
        "prefer adapters to soft prompts", "soft prompts are worth measuring",
        (
            Effect(("soft prompts",), "not", "below a billion parameters soft prompts are weaker than adapters"),
            Effect(("soft prompts",), "unknown", "the larger the model, the closer soft prompts come to full tuning",
                    lambda f: not _small(f)),
        ),
        SOFT_PROMPT_SCALE, _size_key,
    ),
)  # fmt: skip
