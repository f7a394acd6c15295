"""Write the task file of a guess."""

from __future__ import annotations

import glob
import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rung.data.guess import KINDS, Guess, documents_in
from rung.data.sources import FileFormat, is_hub
from rung.task import Task

SCHEMA_FILE = "task.schema.json"


def task_schema() -> str:
    """The JSON Schema of task files, for editors."""
    return json.dumps(Task.model_json_schema(by_alias=True), indent=2)


def task_text(guess: Guess, folder: Path, model: str, proposal: str) -> str:
    """Write a commented task file for `folder` from a guess, with a comment that proposes another model, or none."""
    quoted = partial(json.dumps, ensure_ascii=False)  # JSON strings are YAML strings

    def path(file: Path) -> str:
        if is_hub(file):
            return quoted(str(file))
        file = file.resolve()
        return quoted(str(file.relative_to(folder)) if file.is_relative_to(folder) else str(file))

    answer = str(guess.output.get("column", "labels" if guess.kind == "multilabel" else "answer")).replace("_", " ")
    instruction = guess.instruction or {
        "category": f"Which {answer} does this text belong to?",
        "multilabel": f"Which {answer} apply to this text?",
        "json": "Extract the fields from this text as JSON.",
        "chat": "",
    }.get(guess.kind, "Answer." if guess.preferences else f"Write the {answer} for this input.")
    say = (
        ""
        if guess.kind == "chat"
        else "# What to do, as you would explain it to a person. Be precise: every technique builds on it.\n"
    )
    if guess.kind == "chat":
        say = "# instruction: ...       # comes before the system turns of the rows; a conversation needs none\n"
    else:
        say += f"instruction: {quoted(instruction)}\n"
    output = [f"  {key}: {quoted(value)}" for key, value in guess.output.items()]
    output += [f"  schema: {quoted(guess.schema_file)}"] if guess.schema is not None else []
    data = [f"  train: {path(guess.data)}"] if guess.data is not None else []
    data += [f"  {split}: {path(file)}" for split, file in guess.splits.items()]
    if guess.data is not None and guess.preferences is not None:
        columns = "".join(f", {key}: {quoted(value)}" for key, value in guess.preferences.items())
        data.append(f"  preferences: {{files: {path(guess.data)}{columns}}}")
    data += (
        ["  duplicates: drop        # inputs in two of the files leave the training side"] if guess.duplicates else []
    )
    for key, value in asdict(guess.how).items():
        if value != getattr(FileFormat(), key):
            data.append(f"  {key}: {quoted({chr(9): 'tab'}.get(value, value))}")
    if guess.data is None:
        data = ["# data: {train: questions.csv}   # a table with the columns question and answer, to measure answers"]
    else:
        data.insert(0, "data:")
        if "test" not in guess.splits:
            data.append("  # test: test.csv          # default: rows are kept apart by a hash of the input")
        if len(guess.splits) < 2:
            data.append("  # split: {validation: 0.2, test: 0.2}")
        if guess.kind == "category":
            data.append("  # train_per_label: 10     # use at most this many training rows of each label")
        data.append("  # text: corpus.txt        # plain text of the domain, or a list of files, to adapt the model to")
    corpus = ""
    if guess.corpus is not None:
        corpus = "\n# The documents in which answers are looked up.\n"
        files = path(guess.corpus)
        if guess.data is not None:  # the questions lie among the documents, and are none: they hold the answers
            whole = Path(glob.escape(str(guess.corpus.resolve())))
            kinds = sorted({document.suffix for document in documents_in(guess.corpus)})
            files = f"[{', '.join(path(whole / '**' / f'*{kind}') for kind in kinds)}]"
        corpus += f"corpus:\n  files: {files}\noverflow: shorten_passages\n"
    more = (
        "# overflow: drop_demonstrations  # for prompts longer than the model reads; default: such a row is an error\n"
    )
    stronger = f"# Stronger: {proposal}\n" if proposal else ""
    chosen = f"model: {model if model == 'embedded' else quoted(model)}".ljust(27)
    lines = "\n".join
    return f"""# yaml-language-server: $schema={SCHEMA_FILE}
name: {quoted(guess.name)}

{say}# system: a persona or rules; Rung measures whether it helps

# The columns that the model reads.
inputs: [{", ".join(quoted(name) for name in guess.inputs)}]

# The answer. Guessed: {guess.reason}.
output:
{lines([f"  kind: {guess.kind}             # {', '.join(KINDS)}", *output])}
{corpus}
{lines(data)}

# metric: accuracy          # default: the usual one for the kind
{"" if corpus else more}{stronger}{chosen} # or a Hub id, a folder, a .gguf file; a list of models is raced
"""
