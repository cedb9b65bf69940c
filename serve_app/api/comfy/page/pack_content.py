"""Example workflows, subgraph blueprints and translations for the web page.

Node packs bring them, except the workflow of a first visit and the blueprints of a package of ComfyUI's.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from functools import lru_cache
from hashlib import sha256
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from serve_app.api.comfy.body import empty
from serve_app.api.comfy.page import page
from serve_app.api.files.content import DISARMED
from serve_app.api.request import Current
from serve_app.api.routing import Routes
from serve_app.api.strict_json import JsonResponse
from serve_app.store.page.pack_content import PackContent

router = Routes()

BLUEPRINTS = "comfyui_subgraph_blueprints"
"""The package of blueprints; it may be missing."""


class Blueprint(NamedTuple):
    """A subgraph that the page offers as a node. owner: a node pack, or "comfyui"."""

    owner: str
    name: str
    path: Path

    @property
    def id(self) -> str:
        return sha256(f"{self.owner}/{self.path.name}".encode()).hexdigest()

    @property
    def shown(self) -> dict[str, object]:
        """The blueprint's entry in the list."""
        packs = self.owner != "comfyui"
        return {
            "source": "custom_node" if packs else "templates",
            "name": self.name,
            "info": {"node_pack": f"custom_nodes.{self.owner}" if packs else self.owner},
        }


@router.read("/workflow_templates")
async def get_workflows(service: Current) -> Response:
    """List the example workflows by node pack."""
    found = await asyncio.to_thread(service.pack_content.workflows)
    return JsonResponse({page.PACK: [page.FIRST], **found})


@router.read("/workflow_templates/{pack}/{file}")
async def get_workflow(request: Request, service: Current) -> Response:
    """Return a pack's example workflow, or a file beside it. Errors: FileMissingError."""
    pack, file = request.path_params["pack"], request.path_params["file"]
    if (pack, file) == (page.PACK, f"{page.FIRST}.json"):
        return await page.first_workflow(service)
    path = await asyncio.to_thread(service.pack_content.workflow, pack, file)
    return FileResponse(path, headers={"Cache-Control": "no-cache", **DISARMED})


@router.read("/global_subgraphs")
async def get_blueprints(service: Current) -> Response:
    """List the blueprints of subgraphs by id, without their data."""
    found = await asyncio.to_thread(blueprints, service.pack_content)
    return JsonResponse({one.id: one.shown for one in found})


@router.read("/global_subgraphs/{id}")
async def get_blueprint(request: Request, service: Current) -> Response:
    """Return a blueprint with its data, the workflow as text; 404 for an unknown one."""
    for one in await asyncio.to_thread(blueprints, service.pack_content):
        if one.id == request.path_params["id"]:
            return JsonResponse({**one.shown, "data": await asyncio.to_thread(one.path.read_text, encoding="utf-8")})
    return empty(404)


@router.read("/i18n")
async def get_translations(service: Current) -> Response:
    """Return the packs' translations by language."""
    return JsonResponse(await asyncio.to_thread(service.pack_content.translations))


def blueprints(content: PackContent) -> list[Blueprint]:
    """Return the packs' blueprints, and those of the package."""
    return [Blueprint(pack, path.stem, path) for pack, path in content.subgraphs()] + list(_packaged())


@lru_cache(maxsize=1)
def _packaged() -> tuple[Blueprint, ...]:
    return tuple(_of_package()) if find_spec(BLUEPRINTS) is not None else ()


def _of_package() -> Iterator[Blueprint]:
    for entry in sorted(Path(str(files(BLUEPRINTS))).glob("blueprints/*.json")):
        # File names are ids; the name to show is the subgraph's own.
        graphs = json.loads(entry.read_text(encoding="utf-8")).get("definitions", {}).get("subgraphs", [])
        yield Blueprint("comfyui", str(graphs[0]["name"]) if graphs else entry.stem, entry)
