"""Cost estimates: what a base model's weights take."""

import pytest

from rung.machine import this_machine
from rung.models.reference import resolve
from rung.rungs import Features, FewShot
from rung.rungs.costs import LOADING, base_bytes
from rung.rungs.features import FeaturesAndTfidf
from rung.rungs.yardsticks import NearestRow


def test_a_base_in_4_bits_takes_an_eighth_but_for_its_embeddings():
    files = resolve("embedded")
    embeddings = 49152 * 576  # the output layer is the same matrix
    assert base_bytes(files, "") == 4 * files.parameters
    assert base_bytes(files, "nf4") == round(4 * embeddings + (files.parameters - embeddings) * 4.127 / 8)


def test_rows_that_a_rung_has_read_are_read_by_no_other(zero, data):
    machine = this_machine()
    near, head, shown, joined = (
        rung.estimate(zero, data, machine) for rung in (NearestRow(), Features(), FewShot(), FeaturesAndTfidf())
    )
    made = {name for name, _ in near.shared}
    assert [cost.given(made).shared for cost in (near, head, shown)] == [(), (), ()]
    assert near.given(made).fit_seconds == shown.given(made).fit_seconds == 0
    assert 0 < head.given(made).fit_seconds < head.fit_seconds  # a head is still fitted
    assert joined.given(made).shared == (("scikit-learn", LOADING),)
    assert joined.given({*made, "scikit-learn"}).fit_seconds == pytest.approx(
        joined.fit_seconds - near.fit_seconds - LOADING
    )
    hidden = Features(encoder="").estimate(zero, data, machine)
    assert hidden.given(made) == hidden  # another model reads them itself
