"""What `--help` shows: the commands and options in groups, and an example of each command."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import typer.main
from typer.core import TyperArgument, TyperCommand, TyperGroup, click  # type: ignore[attr-defined]

from rung.errors import ConfigError

Made = TypeVar("Made", bound=Callable[..., Any])
GROUPS = {
    "Start": {
        "init": "make a task file from a table or a folder of documents",
        "check": "count what would be lost, merged or cut, without a model",
        "demo": "climb on a small task that comes with Rung",
        "doctor": "show what this machine has and what is missing",
        "explain": "say what an error code means and how to fix it",
    },
    "Measure": {
        "advise": "say which techniques the rules expect to help, and why",
        "climb": "measure the techniques on the same rows and recommend one",
        "fit": "make one artifact with one technique, on one device or several",
        "report": "show the report of a climb again",
        "eval": "score an artifact; exit 1 below a bar",
        "confidence": "measure how sure answers are, and what abstaining brings",
        "judge": "measure how far a judge agrees with people, or how often it prefers answers",
        "rungs": "list the techniques and their settings",
        "tune": "search the settings of one technique",
    },
    "Use": {
        "run": "answer one input",
        "chat": "talk to an artifact",
        "predict": "answer every row of a file",
        "serve": "serve artifacts over OpenAI's API, with pages",
        "show": "show an artifact, or the exact prompt of a row",
        "export": "write weights or prompts for other programs",
        "merge": "merge trained weights into the base model",
        "push": "upload an exported folder to the Hugging Face Hub",
    },
    "Learn from production": {
        "failures": "list, correct, import and export captured answers",
        "improve": "climb again with the corrections",
        "promote": "serve an artifact from now on",
        "rollback": "serve again what was served before",
        "trial": "try an artifact next to the served one",
        "keys": "manage the API keys of a server",
    },
    "Documents, models, files": {
        "index": "build, show and search the index of documents",
        "cluster": "group the texts of a table by meaning",
        "models": "list, download and search base models",
        "cache": "show or clear the remembered answers",
        "worker": "run one job of a cluster",
        "trust": "show what others' files would run, and allow it",
        "schema": "print the JSON Schema of task files",
    },
}
OPTIONS = {  # of commands with many, in groups
    "serve": {
        "What is served": (
            "model", "encoder", "alias", "registry", "on_demand", "keep", "load_from", "engine", "long_texts",
            "conversation",
        ),
        "Who may ask": ("host", "port", "key_file", "allow_host", "allow_origin"),
        "Limits": ("queue", "max_body", "per_address", "drain"),
        "What is recorded": ("capture", "sample", "store", "redact"),
        "Pages": ("pages", "runs", "start"),
    },
}  # fmt: skip
EXAMPLES = {
    "init": "rung init tickets.csv --output queue",
    "check": "rung check task.yaml",
    "demo": "rung demo",
    "doctor": "rung doctor",
    "trust": "rung trust my-task/",
    "explain": "rung explain missing-column",
    "advise": "rung advise task.yaml",
    "climb": (
        "rung climb task.yaml --plan\nrung climb task.yaml --budget 10m\nrung climb task.yaml --rungs lora\n"
        "rung climb task.yaml --workers auto"
    ),
    "report": "rung report runs/tickets\nrung report runs/tickets --rows wrong",
    "eval": "rung eval runs/tickets task.yaml --at-least accuracy=0.9",
    "confidence": "rung confidence runs/tickets task.yaml --out sure",
    "judge": "rung judge task.yaml pairs.jsonl\nrung judge task.yaml --run runs/summaries --over zero-shot",
    "rungs": "rung rungs lora",
    "fit": "rung fit task.yaml lora --out tuned --devices 4",
    "tune": "rung tune task.yaml --rung lora --budget 30m",
    "run": 'rung run runs/tickets "The printer is on fire"',
    "chat": "rung chat runs/support",
    "predict": (
        "rung predict runs/tickets new.csv --out answers.csv\n"
        "rung predict runs/tickets new.csv --out answers.jsonl --workers auto"
    ),
    "serve": "rung serve runs/tickets --port 8000",
    "show": "rung show runs/tickets --prompt --row 1 --data test.csv",
    "export": "rung export runs/tickets --to vllm --out served",
    "merge": "rung merge runs/tickets --out merged --data test.csv",
    "push": "rung push adapter org/tickets-lora",
    "improve": "rung improve task.yaml --budget 20m",
    "promote": 'rung promote runs/tickets --reason "first release"',
    "rollback": "rung rollback tickets",
    "cluster": "rung cluster messages.csv --column text",
    "worker": "rung worker jobs/1/job.json",
    "schema": "rung schema > task.schema.json",
    "failures": "rung failures list",
    "failures list": "rung failures list --wrong",
    "failures show": "rung failures show req-1",
    "failures correct": "rung failures correct req-1 billing --task task.yaml",
    "failures undo": "rung failures undo req-1",
    "failures import": "rung failures import cases.csv task.yaml",
    "failures export": "rung failures export --to csv --out cases.csv",
    "failures stats": "rung failures stats --task tickets",
    "failures check": "rung failures check runs/tickets",
    "failures purge": "rung failures purge --older-than 30d",
    "trial": "rung trial start tickets runs/tickets-2",
    "trial start": "rung trial start tickets runs/tickets-2 --mode ab --share 0.1",
    "trial show": "rung trial show tickets",
    "trial stop": "rung trial stop tickets",
    "keys": "rung keys create --key-file keys.json --name ada",
    "keys create": "rung keys create --key-file keys.json --name ada --per-minute 60",
    "keys list": "rung keys list --key-file keys.json",
    "keys revoke": "rung keys revoke --key-file keys.json 3f9a",
    "index": "rung index build task.yaml",
    "index build": "rung index build task.yaml",
    "index update": "rung index update task.yaml",
    "index show": "rung index show task.yaml",
    "index search": 'rung index search task.yaml "How do I cancel?"',
    "index questions": "rung index questions task.yaml --number 50 --out questions.jsonl",
    "index path": "rung index path task.yaml",
    "models": "rung models list",
    "models list": "rung models list",
    "models show": "rung models show embedded",
    "models verify": "rung models verify embedded",
    "models pull": "rung models pull embedded",
    "models rm": "rung models rm embedded",
    "models path": "rung models path embedded",
    "models search": "rung models search --task extraction --language de --memory 16GB",
    "models matrix": "rung models matrix",
    "cache": "rung cache size",
    "cache path": "rung cache path",
    "cache size": "rung cache size",
    "cache clear": "rung cache clear",
}


class HelpedArgument(TyperArgument):
    """An argument that keeps its help, which click 8.5 replaces by None: typer 0.25 does not pass it on."""

    def __init__(self, *, help: str | None = None, **settings: Any) -> None:  # noqa: A002
        super().__init__(help=help, **settings)
        self.help = help


typer.main.TyperArgument = HelpedArgument  # type: ignore[attr-defined]  # what all arguments are made of


@contextmanager
def _usage_errors() -> Iterator[None]:
    """Turn errors of usage into Rung's own, which have a code and a hint.

    Raises:
        ConfigError: `unknown-name` for a command that there is not, else `bad-option`.
    """
    try:
        yield
    except click.UsageError as error:
        usage = "rung --help" if error.ctx is None else f"{' '.join(error.ctx.command_path.split())} --help"
        usage = re.sub(r"^python -m rung", "rung", usage)
        problem = error.format_message().rstrip(".")
        lacking = isinstance(error, click.NoSuchOption | click.MissingParameter | click.BadParameter)
        code = "unknown-name" if problem.startswith("No such command") and not lacking else "bad-option"
        raise ConfigError(code, problem[:1].lower() + problem[1:], hint=usage) from None


class HelpedCommand(TyperCommand):
    """A command whose help shows its options in groups."""

    def format_arguments(self, ctx: Any, formatter: Any) -> None:
        """Leave the arguments to `format_options`: click 8.5 would write them a second time."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, the groups, and the options without a group."""
        place = {name: title for title, names in OPTIONS.get(self.name or "", {}).items() for name in names}
        sections: dict[str, list[tuple[str, str]]] = {title: [] for title in ("Arguments", *place.values(), "Options")}
        for each in self.get_params(ctx):
            if (record := each.get_help_record(ctx)) is not None:
                title = "Arguments" if each.param_type_name == "argument" else place.get(each.name, "Options")
                sections[title].append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


class Grouped(TyperGroup):
    """A group of commands; help shows those of `rung` by what they are for, and an example of each."""

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """Read the options of `rung` itself."""
        with _usage_errors():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Read the command's options, and run it."""
        with _usage_errors():
            return super().invoke(ctx)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Take `rung help COMMAND` for `rung COMMAND --help`."""
        if args[0] == "help":
            if len(args) == 1:
                typer.echo(self.get_help(ctx))
                ctx.exit()
            args = [*args[1:], "--help"]
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Look a command up, with its example."""
        command = super().get_command(ctx, cmd_name)
        example = EXAMPLES.get(cmd_name if ctx.parent is None else f"{self.name} {cmd_name}")
        if command is not None and example is not None:
            command.epilog = "\b\n" + "\n".join(("Example:", *(f"  {line}" for line in example.split("\n"))))
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the groups of `rung`, or all commands of a group; a command of `rung` without a group comes last."""
        known, groups = self.list_commands(ctx), GROUPS if ctx.parent is None else {}
        grouped = {name for group in groups.values() for name in group}
        rest = {name: self.commands[name].get_short_help_str(limit=1000) for name in known if name not in grouped}
        for title, group in {**groups, "Other" if groups else "Commands": rest}.items():
            if lines := [(name, text) for name, text in group.items() if name in known]:
                with formatter.section(title):
                    formatter.write_dl(lines, col_max=14)


class CommandGroup(typer.Typer):
    """Where commands are made, so that all have such help."""

    def __init__(self, **settings: Any) -> None:
        # plain help: importing rich and its Markdown takes longer than the rest together
        super().__init__(cls=Grouped, rich_markup_mode=None, **settings)

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Made], Made]:
        """Make a command of a function."""
        return super().command(name, cls=HelpedCommand, **settings)
