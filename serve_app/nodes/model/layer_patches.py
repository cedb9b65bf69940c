"""The nodes that put a patch on a MODEL by which its layers do otherwise, or less."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from serve_app.nodes.model.patches import number, patch_node
from serve_app.recipe import DeepShrink, EasyCache, HyperTile, TokenMerging

UNET = "model/patch/unet"
CELL = 8
"""Pixels that a latent cell covers along one side."""
LEAST_TILE = 32
"""The smallest tile, in pixels."""
RESIZED_BY = ["bicubic", "nearest-exact", "bilinear", "area", "bislerp"]


def _whole(default: int, least: int, most: int, **more: Any) -> tuple[str, dict[str, Any]]:
    return ("INT", {"default": default, "min": least, "max": most, "advanced": True, **more})


def _share(default: float, step: float, **more: Any) -> tuple[str, dict[str, Any]]:
    return number(default, 0.0, 1.0, step, advanced=True, **more)


def _hyper_tile(tile_size: int, swap_size: int, max_depth: int, scale_depth: bool) -> HyperTile:
    return HyperTile(max(LEAST_TILE, tile_size) // CELL, swap_size, max_depth, scale_depth)


def _cache(threshold: float, start: float, end: float, _verbose: bool, *, whole: bool) -> EasyCache:
    return EasyCache(threshold, start, end, whole)


def _cache_node(doc: str, description: str, *, whole: bool) -> type:
    inputs = {
        "reuse_threshold": number(
            0.2, 0.0, 3.0, advanced=True, tooltip="Up to which estimated change a step is not computed."
        ),
        "start_percent": _share(0.15, 0.01, tooltip="The share of the sampling from which on steps may be reused."),
        "end_percent": _share(0.95, 0.01, tooltip="The share of the sampling up to which steps may be reused."),
        "verbose": ("BOOLEAN", {"default": False, "advanced": True, "tooltip": "Has no effect here."}),
    }
    return patch_node(
        doc,
        partial(_cache, whole=whole),
        inputs,
        CATEGORY="advanced/debug",
        DESCRIPTION=description,
        EXPERIMENTAL=True,
    )


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "HyperTile": patch_node(
        "Have wide self-attention look at tiles.",
        _hyper_tile,
        {
            "tile_size": _whole(256, 1, 2048),
            "swap_size": _whole(2, 1, 128),
            "max_depth": _whole(0, 0, 10),
            "scale_depth": ("BOOLEAN", {"default": False, "advanced": True}),
        },
        CATEGORY=UNET,
    ),
    "TomePatchModel": patch_node(
        "Merge queries that are alike.", TokenMerging, {"ratio": number(0.3, 0.0, 1.0)}, CATEGORY=UNET
    ),
    "PatchModelAddDownscale": patch_node(
        "Shrink features in a part of the sampling.",
        DeepShrink,
        {
            "block_number": _whole(3, 1, 32, step=1),
            "downscale_factor": number(2.0, 0.1, 9.0, 0.001),
            "start_percent": _share(0.0, 0.001),
            "end_percent": _share(0.35, 0.001),
            "downscale_after_skip": ("BOOLEAN", {"default": True, "advanced": True}),
            "downscale_method": (RESIZED_BY,),
            "upscale_method": (RESIZED_BY,),
        },
        CATEGORY=UNET,
    ),
    "EasyCache": _cache_node(
        "Reuse what the network added in steps that change little.",
        "Skips steps in which the network's answer would change little (arXiv:2507.02860).",
        whole=False,
    ),
    "LazyCache": _cache_node(
        "Reuse what guidance came to in steps that change little.",
        "Skips steps in which the guided answer would change little; works beside everything else.",
        whole=True,
    ),
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "PatchModelAddDownscale": "PatchModelAddDownscale (Kohya Deep Shrink)",
}
