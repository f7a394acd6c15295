"""Answer a whole file: in bounded memory, line by line, going on where an earlier run stopped.

Rows are read, answered and written in small batches, each synced to disk, so a kill costs at most one of them. Beside
the answers stands `OUT.origin.json`, written before the first line: the hashes of the rows' file and of the artifact. A
resumed run must have the same, or its lines would not belong together.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from rung.agents.tools import trace
from rung.artifact.artifact import Artifact
from rung.artifact.decoder import Answer
from rung.data.examples import read_inputs
from rung.data.rows import Record
from rung.data.sources import read_rows
from rung.errors import ConfigError, DataError
from rung.models.cache import file_sha256
from rung.progress import QUIET, Progress

BATCH = 64  # rows answered together and written before the next are read


@dataclass(frozen=True, slots=True)
class Predicted:
    """What a run did.

    Attributes:
        rows: rows of the file.
        answered: those answered by this run; the others were there already.
        overflow_rows: of those, rows whose prompts fit only after something was left out.
        dropped_demonstrations, dropped_passages: how many were left out, all rows together.
        shortened_passages: how many passages were cut.
    """

    rows: int
    answered: int
    overflow_rows: int = 0
    dropped_demonstrations: int = 0
    dropped_passages: int = 0
    shortened_passages: int = 0

    def __str__(self) -> str:
        text = f"{self.answered} of {self.rows} rows answered"
        if self.answered < self.rows:
            text += f", {self.rows - self.answered} were there already"
        if self.overflow_rows:
            passages = f"{self.dropped_passages} passages were left out and {self.shortened_passages} cut"
            demonstrations = f"{self.dropped_demonstrations} demonstrations were left out of them"
            what = demonstrations if self.dropped_demonstrations else passages
            text += f"; {self.overflow_rows} prompts were longer than the model reads: {what}"
        return text


def predict_file(
    artifact: Artifact,
    data: Path,
    out: Path | None,
    *,
    fingerprint: str,
    resume: bool = False,
    progress: Progress = QUIET,
) -> Predicted:
    """Answer the rows of `data` as JSON lines {"row", "output", "confidence"}, to `out` or stdout.

    Lines of an artifact that may abstain also tell whether it did: "abstained".

    The file is read once before the first answer, so that a broken row is an error at once.

    Args:
        artifact: what answers.
        data: CSV, TSV, JSON, JSONL or Parquet. All but JSON are streamed.
        out: where the answers go; None for stdout.
        fingerprint: tells the artifact from any other, for resuming.
        resume: keep the whole lines that `out` holds, cut off a torn last one, and go on behind them.
        progress: told of every batch.

    Raises:
        DataError: a row cannot be read or lacks an input column.
        ConfigError: `out` exists and `resume` is not given, belongs to other rows or another artifact, or another
            process writes it.
    """
    total = _check_rows(artifact, data)
    if out is None:
        return _answer_rows(artifact, data, sys.stdout, 0, total, progress)
    _check_origin(out, {"data_sha256": file_sha256(data), "artifact": fingerprint}, resume=resume)
    with _locked(out) as target:
        done = _whole_lines(target)
        if done > total:
            raise ConfigError(
                "resume-mismatch", f"{out} holds {done} lines, but {data} has {total} rows",
                hint="something else was written to it: choose another --out",
            )  # fmt: skip
        return _answer_rows(artifact, data, target, done, total, progress)


def _check_rows(artifact: Artifact, data: Path) -> int:
    """Read every row once; return their number."""
    count = 0
    for count, record in enumerate(read_rows(data), start=1):  # noqa: B007
        read_inputs(record.values, artifact.signature.inputs, artifact.signature.kind, record.source)
    return count


def _answer_rows(
    artifact: Artifact, data: Path, target: IO[str], done: int, total: int, progress: Progress
) -> Predicted:
    there = done % BATCH  # of a batch that was cut off: it is answered again whole, as rows together decide last digits
    rows = islice(read_rows(data), done - there, None)
    overflow_rows = demonstrations = passages = shortened = answered = 0
    progress.start("answering", total - done)
    for batch in _batched(rows) if done < total else ():
        for answer in _write(artifact, batch, target, there):
            demonstrations += answer.dropped_demonstrations
            passages += answer.dropped_passages
            shortened += answer.shortened_passages
            overflow_rows += bool(answer.dropped_demonstrations or answer.dropped_passages or answer.shortened_passages)
        answered += len(batch) - there
        progress.advance(len(batch) - there)
        there = 0
    progress.finish()
    return Predicted(total, answered, overflow_rows, demonstrations, passages, shortened)


def _batched(rows: Iterator[Record]) -> Iterator[list[Record]]:
    while batch := list(islice(rows, BATCH)):
        yield batch


def _write(artifact: Artifact, batch: Sequence[Record], target: IO[str], there: int) -> list[Answer]:
    """Answer a batch, make permanent what follows its first `there` answers, and return that."""
    answers = artifact.predict([record.values for record in batch])[there:]
    new = zip(batch[there:], answers, strict=True)
    lines = [
        json.dumps({"row": row.source, **answer_values(artifact, answer)}, ensure_ascii=False) + "\n"
        for row, answer in new
    ]
    target.write("".join(lines))
    target.flush()
    if target is not sys.stdout:
        os.fsync(target.fileno())
    return answers


def sources(answer: Answer) -> dict[str, Any]:
    """Return what an answer from documents says of them: as written, what it cites, and whether it is a refusal."""
    cited = [citation.as_dict() for citation in answer.citations]
    return {"written": answer.written, "citations": cited, "refused": answer.refused}


def answer_values(artifact: Artifact, answer: Answer) -> dict[str, Any]:
    """An answer as plain values, with what only some artifacts have: tool calls, abstention, sources."""
    values = {"output": answer.text, "confidence": answer.confidence, **trace(answer.steps, answer.stopped)}
    if artifact.decoder.abstains:
        values["abstained"] = answer.abstained
    return {**values, **sources(answer)} if artifact.retriever is not None else values


# ---- resuming


def origin_file(out: Path) -> Path:
    """Return the file beside the answers that says what they are answers to."""
    return out.with_name(out.name + ".origin.json")


def _check_origin(out: Path, origin: dict[str, str], *, resume: bool) -> None:
    """Compare with the run that wrote `out`, or note where a new one begins."""
    file = origin_file(out)
    if not out.exists():
        scratch = file.with_name(file.name + ".tmp")
        with scratch.open("w", encoding="utf-8") as note:
            json.dump(origin, note, indent=1)
            note.flush()
            os.fsync(note.fileno())
        os.replace(scratch, file)  # noqa: PTH105
        return
    if not resume:
        raise ConfigError("file-exists", f"{out} exists", hint="go on with --resume, or remove it first")
    if not file.is_file():
        raise ConfigError(
            "resume-mismatch", f"{out} cannot be gone on with: {file.name} is missing, which says what it answers",
            hint="choose another --out, or remove it first",
        )  # fmt: skip
    before = json.loads(file.read_text(encoding="utf-8"))
    for key, what in (("data_sha256", "the rows"), ("artifact", "the artifact")):
        if before.get(key) != origin[key]:
            raise ConfigError(
                "resume-mismatch", f"{out} was begun with other contents of {what}",
                hint="resume with the same files, or choose another --out",
            )  # fmt: skip


@contextmanager
def _locked(out: Path) -> Iterator[IO[str]]:
    """Open `out` for one process: two that append would mix their lines."""
    with out.open("a+", encoding="utf-8") as target:
        try:
            fcntl.flock(target, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as busy:
            raise ConfigError(
                "file-in-use", f"another process is writing {out}", hint="wait for it, or choose another --out"
            ) from busy
        yield target


def _whole_lines(target: IO[str]) -> int:
    """Count the complete lines of a file and cut off a torn last one."""
    count = end = 0
    with open(target.fileno(), "rb", closefd=False) as lines:
        lines.seek(0)
        for line in lines:
            if not line.endswith(b"\n"):
                break
            count, end = count + 1, end + len(line)
    target.truncate(end)
    target.seek(end)
    return count


def rows_of(folder: Path, data: Path | None, least: int = 1) -> list[dict[str, Any]]:
    """Rows to show prompts of: those of a file, or those that the climb answered with the artifact in `folder`.

    Args:
        folder: the artifact's folder.
        data: the file, if any.
        least: how many rows there must be.

    Raises:
        ConfigError: `too-few-rows`: there are none.
        DataError: `too-few-rows`: there are fewer than `least`.
    """
    answered = folder.resolve().parent / "predictions.jsonl"
    if data is not None:
        rows = [record.values for record in read_rows(data)]
    elif answered.is_file():
        rows = [json.loads(line)["inputs"] for line in answered.read_text(encoding="utf-8").splitlines()]
    else:
        hint = "name a file with rows: --data rows.csv"
        raise ConfigError("too-few-rows", "there are no rows to show a prompt of", hint=hint)
    if len(rows) < least:
        message = f"row {least} was asked for, and there are {len(rows)}"
        raise DataError("too-few-rows", message, hint="give a lower --row")
    return rows
