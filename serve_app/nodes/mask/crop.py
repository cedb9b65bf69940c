"""The node that cuts out the object under a mask: alone, centred, at one size, as 3D models expect it."""

from __future__ import annotations

from math import ceil
from typing import Annotated, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, pad

from serve_app.errors import NodeError
from serve_app.execution.size import allow
from serve_app.nodes.declare import node
from serve_app.nodes.image.match_size import resize
from serve_app.nodes.image.regions import rgb
from serve_app.nodes.inputs import Float, InputType, Int
from serve_app.nodes.sockets import IMAGE, MASK

LEAST = 0.05
"""Below which a mask's value counts as 0."""
SURE = 204
"""Above which, of 255, a pixel belongs to the object, when its sides are looked for."""


Side: TypeAlias = Annotated[int, Int(1024, min=64, max=4096, step=8)]


@node(
    "ImageCropToMask",
    "Crop Image to Mask",
    category="image/transform",
    function="crop",
    return_names=("images",),
    description="Cuts out what the mask marks, centred, over one colour.",
    search_aliases=("crop to mask", "mask crop", "crop mask", "trellis2", "pixal3d"),
)
def image_crop_to_mask(
    images: IMAGE,
    masks: MASK,
    width: Side,
    height: Side,
    pad_factor: Annotated[float, Float(1.0, min=1.0, max=2.0, step=0.01)],
    grow_mask: Annotated[int, Int(0, min=-32, max=32, step=1)],
    background: Annotated[str, InputType("COLOR", {"default": "#000000", "socketless": True})],
) -> IMAGE:
    """What masks mark of images.

    Return (B,height,width,3). pad_factor: how much larger than the object; grow_mask: pixels, below 0 fewer.

    A mask that marks everything but the object is turned around. Errors: NodeError for masks that are not as many
    as the images, and not one.
    """
    if len(masks) not in (1, len(images)):
        raise NodeError(f"there are {len(images)} images and {len(masks)} masks; there must be one or as many")
    masks = masks.float().expand(len(images), -1, -1)
    if masks.shape[1:] != images.shape[1:3]:
        masks = resize(masks.unsqueeze(-1), images.shape[2], images.shape[1], "bilinear").squeeze(-1)
    behind = torch.tensor(rgb(background))
    made = []
    for image, mask in zip(images[..., :3].float().clamp(0, 1), masks.clamp(0, 1), strict=True):
        colours, alpha = _fitting(image[None], _cleaned(mask, grow_mask)[None, ..., None], max(width, height))
        alpha, place = _place(alpha, width / height, pad_factor)
        seen, alpha = _cut(colours, place), _cut(alpha, place)
        over = (seen * alpha + behind * (1 - alpha)).clamp(0, 1)
        made.append(resize(over, width, height, "lanczos"))
    return torch.cat(made)


def _cleaned(mask: Tensor, grow: int) -> Tensor:
    """Return a mask (H,W) that marks the object, grown, without its faint parts."""
    height, width = mask.shape
    border = torch.cat([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    middle = mask[height // 4 : height - height // 4, width // 4 : width - width // 4]
    if border.mean() > 0.5 and middle.mean() < 0.5:
        mask = 1 - mask
    if grow:
        mask = mask if grow > 0 else 1 - mask
        mask = max_pool2d(mask[None], 2 * abs(grow) + 1, stride=1, padding=abs(grow))[0]
        mask = mask if grow > 0 else 1 - mask
    return torch.where(mask < LEAST, 0.0, mask)


def _fitting(image: Tensor, mask: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return both (1,H,W,C), no side longer than `most`."""
    height, width = image.shape[1:3]
    if max(height, width) <= most:
        return image, mask
    factor = most / max(height, width)
    wide, high = max(1, int(width * factor)), max(1, int(height * factor))
    return resize(image, wide, high, "lanczos"), resize(mask, wide, high, "lanczos")


def _place(mask: Tensor, aspect: float, factor: float) -> tuple[Tensor, tuple[int, int, int, int]]:
    """Return the mask (1,H,W,1), turned around if it marks nothing so, and (left, top, right, bottom) of its object.

    A mask that marks nothing either way has all of the image.
    """
    levels = (mask[0, ..., 0].clamp(0, 1) * 255).to(torch.uint8)
    marked = (levels > SURE).nonzero()
    if not len(marked) and len(unmarked := (255 - levels > SURE).nonzero()):
        mask, marked = 1 - mask, unmarked
    if not len(marked):
        return mask, (0, 0, levels.shape[1], levels.shape[0])
    (top, left), (bottom, right) = marked.amin(0).tolist(), marked.amax(0).tolist()
    width, height = right - left + 1, bottom - top + 1
    if width / height >= aspect:
        wide, high = int(width * factor), int(width / aspect * factor)
    else:
        wide, high = int(height * aspect * factor), int(height * factor)
    across, down = ceil(wide / 2), ceil(high / 2)
    x, y = int((left + right) / 2 - across), int((top + bottom) / 2 - down)
    return mask, (x, y, x + 2 * across, y + 2 * down)


def _cut(x: Tensor, place: tuple[int, int, int, int]) -> Tensor:
    """Return a part of (1,H,W,C); beyond the edges it is 0."""
    left, top, right, bottom = place
    height, width = x.shape[1:3]
    allow(1, bottom - top, right - left, x.shape[-1])
    inside = x[:, max(0, top) : max(0, bottom), max(0, left) : max(0, right)]
    return pad(inside, (0, 0, max(0, -left), max(0, right - width), max(0, -top), max(0, bottom - height)))
