"""The playground: one input, one or two artifacts, their answers and the exact prompts that they read.

Requests from here are not captured: they are not traffic of users.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from rung.artifact.decoder import Answer
from rung.errors import RungError
from rung.retrieval.passage import Citation, shown_sources
from rung.serving.context import Context
from rung.serving.endpoints import ranked
from rung.serving.limits import Refused
from rung.serving.served import ServedArtifact, scheduled
from rung.serving.web.review import differences
from rung.serving.web.site import FormValues, page

router = APIRouter(include_in_schema=False)
TOP = 5  # labels shown


@dataclass(frozen=True, slots=True)
class PlaygroundAnswer:
    """An artifact's answer, the prompt that its model read, and the likeliest labels; or why there is none."""

    served: ServedArtifact
    answer: Answer | None = None
    prompt: str = ""
    top: tuple[tuple[str, float], ...] = ()
    sources: tuple[str, tuple[Citation, ...]] = ("", ())  # a heading, and the passages below it
    problem: str = ""


@router.get("/playground")
def playground(request: Request, context: Context, a: str = "", b: str = "") -> Response:
    """Show the form."""
    return _page(request, context, {"a": a, "b": b}, [])


@router.post("/playground/form")
def change(request: Request, context: Context, form: FormValues) -> Response:
    """Show the form for another artifact; what was typed stays."""
    return _page(request, context, form, [])


@router.post("/playground")
async def ask(request: Request, context: Context, form: FormValues) -> Response:
    """Ask one or two artifacts."""
    names = [name for name in dict.fromkeys((form.get("a", ""), form.get("b", ""))) if name]
    if not names:
        raise Refused(400, "nothing-to-ask", "choose an artifact")
    artifacts = []
    for name in names:
        if not isinstance(served := context.server.find(name), ServedArtifact):
            raise Refused(404, "no-task", f"{name!r} is not an artifact")
        artifacts.append(served)
    if context.key is not None and context.server.access.keys is not None:
        context.server.access.keys.take(context.key)  # the pages themselves count as no request
    context.admit(len(artifacts))
    inputs = _inputs(form)
    answers = await asyncio.gather(*(_answered(context, served, inputs) for served in artifacts))
    return _page(request, context, form, list(answers))


def _page(request: Request, context: Context, form: Mapping[str, str], answers: list[PlaygroundAnswer]) -> Response:
    artifacts, b = context.server.served.artifacts(), form.get("b", "")
    known = {served.name: served for served in artifacts}
    first = known.get(form.get("a", "")) or (artifacts[0] if artifacts else None)
    columns = first.artifact.signature.inputs if first else ()
    others = [served for served in artifacts if served is not first and served.artifact.signature.inputs == columns]
    texts = [each.answer.text for each in answers if each.answer is not None]
    changed = differences(*texts) if len(texts) == 2 else []
    return page(
        request, "playground", "Playground", artifacts=artifacts, first=first, others=others, b=b, columns=columns,
        inputs=_inputs(form), shown=answers, changed=changed, agree=len(set(texts)) == 1,
    )  # fmt: skip


def _inputs(form: Mapping[str, str]) -> dict[str, str]:
    return {name.removeprefix("in-"): value for name, value in form.items() if name.startswith("in-")}


async def _answered(context: Context, served: ServedArtifact, inputs: Mapping[str, str]) -> PlaygroundAnswer:
    shape = served.artifact.signature
    missing = [column for column in shape.inputs if not inputs.get(column, "").strip()]
    if missing:
        return PlaygroundAnswer(served, problem=f"{missing[0]} is empty")
    row: dict[str, Any] = {column: inputs[column] for column in shape.inputs}
    if shape.kind == "chat":
        row = {shape.inputs[0]: [{"role": "user", "content": inputs[shape.inputs[0]]}]}
    try:
        ((answer, _),) = await context.answer_rows(served, [row])
        prompt = await context.server.render(scheduled(served)[0].text, answer.messages)
    except RungError as error:
        return PlaygroundAnswer(served, problem=f"{error} [{error.code}]")
    context.server.metrics.used(served.name, answer.prompt_tokens, answer.completion_tokens)
    top = ranked(served, answer.probabilities)[:TOP] if answer.probabilities else []
    sources = shown_sources(answer.citations, answer.passages, refused=answer.refused)
    return PlaygroundAnswer(served, answer, prompt, tuple(top), sources)
