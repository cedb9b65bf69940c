"""The nodes of Qwen-Image 2.1: a prompt with the images that it refers to, and its cache of keys and values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, TypeAlias

import torch
from torch import Tensor

from serve_app.execution.size import allow
from serve_app.nodes.declare import node
from serve_app.nodes.image.match_size import resize
from serve_app.nodes.inputs import Autogrow, Choice, InputType, Int, Text
from serve_app.nodes.sampling.ksampler import FACTOR
from serve_app.nodes.sockets import CLIP, CONDITIONING, LATENT, MODEL, RUNTIME, VAE
from serve_app.sampling.guidance.conditioning import with_options
from serve_app.values import IllustratedText

CATEGORY = "model/conditioning/qwen image"
IMAGES = 16
CHANNELS, PIXELS_PER_CELL = 64, 16
MULTIPLE = 32
"""Of sides of images: what the text encoder's tower takes for one token, and two latent cells."""

Images: TypeAlias = Annotated[
    Mapping[str, Tensor],
    Autogrow(InputType("IMAGE"), name="image", names=[f"image_{i}" for i in range(1, IMAGES + 1)], least=0),
]
Prompt: TypeAlias = Annotated[str, Text(multiline=True, dynamicPrompts=True)]


@node(
    "TextEncodeQwenImage21",
    "Text Encode Qwen Image 2.1",
    category=CATEGORY,
    function="encode",
    return_names=("positive", "negative", "latent"),
    required=("images",),
)
async def text_encode_qwen_image21(
    clip: CLIP,
    prompt: Prompt,
    negative_prompt: Prompt,
    resolution: Annotated[int, Int(1024, min=0, max=4096, step=32)],
    runtime: RUNTIME,
    images: Images | None = None,
    vae: VAE | None = None,
) -> tuple[CONDITIONING, CONDITIONING, LATENT]:
    """What an image is to be, or how images are to be edited; the text knows them as <image1>, <image2> and so on.

    Return what is said of both texts and the images, and empty latents of the first image's size.

    resolution: the side of a square of as many pixels as images are resized to; 0 leaves them as large as they are.
    With a VAE the model has the images themselves, and what the text encoder sees in them is left out.
    """
    given = sorted((images or {}).items(), key=lambda item: int(item[0].rsplit("_", 1)[-1]))
    sized = [_sized(image[:1], resolution) for _, image in given]
    references = [] if vae is None else [await runtime.encode(vae, image) for image in sized]
    seen = tuple(map(_over_white, sized))
    said = []
    for text in (prompt, negative_prompt):
        # A language model needs at least one token.
        encoded = await runtime.encode_text(clip, IllustratedText(text or " ", seen, placed=bool(references)))
        said.append(with_options(encoded, reference_latents=references) if references else encoded)
    height, width = sized[0].shape[1:3] if sized else (resolution or 1024,) * 2
    shape = (1, CHANNELS, height // PIXELS_PER_CELL, width // PIXELS_PER_CELL)
    allow(*shape)
    positive, negative = said
    return positive, negative, {"samples": torch.zeros(shape), FACTOR: PIXELS_PER_CELL}


@node(
    "QwenImage21Cache",
    "Qwen Image 2.1 Cache",
    category=CATEGORY,
    function="patch",
    experimental=True,
    description="Says how ComfyUI keeps keys and values between steps. Nothing is kept here: the model is passed on.",
)
def qwen_image21_cache(
    model: MODEL,
    device: Annotated[str, Choice(["auto", "gpu", "cpu", "off"], default="auto")],
    dtype: Annotated[str, Choice(["default", "int8", "int4"], default="default")],
) -> MODEL:
    """Return the model as it is.

    ComfyUI keeps the keys and values of text and references between steps, where and in how many bits this says; here
    each step makes its own.
    """
    return model


def _sized(image: Tensor, resolution: int) -> Tensor:
    """Return an image (1,H,W,C) with sides that are multiples, of about resolution² pixels, or as many as it has."""
    height, width = image.shape[1:3]
    if resolution:
        ratio = width / height
        width_in, height_in = math.sqrt(resolution**2 * ratio), math.sqrt(resolution**2 / ratio)
    else:
        width_in, height_in = width, height
    new_width, new_height = (max(MULTIPLE, round(side / MULTIPLE) * MULTIPLE) for side in (width_in, height_in))
    if (new_width, new_height) == (width, height):
        return image
    return resize(image, new_width, new_height, "lanczos")


def _over_white(image: Tensor) -> Tensor:
    """Return an image (1,H,W,C) in three channels, over white where it says how opaque it is."""
    colours, opacity = image[..., :3], image[..., 3:4]
    return colours * opacity + (1 - opacity) if image.shape[-1] > 3 else colours
