"""ControlNets of Stable Diffusion 3 and 3.5: blocks of the backbone's kind that read a hint's latents.

Two layouts: diffusers' SD3ControlNetModel, whose blocks read the text as well, and Stability AI's for SD 3.5 large
(blur, canny, depth), whose blocks read the image alone and begin with the backbone's own embeddings. Sources: Zhang et
al. 2023, arXiv:2302.05543; the published weights; the numbers are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from diffusers.models.transformers.transformer_sd3 import SD3SingleTransformerBlock
from torch import Tensor, nn

from serve_app.models.control.control import ControlNet, Hint, RowIndex, Spread
from serve_app.models.control.dit_control import (
    DitControlFamily,
    DitControlNetwork,
    check_family,
    check_latents,
    hint_latents,
)
from serve_app.models.control.one_call_net import OneCallNet
from serve_app.models.families.dit.sd3 import BLOCKS, HEAD, MODULES, Sd3, Sd3Call
from serve_app.models.families.shared.dit import PATCH, grid, thirds, whole_patches
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.files.layout import Place, Table
from serve_app.models.files.tensors import Tensors
from serve_app.models.forward import Inputs
from serve_app.sampling.latents.latent_formats import SD3

MASKED_CHANNELS = 17
"""Hint channels of a ControlNet that also reads a mask."""

CANNY, DEPTH = 1, 2
"""What the tensor "control_type" says of hints that are changed before they are encoded."""

_READS_HINT = "pos_embed_input.proj.weight"
_ALONE = "transformer_blocks.0.adaLN_modulation.1.bias"
_POOLED = ("time_text_embed.text_embedder.linear_1.weight", "y_embedder.mlp.0.weight")
_UNSHIFTED = replace(SD3, shift=0.0)
"""The first layout was trained on latents without the shift."""


@dataclass(frozen=True, slots=True)
class Sd3ControlFamily(DitControlFamily):
    """The first layout. family: of its backbone, with the ControlNet's number of blocks. channels: of its hint."""

    family: Sd3
    channels: int

    @classmethod
    def find(cls, file: Checkpoint) -> Self | None:
        if _READS_HINT not in file.shapes or "controlnet_blocks.0.weight" not in file.shapes or _ALONE in file.shapes:
            return None
        # The file has no output layer to show its channels: they equal the input's.
        channels = Tensors(file.shapes, file.where).shape("pos_embed.proj.weight")[1]
        end = {"proj_out.weight": (channels * PATCH**2, 0)}
        family = Sd3.probe(Tensors({**file.shapes, **end}, file.where))
        return cls(family, file.shapes[_READS_HINT][1])

    @property
    def reads_latents(self) -> bool:
        return True

    def table(self) -> Table:
        names = (*MODULES, "controlnet_blocks", "pos_embed_input")
        return {name: name for name in names}

    def build(self) -> DitControlNetwork:
        return Sd3ControlNetwork(self)


class Sd3ControlNetwork(DitControlNetwork):
    """A network of the first layout, with the file's names."""

    def __init__(self, control: Sd3ControlFamily) -> None:
        super().__init__()
        self.control = control
        # A backbone's last block outputs no text; here all do.
        network: Any = replace(control.family, layers=control.family.layers + 1).build()
        width = control.family.width
        self.pos_embed = network.pos_embed
        self.time_text_embed = network.time_text_embed
        self.context_embedder = network.context_embedder
        self.transformer_blocks = network.transformer_blocks[:-1]
        self.controlnet_blocks = _answers(control.family.layers, width)
        self.pos_embed_input = _patches(control.channels, width)

    def control_net(self, key: Hashable, name: str) -> ControlNet:
        return Sd3ControlNet(key, name, self)

    def forward(self, image: Tensor, hint: Tensor, timestep: Tensor, text: Tensor) -> list[Tensor]:
        """Return the outputs (R,n,D). image: embedded, (R,n,D); hint: (R,C,h,w); timestep: (R,); text: (R,T,D')."""
        image = image + _embedded(self.pos_embed_input, hint)
        embed: Any = self.time_text_embed
        # The networks were trained without the pooled text.
        pooled = image.new_zeros(len(image), self.control.family.pooled_width)
        time = embed(timestep, pooled)
        text = self.context_embedder(text)
        answers = []
        for block, answer in zip(self.transformer_blocks, self.controlnet_blocks, strict=True):
            text, image = block(hidden_states=image, encoder_hidden_states=text, temb=time)
            answers.append(answer(image))
        return answers


class Sd3ControlNet(OneCallNet):
    """A ControlNet of the first layout, as `control` uses it."""

    def __init__(self, key: Hashable, name: str, network: Sd3ControlNetwork) -> None:
        super().__init__(key, name, network)
        self.control, self.network = network.control, network
        blocks = self.control.family.layers
        run = self.control.family.width // HEAD // blocks
        self.adds_to = (Spread(BLOCKS, range(blocks), run * blocks - 1, run),)

    def check(self, hint: Hint, backbone: Any) -> None:
        check_family(self.name, self.control.family, backbone)
        check_latents(self.name, hint, SD3)

    def read(self, hint: Hint, height: int, width: int) -> list[Tensor]:
        """Return the hint's latents."""
        masked = self.control.channels == MASKED_CHANNELS
        return [_to(self.network, hint_latents(hint, height, width, _UNSHIFTED, masked=masked))]

    def call_inputs(self, call: Sd3Call, index: RowIndex, read: Sequence[Tensor]) -> Mapping[Any, Tensor | None]:
        return {
            "x": call.x[index],
            "hint": read[0],
            "timestep": call.timestep[index],
            "text": call.text[index],
        }

    def run(self, given: Inputs) -> list[Tensor]:
        hint, network = given["hint"], self.network
        family, embed, x = self.control.family, network.pos_embed, given["x"].to(hint.dtype)
        image = family.patches(embed, x) + family.places(embed.pos_embed, x.shape[-2:])
        made: list[Tensor] = network(image, hint, given["timestep"], given["text"].to(hint.dtype))
        return made


@dataclass(frozen=True, slots=True)
class Sd35ControlFamily(DitControlFamily):
    """The second layout. width: of a token; layers: number of blocks. pooled_width: width of its pooled text input.

    kind: the value of "control_type". If `pooled_width` equals `width`, it reads the backbone's pooled text embedding
    and each block reads the same image; else it reads the backbone's embedded image, and each block the previous one's.
    """

    width: int
    layers: int
    pooled_width: int
    channels: int
    kind: int = -1

    @classmethod
    def find(cls, file: Checkpoint) -> Self | None:
        if _READS_HINT not in file.shapes or _ALONE not in file.shapes:
            return None
        tensors = Tensors(file.shapes, file.where)
        pooled = next((name for name in _POOLED if name in file.shapes), _POOLED[0])
        width, pooled_width = tensors.shape(pooled)
        kind = round(float(file.tensor("control_type"))) if "control_type" in file.shapes else -1
        return cls(width, tensors.count("transformer_blocks."), pooled_width, file.shapes[_READS_HINT][1], kind)

    @property
    def of_backbone(self) -> bool:
        """Whether it begins with the backbone's embedded image and not with its pooled text embedding."""
        return self.pooled_width != self.width

    @property
    def reads_latents(self) -> bool:
        return True

    def table(self) -> Table:
        table: dict[str, str | tuple[Place, ...]] = dict(_ends())
        for layer in range(self.layers):
            block = f"transformer_blocks.{layer}"
            table[f"{block}.attn.qkv"] = thirds(self.width, *(f"{block}.attn.to_{kind}" for kind in "qkv"))
            table[f"{block}.attn.proj"] = f"{block}.attn.to_out.0"
            table[f"{block}.mlp.fc1"] = f"{block}.ff.net.0.proj"
            table[f"{block}.mlp.fc2"] = f"{block}.ff.net.2"
            table[f"{block}.adaLN_modulation.1"] = f"{block}.norm1.linear"
        return table

    def build(self) -> DitControlNetwork:
        return Sd35ControlNetwork(self)


class Sd35ControlNetwork(DitControlNetwork):
    """A network of the second layout, with diffusers' names."""

    def __init__(self, control: Sd35ControlFamily) -> None:
        super().__init__()
        self.control = control
        width = control.width
        like: Any = Sd3(width, 1, width, control.pooled_width, 1).build()
        self.time_text_embed = like.time_text_embed
        self.pos_embed = None if control.of_backbone else _patches(SD3.channels, width)
        self.pos_embed_input = _patches(control.channels, width)
        self.transformer_blocks = nn.ModuleList(
            SD3SingleTransformerBlock(width, width // HEAD, HEAD) for _ in range(control.layers)
        )
        self.controlnet_blocks = _answers(control.layers, width)

    def control_net(self, key: Hashable, name: str) -> ControlNet:
        return Sd35ControlNet(key, name, self)

    def forward(self, image: Tensor, hint: Tensor, timestep: Tensor, pooled: Tensor) -> list[Tensor]:
        """Return the outputs (R,n,D). image: embedded, (R,n,D); hint: (R,C,h,w); timestep: (R,); pooled: (R,P)."""
        time = self.time_text_embed(timestep, pooled)
        image = image + _embedded(self.pos_embed_input, hint)
        answers = []
        for block, answer in zip(self.transformer_blocks, self.controlnet_blocks, strict=True):
            seen = block(image, time)
            answers.append(answer(seen))
            image = seen if self.control.of_backbone else image
        return answers


class Sd35ControlNet(OneCallNet):
    """A ControlNet of the second layout, as `control` uses it."""

    def __init__(self, key: Hashable, name: str, network: Sd35ControlNetwork) -> None:
        super().__init__(key, name, network)
        self.control, self.network = network.control, network
        layers = self.control.layers
        run = -(-(self.control.width // HEAD) // layers)
        self.adds_to = (Spread(BLOCKS, range(layers), run * layers, run),)

    def check(self, hint: Hint, backbone: Any) -> None:
        check_family(self.name, Sd3(self.control.width, 1, 0, 0, 0), backbone)
        check_latents(self.name, hint, SD3)

    def read(self, hint: Hint, height: int, width: int) -> list[Tensor]:
        """Return the hint's latents."""
        if self.control.kind == CANNY:
            hint = replace(hint, image=hint.image * 127.5 + 0.5)
        elif self.control.kind == DEPTH:
            hint = replace(hint, image=1 - hint.image)
        return [_to(self.network, hint_latents(hint, height, width, SD3, masked=False))]

    def call_inputs(self, call: Sd3Call, index: RowIndex, read: Sequence[Tensor]) -> Mapping[Any, Tensor | None]:
        of_backbone = self.control.of_backbone
        return {
            "x": call.x[index],
            "patches": call.patches[index] if of_backbone else None,
            "hint": read[0],
            "timestep": call.timestep[index],
            "pooled": call.pooled[index] if of_backbone else call.pooled_embedding[index],
        }

    def run(self, given: Inputs) -> list[Tensor]:
        x, hint, network = given["x"], given["hint"], self.network
        if self.control.of_backbone:
            places = _waves(self.control.width, grid(*x.shape[-2:]), x.device)
            image = given["patches"].to(hint.dtype) + places.to(hint.dtype)
        else:
            image = _embedded(network.pos_embed, x.to(hint.dtype))
        made: list[Tensor] = network(image, hint, given["timestep"], given["pooled"].to(hint.dtype))
        return made


def _ends() -> Iterator[tuple[str, str]]:
    """Yield the second layout's names outside its blocks, Stability AI's and diffusers', with the network's."""
    for name in ("time_text_embed", "pos_embed", "pos_embed_input", "controlnet_blocks"):
        yield name, name
    yield "x_embedder.proj", "pos_embed.proj"
    for theirs, ours in (("t_embedder", "timestep_embedder"), ("y_embedder", "text_embedder")):
        for number, layer in enumerate((0, 2), 1):
            yield f"{theirs}.mlp.{layer}", f"time_text_embed.{ours}.linear_{number}"


def _answers(count: int, width: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(width, width) for _ in range(count))


def _patches(channels: int, width: int) -> nn.ModuleDict:
    return nn.ModuleDict({"proj": nn.Conv2d(channels, width, PATCH, PATCH)})


def _embedded(patches: Any, latents: Tensor) -> Tensor:
    """Return latents (R,C,h,w) as embedded tokens (R,n,D)."""
    tokens: Tensor = patches["proj"](whole_patches(latents)).flatten(2).transpose(1, 2)
    return tokens


def _to(network: Any, latents: Tensor) -> Tensor:
    bias: Tensor = network.pos_embed_input["proj"].bias
    return latents.to(bias.device, bias.dtype)


def _waves(width: int, size: tuple[int, int], device: torch.device) -> Tensor:
    """Return the second layout's fixed positional embeddings (1,n,width) of tokens in rows and columns.

    Sines and cosines of the column, then of the row; the shorter side goes from 0 to 15.
    """
    steps = torch.arange(width // 4, device=device, dtype=torch.float32) / (width // 4)
    rates = 1 / 10000**steps
    middle = 7.5
    turned = []
    for axis in (1, 0):
        reach = middle * size[axis] / min(size)
        at = torch.linspace(middle - reach, middle + reach, size[axis], device=device)
        angle = (at[None, :] if axis else at[:, None]).expand(size).reshape(-1, 1) * rates
        turned += [angle.sin(), angle.cos()]
    return torch.cat(turned, dim=1)[None]
