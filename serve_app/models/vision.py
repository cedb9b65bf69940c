"""Image encoders and style models on their device: what is seen in images, and what of that becomes a text's tokens.

How images are made ready to be seen is ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from serve_app.errors import NodeError
from serve_app.models.families.family import StyleFamily, VisionFamily
from serve_app.values import ClipVisionOutput

LONGEST = 100
"""How many times as long as wide an image may be whose middle is looked at: all of it is resized first."""


class ImageEncoder:
    """An image encoder on its device. network: as its family builds it."""

    def __init__(self, family: VisionFamily, network: nn.Module) -> None:
        self.family = family
        self._network = network
        parameter = next(network.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype

    def see(self, batches: Sequence[Tensor], *, crop: bool) -> list[ClipVisionOutput]:
        """Look at batches of images (B_i,H_i,W_i,C) in 0…1, all in one forward; return what is seen, on the CPU.

        crop: the middle of each is looked at, else the whole, squeezed into a square. Errors: NodeError for an image
        that is too long to be cropped.
        """
        pixels = torch.cat([self._pixels(image, crop) for images in batches for image in images])
        seen = self.family.see(self._network, pixels.to(self._device, self._dtype))
        counts = [len(images) for images in batches]
        parts = {name: torch.split(states.float().cpu(), counts) for name, states in seen.states.items()}
        # A part keeps the whole in memory, and one caller may keep its part longer than the others.
        return [ClipVisionOutput(**{name: own[i].clone() for name, own in parts.items()}) for i in range(len(batches))]

    def _pixels(self, image: Tensor, crop: bool) -> Tensor:
        """Return an image (H,W,C) as the network is shown it, (1,3,S,S)."""
        size = self.family.image_size
        planes = image[None, ..., :3].movedim(-1, 1).float()
        height, width = planes.shape[-2:]
        if (height, width) != (size, size):
            sides = (size, size)
            if crop:
                if max(height, width) > LONGEST * min(height, width):
                    raise NodeError(
                        f"an image of {width}×{height} pixels is more than {LONGEST} times as long as wide; crop it "
                        "before it is encoded, or set crop to 'none'"
                    )
                scale = size / min(height, width)
                sides = (round(scale * height), round(scale * width))
            planes = interpolate(planes, size=sides, mode="bicubic", antialias=True)
            top, left = ((side - size) // 2 for side in planes.shape[-2:])
            planes = planes[..., top : top + size, left : left + size]
        # Pictures have 256 levels, which resizing leaves.
        planes = (planes * 255).clamp(0, 255).round() / 255
        mean, spread = (torch.tensor(numbers)[:, None, None] for numbers in (self.family.mean, self.family.spread))
        return (planes - mean) / spread


class StyleModel:
    """A style model on its device. network: as its family builds it."""

    def __init__(self, family: StyleFamily, network: nn.Module) -> None:
        self.family = family
        self._network = network
        parameter = next(network.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype

    def tokens(self, states: Tensor) -> Tensor:
        """Return the tokens (1,B·T,W) that states (B,N,D) become, those of one image after another's, on the CPU.

        Errors: NodeError for states of another image encoder.
        """
        if states.shape[-1] != self.family.reads:
            raise NodeError(
                f"what is seen in the images is {states.shape[-1]} wide; {self.family.title} reads states "
                f"{self.family.reads} wide: it goes with another image encoder"
            )
        made = self.family.tokens(self._network, states.to(self._device, self._dtype))
        return made.float().cpu().flatten(0, 1)[None]
