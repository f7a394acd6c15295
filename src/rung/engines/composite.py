"""One engine out of two: OpenVINO generates, torch scores, embeds, and generates what OpenVINO cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

from rung.engines import openvino_adapters
from rung.engines import openvino_grammar as openvino_constraint
from rung.engines.base import (
    Closes,
    Continuous,
    Delta,
    Engine,
    EngineInfo,
    Floats,
    GenerateRequest,
    Generation,
    Reads,
    Scored,
    ScoreRequest,
    Session,
    TokenScores,
)
from rung.engines.local import LocalModel
from rung.models.reference import ModelFiles
from rung.progress import QUIET, Progress


class Composite(LocalModel):
    """Divides the work by rules that look at the request alone, so that a request always runs on the same engine.

    OpenVINO generates. Torch scores and embeds (openvino-genai keeps logits and hidden states to itself), and generates
    where the adapter is not plain LoRA, or where a JSON Schema asks for what OpenVINO's grammars leave out. Both read
    the same folder, tokenizer and chat template. Each engine is loaded when the first request needs it: answering
    through OpenVINO imports no torch.

    Args:
        files: the resolved model.
        generator: loads the engine that generates.
        scorer: loads the torch engine.
    """

    def __init__(self, files: ModelFiles, generator: Callable[[], Engine], scorer: Callable[[], Engine]) -> None:
        super().__init__(files)
        self._load_generator, self._load_scorer = generator, scorer

    @cached_property
    def _generator(self) -> Engine:
        return self._load_generator()

    @cached_property
    def _scorer(self) -> Engine:
        return self._load_scorer()

    @property
    def info(self) -> EngineInfo:
        """Describe the model, loading nothing; each of the two engines remembers answers under its own fingerprint."""
        files = self.files
        return EngineInfo(
            engine="openvino and torch",
            model=files.name,
            device="cpu",
            dtype="as each engine says",
            parameters=files.parameters,
            context=files.context,
            fingerprint=f"{files.fingerprint}/composite",
        )

    def engine_of(self, request: GenerateRequest) -> Engine:
        """Return the engine that a request runs on."""
        adapter, constraint = request.adapter, request.constraint
        if adapter is not None and openvino_adapters.unsupported(Path(adapter)) is not None:
            return self._scorer
        if constraint is not None and openvino_constraint.unsupported(constraint) is not None:
            return self._scorer
        return self._generator

    def generate(
        self,
        requests: Sequence[GenerateRequest],
        *,
        progress: Progress = QUIET,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[Generation]:
        """Complete every request, each on its engine."""
        engines = [self.engine_of(request) for request in requests]
        results: dict[int, Generation] = {}
        for engine in dict.fromkeys(engines):
            members = [i for i, own in enumerate(engines) if own is engine]
            made = engine.generate([requests[i] for i in members], progress=progress, cancelled=cancelled)
            results.update(zip(members, made, strict=True))
        return [results[i] for i in range(len(requests))]

    def stream(self, request: GenerateRequest) -> Iterator[str]:
        """Yield the text of one completion in pieces as it is made."""
        return self.engine_of(request).stream(request)

    def close(self) -> None:
        """Close the engine that generates, where it was loaded and holds a process."""
        if isinstance(generator := self.__dict__.get("_generator"), Closes):
            generator.close()

    def session(self) -> Session:
        """Return a session over both engines; they must not remember answers (`open_engine(remember=False)`)."""
        return _Both(self)

    def read(self, texts: Sequence[tuple[int, ...]], *, top: int = 1, adapter: str | None = None) -> list[TokenScores]:
        """Score every token of every text on torch."""
        if not isinstance(self._scorer, Reads):
            raise _remembers(self._scorer)
        return self._scorer.read(texts, top=top, adapter=adapter)

    def score(self, requests: Sequence[ScoreRequest], *, progress: Progress = QUIET) -> list[Scored]:
        """Score on torch."""
        return self._scorer.score(requests, progress=progress)

    def embed(self, texts: Sequence[str], *, progress: Progress = QUIET) -> Floats:
        """Embed on torch."""
        return self._scorer.embed(texts, progress=progress)


class _Both:
    """A session that hands every completion to its engine's own; each begins when it is first needed."""

    def __init__(self, composite: Composite) -> None:
        self._composite = composite
        self._sessions: dict[Engine, Session] = {}

    @property
    def active(self) -> int:
        """How many completions have not ended."""
        return sum(session.active for session in self._sessions.values())

    def add(self, key: int, request: GenerateRequest) -> None:
        """Take a completion in, on the engine that runs it."""
        engine = self._composite.engine_of(request)
        if engine not in self._sessions:
            if not isinstance(engine, Continuous):
                raise _remembers(engine)
            self._sessions[engine] = engine.session()
        self._sessions[engine].add(key, request)

    def cancel(self, key: int) -> None:
        """Drop a completion."""
        for session in self._sessions.values():
            session.cancel(key)

    def step(self) -> list[Delta]:
        """Go on with all completions."""
        return [delta for session in self._sessions.values() if session.active for delta in session.step()]


def _remembers(engine: Engine) -> TypeError:
    return TypeError(f"{type(engine).__name__} cannot: open the model with remember=False")
