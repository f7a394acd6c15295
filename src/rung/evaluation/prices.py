"""What predictions cost their user: tokens of an endpoint, or time of this machine, and the share of training.

An endpoint bills input, output and cached tokens at the prices in `RUNG_API_PRICE_INPUT`, `_OUTPUT` and `_CACHED`. A
model on this machine costs the machine's hour (`machine.price_per_hour`), by the measured seconds per row. Training and
search are spread over the predictions of 90 days, `needs.rows_per_day` a day. All prices are in one currency; the
defaults are in US dollars.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

from rung.artifact.artifact import Artifact
from rung.data.rows import Example
from rung.engines.api_options import ApiOptions
from rung.evaluation.result import Prediction
from rung.machine import is_loopback, this_machine
from rung.models.reference import is_endpoint
from rung.task import Task

CORE_HOUR = 0.05  # US dollars: an m7i.large of AWS has 2 virtual cores and costs 0.1008 an hour on demand (us-east-1)
ROWS_PER_DAY = 1_000  # where the task file does not say
DAYS = 90  # over whose predictions training and search are spread
# What a million tokens are taken to cost where no prices are set, to order artifacts only; never shown as a price.
ASSUMED = ApiOptions(price_input=0.15, price_output=0.60)


@dataclass(frozen=True, slots=True)
class Prices:
    """The prices of one task.

    Attributes:
        machine_hour: of an hour of this machine.
        machine_given: whether the task file gives it; else it is a default.
        predictions: over which training and search are spread.
        input, output, cached: of a million tokens of the endpoint; None where they are not set.
    """

    machine_hour: float
    machine_given: bool
    predictions: int
    input: float | None
    output: float | None
    cached: float | None

    @classmethod
    def of(cls, task: Task) -> Prices:
        """Read the task's prices and those of the environment."""
        given = None if task.machine is None else task.machine.price_per_hour
        hour = round(CORE_HOUR * this_machine().cores, 4) if given is None else given
        options = ApiOptions.from_environment()
        cached = options.price_input if options.price_cached is None else options.price_cached
        tokens = (options.price_input, options.price_output, cached) if options.priced else (None, None, None)
        rows = None if task.needs is None else task.needs.rows_per_day
        return cls(hour, given is not None, DAYS * (rows or ROWS_PER_DAY), *tokens)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for the report."""
        return asdict(self)

    def known(self, models: Sequence[str]) -> bool:
        """Say whether the price of everything that these models do is known."""
        return self.input is not None or all(map(_local, models))

    def fit(self, seconds: float, money: float) -> float:
        """The share of one prediction in a fit that took this time on this machine, and this much at endpoints."""
        return (seconds / 3600 * self.machine_hour + money) / self.predictions


def token_money(artifact: Artifact, prompt: int, completion: int, cached: int) -> float | None:
    """What an endpoint bills for an answer's tokens: 0 for a model on this machine, None where no prices are set."""
    if runs_here(artifact):
        return 0.0
    options = ApiOptions.from_environment()
    return options.price(prompt, completion, cached) if options.priced else None


def runs_here(artifact: Artifact) -> bool:
    """Say whether this machine does the work: for a local model, and a server on this machine without prices."""
    return not artifact.decoder.uses_llm or _local(artifact.model)


def _local(model: str) -> bool:
    if not is_endpoint(model):
        return True
    host = urlsplit(model.partition("#")[0]).hostname or ""
    return is_loopback(host) and not ApiOptions.from_environment().priced


def price_per_row(
    rows: Sequence[Prediction], artifact: Artifact, task: Task, *, fit_seconds: float = 0.0, fit_money: float = 0.0
) -> float | None:
    """The price of one prediction, measured on `rows`, with its share of the fit; None where it is not known.

    `fit_seconds` and `fit_money` are what all rungs in the artifact's path took on this machine and at endpoints.
    """
    prices = Prices.of(task)
    if not rows or any(row.money is None for row in rows):
        return None
    money = sum(row.money or 0.0 for row in rows) / len(rows)
    seconds = sum(row.seconds for row in rows) / len(rows) if runs_here(artifact) else 0.0
    return money + seconds / 3600 * prices.machine_hour + prices.fit(fit_seconds, fit_money)


def expected_price(
    artifact: Artifact, task: Task, rows: Sequence[Example], *, tokens: float, seconds: float, fit_seconds: float,
    local: bool,
) -> float | None:  # fmt: skip
    """What one prediction is expected to cost before anything is measured; None where it is not known.

    `tokens` and `seconds` are those of a row. `local` says that this machine answers, whatever the artifact's model is.
    """
    prices = Prices.of(task)
    share = prices.fit(fit_seconds, 0.0)
    if local or runs_here(artifact):
        return share + seconds / 3600 * prices.machine_hour
    options = ApiOptions.from_environment()
    if not options.priced:
        return None
    sizes = artifact.decoder.sizes(artifact, rows)
    return share + options.price(sizes.head + tokens - sizes.answer, sizes.answer)


def order_of_cheaper(
    rows: Sequence[Prediction], artifact: Artifact, task: Task, operations: float, *, fit_seconds: float = 0.0,
    fit_money: float = 0.0,
) -> float:  # fmt: skip
    """A number that orders artifacts from cheap to dear: the price of a prediction, to two digits.

    Measured times vary from run to run, so prices that agree in two digits count as equal, and the estimated operations
    of a prediction decide. Where an endpoint's prices are not set, `ASSUMED` ones are used.
    """
    price = price_per_row(rows, artifact, task, fit_seconds=fit_seconds, fit_money=fit_money)
    if price is None:
        tokens = [ASSUMED.price(row.prompt_tokens, row.completion_tokens, row.cached_tokens) for row in rows]
        price = sum(tokens) / max(1, len(tokens)) + Prices.of(task).fit(fit_seconds, fit_money)
    if price == 0:
        return 1e-30 * operations  # a free machine: below every price
    price = round(price, 1 - math.floor(math.log10(price)))
    return price * (1 + 1e-6 * math.log10(1 + operations))  # far from changing the second digit
