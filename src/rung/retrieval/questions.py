"""Write test questions from documents with a language model, to measure with until people's questions exist.

The answer to a question is a sentence of a passage, word for word, so the model cannot invent it; only the question is
written. A question is kept if the encoder finds no other sentence of the passage nearer to it than its answer: a round
trip (Alberti et al. 2019, "Synthetic QA corpora generation with roundtrip consistency",
https://arxiv.org/abs/1906.05416), here without a second model. Rows are marked `synthetic`. Such questions use more of
the document's words than people's, and the encoder that keeps them also searches, so the scores that they give are too
good: compare techniques with them, and do not report them as quality.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random
from typing import Any, NamedTuple

from rung.engines.base import Engine, GenerateRequest, Sampling
from rung.models.messages import Message, Messages
from rung.progress import QUIET, Progress
from rung.retrieval.chunking import ITEM, sentence_spans, unwrapped
from rung.retrieval.index import Index, terms

ASK = (
    "Write one question that a person could ask and that the sentence answers. The person does not see the sentence: "
    "name what the question is about, and do not give the answer away. Write only the question, in the language of "
    "the sentence."
)
SHOWN = (  # small models follow examples more than instructions
    ("Returns", "An opened parcel can be sent back within 14 days if the receipt is enclosed.",
     "Until when can I return a parcel that I have opened?"),
    ("Boiler manual > Safety", "Above 2.5 bar the safety valve lets water out.",
     "At which pressure does the safety valve of the boiler open?"),
    ("Team", "Maria Keller runs the laboratory in Graz, which tests every new batch.",
     "Who is in charge of the laboratory in Graz?"),
)  # fmt: skip
FEWEST_WORDS, MOST_WORDS = 6, 60  # of a sentence that is asked for
SPARE = 4  # times as many sentences are tried as questions are wanted
COPIED = 0.7  # a question with more of its terms from one place of the answer is a copy
RUN = 6  # terms in a row that the question may not share with the answer
ENDED = re.compile(r"[.!…۔।。！]['\"”’»)\]」』）]*$")
# A sentence that leans on the one before, and a question about a text that nobody sees (English).
LEANS = re.compile(
    r"(?:an? |the |without |with |for |in |of |on |by )?(?:it|its|they|their|them|this|these|those|that|such|neither"
    r"|both|he|she|his|her|here|there|then|so|but|and|or|also|otherwise|instead|however|others?|same|former|latter)\b",
    re.IGNORECASE,
)
ABOUT_TEXT = re.compile(
    r"\b(?:the|this|that|given|following|above) (?:text|sentence|passage|document|question|title|context|paragraph"
    r"|section|page)s?\b|\bmentioned\b|\bdescribed\b",
    re.IGNORECASE,
)
OPEN = re.compile(r"\b(?:it|they|them|him|her|this|these|those)\?$", re.IGNORECASE)  # what does it mean?
NAMED = re.compile(r"(?<=\s)[A-ZÀ-Þ]\w+|\d+")  # names and numbers inside a question


class _Drawn(NamedTuple):
    """A sentence to ask for."""

    document: str
    start: int
    title: str
    answer: str
    others: tuple[str, ...]  # the other sentences of its passage


def write_questions(
    index: Index, engine: Engine, number: int, *, seed: int = 0, progress: Progress = QUIET
) -> list[dict[str, Any]]:
    """Write up to so many rows: question, answer, spans and `synthetic`; fewer where the model writes bad questions.

    Sentences are drawn so that each document has its turn before one is drawn from again.
    """
    chosen = _drawn(index.places(), SPARE * number, Random(seed))
    rows: dict[str, dict[str, Any]] = {}
    for first in range(0, len(chosen), number):
        asked = chosen[first : first + number]
        requests = [GenerateRequest(_prompt(one), Sampling(max_tokens=64)) for one in asked]
        written = engine.generate(requests, progress=progress)
        questions = [each.text.strip().partition("\n")[0].strip("\"'* ") for each in written]
        good = [pair for pair in zip(questions, asked, strict=True) if is_good(pair[0], pair[1].answer, pair[1].title)]
        for question, one in _answered(index, good, progress):
            span = {"document": one.document, "start": one.start, "end": one.start + len(one.answer)}
            row = {"question": question, "answer": unwrapped(one.answer), "spans": [span], "synthetic": True}
            rows.setdefault(question.casefold(), row)
        if len(rows) >= number:
            break
    return list(rows.values())[:number]


def is_good(question: str, answer: str, title: str = "") -> bool:
    """Whether a text is one question, says what it is about, names nobody new, and is not a copy of its answer."""
    asked, said = terms(question), terms(answer)
    known = f"{title} {answer}".casefold()
    if len(re.findall("[?？؟]", question)) != 1 or OPEN.search(question):
        return False
    if any(name.casefold() not in known for name in NAMED.findall(question)):
        return False
    if not question.endswith(("?", "？", "؟")) or len(asked) < 3 or ABOUT_TEXT.search(question):
        return False
    runs = {tuple(said[place : place + RUN]) for place in range(len(said) - RUN + 1)}
    copied = any(tuple(asked[place : place + RUN]) in runs for place in range(len(asked) - RUN + 1))
    shared = set(asked) & set(said)
    return bool(shared) and not copied and len(shared) <= COPIED * len(set(asked))


def is_askable(sentence: str) -> bool:
    """Whether a sentence is whole, is not a row or a line of code, and says by itself what it is about."""
    words = len(sentence.split()) if " " in sentence else len(terms(sentence))
    whole = ENDED.search(sentence) is not None and not sentence[0].islower() and "|" not in sentence
    return whole and FEWEST_WORDS <= words <= MOST_WORDS and LEANS.match(sentence) is None


def _answered(
    index: Index, asked: Sequence[tuple[str, _Drawn]], progress: Progress
) -> list[tuple[str, _Drawn]]:  # fmt: skip
    """Keep the questions to which no other sentence of the passage is nearer than their answer."""
    queries = index.encoder.embed([question for question, _ in asked], role="query", progress=progress)
    kept = []
    for query, (question, one) in zip(queries, asked, strict=True):
        sentences = [unwrapped(each) for each in (one.answer, *one.others)]
        near = index.encoder.embed([f"{one.title}\n{each}" for each in sentences], role="document") @ query
        if near.argmax() == 0:
            kept.append((question, one))
    return kept


def _prompt(one: _Drawn) -> Messages:
    def shown(title: str, sentence: str) -> Message:
        return {"role": "user", "content": f"Title: {title}\n\nSentence: {sentence}"}

    examples: list[Message] = []
    for title, sentence, question in SHOWN:
        examples += [shown(title, sentence), {"role": "assistant", "content": question}]
    return ({"role": "system", "content": ASK}, *examples, shown(one.title, unwrapped(one.answer)))


def _drawn(places: Sequence[tuple[str, int, str, str]], number: int, random: Random) -> list[_Drawn]:
    """Draw sentences with their document, position, title and the sentences around them."""
    of: dict[str, dict[int, _Drawn]] = {}
    for document, start, title, text in places:
        spans = [_plain(text, *span) for span in sentence_spans(text)]
        for first, last in spans:
            if is_askable(text[first:last]):
                others = tuple(text[left:right] for left, right in spans if left != first)
                one = _Drawn(document, start + first, title, text[first:last], others)
                of.setdefault(document, {})[start + first] = one
    piles = [random.sample(list(sentences.values()), len(sentences)) for sentences in of.values()]
    random.shuffle(piles)
    deepest = max(map(len, piles), default=0)
    return [pile[depth] for depth in range(deepest) for pile in piles if depth < len(pile)][:number]


def _plain(text: str, start: int, end: int) -> tuple[int, int]:
    """A sentence's span without the mark of a list item."""
    mark = ITEM.match(text, start, end)
    return (mark.end() if mark else start), end
