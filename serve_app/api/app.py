"""The HTTP application: the routes of all dialects over one service, and the choice of a request's dialect.

/api/v2/… is Comfy API v2. ComfyUI's other paths (/api/…, /internal/…, /ws) are native, always. At the root the routes
that only one of the other two dialects has are both served; where both have a route, the configured dialect or the
request's header decides.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.api import problems, webhooks
from serve_app.api.auth import login
from serve_app.api.auth.authentication import AuthenticationMiddleware, Authenticator
from serve_app.api.auth.origin import ANY_ORIGIN, AllowedOrigins, OriginMiddleware
from serve_app.api.comfy import failures
from serve_app.api.comfy import routes as native
from serve_app.api.comfy.jobs import websocket
from serve_app.api.comfy.page import pack_routes, page
from serve_app.api.concurrency_limits import ConcurrencyLimits, ConcurrencyMiddleware
from serve_app.api.contract import document, routes
from serve_app.api.operator import admin, model_changes, operator, overview
from serve_app.api.request_id import RequestIdMiddleware
from serve_app.api.routing import PrefixRouter, Routes, prefixed
from serve_app.api.v2 import failures as v2_failures
from serve_app.api.v2 import routes as v2
from serve_app.config.ingress import ROOT_DIALECT, Dialect
from serve_app.service.service import Service

HEADER = b"x-comfy-dialect"
"""The request header that names the dialect of a root route."""
PREFIX = "/api"
V2_PREFIX = f"{PREFIX}/v2"


def create_app(
    service: Service | Callable[[], Service],
    root_dialect: Dialect = ROOT_DIALECT,
    page_dir: Path | None = None,
    allowed: AllowedOrigins = ANY_ORIGIN,
    concurrency: ConcurrencyLimits | None = None,
    authenticator: Authenticator | None = None,
    page_hosts: Sequence[str] = (),
) -> Starlette:
    """Return the application.

    service: the service itself, or what returns it at each request: an application is made before its process has found
    the scheduler, and until then the callable raises NotReadyError, which clients see as 503. root_dialect: of dialect
    of the root routes that both dialects have. page_dir: the files of the web page; None serves a text that says how to
    install it. allowed: accepted Host names and origins. concurrency: how many long requests may be open at once.
    authenticator: authenticates requests, where there are tenants; None makes every caller the operator.
    page_hosts: that the page may ask beside this server.
    """
    app = Starlette()
    app.router = table = PrefixRouter()
    app.state.service = service if callable(service) else lambda: service
    app.state.concurrency = concurrency or ConcurrencyLimits()
    websocket.install(app)
    app.add_middleware(ConcurrencyMiddleware, concurrency=app.state.concurrency)
    problems.install(app, _answer)
    for router in (*native.ROUTERS, *native.PREFIXED):
        table.routes += prefixed(PREFIX, router.routes)
    under_api = PrefixRouter(table.routes)
    for router in v2.ROUTERS:
        table.routes += prefixed(V2_PREFIX, router.routes)
    table.routes += prefixed(PREFIX, webhooks.router.routes)
    page.install(app, page_dir, page_hosts)
    operators = (operator.router, overview.router, model_changes.router)
    for router in (routes.router, document.router, *operators, *native.UNPREFIXED):
        table.routes += router.routes
    table.routes += _native_only(routes.router)
    pack_routes.install(app)
    if authenticator is not None:
        app.state.authenticator = authenticator
        for router in (admin.router, login.router):
            table.routes += router.routes
        app.add_middleware(AuthenticationMiddleware, authenticator=authenticator, answer=_answer)
    if allowed.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=allowed.origins,
            allow_methods=["*"],
            allow_headers=["*"],
            allow_credentials="*" not in allowed.origins,
        )
    app.add_middleware(OriginMiddleware, allowed=allowed, answer=_answer)
    app.add_middleware(RequestIdMiddleware)
    app.add_middleware(DialectMiddleware, root_dialect=root_dialect, prefixed=under_api)
    return app


def _native_only(contract: Routes) -> list[Route | WebSocketRoute]:
    """Return the native routes that may be served at the root: a path of the contract has the contract's methods
    only.
    """
    taken = {route.path for route in contract.routes}
    return [route for router in native.ROUTERS for route in router.routes if route.path not in taken]


class DialectMiddleware:
    """Middleware that decides a request's dialect, and sends native requests at the root to the native routes."""

    def __init__(self, app: ASGIApp, root_dialect: Dialect, prefixed: PrefixRouter) -> None:
        self._app, self._root_dialect, self._prefixed = app, root_dialect, prefixed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its dialect in the scope."""
        if scope["type"] == "http":
            scope = {**scope, "dialect": _dialect(scope["path"])}
            if scope["dialect"] == "contract" and self._requested_dialect(scope) == "comfy":
                moved = {**scope, "path": f"{PREFIX}{scope['path']}", "dialect": "comfy"}
                if self._prefixed.knows(moved):
                    scope = moved
        await self._app(scope, receive, send)

    def _requested_dialect(self, scope: MutableMapping[str, Any]) -> str:
        asked = dict(scope["headers"]).get(HEADER, b"").decode("latin-1").strip().lower()
        return asked if asked in ("contract", "comfy") else self._root_dialect


def _dialect(path: str) -> str:
    if path.startswith(f"{V2_PREFIX}/"):
        return "v2"
    if path.startswith(f"{PREFIX}/webhooks"):
        return "contract"  # the format of its errors: it belongs to no dialect
    return "comfy" if path.startswith((f"{PREFIX}/", "/internal/")) else "contract"


_ANSWERS = {"v2": v2_failures.answer, "comfy": failures.answer}


def _answer(request: Request, error: Exception) -> Response:
    return _ANSWERS.get(request.scope.get("dialect", ""), problems.answer)(request, error)
