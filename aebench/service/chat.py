"""POST /v1/chat/completions."""

import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

from pydantic import TypeAdapter
from starlette.requests import Request
from starlette.responses import Response

from aebench.service.answering import answer
from aebench.service.asking import asks, usage
from aebench.service.bodies import ChatBody
from aebench.service.event_stream import SSE, Chunk, events
from aebench.service.generation import Answer, Generation
from aebench.service.intake import read
from aebench.service.served_model import ServedModel
from aebench.service.service import Service
from aebench.service.token_logprobs import of_chat
from serving.live.output import Output

BODY = TypeAdapter(ChatBody)


async def chat(request: Request) -> Response:
    """Answer a chat n times."""
    service: Service = request.app.state.service
    body = await read(request, BODY, service.limits)
    model = service.model(body.model)
    await service.admit(model, body.num_choices)
    prompt = await model.prompt_of_chat(body.messages)
    wanted = asks(body, model, [prompt], body.max_completion_tokens or body.max_tokens, body.num_logprobs)
    generation = service.start(wanted, request)
    return await answer(service, generation, ChatAnswer(body, model, prompt, generation), bool(body.stream))


@dataclass(slots=True, eq=False)
class ChatAnswer:
    """Words a Generation as OpenAI's ``chat.completion``."""

    body: ChatBody
    model: ServedModel
    prompt: tuple[int, ...]
    generation: Generation
    head: Chunk = field(init=False)
    media_type: str = SSE
    _begun: set[int] = field(default_factory=set)
    """Answers whose role is told."""

    def __post_init__(self) -> None:
        self.head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion.chunk" if self.body.stream else "chat.completion",
            "created": int(time.time()),
            "model": self.model.name,
        }

    def whole(self, answers: list[Answer]) -> Chunk:
        """The answer in one piece."""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": answer.text, "refusal": None},
                "logprobs": of_chat(self.model, answer.logprobs) if self.body.logprobs else None,
                "finish_reason": answer.finish_reason,
            }
            for index, answer in enumerate(answers)
        ]
        return {**self.head, "choices": choices, "usage": usage([self.prompt], self.generation.num_output_tokens)}

    def parts(self) -> AsyncIterator[bytes]:
        """The answer as events."""
        return events(self.generation, self.chunks, self.tail)

    def chunks(self, index: int, output: Output) -> Iterator[Chunk]:
        """The pieces of an answer: its role, its text, how it ended; none for tokens whose text is held back."""
        if index not in self._begun:
            self._begun.add(index)
            yield self._chunk(index, {"role": "assistant", "content": ""})
        if output.text or output.logprobs:
            logprobs = of_chat(self.model, output.logprobs) if self.body.logprobs else None
            yield self._chunk(index, {"content": output.text}, logprobs=logprobs)
        if output.finish_reason:
            yield self._chunk(index, {}, finish_reason=output.finish_reason)

    def tail(self) -> Iterator[Chunk]:
        """The counts, if the client wants them."""
        if self.body.wants_usage:
            yield {**self.head, "choices": [], "usage": usage([self.prompt], self.generation.num_output_tokens)}

    def _chunk(
        self, index: int, delta: Chunk, logprobs: Chunk | None = None, finish_reason: str | None = None
    ) -> Chunk:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return {**self.head, "choices": [choice], **({"usage": None} if self.body.wants_usage else {})}
