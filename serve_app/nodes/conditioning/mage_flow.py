"""The node that encodes texts and edits for Mage-Flow. Source: Microsoft 2026, Mage."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import torch
from torch import Tensor

from serve_app.execution.size import allow
from serve_app.nodes.conditioning.qwen21 import Images
from serve_app.nodes.declare import node
from serve_app.nodes.image.match_size import resize
from serve_app.nodes.inputs import Int, Text
from serve_app.nodes.latent.empty import BatchSize
from serve_app.nodes.sockets import CLIP, CONDITIONING, LATENT, RUNTIME, VAE
from serve_app.sampling.guidance.conditioning import with_options
from serve_app.sampling.latents.latent_formats import FLUX2
from serve_app.values import IllustratedText

SIDE = 1024
"""Of an image for which neither a size nor an image is given."""
SEEN_SIDE = 384
"""The longest side of an image as the text encoder sees it."""

Prompt: TypeAlias = Annotated[str, Text(multiline=True, dynamicPrompts=True)]
Side: TypeAlias = Annotated[int, Int(0, min=0, max=8192, step=16)]


@node(
    "TextEncodeMageFlowEdit",
    category="model/conditioning/mage",
    return_names=("positive", "negative", "latent"),
    required=("images", "width", "height", "batch_size"),
)
async def text_encode_mage_flow_edit(
    clip: CLIP,
    prompt: Prompt,
    negative_prompt: Annotated[str, Text(multiline=True, dynamicPrompts=True, advanced=True)],
    runtime: RUNTIME,
    vae: VAE | None = None,
    images: Images | None = None,
    width: Side = 0,
    height: Side = 0,
    batch_size: BatchSize = 1,
) -> tuple[CONDITIONING, CONDITIONING, LATENT]:
    """What an image is to be, or how images are to be edited.

    Return what is said of both texts and the images, and empty latents of the size; 0 is that of the first image.
    """
    given = [image for _, image in sorted((images or {}).items(), key=lambda one: int(one[0].rsplit("_", 1)[-1]))]
    rows, columns = given[0].shape[1:3] if given else (SIDE, SIDE)
    cell = FLUX2.factor
    across, down = (max(1, side // cell) for side in (width or columns, height or rows))
    shape = (batch_size, FLUX2.channels, down, across)
    allow(*shape)
    seen = tuple(map(_seen, given))
    # The network compares references with the image place by place, so they are made of its size.
    sized = [resize(image, across * cell, down * cell, "bicubic")[..., :3] for image in given]
    references = [] if vae is None else [await runtime.encode(vae, image) for image in sized]
    said = []
    for text in (prompt, negative_prompt or " "):
        encoded = await runtime.encode_text(clip, IllustratedText(text, seen))
        said.append(with_options(encoded, reference_latents=references) if references else encoded)
    positive, negative = said
    return positive, negative, {"samples": torch.zeros(shape)}


def _seen(image: Tensor) -> Tensor:
    """Return an image (B,H,W,C) as small as the text encoder was trained on."""
    height, width = image.shape[1:3]
    if (longest := max(height, width)) <= SEEN_SIDE:
        return image
    columns, rows = (max(1, round(side * (SEEN_SIDE / longest))) for side in (width, height))
    return resize(image, columns, rows, "bicubic")
