"""The autoencoder of Wan 2.1, also of Qwen-Image and Krea 2: videos, or images as videos of one frame.

A latent frame covers four images, the first one image. Qwen-Image-Layered's has an alpha channel. Reads the authors'
file; run as diffusers' AutoencoderKLWan. Parts shared with Wan 2.2's are here too. Source: Wan team 2025,
arXiv:2503.20314.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan, WanCausalConv3d, patchify, unpatchify
from torch import Tensor, nn
from torch.nn.functional import conv2d

from serve_app.models.families.family import Located, VideoVaeFamily, marked
from serve_app.models.files.layout import Table, inside
from serve_app.models.files.tensors import Tensors
from serve_app.store.models.kinds import VAE_PREFIXES

WIDTHS = (1, 2, 4, 4)
"""Width of each level as a multiple of the finest's; each level but the last halves the resolution."""
RES_BLOCKS = 2
HALVES_TIME = (False, True, True)
"""The downsampling steps that also halve the number of frames."""

MARKS = ("decoder.middle.0.residual.0.gamma",)
NESTED = "decoder.upsamples.0.upsamples.0.residual.2.weight"
"""A tensor of files whose levels are modules of their own: Wan 2.2's and similar ones."""
RES_BLOCK = {
    "residual.0": "norm1",
    "residual.2": "conv1",
    "residual.3": "norm2",
    "residual.6": "conv2",
    "shortcut": "conv_shortcut",
}


class WanVideos(VideoVaeFamily):
    """How Wan's autoencoders process a video: causal layers cache their input from one latent frame to the next."""

    frames = 4
    strips = True
    patch: ClassVar[int] = 1
    """Pixels along each side that are merged into one, as channels."""

    def decode_frames(self, network: Any, latents: Iterable[Tensor]) -> Iterator[Tensor]:
        seen = _unseen(network.decoder)
        for i, latent_frame in enumerate(latents):
            yield self._decoded(network, latent_frame, seen, first=i == 0)

    def encode_frames(self, network: Any, pixels: Iterable[Tensor]) -> Iterator[Tensor]:
        seen = _unseen(network.encoder)
        for latent_frame in pixels:
            yield self._encoded(network, latent_frame, seen)

    def decode(self, network: Any, latents: Tensor) -> Tensor:
        # A single image has no later latent frame to cache anything for.
        return self._decoded(network, latents, None) if latents.shape[2] == 1 else super().decode(network, latents)

    def encode(self, network: Any, pixels: Tensor) -> Tensor:
        return self._encoded(network, pixels, None) if pixels.shape[2] == 1 else super().encode(network, pixels)

    def _decoded(self, network: Any, latents: Tensor, seen: list[Any] | None, first: bool = True) -> Tensor:
        cells = network.post_quant_conv(latents)
        pixels = network.decoder(cells, feat_cache=seen, feat_idx=[0], first_chunk=first)
        whole: Tensor = unpatchify(pixels, self.patch)
        return whole

    def _encoded(self, network: Any, pixels: Tensor, seen: list[Any] | None) -> Tensor:
        encoded = network.encoder(patchify(pixels, self.patch), feat_cache=seen, feat_idx=[0])
        means: Tensor = network.quant_conv(encoded).chunk(2, dim=1)[0]
        return means


@dataclass(frozen=True, slots=True)
class WanVae(WanVideos):
    """An autoencoder of videos. width: of its finest level."""

    width: int
    latent_channels: int
    image_channels: int

    @property
    def factor(self) -> int:
        return int(2 ** (len(WIDTHS) - 1))

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        found = marked(files[0], VAE_PREFIXES, MARKS) if len(files) == 1 else None
        if found is not None and NESTED not in found[1].shapes:
            yield Located(cls.probe(found[1]), found[1], prefix=found[0])

    @classmethod
    def probe(cls, tensors: Tensors) -> WanVae:
        """Read the network's size off its tensors."""
        width, image_channels = tensors.shape("encoder.conv1.weight")[:2]
        return cls(width, tensors.shape("conv2.weight")[0], image_channels)

    def table(self, tensors: Tensors | None = None) -> Table:
        return dict(_names())

    def build(self) -> nn.Module:
        vae = AutoencoderKLWan(
            base_dim=self.width,
            z_dim=self.latent_channels,
            dim_mult=list(WIDTHS),
            num_res_blocks=RES_BLOCKS,
            temperal_downsample=list(HALVES_TIME),
            in_channels=self.image_channels,
            out_channels=self.image_channels,
        )
        return causal(vae)


class CausalConv(WanCausalConv3d):  # type: ignore[misc]
    """A convolution over a frame and those before it; for a first frame alone, only its last weights in time matter."""

    def forward(self, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        before = self._padding[4]
        if cache_x is None and x.shape[2] == 1 and before == self.kernel_size[0] - 1:
            # A third of the work: earlier frames are zeros.
            around = (self._padding[2], self._padding[0])
            return conv2d(x[:, :, 0], self.weight[:, :, -1], self.bias, padding=around).unsqueeze(2)
        whole: Tensor = super().forward(x, cache_x)
        return whole


def causal(network: nn.Module) -> nn.Module:
    """Return a network with its convolutions over time as `CausalConv`."""
    for layer in network.modules():
        if isinstance(layer, WanCausalConv3d):
            layer.__class__ = CausalConv
    return network


def _unseen(half: nn.Module) -> list[Any]:
    """Return the empty caches of the layers of half a network, before the first latent frame."""
    return [None] * sum(isinstance(layer, WanCausalConv3d) for layer in half.modules())


def ends() -> Iterator[tuple[str, str]]:
    """Yield names in the file and in the network of layers outside the levels."""
    yield "conv1", "quant_conv"
    yield "conv2", "post_quant_conv"
    for half in ("encoder", "decoder"):
        yield f"{half}.conv1", f"{half}.conv_in"
        yield f"{half}.head.0", f"{half}.norm_out"
        yield f"{half}.head.2", f"{half}.conv_out"
        yield from inside(f"{half}.middle.0", f"{half}.mid_block.resnets.0", RES_BLOCK)
        yield f"{half}.middle.1", f"{half}.mid_block.attentions.0"
        yield from inside(f"{half}.middle.2", f"{half}.mid_block.resnets.1", RES_BLOCK)


def levels_of_modules(levels: int) -> Iterator[tuple[str, str]]:
    """Yield names in the file and in the network where levels are modules, as in Wan 2.2."""
    yield from ends()
    for level in range(levels):
        for half, theirs, ours, blocks, step in (
            ("encoder", "downsamples", "down_blocks", RES_BLOCKS, "downsampler"),
            ("decoder", "upsamples", "up_blocks", RES_BLOCKS + 1, "upsampler"),
        ):
            in_file, in_network = f"{half}.{theirs}.{level}.{theirs}", f"{half}.{ours}.{level}"
            for i in range(blocks):
                yield from inside(f"{in_file}.{i}", f"{in_network}.resnets.{i}", RES_BLOCK)
            if level < levels - 1:
                yield f"{in_file}.{blocks}", f"{in_network}.{step}"


def _names() -> Iterator[tuple[str, str]]:
    """Yield names in the file and in the network."""
    yield from ends()
    # The file numbers the parts of levels consecutively, and so does the network's encoder.
    for number in range(len(WIDTHS) * (RES_BLOCKS + 1) - 1):
        yield from inside(f"encoder.downsamples.{number}", f"encoder.down_blocks.{number}", RES_BLOCK)
    a_level = RES_BLOCKS + 2
    for level in range(len(WIDTHS)):
        for i in range(RES_BLOCKS + 1):
            theirs, ours = f"decoder.upsamples.{level * a_level + i}", f"decoder.up_blocks.{level}.resnets.{i}"
            yield from inside(theirs, ours, RES_BLOCK)
        if level < len(WIDTHS) - 1:
            theirs = f"decoder.upsamples.{level * a_level + a_level - 1}"
            yield theirs, f"decoder.up_blocks.{level}.upsamplers.0"
