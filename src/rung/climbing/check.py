"""What `rung check` finds out about a task without running its model: what makes a climb meaningless, what misleads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from math import ceil
from typing import Any

from rung.agents.tools import check_function, function_permit, function_tool
from rung.artifact.artifact import DEFAULT_MAX_TOKENS, Artifact
from rung.artifact.lexical import vectorizer
from rung.artifact.rendering import refused_row
from rung.climbing.trust import permits_of
from rung.data.json_schema import check_schema
from rung.data.loading import found_in
from rung.data.preferences import figures
from rung.data.quality import places
from rung.data.rows import Data, Document, Example
from rung.data.spec import ENCODER, Corpus
from rung.engines.base import Constraint
from rung.engines.constraints import check_constraint
from rung.engines.encoders import read_recipe
from rung.engines.local import LocalModel
from rung.engines.opening import open_encoder
from rung.errors import ConfigError, DataError, MachineError, install_command
from rung.evaluation.metrics.registry import get_metric
from rung.evaluation.racing import race_order
from rung.evaluation.scoring import validate_references
from rung.models.checkpoint import ModelKind, verify
from rung.models.messages import Messages, for_template
from rung.models.reference import ModelFiles, is_cached, is_endpoint, resolve
from rung.models.thinking import answer_beginning
from rung.models.tokenizer import Tokenizer
from rung.retrieval.documents import Listing, list_sources, read_documents, refuse_measured_rows
from rung.rungs import build
from rung.task import Task
from rung.training.config import BLOCK_TOKENS
from rung.training.examples import TOO_LONG, TrainingReport, as_learned, marked, text_blocks, tokenize
from rung.user_code import allowed, missing

SIMILAR = 0.95  # cosine of two inputs' vectors, from which they are near-duplicates
LIKE = 0.5  # cosine of their TF-IDF vectors, from which the encoder is asked
ALIKE = 0.9  # the same, where there is no encoder to ask
TESTED_ROWS, OTHER_ROWS = 1000, 5000  # rows looked at for near-duplicates, at most
CHARACTERS, ALL_CHARACTERS = 1000, 1_500_000  # of a text, and of all texts, likewise: a few seconds
PUNCTUATION = str.maketrans(dict.fromkeys(".,;:!?'\"()", " "))
DOCUMENT_BYTES = 10_000_000  # of documents that are searched for the measured rows, at most: a few seconds
NAMED = 5  # files that are left out
ROOM = 16  # tokens of a label, which is scored


@dataclass(frozen=True, slots=True)
class TaskCheck:
    """What a check found."""

    data: Data  # the rows, with a report on them
    unit: str  # of the lengths in the report, `tokens` or `characters`
    problems: Sequence[str]  # what makes a climb meaningless
    warnings: Sequence[str]  # what would mislead
    notes: Sequence[str] = ()  # what is good to know
    training: Mapping[str, Any] = field(default_factory=dict)  # what tuning would learn from: `rows` and `text`

    @property
    def verdict(self) -> str:
        """Count what was found: `2 problems, 1 warning`, or `fine`."""
        counts = ((len(self.problems), "problem"), (len(self.warnings), "warning"))
        return ", ".join(f"{n} {word}{'s' if n > 1 else ''}" for n, word in counts if n) or "fine"


def validate_task(task: Task) -> None:
    """Check the metric, tools, rungs and settings that a task names; a ConfigError has the place in the task file."""
    if task.metric is not None:
        with task.located("metric"):
            metric = get_metric(task.metric_name, task.folder, task.metric_settings)
            if task.output.kind not in metric.kinds:
                raise ConfigError(
                    "bad-value", f"the metric {metric.name} does not suit `kind: {task.output.kind}`",
                    hint=f"it scores answers of kind {' or '.join(metric.kinds)}",
                )  # fmt: skip
    if isinstance(task.output.json_schema, dict):
        with task.located("output", "schema"):
            check_schema(task.output.json_schema, guaranteed=not is_endpoint(task.model))
    if task.output.regex is not None and not is_endpoint(task.model):
        with task.located("output", "regex"):
            check_constraint(Constraint("regex", task.output.regex))
    for number, tool in enumerate(task.tools):
        if isinstance(tool, str):
            with task.located("tools", number):
                if allowed(function_permit(tool, task.folder)):
                    function_tool(tool, task.folder)
                else:  # nothing of a file from elsewhere is imported to check it
                    check_function(tool, task.folder)
    for key, chosen in (("rungs", task.constraints.rungs), ("exclude", task.constraints.exclude)):
        for number, name in enumerate(chosen or ()):
            if name != "zero-shot":  # which is always there
                with task.located("constraints", key, number):
                    build((name,), task, 0)
    for name, settings in task.rungs.items():
        try:
            build((name,), task, 0)
        except ConfigError as error:
            named = [key for key in settings if f".{key}:" in error.message or repr(key) in error.message]
            with task.located("rungs", name, *named[:1]):
                raise


def check_task(task: Task, *, tuning: bool = False) -> TaskCheck:
    """Read a task's data, find what makes a climb meaningless and what would mislead, and measure the texts.

    Nothing is downloaded for it. With `tuning`, also report what tuning would learn from, which needs the model's
    tokenizer.

    Raises:
        DataError: a row, a label or an expected answer is wrong.
    """
    data = task.read()
    validate_references(task, data)
    _verify_models(task)
    about_documents: list[str] = []
    if task.corpus is not None:
        listing = check_documents(task)
        about_documents = [*_documents_left_out(listing), *_answers_in_documents(task, data, listing)]
    report, files = data.report, _at_hand(task.model, "language model")
    count = None if files is None else _counter(files)
    if count is not None:
        for name, rows in (("train", data.train), ("validation", data.validation), ("test", data.test)):
            if name in report.splits:
                report.measure(name, rows, kind=task.output.kind, count=count)
        if data.text:
            report.measure_text(data.text, count=count)
    training = _training_reports(task, data) if tuning else {}
    rows = (*data.train, *data.validation, *data.test)
    warnings, notes = (
        [*report.warnings, *_long_answers(task, rows, count), *_unlearned_thoughts(task, data.train), *about_documents],
        [*figures((*data.preferences, *data.unseen_preferences))],
    )
    if task.data.weight is not None:
        notes.append(
            f"{task.data.weight!r} weighs rows in features, llm-features, features-tfidf, tfidf-head, ridge, "
            "ridge-encoder, and where a language model or an encoder is trained on answers; prompts, preferences, "
            "scores and decisions count every row alike"
        )
    refused = missing(permits_of(task))
    notes += [f"a climb needs your consent first, by `rung trust`: {permit}" for permit in refused]
    if rows and not any(permit.kind in ("tool", "command", "endpoint") for permit in refused):
        zero = Artifact.zero_shot(task, data.labels)
        if zero.prompt.chat_column is not None and files is not None:
            _check_conversations(zero, rows, Tokenizer.load(files.folder))
        warnings += _long_prompts(zero, rows, task.output.max_tokens or DEFAULT_MAX_TOKENS, files, count)
        notes += _long_for_encoders(zero, rows)
        warnings += _near_duplicates(zero, data)
    for part in training.values():
        if dropped := part["dropped"].get(TOO_LONG):
            warnings.append(
                f"{dropped:,} training rows are {TOO_LONG}: tuning stops at them unless `truncation` allows it"
            )
    return TaskCheck(data, "tokens" if count else "characters", report.problems, warnings, notes, training)


def check_documents(task: Task) -> Listing:
    """List the files of a task's corpus, and those that are left out.

    Raises:
        ConfigError: a file does not exist, or holds rows that are measured.
        DataError: `no-documents`: none can be read.
    """
    assert task.corpus is not None
    with task.located("corpus", "files"):
        refuse_measured_rows(task.corpus, task.data, task.folder)
        listing = list_sources(task.corpus, task.folder)
        if not listing.sources:
            first = listing.problems[0] if listing.problems else None
            why = "the folder is empty" if first is None else f"{first.source}: {first.what}"
            problem = f"none of the documents of {task.name} can be read: {why}"
            raise DataError("no-documents", problem, hint="see `rung explain no-documents`")
    return listing


def _documents_left_out(listing: Listing) -> Iterator[str]:
    """Name what retrieval lacks: files that it cannot read, and its libraries."""
    if listing.problems:
        named = "; ".join(f"{problem.source}: {problem.what}" for problem in listing.problems[:NAMED])
        more = f"; and {len(listing.problems) - NAMED:,} more" if len(listing.problems) > NAMED else ""
        yield f"left out of the documents: {named}{more}"
    if find_spec("lancedb") is None:
        yield f"no document is searched before you install what retrieval needs: {install_command('rag')}"


def _answers_in_documents(task: Task, data: Data, listing: Listing) -> Iterator[str]:
    """Measured rows whose input and answer stand in one document, such as a copy of the rows under another name."""
    assert task.corpus is not None
    measured = race_order(data.train if data.folds else (*data.validation, *data.test))[:TESTED_ROWS]
    room, all_read = DOCUMENT_BYTES, True

    def texts(corpus: Corpus) -> Iterator[Document]:
        nonlocal room, all_read
        for source in listing.sources:
            for document in read_documents(source, corpus, []) if source.path is not None and room > 0 else ():
                room -= len(document.text)
                yield Document(f"{document.title}\n{document.text}", document.id)
                if room <= 0:
                    break
        all_read = room > 0

    if found := found_in(texts(task.corpus), measured, answered=True):
        row, document = found[0]
        looked_at = "" if all_read else f" (of the first {DOCUMENT_BYTES / 1e6:.0f} MB)"
        yield (
            f"{len(found):,} of {len(measured):,} measured rows ({len(found) / len(measured):.1%}) have their input "
            f"and expected answer word for word in one document{looked_at}, such as {row.source} in {document.source}: "
            "a search looks them up, so scores on new rows may be lower"
        )


def _check_conversations(zero: Artifact, rows: Sequence[Example], tokenizer: Tokenizer) -> None:
    """Render every conversation; raise DataError for the row and turn that the model's template refuses."""

    def read(messages: Messages) -> str:
        shown, tools = for_template(tokenizer, messages)
        return tokenizer.render(shown, tools=tools)

    if (problem := refused_row(rows, [zero.prompt.messages(row.inputs) for row in rows], read)) is not None:
        raise problem


def _unlearned_thoughts(task: Task, rows: Sequence[Example]) -> Iterator[str]:
    """Count the answers that training learns otherwise than the task says: with a thought, or without one."""
    thoughtful = sum(row.has_thought for row in rows)
    if task.thinking != "off" and thoughtful < len(rows) and not is_endpoint(task.model):
        yield (
            f"{len(rows) - thoughtful:,} of {len(rows):,} training answers have no thought: what is trained on them "
            f"answers without thinking, although the task says `thinking: {task.thinking}`. "
            "Give every answer its `reasoning_content`, or leave `thinking` out"
        )
    if thoughtful and task.thinking == "off":
        yield (
            f"{thoughtful:,} of {len(rows):,} training answers have thoughts, and nothing learns them: "
            "with a model that thinks, set `thinking: on`"
        )


# ---- texts that are longer than what reads or writes them


def _long_answers(task: Task, rows: Sequence[Example], count: Callable[[str], int] | None) -> Iterator[str]:
    """Expected answers that are longer than a model may write."""
    if task.output.kind in ("category", "ranking"):
        return
    most, tokens = task.output.max_tokens or DEFAULT_MAX_TOKENS, count or (lambda text: len(text) // 4)
    lengths = {row.source: min(map(tokens, row.outputs)) for row in rows if len(row.outputs[0]) > most}
    long = [source for source, length in lengths.items() if length > most]
    if long:
        name = (
            f"`output.max_tokens`, {most},"
            if task.output.max_tokens
            else f"the default of `output.max_tokens`, {most},"
        )
        yield (
            f"{len(long):,} of {len(rows):,} expected answers have more tokens than {name} so no answer can be "
            f"like them: {places(long)}. The longest has {'' if count else 'about '}{max(lengths.values()):,}"
        )


def _long_prompts(
    zero: Artifact,
    rows: Sequence[Example],
    max_tokens: int,
    files: ModelFiles | None,
    count: Callable[[str], int] | None,
) -> Iterator[str]:
    """Rows that do not fit the model's context, even without demonstrations."""
    if files is None or count is None or files.context <= 0:
        return
    room = ROOM if zero.signature.kind in ("category", "ranking") else max_tokens
    long = []
    for row in rows:
        text = "\n".join(turn["content"] for turn in zero.prompt.messages(row.inputs))
        if len(text) + room > files.context and count(text) + room > files.context:
            long.append(row.source)
    if long:
        policy: str = zero.overflow
        what = "The end of their longest input is cut" if policy == "truncate_input" else "A climb stops at them"
        yield (
            f"{len(long):,} of {len(rows):,} rows do not fit the {files.context:,} tokens that {files.name} reads, "
            f"with {room} for the answer: {places(long)}. {what}"
        )


def _long_for_encoders(zero: Artifact, rows: Sequence[Example]) -> Iterator[str]:
    """Rows that are longer than the sentence encoder's limit."""
    files = _at_hand(ENCODER, "encoder")
    recipe = None if files is None else read_recipe(files.folder)
    if files is None or recipe is None:
        return
    limit, count = recipe.limit - 2, _counter(files)  # two special tokens
    texts = [(row.source, zero.prompt.question(row.inputs)) for row in rows]
    long = [source for source, text in texts if len(text) > limit and count(text) > limit]
    if long:
        yield (
            f"{len(long):,} of {len(rows):,} inputs have more than the {limit} tokens that {ENCODER} reads: "
            f"{places(long)}. It reads them in windows"
        )


# ---- near-duplicates


def _near_duplicates(zero: Artifact, data: Data) -> Iterator[str]:
    """Test rows that are almost training rows: whoever has learned the one by heart answers the other."""
    if find_spec("sklearn") is None:
        return
    tested = data.folds or tuple(part for part in (data.test, data.validation) if part)
    names = ["labelled"] * len(data.folds) if data.folds else [n for n in ("test", "validation") if getattr(data, n)]
    others = [data.fold(i).train for i in range(len(data.folds))] if data.folds else [data.train] * len(tested)
    found: dict[str, list[tuple[str, str]]] = {}
    counts: dict[str, int] = {}
    how = ""
    for name, rows, training in zip(names, tested, others, strict=True):
        rows, training = race_order(rows)[:TESTED_ROWS], race_order(training)[:OTHER_ROWS]
        length = sum(min(CHARACTERS, len(zero.prompt.question(row.inputs))) for row in (*rows, *training))
        share = min(1.0, ALL_CHARACTERS / max(1, length * len(tested)))
        rows, training = rows[: ceil(share * len(rows))], training[: ceil(share * len(training))]
        pairs, how = _similar(zero, rows, training)
        found.setdefault(name, []).extend(pairs)
        counts[name] = counts.get(name, 0) + len(rows)
    for name, pairs in found.items():
        if pairs:
            shown = "; ".join(f"{one} and {other}" for one, other in pairs[:2])
            where = "in another fold" if data.folds else "among the training rows"
            every = len(data.train if data.folds else getattr(data, name))
            looked_at = " that were looked at" if counts[name] < every else ""
            yield (
                f"{len(pairs):,} of {counts[name]:,} {name} rows{looked_at} ({len(pairs) / counts[name]:.1%}) have a "
                f"near-duplicate {where} ({how}), so scores on new rows may be lower: {shown}"
            )


def _similar(zero: Artifact, rows: Sequence[Example], training: Sequence[Example]) -> tuple[list[tuple[str, str]], str]:
    """The rows that are much like a training row, with it, and how that was measured."""
    encoder = _at_hand(ENCODER, "encoder") if find_spec("openvino") or find_spec("sentence_transformers") else None
    how = f"cosine from {SIMILAR} by {ENCODER}" if encoder else f"cosine from {ALIKE} of TF-IDF vectors of characters"
    texts = [zero.prompt.question(row.inputs)[:CHARACTERS] for row in (*rows, *training)]
    if not rows or not training or not any(map(str.strip, texts)):
        return [], how
    vectors = vectorizer("characters").fit_transform([text.translate(PUNCTUATION) for text in texts])
    likeness = (vectors[: len(rows)] @ vectors[len(rows) :].T).tocsr()
    found = []
    for i in range(len(rows)):
        row = likeness.getrow(i)
        if row.nnz and row.data.max() >= (LIKE if encoder else ALIKE):
            found.append((float(row.data.max()), i, int(row.indices[row.data.argmax()])))
    if encoder and found:
        vectors = open_encoder(ENCODER).embed([texts[k] for _, i, j in found for k in (i, len(rows) + j)])
        cosines = (vectors[0::2] * vectors[1::2]).sum(1).tolist()
        found = [(cosine, i, j) for cosine, (_, i, j) in zip(cosines, found, strict=True) if cosine >= SIMILAR]
    return [(rows[i].source, training[j].source) for _, i, j in sorted(found, key=lambda pair: -pair[0])], how


# ---- what is on this machine


def _training_reports(task: Task, data: Data) -> dict[str, Any]:
    """What tuning learns from on top of zero-shot; rows that are too long are counted, where training would stop."""
    model, reports = LocalModel(resolve(task.model)), {}
    report = reports["rows"] = TrainingReport()
    rows = tokenize(_learned(task, data, report), model, data.train, truncation="drop", report=report)
    report.measure(rows, model.tokenizer)
    if data.text:
        report = reports["text"] = TrainingReport(rows=len(data.text))
        report.measure(text_blocks(model, data.text, BLOCK_TOKENS), model.tokenizer)
    return {name: report.as_dict() for name, report in reports.items()}


def _learned(task: Task, data: Data, report: TrainingReport) -> Artifact:
    """The artifact that tuning zero-shot makes."""
    bare = sum(not row.has_thought for row in data.train)
    return as_learned(Artifact.zero_shot(task, data.labels), bare, report)


def trained_row(task: Task, data: Data, number: int) -> dict[str, Any]:
    """What tuning would learn from one training row, counted from 1: every token, and whether it is supervised.

    Raises:
        ConfigError: there are not so many training rows.
    """
    if not 1 <= number <= len(data.train):
        message = f"there is no training row {number}"
        raise ConfigError("bad-option", message, hint=f"give a number from 1 to {len(data.train):,}")
    row, model, report = data.train[number - 1], LocalModel(resolve(task.model)), TrainingReport()
    read = tokenize(_learned(task, data, report), model, [row], truncation="drop", report=report)
    examples = [
        {
            "tokens": list(each.tokens), "supervised": [list(span) for span in each.spans],
            "pieces": [model.tokenizer.token(token) for token in each.tokens], "text": marked(each, model.tokenizer),
        }
        for each in read
    ]  # fmt: skip
    return {"row": number, "source": row.source, "dropped": next(iter(report.dropped), None), "examples": examples}


def _verify_models(task: Task) -> None:
    """Verify all models that the task names, as far as they are here.

    Raises:
        ModelError: one is unknown, damaged or of another kind; it has the place in the task file.
    """
    named: list[tuple[tuple[str | int, ...], str, ModelKind]] = []
    several = bool(task.other_models)
    for number, model in enumerate(task.models):
        named.append((("model", number) if several else ("model",), model, "language model"))
    if task.corpus is not None:
        named.append((("corpus", "encoder"), task.corpus.encoder, "encoder"))
    if task.output.kind == "ranking":
        named.append((("output", "encoder"), task.output.encoder, "encoder"))
    if task.metric_name == "judge":
        named.append((("metric", "model"), task.metric_settings["model"], "language model"))
    wanted = {*task.rungs, *(task.constraints.rungs or ())} - {"zero-shot", *(task.constraints.exclude or ())}
    for rung in build(wanted, task, 0):
        place = ("rungs", rung.variant_of or rung.name)
        named += [((*place, "encoder"), encoder, "encoder") for encoder in rung.encoders]
        for setting, kind in rung.model_settings.items():
            if reference := getattr(rung, setting):
                named.append(((*place, setting), reference, kind))
    for key, reference, kind in dict.fromkeys(named):
        with task.located(*key):
            _at_hand(reference, kind)


def _at_hand(reference: str, kind: ModelKind) -> ModelFiles | None:
    """The files of a model if they are here already; a check is not worth a download.

    Raises:
        ModelError: the model is unknown, damaged or of another kind, or its chat template shows no conversation.
    """
    if is_endpoint(reference):
        return None
    try:
        files = resolve(reference) if is_cached(reference) else None
    except MachineError as error:
        if error.code != "missing-extra":
            raise
        return None
    if files is not None and find_spec("transformers") is not None:
        verify(files, kind)  # a damaged model is a problem now, not at the first row of a climb
    if files is not None and kind == "language model":
        answer_beginning(Tokenizer.load(files.folder))  # and so is a chat template that refuses a plain request
    return files


def _counter(files: ModelFiles) -> Callable[[str], int]:
    """Count the tokens of texts."""
    tokenizer = Tokenizer.load(files.folder)
    return lambda text: len(tokenizer.encode_plain(text))
