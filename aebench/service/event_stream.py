"""EventStream: an answer that is sent while it is made, to a reader who must keep reading."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from aebench.service.api_errors import ApiError, encoded
from aebench.service.generation import Generation
from aebench.service.service import Service
from serving.live.output import Output

Chunk = dict[str, object]
SSE = "text/event-stream"
DONE = b"data: [DONE]\n\n"
log = logging.getLogger(__name__)


class EventStream(Response):
    """Sends parts as they come. A client that goes away, or reads nothing for too long, ends its sequences."""

    def __init__(self, service: Service, generation: Generation, parts: AsyncIterator[bytes], media_type: str) -> None:
        super().__init__(media_type=media_type, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._service = service
        self._generation = generation
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        del receive  # the Generation listens to it
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for part in self._parts:
                async with asyncio.timeout(self._service.limits.stall_timeout):
                    await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except (ApiError, TimeoutError, OSError) as error:
            log.info("stream to %s ended early: %s", scope.get("client"), error)
            self._service.hang_up(scope.get("client"))
            await asyncio.sleep(0)  # the connection learns that it is lost
        finally:
            self._generation.close()


def event(chunk: Chunk) -> bytes:
    """One server-sent event."""
    return b"data: " + encoded(chunk) + b"\n\n"


async def events(
    generation: Generation, chunks: Callable[[int, Output], Iterable[Chunk]], tail: Callable[[], Iterable[Chunk]]
) -> AsyncIterator[bytes]:
    """Outputs as events, then ``[DONE]``; a failure of the engine midway is an event with an error object."""
    try:
        while (found := await generation.next()) is not None:
            for chunk in chunks(*found):
                yield event(chunk)
        for chunk in tail():
            yield event(chunk)
    except ApiError as error:
        if error.status < 500:
            raise
        yield event(error.body())
    yield DONE
