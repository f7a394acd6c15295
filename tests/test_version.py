"""The version is written twice, in the package and in pyproject.toml."""

from __future__ import annotations

import tomllib
from pathlib import Path

import rung
from rung._version import __version__


def test_the_package_and_the_project_file_name_the_same_version() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))
    assert rung.__version__ == __version__ == project["project"]["version"]
