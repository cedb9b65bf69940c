"""Side networks of diffusion transformers, above all ControlNets: the interface of a family, and hints as latents.

A family is one file, as for backbones (`flux_controlnet`, `sd3_controlnet`); `dit_control_file` reads files.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from serve_app.errors import NodeError
from serve_app.images import resize
from serve_app.models.control.control import ControlNet, Hint, of_another_family, resized
from serve_app.models.families.family import BackboneFamily
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.files.layout import Table
from serve_app.sampling.latents.latents import LatentFormat
from serve_app.sampling.transfer import to_device


class DitControlNetwork(nn.Module, ABC):
    """A ControlNet of a diffusion transformer, on its device."""

    @abstractmethod
    def control_net(self, key: Hashable, name: str) -> ControlNet:
        """Return the ControlNet interface of this network."""


class SideFamily(ABC):
    """A family of networks that run alongside a backbone; an instance is one of them."""

    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.bfloat16, torch.float16)

    def single(self, name: str) -> bool:
        """Whether a tensor of the network stays in float32, whatever the rest computes in; False by default."""
        return False

    @classmethod
    @abstractmethod
    def find(cls, file: Checkpoint) -> Self | None:
        """Return the network in a file, None if it is of another family. Errors: ModelFileError."""

    @abstractmethod
    def table(self) -> Table:
        """Return the mapping from tensor names in the file to the network's."""

    @abstractmethod
    def build(self) -> nn.Module:
        """Return the network, on the default device of the caller's context, which may be meta."""


class DitControlFamily(SideFamily):
    """A family of ControlNets. reads_latents: its hints are encoded by a VAE."""

    @property
    @abstractmethod
    def reads_latents(self) -> bool: ...

    @abstractmethod
    def build(self) -> DitControlNetwork: ...


def check_family(name: str, made_for: BackboneFamily, backbone: Any) -> None:
    """Errors: NodeError for a backbone of another family or width than the ControlNet's."""
    if not isinstance(backbone, type(made_for)):
        raise of_another_family(name, made_for.title, backbone)
    theirs, ours = getattr(made_for, "width", 0), getattr(backbone, "width", 0)
    if theirs != ours:
        raise NodeError(f"'{name}' is made for a {made_for.title} {theirs} wide, and the model is {ours} wide")


def check_latents(name: str, hint: Hint, latent_format: LatentFormat) -> None:
    """Errors: NodeError for a hint without the VAE to encode it."""
    if hint.vae is None:
        raise NodeError(
            f"'{name}' reads its hint as latents of {latent_format.channels} channels: connect a VAE to the node that "
            "applies it"
        )


def hint_latents(hint: Hint, height: int, width: int, latent_format: LatentFormat, *, masked: bool) -> Tensor:
    """Return a hint as scaled latents (N,C,height,width). masked: with a mask channel, 0 where to paint, else 1.

    The image is black where the mask is 0; without a mask, it is 1. With a time axis: (1,C,T,height,width).
    """
    vae = hint.vae
    assert vae is not None, "check_latents is to be called first"
    kept = _kept(hint) if masked else None
    if kept is not None:
        rows, columns = hint.image.shape[1:3]
        seen = resize(kept, columns, rows, "bilinear", "center").round()
        hint = replace(hint, image=hint.image * seen)
    pixels = resized(hint.image, height * vae.factor, width * vae.factor).movedim(1, -1)
    latents = vae.encode(pixels)
    latent_format.check(latents.shape)
    latents = latent_format.to_model(latents)
    if not masked:
        return latents
    if kept is None:
        return torch.cat([latents, torch.ones_like(latents[:, :1])], dim=1)
    mask = to_device(resized(kept, height, width), latents.device)
    if latents.ndim > mask.ndim:
        mask = mask.unsqueeze(2).expand(-1, -1, latents.shape[2], -1, -1)
    count = max(latents.shape[0], mask.shape[0])
    return torch.cat([_repeated(latents, count), _repeated(mask, count)], dim=1)


def _kept(hint: Hint) -> Tensor | None:
    """Return where to keep the image, (N,H,W,1); None without a mask."""
    if hint.mask is None:
        return None
    return 1 - hint.mask.float().reshape(-1, *hint.mask.shape[-2:], 1)


def _repeated(batch: Tensor, count: int) -> Tensor:
    return batch.repeat(-(-count // batch.shape[0]), *(1,) * (batch.ndim - 1))[:count]
