"""The playground: one input, one or two artifacts, their answers and the exact prompts that they read.

What is asked here is not captured: it is no traffic of users.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from rung.artifact.parts import Answer
from rung.errors import RungError
from rung.retrieval.passage import Citation, shown_sources
from rung.serving.artifacts import answers_of
from rung.serving.context import context_of
from rung.serving.limits import Refused
from rung.serving.served import ServedArtifact, scheduled
from rung.serving.web.review import differences
from rung.serving.web.site import form_of, page, site_of

router = APIRouter(include_in_schema=False)
Form = Annotated[dict[str, str], Depends(form_of)]
TOP = 5


@dataclass(frozen=True, slots=True)
class Shown:
    """An artifact's answer, the text that its model read, and the likeliest labels; or why there is none.

    Attributes:
        sources: a heading, and the passages below it; see `rung.retrieval.passage.shown_sources`.
    """

    served: ServedArtifact
    answer: Answer | None
    prompt: str
    top: tuple[tuple[str, float], ...]
    sources: tuple[str, tuple[Citation, ...]] = ("", ())
    problem: str = ""


@router.get("/playground")
def playground(request: Request, a: str = "", b: str = "") -> Response:
    """Show the form."""
    return _page(request, a, b, {}, [])


@router.post("/playground/form")
def change(request: Request, form: Form) -> Response:
    """Show the form for another artifact, with what is written in it so far."""
    return _page(request, form.get("a", ""), form.get("b", ""), _inputs(form), [])


@router.post("/playground")
async def ask(request: Request, form: Form) -> Response:
    """Ask one or two artifacts."""
    a, b = form.get("a", ""), form.get("b", "")
    chosen = [_artifact(request, name) for name in dict.fromkeys((a, b)) if name]
    if not chosen:
        raise Refused(400, "nothing-to-ask", "choose an artifact")
    inputs = _inputs(form)
    _count(request)
    context_of(request).admit(len(chosen))
    shown = await asyncio.gather(*(_shown(request, one, inputs) for one in chosen))
    return _page(request, a, b, inputs, list(shown))


def _page(request: Request, a: str, b: str, inputs: Mapping[str, str], shown: list[Shown]) -> Response:
    artifacts = context_of(request).server.served.artifacts()
    known = {one.name: one for one in artifacts}
    first = known.get(a) or (artifacts[0] if artifacts else None)
    columns = first.artifact.shape.inputs if first else ()
    others = [one for one in artifacts if first and one is not first and one.artifact.shape.inputs == columns]
    texts = [one.answer.text for one in shown if one.answer is not None]
    changed = differences(*texts) if len(texts) == 2 else []
    return page(
        request, "playground", "Playground", artifacts=artifacts, first=first, others=others, b=b, columns=columns,
        inputs=inputs, shown=shown, changed=changed, agree=len(set(texts)) == 1,
    )  # fmt: skip


def _inputs(form: Mapping[str, str]) -> dict[str, str]:
    return {name.removeprefix("in-"): value for name, value in form.items() if name.startswith("in-")}


def _artifact(request: Request, name: str) -> ServedArtifact:
    found = context_of(request).server.find(name)
    if not isinstance(found, ServedArtifact):
        raise Refused(404, "no-task", f"{name!r} is no artifact")
    return found


def _count(request: Request) -> None:
    """Count this as a request of the key that somebody signed in with."""
    keys, key = site_of(request).sessions.keys, context_of(request).key
    if keys is None or key is None:
        return
    keys.take(key)


async def _shown(request: Request, served: ServedArtifact, inputs: Mapping[str, str]) -> Shown:
    shape = served.artifact.shape
    missing = [column for column in shape.inputs if not inputs.get(column, "").strip()]
    if missing:
        return Shown(served, None, "", (), problem=f"{missing[0]} is empty")
    row: dict[str, Any] = {column: inputs[column] for column in shape.inputs}
    if shape.kind == "chat":
        row = {shape.inputs[0]: [{"role": "user", "content": inputs[shape.inputs[0]]}]}
    artifact, engine = scheduled(served)
    if engine is not None:
        context_of(request).at_end(engine.leave)
    context = context_of(request).server
    try:
        answer = (await context.answer(answers_of, artifact, [row]))[0]
        prompt = await context.render(artifact.text, answer.messages)
    except RungError as error:
        return Shown(served, None, "", (), problem=f"{error} [{error.code}]")
    context.metrics.used(served.name, answer.prompt_tokens, answer.completion_tokens)
    ranked = sorted(zip(shape.labels, answer.probabilities or (), strict=False), key=lambda one: -one[1])
    found = shown_sources(answer.citations, answer.passages, refused=answer.refused)
    return Shown(served, answer, prompt, tuple(ranked[:TOP]), found)
