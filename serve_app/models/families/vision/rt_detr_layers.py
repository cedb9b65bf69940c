"""RT-DETR v4's network of transformers' layers, and what it finds in pixels.

A box is refined from layer to layer by how far each of its sides moves, as a distribution over steps that are fine near
none. Source: Peng et al. 2024, arXiv:2410.13842.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.d_fine.configuration_d_fine import DFineConfig
from transformers.models.d_fine.modeling_d_fine import (
    DFineConvNormLayer,
    DFineCSPRepLayer,
    DFineDecoderLayer,
    DFineHybridEncoder,
    DFineLQE,
    DFineMLP,
)
from transformers.models.hgnet_v2.configuration_hgnet_v2 import HGNetV2Config
from transformers.models.hgnet_v2.modeling_hgnet_v2 import HGNetV2Backbone

from serve_app.models.families.vision.batch_norm import FixedBatchNorm
from serve_app.sampling.transfer import to_device

POINTS = (3, 6, 3)
"""Places that a query reads on each scale."""
BINS, STEEPNESS, REACH = 32, 8.0, 0.5
"""Of the distribution: steps, how much finer they are near none, and the farthest in sides of the box."""
NEAR = 1e-2
"""How near to an edge an anchor is left out."""
ANCHOR = 0.05
"""The sides of an anchor on the finest scale, in 0…1."""
HIDDEN = 64
"""Inside of what judges a box by its distributions."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of HGNetV2. reads, inside, writes: widths; kernel: sides of its convolutions; light: those are apart."""

    reads: int
    inside: int
    writes: int
    blocks: int
    layers: int
    kernel: int
    light: bool
    halves: bool


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of a network. stem, stem_out: widths of the first convolutions; mixing, width: of encoder and decoder.

    repeats, mixed: blocks in a mixing of scales, and their width; kinds: of objects.
    """

    stem: int
    stem_out: int
    stages: tuple[Stage, ...]
    mixing: int
    width: int
    encoder_inside: int
    repeats: int
    mixed: int
    decoders: int
    decoder_inside: int
    kinds: int


def built(sizes: Sizes, heads: int) -> nn.Module:
    """Return the network."""
    width, scales = sizes.width, sizes.stages[1:]
    config = DFineConfig(
        encoder_hidden_dim=sizes.mixing,
        encoder_in_channels=[stage.writes for stage in scales],
        encoder_ffn_dim=sizes.encoder_inside,
        encoder_attention_heads=heads,
        # A half more, as a division that is rounded down gives the width.
        hidden_expansion=(2 * sizes.mixed + 0.5) / sizes.mixing,
        depth_mult=sizes.repeats / 3,
        d_model=width,
        decoder_in_channels=[width] * len(scales),
        decoder_ffn_dim=sizes.decoder_inside,
        decoder_layers=sizes.decoders,
        decoder_attention_heads=heads,
        decoder_n_points=list(POINTS),
        max_num_bins=BINS,
        lqe_hidden_dim=HIDDEN,
        attn_implementation="sdpa",
    )
    network = nn.Module()
    network.backbone = _backbone(sizes)
    network.projections = nn.ModuleList(nn.Conv2d(stage.writes, sizes.mixing, 1) for stage in scales)
    network.encoder = _without_norms(DFineHybridEncoder(config), config)
    apart = sizes.mixing != width
    network.narrowed = nn.ModuleList(nn.Conv2d(sizes.mixing, width, 1) if apart else nn.Identity() for _ in scales)
    network.enc_output = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))
    network.enc_score_head = nn.Linear(width, sizes.kinds)
    network.enc_bbox_head = _small(width, width, 4, 3)
    network.query_pos_head = _small(4, 2 * width, width, 2)
    network.pre_bbox_head = _small(width, width, 4, 3)
    network.layers = nn.ModuleList(DFineDecoderLayer(config) for _ in range(sizes.decoders))
    for layer in network.layers:
        attention: Any = layer.encoder_attn
        # It is computed where the network is run.
        del attention.num_points_scale
    network.qualities = nn.ModuleList(_quality(config) for _ in range(sizes.decoders))
    network.scores = nn.ModuleList(nn.Linear(width, sizes.kinds) for _ in range(sizes.decoders))
    network.corners = nn.ModuleList(_small(width, width, 4 * (BINS + 1), 3) for _ in range(sizes.decoders))
    return network


def found_in(network: Any, pixels: Tensor, queries: int, kinds: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return labels (B,N), boxes (B,N,4) as left, top, right, bottom in 0…1 and scores (B,N), the surest first.

    pixels: (B,3,S,S) in 0…1. queries: N, of which one place may have several kinds.
    """
    scales = [project(x) for project, x in zip(network.projections, network.backbone(pixels).feature_maps, strict=True)]
    scales = network.encoder(inputs_embeds=scales).last_hidden_state
    scales = [narrow(x) for narrow, x in zip(network.narrowed, scales, strict=True)]
    sizes = [(x.shape[2], x.shape[3]) for x in scales]
    memory = torch.cat([x.flatten(2).transpose(1, 2) for x in scales], dim=1)
    content, reference = _likeliest(network, memory, sizes, queries)
    boxes, logits = _refined(network, content, reference, memory, sizes)
    scores, places = logits.sigmoid().flatten(1).topk(queries, dim=-1)
    middle, half = boxes[..., :2], boxes[..., 2:] / 2
    corners = torch.cat([middle - half, middle + half], dim=-1)
    of_place = (places // kinds).unsqueeze(-1).expand(-1, -1, 4)
    return places % kinds, corners.gather(1, of_place), scores


def _likeliest(network: Any, memory: Tensor, sizes: Sequence[tuple[int, int]], queries: int) -> tuple[Tensor, Tensor]:
    """Return the features (B,N,D) of the likeliest places, and their boxes (B,N,4) before the sigmoid."""
    anchors, allowed = _anchors(sizes, memory)
    read = network.enc_output(memory * allowed)
    chosen = network.enc_score_head(read).amax(dim=-1).topk(queries, dim=-1).indices[..., None]
    content = read.gather(1, chosen.expand(-1, -1, read.shape[-1]))
    places = anchors.expand(len(memory), -1, -1).gather(1, chosen.expand(-1, -1, 4))
    return content, network.enc_bbox_head(content) + places


def _anchors(sizes: Sequence[tuple[int, int]], like: Tensor) -> tuple[Tensor, Tensor]:
    """Return a box around each place of all scales, (1,N,4) before the sigmoid, and whether it is used, (N,1).

    Boxes are computed in float32, and of those that are not used infinite.
    """
    made = []
    for scale, (height, width) in enumerate(sizes):
        y, x = (torch.arange(side, device=like.device, dtype=torch.float32) + 0.5 for side in (height, width))
        down, across = torch.meshgrid(y / height, x / width, indexing="ij")
        middle = torch.stack([across, down], dim=-1).flatten(0, 1)
        made.append(torch.cat([middle, torch.full_like(middle, ANCHOR * 2**scale)], dim=-1))
    boxes = torch.cat(made)
    allowed = ((boxes > NEAR) & (boxes < 1 - NEAR)).all(dim=-1, keepdim=True)
    boxes = torch.log(boxes / (1 - boxes)).masked_fill(~allowed, torch.inf)
    return boxes[None].to(like.dtype), allowed.to(like.dtype)


def _refined(
    network: Any, x: Tensor, reference: Tensor, memory: Tensor, sizes: Sequence[tuple[int, int]]
) -> tuple[Tensor, Tensor]:
    """Return boxes (B,N,4), middle and sides in 0…1, and what speaks for each kind (B,N,K), by all layers."""
    steps = _steps(x)
    scales = to_device(torch.tensor([1 / count for count in POINTS for _ in range(count)]), x.device)
    places = torch.tensor(sizes)
    box = reference.sigmoid()
    first, before, corners = box, torch.zeros_like(x), torch.zeros((), device=x.device, dtype=x.dtype)
    for number, layer in enumerate(network.layers):
        layer.encoder_attn.num_points_scale = scales
        x = layer(
            x,
            position_embeddings=network.query_pos_head(box).clamp(-10, 10),
            reference_points=box.unsqueeze(2),
            spatial_shapes=places,
            spatial_shapes_list=sizes,
            encoder_hidden_states=memory,
        )
        if number == 0:
            first = (network.pre_bbox_head(x) + torch.logit(box, eps=1e-5)).sigmoid()
        corners = network.corners[number](x + before) + corners
        likely = corners.unflatten(-1, (4, BINS + 1)).softmax(dim=-1)
        box = _moved(first, likely @ steps)
        before = x
    return box, network.qualities[-1](network.scores[-1](x), corners)


def _moved(boxes: Tensor, sides: Tensor) -> Tensor:
    """Return boxes (B,N,4), middle and sides, whose four sides (B,N,4) move outwards; half a side is none."""
    step = boxes[..., 2:] / STEEPNESS
    low = boxes[..., :2] - (0.5 * STEEPNESS + sides[..., :2]) * step
    high = boxes[..., :2] + (0.5 * STEEPNESS + sides[..., 2:]) * step
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def _steps(like: Tensor) -> Tensor:
    """Return how far a side moves at each step of the distribution, (BINS + 1,)."""
    farthest = REACH * STEEPNESS
    base = (farthest + 1) ** (2 / (BINS - 2))
    outwards = [base**step - 1 for step in range(1, BINS // 2)] + [2 * farthest]
    steps = [*(-step for step in reversed(outwards)), 0.0, *outwards]
    return to_device(torch.tensor(steps), like.device).to(like.dtype)


def _backbone(sizes: Sizes) -> nn.Module:
    stages = sizes.stages
    backbone = HGNetV2Backbone(
        HGNetV2Config(
            embedding_size=sizes.stem_out,
            depths=[stage.blocks for stage in stages],
            hidden_sizes=[stage.writes for stage in stages],
            stem_channels=[3, sizes.stem, sizes.stem_out],
            stage_in_channels=[stage.reads for stage in stages],
            stage_mid_channels=[stage.inside for stage in stages],
            stage_out_channels=[stage.writes for stage in stages],
            stage_num_blocks=[stage.blocks for stage in stages],
            stage_downsample=[stage.halves for stage in stages],
            stage_downsample_strides=[2] * len(stages),
            stage_light_block=[stage.light for stage in stages],
            stage_kernel_size=[stage.kernel for stage in stages],
            stage_numb_of_layers=[stage.layers for stage in stages],
            out_indices=list(range(2, len(stages) + 1)),
        )
    )
    for module in list(backbone.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, FixedBatchNorm(child.num_features))
    made: nn.Module = backbone
    return made


def _without_norms(encoder: nn.Module, config: DFineConfig) -> nn.Module:
    """Return the encoder with its batch norms, and blocks of two convolutions, as one convolution with a bias each."""
    for module in list(encoder.modules()):
        if isinstance(module, DFineCSPRepLayer):
            width = module.conv1.conv.out_channels
            blocks = (DFineConvNormLayer(config, width, width, 3, 1, activation="silu") for _ in module.bottlenecks)
            module.bottlenecks = nn.ModuleList(blocks)
    for module in encoder.modules():
        if isinstance(module, DFineConvNormLayer):
            module.norm = nn.Identity()
            module.conv.bias = nn.Parameter(torch.zeros(module.conv.out_channels))
    return encoder


def _small(reads: int, inside: int, writes: int, layers: int) -> nn.Module:
    made: nn.Module = DFineMLP(reads, inside, writes, layers, act="silu")
    return made


def _quality(config: DFineConfig) -> nn.Module:
    made: Any = DFineLQE(config)
    made.reg_conf = _small(4 * (config.top_prob_values + 1), HIDDEN, 1, config.lqe_layers)
    module: nn.Module = made
    return module
