"""The training data report: what a tuning rung learns from, told before its first step and kept in the artifact."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from rung.data.rows import SHOWN

if TYPE_CHECKING:
    from rung.models.tokenizer import Tokenizer
    from rung.progress import Progress
    from rung.training.examples import TokenizedExample

TRAINING_DATA = "training_data"  # its key among a rung's settings
OPEN, CLOSE = ">>>", "<<<"  # around the supervised part of the example
TOLD = 160  # characters of the example's end that are told before the first step


@dataclass
class TrainingReport:
    """What becomes of the training rows.

    Attributes:
        rows: training rows, or documents, there were.
        dropped: for every reason, where the rows left out stand.
        truncated: by `file:line`, the tokens cut off the end of a row's longest input.
        turns_apart: assistant turns that are examples of their own, because the model's template writes the
            conversation before them differently once it goes on.
        examples: sequences trained on: a row has one for each of its answers.
        tokens: tokens of all examples.
        supervised: minimum, median and maximum of the supervised tokens of an example.
        example: the text of the first example, the supervised part between `>>>` and `<<<`.
    """

    rows: int = 0
    dropped: dict[str, list[str]] = field(default_factory=dict)
    truncated: dict[str, int] = field(default_factory=dict)
    turns_apart: int = 0
    examples: int = 0
    tokens: int = 0
    supervised: dict[str, float] = field(default_factory=dict)
    example: str = ""

    def drop(self, reason: str, source: str) -> None:
        """Count a row that is left out."""
        self.dropped.setdefault(reason, []).append(source)

    def measure(self, examples: Sequence[TokenizedExample], tokenizer: Tokenizer) -> None:
        """Take the figures of the examples that the rows became."""
        self.examples, self.tokens = len(examples), sum(map(len, examples))
        if examples:
            counts = [one.supervised for one in examples]
            self.supervised = {"min": min(counts), "median": statistics.median(counts), "max": max(counts)}
            self.example = marked(examples[0], tokenizer)

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "rows": self.rows,
            "kept": self.rows - sum(map(len, self.dropped.values())),
            "dropped": {reason: len(sources) for reason, sources in self.dropped.items()},
            "dropped_at": {reason: sources[:SHOWN] for reason, sources in self.dropped.items()},
            "truncated": len(self.truncated),
            "truncated_at": list(self.truncated)[:SHOWN],
            "truncated_tokens": sum(self.truncated.values()),
            "turns_apart": self.turns_apart,
            "examples": self.examples,
            "tokens": self.tokens,
            "supervised": self.supervised,
            "example": self.example,
        }


def marked(example: TokenizedExample, tokenizer: Tokenizer) -> str:
    """Return an example's text with its supervised parts between `>>>` and `<<<`."""
    bounds = [place for span in example.spans for place in span]
    # Beginnings are decoded, not parts: some tokenizers leave out a space where a text begins.
    texts = [tokenizer.decode(example.tokens[:place], skip_special=False) for place in (0, *bounds, len(example))]
    parts = [text[len(before) :] for before, text in pairwise(texts)]
    return "".join(f"{OPEN}{part}{CLOSE}" if i % 2 else part for i, part in enumerate(parts))


def report_lines(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a report says (as `TrainingReport.as_dict` returns it), line by line."""
    kept = f"{values['kept']:,} of {values['rows']:,} rows kept"
    yield f"{kept}: {values['examples']:,} examples, {values['tokens']:,} tokens"
    for reason, count in values["dropped"].items():
        yield f"{count:,} dropped, {reason}: {_places(values['dropped_at'][reason], count)}"
    if count := values["truncated"]:
        places = _places(values["truncated_at"], count)
        yield f"{count:,} truncated, {values['truncated_tokens']:,} tokens in all: {places}"
    if count := values["turns_apart"]:
        yield f"{count:,} assistant turns are examples of their own: the template rewrites what is before them"
    if spread := values["supervised"]:
        yield (
            f"{spread['min']:g} / {spread['median']:g} / {spread['max']:g} supervised tokens an example "
            "(min / median / max)"
        )
        yield f"the first example, supervised between {OPEN} and {CLOSE}:"
        yield values["example"]


def tell(report: TrainingReport, progress: Progress) -> None:
    """Tell what is learnt from, before the first step; of the example no more than its end."""
    lines = list(report_lines(report.as_dict()))
    if report.examples:
        text = " ".join(lines[-1].split())
        lines[-1] = text if len(text) <= TOLD else f"...{text[-TOLD:]}"
    for line in lines:
        progress.start("training data")
        progress.finish(line)


def _places(sources: Sequence[str], count: int) -> str:
    return ", ".join(sources) + (", ..." if count > len(sources) else "")
