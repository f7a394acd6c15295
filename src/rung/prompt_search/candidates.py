"""What can vary in a prompt: instruction, template, the labels' wording, demonstrations, their number and order."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from rung.artifact.artifact import Artifact
from rung.artifact.labels import LabelScoring, label_scoring
from rung.prompts.demonstrations import Demonstrations
from rung.prompts.prompt import verbalize

Verbalizer = Literal["own", "words", "plain", "sentence"]
COUNTS = (1, 2, 4, 8)  # demonstrations shown


@dataclass(frozen=True, slots=True)
class Shots:
    """Which demonstrations are shown: the rule by name, how many, drawn by `seed`, in the `order` of that number."""

    selection: str
    k: int
    seed: int = 0
    order: int = 0


@dataclass(frozen=True, slots=True)
class Candidate:
    """One prompt. Two candidates are equal when they ask alike, wherever they come from.

    Attributes:
        instruction: what to do.
        template: the user turn.
        verbalizer: how labels are written: `own`: as the artifact has it; `words`: `card arrival`; `plain`: as in the
            data; `sentence`: `Card arrival`.
        listed: whether the labels stand in the prompt.
        shots: the demonstrations, or None for none.
        system: the system prompt before the instruction, or nothing.
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
        """Return JSON values."""
        return asdict(self)


GENES = tuple(each.name for each in fields(Candidate) if each.name != "origin")


@dataclass(frozen=True)
class Space:
    """All candidates on top of one artifact.

    Attributes:
        artifact: what is improved; every part that no gene names stays.
        instructions: texts to choose from, the artifact's own first.
        templates: user turns to choose from, the artifact's own first.
        pools: demonstrations by the name of their rule; a candidate changes their number, seed and order.
        vary_shots: whether demonstrations may change at all.
        systems: system prompts to choose from; the artifact's own is one of them in any case.
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
        return Candidate(
            prompt.instruction, prompt.template, "own", bool(prompt.labels), shots, prompt.system, "incumbent"
        )

    def apply(self, candidate: Candidate) -> Artifact:
        """Return the artifact with the candidate's prompt; a label bias, measured on another prompt, is left out."""
        artifact, decoder = self.artifact, self.artifact.decoder
        texts: tuple[str, ...] = ()
        if (scoring := label_scoring(decoder)) is not None:
            texts = verbalized(scoring, candidate.verbalizer)
            decoder = replace(scoring, texts=texts, bias=())
        prompt = replace(
            artifact.prompt, instruction=candidate.instruction, template=candidate.template,
            system=candidate.system,
            **self._labels(candidate, texts),
        )  # fmt: skip
        shown = None
        if (shots := candidate.shots) is not None:
            shown = replace(self.pools[shots.selection], k=shots.k, seed=shots.seed, order=shots.order)
        changed = replace(artifact, prompt=prompt, decoder=decoder, demonstrations=shown)
        return changed.with_engine(artifact.open())

    def _labels(self, candidate: Candidate, texts: tuple[str, ...]) -> dict[str, Any]:
        prompt = self.artifact.prompt
        if not texts:
            return {}
        spoken = dict(zip(prompt.labels, texts, strict=True)) if prompt.labels else {}
        described = tuple((spoken.get(label, label), text) for label, text in prompt.descriptions)
        return {"labels": texts, "descriptions": described} if candidate.listed else {"labels": (), "descriptions": ()}

    def options(self, gene: str, rng: random.Random) -> list[Any]:
        """Return the values that a gene may have; demonstrations are drawn anew."""
        if gene == "instruction":
            return list(self.instructions)
        if gene == "template":
            return list(self.templates)
        if gene == "system":
            return [self.start.system, *self.systems] if self.systems else []
        if label_scoring(self.artifact.decoder) is None and gene in ("verbalizer", "listed"):
            return []
        if gene == "verbalizer":
            return ["words", "plain", "sentence"]
        if gene == "listed":
            return [True, False]
        if not self.vary_shots:
            return []
        return [None, *(self._shots(name, k, rng) for name in self.pools for k in COUNTS)]

    def _shots(self, name: str, k: int, rng: random.Random) -> Shots:
        pool = self.pools[name]
        if pool.needs_vectors:  # the question chooses the rows and their order
            return Shots(name, min(k, len(pool.pool)), pool.seed)
        return Shots(name, min(k, len(pool.pool)), rng.randrange(2**31), rng.randrange(3))

    def differs(self, a: Candidate, b: Candidate) -> bool:
        """Return whether two candidates make different prompts: other words for a label may be the same words."""
        return a != b and self._key(a) != self._key(b)

    def _key(self, candidate: Candidate) -> Candidate:
        decoder = label_scoring(self.artifact.decoder)
        if decoder is None:
            return candidate
        names: tuple[Verbalizer, ...] = ("own", "words", "plain", "sentence")
        texts = verbalized(decoder, candidate.verbalizer)
        same = next(name for name in names if verbalized(decoder, name) == texts)
        return replace(candidate, verbalizer=same)


def verbalized(decoder: LabelScoring, how: Verbalizer) -> tuple[str, ...]:
    """Return the texts that stand for the labels; those of the decoder where two would become the same."""
    if how == "own":
        return decoder.texts
    if how == "plain":
        return decoder.labels
    words = verbalize(decoder.labels)
    if how == "sentence":
        words = tuple(text[:1].upper() + text[1:] for text in words)
    return words if len(set(words)) == len(words) else decoder.texts


def templates(own: str, inputs: Sequence[str], output: str = "") -> tuple[str, ...]:
    """Return user turns for these input columns: the artifact's own, bare, named, quoted, and with a question behind.

    Args:
        own: the artifact's template, which stays the first.
        inputs: the input columns.
        output: what is asked for, in a word; the templates that name it are left out without.
    """
    titles = {name: name.replace("_", " ").capitalize() for name in inputs}
    named = "\n".join(f"{titles[name]}: {{{name}}}" for name in inputs)
    made = [own, named, "\n\n".join(f"{titles[name]}:\n{{{name}}}" for name in inputs)]
    if len(inputs) == 1:
        made += ["{" + inputs[0] + "}", '"{' + inputs[0] + '}"']
    if output:
        made += [f"{named}\n{output}:", f"{named}\n\n{output}?"]
    return tuple(dict.fromkeys(made))


def neighbours(space: Space, base: Candidate, count: int, rng: random.Random) -> list[Candidate]:
    """Return up to `count` candidates that differ from `base` in one gene each, the genes in turn."""
    queues = []
    for gene in GENES:
        values = space.options(gene, rng)
        rng.shuffle(values)
        changed = [replace(base, **{gene: value}, origin=gene) for value in values]
        queues.append([one for one in changed if space.differs(one, base)])
    made: list[Candidate] = []
    while any(queues) and len(made) < count:
        for queue in queues:
            if queue and len(made) < count:
                _add(space, made, queue.pop())
    return made


def crossed(space: Space, ranked: Sequence[Candidate], count: int, rng: random.Random) -> list[Candidate]:
    """Return up to `count` new candidates that mix the genes of the better half of `ranked`, changed now and then."""
    parents = list(ranked[: max(2, len(ranked) // 2)])
    made: list[Candidate] = []
    for _ in range(20 * count):
        if len(made) == count:
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
            _add(space, made, child)
    return made


def _add(space: Space, made: list[Candidate], candidate: Candidate) -> None:
    if all(space.differs(candidate, other) for other in made):
        made.append(candidate)
