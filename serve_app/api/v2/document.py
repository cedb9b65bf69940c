"""The OpenAPI 3.1 document of Comfy API v2 as this server implements it.

Written from the public description (openapi-v2.yaml, version 2.0.0) and comfy-sdk 0.5.0; codes come from `failures`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from serve_app import __version__
from serve_app.api.routing import Routes
from serve_app.api.strict_json import JsonResponse
from serve_app.api.v2.failures import CODES
from serve_app.api.v2.labels import KEY_LENGTH, PAIRS
from serve_app.api.v2.shapes import PREFIX, STATES
from serve_app.api.v2.submission import CREDENTIAL

router = Routes()

ALWAYS = (
    *("invalid_request", "unauthorized", "forbidden", "forbidden_origin"),
    *("deployment_not_ready", "rate_limited", "upstream_error"),
)
"""Error codes of every operation."""
AWAY = ("upstream_unreachable",)


@router.read("/openapi.json")
async def get_document(request: Request) -> Response:
    """Return the document, with this server as its address."""
    return JsonResponse({**DOCUMENT, "servers": [{"url": request.scope.get("root_path", "") + PREFIX}]})


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def _json(schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _answers(found: dict[str, Any], codes: Iterable[str]) -> dict[str, Any]:
    """Return an operation's responses: these, and one for each status of its error codes."""
    by_status: dict[int, list[str]] = {}
    for code in dict.fromkeys((*codes, *ALWAYS, *AWAY)):
        by_status.setdefault(CODES[code], []).append(code)
    refused = {str(status): _json(_ref("Error"), ", ".join(by_status[status])) for status in sorted(by_status)}
    return {**found, **refused}


def _operation(
    name: str,
    summary: str,
    found: dict[str, Any],
    codes: Iterable[str] = (),
    parameters: Iterable[dict[str, Any]] = (),
    body: dict[str, Any] | None = None,
) -> dict[str, Any]:
    described = {"operationId": name, "summary": summary, "responses": _answers(found, codes)}
    given = {"parameters": list(parameters)} if parameters else {}
    return {**described, **given, **({} if body is None else {"requestBody": {"required": True, "content": body}})}


def _in_path(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _in_query(name: str, schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema, **more}


_UUID = {"type": "string", "format": "uuid"}
_TIME = {"type": "string", "format": "date-time"}
_HASH = {"type": "string", "pattern": "^blake3:[0-9a-f]{64}$"}
_COUNT = {"type": "integer", "minimum": 0}
_TEXT = {"type": "string"}
_NAME = {"type": "string", "minLength": 1, "maxLength": 1024}
_LABELS = {
    "type": "object",
    "maxProperties": PAIRS,
    "propertyNames": {"pattern": f"^[A-Za-z0-9_.-]{{1,{KEY_LENGTH}}}$"},
    "additionalProperties": {"type": "string", "maxLength": 256},
}
_EXPIRES = {"type": "integer", "minimum": 60, "maximum": 604_800}
_TAGS = {"type": "array", "maxItems": 32, "items": {"type": "string", "maxLength": 256}}
_JOB_ID, _ASSET_ID = _in_path("job_id", _UUID), _in_path("asset_id", _UUID)
_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[ -~]+$"},
}


def _object(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": list(required),
        "properties": {**required, **optional},
        "additionalProperties": False,
    }


_LINK = {"url": {"type": "string", "format": "uri"}, "url_expires_at": _TIME}
SCHEMAS: dict[str, Any] = {
    "Error": _object(
        {
            "error": _object(
                {
                    "code": {"type": "string", "enum": sorted(CODES)},
                    "message": _TEXT,
                    "details": _or_null({"type": "object"}),
                }
            )
        }
    ),
    "Progress": _object(
        {"value": {"type": "number", "minimum": 0, "maximum": 1}, "nodes_done": _COUNT, "nodes_total": _COUNT},
        current_node=_or_null(_TEXT),
        current_node_class=_or_null(_TEXT),
        step=_or_null(_COUNT),
        steps=_or_null(_COUNT),
        message=_or_null(_TEXT),
        seconds_left=_or_null({"type": "number", "minimum": 0}),
    ),
    "Output": _object(
        {
            "node_id": _TEXT,
            "name": _TEXT,
            "type": {"type": "string", "enum": ["image", "video", "audio", "text", "file", "latent"]},
            "content_type": _TEXT,
            "size_bytes": _COUNT,
            "id": _UUID,
            "hash": _or_null(_HASH),
            **_LINK,
        },
        job_id=_UUID,
    ),
    "JobError": _object(
        {"code": _TEXT, "message": _TEXT},
        node_id=_or_null(_TEXT),
        class_type=_or_null(_TEXT),
        traceback=_or_null(_TEXT),
    ),
    "Job": _object(
        {
            "id": _UUID,
            "status": {"type": "string", "enum": [*STATES.values(), "canceling", "expired"]},
            "created_at": _TIME,
            "started_at": _or_null(_TIME),
            "completed_at": _or_null(_TIME),
            "expires_at": _TIME,
            "queue_position": _or_null({"type": "integer", "minimum": 1}),
            "progress": _or_null(_ref("Progress")),
            "outputs": {"type": "array", "items": _ref("Output")},
            "error": _or_null(_ref("JobError")),
            "urls": _object({"self": _TEXT, "events": _TEXT, "cancel": _TEXT}),
        },
        metrics=_object({"queue_ms": _or_null(_COUNT), "execution_ms": _or_null(_COUNT)}),
        metadata=_LABELS,
    ),
    "ListedJob": _object(
        {"id": _UUID, "status": {"type": "string", "enum": [*STATES.values()]}},
        created_at=_TIME,
        create_time=_TIME,
        update_time=_TIME,
        metadata=_LABELS,
    ),
    "JobList": _object({"jobs": {"type": "array", "items": _ref("ListedJob")}}, next_cursor=_TEXT),
    "Submission": _object(
        {"workflow": {"type": "object", "additionalProperties": {"type": "object"}}},
        extra_data=_object({}, **{CREDENTIAL: _TEXT}),
        metadata=_or_null(_LABELS),
    ),
    "Asset": _object(
        {
            "id": _UUID,
            "hash": _or_null(_HASH),
            "size_bytes": _COUNT,
            "content_type": _TEXT,
            "created_at": _TIME,
            **_LINK,
        },
        expires_at=_or_null(_TIME),
        file_path=_or_null(_TEXT),
        tags={"type": "array", "items": _TEXT},
        created_new={"type": "boolean"},
        job_id=_UUID,
    ),
    "Upload": _object(
        {"file": {"type": "string", "contentMediaType": "application/octet-stream"}},
        content_type=_TEXT,
        file_path=_NAME,
        expected_hash=_HASH,
        tags=_TAGS,
        expires_in=_EXPIRES,
    ),
    "Reference": _object(
        {"hash": _HASH}, file_path=_or_null(_NAME), tags=_or_null(_TAGS), expires_in=_or_null(_EXPIRES)
    ),
}

_JOB = _json(_ref("Job"), "the job")
_ASSET = _json(_ref("Asset"), "the asset")
_BYTES: dict[str, Any] = {"content": {"*/*": {"schema": {}}}}
_CREATION = (
    *("invalid_workflow", "workflow_format_ui", "missing_asset", "metadata_invalid", "idempotency_key_reuse"),
    *("queue_full", "payload_too_large", "request_timeout"),
)
PATHS: dict[str, Any] = {
    "/jobs": {
        "post": _operation(
            "createJob",
            "Queue a workflow; it is durable when this is answered",
            {"201": _JOB},
            _CREATION,
            [_KEY],
            {"application/json": {"schema": _ref("Submission")}},
        ),
        "get": _operation(
            "listJobs",
            "List jobs, the newest first; labels by metadata[KEY]=VALUE, three at most",
            {"200": _json(_ref("JobList"), "a page")},
            ("invalid_cursor", "invalid_metadata_filter"),
            [
                _in_query("limit", {"type": "integer", "minimum": 1, "maximum": 100}),
                _in_query("cursor", _TEXT),
                _in_query(
                    "metadata",
                    {**_LABELS, "maxProperties": 3},
                    style="deepObject",
                    explode=True,
                ),
            ],
        ),
    },
    "/jobs/{job_id}": {
        "get": _operation("getJob", "Show a job", {"200": _JOB}, ("not_found",), [_JOB_ID]),
    },
    "/jobs/{job_id}/workflow": {
        "get": _operation(
            "getJobWorkflow",
            "Return the graph that a job runs",
            {
                "200": _json(
                    _object({"workflow": {"type": "object"}, "format": {"type": "string", "enum": ["api"]}}), "it"
                )
            },
            ("not_found",),
            [_JOB_ID],
        ),
    },
    "/jobs/{job_id}/cancel": {
        "post": _operation("cancelJob", "Cancel a job", {"200": _JOB}, ("not_found",), [_JOB_ID]),
    },
    "/jobs/{job_id}/events": {
        "get": _operation(
            "streamJobEvents",
            "Stream a job's events (status, progress, preview, output) until it has ended",
            {"200": {"description": "events", "content": {"text/event-stream": {"schema": _TEXT}}}},
            ("not_found", "too_many_streams"),
            [_JOB_ID],
        ),
    },
    "/assets": {
        "post": _operation(
            "uploadAsset",
            "Store a file, unless its bytes are there",
            {"201": _ASSET, "200": _ASSET},
            ("hash_mismatch", "idempotency_key_reuse", "payload_too_large", "request_timeout"),
            [_KEY],
            {"multipart/form-data": {"schema": _ref("Upload")}},
        ),
    },
    "/assets/from-hash": {
        "post": _operation(
            "referToAsset",
            "Refer to bytes that are there",
            {"201": _ASSET, "200": _ASSET},
            ("blob_not_found", "payload_too_large", "request_timeout"),
            (),
            {"application/json": {"schema": _ref("Reference")}},
        ),
    },
    "/assets/by-hash/{hash}": {
        "head": _operation(
            "hasBytes",
            "Say whether bytes are there",
            {"200": {"description": "they are"}},
            ("blob_not_found",),
            [_in_path("hash", _HASH)],
        ),
    },
    "/assets/{asset_id}": {
        "get": _operation("getAsset", "Show an asset", {"200": _ASSET}, ("not_found",), [_ASSET_ID]),
        "delete": _operation(
            "deleteAsset",
            "Take an asset away; bytes that others have stay",
            {"204": {"description": "gone"}},
            ("not_found", "asset_in_use"),
            [_ASSET_ID],
        ),
    },
    "/assets/{asset_id}/content": {
        "get": _operation(
            "getAssetContent",
            "Return the bytes, or a range of them, or a link to them",
            {
                "200": {"description": "the bytes", **_BYTES},
                "206": {"description": "a range of them", **_BYTES},
                "304": {"description": "they are as they were"},
                "307": {"description": "a link to them"},
            },
            ("not_found", "output_unavailable", "range_not_satisfiable"),
            [_ASSET_ID, {"name": "Range", "in": "header", "schema": _TEXT}],
        ),
    },
}
DOCUMENT: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "Comfy API v2 of serve-app", "version": __version__},
    "paths": PATHS,
    "components": {"schemas": SCHEMAS},
}
