"""Names of clusters, written by a model that reads their most central texts."""

from __future__ import annotations

from collections.abc import Sequence

from rung.engines.base import Constraint, Engine, GenerateRequest, Message, Messages, Sampling
from rung.progress import QUIET, Progress

EXAMPLES = 8  # central texts that the model reads of each cluster
CHARACTERS = 300  # of each, so that any model can read them
_LETTER = "0-9A-Za-zÀ-ɏͰ-῿぀-퟿"  # ranges, as engines differ on negated classes beyond ASCII
_WORD = f"[{_LETTER}][{_LETTER}'&-]{{0,19}}"
WORDS = f"{_WORD}( {_WORD}){{0,4}}"  # one to five words
_ASK = "What do all these texts have in common? Name their shared topic in one to five words, and write nothing else."


def question(texts: Sequence[str]) -> Messages:
    """Return the messages that ask for a name."""
    lines = [f"- {' '.join(text.split())[:CHARACTERS]}" for text in texts]
    system: Message = {"role": "system", "content": _ASK}
    return (system, {"role": "user", "content": "\n".join(lines)})


def names(engine: Engine, clusters: Sequence[Sequence[str]], *, progress: Progress = QUIET) -> list[str]:
    """Return a name of one to five words for each cluster; a number behind one tells it from an earlier namesake.

    Args:
        engine: what writes.
        clusters: the central texts of each cluster.
        progress: told of every name.
    """
    constraint = Constraint("regex", WORDS)
    requests = [GenerateRequest(question(texts), Sampling(max_tokens=64), constraint) for texts in clusters]
    found: list[str] = []
    for made in engine.generate(requests, progress=progress):
        name = plain = made.text.strip().rstrip(".,:;")
        number = 1
        while name in found:
            number += 1
            name = f"{plain} ({number})"
        found.append(name)
    return found
