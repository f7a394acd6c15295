"""Cost estimates: what a base model's weights take."""

from dataclasses import replace

from rung.machine import this_machine
from rung.models.reference import resolve
from rung.rungs import Features, FewShot
from rung.rungs import features as feature_rungs
from rung.rungs.costs import base_bytes
from rung.rungs.yardsticks import NearestRow


def test_a_base_in_4_bits_takes_an_eighth_but_for_its_embeddings():
    files = resolve("embedded")
    embeddings = 49152 * 576  # the output layer is the same matrix
    assert base_bytes(files, "") == 4 * files.parameters
    assert base_bytes(files, "nf4") == round(4 * embeddings + (files.parameters - embeddings) * 4.127 / 8)


def test_rows_that_a_rung_has_read_are_read_by_no_other(zero, data, monkeypatch):
    monkeypatch.setattr(feature_rungs, "_VECTORS", {})
    machine, near = this_machine(), NearestRow()
    rungs = (near, Features(), FewShot())
    before = [rung.estimate(zero, data, machine) for rung in rungs]
    assert all(cost.fit_tokens > 0 for cost in before)
    near.fit(zero, data)
    after = [rung.estimate(zero, data, machine) for rung in rungs]
    assert [cost.fit_tokens for cost in after] == [0, 0, 0]
    assert [cost.row_seconds for cost in after] == [cost.row_seconds for cost in before]
    assert after[0].fit_seconds == 0.0 < after[1].fit_seconds < before[1].fit_seconds  # a head is still fitted
    assert Features(encoder="").estimate(zero, data, machine).fit_tokens > 0  # another model reads them itself
    other = replace(data, train=tuple(replace(row, inputs={"text": "new " + row.inputs["text"]}) for row in data.train))
    assert near.estimate(zero, other, machine).fit_tokens > before[0].fit_tokens  # these are other rows
