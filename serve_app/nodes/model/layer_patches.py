"""The nodes that patch a MODEL's layers: other features, or less work."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from serve_app.errors import NodeError
from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Bool, Choice, Combo, DynamicCombo, Float, Int, Text
from serve_app.nodes.sockets import MODEL, RUNTIME
from serve_app.recipe.layers import DeepShrink, EasyCache, HyperTile, ScaledPositions, SparseAttention, TokenMerging

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
    "BlockSparseAttention",
    "Model Sparse Attention",
    category="model/patch",
    function="patch",
    experimental=True,
    description="Has attention look at the best blocks of a long sequence only; for MiniMax H3.",
)
async def block_sparse_attention(
    model: MODEL,
    selection: Annotated[
        Mapping[str, Any],
        DynamicCombo(
            {
                "sol-attn": {"tau": Float(1.3, min=0.0, max=4.0, step=0.05)},
                "sla": {"keep_percent": Float(10.0, min=0.5, max=95.0, step=0.5)},
                "vsa": {"keep_percent": Float(10.0, min=0.5, max=95.0, step=0.5)},
            },
            display_name="method",
        ),
    ],
    start_percent: Annotated[float, Float(0.2, min=0.0, max=1.0, step=0.01)],
    end_percent: Annotated[float, Float(1.0, min=0.0, max=1.0, step=0.01)],
    dense_blocks: Annotated[str, Text("", advanced=True)],
    min_tokens: Annotated[int, Int(12288, min=0, max=1 << 20, step=512, advanced=True)],
    extra_tokens: Annotated[int, Int(256, min=0, max=256, step=64, advanced=True)],
    sink_conditioning: Annotated[
        str, Combo(["exact_kv", "exact_kv_and_rows", "off"], default="exact_kv_and_rows", advanced=True)
    ],
    verbose: Verbose,
    runtime: RUNTIME,
) -> MODEL:
    """Attend sparsely between two shares of the sampling, in sequences of at least min_tokens rows.

    selection: the method, and what it keeps. dense_blocks: numbers, and ranges of them, of blocks that are not sparse.
    Errors: NodeError for another model than MiniMax H3.
    """
    family = await runtime.family(model)
    if family.title != "MiniMax H3":
        raise NodeError(f"the model is one of {family.title}; attention is sparse for MiniMax H3 alone")
    method = selection["selection"]
    amount = selection["tau" if method == "sol-attn" else "keep_percent"]
    dense = frozenset(
        number
        for first, last in re.findall(r"(\d+)(?:\s*-\s*(\d+))?", dense_blocks)
        for number in range(int(first), int(last or first) + 1)
    )
    return model.with_patch(
        SparseAttention(method, amount, start_percent, end_percent, dense, min_tokens, extra_tokens, sink_conditioning)
    )


Factor: TypeAlias = Annotated[float, Float(1.0, min=0.0, max=100.0, step=0.1, advanced=True)]
Shift: TypeAlias = Annotated[float, Float(0.0, min=-256.0, max=256.0, step=0.1, advanced=True)]


@node(
    "ScaleROPE",
    category="model/patch",
    function="patch",
    experimental=True,
    description="Scales and shifts the positions of a video's tokens; for Wan.",
)
async def scale_rope(
    model: MODEL,
    scale_x: Factor,
    shift_x: Shift,
    scale_y: Factor,
    shift_y: Shift,
    scale_t: Factor,
    shift_t: Shift,
    runtime: RUNTIME,
) -> MODEL:
    """Have tokens elsewhere than they are, by column, row and frame. Errors: NodeError for another model than Wan."""
    family = await runtime.family(model)
    if not family.title.startswith("Wan"):
        raise NodeError(f"the model is one of {family.title}; positions are scaled for Wan alone")
    return model.with_patch(ScaledPositions((scale_t, scale_y, scale_x), (shift_t, shift_y, shift_x)))


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
