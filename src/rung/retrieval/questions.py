"""Write test questions from documents with a language model, to measure with until people's questions exist.

The answer to a question is a sentence of a passage, word for word, so the model cannot invent it; only the question is
written. The model is shown a short phrase of the sentence to ask for: a number, a name, code or a quote, as the answers
of SQuAD are (Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250). A question is kept if three readers lead back to
the sentence, which is called a round trip (Alberti et al. 2019, "Synthetic QA corpora generation with roundtrip
consistency", https://arxiv.org/abs/1906.05416): the search finds the passage, the encoder finds no other sentence of
the passage nearer, and what the model reads out of the sentence and its neighbours stands in the sentence. Rows are
marked `synthetic`. Such questions use more of the document's words than people's, and the encoder that keeps them also
searches, so the scores that they give are too good: compare techniques with them, and do not report them as quality.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from random import Random
from typing import Any, NamedTuple

from rung.engines.base import Engine, GenerateRequest, Sampling
from rung.models.messages import Message, Messages
from rung.progress import QUIET, Progress
from rung.retrieval.chunking import ITEM, sentence_spans, unwrapped
from rung.retrieval.index import Index, terms

ASK = (
    "Write the question that a person would ask to learn the answer, which stands in the sentence. The person does not "
    "see the sentence: name what the question is about, and leave the answer out. Write only the question, in the "
    "language of the sentence."
)
READ = "Answer the question with a few words of the text, copied as they are."
SHOWN = (  # small models follow examples more than instructions: title, sentence, answer, question
    ("Returns", "An opened parcel can be sent back within 14 days if the receipt is enclosed.", "14",
     "How many days do I have to send back an opened parcel?"),
    ("Handbook > Boiler > Safety", "Maria Keller, who has run the laboratory in Graz since 1998, tests new valves.",
     "Maria Keller", "Who tests new safety valves of the boiler?"),
    ("", "The old bridge over the Mur fell down in 1907 because the ice had damaged its pillars.", "1907",
     "When did the old bridge over the Mur fall down?"),
    ("Commands > pack", "With `--dry`, the command only lists the files that it would put into the archive.", "`--dry`",
     "Which option of pack lists the files without making an archive?"),
    ("", "Nearly 40% of the visitors of Lisbon's museums come from Brazil.", "Brazil",
     "From which country do many visitors of Lisbon's museums come?"),
)  # fmt: skip
FEWEST_WORDS, MOST_WORDS = 6, 60  # of a sentence that is asked for
SPARE = 8  # times as many sentences are tried as questions are wanted
FOUND = 3  # passages of the search among which the question's has to be
COPIED = 0.85  # a question with more of its terms, names apart, from the answer is a copy
RUN = 10  # terms in a row, names apart, that the question may not share with the answer
ENDED = re.compile(r"[.!…۔।。！]['\"”’»)\]」』）*_]*$")
# A sentence that leans on the one before or on a speaker, and a question about a text that nobody sees (English).
LEANS = re.compile(
    r"(?:an? |the |without |with |for |in |of |on |by )?(?:it|its|they|their|them|this|these|those|that|such|neither"
    r"|both|he|she|his|her|here|there|then|so|but|and|or|also|otherwise|instead|however|others?|same|former|latter"
    r"|additionally|moreover|furthermore|therefore|thus|finally|similarly|one such)\b",
    re.IGNORECASE,
)
SPEAKER = re.compile(r"\b(?:I|[Ww]e|[Mm]e|[Mm]y|[Uu]s|[Oo]ur|[Mm]ine|[Oo]urs|tonight|yesterday|ago)\b")
ABOUT_TEXT = re.compile(
    r"\b(?:the|this|that|given|following|above) (?:text|sentence|passage|document|question|title|context|paragraph"
    r"|section|page)s?\b|\bmentioned\b|\bdescribed\b",
    re.IGNORECASE,
)
POINTS = re.compile(r"\b(?:it|its|they|their|them|this|these|those|such|he|she|his|her|him)\b", re.IGNORECASE)
ENGLISH = re.compile(r"\b(?:the|of|and|is|are|to|what|which|who|how|when|where|why|does|did)\b", re.IGNORECASE)
NAMED = re.compile(r"`[^`]+`|(?<=\s)[\"“„«]?[A-ZÀ-ÞΑ-ΩА-Я]\w+|\d+")  # code, names and numbers inside a question
# What to ask for: code, a quote, a number, names inside a sentence or several at its beginning.
_NAME = r"[A-ZÀ-ÞΑ-ΩА-Я][\w'’-]*+"
PHRASE = re.compile(
    r"(`[^`\n]+`)|([\"“„«「][^\"“”„«»「」\n]+[\"”“»」])|(?<![\w.])[$€£¥]?\d(?:[\d.,:]*\d)?(?!\w)(?:\s?[%°€£])?"
    rf"|(?<=[\w,;)]\s){_NAME}(?:\s(?:of\s|the\s|and\s)?{_NAME})*+|^(?:The\s)?(?P<first>(?!The\s){_NAME}(?:\s{_NAME})++)"
)
MARKUP = re.compile(r"\||\\n|[{}]|\]\(|—")  # of tables, escaped text, records, links; a speaker who breaks off
MARKS = '`"“”„«»「」'  # around code and quotes
CASED = re.compile(r"[a-zà-þα-ωа-я]")


class _Drawn(NamedTuple):
    """A sentence to ask for, and a phrase of it."""

    document: str
    start: int
    title: str
    answer: str
    phrase: str  # the whole answer, in scripts without capitals where it has no number, code or quote
    around: tuple[str, str, str]  # the sentence before it in the passage, itself, and the one behind it
    others: tuple[str, ...]  # the other sentences of the passage


def write_questions(
    index: Index, engine: Engine, number: int, *, seed: int = 0, progress: Progress = QUIET
) -> list[dict[str, Any]]:
    """Write up to so many rows: question, answer, spans and `synthetic`; fewer where the model writes bad questions.

    Sentences are drawn so that each document has its turn before one is drawn from again.
    """
    rows: dict[frozenset[str], dict[str, Any]] = {}
    drawn = _drawn(index.places(), SPARE * number, Random(seed))
    for first in range(0, len(drawn), number):
        asked = drawn[first : first + number]
        written = _texts(engine, [_asking(one) for one in asked], 64, progress)
        good = [pair for pair in zip(written, asked, strict=True) if is_good(pair[0], pair[1].answer, pair[1].title)]
        for question, one in _read_back(engine, _found(index, good, progress), progress):
            span = {"document": one.document, "start": one.start, "end": one.start + len(one.answer)}
            row = {"question": question, "answer": unwrapped(one.answer), "spans": [span], "synthetic": True}
            rows.setdefault(frozenset(terms(question)), row)
        if len(rows) >= number:
            break
    return list(rows.values())[:number]


def is_good(question: str, answer: str, title: str = "") -> bool:
    """Whether a text is one question that says what it is about, names nobody new, and is not a copy of its answer.

    It says what it is about if it holds a name, number or code of the answer, or a word of the headings above it.
    """
    known, names = f"{title} {answer}".casefold(), NAMED.findall(question)
    if len(re.findall("[?？؟]", question)) != 1 or not question.endswith(("?", "？", "؟")) or len(terms(question)) < 4:
        return False
    if ABOUT_TEXT.search(question) or POINTS.search(question) or any(name.casefold() not in known for name in names):
        return False
    if CASED.search(answer):
        english = ENGLISH.search(question) is None or ENGLISH.search(answer) is not None
        if not english or not (names or set(terms(question)) & set(terms(title))):
            return False
    asked, said = terms(NAMED.sub("", question)), terms(answer)
    runs = {tuple(said[place : place + RUN]) for place in range(len(said) - RUN + 1)}
    copied = any(tuple(asked[place : place + RUN]) in runs for place in range(len(asked) - RUN + 1))
    shared = set(asked) & set(said)
    return not copied and len(shared) <= COPIED * len(set(asked))


def is_askable(sentence: str) -> bool:
    """Whether a sentence is whole, is not a row or a line of code, and says by itself what it is about."""
    words = len(sentence.split()) if " " in sentence else len(terms(sentence))
    whole = ENDED.search(sentence) is not None and not sentence[0].islower() and not MARKUP.search(sentence)
    leans = LEANS.match(sentence) is not None or SPEAKER.search(sentence) is not None
    return whole and FEWEST_WORDS <= words <= MOST_WORDS and not leans


def phrases(sentence: str) -> list[str]:
    """List what to ask for in a sentence: numbers, names, code and quotes that stand in it once."""
    matches = [match for match in PHRASE.finditer(sentence) if sentence[match.end() : match.end() + 1] != ":"]
    found = [(match["first"] or match[0]).strip() for match in matches]
    once = [phrase for phrase in found if sentence.count(phrase) == 1 and not phrase.endswith(("'s", "’s"))]
    return once or ([] if CASED.search(sentence) else [sentence])


def _found(index: Index, asked: Sequence[tuple[str, _Drawn]], progress: Progress) -> Iterator[tuple[str, _Drawn]]:
    """Keep the questions whose passage is found, and to which none of its sentences is nearer than their answer."""
    questions = [question for question, _ in asked]
    hits = index.search(questions, FOUND)
    queries = index.encoder.embed(questions, role="query", progress=progress) if questions else ()
    for query, found, (question, one) in zip(queries, hits, asked, strict=True):
        if not any(hit.document == one.document and hit.start <= one.start < hit.end for hit in found):
            continue
        texts = [f"{one.title}\n{unwrapped(each)}" for each in (one.answer, *one.others)]
        if (index.encoder.embed(texts, role="document") @ query).argmax() == 0:
            yield question, one


def _read_back(
    engine: Engine, asked: Iterator[tuple[str, _Drawn]], progress: Progress
) -> Iterator[tuple[str, _Drawn]]:  # fmt: skip
    """Keep the questions to which the model reads their answer.

    That is the phrase that they were to ask for, or a part of the sentence if they ask what code or a quote means. The
    model reads the sentence between its neighbours: whole passages would take most of the time.
    """
    pairs = list(asked)
    answers = _texts(engine, [_reading(question, " ".join(one.around)) for question, one in pairs], 32, progress)
    for (question, one), answer in zip(pairs, answers, strict=True):
        read, phrase = _line(answer), _line(one.phrase)
        if one.phrase.strip(MARKS).casefold() not in question.casefold():
            right = read in phrase or phrase in read
        else:
            right = one.phrase[0] in MARKS and read in _line(one.answer)
        if right and not set(terms(answer)) <= set(terms(question)):  # nothing, or what the question says itself
            yield question, one


def _line(text: str) -> str:
    """A text's terms with spaces around them, so that a text of whole terms is a part of it."""
    return f" {' '.join(terms(text))} "


def _texts(engine: Engine, prompts: Sequence[Messages], tokens: int, progress: Progress) -> list[str]:
    """The first line of every completion."""
    requests = [GenerateRequest(prompt, Sampling(max_tokens=tokens)) for prompt in prompts]
    return [one.text.strip().partition("\n")[0].strip("\"'* ") for one in engine.generate(requests, progress=progress)]


def _asking(one: _Drawn) -> Messages:
    def shown(title: str, sentence: str, phrase: str) -> Message:
        lines = [f"Title: {title}"] if title else []
        return {"role": "user", "content": "\n".join([*lines, f"Sentence: {sentence}", f"Answer: {phrase}"])}

    examples: list[Message] = []
    for title, sentence, phrase, question in SHOWN:
        examples += [shown(title, sentence, phrase), {"role": "assistant", "content": question}]
    return ({"role": "system", "content": ASK}, *examples, shown(one.title, unwrapped(one.answer), one.phrase))


def _reading(question: str, text: str) -> Messages:
    def shown(text: str, asked: str) -> Message:
        return {"role": "user", "content": f"Text: {text}\n\nQuestion: {asked}"}

    examples: list[Message] = []
    for _, sentence, phrase, asked in SHOWN[:3]:
        examples += [shown(sentence, asked), {"role": "assistant", "content": phrase}]
    return ({"role": "system", "content": READ}, *examples, shown(unwrapped(text), question))


def _drawn(places: Sequence[tuple[str, int, str, str]], number: int, random: Random) -> list[_Drawn]:
    """Draw sentences with their document, position, title, a phrase and the passage around them."""
    of: dict[str, dict[int, _Drawn]] = {}
    for document, start, title, text in places:
        shown, spans = _headings(document, title), [_plain(text, *span) for span in sentence_spans(text)]
        cut = ["", *(text[first:last] for first, last in spans), ""]
        for place, ((first, _), sentence) in enumerate(zip(spans, cut[1:-1], strict=True)):
            if is_askable(sentence) and (chosen := [one for one in phrases(sentence) if one not in shown]):
                around, others = (cut[place], sentence, cut[place + 2]), (*cut[1 : place + 1], *cut[place + 2 : -1])
                one = _Drawn(document, start + first, shown, sentence, random.choice(chosen), around, others)
                of.setdefault(document, {})[start + first] = one
    piles = [random.sample(list(sentences.values()), len(sentences)) for sentences in of.values()]
    random.shuffle(piles)
    deepest = max(map(len, piles), default=0)
    return [pile[depth] for depth in range(deepest) for pile in piles if depth < len(pile)][:number]


def _headings(document: str, title: str) -> str:
    """The title without the file's name, which says little of what a sentence is about."""
    first, _, rest = title.partition(" > ")
    return rest if first == PurePath(document).stem.replace("_", " ").replace("-", " ") else title


def _plain(text: str, start: int, end: int) -> tuple[int, int]:
    """A sentence's span without the mark of a list item."""
    mark = ITEM.match(text, start, end)
    return (mark.end() if mark else start), end
