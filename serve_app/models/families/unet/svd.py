"""Stable Video Diffusion: a UNet that makes a video of an image.

Its rows are the frames of one video, which layers in time read together. Run as diffusers'
UNetSpatioTemporalConditionModel. Source: Blattmann et al. 2023, arXiv:2311.15127.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D, TemporalResnetBlock
from diffusers.models.unets.unet_spatio_temporal_condition import UNetSpatioTemporalConditionModel
from torch import Tensor, nn

from serve_app.models.families.family import File, Rows
from serve_app.models.families.shared.concat import image_to_edit
from serve_app.models.families.unet.unet import SIZE_WIDTH, Unet
from serve_app.models.families.unet.unet_blocks import UnetAttention
from serve_app.models.families.unet.unet_names import RES_BLOCK, single_file
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.models.forward import Inputs
from serve_app.recipe.training import ContinuousEdm, Training
from serve_app.sampling.forward import Canvas
from serve_app.sampling.latents.latent_formats import SD

FPS, MOTION, AUGMENTATION = 6, 127, 0.0
"""What a conditioning that says nothing of them has: images a second, how much moves, noise on the image."""
NORM_EPS = 1e-5
"""Of residual blocks' norms; diffusers' blocks differ among themselves."""


@dataclass(frozen=True, slots=True)
class Svd(Unet):
    """A backbone of Stable Video Diffusion."""

    title = "Stable Video Diffusion"
    kind = "Stable Video Diffusion"
    latent_format = SD
    functions = frozenset()
    steady = ()
    rows_are_frames = True

    @classmethod
    def has_widths(cls, context_dim: int, vector_dim: int) -> bool:
        return True

    @classmethod
    def probe(cls, tensors: Tensors) -> Unet:
        found = super(Svd, cls).probe(tensors)
        if found.vector_dim != 3 * SIZE_WIDTH:
            raise tensors.unsupported("has a backbone that turns an object, as SV3D's; supported are videos of SVD")
        return found

    def table(self, tensors: Tensors | None = None) -> Table:
        return dict(_with_time(single_file(self.res_blocks, self.depths, has_vector=True)))

    def build(self) -> nn.Module:
        down = ["CrossAttnDownBlockSpatioTemporal" if depth else "DownBlockSpatioTemporal" for depth in self.depths]
        up = ["CrossAttnUpBlockSpatioTemporal" if depth else "UpBlockSpatioTemporal" for depth in reversed(self.depths)]
        unet = UNetSpatioTemporalConditionModel(
            in_channels=self.latent_channels + self.concat_channels,
            out_channels=self.latent_channels,
            down_block_types=tuple(down),
            up_block_types=tuple(up),
            block_out_channels=self.channels,
            addition_time_embed_dim=SIZE_WIDTH,
            projection_class_embeddings_input_dim=self.vector_dim,
            layers_per_block=self.res_blocks,
            cross_attention_dim=self.context_dim,
            transformer_layers_per_block=tuple(max(d, 1) for d in (*self.depths[:-1], self.middle_depth)),
            num_attention_heads=self.heads,
        )
        for module in unet.modules():
            if isinstance(module, ResnetBlock2D | TemporalResnetBlock):
                module.norm1.eps = module.norm2.eps = NORM_EPS
            elif type(module) is Attention:
                module.__class__ = UnetAttention
        made: nn.Module = unet
        return made

    def empty(self) -> nn.Module:
        # Diffusers makes the shares of space and time of lists, which the default device does not place.
        return super(Svd, self).empty().to("meta")

    def blank_text(self, tokens: int) -> tuple[Tensor, Mapping[str, Any]]:
        """Return a conditioning of the image that a video begins with, which is one token, without numbers."""
        return torch.empty(1, 1, self.context_dim, device="meta"), {}

    def training(self, file: File, names: Mapping[str, str]) -> Training:
        return ContinuousEdm("v_prediction", sigma_max=700.0, sigma_min=0.002)

    def vector(self, options: Mapping[str, Any], canvas: Canvas, role: str) -> Tensor:
        """Return what the network embeds: images a second, how much moves, the noise on the image, (1,3)."""
        fps, motion = options.get("fps", FPS) - 1, options.get("motion_bucket_id", MOTION)
        return torch.tensor([[fps, motion, options.get("augmentation_level", AUGMENTATION)]], dtype=torch.float32)

    def concat(
        self, options: Mapping[str, Any], latents: Tensor, mask: Tensor | None, trained_as: Training
    ) -> Tensor | None:
        return image_to_edit(options, latents)

    def is_steady(self, row: Rows) -> bool:
        """Whether a forward may be padded or recorded: no, as rows depend on each other."""
        return False

    def group_key(self, x: Tensor, inputs: Any) -> Hashable:
        return *x.shape, inputs.context.shape[1]

    def call_inputs(self, network: Any, rows: Sequence[Rows]) -> Mapping[Any, Tensor | None]:
        """Return the call's input tensors: of what is equal for all frames of a video one row."""
        dtype = next(network.parameters()).dtype
        return {
            "x": torch.stack([torch.cat([r.x, r.inputs.concat], dim=1) for r in rows]).to(dtype),
            "timestep": torch.cat([r.timestep[:1] for r in rows]),
            "context": torch.cat([r.inputs.context[:1] for r in rows]).to(dtype),
            "vector": torch.cat([r.inputs.vector[:1] for r in rows]),
        }

    def run(self, network: Any, rows: Sequence[Rows], given: Inputs) -> Tensor:
        videos: Tensor = network(
            given["x"], given["timestep"], given["context"], added_time_ids=given["vector"], return_dict=False
        )[0]
        return videos.flatten(0, 1)


def _with_time(spatial: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield module names in the published file and in diffusers' network, from those of a UNet without time."""
    for theirs, ours in spatial:
        block, _, layer = ours.rpartition(".")
        if ".resnets." in block:
            key = next(key for key, value in RES_BLOCK.items() if value == layer)
            yield theirs, f"{block}.spatial_res_block.{layer}"
            yield f"{theirs.removesuffix(key)}time_stack.{key}", f"{block}.temporal_res_block.{layer}"
            continue
        yield theirs, ours.replace("class_embedding.", "add_embedding.")
        if ".attentions." in ours:
            yield f"{theirs}.time_stack", f"{ours}.temporal_transformer_blocks"
            yield f"{theirs}.time_pos_embed.0", f"{ours}.time_pos_embed.linear_1"
            yield f"{theirs}.time_pos_embed.2", f"{ours}.time_pos_embed.linear_2"
