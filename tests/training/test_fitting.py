import runpy
from pathlib import Path

import pytest
from toys import llama

from rung.training.examples import TokenizedExample
from rung.training.memory import CPU_TOKENS, SHARE, Fit, bytes_per_token, fit_memory


def rows(*lengths: int, shared: int = 0) -> list[TokenizedExample]:
    """Rows of so many tokens whose first ones are the same."""
    return [
        TokenizedExample.answered((0,) * shared + (i + 1,) * (length - shared - 1), (0,), "row")
        for i, length in enumerate(lengths)
    ]


@pytest.fixture(scope="module")
def model():
    return llama()


def test_short_rows_run_all_at_once(model):
    assert fit_memory(model, rows(60, 20, 64), 16) == Fit(16, 16, checkpointing=False)


def test_long_rows_run_in_even_passes_of_no_more_tokens_than_a_processor_gains_from(model):
    assert fit_memory(model, rows(CPU_TOKENS // 15, 3), 16) == Fit(16, 8, checkpointing=False)
    assert fit_memory(model, rows(CPU_TOKENS + 1, 3), 16) == Fit(16, 1, checkpointing=False)


def test_a_shared_beginning_is_no_reason_for_more_passes(model):
    long = CPU_TOKENS // 2
    assert fit_memory(model, rows(long, long), 16) == Fit(16, 2, checkpointing=False)
    assert fit_memory(model, rows(long, long, shared=long - 128), 16) == Fit(16, 16, checkpointing=False)


def test_a_shared_beginning_is_the_smaller_part_of_a_pass(model):
    shared, own = CPU_TOKENS, CPU_TOKENS // 2
    assert fit_memory(model, rows(shared + own, shared + own, shared=shared), 16) == Fit(16, 8, checkpointing=False)


def test_no_more_rows_than_fit_in_memory(model):
    five = int(5 * 100 * bytes_per_token(model) / SHARE) + 1
    assert fit_memory(model, rows(100), 16, free=five) == Fit(5, 5, checkpointing=False)
    assert fit_memory(model, rows(100), 4, free=five) == Fit(4, 4, checkpointing=False)


def test_layers_run_again_only_where_not_even_one_row_fits(model):
    three = int(3 * 100 * bytes_per_token(model, checkpointing=True) / SHARE) + 1
    assert three * SHARE < 100 * bytes_per_token(model)
    assert fit_memory(model, rows(100), 16, free=three) == Fit(3, 3, checkpointing=True)
    assert fit_memory(model, rows(100), 16, free=0) == Fit(1, 1, checkpointing=True)


def test_the_table_of_memory_in_the_docs_is_what_the_package_counts():
    root = Path(__file__).parents[2]
    table = runpy.run_path(str(root / "benchmarks" / "memory_table.py"))["table"]()
    assert table in (root / "docs" / "clusters.md").read_text("utf-8")
