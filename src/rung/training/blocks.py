"""Plain text as training examples: documents one after the other, cut into blocks of a length.

Documents are joined and cut regardless of where they end, as in the pretraining of the models themselves (Brown et al.
2020, https://arxiv.org/abs/2005.14165, appendix B), so that no token is padding and none is thrown away.
"""

from __future__ import annotations

from collections.abc import Sequence

from rung.data.rows import Document
from rung.engines.local import LocalModel
from rung.errors import TrainingError
from rung.models.turns import text_end
from rung.training.examples import TokenizedExample


def blocks(engine: LocalModel, documents: Sequence[Document], length: int) -> list[TokenizedExample]:
    """Return blocks of at most `length` tokens; every token of the text is supervised exactly once.

    Each document is ended by the model's end-of-text token. The first token of a block is not supervised: it is the
    model's beginning token, or for models without one the last token of the block before (of the first block, an
    end-of-text token).

    Raises:
        TrainingError: the model has no end-of-text token.
    """
    end = text_end(engine.tokenizer)
    if end is None:
        raise TrainingError(
            "no-end-of-text",
            f"the tokenizer of {engine.files.name} has no token that ends a text",
            hint="choose another base model: the end of a document could not be told from its middle",
        )
    length = min(length, engine.files.context)
    begin = engine.tokenizer.bos_id if engine.tokenizer.adds_bos else None
    tokens: list[int] = []
    starts: list[tuple[int, str]] = []
    for document in documents:
        starts.append((len(tokens), document.source))
        tokens += (*engine.encode(document.text), end)
    made, before, at = [], end, 0
    for first in range(0, len(tokens), length - 1):
        part = tokens[first : first + length - 1]
        while at + 1 < len(starts) and starts[at + 1][0] <= first:
            at += 1
        lead = before if begin is None else begin
        made.append(TokenizedExample.answered((lead,), part, starts[at][1]))
        before = part[-1]
    return made
