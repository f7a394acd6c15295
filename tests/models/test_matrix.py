"""The table of families: what is shipped, shown and measured is the same, and nothing in it is silently wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rung.cli.render_models import cell
from rung.models.open_models import families

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "model_matrix.py"
TABLE = families()["families"]
PAGE = (ROOT / "docs" / "choosing-a-model.md").read_text("utf-8")


@pytest.mark.parametrize("name", TABLE)
def test_every_cell_is_exact_or_refused_and_shown(name):
    assert set(TABLE[name]) == set(next(iter(TABLE.values())))
    for column, measured in TABLE[name].items():
        assert measured.split(",")[0] in ("exact", "n.a.") or measured.startswith("refused: "), (
            column,
            measured,
        )
    line = next(line for line in PAGE.splitlines() if line.startswith(f"| {name} |"))
    assert [part.strip() for part in line.split("|")[2:-1]] == [cell(own) for own in TABLE[name].values()]


def measured(names, columns, folder):
    command = [sys.executable, str(SCRIPT), *names, "--columns", ",".join(columns), "--table", str(folder / "t.json")]
    # Some exports fetch the libraries that they need, once.
    offline = () if "openvino" in columns else ("HF_HUB_OFFLINE", "RUNG_OFFLINE")
    kept = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE") or name in offline}
    subprocess.run(command, check=True, capture_output=True, text=True, env=kept)
    return json.loads((folder / "t.json").read_text("utf-8"))["families"]


@pytest.mark.slow
@pytest.mark.parametrize("column", list(next(iter(TABLE.values()))))
def test_measuring_again_gives_the_table(column, tmp_path):
    again = measured([], [column], tmp_path)
    assert {name: cell(own[column]) for name, own in again.items()} == {
        n: cell(own[column]) for n, own in TABLE.items()
    }
