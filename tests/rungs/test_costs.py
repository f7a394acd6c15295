"""Cost estimates: what a base model's weights take."""

from rung.models.reference import resolve
from rung.rungs.costs import base_bytes


def test_a_base_in_4_bits_takes_an_eighth_but_for_its_embeddings():
    files = resolve("embedded")
    embeddings = 49152 * 576  # the output layer is the same matrix
    assert base_bytes(files, "") == 4 * files.parameters
    assert base_bytes(files, "nf4") == round(4 * embeddings + (files.parameters - embeddings) * 4.127 / 8)
