"""SAM 3.1's detector: boxes, scores and masks of all that a text names in an image.

Layers are transformers' of SAM 3; what is between them goes by ComfyUI's numbers. Source: Carion et al. 2025,
arXiv:2511.16719.
"""

from __future__ import annotations

from math import log2
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torchvision.ops import box_convert, roi_align
from transformers.models.sam3.configuration_sam3 import (
    Sam3DETRDecoderConfig,
    Sam3DETREncoderConfig,
    Sam3GeometryEncoderConfig,
    Sam3MaskDecoderConfig,
)
from transformers.models.sam3.modeling_sam3 import (
    Sam3Attention,
    Sam3DetrDecoderLayer,
    Sam3DetrEncoderLayer,
    Sam3GeometryEncoderLayer,
    Sam3PixelDecoder,
)

from serve_app.models.families.sam3.layers import (
    HEADS,
    Perceptron,
    map_positions,
    maps_of,
    tokens_of,
    waves,
    with_sdpa,
)
from serve_app.sampling.transfer import to_device

POOLED = 7
"""Cells along a side of a box's features."""
RANGE = 8
"""Distances from a box's sides are in eighths of the image."""
MOST = 12.0
"""The largest score."""


class Sizes(NamedTuple):
    """Sizes of a detector. width: of its tokens; text: of a text's; inside: of feed-forward layers; scored: of the one
    before scores; encoders, decoders, geometries: numbers of layers; queries: the most things it finds.
    """

    width: int
    text: int
    inside: int
    scored: int
    encoders: int
    decoders: int
    geometries: int
    queries: int


class Found(NamedTuple):
    """What a detector found in an image. boxes: (Q,4), left, top, right, bottom, in 0…1; scores: (Q,), before their
    sigmoid; masks: (Q,h,w), positive inside.
    """

    boxes: Tensor
    scores: Tensor
    masks: Tensor


class Prompt(NamedTuple):
    """Tokens (1,T,C) that say what is looked for, and which of them count (1,T)."""

    tokens: Tensor
    counts: Tensor

    @property
    def mask(self) -> Tensor:
        """Which tokens are attended to, (1,1,1,T)."""
        return self.counts[:, None, None]


class Geometry(nn.Module):
    """Makes tokens of boxes, and one of the image as a whole."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.width
        config = with_sdpa(Sam3GeometryEncoderConfig(hidden_size=width, intermediate_size=sizes.inside))
        self.boxes_direct_project = nn.Linear(4, width)
        self.boxes_pool_project = nn.Conv2d(width, width, POOLED)
        self.boxes_pos_enc_project = nn.Linear(width + 2, width)
        self.label_embed = nn.Embedding(2, width)
        self.cls_embed = nn.Embedding(1, width)
        self.norm, self.img_pre_norm, self.encode_norm = (nn.LayerNorm(width) for _ in range(3))
        self.final_proj = nn.Linear(width, width)
        self.encode = nn.ModuleList(Sam3GeometryEncoderLayer(config) for _ in range(sizes.geometries))

    def forward(self, features: Tensor, boxes: Tensor | None) -> Tensor:
        """Return tokens (1,N+1,C), the image's last. features: maps (1,C,h,w); boxes: (N,4), centre and size in 0…1."""
        image, positions = tokens_of(features), tokens_of(map_positions(features))
        first = self.norm(self.final_proj(self.cls_embed.weight[None]))
        whole: Tensor = self.encode_norm(self._through(first, image, positions))
        if boxes is None:
            return whole
        shown = self._through(self.norm(self._of_boxes(features, boxes)), image, torch.zeros_like(image))
        return torch.cat((self.final_proj(self.encode_norm(shown)), whole), 1)

    def _through(self, x: Tensor, image: Tensor, positions: Tensor) -> Tensor:
        for layer in self.encode:
            x = layer(x, image, positions, None)
        return x

    def _of_boxes(self, features: Tensor, boxes: Tensor) -> Tensor:
        height, width = features.shape[-2:]
        normed = maps_of(self.img_pre_norm(tokens_of(features)), features)
        sides = to_device(torch.tensor([width, height, width, height], dtype=boxes.dtype), boxes.device)
        corners = box_convert(boxes, "cxcywh", "xyxy") * sides
        pooled = self.boxes_pool_project(roi_align(normed, [corners], POOLED)).flatten(1)
        x, y, across, down = boxes.unbind(-1)
        half = features.shape[1] // 2
        placed = torch.cat((waves(y, half), waves(x, half), down[:, None], across[:, None]), 1).to(boxes.dtype)
        made: Tensor = self.boxes_direct_project(boxes) + pooled + self.boxes_pos_enc_project(placed)
        return (made + self.label_embed.weight[1])[None]


class Decoder(nn.Module):
    """Makes things of queries, layer by layer, and corrects the box of each."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.width
        config = with_sdpa(Sam3DETRDecoderConfig(hidden_size=width, intermediate_size=sizes.inside))
        self.layers = nn.ModuleList(Sam3DetrDecoderLayer(config) for _ in range(sizes.decoders))
        self.norm = nn.LayerNorm(width)
        self.query_embed, self.reference_points = nn.Embedding(sizes.queries, width), nn.Embedding(sizes.queries, 4)
        self.presence_token = nn.Embedding(1, width)
        self.ref_point_head = Perceptron(2 * width, width, width)
        self.bbox_embed = Perceptron(width, width, width, 4)
        self.boxRPB_embed_x, self.boxRPB_embed_y = (Perceptron(2, width, HEADS) for _ in range(2))

    def forward(self, image: Tensor, positions: Tensor, prompt: Prompt, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return queries (1,Q,C) and their boxes (1,Q,4), centre and size in 0…1. image: tokens of a size (h,w)."""
        x = torch.cat((self.presence_token.weight, self.query_embed.weight))[None]
        boxes = self.reference_points.weight.sigmoid()[None]
        things = x[:, 1:]
        for layer in self.layers:
            around = waves(boxes, x.shape[-1] // 2).flatten(-2).to(x.dtype)
            x = layer(
                x,
                query_pos=self.ref_point_head(around),
                text_features=prompt.tokens,
                vision_features=image,
                vision_pos_encoding=positions,
                text_cross_attn_mask=prompt.mask,
                vision_cross_attn_mask=self._nearness(boxes, size),
            )
            things = self.norm(x[:, 1:])
            boxes = (torch.log(boxes / (1 - boxes + 1e-6) + 1e-6) + self.bbox_embed(things)).sigmoid()
        return things, boxes

    def _nearness(self, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """Return biases (1,HEADS,Q+1,h·w) by the distances of cells from boxes' sides; none of the first query."""
        corners = box_convert(boxes, "cxcywh", "xyxy")

        def embedded(cells: int, sides: Tensor, embed: nn.Module) -> Tensor:
            at = torch.arange(cells, dtype=torch.float32, device=boxes.device) / cells
            off = (at[:, None] - sides[:, :, None].float()) * RANGE
            made: Tensor = embed((off.sign() * torch.log2(off.abs() + 1) / log2(RANGE)).to(boxes.dtype))
            return made

        down = embedded(size[0], corners[..., 1::2], self.boxRPB_embed_y)
        across = embedded(size[1], corners[..., 0::2], self.boxRPB_embed_x)
        bias = (down[:, :, :, None] + across[:, :, None]).flatten(2, 3).permute(0, 3, 1, 2)
        return pad(bias, (0, 0, 1, 0)).contiguous()


class Scoring(nn.Module):
    """Scores things by how well they fit what is looked for."""

    def __init__(self, width: int, inside: int) -> None:
        super().__init__()
        self.prompt_mlp: Any = Perceptron(width, inside, width)
        self.prompt_mlp.out_norm = nn.LayerNorm(width)
        self.prompt_proj, self.hs_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, things: Tensor, prompt: Prompt) -> Tensor:
        """Return scores (1,Q) of things (1,Q,C)."""
        tokens = self.prompt_mlp.out_norm(self.prompt_mlp(prompt.tokens) + prompt.tokens)
        counts = prompt.counts[..., None].to(tokens.dtype)
        mean = (tokens * counts).sum(1) / counts.sum(1).clamp(min=1)
        scores: Tensor = self.hs_proj(things) @ self.prompt_proj(mean)[..., None] / things.shape[-1] ** 0.5
        return scores[..., 0].clamp(-MOST, MOST)


class Segmentation(nn.Module):
    """Draws the mask of each thing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        config = with_sdpa(Sam3MaskDecoderConfig(hidden_size=width))
        self.pixel_decoder = Sam3PixelDecoder(config)
        self.mask_embed = Perceptron(width, width, width, width)
        self.cross_attend_prompt = Sam3Attention(config)
        self.cross_attn_norm = nn.LayerNorm(width)
        self.instance_seg_head = nn.Conv2d(width, width, 1)

    def forward(self, things: Tensor, image: Tensor, pyramid: list[Tensor], prompt: Prompt) -> Tensor:
        """Return masks (1,Q,h,w). image: its tokens, which take the place of the pyramid's coarsest maps."""
        said, _ = self.cross_attend_prompt(
            self.cross_attn_norm(image), prompt.tokens, prompt.tokens, attention_mask=prompt.mask
        )
        pixels = self.pixel_decoder([*pyramid[:-1], maps_of(image + said, pyramid[-1])])
        return torch.einsum("bqc,bchw->bqhw", self.mask_embed(things), self.instance_seg_head(pixels))


class Detector(nn.Module):
    """The detector without its image encoder."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        config = with_sdpa(Sam3DETREncoderConfig(hidden_size=sizes.width, intermediate_size=sizes.inside))
        self.resizer = nn.Linear(sizes.text, sizes.width)
        self.geometry_encoder = Geometry(sizes)
        self.encoder = nn.ModuleList(Sam3DetrEncoderLayer(config) for _ in range(sizes.encoders))
        self.decoder = Decoder(sizes)
        self.segmentation_head = Segmentation(sizes.width)
        self.dot_prod_scoring = Scoring(sizes.width, sizes.scored)

    def forward(self, pyramid: list[Tensor], text: Prompt, boxes: Tensor | None = None) -> Found:
        """Return what a text names in an image of a pyramid of maps.

        text: of the text encoder's width. boxes: (N,4), centre and size in 0…1, which show what is meant too.
        """
        features = pyramid[-1]
        shown = self.geometry_encoder(features, boxes)
        counts = torch.cat((text.counts, text.counts.new_ones(shown.shape[:2])), 1)
        prompt = Prompt(torch.cat((self.resizer(text.tokens), shown), 1), counts)
        image, positions = tokens_of(features), tokens_of(map_positions(features))
        for layer in self.encoder:
            image = layer(image, prompt.tokens, positions, prompt.mask)
        things, around = self.decoder(image, positions, prompt, (features.shape[-2], features.shape[-1]))
        scores = self.dot_prod_scoring(things, prompt)
        masks = self.segmentation_head(things, image, pyramid, prompt)
        return Found(box_convert(around, "cxcywh", "xyxy")[0], scores[0], masks[0])
