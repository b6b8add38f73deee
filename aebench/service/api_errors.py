"""ApiError: what a client did wrong, or why it is not served now, as the error object of OpenAI's API."""

import json
from collections.abc import Mapping

from starlette.responses import Response

SHOWN = 120
"""Characters of a client's own text that an error repeats."""


class ApiError(Exception):
    """An answer other than 200: status, message, and which parameter it is about."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, object]:
        """The error object."""
        kind = KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


KINDS = {401: "authentication_error", 429: "rate_limit_error", 503: "service_unavailable_error"}
"""Error types by status; the others are invalid requests, or the server's own fault."""


def refused(param: str, message: str) -> ApiError:
    """400: a parameter has a value that it may not have."""
    return ApiError(400, message, param=param, code="invalid_value")


def unknown_model(name: str, known: list[str]) -> ApiError:
    """404: no such model here."""
    message = f"the model {quoted(name)} does not exist here; known: {', '.join(known)}"
    return ApiError(404, message, param="model", code="model_not_found")


def unavailable(message: str, retry_after: int = 1) -> ApiError:
    """503: not now."""
    return ApiError(503, message, code="unavailable", headers={"Retry-After": str(retry_after)})


def quoted(text: str) -> str:
    """A client's text inside a message, cut to a length that can be read."""
    return repr(text if len(text) <= SHOWN else text[:SHOWN] + "...")


def encoded(value: object) -> bytes:
    """JSON as it goes over the wire: UTF-8, no spaces; never NaN."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")


class JsonResponse(Response):
    """A JSON answer."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        """The body."""
        return encoded(content)


def error_response(error: ApiError) -> Response:
    """The answer that an error is."""
    return JsonResponse(error.body(), status_code=error.status, headers=error.headers)
