"""Turns a Generation into an answer: in one piece, or as a stream; either way the Generation is closed at its end."""

from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Protocol

from starlette.responses import Response

from aebench.service.api_errors import JsonResponse
from aebench.service.event_stream import Chunk, EventStream
from aebench.service.generation import Answer, Generation
from aebench.service.service import Service


class Wording(Protocol):
    """How an endpoint words what was generated."""

    media_type: str
    """Of its streams."""

    def whole(self, answers: list[Answer]) -> Chunk:
        """The answer in one piece."""
        ...

    def parts(self) -> AsyncIterator[bytes]:
        """The answer as it is made."""
        ...


async def answer(service: Service, generation: Generation, wording: Wording, stream: bool) -> Response:
    """The response; one that cannot begin is an ApiError still, so that it has a status of its own."""
    with ExitStack() as ending:
        ending.callback(generation.close)
        if not stream:
            return JsonResponse(wording.whole(await generation.all()))
        await generation.begun()
        ending.pop_all()  # the stream closes it
        return EventStream(service, generation, wording.parts(), wording.media_type)
