"""The description of v2: its routes and codes are those that there are, and every answer is as it says."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    missing_required_header,
    negative_data_rejection,
    positive_data_acceptance,
    unsupported_method,
)
from starlette.routing import Route

from serve_app.api.app import create_app
from serve_app.api.v2 import routes
from serve_app.api.v2.document import DOCUMENT, PATHS
from serve_app.api.v2.failures import CODES
from serve_app.service.request_limits import Limits
from serve_app.service.service import Service
from serve_app.store.files.volume import Volume
from tests.unit.api.http_server import Background, serve
from tests.unit.api.scripted_replica import scripted

v2 = schemathesis.openapi.from_dict(DOCUMENT)
v2.config.generation.update(modes=[GenerationMode.POSITIVE, GenerationMode.NEGATIVE])

# A graph that fits may name no class that there is; a text may have a NUL, a path may leave its folder. What a query is
# told is read before any schema: an unknown parameter, or one that is there twice.
EXCLUDED = [positive_data_acceptance, negative_data_rejection, unsupported_method, missing_required_header]


@pytest.fixture(scope="module")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server whose jobs nobody runs."""
    root = tmp_path_factory.mktemp("store")
    volume = Volume({"input": root / "input", "output": root / "output", "temp": root / "temp"})
    with Background() as background, background.entered(scripted()) as replica:
        limits = Limits(body_bytes=10_000, upload_bytes=200_000, poll_s=1.0)
        service = Service(replica.scheduler.client, volume, lambda _: ["sd15.safetensors"], limits)
        for url in serve(create_app(service), background):
            yield f"{url}/api/v2"


def test_the_document_has_the_routes_that_there_are():
    described = {(path, method.upper()) for path, operations in PATHS.items() for method in operations}
    there = {
        (route.path, method)
        for router in routes.ROUTERS
        for route in router.routes
        if isinstance(route, Route) and route.path != "/openapi.json"
        for method in route.methods or ()
    }
    # What answers GET answers HEAD.
    reads = {(path, "HEAD") for path, method in there if method == "GET"}
    assert described | reads == there | reads


async def test_the_document_is_served_with_its_address_and_is_one(client: httpx.AsyncClient):
    served = (await client.get("/api/v2/openapi.json")).json()
    assert served["servers"] == [{"url": "/api/v2"}]
    assert served["paths"] == json.loads(json.dumps(PATHS))
    for schema in served["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_every_error_code_is_documented_for_a_route_or_for_all():
    told = {
        code
        for operations in PATHS.values()
        for operation in operations.values()
        for status, answer in operation["responses"].items()
        if status >= "400"
        for code in answer["description"].split(", ")
    }
    assert CODES.keys() - told == {"method_not_allowed"}, "which no route answers"


CONTRACT = {
    *("invalid_workflow", "workflow_format_ui", "missing_asset", "idempotency_key_reuse", "metadata_invalid"),
    *("hash_mismatch", "asset_in_use", "blob_not_found", "not_found", "output_unavailable", "payload_too_large"),
    *("queue_full", "deployment_not_ready", "too_many_streams", "rate_limited", "deployment_stopped"),
    *("insufficient_credits", "unauthorized", "forbidden", "forbidden_origin", "invalid_request", "invalid_cursor"),
    *("invalid_metadata_filter", "upstream_error", "upstream_unreachable", "not_implemented"),
}
"""The codes that comfy-sdk 0.5.0 knows errors by."""
NEVER = {
    "deployment_stopped": "a server that answers takes jobs, or will: deployment_not_ready",
    "insufficient_credits": "nothing is paid for: what a tenant has used up is rate_limited",
    "not_implemented": "every route of the contract is there",
}
"""Those that no request is answered, and why."""


def test_every_code_of_the_contract_is_there_or_is_left_out_with_a_reason():
    assert CONTRACT - CODES.keys() == NEVER.keys()


@v2.exclude(path="/jobs/{job_id}/events").parametrize()
@settings(suppress_health_check=list(HealthCheck))
def test_every_answer_is_one_that_the_document_describes(case, base_url):
    response = case.call(base_url=base_url)
    # A path that no route has, or a query that is none, is answered before the dialect's routes are reached.
    if response.status_code not in (404, 405) or response.headers.get("content-type") == "application/json":
        case.validate_response(response, excluded_checks=EXCLUDED)
    assert response.status_code < 500
    assert "x-comfy-request-id" in response.headers
