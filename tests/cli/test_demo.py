import csv
import json
import subprocess
import sys
from importlib.resources import files

from rung.evaluation.result import ClimbResult


def test_the_demo_climbs_on_what_comes_with_the_package(tmp_path):
    command = [sys.executable, "-m", "rung", "demo", str(tmp_path / "demo"), "--budget", "25s", "--json", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    values = json.loads(done.stdout)
    assert values["decision"]
    result = ClimbResult.read(tmp_path / "demo" / "runs" / "demo")
    assert result.rows == "folds"
    assert result.seconds < 60
    assert (tmp_path / "demo" / "runs" / "demo" / "report.html").is_file()


def test_its_rows_name_their_source_and_licence():
    folder = files("rung.cli").joinpath("demo")
    assert "CC BY 4.0" in folder.joinpath("README.md").read_text("utf-8")
    rows = list(csv.DictReader(folder.joinpath("messages.csv").read_text("utf-8").splitlines()))
    assert len(rows) >= 80
    assert len({row["category"] for row in rows}) == 8
