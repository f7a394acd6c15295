"""Shared arithmetic of cost estimates: tokens from a sample of rows, operations from tokens and parameters.

A forward pass takes 2 operations per parameter and token; training takes 6, and 4 where the base is frozen (Kaplan et
al. 2020, https://arxiv.org/abs/2001.08361, section 2.1).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np

from rung.artifact.artifact import Artifact
from rung.artifact.costs import FORWARD, SAMPLE, Sizes, tokenizer_of
from rung.artifact.lexical import lexical_flops
from rung.data.rows import Data
from rung.machine import Machine
from rung.models.hub import read_settings
from rung.models.reference import ModelFiles, resolve
from rung.rungs.base import Cost
from rung.rungs.linear import FOLDS, LEXICAL, PENALTIES, ROTATED, choices_of

SAMPLE_CHARACTERS = 4000  # of a document
ACTIVATION_BYTES = 2**30  # room for activations and logits beside the weights
NF4_BYTES = (4 + 0.127) / 8  # of a parameter: 4 bits, and the constants of its block (QLoRA, section 3)
FROZEN_BASE, FULL = 4, 6
LEXICAL_BYTES = 2**29  # room for the terms of the rows and for scikit-learn
WRITING = 4.0  # times what a read token takes; 2.1 to 4.8 on two cores with four tasks of the 135M model
FITTING = 0.1  # seconds to count terms, however few
LOADING = 1.0  # seconds to import scikit-learn
A_FIT = 0.0015  # seconds of one logistic regression, however few its rows
STEPS, LAST_STEPS = 20, 100  # of a logistic regression that chooses a penalty, and of the final one
MIXED = 1.3  # times as many where two kinds of features are weighed
NARROW = 600  # rows whose products take as long as the rest of a step


def sizes(artifact: Artifact, data: Data) -> Sizes:
    """Measure a sample of the training rows with the tokenizer alone."""
    return artifact.decoder.sizes(artifact, data.train or data.validation)


def base_bytes(files: ModelFiles, quantization: str) -> int:
    """Estimate the memory of the base model's weights: float32, of linear layers in 4 bits where it is quantized."""
    if not quantization:
        return 4 * files.parameters
    config, table = _table(files)
    embeddings = table if config.get("tie_word_embeddings", True) else 2 * table
    return round(4 * embeddings + NF4_BYTES * (files.parameters - embeddings))


def _table(files: ModelFiles) -> tuple[dict[str, Any], int]:
    """The configuration of a model, and the parameters of its table of token vectors."""
    config = read_settings(files.folder / "config.json")
    config = config.get("text_config", config)
    return config, int(config["vocab_size"] * config["hidden_size"])


def time_tokens(tokens: float, written: float) -> float:
    """The tokens that could be read in the time of so many, of which some are written one after the other."""
    return tokens + (WRITING - 1) * written


def text_tokens(artifact: Artifact, data: Data) -> float:
    """Estimate the tokens of the task's plain text from a sample."""
    tokenizer = tokenizer_of(resolve(artifact.model))
    sample = [document.text[:SAMPLE_CHARACTERS] for document in data.text[:SAMPLE]]
    per_character = sum(len(tokenizer.encode_plain(text)) for text in sample) / max(1, sum(map(len, sample)))
    return per_character * sum(len(document.text) for document in data.text)


def inference_cost(
    artifact: Artifact, data: Data, machine: Machine, *, fit_rows: int = 0, extra_tokens: float = 0
) -> Cost:
    """Estimate the cost of an artifact that needs `fit_rows` predictions to be made and no training."""
    s, decoder = sizes(artifact, data), artifact.decoder
    tokens, written = decoder.row_tokens(artifact, s) + extra_tokens, decoder.written_tokens(s)
    return forward_cost(s.parameters, tokens, machine, fit_rows=fit_rows, written=written)


def forward_cost(parameters: int, tokens: float, machine: Machine, *, fit_rows: int, written: float = 0.0) -> Cost:
    """Estimate the cost of `tokens` a row, of which some are written, and of `fit_rows` rows for the fit."""
    flops = FORWARD * parameters * tokens
    seconds = machine.inference_seconds(FORWARD * parameters * time_tokens(tokens, written))
    return Cost(
        fit_tokens=round(fit_rows * tokens),
        fit_flops=fit_rows * flops,
        fit_seconds=fit_rows * seconds,
        row_tokens=tokens,
        row_flops=flops,
        row_seconds=seconds,
        memory_bytes=4 * parameters + ACTIVATION_BYTES,
        written_tokens=written,
    )


def encoder_cost(encoder: str, tokens: float, machine: Machine, *, fit_rows: int) -> Cost:
    """Estimate the cost of an encoder that reads `tokens` a row; its table of token vectors is only looked up."""
    files = resolve(encoder)
    cost = forward_cost(files.parameters - _table(files)[1], tokens, machine, fit_rows=fit_rows)
    return replace(cost, memory_bytes=4 * files.parameters + ACTIVATION_BYTES)


def lexical_cost(artifact: Artifact, data: Data, machine: Machine, *, outputs: int = 0) -> Cost:
    """Estimate the cost of TF-IDF that a linear head of so many outputs, or none, reads; the head's fit is apart."""
    rows = data.train or data.validation
    flops = lexical_flops(artifact, rows[:SAMPLE], outputs)
    flops_of_fit = len(data.train) * flops
    seconds = LOADING + FITTING + machine.inference_seconds(flops_of_fit)
    return Cost(
        fit_tokens=0, fit_flops=flops_of_fit, fit_seconds=seconds, row_tokens=0, row_flops=flops,
        row_seconds=machine.inference_seconds(flops), memory_bytes=LEXICAL_BYTES, shared=(("scikit-learn", LOADING),),
    )  # fmt: skip


def head_cost(data: Data, machine: Machine, columns: float, *, mixed: bool = False, several: bool = False) -> Cost:
    """Estimate the cost of fitting a linear head on features with so many columns.

    `mixed` says that two kinds of features are weighed, `several` that a row may have several labels.
    """
    rows, labels = len(data.train), max(1, len(data.labels))
    width = min(columns, rows, ROTATED)
    choices = len(PENALTIES)
    if not several and data.train:
        counts = np.array(list(Counter(row.outputs[0] for row in data.train).values()))
        choices = len(choices_of(counts, LEXICAL if mixed else (1.0,)))
    steps = FOLDS * (1 - 1 / FOLDS) * STEPS * choices + 2 * LAST_STEPS  # the last in double precision
    steps *= MIXED if mixed else 1
    flops = steps * 4 * (rows + NARROW) * width * labels
    if columns > rows and rows <= ROTATED:
        flops += (len(LEXICAL) if mixed else 1) * rotation_flops(rows)
    fits = (FOLDS * choices + 1) * (labels if several else 1)
    return Cost(0, flops, fits * A_FIT + one_thread_seconds(flops, machine), 0, 0.0, 0.0, LEXICAL_BYTES)


def one_thread_seconds(flops: float, machine: Machine) -> float:
    """The time of operations that run on one thread: see `rung.rungs.linear.one_thread`."""
    return machine.cores * machine.inference_seconds(flops)


def rotation_flops(rows: int) -> float:
    """Estimate the operations to find the eigenvectors of the rows' inner products."""
    return 10.0 * min(rows, ROTATED) ** 3


def width_of(model: str) -> int:
    """The dimension of a model's vectors."""
    return int(_table(resolve(model))[0]["hidden_size"])
