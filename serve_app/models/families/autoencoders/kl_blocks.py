"""Blocks of a KL autoencoder for inference: diffusers' own, without work that it does for other networks.

diffusers divides by factors that are 1, and writes every activation and sum to fresh memory, which for a large image
takes longer to touch than to fill. Outputs are equal, to the bit.
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
    """A residual block of an autoencoder, which has no time input."""

    def forward(self, input_tensor: Tensor, temb: None = None) -> Tensor:
        """Return the block's output for x (B,C,H,W). The names of arguments are diffusers'."""
        made = self.conv1(silu(self.norm1(input_tensor), inplace=True))
        made = self.conv2(silu(self.norm2(made), inplace=True))
        out: Tensor = made.add_(input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor))
        return out


def slimmed(network: Any) -> nn.Module:
    """Return an AutoencoderKL or a subclass with its blocks replaced by these, and CPU kernels in them."""
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
