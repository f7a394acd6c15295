"""Token counts of a sample of rows, from which decoders estimate the operations of a prediction.

A forward pass takes 2 operations per parameter and token (Kaplan et al. 2020, https://arxiv.org/abs/2001.08361,
section 2.1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from rung.artifact.rendering import PromptParts
from rung.data.rows import Example
from rung.engines.label_trie import build_trie
from rung.models.messages import encode_messages, end_token
from rung.models.reference import ModelFiles, is_endpoint, resolve
from rung.models.tokenizer import Tokenizer
from rung.prompts.prompt import continuations
from rung.retrieval.retriever import Retriever

FORWARD = 2  # operations per parameter and token
SAMPLE = 32  # rows whose tokens are counted
TOGETHER = 8  # rows that are answered together: alone, a slow row takes two to nine times as long
REASONING_TOKENS = 128  # the expected length of a chain of thought


@dataclass(frozen=True, slots=True)
class Sizes:
    """Mean token counts of the task's rows under an artifact's prompt, and the base model's parameters.

    Attributes:
        head: tokens of the prefix that all prompts share, computed once.
        question: tokens of the rest of one row's prompt.
        answer: tokens of one expected answer.
        tree: inner nodes of the label trie (0 for generated text).
        parameters: of the base model; 0 for an endpoint.
    """

    head: float
    question: float
    answer: float
    tree: int
    parameters: int

    @property
    def decoding(self) -> float:
        """Tokens run after the prompt for one prediction."""
        return self.tree or self.answer


def measure_sizes(
    parts: PromptParts, rows: Sequence[Example], target_text: Callable[[str], str], scored: Sequence[str] = ()
) -> Sizes:
    """Measure the first `SAMPLE` rows with the tokenizer alone.

    `target_text` turns an expected output into the text that the model writes; `scored` are the texts of labels that
    the model scores instead.
    """
    rows = rows[:SAMPLE]
    if is_endpoint(parts.model):  # four characters a token
        n = 4 * len(rows)
        question = sum(len(parts.prompt.question(e.inputs)) for e in rows) / n
        return Sizes(len(parts.prompt.head()) / 4, question, sum(len(e.outputs[0]) for e in rows) / n, 0, 0)
    files, n = resolve(parts.model), len(rows)
    tokenizer = tokenizer_of(files)
    whole = sum(len(encode_messages(tokenizer, parts.prompt.messages(e.inputs))) for e in rows)
    question = sum(len(tokenizer.encode_plain(parts.prompt.question(e.inputs))) for e in rows)
    answer = sum(len(tokenizer.encode_plain(target_text(e.outputs[0]))) for e in rows)
    tree = build_trie(continuations(scored, tokenizer.encode_plain, end_token(tokenizer))).size if scored else 0
    return Sizes((whole - question) / n, question / n, answer / n, tree, files.parameters)


@lru_cache(maxsize=4)
def tokenizer_of(files: ModelFiles) -> Tokenizer:
    """Load the tokenizer of a model, cached."""
    return Tokenizer.load(files.folder)


def prompt_tokens(parts: PromptParts, sizes: Sizes) -> float:
    """Estimate the tokens read for one prompt of a prediction, without the instruction, which all prompts share.

    Demonstrations that all prompts share are read once a batch on this machine.
    """
    shown, context = parts.demonstrations, 0.0
    if shown is not None:
        context = min(shown.k * (sizes.question + sizes.answer + 8), shown.token_budget)
        if shown.same_for_all and not is_endpoint(parts.model):
            context /= TOGETHER
    if (retriever := parts.retriever) is not None:
        context += passage_tokens(retriever)
        context += retriever.demonstration_passages * retriever.passage_tokens * (shown.k if shown is not None else 0)
    return parts.weights.virtual_tokens + context + sizes.question


def passage_tokens(retriever: Retriever) -> float:
    """Bound the tokens of the passages in one prompt."""
    return min(retriever.k * retriever.passage_tokens, retriever.token_budget)
