"""Prompt search: candidates raced on training rows, adopted only if better on training rows kept apart."""

from __future__ import annotations

from dataclasses import dataclass

from rung.artifact.artifact import Artifact
from rung.artifact.parts import Promptless
from rung.data.rows import Data, Example
from rung.engines.api_transport import ApiOptions
from rung.engines.opening import open_encoder, open_engine
from rung.errors import ConfigError
from rung.machine import Machine
from rung.progress import QUIET, Progress
from rung.prompt_search.budget import Limits, Meter
from rung.prompt_search.candidates import Space, templates
from rung.prompt_search.search import FEWEST_FIXES, Found, Plan, search, split
from rung.prompt_search.writer import CopyGuard, Writer, Written
from rung.prompts.demonstrations import Demonstrations, Selection
from rung.rungs.base import YES, Cost, Verdict, never, no
from rung.rungs.costs import inference_cost
from rung.rungs.few_shot import ENCODER

FEWEST_SEARCHED = 16


@dataclass(frozen=True)
class PromptSearch:
    """Search instruction, template, label wording and demonstrations within a budget.

    Attributes:
        calls: prompts answered or written by a model, at most; 0 for no limit, as for the other limits.
        tokens, seconds, money: further limits; money in the currency of RUNG_API_PRICE_INPUT and _OUTPUT.
        population: candidates per round.
        rounds: rounds.
        instructions: instructions to have written; 0 leaves the instruction as it is.
        writer: the model that writes them; empty for the task's own.
        demonstrations: whether demonstrations are searched as well.
        encoder: sentence encoder for the nearest rows as demonstrations; empty leaves these out.
        adoption: share of the training rows that only decide about the adoption.
        search_rows: most rows to search on.
        adoption_rows: most rows to decide by.
        calibrate: calibrate label scores of candidates.
        systems: the task's system prompts, which are searched as well.
    """

    calls: int = 1500
    tokens: int = 0
    seconds: float = 0.0
    money: float = 0.0
    population: int = 16
    rounds: int = 3
    instructions: int = 6
    writer: str = ""
    demonstrations: bool = True
    encoder: str = ENCODER
    adoption: float = 0.5
    search_rows: int = 200
    adoption_rows: int = 300
    calibrate: bool = True
    seed: int = 0
    systems: tuple[str, ...] = ()
    name: str = "prompt-search"
    family: str = "prompt-learning"

    def __post_init__(self) -> None:
        check_adoption(self.name, self.adoption)

    def applies(self, artifact: Artifact, data: Data) -> Verdict:
        """It applies where an untuned prompt answers and there are rows to search on and to decide by."""
        return verdict_on_search(artifact, data, self.adoption, self.seed, FEWEST_SEARCHED)

    def estimate(self, artifact: Artifact, data: Data, machine: Machine) -> Cost:
        """All calls of the budget, with the demonstrations that most candidates show."""
        rows, deciding = split(data.train, self.adoption, self.seed)
        most = self.population * self.rounds * min(len(rows), self.search_rows) + 2 * len(deciding)
        return inference_cost(artifact, data, machine, fit_rows=min(self.calls or most, most))

    def fit(self, artifact: Artifact, data: Data, *, progress: Progress = QUIET) -> Artifact:
        """Return the artifact with the prompt found, or with its own where nothing was significantly better."""
        found = self.search(artifact, data, progress=progress)
        parts = {"prompt": found.artifact.prompt, "decoder": found.artifact.decoder}
        return artifact.step(
            self.name, found.as_dict(), demonstrations=found.artifact.demonstrations, **parts
        )  # fmt: skip

    def search(self, artifact: Artifact, data: Data, *, progress: Progress = QUIET) -> Found:
        """Search and decide; `fit` returns what this adopts."""
        meter = self._meter()
        all_rows, deciding = split(data.train, self.adoption, self.seed)
        guard = CopyGuard(data.train, (artifact.prompt.head(), *artifact.shape.labels))
        written: list[Written] = []
        if self.instructions:
            engine = open_engine(self.writer, progress=progress) if self.writer else artifact.open()
            writer = Writer(engine, guard, meter, seed=self.seed)
            written = writer.instructions(artifact, all_rows, self.instructions, progress=progress)
        usable = tuple(one.text for one in written if not one.refused)
        inputs, output = artifact.shape.inputs, "Label" if artifact.shape.kind == "category" else "Answer"
        space = Space(
            artifact,
            (artifact.prompt.instruction, *usable),
            templates(artifact.prompt.template, inputs, output)
            if artifact.prompt.chat_column is None
            else (artifact.prompt.template,),
            self._pools(artifact, all_rows, progress),
            vary_shots=self.demonstrations and artifact.prompt.chat_column is None,
            systems=self.systems,
        )
        return search(
            space, all_rows[: self.search_rows], deciding[: self.adoption_rows],
            artifact.shape.scorer(data.folder), meter, Plan(self.population, self.rounds, self.seed),
            calibrate=self.calibrate, written=written, progress=progress,
        )  # fmt: skip

    def _meter(self) -> Meter:
        options = ApiOptions.from_environment()
        if self.money and options.price_input + options.price_output == 0:
            raise ConfigError(
                "bad-setting",
                "prompt-search.money: there are no prices to count it by",
                hint="set RUNG_API_PRICE_INPUT and RUNG_API_PRICE_OUTPUT, the prices of a million tokens",
            )
        limits = Limits(self.calls or None, self.tokens or None, self.seconds or None, self.money or None)
        return Meter(limits, (options.price_input, options.price_output))

    def _pools(self, artifact: Artifact, rows: tuple[Example, ...], progress: Progress) -> dict[str, Demonstrations]:
        """Return what demonstrations may be drawn from: the artifact's own, and rows that do not decide."""
        plain: Selection = "balanced" if artifact.shape.labels else "fixed"
        pools: dict[str, Demonstrations] = {plain: Demonstrations(plain, 4, rows)}
        if self.encoder:
            texts = [artifact.prompt.question(row.inputs) for row in rows]
            vectors = open_encoder(self.encoder, progress=progress).embed(texts, progress=progress)
            pools["knn"] = Demonstrations("knn", 4, rows, vectors, self.encoder)
        if (own := artifact.demonstrations) is not None:
            pools[own.selection] = own
        return pools


def check_adoption(rung: str, adoption: float) -> None:
    """Check a rung's setting of that name.

    Raises:
        ConfigError: it leaves no rows to search on, or none to decide by.
    """
    if not 0 < adoption < 1:
        raise ConfigError(
            "bad-setting", f"{rung}.adoption: a share between 0 and 1, not {adoption!r}",
            hint="0.5 leaves half of the training rows to the search",
        )  # fmt: skip


def verdict_on_search(artifact: Artifact, data: Data, adoption: float, seed: int, fewest: int) -> Verdict:
    """Say whether another prompt can be searched for an artifact, or why not.

    Args:
        artifact: whose prompt it would be.
        data: with the training rows.
        adoption: share of them that decides.
        seed: of that cut.
        fewest: rows that the search takes.
    """
    if isinstance(artifact.decoder, Promptless):
        return no("what answers does not read the prompt")
    if artifact.weights.adapter is not None:
        return no("the adapter was trained with this very prompt")
    rows, deciding = split(data.train, adoption, seed)
    if len(rows) < fewest or len(deciding) < FEWEST_FIXES:
        return never(f"{len(data.train)} training rows are too few to search on some and to decide by others")
    return YES
