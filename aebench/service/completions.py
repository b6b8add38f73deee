"""POST /v1/completions."""

import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

from pydantic import TypeAdapter
from starlette.requests import Request
from starlette.responses import Response

from aebench.service.answering import answer
from aebench.service.asking import asks, usage
from aebench.service.bodies import CompletionBody
from aebench.service.event_stream import SSE, Chunk, events
from aebench.service.generation import Answer, Generation
from aebench.service.intake import read
from aebench.service.served_model import ServedModel
from aebench.service.service import Service
from aebench.service.token_logprobs import of_completion
from serving.live.output import Output, TokenLogprob
from serving.units import Tokens

BODY = TypeAdapter(CompletionBody)
DEFAULT_MAX_TOKENS: Tokens = 16
"""OpenAI's."""


async def complete(request: Request) -> Response:
    """Continue each prompt n times."""
    service: Service = request.app.state.service
    body = await read(request, BODY, service.limits)
    model = service.model(body.model)
    await service.admit(model, len(body.prompt) * body.num_choices)
    prompts = [await model.prompt_of(prompt) for prompt in body.prompt]
    wanted = asks(body, model, prompts, body.max_tokens or DEFAULT_MAX_TOKENS, body.logprobs)
    generation = service.start(wanted, request)
    return await answer(service, generation, Completion(body, model, prompts, generation), bool(body.stream))


@dataclass(slots=True, eq=False)
class Completion:
    """Words a Generation as OpenAI's ``text_completion``."""

    body: CompletionBody
    model: ServedModel
    prompts: list[tuple[int, ...]]
    generation: Generation
    head: Chunk = field(init=False)
    media_type: str = SSE
    _offsets: dict[int, int] = field(default_factory=dict)
    """Characters that each answer's tokens have so far; an answer that is not here has not begun."""

    def __post_init__(self) -> None:
        self.head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self.model.name,
        }

    def whole(self, answers: list[Answer]) -> Chunk:
        """The answer in one piece."""
        choices = [
            self._choice(index, self._echo(index) + answer.text, answer.logprobs, answer.finish_reason)
            for index, answer in enumerate(answers)
        ]
        return {**self.head, "choices": choices, "usage": usage(self.prompts, self.generation.num_output_tokens)}

    def parts(self) -> AsyncIterator[bytes]:
        """The answer as events."""
        return events(self.generation, self.chunks, self.tail)

    def chunks(self, index: int, output: Output) -> Iterator[Chunk]:
        """The pieces of an answer; none for tokens whose text is held back."""
        text = output.text if index in self._offsets else self._echo(index) + output.text
        if text or output.logprobs or output.finish_reason:
            choice = self._choice(index, text, output.logprobs, output.finish_reason)
            yield {**self.head, "choices": [choice], **({"usage": None} if self.body.wants_usage else {})}
        self._offsets.setdefault(index, 0)

    def tail(self) -> Iterator[Chunk]:
        """The counts, if the client wants them."""
        if self.body.wants_usage:
            yield {**self.head, "choices": [], "usage": usage(self.prompts, self.generation.num_output_tokens)}

    def _echo(self, index: int) -> str:
        if not self.body.echo:
            return ""
        prompt = self.body.prompt[index // self.body.num_choices]
        return prompt if isinstance(prompt, str) else self.model.text_of(prompt)

    def _choice(
        self, index: int, text: str, logprobs: "tuple[TokenLogprob, ...] | list[TokenLogprob]", reason: str | None
    ) -> Chunk:
        told = None
        if self.body.logprobs is not None:
            offset = self._offsets.get(index, 0)
            told = of_completion(self.model, logprobs, offset)
            self._offsets[index] = offset + sum(len(self.model.token(entry.token_id)) for entry in logprobs)
        return {"index": index, "text": text, "logprobs": told, "finish_reason": reason}
