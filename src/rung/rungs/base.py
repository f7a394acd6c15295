"""What a rung is: one customization technique, from an Artifact to a new Artifact; how it is registered and set.

A rung is a frozen dataclass whose fields are its settings. A decorator registers it:

    @rung("mine", family="prompting", order=150)
    @dataclass(frozen=True)
    class Mine(Rung):
        k: Annotated[int, Field(ge=1)] = 5

Other packages add rungs through the entry-point group `rung.rungs`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache, wraps
from importlib.util import find_spec
from itertools import islice, product
from typing import Annotated, Any, ClassVar, Self, TypeVar, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from rung.artifact.artifact import Artifact
from rung.artifact.decoder import Change
from rung.artifact.labels import label_scoring
from rung.data.rows import LABELLED, Data
from rung.errors import ConfigError, install_command, suggest
from rung.machine import Machine
from rung.models.checkpoint import ModelKind
from rung.models.hub import is_static
from rung.models.reference import is_cached, is_endpoint, resolve
from rung.progress import QUIET, Progress, default_progress
from rung.task import Task
from rung.training.distributed import current

# Types of settings, with their bounds; more are in `rung.training.config`.
CountOrZero = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PartialShare = Annotated[float, Field(gt=0, lt=1)]


# --------------------
# Whether a rung applies to an artifact.


@dataclass(frozen=True, slots=True)
class Applicability:
    """Whether a rung applies, and if not, why; `final` if the task is the reason, so that no other rung changes it."""

    applies: bool
    reason: str = ""
    final: bool = False


OK = Applicability(True)


def skip(reason: str, *, final: bool = False) -> Applicability:
    """Say that a rung does not apply, with the reason as a clause."""
    return Applicability(False, reason, final)


def encoder_library_missing(encoder: str) -> bool:
    """Say whether nothing here runs a sentence encoder; a table of vectors needs no library."""
    if find_spec("openvino") is not None or find_spec("sentence_transformers") is not None:
        return False
    return not (is_cached(encoder) and is_static(resolve(encoder).folder))


def check_needs(needs: Sequence[str], artifact: Artifact, data: Data) -> Applicability:
    """Say whether an artifact and the rows have what a rung needs; a reason that is final comes first."""
    decoder, shown = artifact.decoder, artifact.demonstrations
    unscored = label_scoring(decoder) is None
    conditions = {  # by need: whether it lacks, why, whether that is final
        "scored labels": (unscored, "no label set is scored", artifact.signature.kind != "category"),
        "untuned": (artifact.weights.adapter is not None, "the weights were tuned with this very prompt", False),
        "open weights": (is_endpoint(artifact.model), "an endpoint's weights cannot be trained from here", True),
        "training rows": (not data.train, "there are no training rows", True),
        "no demonstrations": (shown is not None, "demonstrations are set already", False),
        "no documents": (artifact.retriever is not None, "documents are looked up already", False),
        "one prompt": (shown is not None and shown.sets > 1, "every row is asked with several prompts", False),
    }
    for change in get_args(Change):
        reason = decoder.refuses(change)
        conditions[change] = (bool(reason), reason, decoder.fixed)
    unmet = [skip(reason, final=final) for lacks, reason, final in map(conditions.__getitem__, needs) if lacks]
    return min(unmet, key=lambda one: not one.final, default=OK)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a rung is expected to take on this machine.

    Attributes:
        fit_tokens: tokens read while fitting, epochs counted.
        fit_flops: floating-point operations of fitting.
        fit_seconds: time of fitting.
        row_tokens: tokens read or written for one prediction.
        row_flops: floating-point operations of one prediction.
        row_seconds: time of one prediction in a batch.
        memory_bytes: peak memory, model included.
        written_tokens: those of `row_tokens` that are written one after the other.
        shared: parts of the fit that other rungs need as well, such as an encoder's vectors of the training rows, each
            with its share of `fit_seconds`. The first rung to be made makes them for all.
    """

    fit_tokens: int
    fit_flops: float
    fit_seconds: float
    row_tokens: float
    row_flops: float
    row_seconds: float
    memory_bytes: int
    written_tokens: float = 0.0
    shared: tuple[tuple[str, float], ...] = ()

    def after(self, first: Cost) -> Cost:
        """The same where the fit of another comes first."""
        return replace(
            self, fit_tokens=self.fit_tokens + first.fit_tokens, fit_flops=self.fit_flops + first.fit_flops,
            fit_seconds=self.fit_seconds + first.fit_seconds, shared=(*self.shared, *first.shared),
        )  # fmt: skip

    def given(self, made: Collection[str]) -> Cost:
        """The same where other rungs have made some of the shared parts."""
        spared = sum(seconds for name, seconds in self.shared if name in made)
        left = tuple(each for each in self.shared if each[0] not in made)
        return replace(self, fit_seconds=self.fit_seconds - spared, shared=left) if spared else self


def training_rows(artifact: Artifact, rows: Any) -> Data:
    """Read rows to train on for the task of an artifact: all of them are training rows.

    Args:
        artifact: its signature has the columns, the kind and the labels.
        rows: a list of dicts, a frame, an Arrow table, a data set, or the path of a file.

    Raises:
        DataError: a row is wrong; the message names it.
    """
    shape = artifact.signature
    output: dict[str, Any] = {"kind": shape.kind, "column": shape.output}
    if shape.kind in LABELLED and shape.labels:
        output["labels"] = list(shape.labels)
    task = Task(name=shape.task, instruction="none", inputs=list(shape.inputs), output=output, data=rows)
    data = task.read()
    return replace(data, train=(*data.train, *data.validation, *data.test), validation=(), test=(), folds=())


def _with_rows(fit: Callable[..., Artifact]) -> Callable[..., Artifact]:
    @wraps(fit)
    def fitted(self: Rung, artifact: Artifact, data: Any, *, progress: Progress | None = None) -> Artifact:
        if not (self.trains_together or current().alone):
            raise ConfigError(
                "not-distributed", f"the rung {self.name} does not train in several processes",
                hint="start one process: leave --devices out",
            )  # fmt: skip
        shown = progress or (default_progress() if current().first else QUIET)
        return fit(self, artifact, data if isinstance(data, Data) else training_rows(artifact, data), progress=shown)

    return fitted


class Rung(ABC):
    """One customization technique."""

    family: ClassVar[str]  # the step of the ramp: prompting, retrieval, in-context, ..., set by the registration
    needs: ClassVar[tuple[str, ...]] = ()  # what `check_needs` checks
    trains_weights: ClassVar[bool] = False  # whether it trains parameters of a model
    trains_together: ClassVar[bool] = False  # whether several processes can train it together
    reads_corpus: ClassVar[bool] = False  # whether its artifacts look answers up in the task's documents
    opens_ramp: ClassVar[bool] = False  # whether all rungs are also tried on top of it from the first stage on
    with_preferences: ClassVar[bool] = False  # whether a climb tries it by default where the task has preferences
    variant_of: ClassVar[str] = ""  # the name of the rung that this is with another setting; see `variants`
    refits: ClassVar[bool] = False  # whether a climb confirms what is made from training and validation rows
    model_settings: ClassVar[Mapping[str, ModelKind]] = {}  # those that name a model, encoders aside
    learns: ClassVar[bool] = True  # whether `fit` reads the rows of the task; if not, one artifact serves all folds

    @property
    def name(self) -> str:
        """What the task file, the climb and the reports call it; set by the registration."""
        raise TypeError(f"{type(self).__name__} has no name: register it with @rung, or give it one")

    @classmethod
    def for_task(cls, task: Task | None, seed: int, **settings: Any) -> Self:
        """Make the rung for a task, which fills the fields `seed`, `task` and `system_prompts` where it has them."""
        given = {"seed": seed, "task": task, "system_prompts": task.system_prompts if task else ()}
        own = {each.name for each in fields(cls)}  # type: ignore[arg-type]
        return cls(**{name: value for name, value in given.items() if name in own}, **settings)

    @classmethod
    def lacks(cls, task: Task) -> str:
        """Say what the task file has to set for this rung and does not; empty if nothing."""
        del task
        return ""

    def applies(self, artifact: Artifact, data: Data) -> Applicability:
        """Say whether the rung can be put on top of `artifact`, or why not."""
        unmet = check_needs(self.needs, artifact, data)
        if unmet.applies and any(map(encoder_library_missing, self.encoders)):
            return skip(f"its sentence encoder needs a library: {install_command('local')}", final=True)
        return self.suits(artifact, data) if unmet.applies else unmet

    def suits(self, artifact: Artifact, data: Data) -> Applicability:
        """Check what the rung asks for besides its `needs`, which are met."""
        del artifact, data
        return OK

    @property
    def encoders(self) -> tuple[str, ...]:
        """References of the sentence encoders that `fit` opens."""
        return ()

    @property
    def remark(self) -> str:
        """What a plan and a report say of how the rung works on this machine, after its name; empty for nothing."""
        return ""

    def cache_key(self, artifact: Artifact) -> tuple[object, ...] | None:
        """Name the parts of the base artifact that decide the rung's result; None for all of it.

        From two artifacts with equal keys the rung makes artifacts that answer every row alike.
        """
        del artifact
        return None

    def rows_to_fit(self, data: Data, fold: int | None) -> Data:
        """The data that `fit` gets: without the rows of a fold, or for None all that it may learn from.

        Without folds, fold 0 is what the validation rows measure.
        """
        if data.folds or fold:
            return data if fold is None else data.fold(fold)
        if not self.refits:
            return data
        return data.with_validation() if fold is None else replace(data, known=(*data.train, *data.validation))

    @abstractmethod
    def estimate(self, artifact: Artifact, data: Data, machine: Machine) -> Cost:
        """Estimate what fitting and predicting take, without loading model weights."""

    @abstractmethod
    def fit(self, artifact: Artifact, data: Data, *, progress: Progress = QUIET) -> Artifact:
        """Make a new artifact from `artifact`, which does not change.

        `data` may also be rows with the task's columns: a list of dicts, a frame, a file; see `training_rows`. Without
        `progress`, it is shown where a person watches, in a terminal or a notebook.
        """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "fit" in vars(cls):
            cls.fit = _with_rows(vars(cls)["fit"])  # type: ignore[method-assign]

    @property
    def has_parts(self) -> bool:
        """Whether `fit_in_parts` gives more than the whole."""
        return type(self).fit_in_parts is not Rung.fit_in_parts

    def fit_in_parts(
        self, artifact: Artifact, data: Data, *, after: float = 0.0, progress: Progress = QUIET
    ) -> Iterator[tuple[float, Artifact]]:
        """Make the artifact in parts, so that a climb can stop early what is not worth finishing.

        Gives pairs of the share of the work done and the artifact so far. The last share is 1, and its artifact is
        that of `fit`. Rungs that train give artifacts after a quarter and a half of their steps; a consumer that stops
        there loses nothing but the later steps. Parts up to the share `after` are left out: an earlier call, maybe in
        another process, has given them. By default there is one part.
        """
        del after
        yield 1.0, self.fit(artifact, data, progress=progress)

    def __post_init__(self) -> None:
        """Check the settings' types and bounds.

        Raises:
            ConfigError: `bad-setting`.
        """
        model = _settings_model(type(self))
        try:
            checked = model.model_validate({name: getattr(self, name) for name in model.model_fields})
        except ValidationError as error:
            raise _bad_setting(self, error) from None
        for name in model.model_fields:
            object.__setattr__(self, name, getattr(checked, name))  # a list from YAML became a tuple


# --------------------
# The registry.


@dataclass(frozen=True, slots=True)
class Registration:
    """A rung's entry in the registry.

    Attributes:
        name: the rung's name.
        rung_type: its class.
        order: its place on the ramp; rungs of a family have neighbouring places.
        default: whether a climb tries it by default.
        topics: what the rules of the guide call it where they do not mean its whole family.
        preset: settings that make it this rung, where a class has several names.
    """

    name: str
    rung_type: type[Rung]
    order: int
    default: bool = False
    topics: tuple[str, ...] = ()
    preset: Mapping[str, Any] = field(default_factory=dict)

    def make(self, task: Task | None = None, seed: int = 0) -> Rung:
        """Make the rung with its default settings."""
        return self.rung_type.for_task(task, seed, **self.preset)


REGISTERED: dict[str, Registration] = {}
R = TypeVar("R", bound=Rung)


def rung(
    name: str, *, family: str, order: int, default: bool = False, topics: tuple[str, ...] = (), **preset: Any
) -> Callable[[type[R]], type[R]]:
    """Register a rung class under a name; a class that has several names is decorated once for each.

    Args:
        name: the rung's name in task files, on the command line and in reports.
        family: the step of the ramp that it belongs to.
        order: its place on the ramp; see `rung rungs` for the order of all.
        default: whether a climb tries it by default.
        topics: what the rules of the guide call it where they do not mean its whole family.
        preset: settings that make the class this rung; then the class says its `name` itself.

    Raises:
        ValueError: another class has this name.
    """

    def register(rung_type: type[R]) -> type[R]:
        home, other = _home(rung_type), _home(REGISTERED[name].rung_type) if name in REGISTERED else ""
        if other not in ("", home):
            raise ValueError(f"two rungs are named {name!r}: {other} and {home}")
        REGISTERED[name] = Registration(name, rung_type, order, default, topics, preset)
        rung_type.family = family
        if not isinstance(vars(rung_type).get("name"), property):
            rung_type.name = name  # type: ignore[method-assign, assignment]
        return rung_type

    return register


def _home(rung_type: type[Rung]) -> str:
    return f"{rung_type.__module__}.{rung_type.__qualname__}"


# --------------------
# Settings.


MOST_VARIANTS = 16  # of a rung in one task
FROM_TASK = {"seed", "task", "system_prompts"}  # fields that `--seed` and the rest of the task file give


def with_settings(rung: Rung, values: Mapping[str, Any]) -> Rung:
    """Change settings of a rung, such as those in `rungs: {lora: {rank: 8}}`.

    Raises:
        ConfigError: `unknown-key` or `bad-setting`.
    """
    known = settable(rung)
    for name in values:
        if name not in known:
            raise ConfigError(
                "unknown-key",
                f"the rung {rung.name} has no {f'setting {name!r}' if known else 'settings'}",
                hint=suggest(name, known) if known else f"remove {name!r}",
            )
    return replace(rung, **values) if values else rung  # type: ignore[type-var]


def variants(rung: Rung, values: Mapping[str, Any]) -> tuple[Rung, ...]:
    """Make one rung for each value where a setting has a list of values: `{encoder: [embedded-encoder, my/encoder]}`.

    The first value makes the rung with the plain name. The others are named after the setting and the value:
    `features-encoder-encoder`. A climb measures each as a rung of its own.

    Raises:
        ConfigError: as `with_settings`; two values have the same short name, or there are more than MOST_VARIANTS.
    """
    several = {key: value for key, value in values.items() if isinstance(value, list) and _takes_one(rung, key)}
    if not several:
        return (with_settings(rung, values),)
    choices = list(islice(product(*several.values()), MOST_VARIANTS + 1))
    if not 0 < len(choices) <= MOST_VARIANTS:
        given = ", ".join(f"{key}: {len(value)} values" for key, value in several.items())
        problem = f"{rung.name}: {given} make {'too many' if choices else 'no'} rungs; from 1 to {MOST_VARIANTS} can be"
        hint = f"leave some out; `rung tune {rung.name}` searches many values of a setting"
        raise ConfigError("bad-setting", f"{problem} measured", hint=hint)
    made: dict[str, Rung] = {}
    for choice in choices:
        chosen = dict(zip(several, choice, strict=True))
        parts = (f"{key}-{short_name(str(value), 'none')}" for key, value in chosen.items() if value != several[key][0])
        name = "-".join((rung.name, *parts))
        if name in made:
            raise ConfigError("bad-setting", f"{rung.name}: two values make a rung called {name!r}", hint="rename one")
        made[name] = _named(with_settings(rung, {**values, **chosen}), name)
    return tuple(made.values())


def _takes_one(rung: Rung, key: str) -> bool:
    """Whether a setting takes a single value."""

    def is_sequence(kind: Any) -> bool:
        return get_origin(kind) in (tuple, list, Sequence) or any(map(is_sequence, get_args(kind)))

    return key in settable(rung) and not is_sequence(get_type_hints(type(rung))[key])


def short_name(reference: str, otherwise: str = "model") -> str:
    """The last part of a model reference, in lower case, as a valid folder name."""
    last = reference.rpartition("#")[2] if is_endpoint(reference) else reference.rstrip("/").rpartition("/")[2]
    return re.sub(r"[^a-z0-9._-]+", "-", last.lower()).strip("-.") or otherwise


def _named(rung: Rung, name: str) -> Rung:
    """The same rung under another name."""
    if name == rung.name:
        return rung
    kind = type(type(rung).__name__, (type(rung),), {"name": name, "variant_of": rung.name, "__doc__": rung.__doc__})
    made: Rung = kind(**{each.name: getattr(rung, each.name) for each in fields(rung) if each.init})  # type: ignore[arg-type]
    return made


def settable(rung: Rung) -> tuple[str, ...]:
    """Name the settings that a task file may give the rung."""
    registered = REGISTERED.get(rung.variant_of or rung.name)
    fixed = FROM_TASK | set(registered.preset if registered else ())
    return tuple(each.name for each in fields(rung) if each.init and each.name not in fixed)  # type: ignore[arg-type]


@cache
def _settings_model(kind: type[Rung]) -> type[BaseModel]:
    hints = get_type_hints(kind, include_extras=True)
    names = [each.name for each in fields(kind) if each.name != "task"]  # type: ignore[arg-type]
    checked: dict[str, Any] = {name: (hints[name], ...) for name in names}
    return create_model(kind.__name__, __config__=ConfigDict(strict=True, protected_namespaces=()), **checked)


def _bad_setting(rung: Rung, error: ValidationError) -> ConfigError:
    first, *others = error.errors()
    key, value = first["loc"][0], first["input"]
    reasons = [one["msg"] for one in (first, *others) if one["loc"][0] == key]  # one for each type that it may have
    wanted = " or ".join(dict.fromkeys(reason.removeprefix("Input should be ") for reason in reasons))
    wanted = wanted.replace("greater than or equal to", "at least").replace("less than or equal to", "at most")
    name = next((name for name, entry in REGISTERED.items() if entry.rung_type is type(rung)), type(rung).__name__)
    name = rung.name if rung.name in REGISTERED else name
    return ConfigError(
        "bad-setting", f"{name}.{key}: {value!r} should be {wanted}", hint=f"`rung rungs {name}` shows the defaults"
    )
