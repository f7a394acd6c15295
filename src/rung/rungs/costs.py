"""Shared arithmetic of cost estimates: tokens from a sample of rows, operations from tokens and parameters.

A forward pass takes 2 operations per parameter and token; training takes 6, and 4 where the base is frozen (Kaplan et
al. 2020, https://arxiv.org/abs/2001.08361, section 2.1).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache

from rung.artifact.artifact import Artifact
from rung.artifact.lookup import Nearest
from rung.artifact.parts import Head, LabelScoring, ListScoring, Mixture, Reasoning
from rung.artifact.sentences import SentenceSelection
from rung.data.rows import Data, Example
from rung.engines.label_trie import build_trie
from rung.machine import Machine
from rung.models.reference import ModelFiles, is_endpoint, resolve
from rung.models.tokenizer import Tokenizer
from rung.models.turns import encode_messages, end_token
from rung.prompts.prompt import continuations
from rung.retrieval.retriever import Retriever
from rung.rungs.base import Cost

SAMPLE = 32
SAMPLE_CHARACTERS = 4000  # of a document
ACTIVATION_BYTES = 2**30  # room for activations and logits beside the weights
NF4_BYTES = (4 + 0.127) / 8  # of a parameter: 4 bits, and the constants of its block (QLoRA, section 3)
STEPS = 128  # tokens that a chain of thought is expected to take
FORWARD, FROZEN_BASE, FULL = 2, 4, 6


@dataclass(frozen=True, slots=True)
class Sizes:
    """Mean token counts of the task's rows under an artifact's prompt, and the base model's parameters.

    Attributes:
        head: tokens of the part that all prompts share, computed once.
        question: tokens of one row's own part.
        answer: tokens of one expected answer.
        tree: inner nodes of the label trie (0 for generated text).
    """

    head: float
    question: float
    answer: float
    tree: int
    parameters: int

    @property
    def decoding(self) -> float:
        """Tokens run behind the prompt for one prediction."""
        return self.tree or self.answer


def sizes(artifact: Artifact, data: Data) -> Sizes:
    """Measure a sample of the training rows with the tokenizer alone."""
    rows = (data.train or data.validation)[:SAMPLE]
    if is_endpoint(artifact.model):
        return _sizes_by_characters(artifact, rows)
    files = resolve(artifact.model)
    tokenizer = _tokenizer(files)
    whole = [len(encode_messages(tokenizer, artifact.prompt.messages(e.inputs))) for e in rows]
    question = [len(tokenizer.encode_plain(artifact.prompt.question(e.inputs))) for e in rows]
    answer = [len(tokenizer.encode_plain(artifact.spoken(e.outputs[0]))) for e in rows]
    tree = 0
    if isinstance(artifact.decoder, LabelScoring | ListScoring):
        scoring = artifact.decoder.scoring if isinstance(artifact.decoder, ListScoring) else artifact.decoder
        texts = scoring.texts
        tree = build_trie(continuations(texts, tokenizer.encode_plain, end_token(tokenizer))).size
    n = len(rows)
    return Sizes((sum(whole) - sum(question)) / n, sum(question) / n, sum(answer) / n, tree, files.parameters)


def base_bytes(files: ModelFiles, quantization: str) -> int:
    """Return the memory of the base model's weights: float32, of linear layers in 4 bits where it is quantized."""
    if not quantization:
        return 4 * files.parameters
    config = json.loads((files.folder / "config.json").read_text("utf-8"))
    config = config.get("text_config", config)
    table = int(config["vocab_size"] * config["hidden_size"])
    embeddings = table if config.get("tie_word_embeddings", True) else 2 * table
    return round(4 * embeddings + NF4_BYTES * (files.parameters - embeddings))


def text_tokens(artifact: Artifact, data: Data) -> float:
    """Return the tokens of the task's plain text, by those of a sample."""
    tokenizer = _tokenizer(resolve(artifact.model))
    sample = [document.text[:SAMPLE_CHARACTERS] for document in data.text[:SAMPLE]]
    per_character = sum(len(tokenizer.encode_plain(text)) for text in sample) / max(1, sum(map(len, sample)))
    return per_character * sum(len(document.text) for document in data.text)


def _sizes_by_characters(artifact: Artifact, rows: tuple[Example, ...]) -> Sizes:
    head = len(artifact.prompt.head()) / 4
    question = sum(len(artifact.prompt.question(e.inputs)) for e in rows) / 4 / len(rows)
    answer = sum(len(e.outputs[0]) for e in rows) / 4 / len(rows)
    return Sizes(head, question, answer, 0, 0)


@lru_cache(maxsize=4)
def _tokenizer(files: ModelFiles) -> Tokenizer:
    return Tokenizer.load(files.folder)


def prediction_tokens(artifact: Artifact, s: Sizes) -> float:
    """Return the tokens run for one prediction, the text that all prompts begin with left out."""
    shown = artifact.demonstrations
    context = 0.0
    if shown is not None:
        one = s.question + s.answer + 8
        context = min(shown.k * one, shown.token_budget)
    if (retriever := artifact.retriever) is not None:
        context += _passages_read(retriever)
        context += retriever.demonstration_passages * retriever.passage_tokens * (shown.k if shown is not None else 0)
    prompts = 1 if shown is None else shown.sets
    decoding = s.decoding
    if isinstance(artifact.decoder, Reasoning):
        decoding = artifact.decoder.samples * (s.answer + min(STEPS, artifact.decoder.max_tokens))
    return prompts * (artifact.weights.virtual_tokens + context + s.question + decoding)


def _passages_read(retriever: Retriever) -> float:
    return min(retriever.k * retriever.passage_tokens, retriever.token_budget)


def prediction_flops(artifact: Artifact, data: Data) -> float:
    """Return the operations of one prediction: the order of "cheaper" among artifacts."""
    if isinstance(artifact.decoder, Mixture):
        return sum(prediction_flops(member, data) for member in artifact.decoder.members)
    s = sizes(artifact, data)
    if isinstance(artifact.decoder, Nearest):
        return FORWARD * resolve(artifact.decoder.encoder).parameters * s.question
    if isinstance(artifact.decoder, SentenceSelection):
        assert artifact.retriever is not None
        read = s.question + _passages_read(artifact.retriever)
        return FORWARD * resolve(artifact.decoder.encoder).parameters * read
    if isinstance(artifact.decoder, Head):
        encoder = resolve(artifact.decoder.reference).parameters if artifact.decoder.encoder else s.parameters
        return FORWARD * encoder * s.question
    return FORWARD * s.parameters * prediction_tokens(artifact, s)


def inference_cost(
    artifact: Artifact, data: Data, machine: Machine, *, fit_rows: int = 0, extra_tokens: float = 0
) -> Cost:
    """Return the cost of an artifact that needs `fit_rows` predictions to be made and no training."""
    s = sizes(artifact, data)
    return forward_cost(s.parameters, prediction_tokens(artifact, s) + extra_tokens, machine, fit_rows=fit_rows)


def forward_cost(parameters: int, tokens: float, machine: Machine, *, fit_rows: int) -> Cost:
    """Return the cost of what reads `tokens` a row with so many parameters, and `fit_rows` rows to be made."""
    flops = FORWARD * parameters * tokens
    return Cost(
        fit_tokens=round(fit_rows * tokens),
        fit_flops=fit_rows * flops,
        fit_seconds=machine.inference_seconds(fit_rows * flops),
        row_tokens=tokens,
        row_flops=flops,
        row_seconds=machine.inference_seconds(flops),
        memory_bytes=4 * parameters + ACTIVATION_BYTES,
    )
