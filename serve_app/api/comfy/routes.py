"""All routes of the native dialect; `app.py` decides their prefixes."""

from __future__ import annotations

from serve_app.api.comfy import object_info, system
from serve_app.api.comfy.assets import assets, exports
from serve_app.api.comfy.assets import uploads as asset_uploads
from serve_app.api.comfy.files import models, uploads, userdata, view
from serve_app.api.comfy.jobs import history, jobs, prompt, queue
from serve_app.api.comfy.jobs import websocket as socket
from serve_app.api.comfy.page import extensions, pack_content

ROUTERS = (
    prompt.router,
    queue.router,
    history.router,
    object_info.router,
    models.router,
    view.router,
    uploads.router,
    userdata.router,
    system.router,
    extensions.router,
    pack_content.router,
    socket.router,
)
"""Routes that ComfyUI has twice: at the root and under /api."""

PREFIXED = (jobs.router, exports.router, asset_uploads.router, assets.router)
"""Routes that it has under /api only."""

UNPREFIXED = (system.internal,)
"""Routes that it has at the root only."""
