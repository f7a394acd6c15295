import json
import os
import re
import subprocess
import sys
import threading
import warnings
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from rung.errors import ConfigError, ModelError
from rung.machine import Machine
from rung.models import open_models
from rung.models.embedded import EMBEDDED
from rung.models.open_models import TASKS, ModelQuery, bytes_of, find, load, search, tokens_of

GB = 10**9


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNG_CACHE", str(tmp_path / "cache"))


def ids(found):
    return [model.id for model in found.suitable]


def test_every_entry_is_well_formed():
    models = load()
    assert len(models) >= 40
    assert len({model.id for model in models}) == len(models)
    for model in models:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", model.id)
        assert re.fullmatch(r"20\d\d-\d\d", model.released), model.id
        assert model.source == f"https://huggingface.co/{model.id}"
        assert model.access in ("open", "gated", None)
        assert model.kind in ("language model", "sentence encoder", "reranker")
        assert model.licence, model.id
        assert model.thinking in (("no", "off", "on") if model.kind == "language model" else ("",)), model.id
        static = model.note.startswith("static")  # a table of token vectors reads texts of any length
        assert (model.context is None) == static, model.id
        assert model.scaled_context is None or model.scaled_context > model.context, model.id
        assert set(model.prompts) <= {"query", "document"}
        assert not model.prompts or model.kind == "sentence encoder"
        assert model.languages is None or all(re.fullmatch(r"[a-z]{2}", code) for code in model.languages), model.id
        for score in model.scores:
            assert 0 < score.value < 100
            assert score.source.startswith("https://")
            assert re.fullmatch(r"20\d\d-\d\d", score.date)


def test_models_that_always_think_say_so():
    for model in load():
        assert ("R1-Distill" in model.id) == model.note.startswith("Thinks always"), model.id
        assert not model.note.startswith("Thinks always") or model.thinking == "on"


def test_every_benchmark_of_a_task_has_a_score_somewhere():
    known = {score.benchmark for model in load() for score in model.scores}
    assert {name for names in TASKS.values() for name in names} <= known


def test_the_embedded_models_are_listed_with_the_same_facts():
    for embedded in EMBEDDED:
        model = find(embedded.source.removeprefix("https://huggingface.co/"))
        facts = (model.kind, model.parameters, model.context, model.licence)
        assert facts == (embedded.kind, embedded.parameters, embedded.context, embedded.licence)


def test_everything_that_is_wanted_holds():
    found = search(ModelQuery("summarization", "de", "permissive", 16 * GB, 32 * 1024))
    assert "Qwen/Qwen2.5-7B-Instruct" in ids(found)
    for model in found.suitable:
        assert "de" in model.languages
        assert model.licence in ("apache-2.0", "mit")
        assert model.parameters * 0.5 + 2**30 <= 16 * GB
        assert max(model.context, model.scaled_context or 0) >= 32768
    assert not any("llama" in name.lower() for name in ids(found))


def test_a_missing_fact_is_told_and_never_taken_for_a_yes():
    found = search(ModelQuery(language="de"))
    assert ("Qwen/Qwen3-8B", "languages") in [(model.id, fact) for model, fact in found.unknown]
    assert "Qwen/Qwen3-8B" not in ids(found)
    assert "google/gemma-2-9b-it" not in [*ids(found), *(model.id for model, _ in found.unknown)]  # lists English only


def test_each_task_lists_models_of_its_kind():
    for task, kind in {"reranking": "reranker", "similarity": "sentence encoder", "chat": "language model"}.items():
        assert {model.kind for model in search(ModelQuery(task)).suitable} == {kind}


def test_scores_order_models_of_a_task():
    ordered = [model.score("GSM8K") for model in search(ModelQuery("reasoning")).suitable]
    scored = [score.value for score in ordered if score]
    assert scored == sorted(scored, reverse=True)
    assert all(score is None for score in ordered[len(scored) :])
    assert find("Qwen/Qwen2.5-7B-Instruct").score("GSM8K").value == 91.6


def test_similarity_lists_sentence_encoders_alone():
    assert {model.kind for model in search(ModelQuery("similarity")).suitable} == {"sentence encoder"}
    assert "sentence encoder" not in {model.kind for model in search(ModelQuery()).suitable}


def test_memory_and_speed_by_hand():
    model = find("meta-llama/Llama-3.2-1B-Instruct")
    assert model.memory() == {"fp32": 4_920_000_000 + 2**30, "bf16": 2_460_000_000 + 2**30,
                              "int8": 1_230_000_000 + 2**30, "int4": 615_000_000 + 2**30}  # fmt: skip
    assert [model.fits(limit * GB) for limit in (7, 4, 2, 1)] == ["fp32", "bf16", "int4", None]
    machine = Machine(2, 8 * GB, 2.46e9 / 0.6)  # reads one token a second at a share of 0.6
    assert model.tokens_per_second(machine) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("text", "size"),
    [("16GB", 16 * GB), ("16 GiB", 2**34), ("512mb", 512_000_000), ("1.5g", 1_500_000_000), ("100", 100), ("1tb", None),
     ("GB", None), ("", None), ("nan", None), ("inf", None)],
)  # fmt: skip
def test_sizes(text, size):
    assert bytes_of(text) == size


def test_contexts():
    assert [tokens_of(text) for text in ("32k", "128K", "4,096", "many")] == [32768, 131072, 4096, None]


def test_a_revision_is_left_aside():
    assert find("qwen/qwen2.5-7b-instruct@main").id == "Qwen/Qwen2.5-7B-Instruct"
    assert find("org/none") is None


@pytest.fixture
def rung_in():
    """The command in a terminal of so many columns."""
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        from typer.testing import CliRunner

        from rung.cli.models import app

    def in_columns(columns):
        environment = {"COLUMNS": str(columns)}
        return lambda *arguments: CliRunner().invoke(app, arguments, catch_exceptions=False, env=environment)

    return in_columns


@pytest.fixture
def rung(rung_in):
    return rung_in(200)


def test_the_command(rung):
    answer = json.loads(rung("search", "--task", "extraction", "--memory", "4GB", "--json").stdout)
    assert answer["wanted"]["memory"] == 4 * GB
    first = answer["models"][0]
    assert first["scores"][0]["source"].startswith("https://")
    assert first["memory_bytes"]["int4"] <= 4 * GB
    shown = rung("search", "--task", "extraction", "--memory", "4GB").stdout
    assert first["id"] in shown
    assert "parameters not known, so left out: ibm-granite/granite-3.3-2b-instruct" in " ".join(shown.split())


@pytest.mark.parametrize("columns", [80, 100, 200])
def test_nothing_is_cut_whatever_the_width(rung_in, columns):
    wanted = ("--task", "summarization", "--language", "de", "--licence", "permissive", "--memory", "16GB")
    shown = rung_in(columns)("search", *wanted, "--context", "32k").stdout
    table = shown.partition("languages not known")[0]
    assert "…" not in table
    assert all(len(line) <= columns for line in table.splitlines())
    found = search(ModelQuery("summarization", "de", "permissive", 16 * GB, 32 * 1024))
    lines = table.splitlines()
    assert len(lines) == (1 if columns == 200 else 2) * (1 + len(found.suitable))
    heads, row = (lines[0], lines[1]) if columns == 200 else (lines[1], lines[3])
    for name in ("size", "context", "fits in", "tokens/s", "FACTS Grounding"):
        end = heads.index(name) + len(name)
        assert row[end - 1] != " "  # cells end under the end of their heading
        assert row[end : end + 1] in ("", " ")
    assert all(model.id in table for model in found.suitable)


def test_what_is_unlisted_is_said(rung):
    shown = rung("search", "--language", "tlh").stdout
    assert shown.startswith("no model of the catalogue is known to suit\n")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--task", "sumarization"), "unknown-name"),
        (("--memory", "much"), "bad-option"),
        (("--context", "0"), "bad-option"),
        (("--language", "German"), "unknown-name"),
        (("--licence", "premissive"), "unknown-name"),
    ],
)
def test_wrong_options(rung, arguments, code):
    with pytest.raises(ConfigError) as caught:
        rung("search", *arguments)
    assert caught.value.code == code


def test_refreshing_offline_says_so(monkeypatch):
    monkeypatch.setenv("RUNG_OFFLINE", "1")
    with pytest.raises(ModelError) as caught:
        open_models.refresh("2026-01-01")
    assert caught.value.code == "network-off"


class Hub(BaseHTTPRequestHandler):
    """Knows one model, to which the language de and a licence were added since."""

    def do_GET(self):
        known = self.path.startswith("/api/models/ibm-granite/granite-3.3-2b-instruct?")
        body = {
            "_id": "1", "id": "ibm-granite/granite-3.3-2b-instruct", "gated": "auto",
            "safetensors": {"parameters": {"BF16": 2_533_539_840}, "total": 2_533_539_840},
            "cardData": {"license": "other", "license_name": "granite", "language": ["en", "sw"]},
        }  # fmt: skip
        text = json.dumps(body if known else {"error": "Repository not found"}).encode()
        self.send_response(200 if known else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *arguments):
        pass


def test_refreshing_from_a_hub(tmp_path):
    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "rung", "models", "search", "--language", "sw", "--refresh", "--json", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    server.shutdown()
    server.server_close()
    (model,) = json.loads(done.stdout)["models"]
    assert (model["id"], model["parameters"]) == ("ibm-granite/granite-3.3-2b-instruct", 2_533_539_840)
    assert (model["licence"], model["access"]) == ("granite", "gated")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", model["checked"])
    assert "1 models refreshed" in done.stderr
    assert "not refreshed: Qwen/Qwen2.5-7B-Instruct" in done.stderr
    assert [m.id for m in search(ModelQuery(language="sw")).suitable] == ["ibm-granite/granite-3.3-2b-instruct"]  # kept
