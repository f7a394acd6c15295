"""Agent: the decoder that lets the model call tools until it answers.

The loop is that of ReAct (Yao et al. 2023, https://arxiv.org/abs/2210.03629), without written thoughts. All rows take
their turns together, so that the engine answers them as one batch.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Self, cast

from rung.agents import calls as tool_calls
from rung.agents.calls import Call, CallFormat, MalformedError
from rung.agents.toolbox import call as call_tool
from rung.agents.toolbox import check_tools
from rung.agents.tools import AgentStep, Tool
from rung.artifact.decoder import Answer, ArtifactReader, ArtifactWriter, Change, Composition, Prompted
from rung.data.rows import Example
from rung.data.spec import AgentLimits, McpServer
from rung.engines.base import Engine, GenerateRequest, Generation, ModelInput, Sampling
from rung.models.messages import Messages, accepts_system, fold_system
from rung.models.reference import is_endpoint, resolve
from rung.models.tokenizer import Tokenizer
from rung.progress import QUIET, Progress

TOOLS_FOLDER = "RUNG_TOOLS"  # environment variable: where tools are that were moved since the artifact was made


@dataclass(frozen=True, slots=True)
class Agent(Prompted):
    """Call tools until the answer is known.

    Attributes:
        tools: what may be called.
        servers: the MCP servers that some of them belong to.
        folder: where the user's functions lie and servers are started.
        protocol: how the model calls: by its chat template, or by JSON.
        max_tokens: most tokens of one turn.
        limits: how far it may go.
    """

    kind: ClassVar[str] = "agent"
    fixed: ClassVar[bool] = True
    generates: ClassVar[bool] = True
    refusals: ClassVar[Mapping[Change, str]] = {
        "demonstrations": "rows show no calls of tools to learn from",
        "reasoning": "an agent takes its steps with tools",
        "training": "rows show no calls of tools to learn from",
    }
    tools: tuple[Tool, ...]
    servers: tuple[McpServer, ...]
    folder: Path
    protocol: CallFormat
    max_tokens: int
    limits: AgentLimits

    @property
    def max_new_tokens(self) -> int:
        """The most tokens of one turn."""
        return self.max_tokens

    def refuses(self, change: Change) -> str:
        """Where the chat template shows the tools, only this machine can render the prompt."""
        if change == "servers" and self.protocol == "template":
            return "its tools are in the prompt as the model's chat template writes them, beside the model only"
        return super(Agent, self).refuses(change)

    def warm_up(self, artifact: Composition, example: Example) -> None:
        """Write one token; no tool is called for a row that nobody asked."""
        prompt = self.prompt(artifact.model, self.render(artifact, [example])[0].messages)
        artifact.open().generate([GenerateRequest(prompt, Sampling(max_tokens=1), None, artifact.weights.reference)])

    def as_dict(self, writer: ArtifactWriter) -> dict[str, Any]:
        """Save everything but the code of the tools, which stays where it is and is checked."""
        del writer
        return {
            "tools": [asdict(tool) for tool in self.tools],
            "servers": [server.model_dump() for server in self.servers],
            "folder": str(self.folder),
            "protocol": self.protocol,
            "max_tokens": self.max_tokens,
            "limits": self.limits.model_dump(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], reader: ArtifactReader) -> Self:
        """Rebuild an agent; the user's functions must be those that it was made with.

        Raises:
            ArtifactError: `artifact-mismatch`.
            ConfigError: a function is not there any more.
        """
        folder = Path(os.environ.get(TOOLS_FOLDER) or values["folder"]).expanduser()
        tools = tuple(Tool(**tool) for tool in values["tools"])
        check_tools(tools, folder, reader.folder)
        servers = tuple(McpServer(**server) for server in values["servers"])
        limits = AgentLimits(**values["limits"])
        settings = {**values, "folder": folder, "tools": tools, "servers": servers, "limits": limits}
        return super(Agent, cls).from_dict(settings, reader)

    def room(self, engine: Engine) -> int:
        """Return how many tokens the answer may take behind the prompt: those of the first turn."""
        del engine
        return min(self.max_tokens, self.limits.max_tokens)

    def prompt(self, model: str, messages: Sequence[Any]) -> ModelInput:
        """Return what the engine reads: messages, or with the template's protocol their tokens, tools included."""
        if self.protocol == "json":
            return tuple(messages)
        tokenizer, turns, tools = _tokenizer(model), self._turns(model, messages), self._offered
        return tokenizer.encode_chat(cast("Messages", turns), tools=tools)

    def text(self, artifact: Composition, messages: Messages) -> str:
        """Return the exact text of the first prompt."""
        if self.protocol == "json":
            return artifact.open().text(messages)
        turns = cast("Messages", self._turns(artifact.model, messages))
        return _tokenizer(artifact.model).render(turns, tools=self._offered)

    @property
    def _offered(self) -> list[dict[str, Any]]:
        return [tool.as_template() for tool in self.tools]

    @staticmethod
    def _turns(model: str, messages: Sequence[Any]) -> Sequence[Any]:
        return messages if accepts_system(_tokenizer(model)) else fold_system(tuple(messages))

    def answer_prompts(
        self,
        artifact: Composition,
        engine: Engine,
        prompts: Sequence[Messages],
        *,
        full: bool,
        progress: Progress = QUIET,
    ) -> list[Answer]:
        """Run every row to its answer, or to a limit: then the answer is empty and `stopped` names the limit."""
        del full  # generated text has no label probabilities to leave out
        runs = [_AgentRun(prompt, list(prompt)) for prompt in prompts]
        progress.start("turns of rows", self.limits.max_steps * len(runs))
        for step in range(self.limits.max_steps):
            last = step + 1 == self.limits.max_steps
            going = [run for run in runs if run.going and self._fits(artifact, engine, run)]
            if not going:
                break
            requests = [self._request(artifact, run, last=last) for run in going]
            for run, made in zip(going, engine.generate(requests), strict=True):
                self._take(run, made, last=last)
            progress.advance(len(going))
        progress.finish()
        return [run.answer() for run in runs]

    def _request(self, artifact: Composition, run: _AgentRun, *, last: bool) -> GenerateRequest:
        constraint = tool_calls.json_constraint(self.tools, last=last) if self.protocol == "json" else None
        tokens = min(self.max_tokens, self.limits.max_tokens - run.written)
        prompt = self.prompt(artifact.model, run.messages)
        return GenerateRequest(prompt, Sampling(max_tokens=tokens), constraint, artifact.weights.reference)

    def _fits(self, artifact: Composition, engine: Engine, run: _AgentRun) -> bool:
        """Say whether the model can read the conversation and write a turn; the first prompt is the engine's affair."""
        if run.steps and 0 < engine.info.context < engine.count(self.prompt(artifact.model, run.messages)) + 1:
            run.stopped = "context"
        return run.going

    def _take(self, run: _AgentRun, made: Generation, *, last: bool) -> None:
        """Take one turn of the model: an answer, calls, or neither."""
        run.prompt_tokens += made.prompt_tokens
        run.written += made.completion_tokens
        run.seconds += made.seconds
        read = tool_calls.read_json if self.protocol == "json" else tool_calls.read_turn
        try:
            turn = read(made.text)
        except MalformedError as wrong:
            why = f"{wrong}" + (" (it was cut: write less)" if made.finish_reason == "length" else "")
            run.steps.append(AgentStep("malformed", why, made.text, tokens=made.completion_tokens))
            run.messages += tool_calls.json_turns(made.text, [("", why)])
        else:
            if isinstance(turn, str):
                run.steps.append(AgentStep("answer", turn.strip(), made.text, tokens=made.completion_tokens))
                return
            self._call(run, turn, made)
        if run.written >= self.limits.max_tokens:
            run.stopped = "tokens"
        elif last:
            run.stopped = "steps"

    def _call(self, run: _AgentRun, calls: Sequence[Call], made: Generation) -> None:
        """Call what a turn asks for, and put the results behind it."""
        told = []
        for number, call in enumerate(calls):
            step = self._called(call, made, first=number == 0)
            run.steps.append(step)
            run.seconds += step.seconds
            told.append((call.tool, step.text if step.outcome == "result" else f"error: {step.text}"))
        if self.protocol == "json":
            run.messages += tool_calls.json_turns(made.text, told)
        else:
            run.messages += tool_calls.template_turns(made.text, calls, told)

    def _called(self, call: Call, made: Generation, *, first: bool) -> AgentStep:
        arguments = json.dumps(call.arguments, ensure_ascii=False)
        tokens = made.completion_tokens if first else 0
        tool = next((tool for tool in self.tools if tool.name == call.tool), None)
        if tool is None:
            text = f"there is no tool {call.tool!r}; there are {', '.join(one.name for one in self.tools)}"
            return AgentStep("malformed", text, made.text, call.tool, arguments, tokens)
        start = time.perf_counter()
        outcome, text = call_tool(tool, call.arguments, self.tools, self.servers, self.folder, self.limits.seconds)
        seconds = time.perf_counter() - start
        return AgentStep(outcome, self._shortened(text), made.text, call.tool, arguments, tokens, seconds)

    def _shortened(self, text: str) -> str:
        """Return a result of bearable length that says how much is missing."""
        most = self.limits.result_characters
        return text if len(text) <= most else f"{text[:most]}\n[cut: {len(text) - most} more characters]"


@dataclass(slots=True)
class _AgentRun:
    """One row on its way."""

    prompt: Messages
    messages: list[Any]
    steps: list[AgentStep] = field(default_factory=list)
    prompt_tokens: int = 0
    written: int = 0
    seconds: float = 0.0
    stopped: str = ""

    @property
    def going(self) -> bool:
        return not self.stopped and not (self.steps and self.steps[-1].outcome == "answer")

    def answer(self) -> Answer:
        text = self.steps[-1].text if self.steps and self.steps[-1].outcome == "answer" else ""
        return Answer(
            text, None, None, self.prompt_tokens, self.written, self.seconds, self.prompt,
            steps=tuple(self.steps), stopped=self.stopped,
        )  # fmt: skip


def protocol_for(model: str) -> CallFormat:
    """Return how this model calls tools: by its chat template where that knows them, else by JSON."""
    return "template" if not is_endpoint(model) and all(tool_calls.template_support(_tokenizer(model))) else "json"


@lru_cache(maxsize=4)
def _tokenizer(model: str) -> Tokenizer:
    return Tokenizer.load(resolve(model).folder)
