"""What the commands print of base models and of the machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rung.cli.render import faint, say
from rung.errors import install_command

if TYPE_CHECKING:
    from rung.machine import Machine
    from rung.models.open_models import ModelMatches, ModelQuery, OpenModel


def doctor(values: Mapping[str, Any]) -> None:
    """Print what the machine has, and what is missing."""
    say(f"machine   {values['cores']} cores, {values['memory_gib']} GiB, {values['gflops_fp32']} GFLOP/s fp32")
    say(f"gpu       {values['gpu'] or 'none'}")
    say(f"cache     {values['cache']}{' (offline)' if values['offline'] else ''}")
    say(f"engine    {values['engine']}")
    say(f"model     {values['model']}: {values['model_because']}")
    for name, installed in values["packages"].items():
        say(f"{'ok' if installed else 'missing':9} {name} {installed or ''}")
    if values["missing"]:
        say(f"hint: {install_command('local')}")


def built_in_models(models: Sequence[Mapping[str, Any]]) -> None:
    """Print the models that come with Rung."""
    for model in models:
        size, state = count(model["parameters"]), "cached" if model["cached"] else "not pulled"
        reference = "" if "/" in model["reference"] else model["reference"]  # a folder, which `about` names
        say(f"{reference:17} {model['name']:22} {size:>6}  {state:10}  {model['about']}")
    say("Any Hub id, local folder or .gguf file is a model too: rung models show org/name")
    say("Open models by task, language, licence and memory: rung models search --task summarization")


def count(parameters: int) -> str:
    """A number of parameters in short: 135M, 7.2B."""
    return f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.0f}M"


def open_models(matches: ModelMatches, wanted: ModelQuery, machine: Machine) -> None:
    """Print the models that suit: a line per model if it fits the terminal, else two, the name on its own."""
    from rich.console import Console

    from rung.models.open_models import TASKS

    limit = wanted.memory or machine.memory_bytes
    if matches.suitable:
        benchmarks = TASKS[wanted.task] if wanted.task else ("IFEval", "MMLU")
        names = ["model", *(model.id for model in matches.suitable)]
        heads = ["size", "context", "fits in", "bf16", "int4", "tokens/s", *benchmarks]
        figures = _aligned([heads, *(_figures(model, benchmarks, limit, machine) for model in matches.suitable)])
        licences = ["licence", *(
            f"{model.licence or 'unknown'}{', gated' if model.access == 'gated' else ''}"
            f"{', thinks' if model.thinking in ('on', 'off') else ''}" for model in matches.suitable
        )]  # fmt: skip
        longest = max(map(len, names))
        fits = longest + 2 + len(figures[0]) + 2 + max(map(len, licences)) <= Console().width
        for name, line, licence in zip(names, figures, licences, strict=True):
            say(f"{name:{longest}}  {line}  {licence}" if fits else f"{name:{longest}}  {licence}\n  {line}")
    else:
        faint("no model of the catalogue is known to suit")
    for fact in dict.fromkeys(fact for _, fact in matches.unknown):
        models = ", ".join(model.id for model, lacks in matches.unknown if lacks == fact)
        faint(f"{fact} not known, so left out: {models}")
    faint(
        f"fits in: the finest precision whose weights and 1 GiB of room fit into {limit / 1e9:.0f} GB "
        "(long prompts take more); tokens/s: prompt tokens in fp32, estimated from this machine's measured rate"
    )
    faint(
        "Scores are those that makers published, in their own settings (--json names source and date): "
        "`model: [a, b]` in a task compares models on its rows."
    )


def _figures(model: OpenModel, benchmarks: Sequence[str], limit: int, machine: Machine) -> list[str]:
    """The figures of one model, in the order of the table's columns."""
    needed, speed, context = model.memory(), model.tokens_per_second(machine), model.scaled_context or model.context
    short = str(context) if context and context < 1024 else f"{(context or 0) // 1024}k"
    scores = [model.score(name) for name in benchmarks]
    return [
        count(model.parameters) if model.parameters else "unknown",
        "unknown" if model.context is None else short,
        model.fits(limit) or "-",
        *(f"{needed[name] / 1e9:.1f} GB" if needed else "unknown" for name in ("bf16", "int4")),
        "unknown" if speed is None else f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}",
        *(f"{score.value:.1f}" if score else "-" for score in scores),
    ]


def matrix(values: Mapping[str, Any]) -> None:
    """Print the table of families."""
    columns = list(next(iter(values["families"].values())))
    longest = max(map(len, values["families"]))
    lines = _aligned([columns, *([cell(own[c]) for c in columns] for own in values["families"].values())])
    for name, line in zip(["", *values["families"]], lines, strict=True):
        say(f"{name:{longest}}  {line}")
    faint("yes: equal to the model's plain forward pass; no: refused, with a reason (--json); -: nothing to compare;")
    faint("LoRA: the share of the layers' weights that it reaches. Tiny random models, with " + ", ".join(
        f"{name} {version}" for name, version in values["versions"].items()
    ))  # fmt: skip


def cell(measured: str) -> str:
    """A cell of the table of families in one word."""
    verdict, _, share = measured.partition(":")[0].partition(", ")
    return {"exact": share or "yes", "n.a.": "-", "refused": "no"}.get(verdict, verdict)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Each row as one line, with its cells aligned to the right in their columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [" ".join(f"{cell:>{size}}" for cell, size in zip(row, widths, strict=True)) for row in rows]
