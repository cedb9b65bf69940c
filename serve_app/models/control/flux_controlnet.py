"""ControlNets of Flux.1: blocks of the backbone's kinds that read x and a hint.

Layouts: diffusers' FluxControlNetModel, whose hints are latents, with or without a mask, of one kind or several
(InstantX, Shakker Labs, Alimama), and the single files of XLabs and Mistoline, whose hints are pixels. Sources: Zhang
et al. 2023, arXiv:2302.05543; the published weights; the numbers are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn

from serve_app.errors import NodeError
from serve_app.models.control.control import ControlNet, Hint, RowIndex, Spread, resized
from serve_app.models.control.dit_control import (
    DitControlFamily,
    DitControlNetwork,
    check_family,
    check_latents,
    hint_latents,
)
from serve_app.models.control.one_call_net import OneCallNet
from serve_app.models.families.dit.flux import GUIDANCE, Flux, FluxCall
from serve_app.models.families.shared.dit import DOUBLES, PATCH, SINGLES, attended, by_heads, positions, to_tokens
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.files.layout import Place, Table
from serve_app.models.files.tensors import Tensors
from serve_app.models.forward import Inputs
from serve_app.sampling.latents.latent_formats import FLUX
from serve_app.sampling.transfer import to_device

BACKBONE_DOUBLES, BACKBONE_SINGLES = 19, 38
"""Over how many blocks of the backbone the answers are spread: as many as the published one has."""

HALVED = 2
"""The factor of each convolution that halves a hint."""

_READS_LATENTS = "controlnet_x_embedder.weight"
_READS_PIXELS = {
    "input_hint_block": (2, 4, 6),
    "input_cond_block.encoder": (3, 5, 7),
}
"""Prefixes of the pixel encoders of XLabs and Mistoline, and their convolutions that halve the resolution."""
_MODULES = ("x_embedder", "context_embedder", "time_text_embed")
_END = "linear"
"""Prefix of Mistoline's output layers, which have an activation."""


@dataclass(frozen=True, slots=True)
class FluxControlFamily(DitControlFamily):
    """A ControlNet. family: of its backbone, with the ControlNet's number of blocks. fed: columns of its hint.

    kinds: number of hint kinds, 0 for one. pixels: prefix of its pixel encoder; "" for latents. kernels: of its
    convolutions. activated: outputs have an activation.
    """

    family: Flux
    fed: int
    kinds: int = 0
    pixels: str = ""
    kernels: tuple[int, ...] = ()
    activated: bool = False

    @classmethod
    def find(cls, file: Checkpoint) -> Self | None:
        shapes = file.shapes
        pixels = next((name for name in _READS_PIXELS if f"{name}.0.weight" in shapes), "")
        by_diffusers = _READS_LATENTS in shapes and "context_embedder.weight" in shapes
        if not by_diffusers and not (pixels and "double_blocks.0.img_attn.norm.key_norm.scale" in shapes):
            return None
        # The file has no output layer to show its channels: they equal the input's.
        first, last = ("x_embedder", "proj_out") if by_diffusers else ("img_in", "final_layer.linear")
        tensors = Tensors(shapes, file.where)
        family = Flux.probe(Tensors({**shapes, f"{last}.weight": (tensors.shape(f"{first}.weight")[1], 0)}, file.where))
        kernels: list[int] = []
        while pixels and (shape := shapes.get(f"{pixels}.{2 * len(kernels)}.weight")) is not None:
            kernels.append(shape[-1])
        return cls(
            family,
            shapes[_READS_LATENTS][1] if by_diffusers else tensors.shape("pos_embed_input.weight")[1],
            shapes.get("controlnet_mode_embedder.weight", (0,))[0],
            pixels,
            tuple(kernels),
            f"controlnet_blocks.0.{_END}.weight" in shapes,
        )

    @property
    def reads_latents(self) -> bool:
        return not self.pixels

    @property
    def masked(self) -> bool:
        """Whether it reads a mask with the hint's latents."""
        return self.fed == (FLUX.channels + 1) * PATCH**2

    def table(self) -> Table:
        own = ("controlnet_x_embedder", "controlnet_blocks", "controlnet_single_blocks", "controlnet_mode_embedder")
        table: dict[str, str | tuple[Place, ...]] = {name: name for name in own}
        if not self.pixels:
            return table | {name: name for name in (*_MODULES, "transformer_blocks", "single_transformer_blocks")}
        table |= dict(self.family.table())
        table |= {"pos_embed_input": "controlnet_x_embedder", self.pixels: "hint"}
        table["single_controlnet_blocks"] = "controlnet_single_blocks"
        for theirs, ours in (("controlnet", "controlnet"), ("single_controlnet", "controlnet_single")):
            for number in range(max(self.family.doubles, self.family.singles)):
                table[f"{theirs}_blocks.{number}.{_END}"] = f"{ours}_blocks.{number}"
        return table

    def build(self) -> DitControlNetwork:
        return FluxControlNetwork(self)


class FluxControlNetwork(DitControlNetwork):
    """A network with diffusers' names."""

    def __init__(self, control: FluxControlFamily) -> None:
        super().__init__()
        self.control = control
        family = control.family
        network: Any = family.build()
        self.x_embedder = network.x_embedder
        self.context_embedder = network.context_embedder
        self.time_text_embed = network.time_text_embed
        self.transformer_blocks = network.transformer_blocks
        self.single_transformer_blocks = network.single_transformer_blocks
        self.controlnet_x_embedder = nn.Linear(control.fed, family.width)
        self.controlnet_blocks = _answers(family.doubles, family.width)
        self.controlnet_single_blocks = _answers(family.singles, family.width)
        self.controlnet_mode_embedder = nn.Embedding(control.kinds, family.width) if control.kinds else None
        self.hint = _convolutions(control) if control.pixels else None

    def control_net(self, key: Hashable, name: str) -> ControlNet:
        return FluxControlNet(key, name, self)

    def forward(self, call: FluxCall, hint: Tensor, at: Tensor, kinds: Tensor | None = None) -> list[Tensor]:
        """Return the outputs (R,n,D), of the double blocks and then of the single ones.

        hint: as tokens, (R,n,columns). at: positions of tokens, (T+n,3). kinds: a token before the text, (R,1,D), or
        None.
        """
        dtype = self.x_embedder.bias.dtype
        time, text, there = call.time(self.time_text_embed, dtype), self.context_embedder(call.text), call.there
        if kinds is not None:
            text = torch.cat([kinds, text], dim=1)
            there = None if there is None else torch.cat([there.new_ones(len(there), 1), there], dim=1)
        image = self.x_embedder(to_tokens(call.x)) + self.controlnet_x_embedder(hint)
        shared = {
            "temb": nn.functional.silu(time),
            "image_rotary_emb": self.control.family.turns(at),
            "attention_mask": by_heads(attended(there, image.shape[1])),
        }
        answers = []
        for block, end in zip(self.transformer_blocks, self.controlnet_blocks, strict=True):
            text, image = block(hidden_states=image, encoder_hidden_states=text, **shared)
            answers.append(end(image))
        both = torch.cat([text, image], dim=1)
        for block, end in zip(self.single_transformer_blocks, self.controlnet_single_blocks, strict=True):
            both = block(hidden_states=both, **shared)
            answers.append(end(both[:, text.shape[1] :]))
        if self.control.activated:
            return [nn.functional.silu(answer) for answer in answers]
        return answers


class FluxControlNet(OneCallNet):
    """A ControlNet of Flux, as `control` uses it."""

    def __init__(self, key: Hashable, name: str, network: FluxControlNetwork) -> None:
        super().__init__(key, name, network)
        self.control, self.network = network.control, network
        family = self.control.family
        spreads, first = [], 0
        for kind, count, blocks in (
            (DOUBLES, family.doubles, BACKBONE_DOUBLES),
            (SINGLES, family.singles, BACKBONE_SINGLES),
        ):
            # For pixel hints the outputs take turns; for others each belongs to consecutive blocks.
            run = 0 if self.control.pixels or not count else -(-blocks // count)
            spreads.append(Spread(kind, range(first, first + count), blocks if count else 0, run))
            first += count
        self.adds_to = tuple(spreads)

    def check(self, hint: Hint, backbone: Any) -> None:
        check_family(self.name, self.control.family, backbone)
        if self.control.reads_latents:
            check_latents(self.name, hint, FLUX)
        if hint.kind is not None and self.control.kinds and hint.kind >= self.control.kinds:
            raise NodeError(
                f"'{self.name}' knows {self.control.kinds} kinds of hint, and kind {hint.kind} is not one of them"
            )

    def read(self, hint: Hint, height: int, width: int) -> list[Tensor]:
        """Return the hint as tokens and, for a union ControlNet, the kind's token."""
        weight: Tensor = self.network.x_embedder.bias
        if self.network.hint is None:
            latents = hint_latents(hint, height, width, FLUX, masked=self.control.masked)
            cells = latents.to(weight.device, weight.dtype)
        else:
            pixels = resized(hint.image, height * FLUX.factor, width * FLUX.factor)
            cells = self.network.hint(to_device(pixels, weight.device).to(weight.dtype) * 2 - 1)
        tokens = to_tokens(cells)
        embed = self.network.controlnet_mode_embedder
        if embed is None or hint.kind is None:
            return [tokens]
        return [tokens, embed(to_device(torch.tensor([[hint.kind]]), weight.device))]

    def call_inputs(self, call: FluxCall, index: RowIndex, read: Sequence[Tensor]) -> Mapping[Any, Tensor | None]:
        guidance = call.guidance
        if guidance is None and self.control.family.guided:
            guidance = torch.full_like(call.level, GUIDANCE)
        words = call.text.shape[1] + len(read) - 1
        at = torch.cat([torch.zeros(words, 3), positions(call.x.shape[-2:])])
        return {
            "x": call.x[index],
            "level": call.level[index],
            "text": call.text[index],
            "there": None if call.there is None else call.there[index],
            "pooled": call.pooled[index],
            "guidance": None if guidance is None else guidance[index],
            "at": to_device(at, call.x.device),
            **dict(zip(("hint", "kinds"), read, strict=False)),
        }

    def run(self, given: Inputs) -> list[Tensor]:
        made: list[Tensor] = self.network(FluxCall.of(given), given["hint"], given["at"], given.get("kinds"))
        return made


def _answers(count: int, width: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(width, width) for _ in range(count))


def _convolutions(control: FluxControlFamily) -> nn.Sequential:
    """Return the encoder of a hint's pixels (N,3,8h,8w) to (N,C,h,w)."""
    widths = (3, *(control.fed // PATCH**2,) * len(control.kernels))
    block = nn.Sequential()
    for number, ((before, after), kernel) in enumerate(zip(pairwise(widths), control.kernels, strict=True)):
        if number:
            block.append(nn.SiLU())
        stride = HALVED if number in _READS_PIXELS[control.pixels] else 1
        block.append(nn.Conv2d(before, after, kernel, padding=kernel // 2, stride=stride))
    return block
