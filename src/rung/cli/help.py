"""What `rung --help` shows: the commands in groups, and an example of each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from typer import echo
from typer.core import TyperGroup, click  # type: ignore[attr-defined]

from rung.errors import ConfigError

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
EXAMPLES = {
    "init": "rung init tickets.csv --output queue",
    "check": "rung check task.yaml",
    "demo": "rung demo",
    "trust": "rung trust my-task/",
    "explain": "rung explain missing-column",
    "advise": "rung advise task.yaml",
    "climb": (
        "rung climb task.yaml --plan\nrung climb task.yaml --budget 10m\nrung climb task.yaml --rungs lora\n"
        "rung climb task.yaml --workers auto"
    ),
    "report": "rung report runs/tickets",
    "eval": "rung eval runs/tickets task.yaml --at-least accuracy=0.9",
    "confidence": "rung confidence runs/tickets task.yaml --out sure",
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
}


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


class Grouped(TyperGroup):
    """The group of all commands; its help shows them by what they are for, and each command's help an example."""

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
                echo(self.get_help(ctx))
                ctx.exit()
            args = [args[1], "--help"]
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Look a command up, with its example."""
        command = super().get_command(ctx, cmd_name)
        if command is not None and cmd_name in EXAMPLES:
            command.epilog = "\b\n" + "\n".join(("Example:", *(f"  {line}" for line in EXAMPLES[cmd_name].split("\n"))))
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the groups; a command without a group comes last."""
        known = self.list_commands(ctx)
        grouped = {name for group in GROUPS.values() for name in group}
        rest = {name: self.commands[name].get_short_help_str() for name in known if name not in grouped}
        for title, group in {**GROUPS, "Other": rest}.items():
            if lines := [(name, text) for name, text in group.items() if name in known]:
                with formatter.section(title):
                    formatter.write_dl(lines, col_max=14)
