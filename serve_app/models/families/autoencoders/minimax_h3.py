"""The video autoencoder of MiniMax H3: a causal encoder of convolutions, and a transformer that decodes.

A video goes through in clips of 17 images, always in tiles that overlap: that is how it was trained. Reads ComfyUI's
file, whose decoder may be quantized; run by the layers of diffusers' AutoencoderKLMiniMaxH3. Source: MiniMax 2026,
MiniMax-H3; the numbers are ComfyUI's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_minimax_h3 import (
    AutoencoderKLMiniMaxH3,
    MiniMaxH3VideoTransformerBlock,
    MiniMaxH3VideoViTDecoder3d,
)
from torch import Tensor, addcmul, nn
from torch.nn.functional import rms_norm

from serve_app.models.families.family import Located, VideoVaeFamily, marked
from serve_app.models.families.shared.fused_blocks import attention_output
from serve_app.models.files.layout import Place, Table, inside
from serve_app.models.files.tensors import Tensors
from serve_app.sampling.transfer import to_device
from serve_app.store.models.kinds import VAE_PREFIXES

HALVES_SPACE, HALVES_TIME = (2, 2, 2, 2, 1, 1), (1, 2, 2, 1, 1, 1)
"""By how much each level of the encoder divides sides and frames."""
HEAD = 64
"""Width of every head."""
CLIP, OF_CLIP, DROPPED = 17, 5, 3
"""Images that are encoded together, latent frames made of them, and how many of the last clip's are dropped."""
OVERLAP = OF_CLIP - DROPPED
"""Latent frames that are decoded with two clips."""
FRAMES = 4
"""Images that a latent frame is decoded to; the first of a clip's decodes to the last of its alone."""
LEAD = FRAMES * OF_CLIP - CLIP
MEANS = (
    *(0.858090341091156, -0.9606591463088989, 1.0661640167236328, -0.5090325474739075),
    *(-0.2727581858634949, -1.3675414323806763, -0.2553254961967468, -0.26907554268836975),
    *(-0.5376840829849243, -0.0464097298681736, 0.6657370328903198, 0.19690127670764923),
    *(-0.5460608005523682, -0.4035342037677765, -0.23683024942874908, 0.25928452610969543),
    *(-0.30133944749832153, 0.211341992020607, -1.1206848621368408, 0.3581933379173279),
    *(-0.04225143790245056, 0.2604829967021942, 0.22864092886447906, 0.7056031823158264),
)
DEVIATIONS = (
    *(1.2223774194717407, 1.2767263650894165, 1.68317747116088865, 1.7549455165863037),
    *(1.5636216402053833, 2.194143533706665, 0.96531379222869875, 1.05698859691619875),
    *(0.841948926448822, 0.7729952931404114, 1.8955937623977661, 0.946841835975647),
    *(0.7996809482574463, 0.44988900423049925, 0.7197399735450745, 0.69362932443618775),
    *(2.961095094680786, 2.7694199085235595, 3.0496184825897215, 2.1088054180145265),
    *(3.276226282119751, 3.1627357006073, 2.28168129920959475, 2.6127843856811525),
)
"""Of the latents' channels."""
PIXEL_MEANS, PIXEL_DEVIATIONS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the colours 0…1, as ImageNet's have them."""

_ENCODER, _DECODER = "encoder.down.5.block.0.conv1.weight", "decoder.transformer_blocks.0.scale1"
STATISTICS = {"latents_mean": "statistics.mean", "latents_std": "statistics.deviation"}
"""Names in the file and in the network of the means and deviations of the latents' channels."""


class Attention(nn.Module):
    """Attention with one layer for queries, keys and values, head by head; those are normed without weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_qkv = nn.Linear(width, 3 * width)
        self.to_out = nn.Linear(width, width)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        """Return the output for tokens (B,n,W). turns: cosines and sines (B,n,1,D) of the first D numbers of a head."""
        q, k, v = torch.unflatten(self.to_qkv(x), -1, (-1, 3 * HEAD)).chunk(3, dim=-1)
        q, k = (_rotated(rms_norm(heads, (HEAD,), eps=1e-5), turns) for heads in (q, k))
        out: Tensor = self.to_out(attention_output(q, k, v))
        return out


class Block(MiniMaxH3VideoTransformerBlock):  # type: ignore[misc]
    """A block of the decoder that computes in its own dtype, as ComfyUI's."""

    def forward(self, hidden_states: Tensor, rotary_emb: tuple[Tensor, Tensor]) -> Tensor:
        found = self.attn(self.norm1(hidden_states), rotary_emb)
        hidden_states = addcmul(hidden_states, found, self.scale1)
        return addcmul(hidden_states, self.ff(self.norm2(hidden_states)), self.scale2)


class Decoder(MiniMaxH3VideoViTDecoder3d):  # type: ignore[misc]
    """The decoder, whose tables of frequencies are computed where it runs: they are in no file."""

    rope: Any

    def forward(self, hidden_states: Tensor) -> Tensor:
        if self.rope.inv_freq.device != hidden_states.device:
            self.rope = type(self.rope)(HEAD * 3 // 4).to(hidden_states.device)
        pixels: Tensor = super().forward(hidden_states)
        return pixels


@dataclass(frozen=True, slots=True)
class MiniMaxH3Vae(VideoVaeFamily):
    """An autoencoder of videos. widths: of the encoder's levels; blocks: of each. width, layers: of the decoder.

    ratio: of its feed-forward layers; registers: tokens beside an image's. normalised: the file has the latents' means.
    """

    dtypes = (torch.float16,)
    frames = FRAMES
    tiles_itself = True

    widths: tuple[int, ...]
    blocks: int
    width: int
    layers: int
    ratio: int = 4
    registers: int = 4
    latent_channels: int = 24
    image_channels: int = 3
    normalised: bool = True

    @property
    def factor(self) -> int:
        return math.prod(HALVES_SPACE)

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        found = marked(files[0], VAE_PREFIXES, (_DECODER,)) if len(files) == 1 else None
        if found is not None and _ENCODER in found[1].shapes:
            yield Located(cls.probe(found[1]), found[1], prefix=found[0])

    @classmethod
    def probe(cls, tensors: Tensors) -> MiniMaxH3Vae:
        """Read the network's size off its tensors. Errors: ModelFileError for an unsupported variant."""
        levels = tensors.count("encoder.down.")
        (width,) = tensors.shape(_DECODER)
        if levels != len(HALVES_SPACE) or width % HEAD:
            raise tensors.unsupported(
                f"has a MiniMax H3 VAE of {levels} levels with a decoder {width} wide; supported are "
                f"{len(HALVES_SPACE)} levels and multiples of {HEAD}"
            )
        return cls(
            tuple(tensors.shape(f"encoder.down.{level}.block.0.conv1.weight")[0] for level in range(levels)),
            tensors.count("encoder.down.0.block."),
            width,
            tensors.count("decoder.transformer_blocks."),
            tensors.shape("decoder.transformer_blocks.0.ff.w1.weight")[0] // 2 // width,
            tensors.shape("decoder.register_tokens")[1],
            tensors.shape("post_quant_conv.weight")[1],
            tensors.shape("encoder.conv_in.weight")[1],
            all(name in tensors.shapes for name in STATISTICS),
        )

    def table(self, tensors: Tensors | None = None) -> Table:
        table: dict[str, str | tuple[Place, ...]] = {
            **{name: name for name in ("encoder", "decoder", "quant_conv", "post_quant_conv")},
            **STATISTICS,
            "decoder.x_embedder": "decoder.proj_in",
        }
        for level in range(len(self.widths)):
            theirs, ours = f"encoder.down.{level}", f"encoder.down_blocks.{level}"
            for block in range(self.blocks):
                names = {"nin_shortcut": "conv_shortcut"}
                table |= dict(inside(f"{theirs}.block.{block}", f"{ours}.resnets.{block}", names))
            table[f"{theirs}.downsample"] = f"{ours}.downsamplers.0"
        for number in range(self.layers):
            feed = f"decoder.transformer_blocks.{number}.ff"
            # diffusers has the values before the gates.
            table[f"{feed}.w1"] = (Place(f"{feed}.net.0.proj", swapped=True),)
            table[f"{feed}.w2"] = f"{feed}.net.2"
        return table

    def build(self) -> nn.Module:
        network = AutoencoderKLMiniMaxH3(
            in_channels=self.image_channels,
            out_channels=self.image_channels,
            latent_channels=self.latent_channels,
            block_out_channels=self.widths,
            layers_per_block=self.blocks,
            spatial_downsample_factors=HALVES_SPACE,
            temporal_downsample_factors=HALVES_TIME,
            decoder_num_layers=self.layers,
            decoder_num_attention_heads=self.width // HEAD,
            decoder_attention_head_dim=HEAD,
            decoder_num_register_tokens=self.registers,
            decoder_ffn_mult=self.ratio,
        )
        network.decoder.__class__ = Decoder
        for block in network.decoder.transformer_blocks:
            block.__class__ = Block
            block.attn = Attention(self.width)
        if self.normalised:
            network.statistics = statistics(self.latent_channels)
        built: nn.Module = network
        return built

    def images_of(self, latent_frames: int) -> int:
        return images_of(latent_frames)

    def latent_frames(self, count: int) -> Iterator[slice]:
        return clips(count)

    def decode_frames(self, network: Any, latents: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield a video's images clip by clip: each is decoded with the first latent frames of the next."""
        waiting: list[Tensor] = []
        behind: Tensor | None = None
        count, done = 0, 0
        for latent in latents:
            waiting.append(self._unscaled(network, latent))
            count += 1
            if len(waiting) == OF_CLIP + OVERLAP:
                made, behind = _clip(network, waiting, behind)
                yield _pixels(made)
                done += CLIP
                del waiting[:OF_CLIP]
        if count == 1:
            yield _pixels(network._decode_clip(waiting[0])[:, :, -1:])
            return
        left = self.images_of(count) - done
        if behind is None or len(waiting) > OVERLAP:
            waiting += waiting[-1:] * (OF_CLIP + OVERLAP - len(waiting))
            made, behind = _clip(network, waiting, behind)
            yield _pixels(made[:, :, :left])
            left -= CLIP
        if left > 0:
            yield _pixels(behind[:, :, :left])

    def encode_frames(self, network: Any, pixels: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield a video's latents from its clips, of each its latent frames; those of the padding are dropped."""
        before: Tensor | None = None
        for clip in pixels:
            if before is not None:
                yield before
            whole = torch.cat([clip, clip[:, :, -1:].expand(-1, -1, CLIP - clip.shape[2], -1, -1)], dim=2)
            before = self._encoded(network, whole)
        if before is not None:
            yield before[:, :, :OVERLAP]

    def encode(self, network: Any, pixels: Tensor) -> Tensor:
        if pixels.shape[2] == 1:
            return self._encoded(network, pixels)[:, :, -1:]
        return super(MiniMaxH3Vae, self).encode(network, pixels)

    def _encoded(self, network: Any, clip: Tensor) -> Tensor:
        """Return the scaled latents of a clip (B,3,n,H,W) in −1…1, float32."""
        colours = clip.add(1).mul(0.5).sub(_spread(PIXEL_MEANS, clip)).div(_spread(PIXEL_DEVIATIONS, clip))
        latents: Tensor = network._encode_clip(colours).float().chunk(2, dim=1)[0]
        mean, deviation = self._statistics(network, latents)
        return (latents - mean) / deviation

    def _unscaled(self, network: Any, latents: Tensor) -> Tensor:
        mean, deviation = self._statistics(network, latents)
        return latents * deviation + mean

    def _statistics(self, network: Any, latents: Tensor) -> Sequence[Tensor]:
        """Return the means and deviations of latents, to be used with them."""
        if not self.normalised:
            return [_spread(numbers, latents) for numbers in (MEANS, DEVIATIONS)]
        own = network.statistics
        return [numbers.view(1, -1, 1, 1, 1).to(latents) for numbers in (own.mean, own.deviation)]


def images_of(latent_frames: int) -> int:
    """Return how many images a number of latent frames covers."""
    whole, rest = divmod(latent_frames, OF_CLIP)
    return whole * CLIP + (rest * FRAMES - LEAD if rest else 0)


def clips(count: int) -> Iterator[slice]:
    """Yield the clips of a video of `count` images; the last may be shorter."""
    for first in range(0, count, CLIP):
        yield slice(first, min(first + CLIP, count))


def statistics(channels: int) -> nn.Module:
    """Return the module with the means and deviations of latents."""
    return nn.ParameterDict({name: torch.empty(channels) for name in ("mean", "deviation")})


def _clip(network: Any, latents: Sequence[Tensor], behind: Tensor | None) -> tuple[Tensor, Tensor]:
    """Decode the latent frames of a clip and of the overlap; return the images of both.

    behind: of the overlap with the clip before, which fade into these.
    """
    decoded = network._decode_clip(torch.cat(list(latents), dim=2))
    images, after = decoded[:, :, LEAD : LEAD + CLIP], decoded[:, :, 2 * LEAD + CLIP :]
    return images if behind is None else network._blend(behind, images, behind.shape[2], dim=-3), after


def _pixels(decoded: Tensor) -> Tensor:
    """Return the decoder's colours as pixels in −1…1, float32."""
    colours = decoded.float() * _spread(PIXEL_DEVIATIONS, decoded).float() + _spread(PIXEL_MEANS, decoded).float()
    return colours.clamp(0, 1) * 2 - 1


def _spread(numbers: Sequence[float], like: Tensor) -> Tensor:
    """Return numbers of channels to be used with (B,C,T,H,W)."""
    return to_device(torch.tensor(numbers), like.device).to(like.dtype).view(1, -1, 1, 1, 1)


def _rotated(heads: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Return heads (B,n,H,d), their first numbers rotated."""
    cos, sin = (of_all.to(heads.dtype) for of_all in turns)
    turned, rest = heads[..., : cos.shape[-1]], heads[..., cos.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    return torch.cat([turned * cos + torch.cat([-second, first], dim=-1) * sin, rest], dim=-1)
