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
from engines.fault_server import FaultServer, Reply
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


HOST = "http://127.0.0.1:8000"
VENDOR = {"OPENAI_ORG_ID": "org", "OPENAI_PROJECT_ID": "proj", "OPENAI_CUSTOM_HEADERS": "X-Own: secret"}


@pytest.mark.parametrize(
    ("named", "address", "gets"),
    [
        ("", HOST, False),
        (HOST, HOST, True),
        ("127.0.0.1:8000", HOST, True),
        ("127.0.0.1", HOST, False),
        ("localhost:8000", HOST, False),
        (HOST, "http://127.0.0.1:9999", False),
        (HOST, "https://127.0.0.1:8000", False),
        ("127.0.0.1:800", HOST, False),
        ("https://api.test", "https://api.test", True),
        ("https://api.test", "https://API.test:443", True),
        ("https://api.test", "http://api.test", False),
        ("https://api.test", "https://api.test:8443", False),
        ("api.test", "https://api.test", True),
        ("api.test", "http://api.test", False),
        ("api.test", "https://api.test:8443", False),
        ("api.test:80", "http://api.test", True),
        ("http://api.test", "http://api.test:80", True),
        ("api.test:443", "http://api.test", False),
        ("api.test", "https://my.api.test", False),
        ("bucket", "s3://bucket/indexes", True),
    ],
)
def test_a_name_is_a_scheme_a_host_and_a_port(stranger, monkeypatch, named, address, gets):
    monkeypatch.setenv("RUNG_API_HOSTS", named)
    assert user_code.allowed(user_code.endpoint_permit(f"{address}/v1")) == gets


@pytest.fixture
def listener(monkeypatch):
    """A program on this machine that asks for a key; what it was sent is in `listener.asked`."""
    server = FaultServer()
    server._default = lambda path, body: Reply({"error": {"message": "no"}}, 401)
    monkeypatch.setenv("RUNG_API_KEY", "secret")
    for name, value in VENDOR.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(user_code, "_named", set())
    yield server
    server.close()


def test_a_program_of_this_machine_gets_no_key_that_the_user_did_not_mean_for_it(
    stranger, listener, zero, monkeypatch, capsys
):
    """Through each command; then each way to name the endpoint sends the key."""
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):  # another machine's: texts of this machine do not pass it
        monkeypatch.setenv(name, "http://192.0.2.1:1")
    folder = artifact_of(stranger / "artifact", zero, model=listener.reference, model_fingerprint=None)
    task_with(stranger, f"model: {listener.reference}")
    server = listener.reference.partition("/v1")[0]
    task = str(stranger / "task.yaml")
    commands = {
        "run": ("run", str(folder), "hello", "--offline"),
        "climb": ("climb", task, "--rungs", "zero-shot", "--out", str(stranger / "runs"), "--quiet"),
    }
    monkeypatch.setenv("RUNG_OFFLINE", "")  # `--offline` sets it: take it back at the end
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, arguments in commands.items():
        asked = len(listener.asked)
        assert run(monkeypatch, *arguments) == 3, name
        shown = capsys.readouterr().err
        assert ("error[api-key-refused]" in shown, f"RUNG_API_HOSTS={server}" in shown) == (True, True), shown
        assert len(listener.asked) > asked, "the text goes there"
    other = FaultServer()  # one that the user names is not the one that the file names
    monkeypatch.setenv("RUNG_API_HOSTS", other.reference.partition("/v1")[0])
    other.close()
    run(monkeypatch, *commands["run"])
    for path, body, headers in listener.asked:
        assert "authorization" not in headers, path
        assert not {"openai-organization", "openai-project", "x-own"} & headers.keys(), path
        assert "secret" not in f"{body}{headers}"

    def sent(*arguments):
        listener.asked.clear()
        run(monkeypatch, *arguments)
        return {headers.get("authorization") for _, _, headers in listener.asked}

    monkeypatch.setenv("RUNG_API_HOSTS", server)
    assert sent(*commands["run"]) == {"Bearer secret"}
    monkeypatch.setenv("RUNG_API_HOSTS", "")
    assert sent(*commands["run"]) == {None}
    assert sent(*commands["climb"], "--set", f"model={listener.reference}") == {"Bearer secret"}
    user_code._named.clear()
    assert run(monkeypatch, "trust", task, "--yes") == 0
    assert sent(*commands["climb"]) == {"Bearer secret"}
    assert run(monkeypatch, "trust", task, "--revoke") == 0
    assert sent(*commands["climb"]) == {None}
    assert not {"openai-organization", "openai-project", "x-own"} & listener.asked[0][2].keys(), "not over http"


def test_worker_processes_know_what_the_command_line_names(stranger, monkeypatch):
    monkeypatch.setattr(user_code, "_named", set())
    user_code.name_endpoint(f"{HOST}/v1#m")
    monkeypatch.setenv("RUNG_API_HOSTS", user_code.named_endpoints())
    user_code._named.clear()
    assert user_code.allowed(user_code.endpoint_permit(HOST))


@pytest.mark.parametrize(("reference", "status"), [("http://[::1/v1#m", 2), ("http://a:b/v1#m", 3)])
def test_an_address_that_is_none_is_an_error(stranger, reference, status, monkeypatch, capsys):
    task_with(stranger, f"model: '{reference}'")
    assert run(monkeypatch, "climb", str(stranger / "task.yaml"), "--rungs", "zero-shot") == status
    assert "error[" in capsys.readouterr().err


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
            monkeypatch.setenv("RUNG_API_HOSTS", f"127.0.0.1:{first.server_port},127.0.0.1:{second.server_port}")
            engine = ApiEngine(f"http://127.0.0.1:{first.server_port}/v1#m", ApiOptions(attempts=1))
            with pytest.raises(RungError):
                engine.generate([GenerateRequest(({"role": "user", "content": "private"},), Sampling(max_tokens=1))])
            first.shutdown()
            second.shutdown()
    assert seen == []
