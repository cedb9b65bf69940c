"""Anima's LLLite: small networks at the inputs of a backbone's layers, steered by an image and, for inpainting, a mask.

Source: kohya-ss's ControlNet-LLLite, in the layout of its version 2 for Anima; the numbers are ComfyUI's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from serve_app.errors import NodeError
from serve_app.images import resize
from serve_app.models.control.dit_control import SideFamily, check_family
from serve_app.models.control.model_control import AtWork, BlockwiseNetwork, ControlImages, InputsAtWork, SomeRows
from serve_app.models.families.dit.anima import Anima, LlmAdapter
from serve_app.models.families.shared.dit import PATCH, grid
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.sampling.forward import to_batch

VERSION = "2"
LAYERS = {
    "self_attn_q_proj": "attn1.to_q",
    "self_attn_k_proj": "attn1.to_k",
    "self_attn_v_proj": "attn1.to_v",
    "cross_attn_q_proj": "attn2.to_q",
    "mlp_layer1": "ff.net.0.proj",
}
"""The layers of a block whose inputs are changed: by the file's name, the backbone's."""
SCALE = 8
"""Pixels of the image that are read for a side of a latent cell."""
MASKED = 4
"""The channels of an image with a mask."""

_READER = "lllite_conditioning1"
_MARK = f"{_READER}.conv1.weight"
_NAME = re.compile(rf"lllite_dit_blocks_(\d+)_({'|'.join(LAYERS)})")
_GROUPS = 8


@dataclass(frozen=True, slots=True)
class AnimaLLLite(SideFamily):
    """A network. width: of the backbone; channels: of the image that it reads; inside, features: of its reader.

    hidden: inside a layer's network; blocks: residual blocks of the reader; dilations: of its pyramid, () for none.
    layers: the names of its layers' networks; hides: the image is blank where the mask says to repaint.
    """

    width: int
    channels: int
    inside: int
    features: int
    hidden: int
    blocks: int
    dilations: tuple[int, ...]
    layers: tuple[str, ...]
    hides: bool

    @classmethod
    def find(cls, file: Checkpoint) -> Self | None:
        if _MARK not in file.shapes:
            return None
        tensors, said = Tensors(file.shapes, file.where), file.metadata
        if (version := said.get("lllite.version", VERSION)) != VERSION:
            raise tensors.unsupported(f"is an LLLite of version {version}; supported is {VERSION}")
        layers = tuple(sorted({name.partition(".")[0] for name in file.shapes} - {_READER}))
        unknown = next((name for name in layers if not _NAME.fullmatch(name)), None)
        if unknown or not layers:
            raise tensors.unsupported(
                f"is an LLLite of the layer '{unknown}'; supported are those of Anima's blocks, such as "
                "'lllite_dit_blocks_0_self_attn_q_proj'"
            )
        hidden, width = tensors.shape(f"{layers[0]}.down.weight")
        dilations = said.get("lllite.aspp_dilations", "1,2,4,8")
        pyramid = any(name.startswith(f"{_READER}.aspp.") for name in file.shapes)
        return cls(
            width,
            tensors.shape(_MARK)[1],
            tensors.shape(f"{_READER}.conv3.weight")[0],
            tensors.shape(f"{_READER}.proj.weight")[0],
            hidden,
            tensors.count(f"{_READER}.resblocks."),
            tuple(int(number) for number in dilations.split(",") if number.strip()) if pyramid else (),
            layers,
            said.get("lllite.inpaint_masked_input", "false").lower() == "true",
        )

    def table(self) -> Table:
        return {_READER: "reader"} | {name: f"layers.{name}" for name in self.layers}

    def build(self) -> nn.Module:
        return AnimaLLLiteNetwork(self)


def _normed(channels: int) -> nn.GroupNorm:
    """Return a group norm of eight groups, or of the next power of two below that divides the channels."""
    groups = _GROUPS
    while channels % groups:
        groups //= 2
    return nn.GroupNorm(groups, channels)


def _active(convolution: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(convolution, _normed(convolution.out_channels), nn.SiLU())


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _normed(channels), _normed(channels)
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = x + self.conv2(silu(self.norm2(self.conv1(silu(self.norm1(x))))))
        return made


class _Pyramid(nn.Module):
    """Convolutions of several reaches, and the mean of the whole image (atrous spatial pyramid pooling)."""

    def __init__(self, channels: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            _active(
                nn.Conv2d(channels, channels, 1)
                if dilation == 1
                else nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation)
            )
            for dilation in dilations
        )
        self.global_conv = _active(nn.Conv2d(channels, channels, 1))
        self.proj = _active(nn.Conv2d(channels * (len(dilations) + 1), channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        whole = self.global_conv(x.mean(dim=(2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
        made: Tensor = self.proj(torch.cat([*(branch(x) for branch in self.branches), whole], dim=1))
        return made


class _Reader(nn.Module):
    """Reads an image (N,C,H,W) in -1…1, a multiple of 16 a side, as features (N,n,F), one for each token."""

    def __init__(self, family: AnimaLLLite) -> None:
        super().__init__()
        half = family.inside // 2
        self.conv1, self.norm1 = nn.Conv2d(family.channels, half, 4, stride=4), _normed(half)
        self.conv2, self.norm2 = nn.Conv2d(half, half, 3, padding=1), _normed(half)
        self.conv3, self.norm3 = nn.Conv2d(half, family.inside, 4, stride=4), _normed(family.inside)
        self.resblocks = nn.Sequential(*(_Residual(family.inside) for _ in range(family.blocks)))
        self.aspp = _Pyramid(family.inside, family.dilations) if family.dilations else nn.Identity()
        self.proj = nn.Conv2d(family.inside, family.features, 1)
        self.out_norm = nn.LayerNorm(family.features)

    def forward(self, image: Tensor) -> Tensor:
        x = silu(self.norm1(self.conv1(image)))
        x = silu(self.norm2(self.conv2(x)))
        x = silu(self.norm3(self.conv3(x)))
        x = self.proj(self.aspp(self.resblocks(x)))
        made: Tensor = self.out_norm(x.flatten(2).transpose(1, 2))
        return made


class _Layer(nn.Module):
    """Makes what is added to a layer's input (R,n,D), by the image's features (R,n,F)."""

    def __init__(self, family: AnimaLLLite) -> None:
        super().__init__()
        width, features, hidden = family.width, family.features, family.hidden
        self.down, self.mid = nn.Linear(width, hidden), nn.Linear(hidden + features, hidden)
        self.cond_to_film, self.up = nn.Linear(features, 2 * hidden), nn.Linear(hidden, width)
        self.depth_embed = nn.Parameter(torch.empty(features))

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        local = features + self.depth_embed
        gain, offset = self.cond_to_film(local).chunk(2, dim=-1)
        hidden = self.mid(torch.cat([local, silu(self.down(x))], dim=-1))
        made: Tensor = self.up(silu(hidden * (1 + gain) + offset))
        return made


class AnimaLLLiteNetwork(BlockwiseNetwork):
    """A network with a reader of the image, and a small network for each layer of the backbone that it steers."""

    def __init__(self, family: AnimaLLLite) -> None:
        super().__init__()
        self.family = family
        self.reader = _Reader(family)
        self.layers = nn.ModuleDict({name: _Layer(family) for name in family.layers})

    def check(self, name: str, images: ControlImages, backbone: Any) -> None:
        check_family(name, Anima(self.family.width, 1, 1, 1, LlmAdapter(1, 1, 1, 1, 1)), backbone)
        if images.image is None:
            raise NodeError(f"'{name}' follows an image: connect one to the node that applies it, AnimaLLLiteApply")
        if beyond := [name for name in self.family.layers if _place(name)[0] >= backbone.layers]:
            raise NodeError(f"'{name}' steers '{beyond[0]}', and the model has {backbone.layers} blocks")

    def read(self, images: ControlImages, size: Sequence[int]) -> Tensor:
        """Return the image's features (N,n,F)."""
        assert images.image is not None, "check is to be called first"
        rows, columns = (side * PATCH * SCALE for side in grid(*size))
        pixels = resize(images.image.float(), columns, rows, "bicubic", "center").clamp(0, 1) * 2 - 1
        if self.family.channels == MASKED:
            mask = self._mask(images, rows, columns, len(pixels))
            if self.family.hides:
                pixels = pixels * (1 - mask)
            pixels = torch.cat([pixels, mask * 2 - 1], dim=-1)
        features: Tensor = self.reader(pixels.movedim(-1, 1).to(self.reader.proj.weight))
        return features

    def _mask(self, images: ControlImages, rows: int, columns: int, count: int) -> Tensor:
        """Return where to repaint, (N,rows,columns,1), 0 or 1; nowhere without a mask."""
        if images.mask is None:
            return torch.zeros(count, rows, columns, 1)
        mask = images.mask.float().reshape(-1, *images.mask.shape[-2:], 1)
        return to_batch((resize(mask, columns, rows, "nearest-exact", "center") >= 0.5).float(), count)

    def at_work(self, rows: SomeRows, call: Any) -> AtWork:
        return _AtWork(self, rows)


def _place(name: str) -> tuple[int, str]:
    """Return the block and the backbone's layer that a layer's network belongs to."""
    found = _NAME.fullmatch(name)
    assert found is not None, "find lets no other name in"
    return int(found[1]), LAYERS[found[2]]


class _AtWork(InputsAtWork):
    def __init__(self, network: AnimaLLLiteNetwork, rows: SomeRows) -> None:
        self._rows, self._features = rows, torch.cat(list(rows.read))
        self._layers = {_place(name): layer for name, layer in network.layers.items()}

    def places(self) -> Iterable[tuple[int, str]]:
        return self._layers

    def steered(self, place: tuple[int, str], tokens: Tensor) -> Tensor:
        steered = tokens.clone()
        self._rows.add(steered, self._layers[place](tokens[self._rows.index], self._features.to(tokens.dtype)))
        return steered
