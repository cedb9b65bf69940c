"""The Fun union ControlNet of MiniMax H3: a video to follow, of poses, depths or edges, and one to paint into.

Blocks of the backbone's kind run alongside it, on the whole sequence with the hint in the place of the video's rows;
the output of each is added after one of the backbone's. Source: the published weights, MiniMax-H3-Fun-Controlnet-Union
and its 2.0; the numbers are ComfyUI's.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from diffusers.models.transformers.transformer_minimax_h3 import MiniMaxH3TransformerBlock
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from serve_app.errors import NodeError
from serve_app.images import resize
from serve_app.models.control.control import of_another_family
from serve_app.models.control.dit_control import SideFamily
from serve_app.models.control.model_control import AtWork, BlockwiseNetwork, ControlImages, SomeRows
from serve_app.models.families.autoencoders.minimax_h3 import PIXEL_MEANS
from serve_app.models.families.shared.fused_blocks import attention_output
from serve_app.models.families.video.minimax_h3 import MiniMaxH3, SequenceCall, video_rows
from serve_app.models.families.video.minimax_h3_blocks import Modulated, block_names, through_block
from serve_app.models.families.video.minimax_h3_sequence import PATCH
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.files.layout import Place, Table
from serve_app.models.files.tensors import Tensors
from serve_app.sampling.latents.latent_formats import MINIMAX_H3
from serve_app.sampling.transfer import to_device

BACKBONE_BLOCKS = 50
"""Of the published backbone: a file's blocks are spread over them where it does not say after which they act."""
FED = 2 * MINIMAX_H3.channels + 1
"""Channels that are read: the hint, where the source is kept, and the source without what is to be painted."""
EPS = 1e-5
CLIP, OF_CLIP, OF_LAST, LAST = 17, 5, 2, 5
"""Images of a clip and its latent frames, and those of the last clip."""

_MARK = "control_blocks.0.attn.qkv_proj.weight"
_PLACES, _MASKED = "control_blocks_places", "inpaint_masked_pixel_mode"


@dataclass(frozen=True, slots=True)
class MiniMaxH3Control(SideFamily):
    """A network. width, heads, head, inside, time_width: of the backbone; after: the blocks that each acts after.

    grey: what is to be painted is the mean colour, not black.
    """

    width: int
    heads: int
    head: int
    inside: int
    time_width: int
    after: tuple[int, ...]
    grey: bool = False

    @classmethod
    def find(cls, file: Checkpoint) -> Self | None:
        if _MARK not in file.shapes:
            return None
        tensors = Tensors(file.shapes, file.where)
        width, columns = tensors.shape("control_proj_in.weight")
        if columns != FED * PATCH**2:
            raise tensors.unsupported(
                f"is a ControlNet of MiniMax H3 that reads {columns // PATCH**2} channels; supported are {FED}"
            )
        head = tensors.shape("control_blocks.0.attn.q_norm.weight")[0]
        count = tensors.count("control_blocks.")
        after = _places(file.metadata.get(_PLACES), count)
        if after is None:
            raise tensors.unsupported(
                f"has {count} blocks, and says in '{_PLACES}' that they act after {file.metadata.get(_PLACES)}; it "
                "has to be as many numbers in ascending order from 0"
            )
        return cls(
            width,
            tensors.shape(_MARK)[0] // 3 // head,
            head,
            tensors.shape("control_blocks.0.mlp.fc1.weight")[0] // 2,
            tensors.shape("control_blocks.0.adaln_proj.linear.weight")[1],
            after,
            file.metadata.get(_MASKED) == "post_norm",
        )

    def table(self) -> Table:
        table: dict[str, str | tuple[Place, ...]] = {
            "control_proj_in": "control_proj_in",
            "control_blocks": "control_blocks",
        }
        for number in range(len(self.after)):
            name = f"control_blocks.{number}"
            table |= block_names(name, name, self.heads * self.head)
        return table

    def single(self, name: str) -> bool:
        return name.startswith("control_proj_in.") or ".adaln_proj." in name

    def build(self) -> nn.Module:
        return MiniMaxH3ControlNetwork(self)


def _places(said: str | None, count: int) -> tuple[int, ...] | None:
    """Return the blocks of the backbone after which `count` blocks act; None for what is said and cannot be."""
    if said is None:
        return tuple(range(0, BACKBONE_BLOCKS, BACKBONE_BLOCKS // count))[:count] if count <= BACKBONE_BLOCKS else None
    try:
        places = json.loads(said)
    except ValueError:
        return None
    numbers = isinstance(places, list) and all(type(place) is int for place in places)
    fits = numbers and len(places) == count and places[0] == 0 and places == sorted(set(places))
    return tuple(places) if fits else None


class _Block(MiniMaxH3TransformerBlock):  # type: ignore[misc]
    """A block with an output. first: it adds its input to the backbone's sequence."""

    def __init__(self, family: MiniMaxH3Control, *, first: bool) -> None:
        super().__init__(family.width, family.heads, family.head, family.inside, family.time_width, EPS, EPS)
        if first:
            self.before_proj = nn.Linear(family.width, family.width)
        self.after_proj = nn.Linear(family.width, family.width)


class MiniMaxH3ControlNetwork(BlockwiseNetwork):
    """A network with the names of diffusers' blocks."""

    def __init__(self, family: MiniMaxH3Control) -> None:
        super().__init__()
        self.family = family
        self.control_proj_in = nn.Linear(FED * PATCH**2, family.width)
        self.control_blocks = nn.ModuleList(_Block(family, first=not i) for i in range(len(family.after)))

    def check(self, name: str, images: ControlImages, backbone: Any) -> None:
        if not isinstance(backbone, MiniMaxH3):
            raise of_another_family(name, MiniMaxH3.title, backbone)
        family = self.family
        for what, of_model in (("width", "wide"), ("time_width", "wide in its times")):
            ours, theirs = getattr(family, what), getattr(backbone, what)
            if ours != theirs:
                pruned = "; one of them is pruned and the other whole" if what == "time_width" else ""
                raise NodeError(
                    f"'{name}' is made for a {backbone.title} {ours} {of_model}, and the model is {theirs}{pruned}"
                )
        if family.after[-1] >= backbone.layers:
            raise NodeError(f"'{name}' acts after block {family.after[-1]}, and the model has {backbone.layers} blocks")
        if images.image is None and images.mask is None:
            raise NodeError(f"'{name}' follows a video: connect one, or a mask, to the node that applies it")

    def read(self, images: ControlImages, size: Sequence[int]) -> Tensor:
        """Return the hint as embedded rows of a video (1,n,W)."""
        reading = self.reading(images, size)
        while True:
            try:
                next(reading)
            except StopIteration as end:
                rows: Tensor = end.value
                return rows

    def reading(self, images: ControlImages, size: Sequence[int]) -> Generator[Any, None, Tensor]:
        like = self.control_proj_in.weight
        device, (frames, height, width) = like.device, size
        vae: Any = images.vae
        count = max(0, frames - OF_LAST) // OF_CLIP * CLIP + LAST
        sides = height * vae.factor, width * vae.factor

        def encoded(pixels: Tensor) -> Generator[Any, None, Tensor]:
            latents = to_device((yield from vae.by_latent_frames("encode", pixels)), device).float()
            MINIMAX_H3.check(latents.shape)
            if tuple(latents.shape[2:]) != tuple(size):
                raise NodeError(
                    f"a control video becomes latents {tuple(latents.shape[2:])}, and the video to make has {size}"
                )
            return latents

        fitted = partial(_fitted, count=count, sides=sides)
        hint = None if images.image is None else (yield from encoded(fitted(images.image)))
        if images.mask is not None:
            mask = (images.mask.reshape(-1, *images.mask.shape[-2:], 1) > 0.5).float()
            kept = 1 - (fitted(mask) > 0.5).float()
            source = kept.new_zeros(count, *sides, 3)
            if images.inpaint_image is not None:
                source = fitted(images.inpaint_image)
            painted = torch.tensor(PIXEL_MEANS) if self.family.grey else torch.zeros(3)
            latents = yield from encoded(source * kept + (1 - kept) * painted)
            cells = interpolate(kept[None, None, ..., 0], size=tuple(size), mode="trilinear")
            hint = torch.zeros_like(latents) if hint is None else hint
            hint = torch.cat([hint, to_device(cells, device), latents], dim=1)
        assert hint is not None, "check is to be called first"
        rows = video_rows(hint)
        embedded: Tensor = self.control_proj_in(pad(rows, (0, FED * PATCH**2 - rows.shape[2])).to(like.dtype))
        return embedded

    def at_work(self, rows: SomeRows, call: SequenceCall) -> AtWork:
        return _AtWork(self, rows, call)


def _fitted(images: Tensor, count: int, sides: tuple[int, int]) -> Tensor:
    """Return the first images of a video (N,H,W,C), the last repeated, at a size, cut to its proportions."""
    chosen = images[torch.arange(count, device=images.device).clamp(max=len(images) - 1)]
    return resize(chosen.float(), sides[1], sides[0], "bilinear", "center")


def _dense(attn: Any, inner: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attention_output(q, k, v)


class _AtWork(AtWork):
    def __init__(self, network: MiniMaxH3ControlNetwork, rows: SomeRows, call: SequenceCall) -> None:
        self._network, self._rows, self._call = network, rows, call
        self._times = call.times[rows.index].flatten(0, 1)
        self._plan = [
            part if isinstance(part.time, int) else Modulated(part.start, part.end, part.time[rows.index], part.kind)
            for part in call.plan
        ]
        self._sequence: Tensor | None = None
        self._answered = 0

    def before(self, stack: str, tokens: Tensor) -> None:
        given = tokens[self._rows.index]
        sequence, start = given.clone(), 0
        for segment in self._call.segments:
            end = start + segment.length
            if segment.kind == "video":
                sequence[:, start:end] = torch.cat(list(self._rows.read)).to(given.dtype)
            elif segment.kind == "given video":
                # As of a hint that is zero.
                sequence[:, start:end] = self._network.control_proj_in.bias.to(given.dtype)
            start = end
        first: Any = self._network.control_blocks[0]
        self._sequence = first.before_proj(sequence) + given

    def after(self, stack: str, number: int, tokens: Tensor) -> None:
        family = self._network.family
        if self._answered == len(family.after) or number != family.after[self._answered]:
            return
        assert self._sequence is not None, "before is to be called first"
        block: Any = self._network.control_blocks[self._answered]
        self._sequence = through_block(block, self._sequence, self._times, self._plan, self._call.turns, _dense)
        added, start = block.after_proj(self._sequence), 0
        for segment in self._call.segments:
            end = start + segment.length
            if segment.kind in ("sound", "given sound"):
                added[:, start:end] = 0
            start = end
        self._rows.add(tokens, added)
        self._answered += 1
