"""The autoencoder of LTX-2.5's videos, whose decoder draws images in one step of diffusion from a volume of features.

The encoder is LTX-2's. The decoder's layers are those of diffusers' LTX2VideoDiffusionDecoder3d; its attention sees a
window around each cell. It looks ahead, so a video is decoded as a whole. Source: HaCohen et al. 2026,
arXiv:2601.03233; the numbers are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from diffusers.models.autoencoders.ltx2_diffusion_decoder import LTX2VideoDiffusionDecoder3d
from torch import Tensor, nn

from serve_app.models.families.autoencoders.ltx2_layers import (
    DOWN,
    FRAMES,
    PATCH,
    Blocks,
    blocks_of,
    encoded,
    encoder,
    factor_of,
    patched,
    unpatched,
)
from serve_app.models.families.family import Located, VideoVaeFamily, marked
from serve_app.models.files.layout import Place, Table
from serve_app.models.files.tensors import Tensors
from serve_app.models.kernels.neighborhoods import Sides, neighborhood_attention
from serve_app.store.models.kinds import VAE_PREFIXES

MARKS = ("decoder.conv_in_x_t.weight",)
SEED = 0
"""Of the noise that images are drawn from, as in ComfyUI: a video is always decoded alike."""
ENCODER: Sequence[tuple[str, Mapping[str, int]]] = (
    ("res_x", {"num_layers": 4}),
    ("compress_space_res", {"multiplier": 2}),
    ("res_x", {"num_layers": 6}),
    ("compress_time_res", {"multiplier": 2}),
    ("res_x", {"num_layers": 4}),
    ("compress_all_res", {"multiplier": 2}),
    ("res_x", {"num_layers": 2}),
    ("compress_all_res", {"multiplier": 1}),
    ("res_x", {"num_layers": 2}),
)
"""The published encoder's blocks, for a file whose metadata does not list them."""
WINDOWS: tuple[Sides, ...] = ((3, 7, 7), (3, 7, 7), (3, 5, 5), (3, 5, 5))
LAST_WINDOW: Sides = (11, 11, 11)
"""The published decoder's windows, of each stage and of the last."""
UPSAMPLES: Sequence[tuple[Sides, int]] = (((1, 2, 2), 2), ((2, 1, 1), 2), ((2, 2, 2), 1), ((2, 2, 2), 2))
"""By how much its stages enlarge frames, rows and columns, and divide channels."""
HEAD = 64


@dataclass(frozen=True, slots=True)
class Ltx25Vae(VideoVaeFamily):
    """An autoencoder of videos. width: of the encoder's finest level; encoder: its blocks; encoded: what it returns.

    widths, depths, windows: of the decoder's stages, of which the last draws images; upsamples: between them, by how
    much they enlarge frames, rows and columns and divide channels. head: width of an attention head. time_scale:
    multiplies times. padding: at the sides of an image.
    """

    frames = FRAMES
    dtypes = (torch.bfloat16,)

    latent_channels: int
    width: int
    encoder: Blocks
    encoded: int
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    windows: tuple[Sides, ...]
    upsamples: tuple[tuple[Sides, int], ...]
    head: int
    time_width: int
    time_scale: float
    padding: str = "zeros"
    image_channels: int = 3

    @property
    def factor(self) -> int:
        return factor_of(self.encoder)

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        found = marked(files[0], VAE_PREFIXES, MARKS) if len(files) == 1 else None
        if found is not None:
            yield Located(cls.probe(found[1]), found[1], prefix=found[0])

    @classmethod
    def probe(cls, tensors: Tensors) -> Ltx25Vae:
        """Read the network's size off its tensors and metadata. Errors: ModelFileError for an unsupported variant."""
        config = tensors.config("vae")
        of_encoder, of_decoder = config.get("encoder", {}), config.get("decoder", {})
        if config.get("model_output_type", "x0") != "x0" or of_decoder.get("default_num_inference_steps", 1) != 1:
            raise tensors.unsupported("holds an LTX VAE that decodes in several steps; supported is LTX-2.5's, of one")
        if of_encoder.get("patch_size", PATCH) != PATCH or of_decoder.get("patch_size", PATCH) != PATCH:
            raise tensors.unsupported(f"holds an LTX VAE whose patches are not of {PATCH}×{PATCH} pixels")
        upsamples = tuple((_sides(stride), int(by)) for stride, by in of_decoder.get("upsamples", UPSAMPLES))
        windows = of_decoder.get("stage_kernels", (*WINDOWS, LAST_WINDOW))[: len(upsamples)]
        return cls(
            tensors.shape("decoder.conv_in.weight")[1],
            tensors.shape("encoder.conv_in.conv.weight")[0],
            blocks_of(tensors, of_encoder.get("blocks", ENCODER), DOWN),
            tensors.shape("encoder.conv_out.conv.weight")[0],
            (
                *(tensors.shape(f"decoder.upsamples.{stage}.proj.weight")[1] for stage in range(len(upsamples))),
                tensors.shape("decoder.conv_in_x_t.weight")[0],
            ),
            (
                *(tensors.count(f"decoder.det_stages.{stage}.") for stage in range(len(upsamples))),
                tensors.count("decoder.diff_blocks."),
            ),
            (*map(_sides, windows), _sides(of_decoder.get("stage5_kernel", LAST_WINDOW))),
            upsamples,
            int(of_decoder.get("head_dim", HEAD)),
            tensors.shape("decoder.t_embedder.mlp.0.weight")[0],
            float(of_decoder.get("timestep_scale_multiplier", 1000.0)),
            of_encoder.get("spatial_padding_mode", "zeros"),
        )

    def table(self, tensors: Tensors | None = None) -> Table:
        names: dict[str, str | tuple[Place, ...]] = {
            "encoder": "encoder",
            "decoder": "decoder",
            "decoder.t_embedder.mlp.0": "decoder.t_embedder.timestep_embedder.linear_1",
            "decoder.t_embedder.mlp.2": "decoder.t_embedder.timestep_embedder.linear_2",
            "per_channel_statistics.mean-of-means": "mean",
            "per_channel_statistics.std-of-means": "spread",
        }
        stages = zip(self.depths, self.widths, strict=True)
        for stage, (depth, width) in enumerate(stages):
            blocks = "diff_blocks" if stage == len(self.upsamples) else f"det_stages.{stage}"
            for number in range(depth):
                attention = f"decoder.{blocks}.{number}.attn"
                thirds = enumerate(("to_q", "to_k", "to_v"))
                names[f"{attention}.qkv"] = tuple(
                    Place(f"{attention}.{name}", (third * width, (third + 1) * width)) for third, name in thirds
                )
                names[f"{attention}.proj"] = f"{attention}.to_out.0"
                names |= {f"{attention}.{one}_norm": f"{attention}.norm_{one}" for one in ("q", "k")}
        return names

    def build(self) -> nn.Module:
        network = nn.Module()
        made = encoder(self.encoder, self.image_channels, self.width, self.encoded, self.padding)
        network.add_module("encoder", made)
        decoder = LTX2VideoDiffusionDecoder3d(
            in_channels=self.latent_channels,
            out_channels=self.image_channels,
            patch_size=PATCH,
            head_dim=self.head,
            stage_channels=self.widths,
            stage_depths=self.depths,
            stage_kernels=self.windows[:-1],
            upsample_strides=tuple(stride for stride, _ in self.upsamples),
            upsample_channel_reductions=tuple(by for _, by in self.upsamples),
            stage5_kernel=self.windows[-1],
            t_emb_dim=self.time_width,
            temporal_compression_ratio=self.frames,
            timestep_scale_multiplier=self.time_scale,
        )
        network.add_module("decoder", decoder)
        for name in ("mean", "spread"):
            network.register_parameter(name, nn.Parameter(torch.empty(self.latent_channels), requires_grad=False))
        return network

    def decode(self, network: Any, latents: Tensor) -> Tensor:
        spread, mean = (part.to(latents).view(-1, 1, 1, 1) for part in (network.spread, network.mean))
        decoder = network.decoder
        features = _features(decoder, latents * spread + mean)
        count, frames, rows, columns, _ = features.shape
        shape = count, self.image_channels, frames, rows * PATCH, columns * PATCH
        generator = torch.Generator(latents.device).manual_seed(SEED)
        noise = torch.randn(shape, generator=generator, device=latents.device, dtype=latents.dtype)
        return _drawn(decoder, features, noise)

    def encode(self, network: Any, pixels: Tensor) -> Tensor:
        return encoded(network, pixels, self.latent_channels)

    def statistics(self, network: Any) -> tuple[Tensor, Tensor]:
        return network.mean, network.spread

    def decode_frames(self, network: Any, latents: Iterable[Tensor]) -> Iterator[Tensor]:
        pixels = self.decode(network, torch.cat(list(latents), dim=2))
        yield pixels[:, :, :1]
        yield from torch.split(pixels[:, :, 1:], self.frames, dim=2)

    def encode_frames(self, network: Any, pixels: Iterable[Tensor]) -> Iterator[Tensor]:
        yield from torch.split(self.encode(network, torch.cat(list(pixels), dim=2)), 1, dim=2)


def _sides(given: Sequence[int]) -> Sides:
    frames, rows, columns = map(int, given)
    return frames, rows, columns


def _features(decoder: Any, latents: Tensor) -> Tensor:
    """Return the features (B,F,h',w',C) that the images of latents (B,c,T,h,w) are drawn from.

    The last latent frame is repeated meanwhile, so that the video's end is not the end of what attention sees.
    """
    repeated = decoder.trailing_pad_latent_frames
    latents = torch.cat([latents, latents[:, :, -1:].expand(-1, -1, repeated, -1, -1)], dim=2)
    x = decoder.conv_in(latents.permute(0, 2, 3, 4, 1))
    for blocks, upsample in zip(decoder.det_stages, decoder.upsamples, strict=True):
        for block in blocks:
            x = x + _attended(block.attn, block.norm1(x))
            x = x + block.mlp(block.norm2(x))
        x = upsample(x)
    enlarged = prod(upsample.stride[0] for upsample in decoder.upsamples)
    kept: Tensor = x[:, : x.shape[1] - repeated * enlarged]
    return kept


def _drawn(decoder: Any, features: Tensor, noise: Tensor) -> Tensor:
    """Return the images (B,C,F,H,W) that one step of diffusion makes of noise of that shape."""
    level = noise.new_full((len(noise),), decoder.timestep_scale_multiplier)
    time = decoder.t_embedder(level, None, None, len(noise), noise.dtype)
    shared = decoder.shared_adaln(time)
    x = decoder.conv_in_x_t(patched(noise).permute(0, 2, 3, 4, 1))
    for block in decoder.diff_blocks:
        scale, shift, _, scale_inner, shift_inner, _, _ = (
            one + table for one, table in zip(shared, block.scale_shift_table, strict=True)
        )
        x = x + block.context_proj(features)
        x = x + _attended(block.attn, torch.addcmul(shift, block.norm1(x), 1 + scale))
        x = x + block.mlp(torch.addcmul(shift_inner, block.norm2(x), 1 + scale_inner))
    return unpatched(decoder.conv_out(decoder.norm_out(x)).permute(0, 4, 1, 2, 3))


def _attended(layer: Any, x: Tensor) -> Tensor:
    """Return what cells (B,F,h,w,C) find in their windows."""
    q, k, v = layer.project_qkv(x)
    out: Tensor = layer.to_out[0](neighborhood_attention(q, k, v, layer.kernel_size).flatten(4))
    return out
