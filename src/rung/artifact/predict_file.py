"""Answer a whole file in bounded memory, and resume an earlier run; answer rows in memory as a table.

Rows are read, answered and written in small batches, each synced to disk, so a kill costs at most one batch. Before the
first line, `OUT.origin.json` is written beside the answers, with the hashes of the rows' file and of the artifact. A
resumed run must have the same hashes.

A row that cannot be answered is no end: its line has `error`, and the counts say how many there are and where.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from hashlib import sha256
from itertools import islice, tee
from pathlib import Path
from typing import IO, Any

from rung.agents.tools import trace
from rung.artifact.artifact import Artifact
from rung.artifact.decoder import Answer
from rung.data.cells import CellError, json_text
from rung.data.examples import (
    EMPTY_INPUT,
    column,
    given_records,
    is_blank,
    not_blank,
    read_inputs,
    read_row,
    whole_rows,
)
from rung.data.rows import Example, Record
from rung.data.sources import FileFormat, detected, read_rows
from rung.errors import ConfigError, DataError, RungError, suggest
from rung.models.files import lock_alone, write_atomically, writing
from rung.progress import QUIET, Progress, default_progress
from rung.yamlfile import read_bytes, read_object, sealed_lines, unreadable

BATCH = 64  # rows answered together and written before the next are read
SHOWN = 3  # rows that could not be answered and that the summary names
# What no row is to blame for, so that the next row would fail alike: by code, and by the class of other errors.
ENDS = (
    "api-key-missing", "api-key-refused", "budget-spent", "endpoint-rate-limited", "endpoint-unreachable",
    "missing-extra", "network-off", "no-cuda", "not-trusted", "out-of-memory",
)  # fmt: skip
TORCH_ENDS = ("OutOfMemoryError", "AcceleratorError")  # not imported: not every artifact needs torch


@dataclass(frozen=True, slots=True)
class Predicted:
    """The counts of a run.

    Attributes:
        rows: rows of the file.
        answered: rows that this run answered; the others were already answered.
        overflow_rows: answered rows whose prompts fit only after something was left out.
        dropped_demonstrations, dropped_passages: how many were left out in total.
        shortened_passages: how many passages were cut in total.
        truncated_rows: answered rows whose input was cut.
        error_rows: rows that could not be answered, earlier runs included; each has its `error`.
        first_errors: which the first of these are.
        format: what is unusual about the format of the rows' file.
        columns: the columns of the answered rows.
    """

    rows: int
    answered: int
    overflow_rows: int = 0
    dropped_demonstrations: int = 0
    dropped_passages: int = 0
    shortened_passages: int = 0
    truncated_rows: int = 0
    error_rows: int = 0
    first_errors: tuple[str, ...] = field(default=(), compare=False)
    format: str = field(default="", compare=False)
    columns: AnswerColumns = field(default_factory=lambda: AnswerColumns(), compare=False)

    def __str__(self) -> str:
        text = f"{self.answered} of {self.rows} rows answered"
        if self.answered < self.rows:
            text += f", {self.rows - self.answered} were already answered"
        if self.overflow_rows:
            passages = f"{self.dropped_passages} passages were left out and {self.shortened_passages} cut"
            demonstrations = f"{self.dropped_demonstrations} demonstrations were left out of them"
            what = demonstrations if self.dropped_demonstrations else passages
            if self.truncated_rows:
                what = f"the inputs of {self.truncated_rows} were cut"
            text += f"; {self.overflow_rows} prompts were longer than the model reads: {what}"
        if self.error_rows:
            rows, more = "row" if self.error_rows == 1 else "rows", self.error_rows - len(self.first_errors)
            which = ", ".join(self.first_errors) + (f" and {more} more" if more else "")
            column = self.columns.name("error")
            text += f"; {self.error_rows} {rows} could not be answered ({which}): the column `{column}` says why"
        return text


# ---- the columns of an answered row


@dataclass(frozen=True, slots=True)
class AnswerColumns:
    """Which columns an answered row has: those kept of the user's row, then the answer's.

    Attributes:
        kept: the user's columns, in their order; dots reach into nested JSON.
        top_k: how many of the most probable labels are listed.
    """

    kept: tuple[str, ...] = ()
    top_k: int = 0

    def name(self, answered: str) -> str:
        """The name of an answer's column: its own, or `predicted_...` where the user's table has that name already."""
        while answered in self.kept:
            answered = f"predicted_{answered}"
        return answered

    def kept_values(self, record: Record) -> dict[str, Any]:
        """The user's columns of a row as JSON values; None where a JSON row lacks one."""
        values = {}
        for name in self.kept:
            values[name] = column(record, name) if name in record.values or "." in name else None
        return values

    def values(self, artifact: Artifact, record: Record, answer: Answer | str) -> dict[str, Any]:
        """An answered row as JSON values, the user's columns first."""
        return self.joined(record.source, self.kept_values(record), self.answered(artifact, answer))

    def answered(self, artifact: Artifact, answer: Answer | str) -> dict[str, Any]:
        """The columns of an answer, or of the error of a row that cannot be answered."""
        if isinstance(answer, str):
            return {"output": None, "confidence": None, "error": answer}
        values = answer_values(artifact, answer)
        return values | {"top": _top(artifact, answer, self.top_k)} if self.top_k else values

    def joined(self, source: str, kept: Mapping[str, Any], answered: Mapping[str, Any]) -> dict[str, Any]:
        """The columns of the user's row, and those of its answer under names that the row does not have."""
        return {self.name("row"): source, **kept, **{self.name(name): value for name, value in answered.items()}}


class FailedRows:
    """Counts the answered lines that have an `error`, and keeps which rows the first of them are."""

    def __init__(self, columns: AnswerColumns) -> None:
        self._error, self._row = columns.name("error"), columns.name("row")
        self.count, self.first = 0, list[str]()

    def see(self, line: str) -> None:
        """Look at a line."""
        if f'"{self._error}": ' in line and self._error in (values := json.loads(line)):
            self.count += 1
            if len(self.first) < SHOWN:
                self.first.append(values[self._row])

    def told(self, done: Predicted) -> Predicted:
        """The counts of a run with those of its failed rows."""
        return replace(done, error_rows=self.count, first_errors=tuple(self.first))


def answer_batch(artifact: Artifact, examples: Sequence[Example]) -> list[Answer | str]:
    """Answer a batch; where that fails, each row by itself, with the error of a row that fails in place of its answer.

    A row with an empty input has an error, as training drops it: any answer would be an answer to nothing.

    Raises:
        Exception: no row is to blame: an endpoint is down, the memory is not enough, a library or a consent is missing;
            or all rows of the batch fail.
    """
    answers = iter(_answers(artifact, [row for row in examples if not is_blank(row.inputs)]))
    return [f"{EMPTY_INPUT} [bad-row]" if is_blank(row.inputs) else next(answers) for row in examples]


def _answers(artifact: Artifact, examples: Sequence[Example]) -> list[Answer | str]:
    try:
        return list(artifact.answer(examples))
    except Exception as error:
        if _ends(error):
            raise
        found: list[Answer | str] = []
        for example in examples:
            try:
                found += artifact.answer([example])
            except Exception as own:
                if _ends(own):
                    raise
                found.append(f"{own} [{own.code}]" if isinstance(own, RungError) else f"{type(own).__name__}: {own}")
        if len(examples) > 1 and all(isinstance(each, str) for each in found):
            raise
        return found


def _ends(error: Exception) -> bool:
    """Whether no row is to blame for an error."""
    if isinstance(error, RungError):
        return error.code in ENDS
    return isinstance(error, MemoryError | ImportError) or type(error).__name__ in TORCH_ENDS


def _top(artifact: Artifact, answer: Answer, k: int) -> list[dict[str, Any]]:
    """The most probable labels of an answer, or of one that has no probabilities an error."""
    if answer.probabilities is None:
        problem = f"--top-k has no effect: {artifact.name} gives no probabilities of labels"
        raise ConfigError("bad-option", problem, hint="leave --top-k out")
    ranked = sorted(zip(artifact.signature.labels, answer.probabilities, strict=True), key=lambda pair: -pair[1])
    return [{"label": label, "probability": probability} for label, probability in ranked[:k]]


def kept_columns(keep: str, known: Iterable[str], data: str) -> tuple[str, ...]:
    """Choose the user's columns that are kept: `all`, `none`, or names with commas between them.

    Raises:
        DataError: `missing-column`: no row has a column of this name.
    """
    names = tuple(known)
    if keep == "all":
        return names
    wanted = _named(keep)
    for name in wanted:
        if name not in names and name.split(".")[0] not in names:
            raise DataError("missing-column", f"--keep: {data} has no column {name!r}", hint=suggest(name, names))
    return wanted


def _named(keep: str) -> tuple[str, ...]:
    """The names in `--keep`; none for `all` and `none`."""
    names = (name.strip() for name in keep.split(",") if name.strip())
    return () if keep in ("all", "none") else tuple(dict.fromkeys(names))


def predict(artifact: Artifact, rows: Any, *, keep: str = "all", top_k: int = 0) -> list[dict[str, Any]]:
    """Answer rows, and give them back with their answers: what `rung predict` writes.

    Args:
        artifact: the artifact that answers.
        rows: what `Artifact.predict` takes.
        keep: the columns of the rows to keep: `all`, `none`, or names with commas between them.
        top_k: how many of the most probable labels to list under `top`.

    Returns:
        One dict per row, in order: `row` (which one it is), the columns kept, `output`, `confidence`, and what the
        artifact has beside them. Where a row has such a column itself, the answer's is called `predicted_output`.

    Raises:
        DataError: a row is wrong or its input is empty, or a column to keep holds bytes.
        ConfigError: `top_k` is asked of an artifact without probabilities.

    Example:
        >>> pandas.DataFrame(rung.predict(artifact, frame))  # doctest: +SKIP
    """
    shape = artifact.signature
    records = list(given_records(rows, shape.inputs, shape.kind))
    whole = whole_rows(records, shape.inputs, shape.kind)
    columns = AnswerColumns(kept_columns(keep, _union(records), "the table"), top_k)
    examples = [read_row(each.values, shape.inputs, shape.kind, each.source) for each in whole]
    for row in examples:
        not_blank(row.inputs, row.source)
    answers = artifact.answer(examples, progress=default_progress())
    return [columns.values(artifact, record, answer) for record, answer in zip(records, answers, strict=True)]


def _union(records: Iterable[Record]) -> dict[str, None]:
    return {name: None for record in records for name in record.values}


# ---- files


def predict_file(
    artifact: Artifact,
    data: Path,
    out: Path | None,
    *,
    fingerprint: str,
    form: FileFormat | None = None,
    keep: str = "all",
    top_k: int = 0,
    as_list: bool = False,
    resume: bool = False,
    progress: Progress = QUIET,
) -> Predicted:
    """Answer the rows of `data` as JSON lines, to `out` or stdout: the user's columns, and the answer's beside them.

    The file is read once before the first answer, so that a broken row is an error at once, and once more to answer it.

    Args:
        artifact: the artifact that answers.
        data: a file that `read_rows` reads, or `hf:org/name`. All but JSON and Excel are streamed.
        out: the file of the answers; None for stdout.
        fingerprint: identifies the artifact, for resuming.
        form: how `data` is written; what is `auto` is recognized.
        keep: the columns of the rows to keep: `all`, `none`, or names with commas between them.
        top_k: how many of the most probable labels to list under `top`.
        as_list: write one JSON list to stdout instead of lines.
        resume: keep the complete lines of `out`, cut off an incomplete last one, and continue after them.
        progress: reports every batch.

    Raises:
        DataError: a row cannot be read or lacks an input column, or a column to keep is missing or holds bytes.
        ConfigError: `out` exists and `resume` is not given, belongs to other rows, another artifact or other columns,
            or another process writes it; or `top_k` is asked of an artifact without probabilities.
        Exception: what `answer_batch` raises; all earlier batches are written.
    """
    asked = ask(artifact, data, form, keep=keep, top_k=top_k)
    rows, columns, total, form = asked.rows, asked.columns, asked.total, asked.form
    failed = FailedRows(columns)
    if out is None:
        lines: IO[str] = _JsonList(sys.stdout) if as_list else sys.stdout  # type: ignore[assignment]
        done = _answer_rows(artifact, rows, columns, lines, 0, total, failed, progress)
        if isinstance(lines, _JsonList):
            lines.close()
        return replace(done, format=form.describe(), columns=columns)
    check_origin(out, origin_file(out), asked.origin(fingerprint), resume=resume)
    with only_writer(out) as target:
        before = _whole_lines(target, failed)
        if before > total:
            raise ConfigError(
                "resume-mismatch", f"{out} holds {before} lines, but {data} has {total} rows",
                hint="something else was written to it: choose another --out",
            )  # fmt: skip
        done = _answer_rows(artifact, rows, columns, target, before, total, failed, progress)
    return replace(done, format=form.describe(), columns=columns)


@dataclass(frozen=True, slots=True)
class Asked:
    """The rows of a file that are to be answered, checked: how many, how they are written, what is kept of them.

    Each row comes as the user's table has it, and with the input columns that only other rows have.
    """

    rows: Callable[[], Iterator[tuple[Record, Record]]]
    columns: AnswerColumns
    total: int
    form: FileFormat
    content: str  # a hash of all rows

    def origin(self, fingerprint: str) -> dict[str, Any]:
        """What a resumed run must have in common with the first one, as JSON values."""
        values = {"columns": asdict(self.columns), "form": asdict(self.form)}
        origin = {"data_sha256": self.content, "artifact": fingerprint, **values}
        same: dict[str, Any] = json.loads(json.dumps(origin))
        return same


def ask(artifact: Artifact, data: Path, form: FileFormat | None, *, keep: str, top_k: int) -> Asked:
    """Read a file once: check and count its rows; see `predict_file` for the arguments and errors."""
    form = detected(data, form or FileFormat())
    rows = partial(_with_whole, artifact, partial(read_rows, data, form))
    shape, names, content = artifact.signature, dict[str, None](), sha256()
    wanted, lacking, total = AnswerColumns(_named(keep)), None, 0
    for total, (record, whole) in enumerate(rows(), start=1):  # noqa: B007
        read_inputs(whole.values, shape.inputs, shape.kind, record.source)
        cells = "\0".join(map(_hashable, (record.source, *record.values, *record.values.values())))
        content.update(cells.encode(errors="surrogatepass"))
        names |= dict.fromkeys(record.values)
        columns = AnswerColumns(tuple(record.values)) if keep == "all" else wanted
        try:
            columns.kept_values(record)
        except DataError as error:
            if error.code != "missing-column":
                raise
            lacking = lacking or error
    columns = AnswerColumns(kept_columns(keep, names, str(data)), top_k)
    if lacking is not None:
        raise lacking
    return Asked(rows, columns, total, form, content.hexdigest())


def _with_whole(artifact: Artifact, read: Callable[[], Iterator[Record]]) -> Iterator[tuple[Record, Record]]:
    given, copies = tee(read())
    return zip(given, whole_rows(copies, artifact.signature.inputs, artifact.signature.kind), strict=True)


def _hashable(cell: Any) -> str:
    try:
        return json_text(cell)
    except CellError:  # bytes, an image: no column that is read
        return type(cell).__name__


class _JsonList:
    """Turns JSON lines into one JSON list while they are written."""

    def __init__(self, out: IO[str]) -> None:
        self._out, self._between = out, "["

    def writelines(self, lines: Sequence[str]) -> None:
        for line in lines:
            self._out.write(f"{self._between}\n{line.rstrip()}")
            self._between = ","

    def flush(self) -> None:
        self._out.flush()

    def close(self) -> None:
        self._out.write("[]\n" if self._between == "[" else "\n]\n")


def _answer_rows(
    artifact: Artifact, read: Callable[[], Iterator[tuple[Record, Record]]], columns: AnswerColumns, target: IO[str],
    done: int, total: int, failed: FailedRows, progress: Progress,
) -> Predicted:  # fmt: skip
    skip = done % BATCH  # an interrupted batch is answered again whole, since its rows affect each other's last digits
    rows = islice(read(), done - skip, None)
    answered, counts = 0, Counter[str]()
    progress.start("answering", total - done)
    while done < total and (batch := list(islice(rows, BATCH))):
        for answer in _write(artifact, batch, columns, target, skip, failed):
            counts.update(overflows(answer))
        answered += len(batch) - skip
        progress.advance(len(batch) - skip)
        skip = 0
    progress.finish()
    return failed.told(Predicted(total, answered, **dict[str, Any](counts)))


def overflows(answer: Answer | str) -> dict[str, int]:
    """What was left out of the prompt of an answer, as `Predicted` counts it."""
    if isinstance(answer, str):
        return {}
    left_out = {
        "dropped_demonstrations": answer.dropped_demonstrations, "dropped_passages": answer.dropped_passages,
        "shortened_passages": answer.shortened_passages, "truncated_rows": int(bool(answer.truncated_characters)),
    }  # fmt: skip
    return {"overflow_rows": int(any(left_out.values())), **left_out}


def _write(
    artifact: Artifact, batch: Sequence[tuple[Record, Record]], columns: AnswerColumns, target: IO[str], skip: int,
    failed: FailedRows,
) -> list[Answer | str]:  # fmt: skip
    """Answer a batch, and write its answers to disk except the first `skip`."""
    shape = artifact.signature
    examples = [read_row(whole.values, shape.inputs, shape.kind, whole.source) for _, whole in batch]
    answers = answer_batch(artifact, examples)[skip:]
    lines = [
        json_text(columns.values(artifact, record, answer)) + "\n"
        for (record, _), answer in zip(batch[skip:], answers, strict=True)
    ]
    for line in lines:
        failed.see(line)
    if target is sys.stdout or isinstance(target, _JsonList):
        target.writelines(lines)
        target.flush()
        return answers
    file = Path(target.name)
    with writing(file.name, file.parent, "free some space, then go on with the same command and --resume"):
        target.writelines(lines)
        target.flush()
        os.fsync(target.fileno())
    return answers


def sources(answer: Answer) -> dict[str, Any]:
    """An answer over documents as plain values: its text as written, its citations, and whether it is a refusal."""
    cited = [citation.as_dict() for citation in answer.citations]
    return {"written": answer.written, "citations": cited, "refused": answer.refused}


def answer_values(artifact: Artifact, answer: Answer) -> dict[str, Any]:
    """An answer as plain values, with tool calls, abstention and sources for the artifacts that have them."""
    values = {"output": answer.text, "confidence": answer.confidence, **trace(answer.steps, answer.stopped)}
    if artifact.decoder.abstains:
        values["abstained"] = answer.abstained
    if answer.reasoning:
        values["reasoning"] = answer.reasoning
    if answer.truncated_characters:
        values["truncated_characters"] = answer.truncated_characters
    return {**values, **sources(answer)} if artifact.retriever is not None else values


# ---- resuming


def origin_file(out: Path) -> Path:
    """Name the file beside the answers that identifies their rows and artifact."""
    return out.with_name(out.name + ".origin.json")


def parts_folder(out: Path) -> Path:
    """Name the folder beside the answers that holds their parts until all are done; see `rung.cluster.parts`."""
    return out.with_name(out.name + ".parts")


def check_origin(out: Path, file: Path, origin: dict[str, Any], *, resume: bool) -> None:
    """Compare the origin in `file` with that of the run that wrote `out`, or record that of a new run."""
    if not out.exists():
        write_atomically(file, json.dumps(origin, indent=1))
        return
    if not resume:
        raise ConfigError("file-exists", f"{out} exists", hint="continue it with --resume, or remove it first")
    if not file.is_file():
        raise ConfigError(
            "resume-mismatch", f"{out} cannot be resumed: {file.name} is missing",
            hint="choose another --out, or remove it first",
        )  # fmt: skip
    before = read_object(file)
    for key, what in (
        ("data_sha256", "the rows"), ("artifact", "the artifact"), ("columns", "--keep or --top-k"),
        ("form", "--encoding or --separator"),
    ):  # fmt: skip
        if before.get(key) != origin[key]:
            raise ConfigError(
                "resume-mismatch", f"{out} was started with other contents of {what}",
                hint="resume with the same files, or choose another --out",
            )  # fmt: skip


@contextmanager
def only_writer(out: Path) -> Iterator[IO[str]]:
    """Open `out` for one process only, since two would mix their lines."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out, "a+", encoding="utf-8", opener=_private) as target:
        lock_alone(target, f"another process is writing {out}", "wait for it, or choose another --out")
        yield target


def _private(file: str, flags: int) -> int:
    return os.open(file, flags, 0o600)  # answers are as private as their rows


def _whole_lines(target: IO[str], failed: FailedRows) -> int:
    """Count the complete lines of a file, and those that failed; cut off an incomplete last one."""
    count = end = 0
    with open(target.fileno(), "rb", closefd=False) as lines:
        lines.seek(0)
        for line in lines:
            if not line.endswith(b"\n"):
                break
            count, end = count + 1, end + len(line)
            failed.see(line.decode())
    target.truncate(end)
    target.seek(end)
    return count


def rows_of(artifact: Artifact, folder: Path, data: Path | None, least: int = 1) -> list[dict[str, Any]]:
    """Read rows to show prompts of: from a file, or those that the climb answered with the artifact, from its `folder`.

    Raises:
        ConfigError: `too-few-rows`: there are none.
        DataError: `too-few-rows`: there are fewer than `least`.
    """
    answered = folder.resolve().parent / "predictions.jsonl"
    if data is not None:
        rows = [whole.values for _, whole in _with_whole(artifact, partial(read_rows, data))]
    elif answered.is_file():
        lines = sealed_lines(read_bytes(answered, unreadable(answered)), answered)
        rows = [line["inputs"] for line in lines]
    else:
        hint = "name a file with rows: --data rows.csv"
        raise ConfigError("too-few-rows", "there are no rows to show a prompt of", hint=hint)
    if len(rows) < least:
        message = f"row {least} was asked for, and there are {len(rows)}"
        raise DataError("too-few-rows", message, hint="give a lower --row")
    return rows
