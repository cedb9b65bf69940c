"""FreeU on the decoder's skip connections, per row: rows that differ in it share a forward.

Before each residual block of the decoder, backbone features and skip features are concatenated. FreeU amplifies half of
the first and damps the low frequencies of the second, where the backbone features are four or two times as wide as the
finest level. Source: Si et al. 2023, arXiv:2309.11497, equations 3 to 5, and its second version.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache, partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from serve_app.recipe.layers import FreeU
from serve_app.sampling.transfer import to_device


@contextmanager
def with_freeu(network: Any, features: Sequence[tuple[int, Sequence[FreeU]]]) -> Iterator[None]:
    """Apply FreeU while the network runs. network: UNet2DConditionModel. features: (rows, patches in order) in turn."""
    if not any(patches for _, patches in features):
        yield
        return
    with ExitStack() as stack:
        # Neighbours with equal patches are processed as one.
        features = [(sum(n for n, _ in alike), patches) for patches, alike in groupby(features, lambda own: own[1])]
        finest = network.config.block_out_channels[0]
        reached = network.config.block_out_channels[-1]
        for block in network.up_blocks:
            for resnet in block.resnets:
                place = {4 * finest: 0, 2 * finest: 1}.get(reached)
                if place is not None:
                    hook = resnet.register_forward_pre_hook(partial(_joined, features, place, reached))
                    stack.callback(hook.remove)
                reached = resnet.out_channels
        yield


def _joined(
    features: Sequence[tuple[int, Sequence[FreeU]]], place: int, width: int, _block: Any, given: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Return a block's inputs with FreeU applied to its rows. width: channels of the backbone features."""
    x, *others = given
    rows = []
    for row, (_, patches) in zip(torch.split(x, [count for count, _ in features]), features, strict=True):
        coarse, skipped = row[:, :width], row[:, width:]
        for patch in patches:
            b, s = ((patch.b1, patch.s1), (patch.b2, patch.s2))[place]
            coarse = _amplified(coarse, b, adaptive=patch.adaptive)
            skipped = _damped(skipped, s)
        rows.append(torch.cat([coarse, skipped], dim=1) if patches else row)
    return (torch.cat(rows), *others)


def _amplified(coarse: Tensor, b: float, *, adaptive: bool) -> Tensor:
    half = coarse.shape[1] // 2
    gain: Tensor | float = b
    if adaptive:
        mean = coarse.mean(dim=1, keepdim=True)
        low, high = mean.amin(dim=(1, 2, 3), keepdim=True), mean.amax(dim=(1, 2, 3), keepdim=True)
        gain = (mean - low) / (high - low) * (b - 1) + 1
    return torch.cat([coarse[:, :half] * gain, coarse[:, half:]], dim=1)


def _damped(skipped: Tensor, s: float) -> Tensor:
    height, width = skipped.shape[-2:]
    share = 1 + (s - 1) * _lowest(height, width, skipped.device)
    filtered: Tensor = torch.fft.ifft2(torch.fft.fft2(skipped.float()) * share).real
    return filtered.to(skipped.dtype)


@lru_cache(maxsize=64)
def _lowest(height: int, width: int, device: torch.device) -> Tensor:
    """Return 1 at the four lowest frequencies, 0 and the first below it along both sides, and 0 at all others."""
    rows, columns = torch.zeros(height), torch.zeros(width)
    rows[[-1, 0]] = columns[[-1, 0]] = 1
    return to_device(torch.outer(rows, columns), device)
