"""Requests of the OpenAI-compatible endpoints. Fields that would change an answer and are not served are errors."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

_Item = TypeVar("_Item")
# Checking ends at the first wrong item: a million errors would hold up every other request.
Items = Annotated[list[_Item], Field(fail_fast=True)]
Name = Annotated[str, Field(min_length=1, max_length=512)]
Tokens = Annotated[int, Field(ge=1, le=1_000_000)]
StopText = Annotated[str, Field(min_length=1, max_length=256)]
Stop = StopText | Annotated[Items[StopText], Field(max_length=16)]


def _unserved(value: Any) -> Any:
    if value:
        raise ValueError("this server does not apply it: leave it out")
    return value


Zero = Annotated[float, AfterValidator(_unserved)]

IMAGES = frozenset({"image_url", "input_image", "image", "image_file"})
TEXTS = frozenset({"text", "input_text", "output_text"})
# Fields of a request that change no answer here; `reasoning_effort` is of models that think.
CHANGES_NOTHING = frozenset({
    "include_obfuscation", "metadata", "prediction", "prompt_cache_key", "prompt_cache_retention", "reasoning_effort",
    "safety_identifier", "service_tier", "store", "user", "verbosity",
})  # fmt: skip


class StrictModel(BaseModel):
    """A model that refuses unknown keys, but for those that change nothing; null counts as absent."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {key: value for key, value in values.items() if value is not None and key not in CHANGES_NOTHING}


class SentBack(StrictModel):
    """A part of a conversation: clients send answers back with keys that change nothing."""

    model_config = ConfigDict(extra="ignore")


class ContentPart(SentBack):
    """A piece of text in a message."""

    type: str
    text: str | None = None
    refusal: str = ""

    @model_validator(mode="after")
    def _is_text(self) -> ContentPart:
        if self.type in IMAGES:
            raise ValueError("images are not served: send text")
        if self.type not in TEXTS | {"refusal"}:
            raise ValueError(f"parts of the type {self.type!r} are not served: send text")
        if self.type in TEXTS and self.text is None:
            raise ValueError("the part has no `text`")
        return self


class FunctionCall(SentBack):
    """A function's name, and its arguments as JSON text."""

    name: Name
    arguments: str = "{}"


class ToolCall(SentBack):
    """A function call of the model."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(SentBack):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Items[ContentPart] | None = None
    tool_calls: Items[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str = ""
    audio: Any = Field(None, description="Not served.")
    function_call: Any = Field(None, description="Not served: send `tool_calls`.")

    @model_validator(mode="after")
    def _is_served(self) -> ChatMessage:
        if self.audio is not None:
            raise ValueError("audio is not served: send text")
        if self.function_call is not None:
            raise ValueError("`function_call` is not served: send `tool_calls`")
        return self

    @property
    def prompt_role(self) -> str:
        """The role in a prompt, where developers are the system."""
        return "system" if self.role == "developer" else self.role

    @property
    def text(self) -> str:
        """The content as one text."""
        if isinstance(self.content, list):
            return "".join(part.text or part.refusal for part in self.content)
        return self.content or self.refusal


class FunctionSpec(StrictModel):
    """A function that the model may call."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = Field(None, description="Arguments of a forced call always match the schema.")


class ToolSpec(StrictModel):
    """A tool; only functions are supported."""

    type: Literal["function"]
    function: FunctionSpec


class ChosenFunction(StrictModel):
    """A function by name."""

    name: Name


class ToolChoice(StrictModel):
    """The tool that must be called."""

    type: Literal["function"]
    function: ChosenFunction


class AnswerSchema(StrictModel):
    """A JSON Schema for the answer."""

    name: Name
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = Field(None, description="Answers always match the schema.")


class ResponseFormat(StrictModel):
    """The format of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: AnswerSchema | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("the type json_schema needs `json_schema`, and other types do not take it")
        return self


class StreamOptions(StrictModel):
    """What a stream has in addition to the answer."""

    include_usage: bool = False


class SamplingRequest(StrictModel):
    """Options of every completion. Without `temperature` decoding is greedy, as in evaluation."""

    model: Name
    n: Annotated[int, Field(ge=1, le=128)] = 1
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    frequency_penalty: Zero | None = Field(None, description="Not served: 0.")
    presence_penalty: Zero | None = Field(None, description="Not served: 0.")
    logit_bias: Annotated[dict[str, float], AfterValidator(_unserved)] | None = Field(None, description="Not served.")

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop texts as a tuple."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @model_validator(mode="after")
    def _streams(self) -> SamplingRequest:
        if self.stream_options is not None and not self.stream:
            raise ValueError("`stream_options` needs `stream: true`")
        return self


class ChatRequest(SamplingRequest):
    """POST /v1/chat/completions."""

    messages: Annotated[Items[ChatMessage], Field(min_length=1, max_length=2048)]
    max_completion_tokens: Tokens | None = None
    max_tokens: Tokens | None = Field(None, description="The deprecated name of max_completion_tokens.")
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[Items[ToolSpec], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = Field(None, description="A forced call is always one call.")
    modalities: list[str] | None = Field(None, description='Only ["text"] is served.')

    @model_validator(mode="after")
    def _fits_together(self) -> ChatRequest:
        if self.modalities not in (None, ["text"]):
            raise ValueError("`modalities`: text alone is served")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("`top_logprobs` needs `logprobs: true`")
        if self.tool_choice not in (None, "none") and not self.tools:
            raise ValueError("`tool_choice` needs `tools`")
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise ValueError("`max_tokens` and `max_completion_tokens` are two names of one limit, and differ")
        if self.stream and self.top_logprobs:
            raise ValueError("`top_logprobs` are computed when the answer is complete, so they cannot be streamed")
        return self

    @property
    def limit(self) -> int | None:
        """The token limit of the answer."""
        return self.max_completion_tokens or self.max_tokens


TokenIds = Annotated[Items[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]


class CompletionRequest(SamplingRequest):
    """POST /v1/completions."""

    prompt: (
        str | Annotated[Items[str], Field(min_length=1)] | TokenIds | Annotated[Items[TokenIds], Field(min_length=1)]
    )
    max_tokens: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: Annotated[int, Field(ge=1, le=1)] | None = Field(None, description="Only 1 is served.")
    suffix: Annotated[str, AfterValidator(_unserved)] | None = Field(None, description="Not served.")

    @model_validator(mode="after")
    def _fits_together(self) -> CompletionRequest:
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("`max_tokens: 0` needs `echo: true`")
        if self.stream and (self.echo or self.logprobs):
            message = "`echo` and `logprobs` above 0 are computed when the text is complete, so they cannot be streamed"
            raise ValueError(message)
        return self

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts as a list."""
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[return-value]
        return self.prompt


class EmbeddingRequest(StrictModel):
    """POST /v1/embeddings."""

    model: Name
    input: (
        str
        | Annotated[Items[str], Field(min_length=1, max_length=2048)]
        | TokenIds
        | Annotated[Items[TokenIds], Field(min_length=1, max_length=2048)]
    )
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = Field(None, description="Only those that the model has.")

    @property
    def inputs(self) -> list[str] | list[list[int]]:
        """The texts, or the token ids of each, as a list."""
        if isinstance(self.input, str) or isinstance(self.input[0], int):
            return [self.input]  # type: ignore[return-value]
        return self.input


class PredictRequest(StrictModel):
    """POST /v1/tasks/NAME/predict."""

    rows: Annotated[Items[dict[str, Any]], Field(min_length=1)]
    top: int = Field(0, ge=0, le=1000, description="How many labels to list with their probabilities.")


class LoadRequest(StrictModel):
    """PUT /v1/artifacts/NAME."""

    folder: Name


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    """OpenAI's error format."""

    error: ErrorDetail
