"""Image encoders and style models on their device: image features, and tokens made of them.

Image preprocessing is ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from serve_app.errors import NodeError
from serve_app.images import vision_pixels
from serve_app.models.families.family import StyleFamily, VisionFamily
from serve_app.sampling.transfer import to_device, to_host
from serve_app.values import ClipVisionOutput

LONGEST = 100
"""Limit on the aspect ratio of an image that is cropped: all of it is resized first."""


class ImageEncoder:
    """An image encoder on its device. network: as its family builds it."""

    def __init__(self, family: VisionFamily, network: nn.Module) -> None:
        self.family = family
        self._network = network
        parameter = next(network.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype

    def see(self, batches: Sequence[Tensor], *, crop: bool) -> list[ClipVisionOutput]:
        """Encode batches of images (B_i,H_i,W_i,C) in 0…1, all in one forward.

        Results go to the host by `to_host`. crop: the central square, else the whole image squeezed into a square.
        Errors: NodeError for an image that is too long to be cropped.
        """
        pixels = torch.cat([self._pixels(image, crop) for images in batches for image in images])
        states = self._states(pixels)
        counts = [len(images) for images in batches]
        parts = {name: torch.split(of_all, counts) for name, of_all in states.items()}
        return [ClipVisionOutput(**{name: own[i] for name, own in parts.items()}) for i in range(len(batches))]

    def see_pixels(self, pixels: Tensor) -> ClipVisionOutput:
        """Encode preprocessed images (B,3,S,S); results go to the host as in `see`.

        Errors: NodeError for images of another size.
        """
        size = self.family.image_size
        if pixels.ndim != 4 or pixels.shape[1:] != (3, size, size):
            raise NodeError(
                f"the image encoder looks at B×3×{size}×{size}, and was given {'×'.join(map(str, pixels.shape))}"
            )
        return ClipVisionOutput(**self._states(pixels))

    def _states(self, pixels: Tensor) -> dict[str, Tensor]:
        seen = self.family.see(self._network, to_device(pixels, self._device).to(self._dtype))
        return {name: to_host(states.float()) for name, states in seen.states.items()}

    def _pixels(self, image: Tensor, crop: bool) -> Tensor:
        """Return an image (H,W,C) preprocessed for the network, (1,3,S,S)."""
        size = self.family.image_size
        height, width = image.shape[:2]
        if crop and (height, width) != (size, size) and max(height, width) > LONGEST * min(height, width):
            raise NodeError(
                f"an image of {width}×{height} pixels is more than {LONGEST} times as long as wide; crop it "
                "before it is encoded, or set crop to 'none'"
            )
        return vision_pixels(image[None], size, self.family.mean, self.family.spread, crop=crop)


class StyleModel:
    """A style model on its device. network: as its family builds it."""

    def __init__(self, family: StyleFamily, network: nn.Module) -> None:
        self.family = family
        self._network = network
        parameter = next(network.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype

    def tokens(self, states: Tensor) -> Tensor:
        """Return the tokens (1,B·T,W) of states (B,N,D), those of one image after another's.

        Results go to the host by `to_host`. Errors: NodeError for states of another image encoder.
        """
        if states.shape[-1] != self.family.reads:
            raise NodeError(
                f"the image features are {states.shape[-1]} wide; {self.family.title} reads states "
                f"{self.family.reads} wide: it goes with another image encoder"
            )
        made = self.family.tokens(self._network, to_device(states, self._device).to(self._dtype))
        return to_host(made.float()).flatten(0, 1)[None]
