"""What the server says of an answer from documents."""

from grounded import Index as FakeIndex
from grounded import looking_in, passage
from rung.data.types import NOT_IN_DOCUMENTS
from rung.serving.answering import answers_of, told_of, writes_plain_text


def test_answers_from_documents_come_with_what_they_cite_and_are_refused_as_predicted(monkeypatch):
    index = FakeIndex([passage("faq.md", "A card costs 5 EUR.")])
    artifact = looking_in(index, monkeypatch, answer=lambda text: "5 EUR [1]", threshold=0.5)
    assert not writes_plain_text(artifact)  # one completion would neither refuse nor resolve citations
    asked, beside = answers_of(artifact, [{"question": "a card costs"}, {"question": "zebra"}])
    told = told_of(artifact, asked)
    assert (asked.text, told["written"], told["refused"]) == ("5 EUR", "5 EUR [1]", False)
    assert [(c["document"], c["start"], c["end"]) for c in told["citations"]] == [("faq.md", 0, 19)]
    assert (beside.text, told_of(artifact, beside)["refused"]) == (NOT_IN_DOCUMENTS, True)
