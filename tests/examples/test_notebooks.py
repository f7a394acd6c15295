"""The example notebooks run from their folder, and what is committed of them was run."""

import re
import shutil
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = ("banking77", "documents", "preferences", "sroie")


def read(name):
    import nbformat

    return nbformat.read(EXAMPLES / name / f"{name}.ipynb", nbformat.NO_CONVERT)


def cells(book):
    return [cell for cell in book.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_small_and_was_run_without_an_error(name):
    assert (EXAMPLES / name / f"{name}.ipynb").stat().st_size < 200_000
    run = cells(read(name))
    assert [cell.execution_count for cell in run] == list(range(1, len(run) + 1))
    outputs = [output for cell in run for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"execute_result", "display_data", "stream"}
    texts = [str(output.get("text", "")) + str(output.get("data", {}).get("text/html", "")) for output in outputs]
    assert not re.search(r"(?:^|[\s\"'>])/(?:home|root|tmp|work|Users)/", " ".join(texts))


def is_progress(output):
    """Whether an output shows how far something is: bars and boards leave text, which no result is alone."""
    if output.output_type == "stream":
        return output.name == "stderr"
    return output.output_type == "display_data" and set(output.data) == {"text/plain"}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs(name, tmp_path):
    from nbclient import NotebookClient

    folder = tmp_path / name
    shutil.copytree(EXAMPLES / name, folder, ignore=shutil.ignore_patterns("runs"))
    book = read(name)
    wanted = [sorted(output.get("data", {})) for cell in cells(book) for output in cell.outputs]
    NotebookClient(book, timeout=900, resources={"metadata": {"path": str(folder)}}).execute()
    got = [sorted(output.get("data", {})) for cell in cells(book) for output in cell.outputs if not is_progress(output)]
    assert got == wanted
