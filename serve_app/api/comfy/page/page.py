"""The web page: ComfyUI's frontend, if its packages are installed, and the workflow that a first visit shows.

The frontend's own first workflow names models that few servers have. So a script, of the kind that node packs bring,
loads a template of the server's instead.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.staticfiles import StaticFiles

from serve_app.api.comfy.page import templates
from serve_app.api.routing import READ
from serve_app.api.strict_json import JsonResponse
from serve_app.models.shipped import CHECKPOINT
from serve_app.service.service import Service
from serve_app.store.models.catalog import no_models

PACKAGE = "comfyui_frontend_package"
DOCS = "comfyui_embedded_docs"
"""The package whose `docs` hold a page of help on every node of ComfyUI's."""
HERE = Path(__file__).parent
SCRIPTS = tuple(
    f"/extensions/serve_app/{name}.js" for name in ("first_workflow", "missing_classes", "templates", "jobs")
)
"""The URL paths of the scripts that load the first workflow, say why node classes are not here, mark templates by where
they run, and show the queue."""
LOG_OUT = "/extensions/serve_app/log_out.js"
"""The URL path of the script that logs out, for pages that somebody has logged in to."""
PACK, FIRST = "serve_app", "first_workflow"
"""The first workflow among the templates: its pack, and its name."""
FRESH = {"Cache-Control": "no-cache"}
HASHED = {"Cache-Control": "public, max-age=31536000, immutable"}
"""Files in `assets/` have the hash of their content in their names."""
ABSENT = "The web page is not installed on this server: pip install 'serve-app[ui]', and start it again.\n"


def installed() -> Path | None:
    """Return the directory of the installed frontend's files, None without one."""
    spec = find_spec(PACKAGE)
    static = None if spec is None or spec.origin is None else Path(spec.origin).parent / "static"
    return static if static is not None and (static / "index.html").is_file() else None


def policy(hosts: Sequence[str]) -> str:
    """Return the policy by which browsers let the page ask this server and some other hosts alone: CSP level 3.

    hosts: such as https://api.comfy.org; "*" for any.
    """
    others = "".join(f" {host}" for host in hosts)
    # ComfyUI's frontend and node packs make code and styles as they run.
    return f"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:{others}; object-src 'none'"


def install(app: Starlette, page: Path | None, hosts: Sequence[str] = ()) -> None:
    """Serve the page's files at the root, each by a route of its own, so that other paths are not affected.

    hosts: that the page may ask beside this server, as `policy`.
    """
    app.state.page = page
    headers = {**FRESH, "Content-Security-Policy": policy(hosts)}

    async def index(_: Request) -> Response:
        return PlainTextResponse(ABSENT, 404) if page is None else FileResponse(page / "index.html", headers=headers)

    app.add_route("/", index, methods=READ)
    if page is None:
        return
    for script in (*SCRIPTS, LOG_OUT):
        app.add_route(script, _sender(HERE / script.rpartition("/")[2]), methods=READ)
    for entry in sorted(page.iterdir()):
        if entry.name == "index.html":
            app.add_route("/index.html", index, methods=READ)
        elif entry.is_file():
            app.add_route(f"/{entry.name}", _sender(entry), methods=READ)
        elif entry.name == "extensions":  # node packs have their own beside the page's
            for own in filter(Path.is_dir, entry.iterdir()):
                app.mount(f"/extensions/{own.name}", _Files(FRESH, own))
        else:
            app.mount(f"/{entry.name}", _Files(HASHED if entry.name == "assets" else FRESH, entry))
    if there := [(name, "templates") for name in templates.packages()]:
        app.mount("/templates", _Files(FRESH, packages=there))
    if find_spec(DOCS) is not None:
        help_on_nodes = _Files(FRESH, packages=[(DOCS, "docs")])

        async def help_on_node(request: Request) -> Response:
            return await help_on_nodes.get_response("{node}/{file}".format(**request.path_params), request.scope)

        # A route and no mount: /docs and the paths right beneath it are the contract's.
        app.add_route("/docs/{node}/{file}", help_on_node, methods=READ)


async def first_workflow(service: Service) -> Response:
    """Return the first workflow, with a checkpoint that the server has."""
    choices = await service.choices(["checkpoints"])
    text = await asyncio.to_thread((HERE / "first_workflow.json").read_text)
    return JsonResponse(_with_checkpoint(json.loads(text), list(choices["checkpoints"])))


def _with_checkpoint(workflow: dict[str, Any], names: list[str]) -> Mapping[str, Any]:
    """Fill in a checkpoint: the one that comes with the package if present, as it runs anywhere in seconds.

    Without any checkpoint a note says where to put one.
    """
    for node in workflow["nodes"]:
        if node["type"] == "CheckpointLoaderSimple" and names:
            node["widgets_values"] = [CHECKPOINT if CHECKPOINT in names else names[0]]
        if node["type"] == "EmptyLatentImage" and CHECKPOINT in names:
            node["widgets_values"] = [96, 96, 1]
    if not names:
        note = {"id": 10, "type": "MarkdownNote", "pos": [20, 180], "size": [320, 200], "order": 7}
        shown = {
            "flags": {},
            "mode": 0,
            "inputs": [],
            "outputs": [],
            "properties": {},
            "color": "#432",
            "bgcolor": "#653",
        }
        workflow["nodes"].append({**note, **shown, "widgets_values": [f"## First steps\n\n{no_models()}."]})
        workflow["last_node_id"] = 10
    return workflow


def _sender(path: Path) -> Any:
    async def send(_: Request) -> Response:
        return FileResponse(path, headers=FRESH)

    return send


class _Files(StaticFiles):
    """The files of a directory, or of directories in packages, each with the same headers."""

    def __init__(
        self, headers: Mapping[str, str], directory: Path | None = None, packages: Sequence[tuple[str, str]] = ()
    ) -> None:
        super().__init__(directory=directory, packages=list(packages))
        self._headers = headers

    def file_response(
        self, full_path: Any, stat_result: os.stat_result, scope: Any, status_code: int = 200
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update(self._headers)
        return response
