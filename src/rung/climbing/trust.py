"""What a task, an artifact or a folder of them would run or reach, and the user's consent to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rung import user_code
from rung.agents.toolbox import permits as tool_permits
from rung.artifact.agent import tools_folder
from rung.artifact.files import artifact_settings
from rung.data.sections import McpServer
from rung.errors import ConfigError, RungError
from rung.evaluation.metrics.registry import metric_permits
from rung.models.reference import is_endpoint
from rung.task import Task
from rung.user_code import Permit

MAX_FILES = 10_000  # of a folder, looked at


def trust(what: str | Path | Task) -> list[str]:
    """Allow all code, commands and endpoints that a task, or the files in a folder, name; say what they are.

    A later change of one of these files needs a new consent. The command `rung trust` does the same and asks before.
    """
    permits = permits_of(what)
    user_code.allow(permits)
    return [str(permit) for permit in permits]


def permits_of(what: str | Path | Task) -> list[Permit]:
    """What a task would run or reach; of a folder, what its task files and artifacts would.

    Raises:
        ConfigError: there is neither, or a named function does not exist.
    """
    if isinstance(what, Task):
        return list(dict.fromkeys(_of_task(what)))
    path = Path(what)
    if path.is_file():
        return permits_of(Task.load(path))
    if not path.is_dir():
        raise ConfigError("no-such-file", f"{path} does not exist", hint="name a task file or a folder")
    return list(dict.fromkeys(_of_folder(path)))


def check_allowed(what: Path | Task, named: str | Path = "") -> None:
    """Refuse what a task or artifact would run or reach and the user has not allowed, where nobody can be asked.

    `named` is the file or folder that the error tells to trust; by default the folder of `what`.

    Raises:
        MachineError: `not-trusted`.
    """
    user_code.require(*permits_of(what), place=named or (what.folder if isinstance(what, Task) else what))


def _of_folder(folder: Path) -> Iterator[Permit]:
    for number, file in enumerate(sorted(folder.rglob("*"))):
        if number == MAX_FILES:
            raise ConfigError("bad-option", f"{folder} has more than {MAX_FILES:,} files", hint="name a smaller folder")
        if file.name == "artifact.json" and file.is_file():
            yield from _of_artifact(artifact_settings(file.parent))
        elif file.suffix in (".yaml", ".yml") and file.parent == folder and file.is_file():
            try:
                task = Task.load(file)
            except RungError:
                continue  # not a task file
            yield from _of_task(task)


def _of_task(task: Task) -> Iterator[Permit]:
    given = [value for rung in task.rungs.values() for value in rung.values()]
    settings = [one for value in given for one in (value if isinstance(value, list) else [value])]
    yield from _endpoints([*task.models, task.metric_settings.get("model"), *settings])
    yield from metric_permits(task.metric_name, task.folder, task.metric_settings)
    for rewards in (value for value in settings if isinstance(value, Mapping)):  # such as `rl.rewards`
        for name in rewards:
            yield from metric_permits(str(name), task.folder, {}) if ":" in str(name) else ()
    functions = [tool for tool in task.tools if isinstance(tool, str)]
    yield from tool_permits(functions, [tool for tool in task.tools if isinstance(tool, McpServer)], task.folder)
    if task.corpus is not None and task.corpus.store is not None:
        yield user_code.endpoint_permit(task.corpus.store)


def _of_artifact(values: Mapping[str, Any]) -> Iterator[Permit]:
    """What an artifact would run; its metric is the task's own affair."""
    yield from _endpoints([values.get("model")])
    store = str((values.get("retriever") or {}).get("folder", ""))
    if "://" in store:
        yield user_code.endpoint_permit(store)
    decoder = values["decoder"]
    if decoder.get("kind") == "agent":
        servers = [McpServer(**server) for server in decoder["servers"]]
        functions = [str(tool["function"]) for tool in decoder["tools"]]
        yield from tool_permits(functions, servers, tools_folder(decoder))


def _endpoints(references: Iterable[Any]) -> Iterator[Permit]:
    """The endpoints among some values."""
    for reference in references:
        if isinstance(reference, str) and is_endpoint(reference):
            yield user_code.endpoint_permit(reference)
