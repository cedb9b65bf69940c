"""Winograd convolutions: 3×3 with a quarter of the products, for residual blocks of KL autoencoders on a CPU.

A 4×4 tile of the result depends on a 6×6 window of the image. Sums of the window's cells times sums of the kernel's
taps are 36 products for a pair of channels instead of 144 (F(4×4,3×3); Lavin and Gray 2015, arXiv:1509.09308). Equal up
to rounding (decision 48). Only the layer packed for the CPU is computed so.
"""

from __future__ import annotations

import threading
from math import prod

import torch
from torch import Tensor, nn

from serve_app.models.kernels.upsampling import is_same_size

WIDEST = 256
"""Limit on output channels: a transformed kernel takes 4 times its memory."""

_TILE, _WINDOW = 4, 6
"""The cells along a side of what is computed together, and of what they meet."""

_BAND_NUMBERS = 2**20
"""Limit on the sums of a band of tiles, unless one row has more: they are read again while in a cache."""

_KEPT_NUMBERS = 4 * _BAND_NUMBERS
"""Limit on half of a thread's scratch memory: 32 MiB in both halves, for images up to 1,820 pixels wide."""

of_thread = threading.local()

_POINTS = (0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5))
"""Interpolation points, besides 0 and infinity.

The usual ±1 and ±2 make the error four to five times as large (choosing points: Barabasz et al. 2020,
arXiv:1803.10986). The transforms below assume that each point is the inverse of another.
"""

_CELLS = torch.tensor(
    [
        [1, 0, -2.5, 0, 1, 0],
        *([0, -1 / point, -1 / point**2, point, 1, 0] for point in _POINTS),
        [0, 1, 0, -2.5, 0, 1],
    ],
    dtype=torch.float64,
)
"""Input transform: sums of a window's cells along one side, one row each."""

_TAPS = torch.tensor(
    [
        [1, 0, 0],
        *([tap / (2 * point**4 - 2) for tap in (1, point, point**2)] for point in _POINTS),
        [0, 0, 1],
    ],
    dtype=torch.float64,
)
"""Kernel transform: sums of taps, multiplied with those of cells."""

_PRODUCTS = torch.tensor(
    [[power == 0, *(point**power for point in _POINTS), power == _TILE - 1] for power in range(_TILE)],
    dtype=torch.float64,
)
"""Output transform: sums of the products, one row for each cell of a tile's side."""


class Winograd(nn.Conv2d):
    """A 3×3 convolution, padded by one, that a CPU computes by Winograd's transforms."""


class PackedWinograd(nn.Module):
    """A Winograd for inference with a transformed kernel. It cannot be trained, moved, saved or unpacked.

    The weight takes 4 times the plain one's memory.
    """

    def __init__(self, plain: Winograd) -> None:
        super().__init__()
        self.bias: Tensor = torch.zeros(plain.out_channels) if plain.bias is None else plain.bias
        taps = plain.weight.flatten(2).permute(2, 1, 0)
        of_taps = torch.kron(_TAPS, _TAPS).float()
        self.weight = (of_taps @ taps.flatten(1)).view(-1, *taps.shape[1:])
        self._of_cells = torch.kron(_CELLS, _CELLS).float()
        self._of_products = torch.kron(_PRODUCTS, _PRODUCTS).float()

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of x (B,C,H,W) float32: (B,O,H,W), channels last in memory."""
        batch, inside, height, width = x.shape
        outside = self.weight.shape[-1]
        rows, columns = -(-height // _TILE), -(-width // _TILE)
        result = torch.empty(batch, rows, _TILE, columns, _TILE, outside)
        row_numbers = columns * _WINDOW**2 * max(inside, outside)
        bands = -(-rows // max(1, _BAND_NUMBERS // row_numbers))
        scratch = _scratch(-(-rows // bands) * row_numbers)
        # One by one, so that an image's numbers do not depend on others in the batch.
        for picture, tiles in zip(x.permute(0, 2, 3, 1), result, strict=True):
            above = 0
            for band in tiles.chunk(bands):
                self._fill(band, picture, above, scratch)
                above += len(band) * _TILE
        cells = result.view(batch, rows * _TILE, columns * _TILE, outside)[:, :height, :width]
        # A copy if tiles are partial: layers expect an image to be contiguous.
        return cells.contiguous().permute(0, 3, 1, 2)

    def _fill(self, tiles: Tensor, picture: Tensor, above: int, scratch: Tensor) -> None:
        """Compute tiles (rows,4,columns,4,O) of an image (H,W,C), with `above` rows above them.

        scratch (2,numbers): each step reads one half and writes the other.
        """
        rows, _, columns, _, outside = tiles.shape
        channels, count = picture.shape[-1], rows * columns
        around = _part(scratch[1], rows * _TILE + 2, columns * _TILE + 2, channels)
        _surround(picture, above, around)
        windows = _part(scratch[0], count, _WINDOW**2, channels)
        views = around.unfold(0, _WINDOW, _TILE).unfold(1, _WINDOW, _TILE).permute(0, 1, 3, 4, 2)
        windows.view(views.shape).copy_(views)
        cells = _part(scratch[1], *windows.shape)
        torch.bmm(self._of_cells.expand(count, -1, -1), windows, out=cells)
        products = _part(scratch[0], _WINDOW**2, count, outside)
        torch.bmm(cells.transpose(0, 1), self.weight, out=products)
        sums = _part(scratch[1], _TILE**2, count * outside)
        torch.mm(self._of_products, products.flatten(1), out=sums)
        order = tiles.permute(1, 3, 0, 2, 4)
        torch.add(sums.view(order.shape), self.bias, out=order)


def _surround(picture: Tensor, above: int, around: Tensor) -> None:
    """Write an image (H,W,C) to (h,w,C), from a row before `above` and a column before its first, with zero padding."""
    height, width, _ = picture.shape
    first, last = max(above - 1, 0), min(above - 1 + len(around), height)
    start = first - (above - 1)
    around.zero_()
    around[start : start + last - first, 1 : width + 1] = picture[first:last]


def _scratch(numbers: int) -> Tensor:
    """Return (2,numbers) of memory cached for the thread: touching fresh memory takes longer than the sums.

    Memory for the widest images is not cached.
    """
    if numbers > _KEPT_NUMBERS:
        return torch.empty(2, numbers)
    held: Tensor | None = getattr(of_thread, "scratch", None)
    if held is None or held.shape[1] < numbers:
        # An inference tensor could not be written outside of inference mode.
        with torch.inference_mode(False):
            held = of_thread.scratch = torch.empty(2, numbers)
    return held


def _part(memory: Tensor, *shape: int) -> Tensor:
    """Return the beginning of memory (numbers) as a tensor of a shape."""
    return memory[: prod(shape)].view(shape)


def use_winograd(layer: nn.Conv2d) -> None:
    """Change a convolution, in place, to Winograd's transforms on a CPU, unless it has too many outputs.

    Errors: ValueError for any but a 3×3 one, padded by one zero, without strides or groups.
    """
    if not is_same_size(layer):
        raise ValueError(f"{layer} has no sums: only a plain convolution of 3×3, padded by one zero, has")
    if layer.out_channels <= WIDEST:
        # Only the class changes, so that weights keep their names.
        layer.__class__ = Winograd
