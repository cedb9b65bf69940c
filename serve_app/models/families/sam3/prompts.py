"""What SAM 3.1 makes masks with: points, boxes and masks as tokens, and the decoders that draw masks by them.

Sources: Kirillov et al. 2023, arXiv:2304.02643; Ravi et al. 2024, arXiv:2408.00714; Carion et al. 2025,
arXiv:2511.16719; numbers are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import pi
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate
from transformers.models.sam3_tracker.configuration_sam3_tracker import Sam3TrackerMaskDecoderConfig
from transformers.models.sam3_tracker.modeling_sam3_tracker import Sam3TrackerTwoWayTransformer

from serve_app.models.families.sam3.layers import MapNorm, Perceptron, with_sdpa
from serve_app.models.families.sam3.vision import GRID, SIDE

MASK_SIDE = 4 * GRID
"""Cells along a side of the masks that are drawn, and of those that are read."""
OUTSIDE, INSIDE, CORNERS = 0, 1, (2, 3)
"""Kinds of points: not of the thing, of it, and the first and last corner of a box around it."""
NONE = -1
"""The kind of a point that is no point."""


class Fourier(nn.Module):
    """Makes waves of places (…,2) in 0…1, by drawn frequencies."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.positional_encoding_gaussian_matrix = nn.Parameter(torch.empty(2, width // 2))

    def forward(self, places: Tensor) -> Tensor:
        angles = 2 * pi * (2 * places.float() - 1) @ self.positional_encoding_gaussian_matrix.float()
        made = torch.cat((angles.sin(), angles.cos()), -1)
        return made.to(self.positional_encoding_gaussian_matrix.dtype)

    def of_grid(self) -> Tensor:
        """Return the waves (1,C,GRID,GRID) of the middles of an image's cells."""
        device = self.positional_encoding_gaussian_matrix.device
        middles = (torch.arange(GRID, device=device) + 0.5) / GRID
        places = torch.stack((middles.expand(GRID, -1), middles[:, None].expand(-1, GRID)), -1)
        made: Tensor = self(places)
        return made.permute(2, 0, 1)[None]


class PromptEncoder(nn.Module):
    """Makes tokens of points and boxes, and maps of masks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pe_layer = Fourier(width)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, width) for _ in range(4))
        self.not_a_point_embed, self.no_mask_embed = nn.Embedding(1, width), nn.Embedding(1, width)
        self.mask_downscaling = nn.Sequential(
            *(nn.Conv2d(1, 4, 2, stride=2), MapNorm(4), nn.GELU()),
            *(nn.Conv2d(4, 16, 2, stride=2), MapNorm(16), nn.GELU()),
            nn.Conv2d(16, width, 1),
        )

    def points(self, places: Tensor, kinds: Tensor) -> Tensor:
        """Return tokens (B,N,C) of places (B,N,2) in pixels. kinds: (B,N)."""
        tokens = self.pe_layer((places + 0.5) / SIDE)
        for kind, embedding in enumerate(self.point_embeddings):
            moved: Tensor = tokens + embedding.get_parameter("weight")
            tokens = torch.where((kinds == kind)[..., None], moved, tokens)
        return torch.where((kinds == NONE)[..., None], self.not_a_point_embed.weight, tokens)

    def mask(self, masks: Tensor | None) -> Tensor:
        """Return maps (B,C,GRID,GRID) of masks (B,1,h,w); None: of none, (1,C,1,1)."""
        if masks is None:
            return self.no_mask_embed.weight[..., None, None]
        if masks.shape[-2:] != (MASK_SIDE, MASK_SIDE):
            masks = interpolate(masks, (MASK_SIDE, MASK_SIDE), mode="bilinear", align_corners=False, antialias=True)
        made: Tensor = self.mask_downscaling(masks)
        return made


class Drawn(NamedTuple):
    """What a decoder draws for M things, with T masks each. masks: (B,M,T,h,w), positive inside; quality: (B,M,T), how
    well each may fit; tokens: (B,M,T,C), of the masks; seen: (B,M,1), positive for a thing that is in the image.
    """

    masks: Tensor
    quality: Tensor
    tokens: Tensor
    seen: Tensor


class MaskDecoder(nn.Module):
    """Draws masks. things: how many at once; masks: for each."""

    def __init__(self, width: int, inside: int, things: int, masks: int) -> None:
        super().__init__()
        self.things, self.masks = things, masks
        config = with_sdpa(Sam3TrackerMaskDecoderConfig(hidden_size=width, mlp_dim=inside))
        self.transformer = Sam3TrackerTwoWayTransformer(config)
        self.obj_score_token, self.iou_token = nn.Embedding(things, width), nn.Embedding(things, width)
        self.mask_tokens = nn.Embedding(things * masks, width)
        self.output_upscaling = nn.ModuleList(
            (
                nn.ConvTranspose2d(width, width // 4, 2, stride=2),
                MapNorm(width // 4),
                nn.Identity(),
                nn.ConvTranspose2d(width // 4, width // 8, 2, stride=2),
            )
        )
        self.conv_s0, self.conv_s1 = nn.Conv2d(width, width // 8, 1), nn.Conv2d(width, width // 4, 1)
        self.output_hypernetworks_mlps = nn.ModuleList(
            Perceptron(width, width, width, width // 8) for _ in range(masks)
        )
        self.iou_prediction_head = Perceptron(width, width, width, masks)
        self.pred_obj_score_head = Perceptron(width, width, width, 1)

    def forward(
        self,
        image: Tensor,
        positions: Tensor,
        finer: Sequence[Tensor],
        prompt: Tensor | None = None,
        more: Tensor | None = None,
    ) -> Drawn:
        """Draw the masks of B prompts.

        image: maps (B,C,h,w) or (1,C,h,w); positions: (1,C,h,w); finer: maps (1,C,4h,4w) and (1,C,2h,2w) of the image.
        prompt: tokens (B,N,C). more: (B,M,C), added to the tokens of each thing's masks.
        """
        rows = max(len(image), 1 if prompt is None else len(prompt))
        of_masks = torch.unflatten(self.mask_tokens.weight, 0, (self.things, self.masks)).expand(rows, -1, -1, -1)
        if more is not None:
            of_masks = of_masks + more[:, :, None]
        firsts = torch.cat((self.obj_score_token.weight, self.iou_token.weight)).expand(rows, -1, -1)
        tokens = torch.cat((firsts, of_masks.flatten(1, 2), *(() if prompt is None else (prompt,))), 1)
        image = image.expand(rows, -1, -1, -1)
        [*_, height, width] = image.shape
        told, seen = self.transformer(tokens[:, None], image, positions, None)
        told, maps = told[:, 0], seen[:, 0].transpose(1, 2).unflatten(2, (height, width))
        enlarge, norm, _, enlarge_again = self.output_upscaling
        maps = gelu(norm(enlarge(maps) + self.conv_s1(finer[1])))
        maps = gelu(enlarge_again(maps) + self.conv_s0(finer[0]))
        scores, qualities, drawing = told[:, : len(firsts[0]) + self.things * self.masks].split(
            (self.things, self.things, self.things * self.masks), 1
        )
        drawing = torch.unflatten(drawing, 1, (self.things, self.masks))
        by_mask = [mlp(drawing[:, :, number]) for number, mlp in enumerate(self.output_hypernetworks_mlps)]
        masks = torch.einsum("bmtc,bchw->bmthw", torch.stack(by_mask, 2), maps)
        return Drawn(masks, self.iou_prediction_head(qualities), drawing, self.pred_obj_score_head(scores))
