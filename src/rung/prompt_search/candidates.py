"""What can vary in a prompt: instruction, template, the labels' wording, demonstrations, their number and order."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from rung.artifact.artifact import Artifact
from rung.artifact.labels import LabelScoring, label_scoring
from rung.prompts.demonstrations import COMPARED, Demonstrations
from rung.prompts.prompt import verbalize

Verbalizer = Literal["own", "words", "plain", "sentence"]
COUNTS = (1, 2, 4, 8)  # demonstrations shown


@dataclass(frozen=True, slots=True)
class Shots:
    """Which demonstrations are shown: the name of the rule, how many, the seed of the draw, and which `order`."""

    selection: str
    k: int
    seed: int = 0
    order: int = 0


@dataclass(frozen=True, slots=True)
class Candidate:
    """One prompt. Two candidates are equal if their prompts are equal, even with another `origin`.

    Attributes:
        instruction: what to do.
        template: the user turn.
        verbalizer: how labels are written: `own`: as the artifact has it; `words`: `card arrival`; `plain`: as in the
            data; `sentence`: `Card arrival`.
        listed: whether the prompt lists the labels.
        shots: the demonstrations, or None.
        system: the system prompt before the instruction, or empty.
        origin: what made it, for the report.
    """

    instruction: str
    template: str
    verbalizer: Verbalizer = "own"
    listed: bool = False
    shots: Shots | None = None
    system: str = ""
    origin: str = field(default="", compare=False)

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


GENES = tuple(each.name for each in fields(Candidate) if each.name != "origin")


@dataclass(frozen=True)
class SearchSpace:
    """All candidates on top of one artifact.

    Attributes:
        artifact: what is improved; parts that no gene names stay as they are.
        instructions: texts to choose from, the artifact's own first.
        templates: user turns to choose from, the artifact's own first.
        pools: demonstrations by the name of their rule; a candidate changes their number, seed and order.
        vary_shots: whether demonstrations may change at all.
        systems: system prompts to choose from, besides the artifact's own.
    """

    artifact: Artifact
    instructions: tuple[str, ...]
    templates: tuple[str, ...]
    pools: Mapping[str, Demonstrations]
    vary_shots: bool = True
    systems: tuple[str, ...] = ()

    @property
    def start(self) -> Candidate:
        """The artifact's own prompt."""
        prompt, shown = self.artifact.prompt, self.artifact.demonstrations
        shots = None if shown is None else Shots(shown.selection, shown.k, shown.seed, shown.order)
        listed = bool(prompt.labels)
        return Candidate(prompt.instruction, prompt.template, "own", listed, shots, prompt.system, "incumbent")

    def apply(self, candidate: Candidate) -> Artifact:
        """Put the candidate's prompt into the artifact; a label bias, measured with another prompt, is dropped."""
        artifact, prompt, shots = self.artifact, self.artifact.prompt, candidate.shots
        decoder = artifact.decoder
        wording: dict[str, Any] = {}
        if (scoring := label_scoring(decoder)) is not None:
            texts = verbalized(scoring, candidate.verbalizer)
            decoder = replace(scoring, texts=texts, bias=())
            new = dict(zip(prompt.labels, texts, strict=True)) if prompt.labels else {}
            described = tuple((new.get(label, label), text) for label, text in prompt.descriptions)
            listed = candidate.listed
            wording = {"labels": texts if listed else (), "descriptions": described if listed else ()}
        prompt = replace(
            prompt, instruction=candidate.instruction, template=candidate.template, system=candidate.system, **wording
        )
        shown = None
        if shots is not None:
            shown = replace(self.pools[shots.selection], k=shots.k, seed=shots.seed, order=shots.order)
        changed = replace(artifact, prompt=prompt, decoder=decoder, demonstrations=shown)
        return changed.with_engine(artifact.open())

    def options(self, gene: str, rng: random.Random) -> list[Any]:
        """The values that a gene may have; demonstrations are drawn again each time."""
        scored = label_scoring(self.artifact.decoder) is not None
        match gene:
            case "instruction":
                return list(self.instructions)
            case "template":
                return list(self.templates)
            case "system":
                return [self.start.system, *self.systems] if self.systems else []
            case "verbalizer":
                return ["words", "plain", "sentence"] if scored else []
            case "listed":
                return [True, False] if scored else []
        if not self.vary_shots:
            return []
        return [None, *(self._shots(name, k, rng) for name in self.pools for k in COUNTS)]

    def _shots(self, name: str, k: int, rng: random.Random) -> Shots:
        pool = self.pools[name]
        if pool.selection in COMPARED:  # the question chooses the rows and their order
            return Shots(name, min(k, len(pool.pool)), pool.seed)
        return Shots(name, min(k, len(pool.pool)), rng.randrange(2**31), rng.randrange(3))

    def differs(self, a: Candidate, b: Candidate) -> bool:
        """Whether two candidates make different prompts: two verbalizers may write the same words."""
        return a != b and self._key(a) != self._key(b)

    def _key(self, candidate: Candidate) -> Candidate:
        decoder = label_scoring(self.artifact.decoder)
        if decoder is None:
            return candidate
        names: tuple[Verbalizer, ...] = ("own", "words", "plain", "sentence")
        texts = verbalized(decoder, candidate.verbalizer)
        return replace(candidate, verbalizer=next(name for name in names if verbalized(decoder, name) == texts))


def verbalized(decoder: LabelScoring, how: Verbalizer) -> tuple[str, ...]:
    """The texts for the labels; the decoder's own where two labels would get the same text."""
    if how == "own":
        return decoder.texts
    if how == "plain":
        return decoder.labels
    words = verbalize(decoder.labels)
    if how == "sentence":
        words = tuple(text[:1].upper() + text[1:] for text in words)
    return words if len(set(words)) == len(words) else decoder.texts


def templates(own: str, inputs: Sequence[str], output: str = "") -> tuple[str, ...]:
    """User turns for these input columns: the artifact's own, bare, named, quoted, and with a question at the end.

    Args:
        own: the artifact's template, which stays the first.
        inputs: the input columns.
        output: what is asked for, in a word; without it, the templates that name it are left out.
    """
    titles = {name: name.replace("_", " ").capitalize() for name in inputs}
    named = "\n".join(f"{titles[name]}: {{{name}}}" for name in inputs)
    texts = [own, named, "\n\n".join(f"{titles[name]}:\n{{{name}}}" for name in inputs)]
    if len(inputs) == 1:
        texts += ["{" + inputs[0] + "}", '"{' + inputs[0] + '}"']
    if output:
        texts += [f"{named}\n{output}:", f"{named}\n\n{output}?"]
    return tuple(dict.fromkeys(texts))


def neighbours(space: SearchSpace, base: Candidate, count: int, rng: random.Random) -> list[Candidate]:
    """Up to `count` candidates that differ from `base` in one gene each, taking the genes in turn."""
    queues = []
    for gene in GENES:
        values = space.options(gene, rng)
        rng.shuffle(values)
        changed = [replace(base, **{gene: value}, origin=gene) for value in values]
        queues.append([candidate for candidate in changed if space.differs(candidate, base)])
    candidates: list[Candidate] = []
    while any(queues) and len(candidates) < count:
        for queue in queues:
            if queue and len(candidates) < count:
                _add(space, candidates, queue.pop())
    return candidates


def crossed(space: SearchSpace, ranked: Sequence[Candidate], count: int, rng: random.Random) -> list[Candidate]:
    """Up to `count` new candidates that mix the genes of the better half of `ranked`, half of them with a mutation."""
    parents = list(ranked[: max(2, len(ranked) // 2)])
    candidates: list[Candidate] = []
    for _ in range(20 * count):
        if len(candidates) == count:
            break
        mother, father = parents[0], rng.choice(parents)
        genes = {gene: getattr(rng.choice((mother, father)), gene) for gene in GENES}
        origin = "crossed"
        if rng.random() < 0.5:
            gene = rng.choice(GENES)
            if options := space.options(gene, rng):
                genes[gene], origin = rng.choice(options), f"crossed, {gene} changed"
        child = Candidate(**genes, origin=origin)
        if all(space.differs(child, other) for other in ranked):
            _add(space, candidates, child)
    return candidates


def _add(space: SearchSpace, candidates: list[Candidate], candidate: Candidate) -> None:
    if all(space.differs(candidate, other) for other in candidates):
        candidates.append(candidate)
