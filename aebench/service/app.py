"""The application: routes, the API key, and errors as OpenAI words them."""

import asyncio

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aebench.service.api_errors import ApiError, JsonResponse, error_response, quoted
from aebench.service.chat import chat
from aebench.service.completions import complete
from aebench.service.hydraserve import hydraserve
from aebench.service.meters import CONTENT_TYPE
from aebench.service.openapi import document
from aebench.service.served_model import ServedModel
from aebench.service.service import Service

OPEN_PATHS = ("/health", "/metrics", "/openapi.json")
"""Served without the API key; they tell counts, nothing that clients sent."""


def application(service: Service) -> Starlette:
    """The ASGI application over a service."""
    routes = [
        Route("/v1/completions", complete, methods=["POST"]),
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/models", models, methods=["GET"]),
        Route("/v1/models/{name:path}", model, methods=["GET"]),
        Route("/health", health, methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
        Route("/openapi.json", openapi, methods=["GET"]),
        Route("/", hydraserve, methods=["POST"]),
    ]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(Gate, service=service, paths=tuple(route.path for route in routes))],
        exception_handlers={ApiError: _as_said, HTTPException: _as_starlette_says, Exception: _as_a_bug},
    )
    app.router.redirect_slashes = False
    app.state.service = service
    return app


async def models(request: Request) -> Response:
    """GET /v1/models."""
    served = request.app.state.service.models.values()
    return JsonResponse({"object": "list", "data": [_described(model) for model in served]})


async def model(request: Request) -> Response:
    """GET /v1/models/{id}; ids may have slashes."""
    return JsonResponse(_described(request.app.state.service.model(request.path_params["name"])))


def _described(model: ServedModel) -> dict[str, object]:
    told = {"id": model.name, "object": "model", "created": model.created, "owned_by": "aebench"}
    return {**told, "max_model_len": model.max_context}


async def health(request: Request) -> Response:
    """GET /health: 200 when requests are taken, and by how many instances."""
    service: Service = request.app.state.service
    told: dict[str, object] = {"status": await service.state()}
    if told["status"] in ("ready", "starting"):
        models = (await service.stats()).models
        told["instances"] = {
            "ready": sum(model.instances_ready for model in models),
            "starting": sum(model.instances_starting for model in models),
        }
    return JsonResponse(told, status_code=200 if told["status"] == "ready" else 503)


async def metrics(request: Request) -> Response:
    """GET /metrics."""
    service: Service = request.app.state.service
    stats = await asyncio.to_thread(service.engine.stats)
    return Response(service.meters.text(stats, service.num_queued), headers={"Content-Type": CONTENT_TYPE})


async def openapi(request: Request) -> Response:
    """GET /openapi.json."""
    del request
    return JsonResponse(document())


class Gate:
    """Around all routes: asks for the API key, counts answers by route and status."""

    def __init__(self, app: ASGIApp, service: Service, paths: tuple[str, ...]) -> None:
        self._app = app
        self._service = service
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._service.meters.answered(self._route(scope["path"]), message["status"])
            await send(message)

        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._service.knows(_authorization(scope)):
            await self._app(scope, receive, counting)
            return
        error = ApiError(
            401,
            "wrong or missing API key: send it as Authorization: Bearer KEY",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await error_response(error)(scope, receive, counting)

    def _route(self, path: str) -> str:
        """The route as a label: as many as there are routes, whatever clients ask for."""
        if path in self._paths:
            return path
        return "/v1/models/{name}" if path.startswith("/v1/models/") else "other"


def _authorization(scope: Scope) -> str | None:
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == b"authorization"), None)


async def _as_said(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, ApiError)
    return error_response(error)


async def _as_starlette_says(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    place = f"{request.method} {quoted(request.url.path)}"
    messages = {404: f"there is no {place} here", 405: f"{place}: expected another method"}
    message = messages.get(error.status_code, str(error.detail))
    return error_response(ApiError(error.status_code, message, headers=error.headers))


async def _as_a_bug(request: Request, error: Exception) -> Response:
    del request, error  # the server logs its traceback
    return error_response(ApiError(500, "the server made an error; its log has the traceback"))
