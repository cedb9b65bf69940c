"""The nodes of Chroma1-Radiance: empty latents, which are pixels, and options. Source: lodestones 2025."""

from __future__ import annotations

from typing import Annotated

import torch

from serve_app.errors import NodeError
from serve_app.execution.size import allow
from serve_app.nodes.declare import node
from serve_app.nodes.inputs import MAX_RESOLUTION, Bool, Float, Int
from serve_app.nodes.latent.empty import BatchSize
from serve_app.nodes.sockets import LATENT, MODEL

COLOURS = 3


@node("EmptyChromaRadianceLatentImage", category="model/latent/chroma radiance", required=("batch_size",))
def empty_chroma_radiance_latent_image(
    width: Annotated[int, Int(1024, min=16, max=MAX_RESOLUTION, step=16)],
    height: Annotated[int, Int(1024, min=16, max=MAX_RESOLUTION, step=16)],
    batch_size: BatchSize = 1,
) -> LATENT:
    """Grey images, as a model of pixels begins with."""
    allow(batch_size, COLOURS, height, width)
    return {"samples": torch.zeros(batch_size, COLOURS, height, width)}


@node(
    "ChromaRadianceOptions",
    category="model/patch/chroma radiance",
    description="Allows setting advanced options for the Chroma Radiance model.",
)
def chroma_radiance_options(
    model: MODEL,
    preserve_wrapper: Annotated[bool, Bool(True)],
    start_sigma: Annotated[float, Float(1.0, min=0.0, max=1.0)],
    end_sigma: Annotated[float, Float(0.0, min=0.0, max=1.0)],
    nerf_tile_size: Annotated[int, Int(-1, min=-1)],
    force_sequential_txt_ids: Annotated[bool, Bool(False)],
) -> MODEL:
    """Return the model as it is: how many patches are computed at once changes no picture.

    Errors: NodeError for text tokens in order, which a file says itself.
    """
    if force_sequential_txt_ids:
        raise NodeError(
            "force_sequential_txt_ids is not supported: a file whose text tokens are in order has a tensor "
            "'__sequential__'; set it to false"
        )
    return model
