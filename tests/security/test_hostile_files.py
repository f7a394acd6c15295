"""Hostile and damaged files: each payload ends in one error that names the place, and leaves no canary."""

import bz2
import gzip
import json
import lzma
import os
import pickle
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from rung import yamlfile
from rung.agents.calls import MalformedError, read_json
from rung.artifact.artifact import Artifact
from rung.artifact.files import write_manifest
from rung.cli import render
from rung.climbing.store import RunStore
from rung.climbing.worth import Worth
from rung.data.chat import is_chat
from rung.data.columns import look_at
from rung.data.frames import hub_records
from rung.data.sources import read_rows
from rung.errors import RungError
from rung.evaluation.result import ClimbResult
from rung.feedback.registry import Registry
from rung.models import bounded
from rung.models.cache import known_sha256
from rung.models.chat import render as render_chat
from rung.models.checkpoint import hash_again
from rung.models.gguf import read_file
from rung.models.hub import check_folder
from rung.models.reference import resolve
from rung.task import Task
from rung.yamlfile import read_object, sealed

DEEP = "[" * 100_000 + "]" * 100_000
USER = [{"role": "user", "content": "hi"}]


def refused(code: str, act, *words: str) -> None:
    with pytest.raises(RungError) as caught:
        act()
    assert caught.value.code == code
    for word in words:
        assert word in caught.value.render()


# ---- data sets of the Hub: other names are file formats or folders here


@pytest.mark.parametrize(
    "name", ["pandas", "csv", "pickle", "webdataset", "./x", "../x/y", "/tmp/x", "a/b/c", "", "-/../x"]
)
def test_a_hub_name_is_no_file_format(tmp_path, monkeypatch, name):
    class Payload:
        def __reduce__(self):
            return open, (str(tmp_path / "canary"), "w")

    monkeypatch.chdir(tmp_path)
    for file in ("train.pkl", "data.pkl"):
        Path(file).write_bytes(pickle.dumps(Payload()))
    refused("bad-value", lambda: list(hub_records(f"hf:{name}")), "does not name a data set of the Hub")
    assert not (tmp_path / "canary").exists()


def test_a_folder_of_this_machine_is_no_data_set_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    refused("bad-value", lambda: list(hub_records("hf:org/name")))


# ---- chat templates

TEMPLATES = {
    "a long string": "{{ 'a' * 3000000000 }}",
    "a wide field": "{{ 'a'|center(3000000000) }}",
    "a wide number": "{{ '%3000000000d'|format(1) }}",
    "a long list": "{{ (range(99999)|list * 3000)|join }}",
    "doubling": "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "nested statements": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "a macro that calls itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "a loop that calls itself": "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "a long text": "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
    "endless loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "globals of a function": "{{ raise_exception.__globals__['os'].system('id') }}",
    "subclasses": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_chat_templates_are_bounded(monkeypatch, name):
    monkeypatch.setattr(bounded, "SECONDS", 1.0)
    render_chat(USER, "{{ messages[0].content }}", bos=None, eos=None)  # the process runs
    start = time.monotonic()
    refused("chat-template-refused", lambda: render_chat(USER, TEMPLATES[name], bos=None, eos=None))
    if name == "endless loops":  # it is not tried a second time
        refused("chat-template-refused", lambda: render_chat(USER, TEMPLATES[name], bos=None, eos=None))
        assert time.monotonic() - start < 60
    assert render_chat(USER, "<{{ messages[0].content }}>", bos=None, eos=None) == "<hi>"


def test_a_template_of_any_size_is_not_compiled():
    refused("model-damaged", lambda: render_chat(USER, "a" * 100_001, bos=None, eos=None))


# ---- model folders


@pytest.fixture
def model(tmp_path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama", "max_position_embeddings": 8}')
    save_file({"a": np.zeros(1, np.float32)}, folder / "model.safetensors")
    check_folder(folder)
    return folder


def modules(path: str = "", kind: str = "sentence_transformers.models.Dense") -> str:
    return json.dumps([{"idx": 0, "name": "0", "path": path, "type": kind}])


MODELS = {
    "an absolute module": ("modules.json", modules("/tmp/x"), "model-unsafe"),
    "a module above": ("modules.json", modules("../x"), "model-unsafe"),
    "a module inside and above": ("modules.json", modules("a/../../x"), "model-unsafe"),
    "a hidden module": ("modules.json", modules(".hidden"), "model-unsafe"),
    "a hidden module inside": ("modules.json", modules("a/.hidden"), "model-unsafe"),
    "a function as module": ("modules.json", modules(kind="sentence_transformers.util.http_get"), "model-unsafe"),
    "a foreign module": ("modules.json", modules(kind="os.system"), "model-unsafe"),
    "modules that are none": ("modules.json", "[null]", "model-damaged"),
    "a router's types": ("router_config.json", '{"types": {"a": "os.system"}}', "model-unsafe"),
    "an activation": ("1_Dense/config.json", '{"activation_function": "os.getcwd"}', "model-unsafe"),
    "a template's name": (
        "tokenizer_config.json", '{"chat_template": [{"name": "../../x", "template": "a"}]}', "model-unsafe",
    ),
    "code from elsewhere": ("config.json", '{"a": [{"auto_map": {}}]}', "model-unsafe"),
    "deep settings": ("generation_config.json", DEEP, "model-damaged"),
    "settings that are a list": ("config.json", "[]", "model-damaged"),
    "a billion layers": ("config.json", '{"text_config": {"num_hidden_layers": 1000000000}}', "model-damaged"),
    "a billion experts": ("config.json", '{"num_local_experts": 1000000000}', "model-damaged"),
    "no settings": ("config.json", "null", "model-damaged"),
    "weights that are no map": ("model.safetensors.index.json", '{"weight_map": [1]}', "model-damaged"),
    "weights elsewhere": ("model.safetensors.index.json", '{"weight_map": {"a": "../x.safetensors"}}', "model-unsafe"),
    "an adapter beside": ("adapter_config.json", '{"base_model_name_or_path": "/x"}', "model-unsupported"),
    **{
        f"a file {name}": (name, "x", "model-unsafe")
        for name in ("a.pkl", "a.PT", "a.bin", "a.pkl.gz", "a.cloudpickle", "a.npz", "a.py", "a.pyw", "a.so.1", "a.whl",
                     "a.h5", "a.keras", "a.msgpack", "a.onnx", "a.onnx_data", "a.pb", "a.ot", "a.sav", "a.p", "a.tar",
                     "a.zip", "a.nemo", "a.sh", "a.ipynb", "a.pyx", "a.mlmodel", "a.tflite", "a.torch")
    },
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_model_folders_hold_data_alone(model, name):
    file, text, code = MODELS[name]
    (model / file).parent.mkdir(exist_ok=True)
    (model / file).write_text(text)
    refused(code, lambda: check_folder(model), file.rpartition("/")[2])


def test_a_pipe_in_a_model_folder_is_not_opened(model):
    os.mkfifo(model / "README.md")
    refused("model-unsafe", lambda: resolve(str(model)), "no regular file")


@pytest.mark.parametrize(
    "config", ['{"architectures": {}}', '{"architectures": 3}', '{"text_config": [1]}', '{"n_ctx": -1}']
)
def test_odd_settings_of_a_model_are_no_traceback(model, config):
    (model / "config.json").write_text(config)
    refused("context-unknown", lambda: resolve(str(model)))


def test_silent_damage_of_weights_is_found(model, monkeypatch, tmp_path):
    monkeypatch.setenv("RUNG_CACHE", str(tmp_path / "cache"))
    weights = model / "model.safetensors"
    files, times = resolve(str(model)), weights.stat()
    assert hash_again(files) > 0
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    refused("model-damaged", lambda: hash_again(files), "model.safetensors")
    for record in (tmp_path / "cache" / "verified").iterdir():  # a damaged memory of hashes is made again
        record.write_text("")
    assert len(known_sha256(weights)) == 64


def gguf(pairs: int = 0, tensors: int = 0, body: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, pairs) + body


KEY = struct.pack("<Q", 1) + b"k"
GGUF = {
    "counts": gguf(2**60, 2**60),
    "a long key": gguf(1, body=struct.pack("<Q", 2**62) + b"k"),
    "a long text": gguf(1, body=KEY + struct.pack("<IQ", 8, 2**63)),
    "a long array": gguf(1, body=KEY + struct.pack("<IIQ", 9, 0, 2**40)),
    "an array beyond the end": gguf(1, body=KEY + struct.pack("<IIQ", 9, 0, 5_000_000)),
    "arrays in arrays": gguf(1, body=KEY + struct.pack("<IIQ", 9, 9, 5) + struct.pack("<IQ", 9, 5) * 5),
    "an unknown type": gguf(1, body=KEY + struct.pack("<I", 99)),
    "the end": b"GGUF\3\0",
    "another file": b"PK\3\4" + bytes(100),
}


@pytest.mark.parametrize("name", GGUF)
def test_headers_of_gguf_files_are_compared_with_the_file(tmp_path, name):
    (tmp_path / "m.gguf").write_bytes(GGUF[name])
    refused("model-damaged", lambda: read_file(tmp_path / "m.gguf"), "m.gguf")


# ---- files that never end, and JSON without bounds


@pytest.mark.parametrize("kind", ["device", "pipe", "folder"])
def test_a_task_that_never_ends_is_refused(tmp_path, kind):
    file = {"device": Path("/dev/zero"), "folder": tmp_path}.get(kind, tmp_path / "pipe")
    if kind == "pipe":
        os.mkfifo(file)
    refused("unreadable-file", lambda: Task.load(file), "is not a regular file")


JSON = {
    "deep": DEEP, "deep objects": '{"a":' * 5000 + "1" + "}" * 5000, "cut": '{"a": ', "empty": "", "NUL": "\0\0",
    "a list": "[]", "nothing": "null", "a number": "1e999", "text": '"a"', "101 levels": "[" * 101 + "]" * 101,
}  # fmt: skip


@pytest.mark.parametrize("name", JSON)
def test_one_reader_bounds_json(tmp_path, name):
    file = tmp_path / "a.json"
    file.write_text(JSON[name])
    refused("unreadable-file", lambda: read_object(file), "a.json")


def test_a_file_is_not_read_beyond_its_bound(tmp_path):
    file = tmp_path / "a.json"
    file.write_text('{"a": "' + "b" * 100 + '"}')
    refused("unreadable-file", lambda: read_object(file, most=50), "more than 50")


@pytest.mark.parametrize("levels", [101, 900, 5000])
def test_deep_json_in_texts_is_no_traceback(tmp_path, levels):
    """What rows and models write: 900 levels can be parsed, and would exhaust the stack of what walks over them."""
    deep = "[" * levels + "]" * levels
    assert not is_chat(deep)
    with pytest.raises(MalformedError):
        read_json(f'{{"step": {deep}}}')
    (tmp_path / "a.jsonl").write_text(f'{{"text": {deep}}}\n')
    refused("bad-json", lambda: list(read_rows(tmp_path / "a.jsonl")), "a.jsonl:1")
    assert look_at("a", [deep] * 30)


@pytest.mark.parametrize("pack", [gzip, bz2, lzma])
def test_compressed_rows_are_bounded(tmp_path, monkeypatch, pack):
    monkeypatch.setattr(yamlfile, "MAX_BYTES", 1_000_000)
    suffix = {gzip: "gz", bz2: "bz2", lzma: "xz"}[pack]
    for name, size in (("good", 900_000), ("bomb", 3_000_000)):
        with pack.open(tmp_path / f"{name}.csv.{suffix}", "wb") as file:
            file.write(b"text\n" + b"a" * size)
    assert len(next(read_rows(tmp_path / f"good.csv.{suffix}")).values["text"]) == 900_000
    refused(
        "unreadable-file", lambda: list(read_rows(tmp_path / f"bomb.csv.{suffix}")), "bomb.csv", "200 times its size"
    )


SHEETS = {  # a kilobyte that openpyxl would make 17 thousand million cells of
    "a merged area": '<mergeCells count="1"><mergeCell ref="A1:XFD1048576"/></mergeCells>',
    "an escaped merged area": '<mergeCells count="1"><mergeCell ref="&#65;1:XFD1048576"/></mergeCells>',
}
LAST = {
    "the last cell": '<row r="1048576"><c r="XFD1048576"><v>1</v></c></row>',
    "a row beyond the last": '<row r="2000000000"><c r="A2000000000"><v>1</v></c></row>',
}


@pytest.mark.parametrize("name", [*SHEETS, *LAST])
def test_small_workbooks_of_many_cells(tmp_path, name):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.append(["text"])
    book.active.append(["a"])
    book.save(tmp_path / "good.xlsx")
    assert [row.values for row in read_rows(tmp_path / "good.xlsx")] == [{"text": "a"}]
    with zipfile.ZipFile(tmp_path / "good.xlsx") as good, zipfile.ZipFile(tmp_path / "bomb.xlsx", "w") as bomb:
        for part in good.namelist():
            body = good.read(part)
            if part == "xl/worksheets/sheet1.xml":
                more = LAST.get(name, "").encode() + b"</sheetData>" + SHEETS.get(name, "").encode()
                body = body.replace(b"</sheetData>", more)
            bomb.writestr(part, body)
    refused("unreadable-file", lambda: list(read_rows(tmp_path / "bomb.xlsx")), "bomb.xlsx")


def test_many_columns_take_no_time_of_their_square(tmp_path):
    names = [f"column{number}" for number in range(50_000)]
    (tmp_path / "wide.csv").write_text("\n".join([",".join(names), ",".join("x" for _ in names)]) + "\n")
    began = time.process_time()
    (row,) = read_rows(tmp_path / "wide.csv")
    assert len(row.values) == 50_000
    assert time.process_time() - began < 3


# ---- artifacts


@pytest.fixture(scope="module")
def saved(zero, tmp_path_factory) -> Path:
    return zero.save(tmp_path_factory.mktemp("saved") / "artifact")


@pytest.mark.parametrize(
    "text", ["", "\0", "[]", "{}", "null", DEEP, '{"sha256": []}', '{"sha256": {"artifact.json": 3}}']
)
def test_damaged_manifests(saved, text):
    manifest = saved / "manifest.json"
    whole = manifest.read_text()
    try:
        manifest.write_text(text)
        refused("artifact-damaged", lambda: Artifact.load(saved), str(saved))
    finally:
        manifest.write_text(whole)


FORGED = {
    "no shape": {"shape": {}}, "shape of a list": {"shape": []}, "no prompt": {"prompt": None},
    "unknown decoder": {"decoder": {"kind": "evil"}}, "no decoder": {"decoder": {}}, "weights": {"weights": {}},
    "path": {"path": 3}, "retriever": {"retriever": {"folder": []}}, "demonstrations": {"demonstrations": [1]},
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_forged_settings_of_artifacts(saved, tmp_path, name):
    values = json.loads((saved / "artifact.json").read_text()) | FORGED[name]
    (tmp_path / "artifact.json").write_text(json.dumps(values))
    write_manifest(tmp_path)
    refused("artifact-damaged", lambda: Artifact.load(tmp_path))


def test_a_pipe_in_an_artifact_is_not_opened(saved, tmp_path):
    (tmp_path / "artifact.json").write_bytes((saved / "artifact.json").read_bytes())
    write_manifest(tmp_path)
    os.mkfifo(tmp_path / "pipe.json")
    refused("artifact-damaged", lambda: Artifact.load(tmp_path), "pipe.json")


def test_a_registry_stays_in_its_folder(tmp_path):
    for name in ("../x", "/tmp/x", "a/b", ".."):
        refused("bad-value", lambda name=name: Registry(tmp_path, name))
    (tmp_path / "t").mkdir()
    for text in (DEEP, "[]", "null", '{"x": 1}'):
        (tmp_path / "t" / "current").write_text(text)
        refused("artifact-damaged", Registry(tmp_path, "t").current)


# ---- run folders


@pytest.mark.parametrize("line", ["{broken", "\0", "[]", DEEP, "null", '{"event": "spent"}', "{}"])
def test_a_damaged_line_of_a_journal_is_named(tmp_path, line):
    good = sealed({"event": "spent", "seconds": 1.0, "endpoints": {}})
    (tmp_path / "journal.jsonl").write_text(f"{good}\n{line}\n{good}\n")
    refused("unreadable-file", lambda: RunStore(tmp_path), "journal.jsonl")


def test_a_damaged_prediction_is_named_with_its_line(tmp_path):
    file = tmp_path / "rungs" / "zero-shot" / "predictions.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text(sealed({"id": 1}) + '\n{"id": \n' + sealed({"id": 3}) + "\n")
    refused(
        "unreadable-file",
        lambda: RunStore(tmp_path).predictions("zero-shot"),
        "predictions.jsonl:2",
        "remove this line",
    )


@pytest.mark.parametrize("text", [*JSON.values(), "{}", '{"rungs": 3}', '{"rungs": [{}]}'])
def test_damaged_reports(tmp_path, text):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "report.json").write_text(text)
    (folder / "climb.json").write_text(DEEP)
    refused("unreadable-file", lambda: ClimbResult.read(folder), "report.json")
    Worth("category").learn_from_runs(tmp_path)  # other climbs go on without it


# ---- words of a model on a terminal


class Stream:
    def __init__(self, terminal: bool) -> None:
        self.text, self.isatty = "", lambda: terminal

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass


HOSTILE = "a\x1b]0;title\x07b\x1b[2Jc\x9b31md\x08\x7f\u202eé中\u200c\u00a0🙂\te\nf"


def test_a_model_does_not_control_the_terminal(monkeypatch):
    terminal, pipe = Stream(terminal=True), Stream(terminal=False)
    for name, stream in (("stdout", terminal), ("stdout", pipe)):
        monkeypatch.setattr(f"sys.{name}", stream)
        render.say(HOSTILE)
        render.print_json({"text": HOSTILE})
    assert not {character for character in terminal.text if ord(character) < 32} - {"\t", "\n"}
    assert not {"\x7f", "\x9b", "\u202e"} & set(terminal.text)
    assert "é中\u200c\u00a0🙂\te\nf\n" in terminal.text
    assert pipe.text == f"{HOSTILE}\n" + json.dumps({"text": HOSTILE}, ensure_ascii=False) + "\n"


@pytest.mark.parametrize("schema", ["/dev/zero", "deep.json"])
def test_a_schema_that_a_task_names_is_bounded(tmp_path, schema):
    (tmp_path / "deep.json").write_text(DEEP)
    (tmp_path / "task.yaml").write_text(
        f"name: t\ninstruction: i\ninputs: [text]\noutput: {{kind: json, column: a, schema: {schema}}}\n"
        "data: {train: a.csv}\n"
    )
    refused("bad-constraint", lambda: Task.load(tmp_path / "task.yaml"), "task.yaml:4")
