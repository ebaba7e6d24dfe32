"""The published schema, and what a fuzzer that reads it can break: nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error

from .conftest import Served, get, post

Serve = Callable[..., Served]
EXAMPLES = 40


def test_schemathesis_finds_no_server_error(serve: Serve) -> None:
    served = serve()
    schema = schemathesis.openapi.from_url(served.url + "/openapi.json")
    seen: set[int] = set()
    for found in schema.get_all_operations():
        operation: Any = found.ok()

        @settings(
            max_examples=EXAMPLES, deadline=None, database=None, derandomize=True,
            phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        def fuzz(case: Any) -> None:
            answer = case.call(base_url=served.url, timeout=20)
            seen.add(answer.status_code)
            case.validate_response(answer, checks=[not_a_server_error])

        from hypothesis import given

        given(case=operation.as_strategy())(fuzz)()
    assert {200, 404} <= seen  # it got through to the engine, and to the model check


def test_schema_names_every_field_the_models_accept(serve: Serve) -> None:
    from transom.serving.gateway.requests import ChatRequest, CompletionRequest
    from transom.serving.gateway.responses import ResponsesRequest

    schemas = json.loads(get(serve().url, "/openapi.json")[1])["components"]["schemas"]
    for model in (ChatRequest, CompletionRequest, ResponsesRequest):
        assert set(schemas[model.__name__]["properties"]) == set(model.model_fields)
        assert schemas[model.__name__]["additionalProperties"] is False


def test_documented_statuses_are_those_of_the_errors(serve: Serve) -> None:
    served = serve()
    operations = json.loads(get(served.url, "/openapi.json")[1])["paths"]
    documented = operations["/v1/chat/completions"]["post"]["responses"]
    body = {"model": "echo", "messages": [{"role": "user", "content": "x"}]}
    for request in (body, body | {"model": "no"}, body | {"n": 0}):
        assert str(post(served.url, request)[0]) in documented
