"""Exact log-likelihoods of continuations at a server, where it offers a way; never an approximation."""

from __future__ import annotations

import threading
import time

import numpy as np

from rung.engines.api_server import ECHO, Server, echoed, forced_logprob, unsupported
from rung.engines.api_transport import Transport
from rung.engines.base import Scored, ScoreRequest

MOST_FORCED = 64  # tokens of a label set that are forced one by one, a request each
FORCED_LABELS = 8  # label sets up to this size are scored that way; writing the label is one request instead


def scores_labels(scoring: str, labels: int, most: int) -> bool:
    """Tell whether labels should be scored at a server, rather than written by the model.

    Args:
        scoring: what the server offers (`info.details["scoring"]`).
        labels: size of the label set.
        most: size up to which scoring by echo, which reads the prompt once per label, is worth it.
    """
    return labels <= {"echo": most, "forced": FORCED_LABELS}.get(scoring, 0)


def score_row(
    transport: Transport, server: Server, model: str, request: ScoreRequest, stopped: threading.Event
) -> Scored:
    """Return the log-likelihood of every continuation of one request.

    Raises:
        EngineError: `scoring-unsupported`.
    """
    start = time.perf_counter()
    way = server.capabilities.scoring
    if way == "none":
        raise unsupported(transport, "gives no log-probabilities of tokens that it is told")
    prompt = server.tokens(request.prompt)
    score = _by_echo if way == "echo" else _by_force
    sums = score(transport, model, prompt, request.continuations, stopped)
    return Scored(np.array(sums, np.float32), len(prompt), time.perf_counter() - start)


def _by_echo(
    transport: Transport,
    model: str,
    prompt: tuple[int, ...],
    continuations: tuple[tuple[int, ...], ...],
    stopped: threading.Event,
) -> list[float]:
    """One request for all: the server reads every prompt with its continuation and echoes the log-probabilities."""
    whole = [[*prompt, *continuation] for continuation in continuations]
    body = {"model": model, "prompt": whole, **ECHO}
    answer = transport.complete("/completions", body, (sum(map(len, whole)), len(whole)), stopped)
    rows = echoed(answer, len(whole))
    sums = []
    for row, tokens in zip(rows, whole, strict=False):
        own = row[len(prompt) : len(tokens)]
        if len(own) != len(tokens) - len(prompt) or None in own:
            raise unsupported(transport, "echoed fewer log-probabilities than there are tokens")
        sums.append(float(sum(own)))  # type: ignore[arg-type]
    if len(sums) != len(continuations):
        raise unsupported(transport, "echoed no log-probabilities")
    return sums


def _by_force(
    transport: Transport,
    model: str,
    prompt: tuple[int, ...],
    continuations: tuple[tuple[int, ...], ...],
    stopped: threading.Event,
) -> list[float]:
    """One request per token of the label trie: its logit is biased so that it comes, its log-probability is not."""
    beginnings = sorted({row[:n] for row in continuations for n in range(1, len(row) + 1)}, key=lambda b: (len(b), b))
    if len(beginnings) > MOST_FORCED:
        raise unsupported(
            transport, f"tells one token a request, and the labels have {len(beginnings)} (at most {MOST_FORCED})"
        )
    sums: dict[tuple[int, ...], float] = {(): 0.0}
    for beginning in beginnings:
        *before, token = beginning
        logprob = forced_logprob(transport, model, (*prompt, *before), token, stopped)
        sums[beginning] = sums[tuple(before)] + logprob
    return [sums[row] for row in continuations]
