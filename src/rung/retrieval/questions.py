"""Write test questions from documents with a language model, to measure with until people's questions exist.

The answer to a question is a sentence of a passage, word for word, so the model cannot invent it; only the question is
written. Rows are marked `synthetic`. Such questions use more of the document's words than people's, so the scores that
they give are too good: compare techniques with them, and do not report them as quality.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from rung.engines.base import Engine, GenerateRequest, Sampling
from rung.models.messages import Messages
from rung.progress import QUIET, Progress
from rung.retrieval.chunking import sentence_spans, unwrapped
from rung.retrieval.index import Index, terms

ASK = (
    "Write one question that a person could ask and that the sentence answers. The person does not see the text, so "
    "name what the question is about. Use other words than the sentence. Write only the question."
)
FEWEST_WORDS, MOST_WORDS = 6, 60  # of a sentence that is asked for
SPARE = 3  # times as many sentences are tried as questions are wanted
COPIED = 0.7  # a question with more of its terms from one place of the answer is a copy
RUN = 6  # terms in a row that the question may not share with the answer


def write_questions(
    index: Index, engine: Engine, number: int, *, seed: int = 0, progress: Progress = QUIET
) -> list[dict[str, Any]]:
    """Write up to so many rows: question, answer, spans and `synthetic`; fewer where the model writes bad questions.

    Sentences are drawn so that each document has its turn before one is drawn from again.
    """
    chosen = _drawn(index.places(), SPARE * number, Random(seed))
    requests = [
        GenerateRequest(_prompt(title, text, answer), Sampling(max_tokens=64)) for _, _, title, text, answer in chosen
    ]
    rows: dict[str, dict[str, Any]] = {}
    for first in range(0, len(requests), number):
        written = engine.generate(requests[first : first + number], progress=progress)
        for (document, start, _, _, answer), generation in zip(chosen[first:], written, strict=False):
            question = generation.text.strip().partition("\n")[0].strip("\"'* ")
            if is_good(question, answer):
                span = {"document": document, "start": start, "end": start + len(answer)}
                row = {"question": question, "answer": unwrapped(answer), "spans": [span], "synthetic": True}
                rows.setdefault(question.casefold(), row)
        if len(rows) >= number:
            break
    return list(rows.values())[:number]


def is_good(question: str, answer: str) -> bool:
    """Whether a text is one question, says what it is about, and is not a copy of its answer."""
    asked, said = terms(question), terms(answer)
    if not question.endswith(("?", "？", "؟")) or len(asked) < 3:
        return False
    runs = {tuple(said[place : place + RUN]) for place in range(len(said) - RUN + 1)}
    copied = any(tuple(asked[place : place + RUN]) in runs for place in range(len(asked) - RUN + 1))
    shared = set(asked) & set(said)
    return bool(shared) and not copied and len(shared) <= COPIED * len(set(asked))


def _prompt(title: str, text: str, answer: str) -> Messages:
    shown = f"Title: {title}\n\nText: {text}\n\nSentence: {unwrapped(answer)}"
    return ({"role": "system", "content": ASK}, {"role": "user", "content": shown})


def _drawn(
    places: Sequence[tuple[str, int, str, str]], number: int, random: Random
) -> list[tuple[str, int, str, str, str]]:  # fmt: skip
    """Draw sentences with their document, position, title and passage."""
    of: dict[str, dict[int, tuple[str, int, str, str, str]]] = {}
    for document, start, title, text in places:
        for first, last in sentence_spans(text):
            answer = text[first:last]
            words = len(answer.split()) if " " in answer else len(terms(answer))
            if "|" not in answer and FEWEST_WORDS <= words <= MOST_WORDS and not answer.endswith((":", "?")):
                of.setdefault(document, {})[start + first] = (document, start + first, title, text, answer)
    piles = [random.sample(list(sentences.values()), len(sentences)) for sentences in of.values()]
    random.shuffle(piles)
    deepest = max(map(len, piles), default=0)
    return [pile[depth] for depth in range(deepest) for pile in piles if depth < len(pile)][:number]
