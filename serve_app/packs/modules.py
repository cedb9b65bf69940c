"""ComfyUI's modules that node packs import, by their names; modules of its core alone are left out.

`install_modules` adds them to `sys.modules`. Only processes that load packs call it, as the names are short and common.
Everything here is written from facts about ComfyUI 0.3.64's interfaces.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy

from serve_app import COMFYUI_VERSION
from serve_app.execution.executing import executing
from serve_app.nodes.inputs import MAX_RESOLUTION
from serve_app.nodes.registry import BUILTIN, DISPLAY_NAMES
from serve_app.packs import extras, folder_paths, graph_utils, missing, node_helpers, server
from serve_app.packs.comfy import (
    clip_tokens,
    clip_vision,
    comfy_types,
    controlnet,
    k_diffusion,
    latent_preview,
    model_base,
    model_management,
    model_options,
    model_patcher,
    sample,
    samplers,
    schedules,
    sd,
    utils,
)
from serve_app.packs.comfy import ops as networks
from serve_app.packs.comfy_api import latest, ui
from serve_app.packs.library import common_ksampler, library
from serve_app.packs.saving import PreviewImage, SaveImage
from serve_app.store.files.store import Area
from serve_app.store.models.extra_paths import ExtraPath


def install_modules(
    models_dir: Path, areas: Mapping[Area, Path], packs_dir: Path, extra: Iterable[ExtraPath] = ()
) -> None:
    """Make the modules importable, set the directories of `folder_paths`, and reset the server's routes."""
    folder_paths.place(models_dir, areas, packs_dir, extra)
    server.PromptServer.instance = server.PromptServer()
    for name, module in _modules().items():
        sys.modules[name] = missing.fill(module, name)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    missing.install_finder({**sys.modules["nodes"].NODE_CLASS_MAPPINGS, **extras.COMFY_EXTRAS})


def _modules() -> dict[str, ModuleType]:
    """Return every module by name, packages before their modules."""
    classes = {**library(BUILTIN), "SaveImage": SaveImage, "PreviewImage": PreviewImage}
    node_classes = {
        "NODE_CLASS_MAPPINGS": dict(classes),
        "common_ksampler": common_ksampler,
        "NODE_DISPLAY_NAME_MAPPINGS": dict(DISPLAY_NAMES),
        "EXTENSION_WEB_DIRS": {},
        "MAX_RESOLUTION": MAX_RESOLUTION,
    }
    arguments = _Arguments(preview_size=512, cpu=False, disable_metadata=False, listen="127.0.0.1", port=8188)
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
        "comfy.comfy_types.node_typing": _copied("comfy.comfy_types.node_typing", comfy_types),
        "comfy.cli_args": _made(
            "comfy.cli_args", {"args": arguments, "LatentPreviewMethod": sample.LatentPreviewMethod}
        ),
        "comfy.samplers": _made("comfy.samplers", {**_public(samplers), **_names(), **_public(model_options)}),
        "comfy.sampler_helpers": _made("comfy.sampler_helpers", sample.HELPERS),
        "comfy.sample": _made("comfy.sample", {**sample.SAMPLE, "np": numpy}),
        "comfy.nested_tensor": _made("comfy.nested_tensor", sample.NESTED_TENSOR),
        "comfy.sd": _made("comfy.sd", sd.NAMES),
        "comfy.clip_vision": _made("comfy.clip_vision", _public(clip_vision)),
        "comfy.sd1_clip": _made("comfy.sd1_clip", clip_tokens.SD1_CLIP),
        "comfy.sdxl_clip": _made("comfy.sdxl_clip", clip_tokens.SDXL_CLIP),
        "comfy.lora": _made("comfy.lora", sd.LORA),
        "comfy.controlnet": _made("comfy.controlnet", {**_public(controlnet), "ControlBase": controlnet.ControlNet}),
        "comfy.model_patcher": _made("comfy.model_patcher", {**_public(model_options), **_public(model_patcher)}),
        "comfy.model_base": _made("comfy.model_base", {**_public(model_base), **model_base.CLASSES}),
        "comfy.model_sampling": _made("comfy.model_sampling", model_base.MODEL_SAMPLING),
        "comfy.latent_formats": _made("comfy.latent_formats", model_base.LATENT_FORMATS),
        "comfy.supported_models": _made("comfy.supported_models", model_base.CONFIGS),
        "comfy.k_diffusion": _made("comfy.k_diffusion"),
        "comfy.k_diffusion.sampling": k_diffusion,
        "comfy.k_diffusion.utils": _made("comfy.k_diffusion.utils", extras.K_DIFFUSION_UTILS),
        "comfy.ldm": _made("comfy.ldm"),
        "comfy.ldm.modules": _made("comfy.ldm.modules"),
        "comfy.ldm.modules.attention": _made("comfy.ldm.modules.attention", networks.ATTENTION),
        "comfy.ops": _made("comfy.ops", networks.OPS),
        "comfy.patcher_extension": _made("comfy.patcher_extension", networks.PATCHER_EXTENSION),
        "comfy.taesd": _made("comfy.taesd"),
        "comfy.taesd.taesd": _made("comfy.taesd.taesd", {"TAESD": latent_preview.TAESD}),
        "latent_preview": _made("latent_preview", latent_preview.NAMES),
        "comfy_execution": _made("comfy_execution"),
        "comfy_execution.graph_utils": graph_utils,
        "comfy_execution.graph": _copied("comfy_execution.graph", graph_utils),
        "comfy_execution.utils": _made("comfy_execution.utils", {"get_executing_context": executing}),
        "comfy_api": _made("comfy_api"),
    }
    for version in ("latest", "v0_0_2", "v0_0_1"):
        name = f"comfy_api.{version}"
        modules[name] = _copied(name, latest)
        modules |= {f"{name}._io": _made(f"{name}._io", vars(latest.io)), f"{name}._ui": _copied(f"{name}._ui", ui)}
    inputs = {f"{name}Input": kind for name, kind in vars(latest.Input).items()}
    modules["comfy_api.input"] = _made("comfy_api.input", {**vars(latest.Input), **inputs})
    modules["comfy_api.input_impl"] = _made("comfy_api.input_impl", vars(latest.InputImpl))
    modules["comfy_api.util"] = _made("comfy_api.util", vars(latest.Types))
    return modules


class _Arguments(SimpleNamespace):
    """ComfyUI's command-line arguments, all unset: those not defined here are False."""

    def __getattr__(self, name: str) -> bool:
        if name.startswith("__"):
            raise AttributeError(name)
        return False


def _public(module: ModuleType) -> dict[str, Any]:
    """Return the names that a module defines itself."""
    return {
        name: value
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__ and not name.startswith("_")
    }


def _names() -> dict[str, Any]:
    return {
        "SAMPLER_NAMES": samplers.KSampler.SAMPLERS,
        "KSAMPLER_NAMES": samplers.KSampler.SAMPLERS,
        "SCHEDULER_NAMES": samplers.KSampler.SCHEDULERS,
        "k_diffusion_sampling": k_diffusion,
        **schedules.NAMES,
    }


def _copied(name: str, module: ModuleType) -> ModuleType:
    """Return a module with the members of another, and with missing names of its own ComfyUI module."""
    return _made(name, {member: value for member, value in vars(module).items() if not member.startswith("__")})


def _made(name: str, members: Mapping[str, Any] | None = None) -> ModuleType:
    module = ModuleType(name, "Made by serve_app for node packs.")
    module.__path__ = []
    vars(module).update(members or {})
    return module
