"""The request bodies of the API, strictly typed. ``null`` means the default; fields that are not here are ignored."""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    TypeAdapter,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

MAX_CHOICES = 16
MAX_STOPS = 4
MAX_STOP_LENGTH = 1000
MAX_LOGPROBS = 20

Flag = bool | None
Count = Annotated[int, Field(ge=1)] | None
Choices = Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None
Penalty = Annotated[float, Field(ge=-2, le=2)] | None
NumLogprobs = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)] | None
NEUTRAL = {"top_k": (-1, 0), "min_p": (0,), "min_tokens": (0,), "repetition_penalty": (1,)}
"""Values of other engines' sampling parameters that change nothing."""
TEXT: dict[str, Any] = {"type": "string", "minLength": 1}
CONTENT: dict[str, Any] = {"type": "string"}
TEXT_PART: dict[str, Any] = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": CONTENT},
    "required": ["type", "text"],
}
TEXTS: dict[str, Any] = {"type": "array", "items": TEXT, "minItems": 1}
IDS: dict[str, Any] = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
PROMPT: dict[str, Any] = {"anyOf": [TEXT, TEXTS, IDS, {"type": "array", "items": IDS, "minItems": 1}]}
STOP_TEXT: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_LENGTH}
STOP: dict[str, Any] = {
    "anyOf": [STOP_TEXT, {"type": "array", "items": STOP_TEXT, "maxItems": MAX_STOPS}, {"type": "null"}]
}
PLAIN: dict[str, Any] = {
    "type": ["object", "null"],
    "properties": {"type": {"const": "text"}},
    "required": ["type"],
    "additionalProperties": False,
}


class StreamOptions(BaseModel):
    """What a stream tells beside the text."""

    model_config = ConfigDict(strict=True)

    include_usage: Flag = None


class GenerationBody(BaseModel):
    """What completions and chat have in common."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, protected_namespaces=())

    model: Annotated[str, Field(min_length=1)]
    max_tokens: Count = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """Default 1, as OpenAI's."""
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    n: Choices = None
    stream: Flag = None
    stream_options: StreamOptions | None = None
    stop: Annotated[Any, WithJsonSchema(STOP)] = None
    seed: Seed = None
    ignore_eos: Flag = None
    """Go on past an end token, up to ``max_tokens``: what load generators ask for. Not in OpenAI's API."""
    presence_penalty: Penalty = None
    frequency_penalty: Penalty = None
    logit_bias: Annotated[Any, WithJsonSchema({"type": ["object", "null"], "maxProperties": 0})] = None

    top_k: Annotated[Any, WithJsonSchema({"enum": [None, -1, 0]})] = None
    min_p: Annotated[Any, WithJsonSchema({"enum": [None, 0]})] = None
    min_tokens: Annotated[Any, WithJsonSchema({"enum": [None, 0]})] = None
    repetition_penalty: Annotated[Any, WithJsonSchema({"enum": [None, 1]})] = None

    @field_validator("stop")
    @classmethod
    def _stops(cls, value: Any) -> list[str]:
        stops = [] if value is None else [value] if isinstance(value, str) else value
        if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops[: MAX_STOPS + 1]):
            raise ValueError("expected a string or a list of strings")
        if len(stops) > MAX_STOPS:
            raise ValueError(f"expected at most {MAX_STOPS} strings, got {len(stops)}")
        if not all(0 < len(stop) <= MAX_STOP_LENGTH for stop in stops):
            raise ValueError(f"each string must have 1 to {MAX_STOP_LENGTH} characters")
        return stops

    @field_validator("presence_penalty", "frequency_penalty")
    @classmethod
    def _no_penalty(cls, value: float | None) -> float | None:
        if value:
            raise ValueError("penalties are not supported, expected 0")
        return value

    @field_validator("logit_bias")
    @classmethod
    def _no_bias(cls, value: Any) -> None:
        if value not in (None, {}):
            raise ValueError("is not supported here, leave it out")

    @field_validator("top_k", "min_p", "min_tokens", "repetition_penalty")
    @classmethod
    def _neutral(cls, value: Any, info: ValidationInfo) -> None:
        neutral = NEUTRAL[str(info.field_name)]
        if value is not None and (isinstance(value, bool) or value not in neutral):
            raise ValueError(f"is not supported here, leave it out or send {neutral[0]}")

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings."""
        return tuple(self.stop or ())

    @property
    def num_choices(self) -> int:
        """Answers a prompt."""
        return self.n or 1

    @property
    def wants_usage(self) -> bool:
        """A stream is to end with the counts of tokens."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @model_validator(mode="after")
    def _usage_of_a_stream(self) -> "GenerationBody":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for streams only: set stream to true, or leave it out")
        return self


class CompletionBody(GenerationBody):
    """POST /v1/completions."""

    prompt: Annotated[Any, WithJsonSchema(PROMPT)]
    logprobs: NumLogprobs = None
    echo: Flag = None
    best_of: Choices = None
    suffix: Annotated[str, Field(max_length=0)] | None = None

    @field_validator("prompt")
    @classmethod
    def _prompts(cls, value: Any) -> list[str] | list[list[int]]:
        match _shape(value):
            case "text" | "ids":
                return [value]
            case "texts" | "lists":
                return list(value)
        raise ValueError(
            "expected a string, a list of strings, a list of token ids, or a list of lists of token ids; none empty"
        )

    @model_validator(mode="after")
    def _answers_as_asked(self) -> "CompletionBody":
        if self.best_of is not None and self.best_of != self.num_choices:
            raise ValueError(f"best_of must equal n, got best_of={self.best_of} and n={self.num_choices}")
        if self.echo and self.logprobs is not None:
            raise ValueError("logprobs of an echoed prompt are not supported: leave out echo or logprobs")
        return self


def _shape(value: Any) -> Literal["text", "ids", "texts", "lists"] | None:
    if isinstance(value, str):
        return "text"
    if not isinstance(value, list) or not value:
        return None
    kinds = {type(item) for item in value}
    if kinds == {str}:
        return "texts"
    if kinds == {int}:
        return "ids"
    return "lists" if kinds == {list} and all(item and {type(i) for i in item} == {int} for item in value) else None


class Message(BaseModel):
    """One turn of a chat."""

    model_config = ConfigDict(strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    """``developer``, OpenAI's newer name, is taken as ``system``, which is what chat templates know."""
    content: Annotated[Any, WithJsonSchema({"anyOf": [CONTENT, {"type": "array", "items": TEXT_PART, "minItems": 1}]})]
    """Its text; a list of ``{"type": "text", "text": ...}`` is joined."""

    @field_validator("role")
    @classmethod
    def _as_templates_say(cls, value: str) -> str:
        return "system" if value == "developer" else value

    @field_validator("content")
    @classmethod
    def _text(cls, value: Any) -> str:
        if isinstance(value, str):
            return value
        if isinstance(value, list) and value and all(map(_is_text_part, value)):
            return "".join(part["text"] for part in value)
        raise ValueError('expected a string or a list of {"type": "text", "text": "..."}')


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


Messages = Annotated[list[Message], FailFast(), Field(min_length=1, max_length=10_000)]


class ChatBody(GenerationBody):
    """POST /v1/chat/completions."""

    messages: Messages
    max_completion_tokens: Count = None
    logprobs: Flag = None
    top_logprobs: NumLogprobs = None
    tools: Annotated[Any, WithJsonSchema({"type": ["array", "null"], "maxItems": 0})] = None
    functions: Annotated[Any, WithJsonSchema({"type": ["array", "null"], "maxItems": 0})] = None
    response_format: Annotated[Any, WithJsonSchema(PLAIN)] = None

    @field_validator("tools", "functions")
    @classmethod
    def _no_tools(cls, value: Any) -> None:
        if value not in (None, []):
            raise ValueError("is not supported here, leave it out")

    @field_validator("response_format")
    @classmethod
    def _plain_text(cls, value: Any) -> None:
        if value not in (None, {"type": "text"}):
            raise ValueError('only {"type": "text"} is supported')

    @model_validator(mode="after")
    def _alternatives_of_something(self) -> "ChatBody":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        return self

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives a token; None: no probabilities at all."""
        return (self.top_logprobs or 0) if self.logprobs else None


class HydraServeBody(BaseModel):
    """POST /: the request of HydraServe's artifact; a streamed one's prompt is a message list as JSON text."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, protected_namespaces=())

    id: Annotated[str, Field(max_length=256)] | int | None = None
    model: Annotated[str, Field(min_length=1)]
    prompt: Annotated[str, WithJsonSchema(TEXT)]
    stream: Flag = None
    max_tokens: Count = None


MESSAGES: TypeAdapter[list[Message]] = TypeAdapter(Messages)
"""Reads a message list on its own."""
