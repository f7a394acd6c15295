"""RecordDecoder fills each field of a record by itself: a linear head, a list of known values, or a tagger of spans.

The tagger scores every token of the text as the first of a field's value, inside of it, or outside (Ramshaw & Marcus
1995, https://arxiv.org/abs/cmp-lg/9505040), by linear weights on the words around it and its place on the line.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt

from rung.artifact.confidence import softmax
from rung.artifact.decoder import Answer, ArtifactReader, ArtifactWriter, Composition, Promptless
from rung.artifact.lexical import Lexicon, lexical_flops
from rung.artifact.rendering import Given
from rung.data.rows import Example
from rung.engines.base import Floats
from rung.errors import ArtifactError
from rung.progress import Progress

How = Literal["constant", "head", "labels", "list", "tagger"]
Path = tuple[str, ...]
TOKEN = re.compile(r"[^\W\d_]+|\d+|[^\w\s]|_")
OUTSIDE, FIRST, INSIDE = 0, 1, 2  # tags of a token
CONTEXT = 3  # tokens before and after that are features
MOST_TOKENS = 80  # of a value in one piece
TERMS_FILE = "tagger.json"
ABSENT = "absent"  # of a field: the key is left out


# ---- records as fields


@dataclass(frozen=True, slots=True)
class RecordField:
    """A field of the records, and how its values are found.

    Attributes:
        path: the keys from the top of the record to the value.
        how: `constant`, the most frequent value; `head`, one of few values, by the whole text; `labels`, any of few
            items of a list; `list`, known values that occur in the text; `tagger`, a span of the text.
        many: whether the value is a list.
        empty: what stands for no value, as JSON, or `absent` where the key is left out.
        values: for `constant` one value, for `head` and `labels` the possible ones, for `list` the known ones, as JSON.
        number: whether spans are read as numbers.
        case: how the text of a span is written: `same`, `lower`, `upper` or `title`.
        required: whether nearly every row has a value, so that the best span is taken however little it scores.
        thresholds: for `labels`, the probability from which each item is given.
    """

    path: Path
    how: How
    many: bool
    empty: str
    values: tuple[str, ...] = ()
    number: bool = False
    case: str = "same"
    required: bool = False
    thresholds: tuple[float, ...] = ()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read the JSON form."""
        settings: dict[str, Any] = {
            n: tuple(value) if isinstance(value, list) else value for n, value in values.items()
        }
        return cls(**settings)


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield the values of a record by their paths; lists are values as a whole."""
    if isinstance(value, dict) and value:
        for name, child in value.items():
            yield from leaves(child, (*path, name))
    else:
        yield path, value


def put(record: Any, path: Path, value: Any) -> Any:
    """Set a value in a record, and give the record."""
    if not path:
        return value
    record = record if isinstance(record, dict) else {}
    record[path[0]] = put(record.get(path[0]), path[1:], value)
    return record


# ---- tokens and what is known of them


@dataclass(frozen=True)
class Tokens:
    """The tokens of a text: where each begins and ends, in characters, and as lower-case text."""

    text: str
    places: tuple[tuple[int, int], ...]
    lower: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> Self:
        """Cut a text into words, numbers and signs."""
        places = tuple(match.span() for match in TOKEN.finditer(text))
        return cls(text, places, tuple(text[start:end].lower() for start, end in places))

    def span(self, first: int, last: int) -> str:
        """The text from the first to the last token, with single spaces."""
        return " ".join(self.text[self.places[first][0] : self.places[last][1]].split())

    def features(self) -> list[list[str]]:
        """Describe every token: itself, its neighbours, and its place on the line and in the text."""
        text, places, lower = self.text, self.places, self.lower
        words = [text[start:end] for start, end in places]
        shapes = [_shape(word) for word in words]
        glued = [n > 0 and places[n - 1][1] == places[n][0] for n in range(len(words))]
        line, lines, heads = 0, list[int](), list[int]()
        for n, (start, _) in enumerate(places):
            if n and "\n" in text[places[n - 1][1] : start]:
                line += 1
            heads.append(n if not lines or lines[-1] != line else heads[-1])
            lines.append(line)
        counts: dict[str, int] = {}
        for word in lower:
            counts[word] = counts.get(word, 0) + 1
        features = []
        for n, word in enumerate(lower):
            own = [
                "bias", f"w={word}", f"s={shapes[n]}", f"p={word[:3]}", f"e={word[-3:]}", f"n={min(len(word), 8)}",
                f"line={min(lines[n], 12)}", f"back={min(line - lines[n], 12)}", f"at={min(n - heads[n], 6)}",
                f"glued={glued[n]}{n + 1 < len(words) and glued[n + 1]}", f"times={min(counts[word], 4)}",
                f"head={lower[heads[n]]}", f"last={n + 1 == len(words) or lines[n + 1] != lines[n]}",
                f"i={min(n, 6)}",
            ]  # fmt: skip
            for offset in range(-CONTEXT, CONTEXT + 1):
                at = n + offset
                if offset and 0 <= at < len(words):
                    near = "" if lines[at] == lines[n] else "/"
                    own += [f"{offset}w={near}{lower[at]}", f"{offset}s={near}{shapes[at]}"]
                elif offset:
                    own.append(f"{offset}end")
            if n:
                own.append(f"pair={lower[n - 1]} {word}")
                own.append(f"shapes={shapes[n - 1]} {shapes[n]}")
            if n + 1 < len(words):
                own.append(f"next={shapes[n]} {shapes[n + 1]}")
            if heads[n]:
                own.append(f"above={lower[heads[heads[n] - 1]]}")
                own.append(f"before={lower[heads[n] - 1]}")
            own += [f"in={other}" for other in set(lower[max(heads[n], n - 8) : n])]
            features.append(own)
        return features


def _shape(word: str) -> str:
    if word.isdigit():
        return f"d{min(len(word), 6)}"
    if not word[0].isalpha():
        return word
    return "X" if word.isupper() else "Xx" if word[0].isupper() else "x"


def known_values(tokens: Tokens, table: Mapping[tuple[str, ...], str], longest: int) -> list[tuple[int, int, str]]:
    """Find known values in a text, the longest first where several begin at a token; matches do not overlap."""
    found, n = [], 0
    while n < len(tokens.lower):
        for length in range(min(longest, len(tokens.lower) - n), 0, -1):
            value = table.get(tokens.lower[n : n + length])
            if value is not None:
                found.append((n, n + length - 1, value))
                n += length - 1
                break
        n += 1
    return found


# ---- the tagger


@dataclass(frozen=True)
class Tagger:
    """Linear scores of the tags of every token, for several fields at once.

    Attributes:
        terms: the features that have weights, in the order of the rows of `weight`.
        weight: shape [features, fields, tags].
        moves: the score of a tag after another, shape [fields, tags, tags].
    """

    terms: Mapping[str, int]
    weight: Floats
    moves: Floats

    def scores(self, tokens: Tokens) -> Floats:
        """Score the tags of every token, shape [tokens, fields, tags]."""
        rows = [[self.terms[name] for name in own if name in self.terms] for own in tokens.features()]
        weight = np.concatenate([self.weight, np.zeros((1, *self.weight.shape[1:]), np.float32)])
        scores: Floats = weight[padded(rows, len(self.terms))].sum(1)
        return scores

    def save(self, writer: ArtifactWriter) -> None:
        """Write the features as a file of JSON, and the weights as arrays."""
        (writer.folder / TERMS_FILE).write_text(json.dumps(list(self.terms), ensure_ascii=False), "utf-8")
        writer.arrays["tagger.weight"], writer.arrays["tagger.moves"] = self.weight, self.moves

    @classmethod
    def load(cls, reader: ArtifactReader, fields: int) -> Self:
        """Read what `save` wrote; raise ArtifactError `artifact-damaged` if features and weights do not fit."""
        file = reader.folder / TERMS_FILE
        terms: Any = json.loads(file.read_text("utf-8")) if file.is_file() else None
        weight, moves = (reader.arrays.get(f"tagger.{name}") for name in ("weight", "moves"))
        if (
            not isinstance(terms, list) or not all(isinstance(term, str) for term in terms) or weight is None
            or moves is None or weight.shape != (len(set(terms)), fields, 3) or moves.shape != (fields, 3, 3)
        ):  # fmt: skip
            raise ArtifactError(
                "artifact-damaged", f"{file}: the features do not fit their weights", hint="copy the whole folder again"
            )
        return cls({term: row for row, term in enumerate(terms)}, weight, moves)


def padded(rows: Sequence[Sequence[int]], filler: int) -> npt.NDArray[np.int64]:
    """Fill lists of numbers up to one length."""
    numbers = np.full((len(rows), max(map(len, rows), default=0)), filler, np.int64)
    for n, row in enumerate(rows):
        numbers[n, : len(row)] = row
    return numbers


def best_tags(scores: Floats, moves: Floats) -> npt.NDArray[np.int64]:
    """Find the tags [tokens, fields] of the highest total score (Viterbi); no value goes on without a first token."""
    tokens, fields, _ = scores.shape
    back = np.zeros((tokens, fields, 3), np.int64)
    total = scores[0].copy()
    total[:, INSIDE] = -np.inf
    allowed = moves.copy()
    allowed[:, OUTSIDE, INSIDE] = -np.inf
    for n in range(1, tokens):
        paths = total[:, :, None] + allowed
        back[n] = paths.argmax(1)
        total = paths.max(1) + scores[n]
    tags = np.zeros((tokens, fields), np.int64)
    tags[-1] = total.argmax(1)
    every = np.arange(fields)
    for n in range(tokens - 1, 0, -1):
        tags[n - 1] = back[n, every, tags[n]]
    return tags


def spans_of(tags: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """List the first and last tokens of the values that the tags [tokens] of one field mark."""
    spans: list[tuple[int, int]] = []
    for n, tag in enumerate(tags.tolist()):
        if tag == FIRST:
            spans.append((n, n))
        elif tag == INSIDE:
            spans[-1] = (spans[-1][0], n)
    return spans


def best_span(scores: Floats, moves: Floats) -> tuple[float, int, int]:
    """Find the span that gains most over no value, by the scores [tokens, tags] and moves [tags, tags] of one field."""
    tokens = len(scores)
    first = scores[:, FIRST] - scores[:, OUTSIDE] + moves[OUTSIDE, FIRST] - moves[OUTSIDE, OUTSIDE]
    first[0] -= moves[OUTSIDE, FIRST] - moves[OUTSIDE, OUTSIDE]
    inside = scores[:, INSIDE] - scores[:, OUTSIDE] - moves[OUTSIDE, OUTSIDE]
    after = np.r_[np.full(tokens - 1, moves[OUTSIDE, OUTSIDE] * -1.0), 0.0]
    opened = first.copy()
    best = (-np.inf, 0, 0)
    for length in range(1, min(MOST_TOKENS, tokens) + 1):
        # `opened[n]` is the gain of the span of this length that begins at token n.
        ends = np.arange(length - 1, tokens)
        leave = moves[FIRST if length == 1 else INSIDE, OUTSIDE] + after[ends]
        gains = opened[: tokens - length + 1] + np.where(ends < tokens - 1, leave, 0.0)
        n = int(gains.argmax())
        if gains[n] > best[0]:
            best = (float(gains[n]), n, n + length - 1)
        if length < tokens:
            move = moves[FIRST if length == 1 else INSIDE, INSIDE]
            opened = opened[: tokens - length] + inside[length:] + move
    return best


# ---- the decoder


@dataclass(frozen=True, slots=True)
class RecordDecoder(Promptless):
    """Fills the fields of a record one by one.

    Attributes:
        fields: the fields, in the order of the record.
        heads: weight [values, terms] and intercept [values] of each field that has a head, by its number.
        lexicon: the terms of the heads, if there are any.
        tagger: the tagger of the fields that are spans, in their order, if there are any.
    """

    kind: ClassVar[str] = "record"
    fields: tuple[RecordField, ...]
    heads: Mapping[int, tuple[Floats, Floats]]
    lexicon: Lexicon | None = None
    tagger: Tagger | None = None

    @property
    def tagged(self) -> list[int]:
        """The numbers of the fields that the tagger finds."""
        return [number for number, field in enumerate(self.fields) if field.how == "tagger"]

    def row_flops(self, artifact: Composition, rows: Sequence[Example]) -> float:
        """Estimate one reading of the text by all heads and by the tagger."""
        outputs = sum(len(weight) for weight, _ in self.heads.values()) + 3 * len(self.tagged)
        return lexical_flops(artifact, rows, outputs)

    def as_dict(self, writer: ArtifactWriter) -> dict[str, Any]:
        """Save the weights as arrays."""
        for number, (weight, intercept) in self.heads.items():
            writer.arrays[f"record.{number}.weight"], writer.arrays[f"record.{number}.intercept"] = weight, intercept
        for part in (self.lexicon, self.tagger):
            if part is not None:
                part.save(writer)
        return {"fields": [asdict(field) for field in self.fields]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], reader: ArtifactReader) -> Self:
        """Read the weights back."""
        settings = dict(values)
        try:
            fields = tuple(RecordField.from_dict(field) for field in settings.pop("fields"))
            numbers = [number for number, field in enumerate(fields) if field.how in ("head", "labels")]
            heads = {n: (reader.arrays[f"record.{n}.weight"], reader.arrays[f"record.{n}.intercept"]) for n in numbers}
        except (KeyError, TypeError, AttributeError) as error:
            problem = f"{reader.folder}: the fields of the record do not fit: {error}"
            raise ArtifactError("artifact-damaged", problem, hint="copy the whole folder again") from error
        tagged = sum(field.how == "tagger" for field in fields)
        parts = {
            "fields": fields, "heads": heads, "lexicon": Lexicon.load(reader) if heads else None,
            "tagger": Tagger.load(reader, tagged) if tagged else None,
        }  # fmt: skip
        return super(RecordDecoder, cls).from_dict(settings | parts, reader)

    def answer(
        self, artifact: Composition, examples: Sequence[Example], *, full: bool, passages: Given, progress: Progress
    ) -> list[Answer]:
        """Fill a record from every example's text."""
        del full, passages, progress
        start = time.perf_counter()
        texts = [artifact.prompt.question(example.inputs) for example in examples]
        records = self.records(texts)
        seconds = (time.perf_counter() - start) / len(examples)
        return [
            Answer(json.dumps(record, ensure_ascii=False), None, None, 0, 0, seconds, ({"role": "user", "content": t},))
            for record, t in zip(records, texts, strict=True)
        ]

    def records(self, texts: Sequence[str]) -> list[Any]:
        """Fill a record from each text."""
        columns = self.columns(texts)
        records = []
        for row in range(len(texts)):
            record: Any = {}
            for field, column in zip(self.fields, columns, strict=True):
                value = column[row]
                if value is None or value == []:
                    if field.empty == ABSENT:
                        continue
                    value = json.loads(field.empty)
                record = put(record, field.path, value)
            records.append(record)
        return records

    def columns(self, texts: Sequence[str]) -> list[list[Any]]:
        """Find the values of each field in each text; None where there is none."""
        terms = None if self.lexicon is None else self.lexicon.features(texts)
        tokens = [Tokens.of(text) for text in texts]
        spans = self._spans(tokens)
        columns = []
        for number, field in enumerate(self.fields):
            if field.how == "constant":
                columns.append([json.loads(field.values[0])] * len(texts))
            elif field.how == "list":
                table = {Tokens.of(str(json.loads(value))).lower: value for value in reversed(field.values)}
                longest = max(map(len, table), default=0)
                columns.append([_listed(field, known_values(each, table, longest)) for each in tokens])
            elif field.how == "tagger":
                columns.append(spans[number])
            else:
                weight, intercept = self.heads[number]
                assert terms is not None
                columns.append(_by_head(field, terms @ weight.T.astype(np.float64) + intercept))
        return columns

    def _spans(self, tokens: Sequence[Tokens]) -> dict[int, list[Any]]:
        """Find the values of the tagged fields in each text, by the fields' numbers."""
        spans: dict[int, list[Any]] = {number: [] for number in self.tagged}
        if self.tagger is None:
            return spans
        for each in tokens:
            scores = self.tagger.scores(each)
            tags = best_tags(scores, self.tagger.moves) if len(scores) else np.zeros((0, len(spans)), np.int64)
            for place, number in enumerate(spans):
                field = self.fields[number]
                if not len(scores):
                    spans[number].append(None)
                elif field.many:
                    values = [_written(field, each.span(*span)) for span in spans_of(tags[:, place])]
                    spans[number].append(list(dict.fromkeys(value for value in values if value is not None)))
                else:
                    gain, first, last = best_span(scores[:, place], self.tagger.moves[place])
                    kept = field.required or gain > 0
                    spans[number].append(_written(field, each.span(first, last)) if kept else None)
        return spans


def _listed(field: RecordField, found: Sequence[tuple[int, int, str]]) -> Any:
    values = [json.loads(value) for _, _, value in found]
    if field.many:
        return list({json.dumps(value): value for value in values}.values())
    if not found:
        return None
    return json.loads(max(found, key=lambda match: (match[1] - match[0], -match[0]))[2])


def _by_head(field: RecordField, logits: Floats) -> list[Any]:
    """The values that a head's scores [rows, values] choose."""
    values = [json.loads(value) for value in field.values]
    if field.how == "head":
        return [values[best] for best in softmax(logits).argmax(1)]
    given = 1 / (1 + np.exp(-logits.clip(-500, 500))) >= np.array(field.thresholds)
    return [[value for value, chosen in zip(values, row, strict=True) if chosen] for row in given]


def _written(field: RecordField, text: str) -> Any:
    """A span as the value of its field; None if a number cannot be read."""
    if field.number:
        return number_in(text)
    return cased(text, field.case)


def cased(text: str, case: str) -> str:
    """Write a text in the case of a field."""
    return text if case == "same" else str(getattr(text, case)())


def number_in(text: str) -> int | float | None:
    """Read a number with commas between thousands; None if the text is none."""
    digits = text.replace(",", "").replace(" ", "")
    try:
        return int(digits) if digits.lstrip("-").isdigit() else float(digits)
    except ValueError:
        return None
