"""The service's OpenAPI document, made from the bodies it validates with."""

from functools import cache
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from aebench.service.bodies import ChatBody, CompletionBody, HydraServeBody

POSTED: dict[str, tuple[type[BaseModel], str]] = {
    "/v1/completions": (CompletionBody, "Continue prompts"),
    "/v1/chat/completions": (ChatBody, "Answer a chat"),
    "/": (HydraServeBody, "Answer as HydraServe's artifact does"),
}
READ = {
    "/v1/models": "The models",
    "/v1/models/{name}": "One model",
    "/health": "Whether requests are taken",
    "/metrics": "Counts and times, as Prometheus reads them",
    "/openapi.json": "This document",
}
REFUSALS = {
    "400": "A parameter is wrong, or the context too long",
    "401": "Wrong or missing API key",
    "404": "Unknown model",
    "408": "The body came too slowly",
    "413": "The body is too large",
    "415": "The body is not JSON",
    "429": "The queue is full",
    "503": "Starting, shutting down, or the engine lost the request",
}
ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


@cache
def document() -> dict[str, Any]:
    """OpenAPI 3.1."""
    _, schemas = models_json_schema(
        [(body, "validation") for body, _ in POSTED.values()], ref_template="#/components/schemas/{model}"
    )
    paths = {path: {"post": _post(body.__name__, summary)} for path, (body, summary) in POSTED.items()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "aebench serve", "version": version("aebench")},
        "paths": {**paths, **{path: {"get": _get(path, summary)} for path, summary in READ.items()}},
        "components": {
            "schemas": {**schemas["$defs"], "Error": ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _post(body: str, summary: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{body}"}}}
    answers = {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}, "text/plain": {}}
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": content},
        "responses": {"200": {"description": "The answer", "content": answers}, **_refusals(REFUSALS)},
    }


def _get(path: str, summary: str) -> dict[str, Any]:
    kinds = {"text/plain": {}} if path == "/metrics" else {"application/json": {"schema": {"type": "object"}}}
    codes = {code: REFUSALS[code] for code in ("401", "404", "503")}
    answer: dict[str, Any] = {
        "summary": summary,
        "responses": {"200": {"description": summary, "content": kinds}, **_refusals(codes)},
    }
    if "{name}" in path:
        answer["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
    return answer


def _refusals(codes: dict[str, str]) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {code: {"description": what, "content": content} for code, what in codes.items()}
