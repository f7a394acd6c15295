"""Agent: the decoder that lets the model call tools until it answers.

The loop is ReAct (Yao et al. 2023, https://arxiv.org/abs/2210.03629) without written thoughts. All rows take their
turns together, so that the engine answers them as one batch.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Self, cast

from rung.agents import calls as tool_calls
from rung.agents.calls import CallFormat
from rung.agents.toolbox import call as call_tool
from rung.agents.toolbox import check_tools, permits
from rung.agents.tools import AgentStep, Tool
from rung.agents.turns import Call, MalformedError, read_turn
from rung.artifact.decoder import Answer, ArtifactReader, ArtifactWriter, Change, Composition, Prompted, Prompts
from rung.data.rows import Example
from rung.data.sections import AgentLimits, McpServer
from rung.engines.base import Engine, GenerateRequest, Generation, ModelInput, Sampling
from rung.models.messages import Messages, accepts_system, fold_system
from rung.models.reference import is_endpoint, resolve
from rung.models.thinking import answer_beginning, split_thought
from rung.models.tokenizer import Tokenizer
from rung.progress import QUIET, Progress
from rung.user_code import require

TOOLS_FOLDER = "RUNG_TOOLS"  # environment variable: the folder of tools that were moved after the artifact was saved


@dataclass(frozen=True, slots=True)
class Agent(Prompted):
    """Call tools until the answer is known.

    Attributes:
        tools: the tools that the model may call.
        servers: the MCP servers that provide some of them.
        folder: the folder of the user's functions, in which servers start.
        protocol: how the model calls tools: by its chat template, or by JSON.
        max_tokens: the most tokens of one turn.
        limits: the limits of one row.
    """

    kind: ClassVar[str] = "agent"
    fixed: ClassVar[bool] = True
    generates: ClassVar[bool] = True
    refusals: ClassVar[Mapping[Change, str]] = {
        "demonstrations": "rows show no tool calls to learn from",
        "reasoning": "an agent takes its steps with tools",
        "training": "rows show no tool calls to learn from",
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
        """Refuse other servers if the chat template shows the tools: only this machine can render that prompt."""
        if change == "servers" and self.protocol == "template":
            return "the model's own chat template writes its tools into the prompt, which another server cannot do"
        return super(Agent, self).refuses(change)

    def warm_up(self, artifact: Composition, example: Example) -> None:
        """Write one token; call no tool, but refuse those that the user has not allowed."""
        self._check_allowed()
        prompt = self.prompt(artifact.model, self.render(artifact, [example])[0].messages)
        artifact.open().generate([GenerateRequest(prompt, Sampling(max_tokens=1), None, artifact.weights.reference)])

    def as_dict(self, writer: ArtifactWriter) -> dict[str, Any]:
        """Save everything but the code of the tools, which stays in its folder and is checked on loading."""
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
        """Rebuild an agent, and check that the user's functions are unchanged.

        Raises:
            ArtifactError: `artifact-mismatch`: a function has changed.
            ConfigError: a function no longer exists.
        """
        folder = tools_folder(values)
        tools = tuple(Tool(**tool) for tool in values["tools"])
        check_tools(tools, folder, reader.folder)
        servers = tuple(McpServer(**server) for server in values["servers"])
        changed = {"folder": folder, "tools": tools, "servers": servers, "limits": AgentLimits(**values["limits"])}
        return super(Agent, cls).from_dict({**values, **changed}, reader)

    def room(self, engine: Engine) -> int:
        """Allow the tokens of the first turn."""
        del engine
        return min(self.max_tokens, self.limits.max_tokens)

    def prompt(self, model: str, messages: Sequence[Any]) -> ModelInput:
        """Give what the engine reads: messages, or with the protocol `template` their tokens, tools included."""
        if self.protocol == "json":
            return tuple(messages)
        turns, tokenizer = cast("Messages", _folded(model, messages)), _tokenizer(model)
        tools = [tool.as_template() for tool in self.tools]
        return tokenizer.encode_chat(turns, tools=tools, begin=answer_beginning(tokenizer))

    def text(self, artifact: Composition, messages: Messages) -> str:
        """Give the exact text of the first prompt."""
        if self.protocol == "json":
            return artifact.open().text(messages)
        turns, tokenizer = cast("Messages", _folded(artifact.model, messages)), _tokenizer(artifact.model)
        tools = [tool.as_template() for tool in self.tools]
        return tokenizer.render(turns, tools=tools, begin=answer_beginning(tokenizer))

    def answer_prompts(
        self, artifact: Composition, engine: Engine, prompts: Prompts, *, full: bool, progress: Progress = QUIET
    ) -> list[Answer]:
        """Run every row to its answer, or to a limit: then the answer is empty and `stopped` names the limit."""
        del full  # generated text has no label probabilities to leave out
        self._check_allowed()
        runs = [_AgentRun(prompt, list(prompt)) for prompt in prompts]
        progress.start("turns of rows", self.limits.max_steps * len(runs))
        for step in range(self.limits.max_steps):
            last = step + 1 == self.limits.max_steps
            going = [run for run in runs if run.going and self._fits(artifact, engine, run)]
            if not going:
                break
            requests = [self._request(artifact, run, last=last) for run in going]
            for run, generation in zip(going, engine.generate(requests), strict=True):
                self._take(run, generation, last=last)
            progress.advance(len(going))
        progress.finish()
        return [run.answer() for run in runs]

    def _check_allowed(self) -> None:
        require(*permits(self.tools, self.servers, self.folder))

    def _request(self, artifact: Composition, run: _AgentRun, *, last: bool) -> GenerateRequest:
        constraint = tool_calls.json_constraint(self.tools, last=last) if self.protocol == "json" else None
        tokens = min(self.max_tokens, self.limits.max_tokens - run.written)
        prompt = self.prompt(artifact.model, run.messages)
        sampling = Sampling(max_tokens=tokens, call_marks=True)
        return GenerateRequest(prompt, sampling, constraint, artifact.weights.reference)

    def _fits(self, artifact: Composition, engine: Engine, run: _AgentRun) -> bool:
        """Say whether the conversation and a turn fit the context; the engine itself checks the first prompt."""
        if run.steps and 0 < engine.info.context < engine.count(self.prompt(artifact.model, run.messages)) + 1:
            run.stopped = "context"
        return run.going

    def _take(self, run: _AgentRun, generation: Generation, *, last: bool) -> None:
        """Process one turn of the model: an answer, tool calls, or malformed text."""
        generation = replace(generation, text=split_thought(generation.text)[1])
        raw, tokens = generation.text, generation.completion_tokens
        run.prompt_tokens += generation.prompt_tokens
        run.cached_tokens += generation.cached_tokens
        run.written += tokens
        run.seconds += generation.seconds
        try:
            turn = tool_calls.read_json(raw) if self.protocol == "json" else read_turn(raw, self.tools)
        except MalformedError as problem:
            why = f"{problem}" + (" (it was cut: write less)" if generation.finish_reason == "length" else "")
            run.steps.append(AgentStep("malformed", why, raw, tokens=tokens))
            run.messages += tool_calls.json_turns(raw, [("", why)])
        else:
            if isinstance(turn, str):
                run.steps.append(AgentStep("answer", turn.strip(), raw, tokens=tokens))
                return
            self._call(run, turn, generation)
        if run.written >= self.limits.max_tokens:
            run.stopped = "tokens"
        elif last:
            run.stopped = "steps"

    def _call(self, run: _AgentRun, calls: Sequence[Call], generation: Generation) -> None:
        """Make the calls of a turn, and append the turn and the results to the conversation."""
        results = []
        for number, call in enumerate(calls):
            step = self._step(call, generation.text, generation.completion_tokens if number == 0 else 0)
            run.steps.append(step)
            run.seconds += step.seconds
            results.append((call.tool, step.text if step.outcome == "result" else f"error: {step.text}"))
        if self.protocol == "json":
            run.messages += tool_calls.json_turns(generation.text, results)
        else:
            run.messages += tool_calls.template_turns(generation.text, calls, results)

    def _step(self, call: Call, raw: str, tokens: int) -> AgentStep:
        arguments = json.dumps(call.arguments, ensure_ascii=False)
        tool = next((tool for tool in self.tools if tool.name == call.tool), None)
        if tool is None:
            text = f"there is no tool {call.tool!r}; there are {', '.join(tool.name for tool in self.tools)}"
            return AgentStep("malformed", text, raw, call.tool, arguments, tokens)
        start = time.perf_counter()
        outcome, text = call_tool(tool, call.arguments, self.tools, self.servers, self.folder, self.limits.seconds)
        seconds, excess = time.perf_counter() - start, len(text) - self.limits.result_characters
        if excess > 0:
            text = f"{text[:-excess]}\n[cut: {excess} more characters]"
        return AgentStep(outcome, text, raw, call.tool, arguments, tokens, seconds)


@dataclass(slots=True)
class _AgentRun:
    """The state of one row."""

    prompt: Messages
    messages: list[Any]
    steps: list[AgentStep] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
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
            steps=tuple(self.steps), stopped=self.stopped, cached_tokens=self.cached_tokens,
        )  # fmt: skip


def tools_folder(values: Mapping[str, Any]) -> Path:
    """The folder of a saved agent's tools: the environment's, else that in which it was made."""
    return Path(os.environ.get(TOOLS_FOLDER) or values["folder"]).expanduser()


def protocol_for(model: str) -> CallFormat:
    """Choose how this model calls tools: by its chat template if that supports tools, else by JSON."""
    return "template" if not is_endpoint(model) and all(tool_calls.template_support(_tokenizer(model))) else "json"


def _folded(model: str, messages: Sequence[Any]) -> Sequence[Any]:
    return messages if accepts_system(_tokenizer(model)) else fold_system(tuple(messages))


@lru_cache(maxsize=4)
def _tokenizer(model: str) -> Tokenizer:
    return Tokenizer.load(resolve(model).folder)
