"""SAM 3.1's tracker: draws masks where prompts show a thing, and where a thing that it remembers has gone.

Sources: Ravi et al. 2024, arXiv:2408.00714; Carion et al. 2025, arXiv:2511.16719; numbers are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, lerp, nn
from torch.nn.functional import interpolate

from serve_app.models.families.sam3.layers import PERIOD, Perceptron, map_positions, maps_of, tokens_of
from serve_app.models.families.sam3.memory import (
    BUCKET,
    FRAMES,
    POINTERS,
    MemoryAttention,
    MemoryEncoder,
    Remembered,
    bucketed,
    with_buckets,
)
from serve_app.models.families.sam3.prompts import MASK_SIDE, NONE, Fourier, MaskDecoder, PromptEncoder
from serve_app.models.families.sam3.vision import SIDE
from serve_app.sampling.transfer import to_device

ABSENT = -1024.0
"""What a mask is everywhere of a thing that is not in the image."""
MASKS, MASKS_AT_ONCE = 4, 3
"""Masks that are drawn for a prompt, the first for a clear one; and for each thing of a bucket."""
SHARPNESS, BIAS = 20.0, -10.0
"""From a given mask, of 0 and 1, to one as they are drawn."""


class TrackerSizes(NamedTuple):
    """Sizes of a tracker. width: of its tokens; inside, drawing: of feed-forward layers of its memory and decoders;
    layers: of its memory; steps, fusers: as `MemoryEncoder`.
    """

    width: int
    inside: int
    drawing: int
    layers: int
    steps: tuple[int, ...]
    fusers: int


class Masks(NamedTuple):
    """Masks of N things in an image. small, large: (N,1,h,w), positive inside, of sides MASK_SIDE and SIDE; pointers:
    (N,C); seen: (N,1), positive for one that is in the image.
    """

    small: Tensor
    large: Tensor
    pointers: Tensor
    seen: Tensor


@dataclass(slots=True, eq=False)
class Frame:
    """A frame as it is remembered. pointers: (K,BUCKET,C); image, positions: tokens (1,N,C); maps: (K,C,h,w).

    small, large: masks as `Masks`.
    """

    small: Tensor
    large: Tensor
    pointers: Tensor
    image: Tensor
    positions: Tensor
    maps: Tensor | None = None


class Tracker(nn.Module):
    """The tracker without its image encoder."""

    def __init__(self, sizes: TrackerSizes) -> None:
        super().__init__()
        width = sizes.width
        self.transformer = MemoryAttention(width, sizes.inside, sizes.layers)
        self.sam_mask_decoder = MaskDecoder(width, sizes.drawing, BUCKET, MASKS_AT_ONCE)
        self.interactive_sam_mask_decoder = MaskDecoder(width, sizes.drawing, 1, MASKS)
        self.interactive_sam_prompt_encoder = PromptEncoder(width)
        self.maskmem_backbone = MemoryEncoder(width, sizes.steps, sizes.fusers)
        self.maskmem_tpos_enc = nn.Parameter(torch.empty(FRAMES, 1, 1, width))
        self.no_obj_embed_spatial = nn.Parameter(torch.empty(BUCKET, width))
        self.interactivity_no_mem_embed = nn.Parameter(torch.empty(1, 1, width))
        self.output_valid_embed, self.output_invalid_embed = (nn.Parameter(torch.empty(BUCKET, width)) for _ in "io")
        self.obj_ptr_proj, self.interactive_obj_ptr_proj = (Perceptron(*(width,) * 4) for _ in "io")
        self.obj_ptr_tpos_proj, self.no_obj_ptr_linear = nn.Linear(width, width), nn.Linear(width, width)
        self.interactive_mask_downsample = nn.Conv2d(1, 1, 4, stride=4)
        self.image_pe_layer = Fourier(width)

    def drawn(
        self,
        pyramid: Sequence[Tensor],
        points: tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
        *,
        choose: bool = False,
    ) -> Masks:
        """Return masks that prompts show. pyramid: the one for prompts.

        points: places (1,N,2) in pixels and kinds (1,N). mask: (N,1,h,w). choose: of several masks the one that fits
        best, as for a single point, which says little.
        """
        encoder, coarsest = self.interactive_sam_prompt_encoder, pyramid[-1]
        rows = 1 if mask is None else len(mask)
        if points is None:
            points = coarsest.new_zeros(rows, 2, 2), coarsest.new_full((rows, 2), NONE)
        image = coarsest + self.interactivity_no_mem_embed[0, ..., None, None] + encoder.mask(mask)
        made = self.interactive_sam_mask_decoder(
            image, encoder.pe_layer.of_grid(), pyramid[:-1], encoder.points(*points)
        )
        masks, tokens, quality = made.masks[:, 0], made.tokens[:, 0], made.quality[:, 0]
        best = 1 + quality[:, 1:].argmax(-1) if choose else torch.zeros_like(quality[:, 0], dtype=torch.long)
        of_row = torch.arange(rows, device=best.device)
        return self._masks(masks[of_row, best], self.interactive_obj_ptr_proj(tokens[of_row, best]), made.seen[:, 0])

    def given(self, pyramid: Sequence[Tensor], masks: Tensor) -> Masks:
        """Return given masks (N,1,SIDE,SIDE), of 0 and 1, as if they were drawn. pyramid: the one for prompts."""
        pointers = self.drawn(pyramid, mask=self.interactive_mask_downsample(masks)).pointers
        large = masks * SHARPNESS + BIAS
        small = interpolate(large, (MASK_SIDE, MASK_SIDE), mode="bilinear", align_corners=False, antialias=True)
        seen = (masks.flatten(1) > 0).any(1)[:, None].to(masks.dtype)
        return Masks(small, large, pointers, seen * SHARPNESS + BIAS)

    def followed(self, pyramid: Sequence[Tensor], remembered: Remembered, things: int) -> Masks:
        """Return the masks of remembered things in an image. pyramid: the one for what is followed."""
        coarsest = pyramid[-1]
        image = self.transformer(tokens_of(coarsest), tokens_of(map_positions(coarsest)), remembered)
        there = bucketed(coarsest.new_ones(things, 1))
        used = there * self.output_valid_embed + (1 - there) * self.output_invalid_embed
        made = self.sam_mask_decoder(maps_of(image, coarsest), self.image_pe_layer.of_grid(), pyramid[:-1], more=used)
        masks, quality, tokens, seen = (part.flatten(0, 1)[:things] for part in made)
        best = quality.argmax(-1)
        of_thing = torch.arange(things, device=best.device)
        return self._masks(masks[of_thing, best], self.obj_ptr_proj(tokens[:, 0]), seen)

    def _masks(self, small: Tensor, pointers: Tensor, seen: Tensor) -> Masks:
        there = seen > 0
        small = torch.where(there[..., None], small, ABSENT)[:, None]
        pointers = lerp(self.no_obj_ptr_linear(pointers), pointers, there.to(pointers.dtype))
        return Masks(small, enlarged(small), pointers, seen)

    def remember(self, frame: Frame, masks: Tensor, seen: Tensor, certain: Tensor, coarsest: Tensor) -> None:
        """Remember the masks (N,1,h,w) of things in a frame. certain: (N,), 1 for a mask that was given, else 0.

        seen: (N,1), positive for a thing that is in the image. coarsest: of the pyramid for what is followed.
        """
        drawn = bucketed(masks[:, 0].sigmoid() * 2 - 1)
        sure = bucketed(certain.to(masks.dtype))[..., None, None].expand_as(drawn)
        maps = self.maskmem_backbone(coarsest, torch.cat((drawn, sure), 1))
        absent = 1 - bucketed((seen > 0).to(maps.dtype))
        frame.maps = maps + (absent * self.no_obj_embed_spatial).sum(1)[..., None, None]

    def remembered(
        self, number: int, frames: int, given: Mapping[int, Frame], others: Mapping[int, Frame], buckets: int
    ) -> Remembered:
        """Return what is remembered at a frame, by number, of a video of some frames.

        given: frames whose masks were given, by number; others: those before, as far as they are kept.
        """
        memory: list[Tensor] = []
        positions: list[Tensor] = []
        images: list[Tensor] = []
        of_images: list[Tensor] = []
        placed = [(frame, FRAMES - 1 - (number - at if 0 < number - at < FRAMES else 0)) for at, frame in given.items()]
        placed += [(others[number - ago], ago - 1) for ago in range(FRAMES - 1, 0, -1) if number - ago in others]
        for frame, place in placed:
            assert frame.maps is not None
            when = self.maskmem_tpos_enc[place]
            where = tokens_of(map_positions(frame.maps)).expand(len(frame.maps), -1, -1)
            memory.append(tokens_of(with_buckets(frame.maps, buckets)))
            positions.append(with_buckets(where, buckets) + when)
            images.append(frame.image)
            of_images.append(frame.positions + when)
        most = min(frames, POINTERS)
        pointed = [(number - at, frame) for at, frame in given.items() if at <= number]
        pointed += [(ago, others[number - ago]) for ago in range(1, most) if number - ago in others]
        pointers = torch.stack([with_buckets(frame.pointers, buckets) for _, frame in pointed], 1).flatten(1, 2)
        agos = to_device(torch.tensor([float(ago) for ago, _ in pointed]), pointers.device)
        when = self._when(agos / max(most - 1, 1)).repeat_interleave(BUCKET, 0)
        return Remembered(
            torch.cat((*memory, pointers), 1),
            torch.cat((*positions, when.expand(buckets, -1, -1)), 1),
            torch.cat(images, 1),
            torch.cat(of_images, 1),
        )

    def _when(self, agos: Tensor) -> Tensor:
        """Return tokens (N,C) of times (N,)."""
        width = self.maskmem_tpos_enc.shape[-1] // 2
        steps = torch.arange(width, device=agos.device) // 2
        angles = agos[:, None] / PERIOD ** (2 * steps / width)
        made: Tensor = self.obj_ptr_tpos_proj(
            torch.cat((angles.sin(), angles.cos()), -1).to(self.maskmem_tpos_enc.dtype)
        )
        return made


def enlarged(masks: Tensor) -> Tensor:
    """Return masks (N,1,h,w) as they are drawn in images, (N,1,SIDE,SIDE)."""
    return interpolate(masks, (SIDE, SIDE), mode="bilinear", align_corners=False)
