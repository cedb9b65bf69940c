"""Routes about the server, in ComfyUI's format: its memory and versions, features, directories, logs."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from serve_app import COMFYUI_VERSION
from serve_app.api.auth.principal import Admin
from serve_app.api.comfy.body import empty, read_members
from serve_app.api.comfy.jobs.log_lines import SIZE
from serve_app.api.comfy.jobs.subscriptions import Subscriptions
from serve_app.api.request import Current
from serve_app.api.routing import Routes
from serve_app.api.strict_json import JsonResponse
from serve_app.errors import FileMissingError
from serve_app.nodes.replacements import REPLACEMENTS
from serve_app.scheduler.protocol.cluster_view import ClusterView
from serve_app.service.service import Service
from serve_app.store.files.store import AREAS, FileRef, Store
from serve_app.store.models.catalog import FOLDERS

router = Routes()
internal = Routes("/internal")
"""Routes that ComfyUI keeps for its own page."""

MB = 1024 * 1024
PACKAGES = ("comfyui-frontend-package", "comfyui-workflow-templates", "comfyui-embedded-docs")
"""The page's packages; any of them may be missing."""


@router.read("/system_stats")
async def get_system_stats(service: Current) -> Response:
    """Describe the cluster as one machine: memory in bytes, one device a GPU."""
    return JsonResponse(system_stats(await service.cluster()))


@router.read("/features")
async def get_features(service: Current) -> Response:
    """Return the server's features."""
    return JsonResponse(features(service))


@router.read("/node_replacements")
async def get_replacements() -> Response:
    """List the replacements of removed node classes, by the removed class."""
    return JsonResponse({old: [replacement.shown()] for old, replacement in REPLACEMENTS.items()})


@router.post("/free")
async def post_free(request: Request, service: Current, _: Admin) -> Response:
    """Let idle replicas unload models and drop cached results, of all tenants."""
    wish = await read_members(request, service.limits.command)
    await service.free(weights=bool(wish.get("unload_models")), results=bool(wish.get("free_memory")))
    return empty()


@internal.read("/files/{area}")
async def get_files(request: Request, service: Current) -> Response:
    """List the names in one of the three directories, newest first, each with the directory behind it."""
    area = request.path_params["area"]
    if area not in AREAS:
        return JsonResponse({"error": "Invalid directory type"}, 400)
    names = await asyncio.to_thread(_newest_first, service.store, area)
    return JsonResponse([f"{name} [{area}]" for name in names])


@internal.read("/folder_paths")
async def get_folder_paths(service: Current) -> Response:
    """List the directories of every folder of model files."""
    return JsonResponse({folder: service.catalog.directories(folder) for folder in FOLDERS})


@internal.read("/logs")
async def get_logs() -> Response:
    """Return an empty log: a client sees its jobs' log from its subscription on."""
    return JsonResponse("")


@internal.read("/logs/raw")
async def get_raw_logs() -> Response:
    """Return an empty log, as entries."""
    return JsonResponse({"entries": [], "size": SIZE})


@internal.on("/logs/subscribe", ["PATCH"])
async def patch_subscription(request: Request, service: Current) -> Response:
    """Subscribe a client to its jobs' log, or unsubscribe it; its socket must be in this process."""
    wish = await read_members(request, service.limits.command)
    subscriptions: Subscriptions = request.app.state.subscriptions
    subscriptions.log_to(service.feed(str(wish.get("clientId"))), wanted=bool(wish.get("enabled")))
    return empty()


def features(service: Service) -> dict[str, Any]:
    """Return the server's feature flags."""
    return {
        "supports_preview_metadata": True,
        "max_upload_size": service.limits.upload_bytes,
        "assets": True,
        "supports_model_type_tags": True,
        "node_replacements": True,
    }


def system_stats(cluster: ClusterView) -> dict[str, Any]:
    """Return the native SystemStats; without GPUs the CPU is the only device, as in ComfyUI."""
    total = sum(host.ram_total_mb for host in cluster.hosts) * MB
    free = sum(host.ram_available_mb for host in cluster.hosts) * MB
    gpus = {gpu.uuid: gpu for host in cluster.hosts for gpu in host.gpus}
    memory: list[tuple[str, str, int | None, int, int]] = [
        (g.name, "cuda", index, g.vram_total_mb * MB, g.vram_free_mb * MB) for index, g in enumerate(gpus.values())
    ]
    return {
        "system": {
            "os": sys.platform,
            "ram_total": total,
            "ram_free": free,
            "comfyui_version": COMFYUI_VERSION,
            "required_frontend_version": _version("comfyui-frontend-package"),
            "installed_templates_version": _version("comfyui-workflow-templates"),
            "required_templates_version": _version("comfyui-workflow-templates"),
            # This package pins the versions, so the installed version is the required one.
            "comfy_package_versions": [
                {"name": name, "installed": _version(name), "required": _version(name)} for name in PACKAGES
            ],
            "python_version": sys.version,
            "pytorch_version": _version("torch"),
            "embedded_python": False,
            "deploy_environment": "serve-app",
            "argv": ["serve-app"],
        },
        "devices": [
            {
                "name": name,
                "type": kind,
                "index": index,
                "vram_total": total,
                "vram_free": free,
                "torch_vram_total": total,
                "torch_vram_free": free,
            }
            for name, kind, index, total, free in memory or [("cpu", "cpu", None, total, free)]
        ],
    }


def _newest_first(store: Store, area: Any) -> list[str]:
    modified_s: dict[str, float] = {}
    for name in store.names(area):
        # A file that was deleted meanwhile, or leads out of the area, is left out.
        with contextlib.suppress(FileMissingError):
            modified_s[name] = store.stat(FileRef(area, "", name)).modified_s
    return sorted(modified_s, key=lambda name: modified_s[name], reverse=True)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
