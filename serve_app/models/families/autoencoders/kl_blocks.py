"""Blocks of a KL autoencoder as they are run here: diffusers' own, without what they do for other networks.

diffusers divides by factors that are 1, and writes every activation and sum into memory of its own, which for a large
picture takes longer to touch than to fill. What comes out is the same, to the bit.
"""

from __future__ import annotations

from typing import Any

from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.nn.functional import silu

from serve_app.models.kernels.upsampling import upsample_within
from serve_app.models.kernels.winograd import use_winograd


class KlResidual(ResnetBlock2D):  # type: ignore[misc]
    """A residual block of an autoencoder, which is told no time."""

    def forward(self, input_tensor: Tensor, temb: None = None) -> Tensor:
        """Return what it makes of x (B,C,H,W). The names of arguments are diffusers'."""
        made = self.conv1(silu(self.norm1(input_tensor), inplace=True))
        made = self.conv2(silu(self.norm2(made), inplace=True))
        out: Tensor = made.add_(input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor))
        return out


def slimmed(network: Any) -> nn.Module:
    """Return an AutoencoderKL or one of its kind with its blocks as they are here, and a CPU's sums within them."""
    for module in network.modules():
        if type(module) is ResnetBlock2D:
            module.__class__ = KlResidual
            use_winograd(module.conv1)
            use_winograd(module.conv2)
        elif isinstance(module, Upsample2D):
            module.interpolate = False
            upsample_within(module.conv)
    slim: nn.Module = network
    return slim
