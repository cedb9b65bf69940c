"""The nodes that patch a MODEL's layers: other features, or less work."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Bool, Choice, Float, Int
from serve_app.nodes.sockets import MODEL
from serve_app.recipe.layers import DeepShrink, EasyCache, HyperTile, TokenMerging

UNET = "model/patch/unet"
CELL = 8
"""Pixels that a latent cell covers along one side."""
LEAST_TILE = 32
"""The smallest tile, in pixels."""
RESIZED_BY = ["bicubic", "nearest-exact", "bilinear", "area", "bislerp"]


ReuseThreshold: TypeAlias = Annotated[
    float,
    Float(
        0.2, min=0.0, max=3.0, step=0.01, advanced=True, tooltip="Up to which estimated change a step is not computed."
    ),
]
ReuseStart: TypeAlias = Annotated[
    float,
    Float(
        0.15,
        min=0.0,
        max=1.0,
        step=0.01,
        advanced=True,
        tooltip="The share of the sampling from which on steps may be reused.",
    ),
]
ReuseEnd: TypeAlias = Annotated[
    float,
    Float(
        0.95,
        min=0.0,
        max=1.0,
        step=0.01,
        advanced=True,
        tooltip="The share of the sampling up to which steps may be reused.",
    ),
]
Verbose: TypeAlias = Annotated[bool, Bool(False, advanced=True, tooltip="Has no effect here.")]


@node("HyperTile", category=UNET, function="patch")
def hyper_tile(
    model: MODEL,
    tile_size: Annotated[int, Int(256, min=1, max=2048, advanced=True)],
    swap_size: Annotated[int, Int(2, min=1, max=128, advanced=True)],
    max_depth: Annotated[int, Int(0, min=0, max=10, advanced=True)],
    scale_depth: Annotated[bool, Bool(False, advanced=True)],
) -> MODEL:
    """Have wide self-attention look at tiles."""
    return model.with_patch(HyperTile(max(LEAST_TILE, tile_size) // CELL, swap_size, max_depth, scale_depth))


@node("TomePatchModel", category=UNET, function="patch")
def tome_patch_model(model: MODEL, ratio: Annotated[float, Float(0.3, min=0.0, max=1.0, step=0.01)]) -> MODEL:
    """Merge queries that are alike."""
    return model.with_patch(TokenMerging(ratio))


@node("PatchModelAddDownscale", "PatchModelAddDownscale (Kohya Deep Shrink)", category=UNET, function="patch")
def patch_model_add_downscale(
    model: MODEL,
    block_number: Annotated[int, Int(3, min=1, max=32, advanced=True, step=1)],
    downscale_factor: Annotated[float, Float(2.0, min=0.1, max=9.0, step=0.001)],
    start_percent: Annotated[float, Float(0.0, min=0.0, max=1.0, step=0.001, advanced=True)],
    end_percent: Annotated[float, Float(0.35, min=0.0, max=1.0, step=0.001, advanced=True)],
    downscale_after_skip: Annotated[bool, Bool(True, advanced=True)],
    downscale_method: Annotated[str, Choice(RESIZED_BY)],
    upscale_method: Annotated[str, Choice(RESIZED_BY)],
) -> MODEL:
    """Shrink features in a part of the sampling."""
    return model.with_patch(
        DeepShrink(
            block_number,
            downscale_factor,
            start_percent,
            end_percent,
            downscale_after_skip,
            downscale_method,
            upscale_method,
        )
    )


@node(
    "EasyCache",
    category="advanced/debug",
    function="patch",
    description="Skips steps in which the network's answer would change little (arXiv:2507.02860).",
    experimental=True,
)
def easy_cache(
    model: MODEL, reuse_threshold: ReuseThreshold, start_percent: ReuseStart, end_percent: ReuseEnd, verbose: Verbose
) -> MODEL:
    """Reuse what the network added in steps that change little."""
    return model.with_patch(EasyCache(reuse_threshold, start_percent, end_percent, False))


@node(
    "LazyCache",
    category="advanced/debug",
    function="patch",
    description="Skips steps in which the guided answer would change little; works beside everything else.",
    experimental=True,
)
def lazy_cache(
    model: MODEL, reuse_threshold: ReuseThreshold, start_percent: ReuseStart, end_percent: ReuseEnd, verbose: Verbose
) -> MODEL:
    """Reuse what guidance came to in steps that change little."""
    return model.with_patch(EasyCache(reuse_threshold, start_percent, end_percent, True))
