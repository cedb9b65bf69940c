"""The nodes that join, repeat and split batches of IMAGE, and those that change every value in one the same way."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import torch
from torch.nn.functional import pad

from serve_app.execution.size import allow
from serve_app.nodes.declare import node
from serve_app.nodes.image.match_size import resize
from serve_app.nodes.inputs import MAX_RESOLUTION, Float, Int
from serve_app.nodes.sockets import IMAGE, INT, UNIQUE_ID


@node("ImageBatch", "Batch Images (DEPRECATED)", category="image/batch", function="batch", deprecated=True)
def image_batch(image1: IMAGE, image2: IMAGE) -> IMAGE:
    """Two batches as one.

    Return both, the second cropped and resized to the first's size; one without alpha becomes opaque.
    """
    channels = max(image1.shape[-1], image2.shape[-1])
    image1, image2 = (pad(image, (0, channels - image.shape[-1]), value=1.0) for image in (image1, image2))
    if image1.shape[1:] != image2.shape[1:]:
        image2 = resize(image2, image1.shape[2], image1.shape[1], "bilinear", "center")
    return torch.cat([image1, image2])


Amount: TypeAlias = Annotated[int, Int(1, min=1, max=4096)]


@node("RepeatImageBatch", "Repeat Image Batch", category="image/batch", function="repeat")
def repeat_image_batch(image: IMAGE, amount: Amount) -> IMAGE:
    """A batch several times over. Return the whole batch `amount` times, end to end."""
    allow(amount * image.shape[0], *image.shape[1:])
    return image.repeat(amount, 1, 1, 1)


@node("ImageFromBatch", "Get Image from Batch", category="image/batch", function="frombatch")
def image_from_batch(
    image: IMAGE, batch_index: Annotated[int, Int(0, min=-MAX_RESOLUTION, max=MAX_RESOLUTION)], length: Amount
) -> IMAGE:
    """Some images of a batch.

    Return `length` images from the index on, below 0 from the end, as many as there are; at least one.
    """
    first = max(0, min(batch_index if batch_index >= 0 else batch_index + len(image), len(image) - 1))
    return image[first : first + length].clone()


@node("ImageInvert", "Invert Image Colors", category="image/color", function="invert")
def image_invert(image: IMAGE) -> IMAGE:
    """Images as their negatives. Return 1 − image, an alpha channel too."""
    return 1.0 - image


@node("ImageAddNoise", "Add Noise to Image", category="image/filters", function="repeat")
def image_add_noise(
    image: IMAGE,
    seed: Annotated[int, Int(0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True)],
    strength: Annotated[float, Float(0.5, min=0.0, max=1.0, step=0.01)],
) -> IMAGE:
    """Images with Gaussian noise of a seed.

    Return the images plus noise of deviation `strength`, clipped to 0…1.
    """
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
    return (image + strength * noise.to(image)).clamp(0, 1)


@node(
    "GetImageSize",
    "Get Image Size",
    category="image",
    function="get_size",
    return_names=("width", "height", "batch_size"),
    description="Gives the width and height of the images, and how many there are.",
)
def get_image_size(image: IMAGE, unique_id: UNIQUE_ID | None = None) -> tuple[INT, INT, INT]:
    """The size of images. Return width, height and number."""
    return image.shape[2], image.shape[1], image.shape[0]


@node("ImageRGBToYUV", "Image RGB to YUV", category="image/color", return_names=("Y", "U", "V"))
def image_rgb_to_yuv(image: IMAGE) -> tuple[IMAGE, IMAGE, IMAGE]:
    """Images as brightness and two colour differences.

    Return Y, Cb and Cr as grey images (B,H,W,3), the differences around 0.5. Source: ITU-R BT.601.
    """
    red, green, blue = image[..., :3].unbind(-1)
    y = 0.299 * red + 0.587 * green + 0.114 * blue
    planes = (y, (blue - y) * 0.564 + 0.5, (red - y) * 0.713 + 0.5)
    first, second, third = (plane[..., None].repeat(1, 1, 1, 3) for plane in planes)
    return first, second, third


@node("ImageYUVToRGB", "Image YUV to RGB", category="image/color")
def image_yuv_to_rgb(Y: IMAGE, U: IMAGE, V: IMAGE) -> IMAGE:
    """Brightness and two colour differences as images.

    Return RGB clipped to 0…1; the exact inverse of ImageRGBToYUV.
    """
    y, cb, cr = Y.mean(-1), U.mean(-1) - 0.5, V.mean(-1) - 0.5
    red, blue = y + cr / 0.713, y + cb / 0.564
    green = (y - 0.299 * red - 0.114 * blue) / 0.587
    return torch.stack([red, green, blue], dim=-1).clamp(0, 1)
