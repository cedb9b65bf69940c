"""What node packs import, under ComfyUI's module names, and nothing that only its own code needs.

`install` puts these modules where imports find them. Only processes that load packs call it: the names are short and
common. Everything here is written from facts about ComfyUI 0.3.64's interfaces.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from serve_app import COMFYUI_VERSION
from serve_app.nodes.builtin.latent import MAX_RESOLUTION
from serve_app.nodes.compat import (
    comfy_types,
    folder_paths,
    graph_utils,
    latest,
    missing,
    model_management,
    node_helpers,
    server,
    ui,
    utils,
)
from serve_app.nodes.compat.library import common_ksampler, library
from serve_app.nodes.compat.saving import PreviewImage, SaveImage
from serve_app.nodes.executing import executing
from serve_app.nodes.registry import BUILTIN, DISPLAY_NAMES
from serve_app.sampling.samplers import SAMPLERS
from serve_app.sampling.sigmas import SCHEDULES
from serve_app.store.store import Area


def install(models_dir: Path, areas: Mapping[Area, Path], packs_dir: Path) -> None:
    """Let imports find the modules, tell `folder_paths` where everything is, and begin with a server without routes."""
    folder_paths.place(models_dir, areas, packs_dir)
    server.PromptServer.instance = server.PromptServer()
    for name, module in _modules().items():
        sys.modules[name] = missing.fill(module, name)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    missing.install(sys.modules["nodes"].NODE_CLASS_MAPPINGS)


def _modules() -> dict[str, ModuleType]:
    """Return every module by name, packages before what they hold."""
    sampler = SimpleNamespace(SAMPLERS=list(SAMPLERS), SCHEDULERS=list(SCHEDULES))
    classes = {**library(BUILTIN), "SaveImage": SaveImage, "PreviewImage": PreviewImage}
    node_classes = {
        "NODE_CLASS_MAPPINGS": dict(classes),
        "common_ksampler": common_ksampler(classes),
        "NODE_DISPLAY_NAME_MAPPINGS": dict(DISPLAY_NAMES),
        "EXTENSION_WEB_DIRS": {},
        "MAX_RESOLUTION": MAX_RESOLUTION,
    }
    arguments = SimpleNamespace(preview_size=512, cpu=False, disable_metadata=False, listen="127.0.0.1", port=8188)
    modules = {
        "folder_paths": folder_paths,
        "node_helpers": node_helpers,
        "server": server,
        "nodes": _made("nodes", {**classes, **node_classes}),
        "comfyui_version": _made("comfyui_version", {"__version__": COMFYUI_VERSION}),
        "comfy": _made("comfy"),
        "comfy.utils": utils,
        "comfy.model_management": model_management,
        "comfy.comfy_types": comfy_types,
        "comfy.comfy_types.node_typing": comfy_types,
        "comfy.cli_args": _made("comfy.cli_args", {"args": arguments}),
        "comfy.samplers": _made(
            "comfy.samplers",
            {
                "KSampler": sampler,
                "SAMPLER_NAMES": sampler.SAMPLERS,
                "KSAMPLER_NAMES": sampler.SAMPLERS,
                "SCHEDULER_NAMES": sampler.SCHEDULERS,
            },
        ),
        "comfy_execution": _made("comfy_execution"),
        "comfy_execution.graph_utils": graph_utils,
        "comfy_execution.graph": graph_utils,
        "comfy_execution.utils": _made("comfy_execution.utils", {"get_executing_context": executing}),
        "comfy_api": _made("comfy_api"),
    }
    for version in ("latest", "v0_0_2", "v0_0_1"):
        name = f"comfy_api.{version}"
        modules |= {name: latest, f"{name}._io": _made(f"{name}._io", vars(latest.io)), f"{name}._ui": ui}
    inputs = {f"{name}Input": kind for name, kind in vars(latest.Input).items()}
    modules["comfy_api.input"] = _made("comfy_api.input", {**vars(latest.Input), **inputs})
    modules["comfy_api.input_impl"] = _made("comfy_api.input_impl", vars(latest.InputImpl))
    modules["comfy_api.util"] = _made("comfy_api.util", vars(latest.Types))
    return modules


def _made(name: str, members: Mapping[str, Any] | None = None) -> ModuleType:
    module = ModuleType(name, "Made by serve_app for node packs.")
    module.__path__ = []
    vars(module).update(members or {})
    return module
