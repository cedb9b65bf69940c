"""A network that reads images and answers in tensors, such as depths, masks or frames between two, on its device."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from serve_app.models.families.family import ImageModelFamily
from serve_app.sampling.transfer import to_device, to_host


class ImageModel:
    """A network that reads images. network: as its family builds it."""

    def __init__(self, family: ImageModelFamily, network: nn.Module) -> None:
        self.family = family
        self._network = network
        parameter = next(network.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype

    def answer(self, pixels: Tensor, **asked: Any) -> dict[str, Tensor]:
        """Return what the network makes of pixels (B,3,H,W) of the host, float32, by name.

        Results go to the host by `to_host`. asked: as the family's `answer`.
        """
        found = self.family.answer(self._network, to_device(pixels, self._device).to(self._dtype), **asked)
        return {name: to_host(one.float()) for name, one in found.items()}
