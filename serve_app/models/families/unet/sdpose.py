"""SDPose: Stable Diffusion 2 whose features of an image become heatmaps of a person's 133 keypoints.

The UNet runs once, as Lotus' does, at the last level of noise; the head reads what its finest level is given. Source:
Liang et al. 2025, arXiv:2509.24980; the numbers are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import instance_norm, silu

from serve_app.models.families.unet.lotus import Lotus, task
from serve_app.models.families.unet.unet import CELL
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.sampling.transfer import to_device, to_host
from serve_app.values import PoseSearch

MARK = "heatmap_head.final_layer.weight"
LAST_LEVEL = 999.0
"""The time of the most noise, by which the network was trained to read images."""
FINER = 2
"""How many points of a heatmap lie along a cell of the latents."""


@dataclass(frozen=True, slots=True)
class SdPose(Lotus):
    """A backbone of SDPose. keypoints: how many it finds."""

    title = "SDPose"
    searches = (PoseSearch,)
    image_size: ClassVar[tuple[int, int]] = (768, 1024)
    """Width and height of what it looks at, into which an image is squeezed."""

    keypoints: int = 133

    @classmethod
    def recognises(cls, tensors: Tensors) -> bool:
        return super(SdPose, cls).recognises(tensors) and MARK in tensors.shapes

    @classmethod
    def probe(cls, tensors: Tensors) -> SdPose:
        """Read the network's size off its tensors. Errors: ModelFileError for a head of other widths."""
        found = super(SdPose, cls).probe(tensors)
        assert isinstance(found, SdPose)
        width = found.channels[1] if len(found.channels) > 1 else 0
        keypoints, reads = tensors.shape(MARK)[:2]
        if keypoints != found.keypoints or reads != width:
            raise tensors.unsupported(
                f"holds an SDPose that finds {keypoints} keypoints in features {reads} wide; supported are "
                f"{found.keypoints} keypoints, and the width of the UNet's second level, here {width}"
            )
        return found

    @classmethod
    def heatmap_size(cls) -> tuple[int, int]:
        """Return the width and height of heatmaps."""
        width, height = cls.image_size
        return width // CELL * FINER, height // CELL * FINER

    def table(self, tensors: Tensors | None = None) -> Table:
        head = {
            "heatmap_head.deconv_layers.0": "heatmap_head.enlarge",
            "heatmap_head.conv_layers.0": "heatmap_head.mix",
            "heatmap_head.final_layer": "heatmap_head.draw",
        }
        return {**super(SdPose, self).table(tensors), **head}

    def build(self) -> nn.Module:
        network = super(SdPose, self).build()
        network.heatmap_head = _Head(self.channels[1], self.keypoints)
        return network

    def searched(self, network: Any, request: PoseSearch) -> Generator[tuple[int, int], None, Tensor]:
        """Yield the progress, and return heatmaps (B,K,h,w)."""
        parameter = next(network.parameters())
        device, dtype = parameter.device, parameter.dtype
        latents = self.latent_format.to_model(to_device(request.latents.float(), device))
        rows = len(latents)
        context = to_device(request.text, device).expand(rows, -1, -1)
        heatmaps = network.heatmap_head(
            self._features(
                network,
                latents.to(dtype),
                context.to(dtype),
                to_device(task(), device).to(dtype).expand(rows, -1),
            )
        )
        found = to_host(heatmaps.float())
        yield request.done + rows, request.total
        return found

    def _features(self, network: Any, x: Tensor, context: Tensor, vector: Tensor) -> Tensor:
        """Return what the finest level of the decoder is given, (B,C,h,w)."""
        kept: list[Tensor] = []
        second = network.up_blocks[-2]
        hook = second.register_forward_hook(lambda _, __, made: kept.append(made))
        try:
            time = torch.full((len(x),), LAST_LEVEL, device=x.device)
            network(x, time, context, class_labels=vector, return_dict=False)
        finally:
            hook.remove()
        return kept[0]


class _Head(nn.Module):
    """Draws heatmaps of features. width: of those; keypoints: how many heatmaps."""

    def __init__(self, width: int, keypoints: int) -> None:
        super().__init__()
        self.enlarge = nn.ConvTranspose2d(width, width, 4, stride=2, padding=1, bias=False)
        self.mix = nn.Conv2d(width, width, 1)
        self.draw = nn.Conv2d(width, keypoints, 1)

    def forward(self, x: Tensor) -> Tensor:
        drawn: Tensor = self.draw(_activated(self.mix(_activated(self.enlarge(x)))))
        return drawn


def _activated(x: Tensor) -> Tensor:
    return silu(instance_norm(x))
