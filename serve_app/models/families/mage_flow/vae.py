"""Mage-Flow's autoencoder: one step of a diffusion to latents and one back to pixels, both of no noise and at time 0.

A cell is 16 pixels a side; latents are as Flux.2's. Reads the authors' file; the layers are here, since no library has
them. Source: Microsoft 2026, Mage (github.com/microsoft/Mage): convolutions with channel attention after DiCo (Ai et
al. 2025, arXiv:2505.11196), pixels by a neural field after PixNerd (Wang et al. 2025, arXiv:2507.23268).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import pi
from typing import Any

import torch
from torch import Tensor, addcmul, nn
from torch.nn.functional import gelu, pad, pixel_shuffle, scaled_dot_product_attention, silu

from serve_app.models.families.family import Located, VaeFamily, marked
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.store.models.kinds import VAE_PREFIXES

MARKS = ("student.dconv_encoder.proj_out.weight",)
PATCH = 16
"""Pixels along each side of a cell."""
GROUPS = 32
WINDOW = 32
"""Cells along each side that attend to each other."""
WAVES = 8
"""Cosines along each side of a cell by which a pixel's place in it is known."""
SINUSOIDS = 256
EPS = 1e-6

_ENCODER, _DECODER = "student.dconv_encoder", "pipeline"
_OF_ENCODER = (
    *("patch_cond_embed", "head_blocks", "proj_down", "z_proj", "fuse_proj", "t_embedder", "blocks", "norm_out"),
    "proj_out",
)
_OF_DECODER = (
    *("t_embedder", "y_embedder_x", "x_embedder", "blocks", "dec_net", "final_layer"),
    *("s_embedder.proj2", "y_embedder.decoder"),
)


@dataclass(frozen=True, slots=True)
class MageFlowVae(VaeFamily):
    """An autoencoder of images. width: of a cell; head: of it as the encoder's first blocks have it; pixel: of a pixel.

    heads, encoding, decoding, drawing: number of blocks of each kind.
    """

    dtypes = (torch.bfloat16,)

    latent_channels: int
    width: int
    head: int
    pixel: int
    heads: int
    encoding: int
    decoding: int
    drawing: int
    image_channels: int = 3

    @property
    def factor(self) -> int:
        return PATCH

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        found = marked(files[0], VAE_PREFIXES, MARKS) if len(files) == 1 else None
        if found is not None:
            yield Located(cls.probe(found[1]), found[1], prefix=found[0])

    @classmethod
    def probe(cls, tensors: Tensors) -> MageFlowVae:
        """Read the network's size off its tensors."""
        width, channels = tensors.shape(f"{_ENCODER}.z_proj.weight")[:2]
        return cls(
            channels,
            width,
            tensors.shape(f"{_ENCODER}.patch_cond_embed.weight")[0],
            tensors.shape(f"{_DECODER}.x_embedder.embedder.0.weight")[0],
            tensors.count(f"{_ENCODER}.head_blocks."),
            tensors.count(f"{_ENCODER}.blocks."),
            tensors.count(f"{_DECODER}.blocks."),
            tensors.count(f"{_DECODER}.dec_net.res_blocks."),
        )

    def table(self, tensors: Tensors | None = None) -> Table:
        encoder = {f"{_ENCODER}.{name}": f"encoder.{name}" for name in _OF_ENCODER}
        return encoder | {f"{_DECODER}.{name}": f"decoder.{name}" for name in _OF_DECODER}

    def build(self) -> nn.Module:
        network = nn.Module()
        network.encoder = _Encoder(self)
        network.decoder = _Decoder(self)
        return network

    def decode(self, network: Any, latents: Tensor) -> Tensor:
        pixels: Tensor = network.decoder(latents)
        return pixels

    def encode(self, network: Any, pixels: Tensor) -> Tensor:
        moments: Tensor = network.encoder(pixels)
        return moments[:, : self.latent_channels]


class _Block(nn.Module):
    """Convolutions with channel attention, then a feed-forward layer. Norms of modulated blocks have no weights."""

    def __init__(self, width: int, *, modulated: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.conv3 = nn.Conv2d(width, width, 1)
        self.ca = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width, 1), nn.Sigmoid())
        self.conv4 = nn.Conv2d(width, 4 * width, 1)
        self.conv5 = nn.Conv2d(4 * width, width, 1)
        self.norm1 = nn.LayerNorm(width, EPS, elementwise_affine=not modulated)
        self.norm2 = nn.LayerNorm(width, EPS, elementwise_affine=not modulated)
        if modulated:
            self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """Return cells (B,W,h,w). time: (1,W), for a modulated block."""
        if time is None:
            x = x + self._mixed(_normed(self.norm1, x))
            return x + self._fed(_normed(self.norm2, x))
        parts = self.adaLN_modulation(time)[..., None, None].chunk(6, dim=1)
        shift, scale, gate, inner_shift, inner_scale, inner_gate = parts
        x = addcmul(x, gate, self._mixed(addcmul(shift, _normed(self.norm1, x), 1 + scale)))
        return addcmul(x, inner_gate, self._fed(addcmul(inner_shift, _normed(self.norm2, x), 1 + inner_scale)))

    def _mixed(self, x: Tensor) -> Tensor:
        x = gelu(self.conv2(self.conv1(x)))
        mixed: Tensor = self.conv3(x * self.ca(x))
        return mixed

    def _fed(self, x: Tensor) -> Tensor:
        fed: Tensor = self.conv5(gelu(self.conv4(x)))
        return fed


class _Time(nn.Module):
    """Embeds the time 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(SINUSOIDS, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, like: Tensor) -> Tensor:
        """Return the embedding (1,W). like: of its device and dtype."""
        at_zero = like.new_zeros(1, SINUSOIDS)
        at_zero[:, : SINUSOIDS // 2] = 1
        embedded: Tensor = self.mlp(at_zero)
        return embedded


class _Encoder(nn.Module):
    """From pixels to the moments of latents."""

    def __init__(self, family: MageFlowVae) -> None:
        super().__init__()
        width, head, channels = family.width, family.head, family.latent_channels
        self.patch_cond_embed = nn.Conv2d(family.image_channels, head, PATCH, PATCH)
        self.head_blocks = nn.ModuleList(_Block(head, modulated=False) for _ in range(family.heads))
        self.proj_down = nn.Conv2d(head, width, 1)
        self.z_proj = nn.Conv2d(channels, width, 1)
        self.fuse_proj = nn.Conv2d(2 * width, width, 1)
        self.t_embedder = _Time(width)
        self.blocks = nn.ModuleList(_Block(width, modulated=True) for _ in range(family.encoding))
        self.norm_out = nn.LayerNorm(width, EPS)
        self.proj_out = nn.Conv2d(width, 2 * channels, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        seen = self.patch_cond_embed(pixels)
        for block in self.head_blocks:
            seen = block(seen)
        # Of latents that are zero, the projection is its bias.
        nothing = self.get_parameter("z_proj.bias").view(1, -1, 1, 1).expand(len(seen), -1, *seen.shape[2:])
        x, time = self.fuse_proj(torch.cat([self.proj_down(seen), nothing], dim=1)), self.t_embedder(pixels)
        for block in self.blocks:
            x = block(x, time)
        moments: Tensor = self.proj_out(_normed(self.norm_out, x))
        return moments


class _Decoder(nn.Module):
    """From latents to pixels."""

    def __init__(self, family: MageFlowVae) -> None:
        super().__init__()
        width, pixel, channels = family.width, family.pixel, family.latent_channels
        self.y_embedder: Any = nn.Module()
        self.y_embedder.decoder = _Features(width, channels)
        self.t_embedder = _Time(width)
        self.y_embedder_x = nn.Conv2d(width, pixel * PATCH**2, 1)
        self.x_embedder: Any = nn.Module()
        self.x_embedder.embedder = nn.Sequential(nn.Linear(family.image_channels + pixel + WAVES**2, pixel))
        self.s_embedder: Any = nn.Module()
        self.s_embedder.proj2 = nn.Conv2d(channels + width, width, 1)
        self.blocks = nn.ModuleList(_Block(width, modulated=True) for _ in range(family.decoding))
        self.dec_net: Any = nn.Module()
        self.dec_net.cond_embed = nn.Linear(width, PATCH**2 * pixel)
        self.dec_net.input_proj = nn.Linear(pixel, pixel)
        self.dec_net.res_blocks = nn.ModuleList(_Drawing(pixel) for _ in range(family.drawing))
        self.final_layer: Any = nn.Module()
        self.final_layer.norm = nn.RMSNorm(pixel, EPS)
        self.final_layer.linear = nn.Linear(pixel, family.image_channels)
        self._channels, self._pixel, self._colours = channels, pixel, family.image_channels

    def forward(self, latents: Tensor) -> Tensor:
        features = self.y_embedder.decoder(latents)
        batch, _, rows, columns = features.shape
        # The image that is denoised is zero, and so are its patches, which come before the features.
        nothing = features.new_zeros(batch, self._channels, rows, columns)
        cells, time = self.s_embedder.proj2(torch.cat([nothing, features], dim=1)), self.t_embedder(latents)
        for block in self.blocks:
            cells = block(cells, time)
        of_cells = cells.movedim(1, -1).flatten(0, 2)
        by_pixel = self.y_embedder_x(features).unflatten(1, (self._pixel, PATCH**2))
        by_pixel = by_pixel.permute(0, 3, 4, 2, 1).flatten(0, 2)
        black = by_pixel.new_zeros(*by_pixel.shape[:2], self._colours)
        at = _position_embedding(latents).expand(len(by_pixel), -1, -1)
        x = self.x_embedder.embedder(torch.cat([black, by_pixel, at], dim=-1))
        x = self.dec_net.input_proj(x)
        told = self.dec_net.cond_embed(of_cells).view(len(x), PATCH**2, -1)
        for block in self.dec_net.res_blocks:
            x = block(x, told)
        colours = self.final_layer.linear(self.final_layer.norm(x))
        patches = colours.view(batch, rows, columns, PATCH**2, -1).permute(0, 4, 3, 1, 2)
        return pixel_shuffle(patches.flatten(1, 2), PATCH)


class _Features(nn.Module):
    """From latents to the features that pixels are made of."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels, width, 3, padding=1)
        self.block = nn.Sequential(*(_Window(width) if i % 2 else _Residual(width) for i in range(5)))
        self.norm_out = nn.GroupNorm(GROUPS, width, EPS)
        self.conv_out = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        features: Tensor = self.conv_out(silu(self.norm_out(self.block(self.conv_in(latents)))))
        return features


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.GroupNorm(GROUPS, width, EPS) for _ in range(2))
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        inner: Tensor = self.conv2(silu(self.norm2(self.conv1(silu(self.norm1(x))))))
        return x + inner


class _Window(nn.Module):
    """Attention within windows of cells, beyond whose edge the last cells are repeated."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, width, EPS)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        normed, (rows, columns) = self.norm(x), x.shape[2:]
        down, across = -(-rows // WINDOW), -(-columns // WINDOW)
        beyond = (0, across * WINDOW - columns, 0, down * WINDOW - rows)

        def windows(cells: Tensor) -> Tensor:
            across_cut = torch.unflatten(pad(cells, beyond, mode="replicate"), 3, (across, WINDOW))
            cut = torch.unflatten(across_cut, 2, (down, WINDOW))
            return cut.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(0, 2)[:, None]

        q, k, v = (windows(to(normed)) for to in (self.q, self.k, self.v))
        found = scaled_dot_product_attention(q, k, v)
        whole = found.view(len(x), down, across, WINDOW, WINDOW, -1).permute(0, 5, 1, 3, 2, 4)
        joined = whole.flatten(4, 5).flatten(2, 3)[..., :rows, :columns]
        added: Tensor = self.proj_out(joined)
        return x + added


class _Drawing(nn.Module):
    """A layer of the field that draws pixels, each modulated by its cell."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, EPS)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        shift, scale, gate = self.adaLN_modulation(told).chunk(3, dim=-1)
        return addcmul(x, gate, self.mlp(addcmul(shift, self.in_ln(x), 1 + scale)))


def _normed(norm: nn.Module, x: Tensor) -> Tensor:
    """Return a norm of the channels of cells (B,W,h,w)."""
    normed: Tensor = norm(x.movedim(1, -1))
    return normed.movedim(-1, 1)


def _position_embedding(like: Tensor) -> Tensor:
    """Return the embedding of pixels' positions in a cell, (1,PATCH²,WAVES²): products of cosines, slow ones larger."""
    at = torch.linspace(0, 1, PATCH, device=like.device, dtype=like.dtype)
    waves = torch.linspace(0, WAVES, WAVES, device=like.device, dtype=like.dtype)
    along = torch.cos(at[:, None] * waves * pi)
    products = along[None, :, :, None] * along[:, None, None, :] / (1 + waves[:, None] * waves)
    return products.reshape(1, PATCH**2, WAVES**2)
