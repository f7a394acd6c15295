"""Files from elsewhere are data: nothing that they name runs or is reached without consent on this machine."""

import json
import os
import py_compile
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

import rung
from rung import user_code
from rung.agents.toolbox import find_tools
from rung.artifact.artifact import Artifact
from rung.artifact.files import write_manifest
from rung.cli.main import main
from rung.climbing.trust import permits_of
from rung.data.sections import McpServer
from rung.engines.api import ApiEngine
from rung.engines.api_options import ApiOptions
from rung.engines.base import GenerateRequest, Sampling
from rung.errors import RungError
from rung.evaluation.metrics.registry import get_metric
from rung.task import Task

CANARY = "from pathlib import Path\nPath({canary!r}).write_text('ran')\n"
TASK = (
    "name: t\ninstruction: i\ninputs: [text]\noutput: {{kind: text, column: answer}}\n"
    "data: {{train: rows.csv}}\n{key}\n"
)


def task_with(folder: Path, key: str) -> Path:
    rows = "".join(f"text number {i},answer {i}\n" for i in range(60))
    (folder / "rows.csv").write_text(f"text,answer\n{rows}")
    (folder / "evil.py").write_text(
        CANARY.format(canary=str(folder / "canary"))
        + 'def score(prediction, references) -> float:\n    return 1.0\ndef look(name: str) -> str:\n    """Look."""\n'
    )
    (folder / "task.yaml").write_text(TASK.format(key=key))
    return folder / "task.yaml"


def run(monkeypatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["rung", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


PAYLOADS = {
    "a metric beside the task": "metric: evil:score",
    "a tool beside the task": "tools: [evil:look]",
    "a command": "tools: [{{mcp: [sh, -c, 'touch {canary}']}}]",
    "a rung's endpoint": "rungs: {{prompt-search: {{writer: 'http://192.0.2.1/v1#m'}}}}",
}


@pytest.mark.parametrize("command", ["check", "advise", "plan", "climb"])
@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_strangers_task_runs_nothing(stranger, monkeypatch, capsys, payload, command):
    key = PAYLOADS[payload].format(canary=stranger / "canary")
    file = task_with(stranger, key)
    words = {"plan": ["climb", str(file), "--plan"]}.get(command, [command, str(file)])
    status = run(monkeypatch, *words)
    assert not (stranger / "canary").exists()
    shown = capsys.readouterr()
    if command == "climb":
        assert (status, "error[not-trusted]" in shown.err, f"rung trust {file}" in shown.err) == (3, True, True)
    if command == "check":
        assert "needs your consent first, by `rung trust`" in shown.out


def test_consent_is_for_the_exact_files(stranger):
    task_with(stranger, "metric: evil:score")
    (stranger / "evil.py").write_text("import helper\ndef score(prediction, references):\n    return helper.VALUE\n")
    (stranger / "helper.py").write_text("VALUE = 0.25\n")
    shown = rung.trust(stranger)
    assert [name in shown[0] for name in ("evil:score", "evil.py", "helper.py", str(stranger))] == [True] * 4
    assert get_metric("evil:score", stranger)("", ["x"]) == 0.25
    (record,) = user_code._records().iterdir()
    assert record.stat().st_mode & 0o777 == 0o600
    (stranger / "helper.py").write_text("VALUE = 0.75\n")  # the neighbour that it imports has changed
    with pytest.raises(RungError) as caught:
        get_metric("evil:score", stranger)("", ["x"])
    assert caught.value.code == "not-trusted"


def test_a_record_that_others_could_write_is_no_consent(stranger):
    permit = user_code.program_permit({"seconds": 1}, stranger)
    user_code.allow([permit])
    assert user_code.allowed(permit)
    (user_code._records() / permit.key).chmod(0o666)
    assert not user_code.allowed(permit)


def test_what_was_hashed_is_what_runs(stranger):
    """A compiled file with the source's time and size would run in its place."""
    file, canary = stranger / "evil.py", stranger / "canary"
    evil = CANARY.format(canary=str(canary)) + "def score(prediction, references): return 1.0\n"
    file.write_text(evil)
    py_compile.compile(str(file))
    good = "def score(prediction, references): return 0.5\n"
    file.write_text(good + "#" * (len(evil) - len(good)))
    times = file.stat()
    for compiled in (stranger / "__pycache__").iterdir():
        data = bytearray(compiled.read_bytes())
        data[8:12] = int(times.st_mtime).to_bytes(4, "little")
        compiled.write_bytes(data)
    task_with_metric = stranger / "task.yaml"
    task_with_metric.write_text(TASK.format(key="metric: evil:score"))
    rung.trust(stranger)
    assert (get_metric("evil:score", stranger)("", ["x"]), canary.exists()) == (0.5, False)


def test_a_file_that_is_not_shown_cannot_be_imported(stranger):
    """A library that tries an optional import must not find a stranger's file of that name."""
    (stranger / "evil.py").write_text(
        "import importlib\ntry:\n    importlib.import_module('optional_extra')\n    FOUND = 1.0\n"
        "except ImportError:\n    FOUND = 0.0\ndef score(prediction, references): return FOUND\n"
    )
    (stranger / "optional_extra.py").write_text(CANARY.format(canary=str(stranger / "canary")))
    (stranger / "task.yaml").write_text(TASK.format(key="metric: evil:score"))
    rung.trust(stranger)
    assert (get_metric("evil:score", stranger)("", ["x"]), (stranger / "canary").exists()) == (0.0, False)


def artifact_of(folder: Path, zero: Artifact, **changes) -> Path:
    """An artifact made of JSON alone, as a stranger writes it."""
    zero.save(folder)
    values = json.loads((folder / "artifact.json").read_text())
    values |= {key: value for key, value in changes.items() if key != "shape"}
    values["shape"] |= changes.get("shape", {})
    (folder / "artifact.json").write_text(json.dumps(values))
    (folder / "manifest.json").unlink()
    write_manifest(folder)
    return folder


def agent(folder: Path, tools=(), servers=()) -> dict:
    limits = {"max_steps": 2, "max_tokens": 16, "seconds": 1.0, "result_characters": 100}
    return {"kind": "agent", "tools": list(tools), "servers": list(servers), "folder": str(folder),
            "protocol": "json", "max_tokens": 8, "limits": limits}  # fmt: skip


def tool(function: str) -> dict:
    return {"name": "f", "description": "d", "parameters": '{"type": "object", "properties": {}}', "function": function,
            "server": -1, "sha256": ""}  # fmt: skip


AGENTS = {
    "an installed package's function": lambda folder: agent(
        folder, [tool("rung.evaluation.metrics.execution:run_program")]
    ),
    "a command": lambda folder: agent(folder, servers=[{"mcp": ["sh", "-c", f"touch {folder}/canary"], "only": None}]),
}


@pytest.mark.parametrize("payload", AGENTS)
def test_a_strangers_artifact_runs_nothing(stranger, zero, monkeypatch, capsys, payload):
    folder = artifact_of(stranger / "artifact", zero, decoder=AGENTS[payload](stranger))
    assert run(monkeypatch, "show", str(folder)) == 0
    assert run(monkeypatch, "run", str(folder), "hello") == 3
    assert ("error[not-trusted]" in capsys.readouterr().err, (stranger / "canary").exists()) == (True, False)
    with pytest.raises(RungError) as caught:
        Artifact.load(folder).predict([{"text": "hello"}])
    assert (caught.value.code, (stranger / "canary").exists()) == ("not-trusted", False)
    assert [permit.kind for permit in permits_of(folder)] in (["tool"], ["command"])


def test_a_changed_tool_is_found_without_importing_it(stranger, zero):
    task_with(stranger, "tools: [evil:look]")
    folder = artifact_of(
        stranger / "artifact", zero, decoder=agent(stranger, [tool("evil:look") | {"sha256": "0" * 64}])
    )
    with pytest.raises(RungError) as caught:
        Artifact.load(folder)
    assert (caught.value.code, (stranger / "canary").exists()) == ("artifact-mismatch", False)


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "..", "a/b", "", "-x", "x\n"])
def test_an_artifacts_task_is_no_path(stranger, zero, name):
    folder = artifact_of(stranger / "artifact", zero, shape={"task": name})
    with pytest.raises(RungError) as caught:
        Artifact.load(folder)
    assert caught.value.code == "artifact-damaged"


def test_texts_and_keys_go_only_to_endpoints_that_the_user_named(stranger, zero, monkeypatch):
    monkeypatch.setenv("RUNG_API_KEY", "secret")
    folder = artifact_of(stranger / "artifact", zero, model="https://api.example.test/v1#m", model_fingerprint=None)
    with pytest.raises(RungError) as caught:
        Artifact.load(folder).open()
    assert (caught.value.code, "api.example.test" in caught.value.message) == ("not-trusted", True)
    assert "secret" not in caught.value.render()
    reference = "https://api.example.test/v1#m"
    monkeypatch.setenv("RUNG_API_HOSTS", "other.test, api.example.test")
    assert ApiEngine(reference).endpoint.key == "secret"
    monkeypatch.setenv("RUNG_API_HOSTS", "api.example.test.evil.test")
    with pytest.raises(RungError):
        ApiEngine(reference)
    rung.trust(folder)
    ApiEngine(reference)
    monkeypatch.setenv("RUNG_OFFLINE", "1")
    with pytest.raises(RungError) as caught:
        ApiEngine(reference)
    assert caught.value.code == "network-off"


def test_programs_that_a_model_writes_need_consent(stranger):
    task_with(stranger, "metric: {name: code, allow_execution: true, tests: text}")
    task = Task.load(stranger / "task.yaml")
    metric = get_metric("code", stranger, task.metric_settings)
    with pytest.raises(RungError) as caught:
        metric("print(1)", ["print(1)"], {"text": "pass"})
    assert caught.value.code == "not-trusted"
    rung.trust(task)
    assert metric("x = 1", ["x = 1"], {"text": "assert x == 1"}) == 1.0


def test_a_commands_own_files_count(stranger):
    server = stranger / "server.py"
    server.write_text("x = 1\n")
    command = [sys.executable, "server.py"]
    user_code.allow([user_code.command_permit(command, stranger)])
    assert user_code.allowed(user_code.command_permit(command, stranger))
    assert not user_code.allowed(user_code.command_permit(command, stranger.parent))
    server.write_text("x = 2\n")
    with pytest.raises(RungError) as caught:
        find_tools([McpServer(mcp=command)], stranger)
    assert caught.value.code == "not-trusted"


def test_trust_asks_shows_and_takes_back(stranger, monkeypatch, capsys):
    file = task_with(stranger, "metric: evil:score")
    assert run(monkeypatch, "trust", str(stranger)) == 3  # nobody can be asked
    shown = capsys.readouterr()
    assert ("evil:score" in shown.out, "evil.py" in shown.out, "error[not-trusted]" in shown.err) == (True, True, True)
    assert run(monkeypatch, "trust", str(stranger), "--yes") == 0
    assert not user_code.missing(permits_of(file))
    assert run(monkeypatch, "trust", str(stranger), "--revoke") == 0
    assert len(user_code.missing(permits_of(file))) == 1
    monkeypatch.setenv("RUNG_TRUST", os.pathsep.join(["/nowhere", str(stranger)]))
    assert not user_code.missing(permits_of(file))


def test_a_redirect_takes_neither_text_nor_key_elsewhere(monkeypatch):
    """The first server sends its caller to the second."""
    seen = []

    class Second(BaseHTTPRequestHandler):
        def do_POST(self):
            seen.append(self.headers.get("authorization"))
            self.send_error(500)

        do_GET = do_POST  # noqa: N815

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Second) as second:

        class First(Second):
            def do_POST(self):
                self.send_response(307)
                self.send_header("location", f"http://127.0.0.1:{second.server_port}/v1/chat/completions")
                self.send_header("content-length", "0")
                self.end_headers()

            do_GET = do_POST  # noqa: N815

        with HTTPServer(("127.0.0.1", 0), First) as first:
            for server in (first, second):
                Thread(target=server.serve_forever, daemon=True).start()
            monkeypatch.setenv("RUNG_API_KEY", "secret")
            engine = ApiEngine(f"http://127.0.0.1:{first.server_port}/v1#m", ApiOptions(attempts=1))
            with pytest.raises(RungError):
                engine.generate([GenerateRequest(({"role": "user", "content": "private"},), Sampling(max_tokens=1))])
            first.shutdown()
            second.shutdown()
    assert seen == []
