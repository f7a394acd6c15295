"""Replicas that come and go under load drop no request."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "serving_scale.py"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nginx") is None, reason="apt-get install nginx")
def test_one_to_four_to_one_replicas_drop_nothing(tiny_folder):
    command = [sys.executable, SCRIPT, "--model", tiny_folder, "--engine", "torch", "--seconds", "3"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["dropped"], told["exit_codes"]) == (0, [0, 0, 0])
    assert all(phase["requests"] > 0 for phase in told["phases"].values())
