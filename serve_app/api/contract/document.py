"""The contract's document at `/openapi.json`, and `/docs`: Swagger UI over it, served from an installed package.

Nothing is fetched from a CDN, so `/docs` works on a machine without internet.
"""

from __future__ import annotations

from importlib.resources import files

from fastapi.openapi.docs import get_swagger_ui_html
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from serve_app.api.routing import Routes

router = Routes()

_ASSETS = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon.png": "image/png",
}


@router.read("/openapi.json")
async def get_document() -> Response:
    """Return the contract, with this server as its only address."""
    return Response(
        files("serve_app.api.contract").joinpath("openapi.json").read_bytes(), media_type="application/json"
    )


@router.read("/docs")
async def get_docs(request: Request) -> Response:
    """Return Swagger UI's page."""
    root = request.scope.get("root_path", "").rstrip("/")
    return get_swagger_ui_html(
        openapi_url=f"{root}/openapi.json",
        title="serve_app",
        swagger_js_url=f"{root}/docs/swagger-ui-bundle.js",
        swagger_css_url=f"{root}/docs/swagger-ui.css",
        swagger_favicon_url=f"{root}/docs/favicon.png",
    )


@router.read("/docs/{name}")
async def get_asset(request: Request) -> Response:
    """Return a file of Swagger UI."""
    name = request.path_params["name"]
    if name not in _ASSETS:
        raise HTTPException(404)
    asset = files("fastapi_offline").joinpath("static", name)
    return Response(asset.read_bytes(), media_type=_ASSETS[name], headers={"Cache-Control": "max-age=86400"})
