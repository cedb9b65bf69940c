"""Chroma1-Radiance: Chroma's blocks over patches of pixels, each of which becomes a small network for its own pixels.

Reads the authors' single file. Source: lodestones 2025, Chroma1-Radiance; the neural field is after PixNerd (Wang et
al. 2025, arXiv:2507.23268); the numbers are ComfyUI's.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt, pi
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import fold, normalize, pad, silu, unfold

from serve_app.models.families.dit.chroma import APPROXIMATOR, Chroma
from serve_app.models.families.shared.dit import PATCH, WHOLE_EPS, positions
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.models.forward import Inputs
from serve_app.sampling.latents.latent_formats import PIXELS

TOGETHER = 512
"""Patches whose networks are made at once."""
ESTIMATES, IN_ORDER = "__x0__", "__sequential__"
"""Marks of files whose network predicts the image, and whose text tokens have places of their own."""

_EMBEDDER, _LINEAR, _CONV = "nerf_image_embedder", "nerf_final_layer", "nerf_final_layer_conv"
_FIELD = (_EMBEDDER, "nerf_blocks", _LINEAR, _CONV)


@dataclass(frozen=True, slots=True)
class ChromaRadiance(Chroma):
    """A backbone. side: pixels of a token along each side. field, factor, layers_of_field: of the small networks.

    waves: cosines along each side of a patch. smooths: the last layer reads neighbouring pixels. estimates: the network
    predicts the image; in_order: text tokens have places of their own.
    """

    title = "Chroma Radiance"
    latent_format = PIXELS

    latent_channels: int = 3
    side: int = 16
    field: int = 64
    factor: int = 4
    layers_of_field: int = 4
    waves: int = 8
    smooths: bool = True
    estimates: bool = False
    in_order: bool = False

    @classmethod
    def recognises(cls, tensors: Tensors) -> bool:
        return True

    @classmethod
    def probe(cls, tensors: Tensors) -> ChromaRadiance:
        """Read the network's size off its tensors. Errors: ModelFileError for an unsupported variant."""
        width, channels, side = tensors.shape("img_in_patch.weight")[:3]
        norm = "double_blocks.0.img_attn.norm.key_norm"
        head = next(
            tensors.shapes[f"{norm}.{leaf}"][0] for leaf in ("scale", "weight") if f"{norm}.{leaf}" in tensors.shapes
        )
        field, fed = tensors.shape(f"{_EMBEDDER}.embedder.0.weight")
        made = tensors.shape("nerf_blocks.0.param_generator.weight")[0]
        waves = isqrt(fed - channels)
        if head % 32 or width % head or waves**2 != fed - channels or made % (3 * field**2):
            raise tensors.unsupported(
                f"has a backbone of {cls.title} {width} wide with heads of {head}, and a field {field} wide reading "
                f"{fed} numbers of a pixel; supported are heads of a multiple of 32, and colours with a square of waves"
            )
        inside, outside = tensors.shape(f"{APPROXIMATOR}.in_proj.weight")
        return cls(
            width,
            width // head,
            tensors.count("double_blocks."),
            tensors.count("single_blocks."),
            tensors.shape("txt_in.weight")[1],
            outside,
            inside,
            tensors.count(f"{APPROXIMATOR}.layers."),
            channels,
            side,
            field,
            made // (3 * field**2),
            tensors.count("nerf_blocks."),
            waves,
            tensors.has(f"{_CONV}."),
            ESTIMATES in tensors.shapes,
            IN_ORDER in tensors.shapes,
        )

    def single(self, name: str) -> bool:
        return name.startswith(_EMBEDDER)

    def table(self, tensors: Tensors | None = None) -> Table:
        table = {
            theirs: ours
            for theirs, ours in super(ChromaRadiance, self).table().items()
            if theirs not in ("img_in", "final_layer.linear")
        }
        table |= {"img_in_patch": "x_embedder"} | {name: name for name in _FIELD}
        for layer in (_LINEAR, _CONV, *(f"nerf_blocks.{number}" for number in range(self.layers_of_field))):
            table[f"{layer}.norm.scale"] = f"{layer}.norm.weight"
        return table

    def build(self) -> nn.Module:
        network: Any = super(ChromaRadiance, self).build()
        network.x_embedder = nn.Conv2d(self.latent_channels, self.width, self.side, self.side)
        del network.proj_out
        embedder = nn.Module()
        embedder.embedder = nn.Sequential(nn.Linear(self.latent_channels + self.waves**2, self.field))
        network.add_module(_EMBEDDER, embedder)
        network.nerf_blocks = nn.ModuleList(_Block(self) for _ in range(self.layers_of_field))
        last: nn.Module = nn.Module()
        last.norm = nn.RMSNorm(self.field, WHOLE_EPS)
        if self.smooths:
            last.conv = nn.Conv2d(self.field, self.latent_channels, 3, padding=1)
        else:
            last.linear = nn.Linear(self.field, self.latent_channels)
        network.add_module(_CONV if self.smooths else _LINEAR, last)
        built: nn.Module = network
        return built

    def cells(self, x: Tensor, inputs: Any) -> int:
        """Return the work of a piece's rows as of a network of latents with as many tokens."""
        return super(ChromaRadiance, self).cells(x, inputs) * PATCH**2 // self.side**2

    def places(self, text: int, size: Any) -> Tensor:
        """Return the positions (n,3) of a text's tokens and an image's of a size in pixels."""
        of_text = torch.arange(float(text))[:, None] * torch.tensor([float(self.in_order), 0.0, 0.0])
        return torch.cat([of_text, positions(size, patch=self.side)])

    def embedded(self, network: Any, x: Tensor) -> Tensor:
        tokens: Tensor = network.x_embedder(self._whole(x)).flatten(2).transpose(1, 2)
        return tokens

    def ended(self, network: Any, tokens: Tensor, modulation: Tensor) -> Tensor:
        return tokens

    def made(self, network: Any, tokens: Tensor, given: Inputs) -> Tensor:
        x = self._whole(given["x"])
        cut = unfold(x, self.side, stride=self.side).transpose(1, 2)
        pixels = torch.unflatten(cut, 2, (x.shape[1], -1)).transpose(2, 3).flatten(0, 1)
        pieces = zip(torch.split(pixels, TOGETHER), torch.split(tokens.flatten(0, 1), TOGETHER), strict=True)
        fields = torch.cat([self._field(network, *piece) for piece in pieces])
        planes = torch.unflatten(fields.transpose(1, 2).flatten(1), 0, (len(x), -1)).transpose(1, 2)
        image = fold(planes, x.shape[-2:], self.side, stride=self.side)
        last = network.get_submodule(_CONV if self.smooths else _LINEAR)
        normed = last.norm(image.movedim(1, -1))
        colours = last.conv(normed.movedim(-1, 1)) if self.smooths else last.linear(normed).movedim(-1, 1)
        if self.estimates:
            colours = (x - colours) / given["level"].to(x.dtype).view(-1, 1, 1, 1)
        made: Tensor = colours[..., : given["x"].shape[-2], : given["x"].shape[-1]]
        return made

    def _field(self, network: Any, pixels: Tensor, tokens: Tensor) -> Tensor:
        """Return what the small networks of patches (N,W) make of their pixels (N,P,C), (N,P,field)."""
        known = self._waves(pixels.device).expand(len(pixels), -1, -1)
        x: Tensor = (
            network.get_submodule(_EMBEDDER).embedder(torch.cat([pixels.float(), known], dim=2)).to(pixels.dtype)
        )
        for block in network.nerf_blocks:
            x = block(x, tokens)
        return x

    def _waves(self, device: torch.device) -> Tensor:
        """Return the cosines (1,P,waves²) by which a pixel's place in its patch is known."""
        at = torch.linspace(0, 1, self.side, device=device)
        waves = torch.arange(float(self.waves), device=device)
        cosines = (at[:, None] * waves * pi).cos()
        both = cosines[None, :, :, None] * cosines[:, None, None, :] / (1 + waves[:, None] * waves)
        return both.reshape(1, self.side**2, -1)

    def _whole(self, x: Tensor) -> Tensor:
        """Return pixels with sides of whole patches: the rest is padded circularly."""
        beyond = [-length % self.side for length in x.shape[-2:]]
        return pad(x, (0, beyond[1], 0, beyond[0]), mode="circular") if any(beyond) else x


class _Block(nn.Module):
    """A gated layer for pixels, whose weights are made of each patch's token."""

    def __init__(self, family: ChromaRadiance) -> None:
        super().__init__()
        self.param_generator = nn.Linear(family.width, 3 * family.field**2 * family.factor)
        self.norm = nn.RMSNorm(family.field, WHOLE_EPS)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Return pixels (N,P,F) of patches whose tokens are (N,W)."""
        narrow = x.shape[2]
        gate, value, out = self.param_generator(tokens).chunk(3, dim=1)
        gate, value = (normalize(torch.unflatten(part, 1, (narrow, -1)), dim=1) for part in (gate, value))
        out = normalize(torch.unflatten(out, 1, (-1, narrow)), dim=1)
        inner = self.norm(x)
        added: Tensor = (silu(inner @ gate) * (inner @ value)) @ out
        return x + added
