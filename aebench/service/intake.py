"""Reads a request into a body: its bytes, up to a limit of size and time, its JSON; an ApiError says what is wrong."""

import asyncio
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import ClientDisconnect, Request

from aebench.service.api_errors import SHOWN, ApiError, quoted, refused
from aebench.service.limits import Limits

Body = TypeVar("Body")
PREFIX = "Value error, "
"""What pydantic puts before the message of a ValueError of ours."""


async def read(request: Request, body: TypeAdapter[Body], limits: Limits) -> Body:
    """The body of a request."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise ApiError(
            415, f"expected Content-Type: application/json, got {quoted(kind)}", code="unsupported_media_type"
        )
    return parse(body, await _bytes(request, limits))


def parse(body: TypeAdapter[Body], text: bytes | str, inside: str | None = None) -> Body:
    """JSON as a body; ``inside`` names the parameter whose value the text is."""
    try:
        return body.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise _refusal(first, inside) from None


async def _bytes(request: Request, limits: Limits) -> bytes:
    declared = request.headers.get("content-length", "0")
    if not declared.isascii() or not declared.isdigit():
        raise ApiError(400, f"Content-Length is {quoted(declared)}, expected a number")
    if len(declared) > 18 or int(declared) > limits.body_bytes:
        raise _too_large(limits)
    read = bytearray()
    try:
        async with asyncio.timeout(limits.body_timeout):
            async for chunk in request.stream():
                read += chunk
                if len(read) > limits.body_bytes:
                    raise _too_large(limits)
    except TimeoutError:
        message = f"the body did not arrive within {limits.body_timeout:g} s"
        raise ApiError(408, message, headers={"Connection": "close"}) from None
    except ClientDisconnect:
        raise ApiError(499, "the client went away") from None
    return bytes(read)


def _too_large(limits: Limits) -> ApiError:
    message = f"the body is larger than {limits.body_bytes} bytes"
    return ApiError(413, message, code="body_too_large", headers={"Connection": "close"})


def _refusal(error: ErrorDetails, inside: str | None) -> ApiError:
    message = error["msg"].removeprefix(PREFIX)
    if error["type"] == "json_invalid":
        return refused(inside, f"{inside}: {message}") if inside else ApiError(400, message, code="invalid_json")
    param = (inside or "") + _path(error["loc"])
    if not param:
        return ApiError(400, message, code="invalid_value")
    return refused(param, f"{param}: {message[:1].lower()}{message[1:]}")


def _path(loc: tuple[int | str, ...]) -> str:
    """``messages[0].content``."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc]
    return "".join(parts).removeprefix(".")[:SHOWN]
