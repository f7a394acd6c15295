"""How texts of any language are compared: their Unicode form, their words, and the numbers that people write.

Unicode has several codes for one text: `é` is one character or two, and a zero-width space shows nothing. Whatever
compares texts brings them into one form first (`canonical`): NFC (Unicode Standard Annex 15), without characters that
cannot be seen, every kind of space as a space. Letters, accents and case stay as they are. The joiners U+200C and
U+200D stay too: they change how Persian and Indian words are written.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal
from functools import cache
from itertools import groupby
from typing import Literal

from rung.errors import DataError

# Zero-width space, word joiner, byte order mark, soft hyphen, and the marks of direction.
_INVISIBLE = dict.fromkeys([0x00AD, 0x180E, 0x200B, 0x2060, 0xFEFF, 0x061C, 0x200E, 0x200F,
                            *range(0x202A, 0x202F), *range(0x2066, 0x206A)])  # fmt: skip
_SPACES = dict.fromkeys([0x00A0, 0x1680, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000], " ")
_HIDDEN = _INVISIBLE | _SPACES
_WIDTHS = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}  # full-width forms of ASCII


def canonical(text: str) -> str:
    r"""Bring a text into the one form in which texts are compared: NFC, nothing invisible, plain spaces, trimmed.

    Example:
        >>> canonical("cafe\u0301\u200b ") == canonical("café")
        True
    """
    return unicodedata.normalize("NFC", text if text.isascii() else text.translate(_HIDDEN)).strip()


def spelling(text: str) -> str:
    """Give the form that all spellings of a label share: `canonical`, in lower case, with single spaces.

    Letters of full width are those of usual width, and whole numbers with `.0` are whole numbers.
    """
    plain = " ".join(canonical(text).translate(_WIDTHS).lower().split())
    return plain.removesuffix(".0") if plain.removesuffix(".0").removeprefix("-").isdigit() else plain


# ---- words

# Blocks of scripts that are written without spaces between words.
_UNSPACED = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff"  # Myanmar
    "\u1780-\u17ff"  # Khmer
    "\u1950-\u19df\u1a20-\u1aaf\uaa80-\uaadf"  # Tai Le, New Tai Lue, Tai Tham, Tai Viet
    "\u1b00-\u1b7f\ua980-\ua9df"  # Balinese, Javanese
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3031-\u303c\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Han
    "\U00020000-\U000323af"  # Han, rare
    "\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f\U0001b000-\U0001b16f"  # Kana
    "\u3100-\u312f\u31a0-\u31bf"  # Bopomofo
)
_EMOJI = "\u2600-\u27bf\U0001f000-\U0001faff"


@cache
def _marks() -> str:
    r"""Combining marks as ranges for a character class; Python's `\w` leaves them out."""
    codes = [code for code in (*range(0x300, 0x20000), *range(0xE0100, 0xE01F0))
             if unicodedata.category(chr(code)).startswith("M")]  # fmt: skip
    runs = [[code for _, code in run] for _, run in groupby(enumerate(codes), lambda pair: pair[1] - pair[0])]
    return "".join(f"{chr(run[0])}-{chr(run[-1])}" for run in runs) + "\u200c\u200d"


@cache
def _pattern() -> re.Pattern[str]:
    marks = _marks()
    unspaced = rf"(?=[^\W_])[{_UNSPACED}]"
    return re.compile(rf"{unspaced}[{marks}]*|(?:(?!{unspaced})[^\W_][{marks}]*)+|[{_EMOJI}][{marks}]*|[{marks}]+")


def words(text: str) -> list[str]:
    """Split a text into lower-case words: runs of letters, their combining marks, and digits.

    Scripts without spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese, ...) give one word per
    character with its marks. An emoji is a word. Punctuation and other symbols separate words; a text of nothing else
    gives its characters. Lower case is Unicode's without a language: `ß` stays `ß` (`STRASSE` is `strasse`), `I` is
    `i` in Turkish as well.

    Example:
        >>> words("Größe: 今天 5")
        ['größe', '今', '天', '5']
    """
    lower = unicodedata.normalize("NFC", canonical(text).lower())
    return _pattern().findall(lower) or [char for char in lower if not char.isspace()]


def words_and_marks(text: str) -> list[str]:
    """Split a text into lower-case words, as `words` does, and every other visible character."""
    return _with_marks().findall(unicodedata.normalize("NFC", canonical(text).lower()))


@cache
def _with_marks() -> re.Pattern[str]:
    return re.compile(_pattern().pattern + r"|[^\s]")


def spaced(text: str) -> str:
    """Put spaces around the characters of scripts that have none between words, for tokenizers that need them."""
    return _unspaced().sub(r" \g<0> ", text)


def whole_word(text: str) -> re.Pattern[str]:
    """Make the pattern that finds a text in any case, as whole words where its script separates words."""
    unspaced = _unspaced()
    before = "" if unspaced.match(text) else rf"(?<![\w{_marks()}])"
    after = "" if unspaced.match(text[-1:]) else rf"(?![\w{_marks()}])"
    return re.compile(f"{before}{re.escape(text)}{after}", re.IGNORECASE)


@cache
def _unspaced() -> re.Pattern[str]:
    return re.compile(rf"(?=[^\W_])[{_UNSPACED}][{_marks()}]*")


def distance(a: Sequence[str], b: Sequence[str]) -> int:
    """Count the items (characters, words) to insert, delete or replace: the Levenshtein distance."""
    import numpy as np

    codes = {item: number for number, item in enumerate(dict.fromkeys([*a, *b]))}
    right, places = np.array([codes[item] for item in b], dtype=np.int64), np.arange(len(b) + 1)
    row = places
    for number, item in enumerate(a, start=1):
        # Without insertions first; then each item takes an insertion after the best one before it.
        best = np.minimum(row[1:] + 1, row[:-1] + (right != codes[item]))
        row = np.minimum.accumulate(np.concatenate([[number], best]) - places) + places
    return int(row[-1])


# ---- numbers

DecimalMark = Literal[".", ","]
_CURRENCY = "$€£¥₹₽₩₺₫₪"
_MINUS = "-−–"
_TOKEN = re.compile(
    rf"""
    (?P<sign>(?<![\w.,/)])[{_MINUS}+](?:[{_CURRENCY}]\ ?)?)?
    (?:
      (?<![\d/.,])(?:(?P<whole>\d+)\ )?(?P<top>\d+)/(?P<bottom>\d+)(?![\d/]|[.,]\d)      # 1/2, 3 1/2; no dates
    | (?P<digits>
        (?<![\d.,])\d{{1,3}}(?:\ \d{{3}})+(?![\d])(?:[.,]\d+)?                           # 1 234 567,8
      | (?<![\d.,])\d{{1,3}}(?:'\d{{3}})+(?![\d'])(?:[.,]\d+)?                            # 1'234.5
      | \d+(?:[.,]\d+)* | [.,]\d+
      )(?:[eE](?P<power>[-+−]?\d+))?
    )
    """,
    re.VERBOSE,
)


def read_number(text: str, decimal: DecimalMark = ".", unit: str = "") -> float:
    """Read a text that is one number as people write it: `1,234.5`, `1 234`, `1'234`, `-.5`, `1e6`, `½`, `3 1/2`, `٣`.

    Args:
        text: the number, and perhaps its unit.
        decimal: the decimal mark. The other of `.` and `,` may only separate groups of digits.
        unit: a unit or currency that may stand before or after the number, such as `%` or `€`.

    Raises:
        ValueError: it is no number, or one that means something else with this decimal mark; the text says why.

    Example:
        >>> read_number("1.234,5", decimal=","), read_number("12 %", unit="%")
        (1234.5, 12.0)
    """
    plain = _plain_digits(canonical(text), decimal)
    if unit:
        plain = plain.removeprefix(canonical(unit)).removesuffix(canonical(unit)).strip()
        plain = re.sub(rf"^([{_MINUS}+]){re.escape(canonical(unit))}\s*", r"\1", plain)
    found = _TOKEN.fullmatch(plain)
    if found is None or (found["sign"] or "")[1:]:
        raise ValueError("it is not a number" + (f" in {unit}" if unit else ""))
    if not (number := _plain(found, decimal)):
        other: DecimalMark = "," if decimal == "." else "."
        fits = bool(_plain(found, other))
        raise ValueError(f"it is not a number with the decimal mark `{decimal}`" + (f"; with `{other}` it is" * fits))
    return float(number)


def numbers(text: str) -> list[str]:
    """Find the numbers of a text in order, whatever stands around them, in digits with a decimal point: `-1250.50`.

    As `read_number` with a decimal point, but a comma that does not separate groups is a decimal comma (`3,5`), and of
    both marks the last is the decimal mark (`1.234,5`). Currencies, percent signs and other units do not count.
    """
    found = []
    for match in _TOKEN.finditer(_plain_digits(canonical(text), ".")):
        plain = _plain(match, ".") or _plain(match, ",")
        if plain:
            found.append(plain)
        elif match["digits"]:  # 1,2,3 are three numbers, or a date or a version
            found += re.findall(r"\d+", match["digits"])
    return found


def number_text(value: float) -> str:
    """Write a number with a decimal point and the fewest digits that give it back: `1234.5`, `3`."""
    return f"{Decimal(repr(value)):f}".removesuffix(".0")


def spread(values: Sequence[float]) -> float:
    """Give the distance of the 5th and the 95th percentile, which few outliers do not change; else the whole range.

    Raises:
        DataError: `one-label`: all values are equal, or there are none.
    """
    ordered = sorted(values)
    last = len(ordered) - 1
    if not ordered or ordered[0] == ordered[-1]:
        problem = f"every training row has the number {number_text(ordered[0])}" if ordered else "no training row"
        raise DataError("one-label", problem, hint="check `output.column`, or add rows with other numbers")
    return ordered[round(0.95 * last)] - ordered[round(0.05 * last)] or ordered[-1] - ordered[0]


def number_pattern(low: float | None, high: float | None, *, whole: bool) -> str:
    """Make the regular expression of the numbers that a model may write: up to 15 digits, and nine decimals.

    Whole numbers of a small range are listed. Else bounds only decide about the minus sign.
    """
    if whole and low is not None and high is not None and high - low <= 100:
        return "|".join(str(number) for number in range(math.ceil(low), math.floor(high) + 1))
    sign = "" if low is not None and low >= 0 else "-?"
    return f"{sign}(0|[1-9][0-9]{{0,14}})" + ("" if whole else r"(\.[0-9]{1,9})?")


def _plain_digits(text: str, decimal: DecimalMark) -> str:
    """Write digits of all scripts as 0 to 9, `½` as ` 1/2`, and Arabic separators as European ones."""
    if text.isascii():
        return text
    text = text.translate({ord("٫"): decimal, ord("٬"): "'", ord("’"): "'"})
    parts = []
    for char in text:
        if (digit := unicodedata.decimal(char, None)) is not None:
            parts.append(str(digit))
        elif char != "⁄" and "⁄" in (fraction := unicodedata.normalize("NFKC", char)):
            parts.append((" " if parts and parts[-1].isdigit() else "") + fraction.replace("⁄", "/"))
        else:
            parts.append("/" if char == "⁄" else char)
    return "".join(parts)


def _plain(found: re.Match[str], decimal: DecimalMark) -> str:
    """Write the number of a match plainly; empty if its separators do not fit the decimal mark, or it is too large."""
    sign = "-" if (found["sign"] or "+")[0] in _MINUS else ""
    if found["top"] is not None:
        whole, top, bottom = int(found["whole"] or 0), int(found["top"]), int(found["bottom"])
        return sign + number_text(whole + top / bottom) if bottom else ""
    digits = found["digits"].replace(" ", "").replace("'", "")
    group = "," if decimal == "." else "."
    before, mark, rest = digits.partition(decimal)
    if group in rest or decimal in rest:  # 1.234,5 read with a point; 1.2.3
        return ""
    if group in before:
        # Groups of three, or of two and a last of three, as in India; 0,123 is no group.
        if not re.fullmatch(r"[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d?(?:,\d{2})*,\d{3}", before.replace(group, ",")):
            return ""
        before = before.replace(group, "")
    plain = f"{before or 0}.{rest}" if mark else before
    if found["power"]:
        value = float(f"{plain}e{found['power'].replace('−', '-')}")
        plain = "" if math.isinf(value) else number_text(value)
    return sign + plain if plain and len(plain) < 300 else ""
