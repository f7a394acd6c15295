"""Cut a document into passages: whole sentences, paragraphs and tables under a token budget, with exact spans.

A document is a sequence of units: headings, sentences, lines of code, whole tables. Only units that are too long are
cut. Units are packed in order until the next one does not fit. A passage preferably ends with a paragraph, and before a
heading. The text that is embedded and searched is the passage with its title and headings above it, so a search for
the thing that costs 5 EUR finds `It costs 5 EUR`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from rung.retrieval.formats import FRONT_MATTER, rejoined

TokenCounter = Callable[[str], int]  # without special tokens

HEADING = re.compile(r"(#{1,6})[ \t]++([^\n]+)\n?\Z")
UNDERLINE = re.compile(r"(=+|--+)[ \t]*$")  # below a heading
DELIMITER = re.compile(r"\|?[ \t]*:?-+:?[ \t]*(\|[ \t]*:?-+:?[ \t]*)*\|?$")  # below the first row of a table
FENCE = re.compile(r"[ \t]*(```|~~~)")
LINE = re.compile(r"[^\n]*\n|[^\n]+$")
PROSE = re.compile(r"[^\W\d_]{2}[.!?。！？](?=\s|$)")  # a word at the end of a sentence
# The end of a sentence: Latin, Greek, Arabic and Indic marks before a space; East Asian ones anywhere.
SENTENCE_END = re.compile(r"[.!?…؟۔।;]['\"”’»)\]]*(?=\s)|[。！？]['\"”’」』）]*|\n")
ITEM = re.compile(r"[ \t]*(?:[-*+•‣◦▪·–—>]|\(?(?:\d{1,3}|[A-Za-z])[.)])[ \t]")  # the beginning of a list item or quote
NAMED_VALUE = re.compile(r"[ \t]*[^\s:][^:\n.!?]{0,40}:[ \t]")  # `name: value`
SHORT, WIDE = 30, 160  # characters of a line that was broken to fit a page are between them
FULL = 0.75  # of the longest line of the paragraph: what a broken line fills, with the next word
TITLE_SHARE = 4  # titles and headings may fill a fourth of what is embedded
FULL_ENOUGH = 0.5  # from this share of the budget on, a passage ends where a paragraph or a section does
CHARACTERS_PER_TOKEN = 16  # some vocabularies read a word of any length as one unknown token; text has about 4

BlockKind = Literal["heading", "sentence", "table", "code"]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A future passage: its span, the title with the headings above it, and the text that is embedded and searched."""

    start: int
    end: int
    title: str
    embedded: str


@dataclass(frozen=True, slots=True)
class _Unit:
    start: int
    end: int
    kind: BlockKind
    cost: int
    headings: tuple[str, ...]
    begins_block: bool  # the first of a paragraph, table or section


@dataclass(frozen=True, slots=True)
class Chunker:
    """Cuts documents into chunks of at most `tokens` tokens, title included."""

    count: TokenCounter  # counts the encoder's tokens of a text
    tokens: int  # the most tokens of a chunk
    overlap: int = 0  # the last units of a chunk, up to so many tokens, begin the next one too

    def cut(self, text: str, title: str, *, markdown: bool) -> list[Chunk]:
        """Cut a document into chunks, in order; white space between them belongs to none.

        `markdown` reads `#` headings, tables of `|` and code fences; otherwise there are only paragraphs and sentences.
        """
        chunks = []
        budget = self.tokens - self.tokens // TITLE_SHARE
        units = [part for unit in _units(text, markdown, self._cost) for part in self._small(unit, text, budget)]
        first = 0
        while first < len(units):
            path = " > ".join(part for part in (title, *units[first].headings) if part)
            shown = self._shortened(title, units[first].headings)
            last = self._last(units, first, self.tokens - (self.count(shown) if shown else 0))
            while True:
                body = text[units[first].start : units[last].end]
                embedded = f"{shown}\n{body}" if shown else body
                if self.count(embedded) <= self.tokens:
                    break
                if last == first:  # it fits without: a unit fills three fourths at most
                    embedded = body
                    break
                last -= 1  # sums of counts may be off by a few
            chunks.append(Chunk(units[first].start, units[last].end, path, embedded))
            first = max(first + 1, self._overlapping(units, last)) if last + 1 < len(units) else len(units)
        return chunks

    def _cost(self, text: str) -> int:
        return max(self.count(text), -(-len(text) // CHARACTERS_PER_TOKEN))

    def _small(self, unit: _Unit, text: str, budget: int) -> Iterator[_Unit]:
        """Halve a unit until its parts fit: at line ends, else at spaces, else anywhere."""
        if unit.cost <= budget or unit.end - unit.start < 2:
            yield unit
            return
        middle = _middle(text, unit.start, unit.end)
        for start, end, begins in ((unit.start, middle, unit.begins_block), (middle, unit.end, False)):
            start, end = _stripped(text, start, end)
            if start < end:
                half = _Unit(start, end, unit.kind, self._cost(text[start:end]), unit.headings, begins)
                yield from self._small(half, text, budget)

    def _shortened(self, title: str, headings: tuple[str, ...]) -> str:
        """Join title and headings, and drop the outermost until a fourth of the budget holds them."""
        parts = [part for part in (title, *headings) if part]
        while parts and self.count(" > ".join(parts)) > self.tokens // TITLE_SHARE:
            parts = parts[1:]
        return " > ".join(parts)

    def _last(self, units: list[_Unit], first: int, budget: int) -> int:
        """Find the last unit of the chunk that begins with `first`."""
        used, last, boundary = units[first].cost, first, None
        while last + 1 < len(units) and used + units[last + 1].cost <= budget:
            following = units[last + 1]
            if used >= FULL_ENOUGH * budget:
                if following.kind == "heading":
                    return last
                if following.begins_block:
                    boundary = last
            last += 1
            used += following.cost
        if last + 1 == len(units) or units[last + 1].begins_block:
            boundary = last
        end = last if boundary is None else boundary
        while end > first and units[end].kind == "heading":  # a heading belongs to what follows it
            end -= 1
        return end

    def _overlapping(self, units: list[_Unit], last: int) -> int:
        """Find the first unit of the next chunk: it repeats the last units of this chunk that the overlap holds."""
        first, room = last + 1, self.overlap
        while first > 0 and units[first - 1].cost <= room and units[first - 1].kind != "heading":
            first -= 1
            room -= units[first].cost
        return first


def _middle(text: str, start: int, end: int) -> int:
    """Find a cut near the middle: after a line end, else a space, within the middle half."""
    low, high, middle = start + (end - start) // 4, end - (end - start) // 4, (start + end) // 2
    for mark in ("\n", " "):
        before, after = text.rfind(mark, low, middle), text.find(mark, middle, high)
        cuts = [position + 1 for position in (before, after) if position >= 0]
        if cuts:
            return min(cuts, key=lambda cut: abs(cut - middle))
    return max(start + 1, middle)


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    """Strip the white space at the ends of a span."""
    piece = text[start:end]
    return start + len(piece) - len(piece.lstrip()), end - (len(piece) - len(piece.rstrip()))


def unwrapped(text: str) -> str:
    """Write a piece of a document on one line, unless it is a table."""
    if "|" in text:
        return text
    text = " ".join(line.strip() for line in rejoined([text])[0].split("\n"))
    return re.sub(r"(?<=[\u3001-\u9fff]) (?=[\u3001-\u9fff])", "", text)


def _units(text: str, markdown: bool, cost: TokenCounter) -> Iterator[_Unit]:
    """Yield headings, sentences, tables and lines of code in order."""
    headings: dict[int, str] = {}
    for kind, block_start, block_end in _blocks(text, markdown):
        path = tuple(headings.values())  # without the heading itself: the chunk shows it
        if kind == "heading":
            level, words = _heading(text[block_start:block_end])
            headings = {above: shown for above, shown in headings.items() if above < level}
            path = tuple(headings.values())
            headings[level] = words
        begins = True
        for start, end in _pieces(text, kind, block_start, block_end):
            start, end = _stripped(text, start, end)
            if start < end:
                yield _Unit(start, end, kind, cost(text[start:end]), path, begins)
                begins = False


def _heading(block: str) -> tuple[int, str]:
    """Read the level and the words of a heading, with `#` before it or a line below it."""
    first, _, below = block.strip().partition("\n")
    if match := HEADING.match(first):
        return len(match[1]), match[2].rstrip(" \t#") or match[2][0]
    return (1 if below.lstrip().startswith("=") else 2), first.strip()


def sentence_spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield the spans of a text's sentences, tables and lines of code, without headings and bare marks.

    The text may be a passage, which may begin inside a line or a block of code.
    """
    for kind, block_start, block_end in _blocks(text, markdown=True, fence=_begun_code(text)):
        if kind == "heading":
            continue
        for piece in _pieces(text, kind, block_start, block_end):
            start, end = _stripped(text, *piece)
            bare = kind == "code" and FENCE.match(text, start)
            if not bare and any(character.isalnum() for character in text[start:end]):
                yield start, end


def _begun_code(text: str) -> str:
    """The mark that closes the code in which a passage begins: an odd one, bare, with code above and prose below."""
    fences = [line for line in LINE.finditer(text) if FENCE.match(line[0])]
    if len(fences) % 2 == 0 or (mark := fences[0][0].strip()) not in ("```", "~~~"):
        return ""
    below = text[fences[0].end() : fences[1].start() if fences[1:] else len(text)]
    return mark if PROSE.search(below) and not PROSE.search(text, 0, fences[0].start()) else ""


def _pieces(text: str, kind: BlockKind, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the spans of the units of a block."""
    if kind in ("heading", "table"):
        yield start, end
        return
    width = 0 if kind == "code" else max(len(line.strip()) for line in text[start:end].split("\n"))
    for match in (re.compile(r"\n") if kind == "code" else SENTENCE_END).finditer(text, start, end):
        if match[0] == "\n" and kind == "sentence" and _goes_on(text, match.start(), end, width):
            continue
        if match[0] == "." and ITEM.fullmatch(text, text.rfind("\n", 0, match.start()) + 1, match.end() + 1):
            continue  # the number of a list item
        yield start, match.end()
        start = match.end()
    yield start, end


def _goes_on(text: str, position: int, end: int, width: int) -> bool:
    """Whether the sentence goes on behind the line end at `position`, as where a program broke the lines to fit a page.

    `width` is that of the paragraph's longest line. A line that has room for the next word was ended by its writer.
    """
    line = text[text.rfind("\n", 0, position) + 1 : position]
    following = text[position + 1 : end].partition("\n")[0]
    length = len(line.strip())
    if not any(map(str.isalnum, following)) or ITEM.match(following) or line.endswith(("  ", "\\")):
        return False
    if NAMED_VALUE.match(line) and NAMED_VALUE.match(following):
        return False
    if "\n" not in text[:position].lstrip() and following[0].islower() and width > SHORT:
        return True  # the first line, of which a passage may hold only the end
    word = following.split()[0]
    if word[0].islower() and (length >= SHORT or 2 * length >= width > SHORT):
        return True
    return SHORT <= length <= WIDE and length + len(word) >= FULL * width


def _blocks(text: str, markdown: bool, fence: str = "") -> Iterator[tuple[BlockKind, int, int]]:
    """Yield headings, tables, code and paragraphs with their spans; blank lines divide paragraphs.

    `fence` is the mark that closes the code in which the text begins.
    """
    open_kind: BlockKind | None = None
    front = FRONT_MATTER.match(text) if markdown else None
    lines = list(LINE.finditer(text, front.end() if front else 0))
    begin, underline = 0, -1
    for number, line in enumerate(lines):
        words = line[0].strip()
        below = lines[number + 1][0].strip() if markdown and number + 1 < len(lines) else ""
        kind: BlockKind | None
        if fence:
            kind = "code"
            fence = "" if words.startswith(fence) else fence
        elif markdown and (mark := FENCE.match(line[0])):
            kind, fence = "code", mark[1]
        elif not words:
            kind = None
        elif number == underline:
            continue  # a part of the heading above it
        elif markdown and HEADING.match(words):
            kind = "heading"
        elif markdown and _in_table(words, below, open_kind):
            kind = "table"
        elif open_kind != "sentence" and not ITEM.match(line[0]) and UNDERLINE.match(below) and words != below:
            kind, underline = "heading", number + 1
        else:
            kind = "sentence"
        if kind != open_kind or kind == "heading":
            if open_kind is not None:
                yield open_kind, begin, line.start()
            open_kind, begin = kind, line.start()
    if open_kind is not None:
        yield open_kind, begin, len(text)


def _in_table(words: str, below: str, open_kind: BlockKind | None) -> bool:
    """Whether a line is a row: it begins with a bar, goes on with a table, or is the first before its delimiter row."""
    if words.startswith("|"):
        return True
    return "|" in words and (open_kind == "table" or ("|" in below and DELIMITER.match(below) is not None))
