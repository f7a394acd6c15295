from dataclasses import replace

import pytest

from rung.artifact.text import Generate
from rung.prompt_search.scorer import Meter, SearchLimits
from rung.prompt_search.writer import CopyGuard, Writer, cleaned


def writer(artifact, rows):
    return Writer(artifact.open(), CopyGuard(rows.train), Meter(SearchLimits()))


def test_proposals_are_asked_with_other_tips_and_rows_and_checked(scoring, rows):
    texts = iter(["Instruction: Look for yes.", "", "Train row 4 says no", "Look for yes.", "word " * 200])
    artifact = scoring(lambda messages, text: 0.0, write=lambda messages, sampling: next(texts))
    made = writer(artifact, rows).instructions(artifact, rows.train, 5)
    assert [one.text for one in made][:2] == ["Look for yes.", ""]
    assert [one.refused.split(" row")[0] for one in made] == [
        "", "nothing was written", "it repeats the training", "it is there already", "it has more than 150 words",
    ]  # fmt: skip
    asked = artifact.open().generated
    assert len({request.prompt[1]["content"] for request in asked}) == 5
    assert len({request.sampling.seed for request in asked}) == 5
    assert "Classify.\nThe possible answers: neg, pos" in asked[0].prompt[1]["content"]


def test_the_meter_counts_what_is_written(scoring, rows):
    artifact = scoring(lambda messages, text: 0.0, write=lambda messages, sampling: "abc")
    author = writer(artifact, rows)
    author.instructions(artifact, rows.train, 3)
    spent = author.meter.as_dict()
    assert (spent["calls"], spent["completion_tokens"]) == (3, 9)


def test_descriptions_show_rows_with_the_label_apart_from_others(scoring, rows):
    artifact = scoring(lambda messages, text: 0.0, write=lambda messages, sampling: "It agrees.")
    author = writer(artifact, rows)
    made = author.descriptions(artifact, rows.train, ("neg", "pos"))
    assert [one.text for one in made] == ["It agrees.", "It agrees."]  # two labels may mean alike
    own, others = artifact.open().generated[1].prompt[1]["content"].split("Inputs with other labels:")
    assert own.count("says yes") == 5
    assert own.count("says no") == 0
    assert others.count("says no") == 5


def test_a_row_with_several_labels_describes_each_of_them(scoring, rows):
    scored = scoring(lambda messages, text: 0.0, write=lambda messages, sampling: "It agrees.")
    several = replace(scored, signature=replace(scored.signature, kind="multilabel"), decoder=Generate(8)).with_engine(
        scored.open()
    )
    tags = ('["neg"]', '["neg", "pos"]')
    tagged = [replace(row, outputs=(tags[i % 2],)) for i, row in enumerate(rows.train)]
    writer(several, rows).descriptions(several, tagged, ("neg", "pos"))
    neg, pos = (request.prompt[1]["content"] for request in scored.open().generated)
    assert neg.count(" says ") == 5  # every row has the label: there are no others
    assert (pos.count("says yes"), pos.count("says no")) == (5, 5)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ('"Say it."', "Say it."),
        ("**Instruction:** Say it.", "Say it."),
        ("New instruction: Say\nit.", "Say it."),
        ("```\nSay it.\n```", "Say it."),
        ("", ""),
    ],
)
def test_frames_are_taken_off(raw, text):
    assert cleaned(raw) == text
