import gc
import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from engines.fault_server import FaultServer, Reply, completion
from rung.errors import EngineError, MachineError, install_command, needed_by


def test_what_cannot_be_imported_is_told_with_its_extra():
    with pytest.raises(MachineError) as caught, needed_by("serving", extra="serve"):
        import no_such_library.deep  # noqa: F401
    assert (caught.value.code, caught.value.message) == ("missing-extra", "serving needs no_such_library")
    assert caught.value.hint == install_command("serve")
    assert type(caught.value) is MachineError
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, "uv pip install 'rung[serve]'"),
        (
            {"url": "file:///home/ann/a%20b", "dir_info": {}},
            "uv pip install 'rung[serve] @ file:///home/ann/a%20b'",
        ),
        (
            {"url": "file:///home/ann/a%20b", "dir_info": {"editable": True}},
            "uv pip install -e '/home/ann/a b[serve]'",
        ),
        (
            {"url": "https://example.org/rung.git", "vcs_info": {"vcs": "git", "commit_id": "1a2b"}},
            "uv pip install 'rung[serve] @ git+https://example.org/rung.git@1a2b'",
        ),
    ],
)
def test_an_extra_comes_from_where_rung_came_from(monkeypatch, tmp_path, origin, command):
    if origin is not None:
        (tmp_path / "direct_url.json").write_text(json.dumps(origin))
    monkeypatch.setattr(metadata, "distribution", lambda _: metadata.PathDistribution(tmp_path))
    assert install_command.__wrapped__("serve") == command


def test_the_class_of_the_error_is_the_callers():
    with (
        pytest.raises(EngineError, match=r"^an encoder needs nothing_there$"),
        needed_by("an encoder", error=EngineError),
    ):
        import nothing_there  # noqa: F401


def test_other_errors_pass():
    with pytest.raises(ValueError, match=r"^other$"), needed_by("it"):
        raise ValueError("other")


@pytest.mark.parametrize("collects", [True, False])
def test_no_garbage_is_collected_during_an_import_and_then_as_before(collects):
    try:
        if not collects:
            gc.disable()
        with needed_by("it"):
            assert not gc.isenabled()
        assert gc.isenabled() == collects
        with pytest.raises(MachineError), needed_by("it"):
            raise ModuleNotFoundError(name="nothing_there")
        assert gc.isenabled() == collects
    finally:
        gc.enable()


ROOT = Path(__file__).parents[1]


def test_the_lock_has_the_pins_with_hashes_and_names_no_index():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    lock = (ROOT / "constraints.lock").read_text()
    hashed = dict(re.findall(r"^([a-z0-9.-]+)==(\S+)(?: ; .*)? \\\n    --hash=sha256:[0-9a-f]{64}", lock, re.M))
    assert hashed == {name: version for name, version in pins.items() if not name.startswith("torch")}
    assert not re.search(r"://|--index|--find-links", lock)
    assert "pip" not in pins


def test_the_floors_are_above_known_holes():
    """The pinned versions may move on; what others may install must not go back below these."""
    text = (ROOT / "pyproject.toml").read_text()
    floors = dict(re.findall(r'"([a-z0-9-]+)>=([0-9.]+)', text))
    least = {"h11": (0, 16), "jinja2": (3, 1, 6), "lxml": (6, 1), "nltk": (3, 10, 4), "starlette": (1, 6)}
    for name, version in least.items():
        assert tuple(map(int, floors[name].split("."))) >= version, name


# Runs first in a process of its own: what `rung[local]` brings cannot be imported there.
CORE = """
import json, sys
for name in json.loads(sys.argv.pop(1)):
    sys.modules[name] = None
from rung.cli.main import main
for command in json.loads(sys.argv[1]):
    sys.argv[1:] = command
    print("$", *command, flush=True)
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise
"""
LOCAL = ("openvino", "openvino_genai", "optimum", "sentence_transformers", "torch", "transformers", "sklearn",
         "cleanlab", "peft", "datasets", "pyarrow", "scipy", "lancedb")  # fmt: skip
ROWS = [(f"{said} number {2 * number + place}", topic) for number in range(12)
        for place, (said, topic) in enumerate((("lost my card", "card"), ("late loan", "loan")))]  # fmt: skip


def on_core(folder, *commands):
    """What the commands print on a core install, by command."""
    done = subprocess.run(
        [sys.executable, "-c", CORE, json.dumps(LOCAL), json.dumps(commands)], cwd=folder, capture_output=True,
        text=True, env={**os.environ, "RUNG_CACHE": str(folder / "cache"), "COLUMNS": "160"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(part.split("\n", 1) for part in done.stdout.split("$ ")[1:])


@pytest.fixture
def copying():
    """An endpoint that answers as the last demonstration that it is shown does."""

    def answer(path, body):
        said = [turn["content"] for turn in body["messages"] if turn["role"] == "assistant"]
        text = said[-1] if said else "loan"
        return Reply(completion(json.dumps({"answer": text}) if "response_format" in body else text))

    server = FaultServer()
    server.answer = answer
    yield server
    server.close()


@pytest.mark.parametrize("kind", ["category", "text"])
def test_on_a_core_install_demonstrations_for_an_endpoint_are_chosen_by_words(tmp_path, copying, kind):
    rows = "".join(json.dumps({"text": text, "topic": topic}) + "\n" for text, topic in ROWS)
    (tmp_path / "rows.jsonl").write_text(rows)
    (tmp_path / "task.yaml").write_text(
        f"name: topics\ninstruction: Name the topic.\ninputs: [text]\nmodel: {copying.reference}\n"
        f"metric: exact_match\noutput: {{kind: {kind}, column: topic}}\ndata: {{train: rows.jsonl}}\n"
        "rungs:\n  few-shot-knn: {k: 2}\n".replace("metric: exact_match\n" if kind == "category" else "\0", "")
    )
    climb = ["climb", "task.yaml", "--rungs", "few-shot-knn"]
    arm = "runs/topics/rungs/few-shot-knn/artifact"
    said = on_core(
        tmp_path, ["trust", "--yes", "task.yaml"], [*climb, "--plan"], [*climb, "--quiet"], ["show", arm],
        ["show", arm, "--json"], ["predict", arm, "rows.jsonl", "--keep", "text", "--quiet"],
    )  # fmt: skip
    remark = "few-shot-knn compares rows by their words, because nothing here runs a sentence encoder"
    assert remark in said[" ".join([*climb, "--plan"])]
    report = json.loads((tmp_path / "runs/topics/report.json").read_text())
    assert any(note.startswith(remark) for note in report["notes"])
    (few,) = (each for each in report["rungs"] if each["name"] == "few-shot-knn")
    assert (few["score"], few["n"]) == (1.0, len(ROWS))
    assert "knn, 2 of 24, compared by their words" in said[f"show {arm}"]
    settings = json.loads((tmp_path / arm / "artifact.json").read_text())
    assert settings["settings"]["few-shot-knn"]["compared_by"] == "words"
    assert settings["demonstrations"]["encoder"] == ""
    answers = [json.loads(line) for line in said[f"predict {arm} rows.jsonl --keep text --quiet"].splitlines()]
    assert [(each["text"], each["output"]) for each in answers] == ROWS
    asked = [body["messages"] for body in copying.bodies() if ROWS[-1][0] in body["messages"][-1]["content"]]
    shown = [[turn["content"] for turn in turns if turn["role"] == "assistant"] for turns in asked]
    assert [ROWS[-1][1]] * 2 in shown
