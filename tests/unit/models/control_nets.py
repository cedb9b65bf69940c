"""Small networks with drawn weights: a backbone, ControlNets over it and a T2I-Adapter."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from serve_app.models.control.control import ControlNet
from serve_app.models.control.controlnet import ControlNetwork
from serve_app.models.control.t2i_adapter import T2iNetwork, T2iSize
from serve_app.models.families import Sd

N = TypeVar("N", bound=nn.Module)

ARCHITECTURE = Sd(
    channels=(32, 64), res_blocks=(1, 1), depths=(1, 1), middle_depth=1, context_dim=16, latent_channels=4
)
HINT_CHANNELS = (3, 8, 8, 8, 8, 8, 8, 8, 32)


def drawn(module: N, seed: int) -> N:
    """Return the module, which is on the meta device, with weights that keep the variance of what goes through."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in module.state_dict().items():
        scale = tensor[0].numel() ** -0.5 if tensor.ndim > 1 else 0.1
        state[name] = torch.randn(tensor.shape, generator=generator) * scale + (tensor.ndim == 1)
    module.load_state_dict(state, assign=True)
    return module.eval().requires_grad_(False)


def backbone() -> nn.Module:
    """Return diffusers' UNet of ARCHITECTURE."""
    return drawn(ARCHITECTURE.empty(), 0)


def control_net(seed: int, *, kinds: int = 0) -> ControlNet:
    """Return a ControlNet for ARCHITECTURE."""
    with torch.device("meta"):
        empty = ControlNetwork(ARCHITECTURE, ARCHITECTURE.build(), HINT_CHANNELS, kinds=kinds, kind_channels=32)
    return drawn(empty, seed).control_net(seed, f"net{seed}.safetensors")


def adapter(seed: int) -> ControlNet:
    """Return a T2I-Adapter for ARCHITECTURE, for grey hints."""
    with torch.device("meta"):
        empty = T2iNetwork(T2iSize(64, 8, ARCHITECTURE.channels, light=False, blocks=2))
    return drawn(empty, seed).control_net(seed, f"adapter{seed}.safetensors")
