from __future__ import annotations

from pathlib import Path

import pytest

from crews import SPEED, report_of, run
from rung import machine


@pytest.fixture(scope="session", autouse=True)
def _same_speed():
    """The order of arms depends on the speed of this machine, which other processes change."""
    patch = pytest.MonkeyPatch()
    patch.setattr(machine, "_matmul_rate", lambda: SPEED)
    machine.this_machine.cache_clear()
    yield
    patch.undo()
    machine.this_machine.cache_clear()


@pytest.fixture(scope="session")
def free_task_file(small_task_file, tiny_folder, tmp_path_factory) -> Path:
    """The small task on a random model, with a free machine, so that no decision depends on measured times."""
    file = small_task_file.with_name("free.yaml")
    text = small_task_file.read_text() + f"model: {tiny_folder}\nmachine: {{price_per_hour: 0}}\n"
    file.write_text(text)
    return file


@pytest.fixture(scope="session")
def alone(free_task_file, tmp_path_factory):
    return report_of(run(free_task_file, tmp_path_factory.mktemp("alone")))
