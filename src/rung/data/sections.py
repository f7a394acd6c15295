"""Sections of a task file that do not say what the rows are: limits, prices, wishes, tools, confidence."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]


class Section(BaseModel):
    """A section of a task file: unknown keys and values of a wrong type are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)


def _share(value: Any) -> Any:
    """Convert points, `2pp`, to a share."""
    if not isinstance(value, str):
        return value
    try:
        return float(value.removesuffix("pp")) / 100 if value.endswith("pp") else float(value)
    except ValueError:
        raise ValueError("it must be a share from 0 to 1, such as 0.02, or points such as 2pp") from None


def _share_or_points(schema: dict[str, Any]) -> None:
    """Let the JSON Schema of a share allow points as well."""
    for key in ("type", "minimum", "exclusiveMaximum"):
        schema.pop(key, None)
    number = {"type": "number", "minimum": 0, "exclusiveMaximum": 1}
    schema["anyOf"] = [number, {"type": "string", "pattern": "pp$"}]


class Confidence(Section):
    """How confidences are fitted, and below which confidence an answer is marked as abstained."""

    method: Literal["temperature", "isotonic"] = Field(
        "temperature", description="How probabilities are calibrated on validation rows; isotonic needs 1,000."
    )
    abstain_below: Fraction | None = Field(None, description="Abstain on answers with less confidence.", examples=[0.6])
    out_of_scope: str | None = Field(None, description="The label of rows to abstain on.", examples=["out_of_scope"])

    @model_validator(mode="after")
    def _has_an_effect(self) -> Self:
        if self.out_of_scope is not None and self.abstain_below is None:
            raise ValueError("`out_of_scope` has no effect without `abstain_below`")
        return self


class Needs(Section):
    """What only people know about the task: the decision guide reads it, and prices read `rows_per_day`."""

    facts_change: Literal["never", "yearly", "monthly", "weekly", "daily"] | None = Field(
        None, description="How often the facts that answers depend on change."
    )
    knowledge: bool | None = Field(None, description="Whether answers need facts that are not in the input.")
    style: bool | None = Field(None, description="Whether answers must follow a special tone or format.")
    reasoning: bool | None = Field(None, description="Whether answers need several steps of calculation or logic.")
    latency_ms: Count | None = Field(None, description="Longest time for one answer, in milliseconds.")
    rows_per_day: Count | None = Field(
        None, description="Answers wanted a day; training is spread over those of 90 days (default: 1000 a day)."
    )
    privacy: Literal["local", "any"] | None = Field(None, description="Whether data may leave this machine.")
    failures: int | None = Field(None, ge=0, description="Failures collected so far, with their corrections.")


class MachineSpec(Section):
    """The machine that runs models, for their price."""

    price_per_hour: float | None = Field(
        None, ge=0, description="Price of an hour of this machine; default: 0.05 US dollars for each core.",
        examples=[0.1],
    )  # fmt: skip


class Constraints(Section):
    """The limits of the climb."""

    rungs: list[str] | None = Field(None, description="Try only these rungs.", examples=[["few-shot-knn", "lora"]])
    exclude: list[str] | None = Field(None, description="Never try these rungs.", examples=[["lora"]])
    within: Annotated[float, Field(ge=0, lt=1), BeforeValidator(_share)] = Field(
        0.01,
        description="Score that a cheaper recommendation may lose: a share such as 0.02, or points such as 2pp.",
        examples=["1pp", 0.02],
        json_schema_extra=_share_or_points,
    )
    max_price: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Highest price of 1,000 predictions of what is recommended.", examples=[0.5]
    )
    max_latency: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Longest time for a row of what is recommended, in seconds.", examples=[0.2]
    )

    @model_validator(mode="after")
    def _tried_or_not(self) -> Self:
        if both := [name for name in self.rungs or () if name in (self.exclude or ())]:
            raise ValueError(f"{both[0]!r} is in both `rungs` and `exclude`")
        return self


class McpServer(Section):
    """A local tool server that speaks the Model Context Protocol over stdin and stdout."""

    mcp: list[str] = Field(
        min_length=1, description="The command that starts it, without a shell.", examples=[["python", "server.py"]]
    )
    only: list[str] | None = Field(None, description="Use only these of its tools.", examples=[["search"]])


class AgentLimits(Section):
    """The limits of an agent for one row."""

    max_steps: int = Field(8, ge=1, description="Most turns of the model for one row, including the answer.")
    max_tokens: int = Field(1024, ge=1, description="Most tokens that the model may write for one row in total.")
    seconds: float = Field(10.0, gt=0, description="Longest time of one tool call.")
    result_characters: int = Field(4000, ge=16, description="Longest result shown to the model; the rest is cut.")
