"""Our native routes beside those of ComfyUI's own OpenAPI document, which also describes its maker's cloud.

comfyui_openapi.json has what is compared of the document of ComfyUI 0.33.0; `openapi_facts` makes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.routing import Route

from serve_app.api.comfy import routes as native
from tests.unit.api.openapi_facts import FACTS, without_names

ROUTES: dict[str, dict[str, list[str]]] = json.loads(FACTS.read_text())

TAGS = "nobody counts the tags of all assets: they are read stretch by stretch"
CLOUD = "the cloud has it; ComfyUI's own server has no such route"
NOT_OURS = {
    "GET /api/assets/tags/refine": TAGS,
    "GET /api/tags": TAGS,
    "GET /health": "ours is /healthz, and /readyz; ComfyUI's own server has neither",
    "GET /api/billing/churnkey/auth": CLOUD,
    "POST /api/feedback": CLOUD,
    "GET /api/files/mask-layers": CLOUD,
    "GET /api/history_v2": CLOUD,
    "GET /api/history_v2/{}": CLOUD,
    "GET /api/job/{}/status": CLOUD,
    "GET /api/tasks": CLOUD,
    "GET /api/user": CLOUD,
    "GET /api/userdata/{}/publish": CLOUD,
    "POST /api/userdata/{}/publish": CLOUD,
    "GET /api/vhs/queryvideo": "a node pack brings it (VideoHelperSuite); a pack's own routes are passed on here",
    "GET /api/workflows": CLOUD,
    "POST /api/workflows": CLOUD,
    "GET /api/workflows/{}": CLOUD,
    "PATCH /api/workflows/{}": CLOUD,
    "DELETE /api/workflows/{}": CLOUD,
    "GET /api/workflows/{}/content": CLOUD,
    "POST /api/workflows/{}/fork": CLOUD,
    "POST /api/workflows/{}/versions": CLOUD,
    "GET /api/workflows/published/{}": CLOUD,
}
"""The routes that this server does not have, and why."""

OPTIONAL = {
    "GET /api/features": {"free_tier_balance": CLOUD},
    "GET /api/jobs": {"pagination.next_cursor": CLOUD},
    "GET /api/system_stats": {
        "system.cloud_version": CLOUD,
        "system.comfyui_frontend_version": "the page knows its own; packages are in comfy_package_versions",
        "system.workflow_templates_version": "packages are in comfy_package_versions",
    },
}
"""Fields of answers that the document lets a server leave out, and this one does, and why."""

ASKED = ["GET /api/features", "GET /api/jobs", "GET /api/prompt", "GET /api/queue", "GET /api/system_stats"]
"""The routes whose answer is compared: objects with names of their own, of a server that has nothing to do."""


def ours() -> set[str]:
    """Return our native routes by method and path."""
    placed = [(router, "/api") for router in (*native.ROUTERS, *native.PREFIXED)]
    placed += [(router, "") for router in native.UNPREFIXED]
    return {
        f"{method} {prefix}{without_names(route.path)}"
        for router, prefix in placed
        for route in router.routes
        if isinstance(route, Route)
        for method in route.methods
    }


def fields(value: Any, within: str = "") -> Iterator[str]:
    """Yield the fields of an answer as `openapi_facts` writes them."""
    if isinstance(value, list):
        for element in value:
            yield from fields(element, f"{within}[]")
    if isinstance(value, dict):
        for name, inner in value.items():
            field = f"{within}.{name}" if within else name
            yield field
            yield from fields(inner, field)


def test_every_route_of_comfyui_is_ours_or_is_left_out_with_a_reason():
    assert ROUTES.keys() - ours() == NOT_OURS.keys()


@pytest.mark.parametrize("route", ASKED)
async def test_an_answer_has_comfyuis_fields_but_those_left_out_with_a_reason(client, route):
    answer = (await client.get(route.removeprefix("GET "))).json()
    expected = {field.removesuffix("!") for field in ROUTES[route]["answered"]}
    lists = {field.partition("[]")[0] for field in expected if "[]" in field}
    empty = {name for name in lists if not answer[name]}
    missing = {f for f in expected - set(fields(answer)) if f.partition("[]")[0] not in empty}
    # What is in a field that is left out is left out with it.
    missing = {f for f in missing if f.rpartition(".")[0] not in missing}
    assert missing == OPTIONAL.get(route, {}).keys()
    assert not [field for field in missing if f"{field}!" in ROUTES[route]["answered"]]


async def test_a_submission_answers_what_comfyuis_does(client, example):
    answer = (await client.post("/api/prompt", json=example)).json()
    assert set(answer) == set(ROUTES["POST /api/prompt"]["answered"])
