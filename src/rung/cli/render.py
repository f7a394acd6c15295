"""What the commands print: one JSON value, or tables and lines for people; notes on stderr.

What `rung models` and `rung doctor` print of base models is in `render_models.py`, what is printed of captured answers,
improvements and trials in `render_feedback.py`.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any, Literal

import typer

from rung.progress import clean

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from rung.advice import Advice
    from rung.advice.rules import AdviceStep, Source
    from rung.artifact.decoder import Answer
    from rung.climbing.check import TaskCheck
    from rung.climbing.tune import TuneResult
    from rung.data.guess import Guess
    from rung.evaluation.report.explorer import AnsweredRows
    from rung.evaluation.report.words import RungOutcome
    from rung.evaluation.result import ClimbResult
    from rung.prompts.overflow import Rendered
    from rung.retrieval.index import Index
    from rung.retrieval.passage import Passage

ROWS = 20  # of a climb that are shown
TEXT = 300  # characters of an input or an answer that are shown
PROBLEMS = 20  # listed before the rest is only counted


def say(text: str, *, nl: bool = True, err: bool = False) -> None:
    """Print a text: on a terminal without the characters that control it, into a file or pipe unchanged."""
    stream = sys.stderr if err else sys.stdout
    stream.write((clean(text) if stream.isatty() else text) + ("\n" if nl else ""))
    stream.flush()


def print_json(value: Any) -> None:
    """Print one JSON value on stdout."""
    say(json.dumps(value, ensure_ascii=False))


def result(as_json: bool, values: Any, text: str | Callable[[], None], *, then: str | Sequence[object] = ()) -> None:
    """Print what a command found: its values as JSON, or a text for people and the next command, or its words."""
    if as_json:
        print_json(values)
    elif isinstance(text, str):
        say(text)
    else:
        text()
    if then and not as_json:
        say(f"Next: {then if isinstance(then, str) else shlex.join(map(str, then))}")


def asking(folder: Path, inputs: Sequence[str]) -> tuple[object, ...]:
    """The command that has an artifact with these input columns answer one row."""
    return ("rung", "run", folder, *(["your text"] if len(inputs) == 1 else [f"{name}=..." for name in inputs]))


def note(text: str) -> None:
    """Print a line on stderr, which programs that read stdout do not see."""
    say(text, err=True)


def faint(text: str) -> None:
    """Print a line of less importance."""
    typer.secho(clean(text), dim=True)


def facts(values: Mapping[str, Any], width: int = 15) -> None:
    """Print a mapping, one name and value a line."""
    for key, value in values.items():
        say(f"{key.replace('_', ' '):{width}} {value}")


def table(
    heads: Sequence[str], rows: Iterable[Sequence[object]], *, console: Console | None = None,
    styles: Sequence[str] = (), wrapped: Sequence[str] = (),
) -> None:  # fmt: skip
    """Print a table whose cells may be rich's texts; `styles` has one style a row.

    A head that begins with `>` aligns its column to the right; only the columns of the heads in `wrapped` may wrap.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, padding=(0, 1))
    for head in heads:
        align: Literal["left", "right"] = "right" if head.startswith(">") else "left"
        grid.add_column(Text(head.lstrip(">")), justify=align, no_wrap=head not in wrapped, overflow="fold")
    for number, row in enumerate(rows):
        cells = [cell if isinstance(cell, Text) else Text(clean(str(cell))) for cell in row]
        grid.add_row(*cells, style=styles[number] if styles else "")
    (console or Console()).print(grid)


# A climb: its plan, its results, and a search of settings.


MORE_BUDGET = 10  # times the budget that was used up, for the command that goes on
TABLES = 3  # that the columns of a climb's result are spread over


def climb_plan(rows: list[dict[str, Any]], notes: list[str]) -> None:
    """Print the plan of a climb: the arms in the order in which they run, and what is left out.

    On a narrow terminal, the columns are spread over several tables.
    """
    from rich.console import Console

    from rung.evaluation.report.words import money_text

    planned = [row for row in rows if row["applies"] and not row["reason"] and row["fits_budget"]]
    columns = {
        "seconds": [_rounded(row["seconds"]) for row in planned],
        "all so far": [f"{row['so_far']:,.0f}" for row in planned],
        "may gain": ["" if row["gain"] is None else f"{100 * row['gain']:.1f} points" for row in planned],
        "per 1,000": [money_text(row["price_per_1000"]) for row in planned],
        "ms a row": [_rounded(row["row_seconds"], 1000) for row in planned],
        "tokens a row": [f"{row['tokens_per_row']:,}" for row in planned],
        "tokens to fit": [f"{row['fit_tokens']:,}" for row in planned],
        "memory": [f"{row['memory_bytes'] / 2**30:.1f} GiB" for row in planned],
    }
    console, names = Console(), [row["name"] for row in planned]
    for heads in _packed(names, columns, console.width):
        lines = zip(names, *(columns[head] for head in heads), strict=True)
        table(("rung", *(f">{head}" for head in heads)), lines, console=console, wrapped=("rung",))
    for row in rows:
        if not row["applies"]:
            faint(f"not applicable: {row['name']}: {row['reason']}")
        elif row not in planned:
            faint(f"left out: {row['name']}: {row['reason'] or 'the budget is used up before it'}")
    for line in notes:
        say(line)


def _rounded(value: float | None, times: int = 1) -> str:
    return "unknown" if value is None else f"{times * value:,.0f}"


def climb_result(result: ClimbResult, console: Console | None = None) -> None:
    """Print the rungs, what was left out and why, and the decision.

    On a narrow terminal, the columns are spread over up to three tables; a line names those that are left over.
    """
    from rich.console import Console

    from rung.evaluation.report import words

    console = console or Console()
    measured = words.measured(result)
    columns: dict[str, list[str]] = {}  # by head
    for rung in measured:
        cells = (words.score_text(rung), *words.quality(result, rung), *words.costs(rung))
        for head, cell in zip((f"{result.metric} [95 %]", *words.QUALITY, *words.COSTS), cells, strict=True):
            columns.setdefault(head, []).append(cell)
    columns = {head: cells for head, cells in columns.items() if any(cells)}
    names = [("> " if rung.name == result.recommended else "  ") + rung.name for rung in measured]
    styles = ["bold" if rung.name == result.recommended else "" for rung in measured]
    tables = _packed(names, columns, console.width) if names else []
    for heads in tables[:TABLES]:
        rows = zip(names, *(columns[head] for head in heads), strict=True)
        table(("rung", *(f">{head}" for head in heads)), rows, console=console, styles=styles, wrapped=("rung",))
    if further := [head for heads in tables[TABLES:] for head in heads]:
        _lines(console, [f"not shown in {console.width} columns: {', '.join(further)}; see the report"], "dim")
    dim = [*words.quality_notes(result), *words.spent_lines(result)]
    _lines(console, [*dim, *words.overflow_notes(result), *words.retrieval_notes(result)], "dim")
    _lines(console, words.worth_notes(result))
    _lines(console, [*result.notes, *words.confidence_notes(result)])
    _lines(console, words.left_out_lines(result), "dim")
    _lines(console, ["", result.decision], "bold")
    _lines(console, [*words.unfinished_notes(result)[:1], *(f"next: {step}" for step in result.next_steps)])


def _packed(names: Sequence[str], columns: Mapping[str, Sequence[str]], width: int) -> list[list[str]]:
    """Spread columns over as many tables as the width needs, each with the column of names."""
    tables: list[list[str]] = [[]]
    first = max(map(len, names), default=0)
    used = first
    for head, cells in columns.items():
        wide = 2 + max(map(len, (head, *cells)))
        if used + wide > width and tables[-1]:
            tables.append([])
            used = first
        tables[-1].append(head)
        used += wide
    return tables


def _lines(console: Console, lines: Iterable[str], style: str = "") -> None:
    from rich.text import Text

    for line in lines:
        console.print(Text(clean(line), style=style))


def climb_report(result: ClimbResult, folder: Path, again: str = "") -> None:
    """Print the results of a climb, where its report is, and the next commands; `again` is that of the climb."""
    from rung.evaluation.report.words import measured

    climb_result(result)
    run = shlex.quote(str(folder))  # a run stands for its recommended artifact
    say(f"\nreport:   {folder / 'report.html'}")
    if measured(result):
        say(f"mistakes: rung report {run} --rows wrong")
    if any(r.artifact and r.score is not None for r in result.rungs if r.name == result.recommended):
        say(f'try it:   rung run {run} "your text"\nserve it: rung serve {run}')
    if again and result.unfinished:
        named = ",".join(name for name in result.unfinished if "+" not in name)
        more = f" --rungs {named}" if named and result.budget_seconds is None else ""
        seconds = round(MORE_BUDGET * (result.budget_seconds or 0))
        budget = f" --budget {f'{seconds // 60}m' if seconds % 60 == 0 else f'{seconds}s'}" if seconds else ""
        say(f"go on:    rung {again} --resume{more}{budget}")


def mistakes(found: AnsweredRows, kind: str) -> None:
    """Print the rows of a climb that a filter chooses, with what the recommended rung answered."""
    from rung.evaluation.report.explorer import KINDS, notes_of

    chosen = found.chosen(found.place, {"kind": kind})
    shown = chosen if kind == "suspect" else chosen[:ROWS]  # suspects are for correction, one by one
    for number in shown:
        row, own = found.rows[number], found.rows[number]["a"][found.place]
        say(f"{row['o']}  {one_line(row['i'], TEXT)}")
        say(f"  expected  {one_line(' | '.join(row['e']), TEXT)}")
        if likely := row.get("l"):
            say(f"  likely    {one_line(likely, TEXT)}")
        if own is None:  # a training row
            continue
        say(f"  answered  {one_line(own['t'], TEXT)}")
        if notes := notes_of(own):
            say(f"            {notes}")
    more = f", of which {len(shown)} are shown" if len(chosen) > len(shown) else ""
    say(f"{len(chosen)} rows of {found.arms[found.place]}: {KINDS[kind]}{more}")


def one_line(text: str, most: int) -> str:
    """Write others' text on one line of at most `most` characters, without what controls a terminal."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= most else line[: most - 1] + "…"


def scores(values: Mapping[str, Any], split: str) -> None:
    """Print what `rung eval` measured."""
    from rung.evaluation.report.words import retrieval_text

    for name, value in values["metrics"].items():
        interval = f"[{value['low']:.4f}, {value['high']:.4f}]"
        say(f"{name} {value['score']:.4f} {interval} on {values['n']} {split} rows")
    for name, value in values["whole"].items():
        say(f"{name} {value:.4f} over the whole set")
    for text, count in values["notes"].items():
        say(f"{count} of {values['n']} rows: {text}")
    if "retrieval" in values:
        say(retrieval_text(values["retrieval"]))


def rungs(entries: Sequence[Mapping[str, Any]], *, settings: bool) -> None:
    """Print the techniques, or one of them with its settings."""
    for entry in entries:
        say(f"{'*' if entry['default'] else ' '} {entry['name']:20} {entry['family']:20} {entry['does']}")
        for key, value in entry["settings"].items() if settings else ():
            say(f"    {key}: {'null' if value is None else value}")
    if not settings:
        say("\n* tried by `rung climb` by default. Settings of one: rung rungs NAME")


def tuning(search: TuneResult) -> None:
    """Print the trials of a search, best first, and what to write into the task file."""
    rows = []
    for trial in sorted(search.trials, key=lambda trial: -(trial.score or 0)):
        score = "" if trial.score is None else f"{trial.score:.3f}"
        settings = ", ".join(f"{key} {_short(value)}" for key, value in trial.settings.items())
        outcome = "best" if trial.number == search.best else trial.reason or trial.state
        rows.append((trial.number, score, trial.rows, f"{trial.seconds:.0f}", settings, outcome))
    heads = ("trial", f">{search.metric}", ">rows", ">seconds", "settings", "")
    table(heads, rows, wrapped=("settings", ""))
    if (c := search.comparison) is not None:
        interval = f"{100 * c.delta:+.1f} pp [{100 * c.low:+.1f}, {100 * c.high:+.1f}]"
        counts = f"{c.fixed} fixed / {c.broken} broken, p = {c.p:.3f}"
        say(f"\non {c.n} test rows against the defaults: {interval}, {counts}")
    else:
        say("\nno trial was better than the defaults on the validation rows")
    inside = ", ".join(f"{key}: {_short(value)}" for key, value in search.settings.items())
    say(f"\nfor the task file:\nrungs:\n  {search.rung}: {{{inside}}}\n\nartifact: {search.artifact}")


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


# The decision guide: the flow chart with its path, and the table of expectations.

NARROWEST, CHART_WIDEST = 60, 100
TAKEN, OTHER, OPEN = "bold", "dim", "yellow"
MARKS = {"help": ("+ help", "green"), "not": ("- not", "red"), "unknown": ("? open", "")}


def advice(guide: Advice, measured: Mapping[str, RungOutcome] | None = None, console: Console | None = None) -> None:
    """Print the chart, the open questions, and the expectations, next to what a climb measured if there was one."""
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    _lines(console, [f"{guide.task}: what the rules expect before anything is measured"], TAKEN)
    cited = list(dict.fromkeys(step.source for step in guide.steps if step.source))
    for line in chart(guide.steps, max(NARROWEST, min(CHART_WIDEST, console.width)), cited):
        console.print(line, no_wrap=True, overflow="crop", crop=True)
    sources = [f"[{number}] {source.citation}, {source.url}" for number, source in enumerate(cited, start=1)]
    _lines(console, sources, OTHER)
    if guide.open_questions:
        _lines(console, [f"Not known yet; say it in the task file: {', '.join(guide.open_questions)}"], OPEN)
    console.print()
    rows = []
    for each in guide.expectations:
        cells: list[str | Text] = [each.rung, Text(*MARKS[each.expect]), "; ".join(each.reasons)]
        if measured is not None:
            outcome = measured.get(each.rung)
            cells.append(Text("not measured", OTHER) if outcome is None else f"{outcome.word}: {outcome.text}")
        rows.append(cells)
    heads = ("rung", "expected", "because", *(() if measured is None else ("measured",)))
    table(heads, rows, console=console, wrapped=("because", "measured"))
    likely = [each.rung for each in guide.expectations if each.expect == "help"]
    _lines(console, [f"expected to help: {', '.join(likely) or 'nothing for sure'}"], TAKEN)
    _lines(console, ["Rules expect, a climb measures."], OTHER)


def chart(steps: Sequence[AdviceStep], width: int, cited: Sequence[Source] = ()) -> Iterator[Text]:
    """Draw the flow chart in `width` columns: every question in a box, its two branches below, the one taken marked."""
    for number, step in enumerate(steps):
        last = number == len(steps) - 1
        source = f" [{cited.index(step.source) + 1}]" if step.source in cited else ""
        yield from _question(step, source, width, first=number == 0)
        yield from _branch(step, "yes", step.yes, width, last=False)
        yield from _branch(step, "no", step.no, width, last=last)


def _question(step: AdviceStep, number: str, width: int, *, first: bool) -> Iterator[Text]:
    from rich.text import Text

    style, inside = OPEN if step.answer == "unknown" else TAKEN, width - 4
    observed = step.observed or (f"not known: {step.ask}" if step.ask else "")
    yield Text("┏" + ("━" if first else "┻") + "━" * (inside + 1) + "┓", style=style)
    question = step.question + number
    space = inside - len(question) - len(observed)
    lines = [(question + " " * space + observed)] if space > 1 else [*wrap(question, inside), *wrap(observed, inside)]
    for line in lines:
        yield Text(f"┃ {line:<{inside}} ┃", style=style)
    yield Text("┗" + "┳" + "━" * (inside + 1) + "┛", style=style)


def _branch(step: AdviceStep, name: str, meaning: str, width: int, *, last: bool) -> Iterator[Text]:
    from rich.text import Text

    taken = step.answer == name
    style = TAKEN if taken else OTHER
    joint = ("┗" if last else "┣") if taken else ("└" if last else "├")
    stroke = "━" if taken else "─"
    head = f" {joint}{stroke * 2} {name} {stroke * (4 - len(name))}{'▶' if taken else '▷'} "
    first, *others = wrap(meaning, width - len(head))
    yield Text(head + first, style=style)
    for line in others:
        yield Text(f" {' ' if last else '┃'}" + " " * (len(head) - 2) + line, style=style)


# A task's data.


def ask(question: str, default: str) -> str:
    """Ask a person at the terminal; an empty answer is the default."""
    return str(typer.prompt(question, default=default)).strip()


def confirmed(question: str) -> bool:
    """Ask a person at the terminal; an empty answer is no."""
    return typer.confirm(question, default=False, err=True)


def guess(made: Guess, out: Path) -> None:
    """Print what `rung init` chose, what it left out, and the options that change it."""
    from rung.data.task_file import SCHEMA_FILE

    say(f"wrote {out}: {made.kind}, because {made.reason}")
    answer = made.output.get("column") or ", ".join(made.output.get("columns", ())) or "the last assistant turn"
    keys = ", ".join(f"{key}: {value}" for key, value in made.output.items() if key not in ("column", "columns"))
    lines = [
        ("answer", f"{answer} ({keys})" if keys else answer, "--output, --kind"),
        (
            "could be it",
            ", ".join(f"{name} ({held})" for name, held in made.others.items()),
            "--output COLUMN or COLUMN,COLUMN",
        ),
        ("inputs", ", ".join(made.inputs), "--inputs COLUMN,COLUMN"),
        ("left out", ", ".join(f"{name} ({why})" for name, why in made.left_out.items()), "--inputs"),
        ("written in", made.format, "--encoding, --separator, --quoting, --sheet"),
        ("files", ", ".join(f"{split}: {file.name}" for split, file in made.splits.items()), f"the keys in {out}"),
        ("questions", str(made.data) if made.corpus is not None and made.data is not None else "", ""),
        ("documents", "" if made.corpus is None else f"{made.corpus}{', without tables' if made.data else ''}", ""),
        ("editors", f"{SCHEMA_FILE} beside it lets them complete and check keys", ""),
        ("schema", "" if made.schema is None else f"{made.schema_file}, inferred from the records", "edit it"),
    ]
    for title, text, change in lines:
        if text:
            say(f"  {title:11}  {text}{f'    change it: {change}' if change else ''}")
    for text in made.notes:
        say(f"  note: {text}")


def task_check(checked: TaskCheck, row: Mapping[str, Any] | None = None) -> None:
    """Print what `rung check` found in the data of a task: what makes a climb meaningless, and what would mislead."""
    from rung.evaluation.report.words import data_lines, training_data_lines

    report, rows = checked.data.report, []
    for name, split in report.splits.items():
        spans = [report.lengths.get(f"{name} {part}") for part in ("input", "output")]
        lengths = [f"{s['median']:g}, {s['p95']:g}, {s['max']:g}" if s else "" for s in spans]
        labels = len(report.labels[name]) if name in report.labels else ""
        rows.append((name, f"{split.read:,}", f"{split.kept:,}", labels, *lengths))
    table(("split", ">read", ">kept", ">labels", f">input {checked.unit} (median, p95, max)", ">output"), rows)
    for line in data_lines(report):
        say(line)
    for name, values in checked.training.items():
        say(f"\ntuning on {name}:")
        for line in training_data_lines(values):
            say(f"  {line}")
    if row is not None:
        trained_row(row)
    for note in checked.notes:
        say(note)
    for problem in checked.problems:
        typer.secho(clean(f"problem: {problem}"), fg="red")
    for warning in checked.warnings:
        typer.secho(clean(f"warning: {warning}"), fg="yellow")
    say(f"{checked.verdict}.")


def trained_row(row: Mapping[str, Any]) -> None:
    """Print every token of a training row; those that are trained on are marked."""
    place = f"\ntraining row {row['row']} ({row['source']})"
    if row["dropped"]:
        say(f"{place} is dropped: {row['dropped']}")
    for each in row["examples"]:
        trained = {i for first, last in each["supervised"] for i in range(first, last)}
        count = f"{len(each['tokens'])} tokens, {len(trained)} of them trained on"
        say(f"{place}: {count}, between >>> and <<<:\n{each['text']}\n")
        cells = enumerate(zip(each["tokens"], each["pieces"], strict=True))
        lines = [(i, token, "yes" if i in trained else "", piece or "") for i, (token, piece) in cells]
        table((">place", ">token", "trained", "as the vocabulary spells it"), lines)


def clusters(result: Mapping[str, Any]) -> None:
    """Print groups of texts."""
    for each in result["clusters"]:
        say(f"{each['rows']:6}  {each['name']}\n        e.g. {each['central'][0][:90]}")
    if result["noise"]:
        say(f"{result['noise']:6}  in no cluster")
    silhouette = "" if result["silhouette"] is None else f", silhouette {result['silhouette']:.3f}"
    say(f"{result['rows']} rows, {len(result['clusters'])} clusters{silhouette}")
    if "labels" in result:
        rand, mutual = f"{result['adjusted_rand']:.3f}", f"{result['normalized_mutual_information']:.3f}"
        say(f"against {result['labels']} labels: adjusted Rand {rand}, normalized mutual information {mutual}")


def index(opened: Index) -> None:
    """Print what an index holds, and which files were left out."""
    manifest = opened.manifest
    left_out = sum(problem.left_out for problem in manifest.problems)
    say(
        f"{manifest.passages} passages of up to {manifest.tokens} tokens from {manifest.documents} documents "
        f"in {len(manifest.sources)} files; {left_out} files left out"
    )
    for problem in manifest.problems[:PROBLEMS]:
        say(f"  {'left out' if problem.left_out else 'in part '}  {problem.source}: {problem.what}")
    if len(manifest.problems) > PROBLEMS:
        say(f"  and {len(manifest.problems) - PROBLEMS} more: --json lists all")


def passages(ranked: Sequence[Passage]) -> None:
    """Print passages with their places."""
    for rank, passage in enumerate(ranked, start=1):
        page = f", page {passage.page}" if passage.page is not None else ""
        position = f"{passage.document}{page}, characters {passage.start}-{passage.end}"
        say(f"[{rank}] {position}: {passage.title}\n{passage.text}\n")
    if not ranked:
        say("nothing was found")


# An artifact and its answers.


def answer(given: Answer) -> None:
    """Print an answer, with its confidence and its sources."""
    text = given.written or given.text if given.confidence is None else f"{given.text}\t{given.confidence:.3f}"
    say(f"{text}\tabstained" if given.abstained else text)
    sources(given)


def sources(given: Answer) -> None:
    """Print where an answer from documents comes from: what it cites or, without citations, what it read."""
    from rung.retrieval.passage import shown_sources

    heading, lines = shown_sources(given.citations, given.passages, refused=given.refused)
    if heading:
        say("\n".join([f"\n{heading}:", *(f"  {line}" for line in lines)]))


def dropped(prompt: Answer | Rendered) -> None:
    """Print on stderr what a prompt leaves out, if anything."""
    counts = {
        "demonstrations were left out": prompt.dropped_demonstrations,
        "passages were left out": prompt.dropped_passages, "passages were cut": prompt.shortened_passages,
        "characters of the input were cut": prompt.truncated_characters,
    }  # fmt: skip
    if parts := [f"{count} {what}" for what, count in counts.items() if count]:
        note(f"the prompt was longer than the model reads: {', '.join(parts)}")


def artifact(values: dict[str, Any]) -> None:
    """Print what an artifact is made of, and what it was trained on."""
    from rung.evaluation.report.words import training_data_lines

    facts({name: value for name, value in values.items() if name != "training_data"})
    for name, report in values["training_data"].items():
        say(f"\n{name} was trained on:")
        for line in training_data_lines(report):
            say(f"  {line}")


def confidence(values: Mapping[str, Any]) -> None:
    """Print how far an artifact's confidence can be trusted, and what abstaining gives."""
    from rung.evaluation.report.words import confidence_lines

    for line in confidence_lines(values):
        say(line)
    if values["saved"] is not None:
        say(f"saved: {values['saved']}")
