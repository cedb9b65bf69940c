"""Model patches of Qwen-Image by DiffSynth-Studio: canny, depth, and inpainting of a masked image.

After each block of the backbone a small block reads the image's tokens and the hint's. Source: the published weights,
Qwen-Image-Blockwise-ControlNet; the numbers are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from serve_app.errors import NodeError
from serve_app.images import resize
from serve_app.models.control.dit_control import SideFamily, check_family
from serve_app.models.control.model_control import AtWork, BlockwiseNetwork, ControlImages, SomeRows, fitted, one_image
from serve_app.models.families.dit.qwen_image import BLOCKS, QwenImage
from serve_app.models.families.shared.dit import PATCH, to_tokens
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.sampling.forward import to_batch
from serve_app.sampling.latents.latent_formats import WAN
from serve_app.sampling.transfer import to_device

_MARK = "controlnet_blocks.0.y_rms.weight"
_EPS = 1e-6


@dataclass(frozen=True, slots=True)
class QwenDiffSynth(SideFamily):
    """A network. width: of a token; layers: number of blocks; masked: it reads a mask with the image."""

    width: int
    layers: int
    masked: bool = False

    @classmethod
    def find(cls, file: Checkpoint) -> Self | None:
        if _MARK not in file.shapes:
            return None
        tensors = Tensors(file.shapes, file.where)
        width, columns = tensors.shape("img_in.weight")
        more = columns // PATCH**2 - WAN.channels
        if more not in (0, 1):
            raise tensors.unsupported(
                f"is a model patch of Qwen-Image that reads {WAN.channels + more} channels; supported are "
                f"{WAN.channels}, and {WAN.channels + 1} with a mask"
            )
        return cls(width, tensors.count("controlnet_blocks."), bool(more))

    def table(self) -> Table:
        return {"img_in": "img_in", "controlnet_blocks": "blocks"}

    def build(self) -> nn.Module:
        return QwenDiffSynthNetwork(self)


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.x_rms = nn.RMSNorm(width, _EPS)
        self.y_rms = nn.RMSNorm(width, _EPS)
        self.input_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)

    def forward(self, image: Tensor, hint: Tensor) -> Tensor:
        both = self.input_proj(self.x_rms(image) + self.y_rms(hint))
        made: Tensor = self.output_proj(nn.functional.gelu(both))
        return made


class QwenDiffSynthNetwork(BlockwiseNetwork):
    """A network with the file's names."""

    def __init__(self, family: QwenDiffSynth) -> None:
        super().__init__()
        self.family = family
        self.img_in = nn.Linear((WAN.channels + family.masked) * PATCH**2, family.width)
        self.blocks = nn.ModuleList(_Block(family.width) for _ in range(family.layers))

    def check(self, name: str, images: ControlImages, backbone: Any) -> None:
        check_family(name, QwenImage(self.family.width, 1, 1, 1), backbone)
        if images.image is None:
            raise NodeError(f"'{name}' follows an image: connect one to the node that applies it")

    def read(self, images: ControlImages, size: Sequence[int]) -> Tensor:
        """Return the hint as embedded tokens (1,n,D)."""
        assert images.image is not None, "check is to be called first"
        (height, width), factor = size, images.vae.factor
        latents = images.vae.encode(fitted(images.image, height * factor, width * factor))
        WAN.check(latents.shape)
        cells = one_image(WAN.to_model(latents), "a model patch of Qwen-Image")
        if self.family.masked:
            kept = images.kept
            mask = torch.ones_like(cells[:, :1])
            if kept is not None:
                small = resize(kept, width, height, "bilinear").movedim(-1, 1)
                mask = to_device(to_batch(small, len(cells)), cells.device)
            cells = torch.cat([cells, mask], dim=1)
        bias = self.img_in.bias
        tokens: Tensor = self.img_in(to_tokens(cells.to(bias.device, bias.dtype)))
        return tokens

    def at_work(self, rows: SomeRows, call: Any) -> AtWork:
        return _AtWork(rows, self.blocks)


class _AtWork(AtWork):
    def __init__(self, rows: SomeRows, blocks: nn.ModuleList) -> None:
        self._rows, self._blocks = rows, blocks
        self._hint = torch.cat(list(rows.read))

    def before(self, stack: str, tokens: Tensor) -> None:
        """Do nothing: each block reads the tokens after the backbone's block."""

    def after(self, stack: str, number: int, tokens: Tensor) -> None:
        if stack == BLOCKS and number < len(self._blocks):
            image = tokens[:, : self._hint.shape[1]][self._rows.index]
            self._rows.add(tokens, self._blocks[number](image, self._hint.to(image.dtype)))
