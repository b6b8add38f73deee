"""POST /: requests as HydraServe's artifact sends them: ``{id, model, prompt, stream}``.

A prompt that is not streamed is text to continue; one that is streamed is a message list as JSON text, answered with
plain text that ends with ``#`` and the number of output tokens. How a request that is not streamed is answered there is
not known here: it is JSON with the text and that number.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass

from pydantic import TypeAdapter
from starlette.requests import Request
from starlette.responses import Response

from aebench.service.answering import answer
from aebench.service.api_errors import ApiError, encoded
from aebench.service.bodies import MESSAGES, HydraServeBody
from aebench.service.engine_port import Ask
from aebench.service.event_stream import Chunk
from aebench.service.generation import Answer, Generation
from aebench.service.intake import parse, read
from aebench.service.served_model import ServedModel
from aebench.service.service import Service
from serving.core.request import Sampling
from serving.units import Tokens

BODY = TypeAdapter(HydraServeBody)
MAX_TOKENS: Tokens = 1024
"""The artifact's; less when the prompt leaves less room."""


async def hydraserve(request: Request) -> Response:
    """Answer in the artifact's way; greedy, so that runs can be compared."""
    service: Service = request.app.state.service
    body = await read(request, BODY, service.limits)
    model = service.model(body.model)
    await service.admit(model, 1)
    generation = service.start([await _ask(body, model)], request)
    return await answer(service, generation, HydraServeAnswer(body, generation), bool(body.stream))


async def _ask(body: HydraServeBody, model: ServedModel) -> Ask:
    if body.stream:
        prompt = await model.prompt_of_chat(parse(MESSAGES, body.prompt, "prompt"), "prompt")
    else:
        prompt = await model.prompt_of(body.prompt)
    room = model.room(prompt, body.max_tokens, "max_tokens" if body.max_tokens else "prompt")
    max_tokens = body.max_tokens or min(room, MAX_TOKENS)
    return Ask(model=model.name, prompt=prompt, max_tokens=max_tokens, sampling=Sampling())


@dataclass(slots=True, eq=False)
class HydraServeAnswer:
    """Words a Generation as the artifact does."""

    body: HydraServeBody
    generation: Generation
    media_type: str = "text/plain; charset=utf-8"

    def whole(self, answers: list[Answer]) -> Chunk:
        """The answer in one piece."""
        told = {"id": self.body.id, "model": self.body.model, "text": answers[0].text}
        return {**told, "completion_tokens": self.generation.num_output_tokens}

    async def parts(self) -> AsyncIterator[bytes]:
        """Text as it is made, then the count; a failure midway is an error object in place of the count."""
        try:
            while (found := await self.generation.next()) is not None:
                if found[1].text:
                    yield found[1].text.encode("utf-8", "replace")
            yield f"#{self.generation.num_output_tokens}".encode()
        except ApiError as error:
            if error.status < 500:
                raise
            yield encoded(error.body())
