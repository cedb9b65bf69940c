"""Applies layer patches of a UNet by row: rows that differ in them share a forward with unchanged outputs.

The patches are those of `sampling.guidance.layers`; each has a file of its own here. Nothing stays on the network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from serve_app.models.unet_patches.deep_shrink import with_deep_shrink
from serve_app.models.unet_patches.freeu import with_freeu
from serve_app.models.unet_patches.unet_attention import with_attention
from serve_app.recipe.layers import DeepShrink, FreeU


@contextmanager
def with_layers(network: Any, rows: Sequence[tuple[int, Sequence[Any]]], size: tuple[int, int]) -> Iterator[None]:
    """Patch layers while the network runs.

    network: UNet2DConditionModel. rows: (rows, patches in order) in turn; all have the same patches that resize. size:
    (h,w) of the latents.
    """
    if not any(patches for _, patches in rows):
        yield
        return
    with ExitStack() as stack:
        stack.enter_context(with_freeu(network, [(n, [p for p in own if isinstance(p, FreeU)]) for n, own in rows]))
        stack.enter_context(with_attention(network, rows, size))
        for patch in rows[0][1]:
            if isinstance(patch, DeepShrink):
                stack.enter_context(with_deep_shrink(network, patch))
        yield
