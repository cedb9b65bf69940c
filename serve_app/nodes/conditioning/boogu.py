"""The node that encodes texts and edits for Boogu-Image. Source: Boogu 2026, Boogu-Image 0.1."""

from __future__ import annotations

from math import sqrt
from typing import Annotated

from torch import Tensor

from serve_app.nodes.conditioning.qwen21 import Images, Prompt
from serve_app.nodes.declare import node
from serve_app.nodes.image.match_size import resize
from serve_app.nodes.inputs import Text
from serve_app.nodes.sockets import CLIP, CONDITIONING, RUNTIME, VAE
from serve_app.sampling.guidance.conditioning import with_options
from serve_app.values import IllustratedText

SEEN_SIDE, SIDE = 384, 1024
"""Sides of squares of as many pixels as an image has for the text encoder, and for the network."""
MULTIPLE = 16
"""Of the sides of an image for the network: two latent cells."""


@node(
    "TextEncodeBooguEdit",
    category="model/conditioning/boogu",
    return_names=("positive", "negative"),
    required=("images",),
)
async def text_encode_boogu_edit(
    clip: CLIP,
    prompt: Prompt,
    negative_prompt: Annotated[str, Text(multiline=True, dynamicPrompts=True, advanced=True)],
    vae: VAE,
    runtime: RUNTIME,
    images: Images | None = None,
) -> tuple[CONDITIONING, CONDITIONING]:
    """How images are to be edited. The text encoder sees them beside the prompt alone, and the network beside both."""
    given = [image for _, image in sorted((images or {}).items(), key=lambda one: int(one[0].rsplit("_", 1)[-1]))]
    seen = tuple(_of_pixels(image, SEEN_SIDE, 1) for image in given)
    references = [await runtime.encode(vae, _of_pixels(image, SIDE, MULTIPLE)) for image in given]
    positive = await runtime.encode_text(clip, IllustratedText(prompt, seen))
    negative = await runtime.encode_text(clip, negative_prompt)
    if not references:
        return positive, negative
    return with_options(positive, reference_latents=references), with_options(negative, reference_latents=references)


def _of_pixels(image: Tensor, side: int, multiple: int) -> Tensor:
    """Return the colours of an image (B,H,W,C) with the pixels of a square, in its proportions."""
    rows, columns = image.shape[1:3]
    by = sqrt(side**2 / (rows * columns))
    width, height = (round(length * by / multiple) * multiple for length in (columns, rows))
    return resize(image, width, height, "area")[..., :3]
