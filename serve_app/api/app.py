"""The HTTP application: the dialects' routes over one service, and one way to answer failures."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI

from serve_app.api import operator, problems
from serve_app.api.contract import document, routes
from serve_app.service import Service


def create_app(service: Service | Callable[[], Service]) -> FastAPI:
    """Return the application.

    service: the service itself, or what returns it at each request: an application is made before its process has
    found the scheduler, and until then the callable raises NotReadyError, which clients see as 503.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.service = service if callable(service) else lambda: service
    problems.install(app)
    for router in (routes.router, document.router, operator.router):
        app.include_router(router)
    return app
