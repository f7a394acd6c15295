"""Let a model think before it answers: the thought is written first, and every decoder answers after it.

The answer is never written inside a thought: it follows the template's own end of a thought, also where the thought was
cut at its limit. So labels are scored, constraints hold and adapters answer as without thoughts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rung.artifact.costs import tokenizer_of
from rung.artifact.rendering import PromptParts
from rung.engines.base import Engine, GenerateRequest, Generation, Sampling
from rung.models.messages import Messages, thinking_of, with_thought
from rung.models.reference import is_endpoint, resolve
from rung.models.thinking import THOUGHT_TOKENS, thought_beginning
from rung.progress import Progress


@dataclass(frozen=True, slots=True)
class Thinking:
    """A prompt after which the answer follows, and the thought that it ends with."""

    prompt: Messages
    thought: Generation | None = None


def think(
    parts: PromptParts, prompts: Sequence[Messages], room: Callable[[Engine], int], progress: Progress
) -> list[Thinking]:
    """Write the thought of every prompt that asks for one; an endpoint thinks by itself."""
    if not prompts or is_endpoint(parts.model) or (effort := thinking_of(prompts[0])) == "off":
        return [Thinking(prompt) for prompt in prompts]
    engine, stop = parts.open(), thought_beginning(tokenizer_of(resolve(parts.model)), effort).stop
    opened = [with_thought(prompt, None) for prompt in prompts]
    free = engine.info.context - room(engine) - parts.weights.virtual_tokens - max(map(engine.count, opened))
    sampling = Sampling(max(1, min(THOUGHT_TOKENS[effort], free)), stop=(stop,))
    requests = [GenerateRequest(prompt, sampling, None, parts.weights.reference) for prompt in opened]
    thoughts = engine.generate(requests, progress=progress)
    return [Thinking(with_thought(p, g.text.strip()), g) for p, g in zip(prompts, thoughts, strict=True)]
