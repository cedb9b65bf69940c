"""Causal layers of HunyuanVideo's autoencoders: each keeps the last two frames that it read.

So a video is processed piece by piece, but for its middle, which attends over the whole video, as ComfyUI's does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Self

from torch import Tensor, cat
from torch.nn.functional import pad, scaled_dot_product_attention, silu

BEFORE = 2
"""Frames before its own that a convolution reads."""
TOGETHER = 2
"""Latent frames that are processed at once."""


class Seen:
    """What the causal layers read last, in the order in which they run. before: of the piece before; None: none."""

    def __init__(self, before: Sequence[Tensor] | None = None) -> None:
        self._before = None if before is None else iter(before)
        self._kept: list[Tensor] = []

    def after(self) -> Self:
        """Return what the layers have read for the piece that follows."""
        return type(self)(self._kept)

    @property
    def first(self) -> bool:
        """Whether it is a video's first piece."""
        return self._before is None

    def conv(self, layer: Any, x: Tensor) -> Tensor:
        """Return a causal convolution's output for frames (B,C,f,h,w)."""
        before = next(self._before) if self._before is not None else x[:, :, :1].expand(-1, -1, BEFORE, -1, -1)
        x = cat([before, x], dim=2)
        self._kept.append(x[:, :, -BEFORE:].clone())
        made: Tensor = layer.conv(pad(x, (1, 1, 1, 1, 0, 0), mode="replicate"))
        return made

    def blocks(self, blocks: Iterable[Any], x: Tensor) -> Tensor:
        """Return the output of residual blocks."""
        for block in blocks:
            inner = self.conv(block.conv1, silu(block.norm1(x)))
            inner = self.conv(block.conv2, silu(block.norm2(inner)))
            x = inner + (x if block.conv_shortcut is None else block.conv_shortcut(x))
        return x


def middle(block: Any, x: Tensor) -> Tensor:
    """Return the output of the middle for a whole video (B,C,T,h,w)."""
    seen = Seen()
    x = seen.blocks(block.resnets[:1], x)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        normed = attention.norm(x)
        q, k, v = (
            to(normed).flatten(2).transpose(1, 2)[:, None] for to in (attention.to_q, attention.to_k, attention.to_v)
        )
        found = scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).reshape(x.shape)
        x = seen.blocks([resnet], x + attention.proj_out(found))
    return x
