"""Comfy API v2: the third dialect over the service, below /api/v2. It knows neither of the others.

Source: the public description of Comfy API v2 (openapi-v2.yaml, version 2.0.0), as comfy-sdk 0.5.0 uses it.
"""

from __future__ import annotations

from serve_app.api.routing import Routes
from serve_app.api.v2 import assets, document, events, jobs

ROUTERS: tuple[Routes, ...] = (jobs.router, events.router, assets.router, document.router)
