"""An index in an object store, on a server that speaks S3: `RUNG_TEST_S3` names a running one, or moto is started."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from typer.testing import CliRunner

from rung.artifact.artifact import load_retriever
from rung.cli.main import app
from rung.data.spec import Corpus
from rung.errors import ArtifactError, ConfigError
from rung.retrieval import store as places
from rung.retrieval.build import build
from rung.retrieval.index import Index
from rung.retrieval.retriever import LOCATION, Retriever, open_index
from rung.retrieval.store import PassageTable, connected, names, open_location

TOPICS = ("card payment", "wire transfer", "exchange rate")


@pytest.fixture(scope="module")
def endpoint():
    if running := os.environ.get("RUNG_TEST_S3"):
        yield running
        return
    if find_spec("moto") is None or find_spec("flask_cors") is None:
        pytest.skip("needs a server of S3: install the extra `dev`, or name a running one in RUNG_TEST_S3")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
        server.terminate()


@pytest.fixture
def url(endpoint, monkeypatch):
    """A bucket of its own, reached as a user would: by the variables of the environment."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    bucket = f"rung-{uuid.uuid4().hex[:12]}"
    connection = http.client.HTTPConnection(urlsplit(endpoint).netloc)
    connection.request("PUT", f"/{bucket}")
    assert connection.getresponse().status == 200
    connection.close()
    monkeypatch.setenv(
        "RUNG_API_HOSTS", f"{bucket},{bucket.replace('rung-', 'none-')}"
    )  # what a task names needs consent
    return f"s3://{bucket}/team/index"


@pytest.fixture
def base(tmp_path):
    (tmp_path / "docs").mkdir()
    for number, topic in enumerate(TOPICS):
        (tmp_path / f"docs/{number}.md").write_text(f"# About {topic}\n\nThis page tells of {topic} number {number}.\n")
    return tmp_path


@pytest.fixture
def corpus(url):
    return Corpus(files="docs", store=url)


@pytest.fixture
def built(url, corpus, base, encoder):
    return build(url, corpus, base)


@pytest.fixture
def another_machine(monkeypatch, tmp_path_factory):
    """Return a function that goes on with another cache: what this process knew of object stores is forgotten."""

    def go():
        cache = tmp_path_factory.mktemp("cache")
        monkeypatch.setenv("RUNG_CACHE", str(cache))
        places._bucket.cache_clear()
        return cache

    return go


def found(index, query):
    return index.search([query], 1)[0][0].document


def test_it_finds_what_an_index_in_a_folder_finds(built, base):
    local = build(base / "index", Corpus(files="docs"), base)
    queries = [f"tell me of {topic}" for topic in TOPICS]
    assert built.search(queries, 3) == local.search(queries, 3)
    assert [found(built, query) for query in queries] == ["docs/0.md", "docs/1.md", "docs/2.md"]
    assert len(built) == len(local) == 3


def test_another_machine_reads_it_by_its_url_alone(built, url, base, another_machine):
    cache = another_machine()
    index = Index.open(url + "/")
    assert (index.folder, index.fingerprint) == (url, built.fingerprint)
    assert found(index, "exchange rate") == "docs/2.md"
    assert list(cache.iterdir()) == []


def test_updates_embed_what_changed_and_do_not_disturb_readers(built, url, corpus, base, encoder, another_machine):
    encoder.embedded.clear()
    assert build(url, corpus, base).fingerprint == built.fingerprint
    (base / "docs/0.md").write_text("# About gold\n\nNow this page tells of gold bars.\n")
    (base / "docs/1.md").unlink()
    another_machine()
    changed = build(url, corpus, base)
    assert encoder.embedded == ["About gold\n# About gold\n\nNow this page tells of gold bars."]
    assert len(changed) == 2
    assert found(changed, "gold bars") == "docs/0.md"
    assert {p.document for p in changed.search(["wire transfer"], 9)[0]} == {"docs/0.md", "docs/2.md"}
    assert built.search(["card payment"], 1)[0][0].text.endswith("tells of card payment number 0.")


def test_who_has_it_open_gets_the_update_of_another_machine(built, url, corpus, base, another_machine):
    retriever = Retriever(url, built.fingerprint, "")
    assert retriever.index is retriever.index
    assert found(retriever.index, "wire") == "docs/1.md"
    elsewhere = places._Bucket(url)
    (base / "docs/new.md").write_text("# Gold\n\nGold bars lie here.\n")
    held = places._bucket(url)
    another_machine()
    build(url, corpus, base)
    assert places._bucket(url) is not held
    assert held.read() == elsewhere.read() == open_location(url).read()
    assert found(open_index(url), "gold bars") == "docs/new.md"


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.retrieval.conftest import WordEncoder
from rung.retrieval import build as building, index as indexes, store
from rung.data.spec import Corpus
one = WordEncoder()
building.open_encoder = indexes.open_encoder = lambda *a, **k: one
indexes.resolve = lambda reference: one
store.PassageTable.finish = lambda self, **settings: os.kill(os.getpid(), signal.SIGKILL)
building.build(sys.argv[3], Corpus(files="docs", store=sys.argv[3]), Path(sys.argv[1]))
"""


def test_a_killed_build_goes_on_on_any_machine(url, base, encoder, corpus, another_machine):
    root = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", KILLED, str(base), root, url], env={**os.environ}, check=False)
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(ArtifactError, match="holds no complete index"):
        Index.open(url)
    another_machine()
    index = build(url, corpus, base)
    assert ([text for text in encoder.embedded if "number" in text], len(index)) == ([], 3)
    assert found(index, "exchange rate") == "docs/2.md"


def test_builds_of_two_machines_at_once_do_not_publish_passages_twice(
    url, corpus, base, encoder, another_machine, monkeypatch
):
    add, others = PassageTable.add, []

    def interrupted(self, rows, vectors):
        if not others:
            others.append(True)
            mine = dict(os.environ)
            another_machine()
            others.append(build(url, corpus, base))
            os.environ["RUNG_CACHE"] = mine["RUNG_CACHE"]
        add(self, rows, vectors)

    monkeypatch.setattr(PassageTable, "add", interrupted)
    with pytest.raises(ArtifactError) as conflict:
        build(url, corpus, base)
    assert conflict.value.code == "index-conflict"
    assert len(Index.open(url)) == len(others[1]) == 3
    assert len(build(url, corpus, base, again=True)) == 3


def test_two_builds_on_a_machine_wait_for_each_other(url, corpus, base, encoder):
    results = []
    threads = [threading.Thread(target=lambda: results.append(build(url, corpus, base))) for _ in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert [len(index) for index in results] == [3, 3]
    assert len([text for text in encoder.embedded if "number" in text]) == 3


def test_a_url_holds_one_index(built, url, corpus, base):
    other = corpus.model_copy(update={"chunk_tokens": 8})
    with pytest.raises(ConfigError) as taken:
        build(url, other, base)
    assert taken.value.code == "file-exists"
    assert found(Index.open(url), "wire") == "docs/1.md"
    again = build(url, other, base, again=True)
    assert again.manifest.tokens == 8
    assert sorted(names(connected(url))) == ["index", again.manifest.table]


def test_what_is_lost_is_an_error(built, url, corpus, base):
    connected(url).drop_table(built.manifest.table)
    with pytest.raises(ArtifactError) as damaged:
        Index.open(url)
    assert damaged.value.code == "index-missing"
    assert len(build(url, corpus, base)) == 3


def test_a_store_that_cannot_be_reached_says_why(url, base, encoder, monkeypatch):
    nowhere = url.replace("rung-", "none-")
    with pytest.raises(ArtifactError, match="cannot be read or written: NoSuchBucket: ") as unreachable:
        build(nowhere, Corpus(files="docs", store=nowhere), base)
    assert unreachable.value.code == "index-unreachable"
    assert "secret" not in unreachable.value.render()
    with pytest.raises(ArtifactError, match="NoSuchBucket"):
        Index.open(nowhere)


def test_an_artifact_refers_to_it(built, url, corpus, base, monkeypatch, tmp_path):
    retriever = Retriever(
        url, built.fingerprint, "Read.", encoder_fingerprint=built.manifest.encoder_fingerprint, chunk_tokens=64
    )
    saved = {"retriever": json.loads(json.dumps({**asdict(retriever), "folder": str(retriever.folder)}))}
    assert load_retriever(tmp_path, saved) == retriever
    monkeypatch.setenv(LOCATION, url + "/")
    assert load_retriever(tmp_path, {"retriever": {**saved["retriever"], "folder": "/nowhere"}}) == retriever
    build(url, corpus.model_copy(update={"chunk_tokens": 8}), base, again=True)
    with pytest.raises(
        ArtifactError, match=f"was measured with passages of 64 tokens .*; the index {url} has 8"
    ) as made:
        load_retriever(tmp_path, saved)
    assert made.value.code == "index-mismatch"


def test_the_commands(url, base, encoder):
    (base / "rows.csv").write_text("q,a\nx,y\n")
    file = base / "task.yaml"
    file.write_text(
        "name: docs\ninstruction: Answer.\ninputs: [q]\noutput: {column: a, kind: text}\ndata: {train: rows.csv}\n"
        f"corpus: {{files: docs, store: '{url}/'}}\n"
    )

    def run(*arguments):
        done = CliRunner().invoke(app, ["index", *arguments])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.stdout

    with pytest.raises(ArtifactError, match=f"{url} holds no complete index"):
        run("update", str(file))
    assert run("build", str(file), "-q").startswith("3 passages of up to 64 tokens from 3 documents")
    assert run("path", str(file)) == f"{url}\n"
    (base / "docs/0.md").unlink()
    run("update", str(file), "-q")
    assert json.loads(run("show", str(file), "--json"))["documents"] == 2
    assert run("search", str(file), "wire transfer", "-k", "1").startswith("[1] docs/1.md, characters 0-65: About wire")


@pytest.mark.parametrize("store", ["memory://", "db://x", "/srv/index", "s3://", "s3:///x", "s3://b/x?y"])
def test_what_is_no_object_store_is_refused(store):
    with pytest.raises(ValueError, match="`store` must be s3://BUCKET/PATH"):
        Corpus(files="docs", store=store)
