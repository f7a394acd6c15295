"""Records filled field by field: exact search against all paths, synthetic and real records, saved and loaded."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rung.artifact.artifact import Artifact
from rung.artifact.files import write_manifest
from rung.artifact.records import FIRST, INSIDE, OUTSIDE, Tokens, best_span, best_tags, number_in, spans_of
from rung.data.rows import Data, Example
from rung.errors import ArtifactError
from rung.evaluation.metrics.records import json_field_f1
from rung.rungs import RecordFields, TfidfHead
from rung.rungs.records import fields_of, occurrences, tags_of
from rung.task import Task

SROIE = Path(__file__).parents[2] / "examples" / "sroie" / "task.yaml"
CITIES = ["Paris", "New York", "Rome", "Oslo", "San Jose", "Lima", "Cairo", "Sao Paulo"]
NAMES = [
    f"{first} {last}" for first in ("Ann", "Bo", "Cy", "Di", "Ed") for last in ("Ray", "Fox", "Lee", "Moss", "Hill")
]


def legal(tags):
    return tags[0] != INSIDE and all((a, b) != (OUTSIDE, INSIDE) for a, b in itertools.pairwise(tags))


def total(tags, scores, moves):
    return sum(scores[n, t] for n, t in enumerate(tags)) + sum(moves[a, b] for a, b in itertools.pairwise(tags))


@pytest.mark.parametrize("seed", range(8))
def test_no_tags_and_no_span_score_more_than_those_found(seed):
    rng = np.random.default_rng(seed)
    scores, moves = rng.normal(size=(6, 2, 3)).astype(np.float32), rng.normal(size=(2, 3, 3)).astype(np.float32)
    found = best_tags(scores, moves)
    every = [tags for tags in itertools.product(range(3), repeat=6) if legal(tags)]
    for field in range(2):
        best = max(total(tags, scores[:, field], moves[field]) for tags in every)
        assert total(found[:, field], scores[:, field], moves[field]) == pytest.approx(best, rel=1e-5)
        gain, first, last = best_span(scores[:, field], moves[field])
        single = [tags for tags in every if len(spans_of(np.array(tags))) == 1]
        nothing = total([OUTSIDE] * 6, scores[:, field], moves[field])
        top = max(single, key=lambda tags: total(tags, scores[:, field], moves[field]))
        assert gain == pytest.approx(total(top, scores[:, field], moves[field]) - nothing, rel=1e-4)
        assert spans_of(np.array(top)) == [(first, last)]


def test_values_are_found_in_texts_whatever_their_case_spaces_and_form():
    tokens = Tokens.of("TOTAL:  RM1,234.50\nNew\n YORK, new york")
    assert [tokens.span(*span) for span in occurrences(tokens, "new york")] == ["New YORK", "new york"]
    assert [tokens.span(*span) for span in occurrences(tokens, 1234.5)] == ["1,234.50"]
    assert tags_of(tokens, "new york").tolist()[-5:] == [FIRST, INSIDE, OUTSIDE, FIRST, INSIDE]
    assert tags_of(tokens, "Rome") is None
    assert not tags_of(tokens, None).any()
    assert (number_in("1,234.50"), number_in("12"), number_in("x")) == (1234.5, 12, None)


def test_what_stands_for_nothing_is_learnt():
    records = [{"a": "X", "b": {"c": None}, "d": []}, {"a": "Y", "b": {"c": 2}}, {"a": "Z", "b": {"c": 3}, "d": ["q"]}]
    a, c, d = fields_of(records)
    assert (a.path, a.empty, a.case, a.required) == (("a",), "null", "upper", True)
    assert (c.path, c.empty, c.number, c.required) == (("b", "c"), "null", True, False)
    assert (d.many, d.empty) == (True, "[]")
    assert fields_of([{"a": "x"}, {}])[0].empty == "absent"


@pytest.fixture(scope="module")
def bookings(data):
    """Texts with a name and two cities, a price, the words of a mood, and their records."""
    rng = np.random.default_rng(0)

    def row(n):
        name, mood = str(rng.choice(NAMES)), str(rng.choice(["glad", "angry"]))
        a, b = (str(city) for city in rng.choice(CITIES, 2, replace=False))
        price = int(rng.integers(20, 900)) + 0.5
        words = "thanks so much" if mood == "glad" else "this is a shame"
        via = rng.random() < 0.5
        text = (
            f"{words}, {name} here. I go from {a} to {b}{' by train' if via else ''}. I paid ${price:.2f} on day {n}."
        )
        record = {"who": name, "trip": {"from": a, "to": b}, "price": price, "mood": mood, "stops": [a, b]}
        return Example(str(n), {"text": text}, (json.dumps(record),), "x")

    rows = tuple(row(n) for n in range(160))
    return replace(data, train=rows[:110], validation=(), test=rows[110:], labels=())


@pytest.fixture(scope="module")
def start(tiny_zero) -> Artifact:
    return replace(tiny_zero, signature=replace(tiny_zero.signature, kind="json", metric="json_field_f1", labels=()))


def score(artifact: Artifact, rows: tuple[Example, ...]) -> float:
    answers = artifact.answer(rows)
    return float(np.mean([json_field_f1(a.text, row.outputs) for a, row in zip(answers, rows, strict=True)]))


def test_fields_of_every_kind_are_learnt_saved_loaded_and_nested(start, bookings, tmp_path):
    fitted = RecordFields().fit(start, bookings)
    assert score(fitted, bookings.test) > 0.95
    ways = {".".join(field.path): field.how for field in fitted.decoder.fields}
    assert ways["mood"] == "head"
    assert {ways[name] for name in ("who", "trip.from", "trip.to", "price")} == {"tagger"}
    loaded = Artifact.load(fitted.save(tmp_path / "saved"))
    assert [a.text for a in loaded.answer(bookings.test)] == [a.text for a in fitted.answer(bookings.test)]
    assert json.loads(loaded.answer(bookings.test[:1])[0].text).keys() == {"who", "trip", "price", "mood", "stops"}
    assert not loaded.decoder.uses_llm
    assert loaded.predict([{"text": "."}, {"text": "?"}])[0].text


def test_other_weights_are_refused(start, bookings, tmp_path):
    folder = RecordFields(epochs=1).fit(start, bookings).save(tmp_path / "saved")
    file = folder / "tagger.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8"))[1:]), "utf-8")
    (folder / "manifest.json").unlink()
    write_manifest(folder)
    with pytest.raises(ArtifactError, match="do not fit"):
        Artifact.load(folder)


def test_receipts_are_read_far_better_than_by_copying():
    task = Task.load(SROIE)
    data: Data = task.read()
    fitted = RecordFields(epochs=5).fit(Artifact.zero_shot(task), data)
    assert score(fitted, data.validation) > 0.5


def test_it_is_for_records_and_needs_rows(start, bookings, zero, data):
    assert RecordFields().applies(start, bookings).applies
    assert "fields of records" in RecordFields().applies(zero, data).reason
    assert not RecordFields().applies(start, replace(bookings, train=())).applies
    assert "categories" in TfidfHead().applies(start, bookings).reason
    one = RecordFields().fit(start, replace(bookings, train=bookings.train[:1]))
    assert json.loads(one.answer(bookings.test[:1])[0].text) == json.loads(bookings.train[0].outputs[0])
