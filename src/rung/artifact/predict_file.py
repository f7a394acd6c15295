"""Answer a whole file in bounded memory, and resume an earlier run.

Rows are read, answered and written in small batches, each synced to disk, so a kill costs at most one batch. Before the
first line, `OUT.origin.json` is written beside the answers, with the hashes of the rows' file and of the artifact. A
resumed run must have the same hashes.
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
from rung.models.cache import file_sha256, write_atomically
from rung.progress import QUIET, Progress

BATCH = 64  # rows answered together and written before the next are read


@dataclass(frozen=True, slots=True)
class Predicted:
    """The counts of a run.

    Attributes:
        rows: rows of the file.
        answered: rows that this run answered; the others were already answered.
        overflow_rows: answered rows whose prompts fit only after something was left out.
        dropped_demonstrations, dropped_passages: how many were left out in total.
        shortened_passages: how many passages were cut in total.
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
            text += f", {self.rows - self.answered} were already answered"
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

    Lines of an artifact that may abstain also have "abstained". The file is read once before the first answer, so that
    a broken row is an error at once.

    Args:
        artifact: the artifact that answers.
        data: CSV, TSV, JSON, JSONL or Parquet. All but JSON are streamed.
        out: the file of the answers; None for stdout.
        fingerprint: identifies the artifact, for resuming.
        resume: keep the complete lines of `out`, cut off an incomplete last one, and continue after them.
        progress: reports every batch.

    Raises:
        DataError: a row cannot be read or lacks an input column.
        ConfigError: `out` exists and `resume` is not given, belongs to other rows or another artifact, or another
            process writes it.
    """
    total = 0
    for total, record in enumerate(read_rows(data), start=1):  # noqa: B007
        read_inputs(record.values, artifact.signature.inputs, artifact.signature.kind, record.source)
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


def _answer_rows(
    artifact: Artifact, data: Path, target: IO[str], done: int, total: int, progress: Progress
) -> Predicted:
    skip = done % BATCH  # an interrupted batch is answered again whole, since its rows affect each other's last digits
    rows = islice(read_rows(data), done - skip, None)
    overflow_rows = demonstrations = passages = shortened = answered = 0
    progress.start("answering", total - done)
    while done < total and (batch := list(islice(rows, BATCH))):
        for answer in _write(artifact, batch, target, skip):
            demonstrations += answer.dropped_demonstrations
            passages += answer.dropped_passages
            shortened += answer.shortened_passages
            overflow_rows += bool(answer.dropped_demonstrations or answer.dropped_passages or answer.shortened_passages)
        answered += len(batch) - skip
        progress.advance(len(batch) - skip)
        skip = 0
    progress.finish()
    return Predicted(total, answered, overflow_rows, demonstrations, passages, shortened)


def _write(artifact: Artifact, batch: Sequence[Record], target: IO[str], skip: int) -> list[Answer]:
    """Answer a batch, and write its answers to disk except the first `skip`."""
    answers = artifact.predict([record.values for record in batch])[skip:]
    for row, answer in zip(batch[skip:], answers, strict=True):
        values = {"row": row.source, **answer_values(artifact, answer)}
        target.write(json.dumps(values, ensure_ascii=False) + "\n")
    target.flush()
    if target is not sys.stdout:
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
    return {**values, **sources(answer)} if artifact.retriever is not None else values


# ---- resuming


def origin_file(out: Path) -> Path:
    """Name the file beside the answers that identifies their rows and artifact."""
    return out.with_name(out.name + ".origin.json")


def _check_origin(out: Path, origin: dict[str, str], *, resume: bool) -> None:
    """Compare with the run that wrote `out`, or record the origin of a new run."""
    file = origin_file(out)
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
    before = json.loads(file.read_text(encoding="utf-8"))
    for key, what in (("data_sha256", "the rows"), ("artifact", "the artifact")):
        if before.get(key) != origin[key]:
            raise ConfigError(
                "resume-mismatch", f"{out} was started with other contents of {what}",
                hint="resume with the same files, or choose another --out",
            )  # fmt: skip


@contextmanager
def _locked(out: Path) -> Iterator[IO[str]]:
    """Open `out` for one process only, since two would mix their lines."""
    with out.open("a+", encoding="utf-8") as target:
        try:
            fcntl.flock(target, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as busy:
            raise ConfigError(
                "file-in-use", f"another process is writing {out}", hint="wait for it, or choose another --out"
            ) from busy
        yield target


def _whole_lines(target: IO[str]) -> int:
    """Count the complete lines of a file and cut off an incomplete last one."""
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
    """Read rows to show prompts of: from a file, or those that the climb answered with the artifact in `folder`.

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
