import json

import pytest
from typer.testing import CliRunner

from rung.cli.main import app
from rung.errors import ArtifactError, ConfigError


def run(*arguments):
    done = CliRunner().invoke(app, list(map(str, arguments)))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.fixture
def file(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/refunds.md").write_text("# Refunds\n\nMoney comes back within five days.\n")
    (tmp_path / "docs/parking.md").write_text("# Parking\n\nCars stand behind the house.\n")
    (tmp_path / "docs/logo.png").write_bytes(b"x")
    (tmp_path / "rows.csv").write_text("q,a\nx,y\n")
    file = tmp_path / "task.yaml"
    file.write_text(
        "name: house\ninstruction: Answer.\ninputs: [q]\noutput: {column: a, kind: text}\ndata: {train: rows.csv}\n"
        "corpus: {files: docs}\n"
    )
    return file


def test_build_show_search_update_path(file):
    with pytest.raises(ArtifactError, match="holds no complete index"):
        run("index", "update", file)
    assert run("index", "build", file, "-q").stdout == (
        "2 passages of up to 250 tokens from 2 documents in 2 files; 1 files left out\n"
        "  left out  docs/logo.png: files of kind .png are not read\n"
        f"Next: rung index search {file} 'a question'\n"
    )
    shown = json.loads(run("index", "show", file, "--json").stdout)
    assert (shown["passages"], shown["left_out"], shown["encoder"]) == (2, 1, "embedded-encoder")
    assert run("index", "path", file).stdout.strip() == shown["folder"]

    best = json.loads(run("index", "search", file, "when do I get my cash again?", "-k", "1", "--json").stdout)
    assert [(one["document"], one["start"]) for one in best] == [("docs/refunds.md", 0)]
    filtered = run("index", "search", file, "cash", "--filter", "document=docs/parking.md")
    assert filtered.stdout.startswith("[1] docs/parking.md, characters 0-39: Parking\n# Parking\n\nCars")

    (file.parent / "docs/refunds.md").write_text("# Refunds\n\nMoney comes back within nine days.\n")
    stale = run("index", "search", file, "cash", "-k", "1")
    assert "0 new, 1 changed, 0 removed; run `rung index update`" in stale.stderr
    run("index", "update", file, "-q")
    fresh = run("index", "search", file, "cash", "-k", "1")
    assert "nine days" in fresh.stdout
    assert fresh.stderr == ""


def test_what_search_does_not_know_is_refused(file):
    with pytest.raises(ConfigError, match="unknown --mode 'fuzzy'"):
        run("index", "search", file, "x", "--mode", "fuzzy")
    with pytest.raises(ConfigError, match="'document' has no `=`"):
        run("index", "search", file, "x", "--filter", "document")
