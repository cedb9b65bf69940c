"""The nodes of conditioning for Qwen-Image edits: images for the text encoder, and reference latents."""

from __future__ import annotations

import math
from typing import Annotated, TypeAlias

from torch import Tensor

from serve_app.nodes.declare import node
from serve_app.nodes.image.match_size import resize
from serve_app.nodes.inputs import Text
from serve_app.nodes.sockets import CLIP, CONDITIONING, IMAGE, RUNTIME, VAE
from serve_app.sampling.guidance.conditioning import with_options
from serve_app.values import EDIT_TEMPLATE, SEEN, IllustratedText

_PIXELS, _SEEN_PIXELS = 1024 * 1024, 384 * 384
Prompt: TypeAlias = Annotated[str, Text(multiline=True, dynamicPrompts=True)]


@node("TextEncodeQwenImageEdit", category="model/conditioning/qwen image", function="encode")
async def text_encode_qwen_image_edit(
    clip: CLIP, prompt: Prompt, runtime: RUNTIME, vae: VAE | None = None, image: IMAGE | None = None
) -> CONDITIONING:
    """How an image is to be edited.

    Return the conditioning of the text and, where there is one, of the image at about a megapixel.
    """
    if image is None:
        return await runtime.encode_text(clip, prompt)
    seen = _of_size(image, _PIXELS)[..., :3]
    conditioning = await runtime.encode_text(clip, IllustratedText(prompt, (seen,)))
    if vae is None:
        return conditioning
    return with_options(conditioning, reference_latents=[await runtime.encode(vae, seen)])


@node("TextEncodeQwenImageEditPlus", category="model/conditioning/qwen image", function="encode")
async def text_encode_qwen_image_edit_plus(
    clip: CLIP,
    prompt: Prompt,
    runtime: RUNTIME,
    vae: VAE | None = None,
    image1: IMAGE | None = None,
    image2: IMAGE | None = None,
    image3: IMAGE | None = None,
) -> CONDITIONING:
    """How up to three images are to be edited, or put together; the text knows them as Picture 1 to 3.

    Return the conditioning of the text and the images, seen small and referred to at about a megapixel.
    """
    given = {i: image for i, image in enumerate((image1, image2, image3), 1) if image is not None}
    pictures = "".join(f"Picture {i}: {SEEN}" for i in given)
    seen = tuple(_of_size(image, _SEEN_PIXELS)[..., :3] for image in given.values())
    conditioning = await runtime.encode_text(clip, IllustratedText(pictures + prompt, seen, EDIT_TEMPLATE))
    if vae is None or not given:
        return conditioning
    references = [await runtime.encode(vae, _of_size(image, _PIXELS, 8)[..., :3]) for image in given.values()]
    return with_options(conditioning, reference_latents=references)


def _of_size(image: Tensor, pixels: int, multiple: int = 1) -> Tensor:
    """Resize images (B,H,W,C) to about a number of pixels, with sides that are multiples of another."""
    height, width = image.shape[1:3]
    scale = math.sqrt(pixels / (width * height))
    new_width, new_height = (round(side * scale / multiple) * multiple for side in (width, height))
    return resize(image, new_width, new_height, "area")
