"""Batch prediction in parts: a part is a job with the rows of many batches, and its result a file of answers.

    OUT.parts/origin.json              which rows and artifact, and how many rows a part has
    OUT.parts/rows-00000007.jsonl      the rows of a part that is not done: what the model reads, and what is kept
    OUT.parts/JOB/.../answers.jsonl    the answers of a part, with a manifest once it is done

The last two are below `--jobs` where it is given, in a folder for this OUT.

Whatever runs the parts, they are the same, so that another executor finishes what one began. At the end they are joined
in order to the file that `rung predict` writes in one process.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rung.artifact.artifact import Artifact
from rung.artifact.predict_file import (
    BATCH,
    AnswerColumns,
    Asked,
    FailedRows,
    Predicted,
    answer_batch,
    ask,
    check_origin,
    only_writer,
    origin_file,
    overflows,
    parts_folder,
)
from rung.cluster.executor import Dispatcher, Executor
from rung.cluster.job import Job, Storage, fetch, own_name, result_of, shared
from rung.data.cells import json_text
from rung.data.examples import read_inputs
from rung.data.rows import Example, Record, example_id, hash_of
from rung.data.sources import FileFormat
from rung.errors import ConfigError, MachineError
from rung.models.files import replacing, write_atomically
from rung.progress import QUIET, Progress
from rung.yamlfile import read_object

ANSWERS = "answers.jsonl"
ROWS = 157 * BATCH  # of a part, about 10,000: whole batches, since the rows of a batch affect each other's last digits
EACH = 4  # parts that every worker gets at least, where there are fewer rows
LAST = 2  # parts at the end that are cut into quarters, so that no worker waits long for another
AHEAD = 2  # parts for each worker whose rows are written before it is free


def predict_in_parts(
    artifact: Artifact, folder: Path, data: Path, out: Path, executor: Executor, *, fingerprint: str,
    form: FileFormat | None = None, keep: str = "all", top_k: int = 0, resume: bool = False, jobs: str = "",
    progress: Progress = QUIET,
) -> Predicted:  # fmt: skip
    """Answer the rows of `data` in parts that an executor runs; see `rung.artifact.predict_file.predict_file`.

    Args:
        artifact: the artifact.
        folder: where it is.
        data: the file of the rows.
        out: the file of the answers, which appears when all parts are done.
        executor: what runs the parts; it is closed, however this ends.
        fingerprint: identifies the artifact.
        form: how `data` is written.
        keep: the columns of the rows to keep.
        top_k: how many of the most probable labels are listed.
        resume: run only the parts that are missing.
        jobs: where jobs and their results are, if not beside the answers: an address that all workers reach.
        progress: reports every part.

    Raises:
        ConfigError: as `predict_file`.
        RungError: a part failed twice; the others are kept.
    """
    with closing(executor):  # however it ends
        home = parts_folder(out)
        place = Storage(jobs) / own_name(out) if jobs else Storage(home)
        if out.exists() and not (resume and home.exists()):
            hint = "it was not made in parts: go on without --workers, or remove it" if resume else "remove it first"
            raise ConfigError("file-exists", f"{out} exists", hint=hint)
        asked = ask(artifact, data, form, keep=keep, top_k=top_k)
        origin, noted = asked.origin(fingerprint), home / "origin.json"
        if out.exists():  # an earlier run joined the parts, and was killed before it had removed them
            check_origin(out, origin_file(out), origin, resume=True)
            _clean_up(home, place, progress)
            return _told(Predicted(asked.total, 0), asked, out)
        check_origin(home, noted, origin, resume=resume)
        dispatcher = Dispatcher(executor, place)
        home.mkdir(parents=True, exist_ok=True)
        if (size := read_object(noted).get("rows")) is None:
            size = _part_size(asked.total, dispatcher.slots)
            write_atomically(noted, json.dumps({**origin, "rows": size}, indent=1))
        with only_writer(home / "lock"):
            shape = artifact.signature
            options = {"columns": asdict(asked.columns)}
            run = _Parts(dispatcher, place, shared(place, folder, fingerprint), fingerprint, options, progress)
            lines = (_line(row, whole, shape.inputs, shape.kind, asked.columns) for row, whole in asked.rows())
            progress.start("answering", asked.total)
            done = run.all(lines, sizes(asked.total, size))
            progress.finish()
            write_atomically(origin_file(out), json.dumps(origin, indent=1))
            answered = _join(done, place, out)
    if answered != asked.total:
        raise MachineError("internal-error", f"{answered} of {asked.total} rows are in {out}")
    _clean_up(home, place, progress)
    return _told(Predicted(asked.total, run.answered, **dict[str, Any](run.counts)), asked, out)


def _told(done: Predicted, asked: Asked, out: Path) -> Predicted:
    """The counts of a run with what its file tells: the rows that failed, also in earlier runs."""
    failed = FailedRows(asked.columns)
    with out.open(encoding="utf-8") as lines:
        for line in lines:
            failed.see(line)
    return replace(failed.told(done), format=asked.form.describe(), columns=asked.columns)


def _clean_up(home: Path, place: Storage, progress: Progress) -> None:
    """Remove the parts once they are joined; what cannot be removed is said, since the answers are there."""
    place.remove_or_say(progress)
    Storage(home).remove_or_say(progress)


def _part_size(total: int, workers: int) -> int:
    """Rows of a part: about 10,000, fewer where not every worker would have several; whole batches."""
    batches = -(-total // (BATCH * EACH * workers))
    return max(BATCH, min(ROWS, BATCH * batches))


def sizes(total: int, size: int) -> Iterator[int]:
    """The rows of each part, whole batches: `size`, and a quarter of it at the end."""
    while total > 0:
        rows = size if total > LAST * size else max(BATCH, size // BATCH // 4 * BATCH)
        yield min(rows, total)
        total -= rows


def _line(record: Record, whole: Record, inputs: Sequence[str], kind: str, columns: AnswerColumns) -> str:
    values = read_inputs(whole.values, inputs, kind, record.source)
    return json.dumps([record.source, values, columns.kept_values(record)], ensure_ascii=False) + "\n"


class _Parts:
    """Writes the rows of a part when a worker is about to be free, and collects the results."""

    def __init__(
        self, dispatcher: Dispatcher, place: Storage, artifact: str, fingerprint: str, options: Mapping[str, Any],
        progress: Progress,
    ) -> None:  # fmt: skip
        self.dispatcher, self.place, self.progress = dispatcher, place, progress
        self.artifact, self.fingerprint, self.options = artifact, fingerprint, options
        self.keys: list[str] = []
        self.answered, self.counts = 0, Counter[str]()

    def all(self, lines: Iterator[str], rows_of_parts: Iterator[int]) -> list[str]:
        """Run all parts; return the keys of their jobs in order."""
        waiting, first = list[str](), 0
        for size in rows_of_parts:
            part = list(islice(lines, size))
            text, count = "".join(part), len(part)
            rows = self.place / f"rows-{len(self.keys):08d}.jsonl"
            job = Job(
                kind="predict", out="", artifact=self.artifact, artifact_fingerprint=self.fingerprint, data=rows.uri,
                data_fingerprint=hash_of(text, 64), options={**self.options, "first": first, "rows": count},
            )  # fmt: skip
            first += count
            self.keys.append(job.id)
            if self.dispatcher.done(job):
                self.progress.advance(count)
                continue
            rows.write(text)
            waiting.append(self.dispatcher.send(job))
            if len(waiting) >= AHEAD * self.dispatcher.slots:
                waiting = self._collect(waiting)
        while waiting:
            waiting = self._collect(waiting)
        return self.keys

    def _collect(self, waiting: list[str]) -> list[str]:
        """Wait for a part; return those that are still out."""
        self.dispatcher.wait(waiting, lambda: self.progress.advance(0, self.dispatcher.note), one=True)
        for key in [key for key in waiting if self.dispatcher.over(key)]:
            values = dict(self.dispatcher.result(key).values)
            rows = values.pop("rows")
            self.answered += rows
            self.counts.update(values)
            Storage(self.dispatcher.job(key).data).remove()
            self.progress.advance(rows)
        return [key for key in waiting if not self.dispatcher.over(key)]


def _join(keys: Sequence[str], place: Storage, out: Path) -> int:
    """Write the answers of all parts into one file, in order; return their number."""
    count = 0
    with replacing(out, private=True) as scratch, scratch.open("wb") as whole:
        for key in keys:
            result = result_of(place / key)
            assert result is not None
            with (
                TemporaryDirectory(prefix="rung-part-") as copies,
                (fetch(place / key, result, Path(copies)) / ANSWERS).open("rb") as lines,
            ):
                for line in lines:
                    whole.write(line)
                    count += 1
    return count


# ---- on the worker


def answer_part(
    artifact: Artifact, rows: Storage, wanted: str, out: Path, options: Mapping[str, Any], progress: Progress
) -> dict[str, int]:
    """Answer the rows of a part into a file; return their number, and what `Predicted` counts.

    `wanted` is the fingerprint of the rows; empty where it is not compared.
    """
    if (text := rows.read()) is None or wanted not in ("", hash_of(text, 64)):
        problem = f"{rows.uri} {'is missing' if text is None else 'has other rows than when the job was made'}"
        raise MachineError("storage-refused", problem, hint="run the same command with --resume")
    columns = AnswerColumns(tuple(options["columns"]["kept"]), options["columns"]["top_k"])
    lines, counts = iter(text.split("\n")[:-1]), Counter[str]()
    with out.open("w", encoding="utf-8") as target:
        while batch := [json.loads(line) for line in islice(lines, BATCH)]:
            examples = [Example(example_id(inputs), inputs, (), source) for source, inputs, _ in batch]
            for (source, _, kept), answer in zip(batch, answer_batch(artifact, examples), strict=True):
                counts.update(overflows(answer))
                target.write(json_text(columns.joined(source, kept, columns.answered(artifact, answer))) + "\n")
            counts["rows"] += len(batch)
            progress.advance(len(batch))
    return dict(counts)
