"""The published OpenAPI schema, generated from the request models.

Threat model: none; the schema is public.
Source: OpenAPI 3.1.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from pydantic.json_schema import models_json_schema

from transom.serving.gateway.requests import ChatRequest, CompletionRequest
from transom.serving.gateway.responses import ResponsesRequest

_ERROR = {
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
                "code": {"type": "string"},
            },
        }
    },
}
_STATUSES = {
    "400": "Refused: malformed, unknown or unprotectable; nothing was sent.",
    "401": "The API key is missing or wrong.",
    "403": "The Host or Origin header names another machine.",
    "404": "No such model.",
    "413": "The request is too large.",
    "415": "The content type is not application/json.",
    "429": "The privacy budget is spent and nothing was sent, or the engine is busy.",
    "502": "The engine is down or answers garbage.",
    "503": "The ledger cannot record a charge; nothing was sent.",
    "504": "The engine did not answer in time.",
}
_HEADERS = [
    ("X-Transom-Session", "Names the conversation, so that resent messages cost nothing.", 256),
    ("X-Transom-Show-Host", "1 adds what the host saw to the answer.", 1),
]


def openapi() -> dict[str, Any]:
    """The schema as a JSON-ready dictionary."""
    models = [(one, "validation") for one in (ChatRequest, CompletionRequest, ResponsesRequest)]
    _, definitions = models_json_schema(models, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    return {
        "openapi": "3.1.0",
        "info": {"title": "Transom gateway", "version": version("transom")},
        "paths": {
            "/v1/chat/completions": {"post": _generation("ChatRequest", "Answer a conversation.")},
            "/v1/completions": {"post": _generation("CompletionRequest", "Continue a prompt.")},
            "/v1/responses": {"post": _generation("ResponsesRequest", "Answer a conversation, statelessly.")},
            "/v1/models": {
                "get": _page("The published model.", "application/json", ("401", "403", "502", "504"))
            },
            "/v1/models/{name}": {"get": _model_page()},
            "/healthz": {"get": _page("Alive.", "application/json", ("403",))},
            "/metrics": {"get": _page("Prometheus counters.", "text/plain", ("401", "403"))},
        },
        "components": {
            "schemas": {**definitions["$defs"], "Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _generation(model: str, summary: str) -> dict[str, Any]:
    answers: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    answers["text/event-stream"] = {"schema": {"type": "string"}}
    return {
        "summary": summary,
        "parameters": [
            {
                "name": name,
                "in": "header",
                "description": text,
                "schema": {"type": "string", "maxLength": length},
            }
            for name, text, length in _HEADERS
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{model}"}}},
        },
        "responses": {
            "200": {"description": "The answer.", "content": answers},
            **_failures(tuple(_STATUSES)),
        },
    }


def _model_page() -> dict[str, Any]:
    page = _page("A model by its name.", "application/json", ("401", "403", "404", "502", "504"))
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    return page | {"parameters": [name]}


def _page(summary: str, media: str, failures: tuple[str, ...] = ()) -> dict[str, Any]:
    answer = {"description": summary, "content": {media: {}}}
    return {"summary": summary, "responses": {"200": answer, **_failures(failures)}}


def _failures(statuses: tuple[str, ...]) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {status: {"description": _STATUSES[status], "content": content} for status in statuses}
