"""What the decision guide knows before anything is downloaded or run: task file, rows, model and machine."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

from rung.data.rows import Data, labels_of
from rung.data.sections import Needs
from rung.machine import Machine, is_loopback
from rung.models.reference import is_endpoint
from rung.task import Task

CHARACTERS_PER_TOKEN = 4  # of English text under usual vocabularies
DEMONSTRATIONS = 5  # shown at once, as the few-shot rungs do
FEW_ROWS, FEW_PER_LABEL = 100, 8
CHECKED = ("sql_execution", "code", "final_number")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is known of the task's model."""

    reference: str  # as the task file writes it
    endpoint: bool = False  # it runs at an API
    remote: bool = False  # that API is on another machine
    parameters: int | None = None  # None if only a download could tell
    context: int | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What the rules read. Token counts are estimated from characters, without the longest 5 % of the rows."""

    kind: str
    labels: int
    train: int
    rows_per_label: float
    described: bool  # `output.descriptions` says what the labels mean
    documents: int  # in `data.text`
    input_tokens: int
    output_tokens: int
    model: ModelFacts
    machine: Machine
    needs: Needs
    corpus: bool = False  # the task names documents to retrieve from
    rarest: int | None = None  # training rows of the rarest label
    pairs: int = 0  # of a better and a worse answer, in `data.preferences`
    verdicts: int = 0  # on single answers there
    metric: str = ""  # the task's

    @property
    def checked(self) -> bool:
        """Whether a program says if an answer is right: it runs it, or reads a number or record in it."""
        return self.metric in CHECKED or self.kind in ("number", "json")

    @property
    def few(self) -> bool:
        """Whether there are fewer than 100 training rows, or fewer than 8 a label."""
        return self.train < FEW_ROWS or (self.kind == "category" and self.rows_per_label < FEW_PER_LABEL)

    @property
    def few_shot_tokens(self) -> int:
        """Tokens of a prompt with demonstrations, the answer included."""
        return (DEMONSTRATIONS + 1) * (self.input_tokens + self.output_tokens)

    @property
    def few_shot_ms(self) -> float | None:
        """Expected milliseconds of one such prediction on this machine; None for endpoints and unknown models."""
        if self.model.parameters is None or self.model.endpoint:
            return None
        return 1000 * self.machine.inference_seconds(2 * self.model.parameters * self.few_shot_tokens)

    @property
    def weights_bytes(self) -> int | None:
        """Bytes of the model's weights in fp32; None for endpoints and unknown models."""
        return None if self.model.endpoint or self.model.parameters is None else 4 * self.model.parameters


def gather(task: Task, data: Data, machine: Machine) -> Facts:
    """Collect the facts of a task, without a download and without reading weights."""
    counts = Counter(label for row in data.train for label in labels_of(row.outputs[0], task.output.kind))
    return Facts(
        kind=task.output.kind,
        labels=len(data.labels),
        train=len(data.train),
        rows_per_label=median(counts.values()) if counts else 0.0,
        described=bool(task.output.descriptions),
        documents=len(data.text),
        input_tokens=_tokens([" ".join(map(str, row.inputs.values())) for row in data.train]),
        output_tokens=_tokens([row.outputs[0] for row in data.train]),
        model=model_facts(task.model),
        machine=machine,
        needs=task.needs or Needs(),
        corpus=task.corpus is not None,
        pairs=sum(each.pair is not None for each in data.preferences),
        verdicts=sum(each.pair is None for each in data.preferences),
        metric=task.metric_name,
        rarest=min((counts[label] for label in data.labels), default=None),
    )


def model_facts(reference: str) -> ModelFacts:
    """Look a model up in the catalogues, or in its own folder."""
    from rung.models import embedded, open_models
    from rung.models.reference import resolve

    if is_endpoint(reference):
        loopback = is_loopback(urlsplit(reference).hostname or "")
        return ModelFacts(reference, endpoint=True, remote=not loopback)
    if (known := embedded.find(reference) or open_models.find(reference)) is not None:
        return ModelFacts(reference, parameters=known.parameters, context=known.context)
    if not Path(reference).expanduser().is_dir():
        return ModelFacts(reference)
    files = resolve(reference)
    return ModelFacts(reference, parameters=files.parameters, context=files.context)


def _tokens(texts: list[str]) -> int:
    """The 95th percentile of the lengths in tokens, at least 1."""
    if not texts:
        return 1
    lengths = sorted(map(len, texts))
    return max(1, round(lengths[round(0.95 * (len(lengths) - 1))] / CHARACTERS_PER_TOKEN))
