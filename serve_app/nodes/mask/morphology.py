"""The nodes of greyscale morphology: growing and shrinking what is bright. What lies outside the picture plays no part.

Source: Serra 1982, "Image Analysis and Mathematical Morphology".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

from torch import Tensor, maximum
from torch.nn.functional import max_pool2d, pad

from serve_app.nodes.declare import node
from serve_app.nodes.image.match_size import as_planes
from serve_app.nodes.inputs import MAX_RESOLUTION, Bool, Choice, Int
from serve_app.nodes.sockets import IMAGE, MASK


def dilate(x: Tensor, size: int) -> Tensor:
    """Return x (…,H,W) with the largest value of a square of size around each position."""
    after = size // 2
    return _largest(_largest(x, -1, size, after), -2, size, after)


def erode(x: Tensor, size: int) -> Tensor:
    """Return x (…,H,W) with the smallest value of that square; of an even size, the square mirrored."""
    after = size - size // 2 - 1
    return -_largest(_largest(-x, -1, size, after), -2, size, after)


def _largest(x: Tensor, dim: int, size: int, after: int) -> Tensor:
    """Return the largest value of each stretch of size along dim, of which `after` positions come later."""
    # What is farther than the picture reaches has no part either, and would take memory by the kernel's size.
    edges = tuple(min(side, x.shape[dim] - 1) for side in (size - 1 - after, after))
    size = sum(edges) + 1
    x = pad(x, edges if dim == -1 else (0, 0, *edges), value=float("-inf"))
    length = 1
    while length < size:  # the largest of twice as long a stretch is the larger of two
        step = min(length, size - length)
        x = maximum(x.narrow(dim, 0, x.shape[dim] - step), x.narrow(dim, step, x.shape[dim] - step))
        length += step
    return x


OPERATIONS: Mapping[str, Callable[[Tensor, int], Tensor]] = {
    "erode": erode,
    "dilate": dilate,
    "open": lambda x, size: dilate(erode(x, size), size),
    "close": lambda x, size: erode(dilate(x, size), size),
    "gradient": lambda x, size: dilate(x, size) - erode(x, size),
    "bottom_hat": lambda x, size: erode(dilate(x, size), size) - x,
    "top_hat": lambda x, size: x - dilate(erode(x, size), size),
}


@node("Morphology", "Apply Morphology", category="image/filters", function="process")
def morphology(
    image: IMAGE,
    operation: Annotated[str, Choice(OPERATIONS)],
    kernel_size: Annotated[int, Int(3, min=3, max=999, step=1)],
) -> IMAGE:
    """Images after a morphological operation, channel by channel.

    Return images of the same size; kernel_size is the side of the square.
    """
    return OPERATIONS[operation](image.movedim(-1, 1), kernel_size).movedim(1, -1)


@node("GrowMask", "Grow Mask", category="image/mask", function="expand_mask")
def grow_mask(
    mask: MASK,
    expand: Annotated[int, Int(0, min=-MAX_RESOLUTION, max=MAX_RESOLUTION, step=1)],
    tapered_corners: Annotated[bool, Bool(True)],
) -> MASK:
    """Masks grown or shrunk by some pixels.

    Return masks grown by expand pixels, shrunk if negative: along rows and columns, or diagonally as well.
    """
    planes = as_planes(mask).unsqueeze(1)
    grown = planes if expand >= 0 else -planes
    # After as many steps as a path from corner to corner has, nothing changes.
    for _ in range(min(abs(expand), sum(planes.shape[-2:]))):
        along_rows = max_pool2d(grown, (1, 3), stride=1, padding=(0, 1))
        along_columns = max_pool2d(along_rows if not tapered_corners else grown, (3, 1), stride=1, padding=(1, 0))
        grown = maximum(along_rows, along_columns)
    return (grown if expand >= 0 else -grown).squeeze(1)
