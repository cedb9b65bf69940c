"""SeedVR2, super-resolution of images and videos: it restores detail of enlarged ones in one step of diffusion.

Files hold the two texts it reads beside the network, as ComfyUI's do. Of 3 B (video and text apart in its first blocks)
and of 7 B. Source: Wang et al. 2025, arXiv:2506.05301; the numbers are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, addcmul, nn

from serve_app.errors import NodeError
from serve_app.models.families.family import Rows
from serve_app.models.families.shared.dit import (
    DOUBLES,
    PATCH,
    Passing,
    Transformer,
    check_text,
    from_tokens,
    grid,
    passed,
    to_tokens,
)
from serve_app.models.families.video.seedvr2_blocks import (
    EPS,
    Block,
    Group,
    Modulation,
    Projection,
    Size,
    TimeEmbedding,
    Windows,
    cut,
    frequencies_of,
    grid_angles,
    pixel_angles,
    text_angles,
    tokens_of,
)
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.models.forward import Inputs
from serve_app.models.kernels.rotary import turns_of
from serve_app.recipe.training import Flow, Training
from serve_app.sampling.forward import Area, Canvas, crop, to_batch
from serve_app.sampling.latents.latent_formats import SEEDVR2
from serve_app.sampling.transfer import to_device

WAVES = 256
"""Sinusoids of a time."""
CONDITION = "condition"
"""The option of a conditioning with the latents of the enlarged video and, as a last channel, where they are."""
TEXTS = {"positive": "positive_conditioning", "negative": "negative_conditioning"}
"""Tensors of the file with its texts, by role."""
_FREQUENCIES = "blocks.0.attn.rope.rope.freqs"
_TOP = ("vid_in", "txt_in", "emb_in", "blocks", "vid_out", "vid_out_norm", "vid_out_ada", *TEXTS.values())


@dataclass(frozen=True, slots=True, eq=False)
class SeedVr2Inputs:
    """Conditioning inputs for B rows. text: (B,T,D). condition: (B,C+1,F,h,w), as CONDITION."""

    text: Tensor
    condition: Tensor

    def within(self, area: Area | None) -> SeedVr2Inputs:
        """Return the inputs for an area of the canvas, in all frames."""
        return self if area is None else SeedVr2Inputs(self.text, crop(self.condition, area))


class OfGroup(NamedTuple):
    """Name of a call's input: what `Group` has of a number of those of a cut, which is moved or not."""

    what: str
    moved: bool
    number: int


class Back(NamedTuple):
    """Name of a call's input: as `Windows.back`."""

    moved: bool


@dataclass(frozen=True, slots=True)
class SeedVr2(Transformer):
    """A backbone. width: of a token; inside: of feed-forward layers; gated: these are SwiGLU.

    apart: its first blocks with layers for video and text apart. normed: the video is normed at the end, positions are
    those of tokens, and the last block makes no text: as of the network of 3 B. texts: their tokens, positive and
    negative. frequencies: the file has those of positions.
    """

    title = "SeedVR2"
    trained_as = Flow(1.0)
    latent_format = SEEDVR2
    dtypes = (torch.bfloat16,)

    width: int
    heads: int
    head: int
    layers: int
    inside: int
    text_width: int
    texts: tuple[int, int]
    apart: int
    gated: bool
    normed: bool
    frequencies: bool = False

    @classmethod
    def probe(cls, tensors: Tensors) -> SeedVr2:
        """Read the network's size off its tensors. Errors: ModelFileError for a file without its texts."""
        if not all(name in tensors.shapes for name in TEXTS.values()):
            raise tensors.unsupported(
                f"holds a SeedVR2 without the texts that it reads, '{TEXTS['positive']}' and '{TEXTS['negative']}'; "
                "ComfyUI's files have them"
            )
        apart = 0
        while f"blocks.{apart}.attn.proj_qkv.vid.weight" in tensors.shapes:
            apart += 1
        first = "vid" if apart else "all"
        (head,) = tensors.shape(f"blocks.0.attn.norm_q.{first}.weight")
        width = tensors.shape("vid_in.proj.weight")[0]
        return cls(
            width,
            tensors.shape(f"blocks.0.attn.proj_qkv.{first}.weight")[0] // 3 // head,
            head,
            tensors.count("blocks."),
            tensors.shape(f"blocks.0.mlp.{first}.proj_in.weight")[0],
            tensors.shape("txt_in.weight")[1],
            (tensors.shape(TEXTS["positive"])[0], tensors.shape(TEXTS["negative"])[0]),
            apart,
            f"blocks.0.mlp.{first}.proj_in_gate.weight" in tensors.shapes,
            "vid_out_norm.weight" in tensors.shapes,
            _FREQUENCIES in tensors.shapes,
        )

    def table(self, tensors: Tensors | None = None) -> Table:
        table = {name: name for name in _TOP}
        return table | {_FREQUENCIES: "frequencies"} if self.has_frequencies else table

    @property
    def has_frequencies(self) -> bool:
        """Whether the network has frequencies of the file: those of pixels are always computed, as in ComfyUI."""
        return self.frequencies and self.normed

    def single(self, name: str) -> bool:
        return name == "frequencies"

    def build(self) -> nn.Module:
        network = nn.Module()
        channels = self.latent_format.channels
        network.vid_in = Projection((2 * channels + 1) * PATCH**2, self.width)
        network.txt_in = nn.Linear(self.text_width, self.width)
        network.emb_in = TimeEmbedding(WAVES, self.width)
        network.blocks = nn.ModuleList(
            Block(
                self.width,
                self.heads,
                self.head,
                self.inside,
                gated=self.gated,
                apart=number < self.apart,
                drops_text=self.normed and number == self.layers - 1,
            )
            for number in range(self.layers)
        )
        network.vid_out = Projection(self.width, channels * PATCH**2)
        if self.normed:
            network.vid_out_norm = nn.RMSNorm(self.width, eps=EPS)
            network.vid_out_ada = Modulation(self.width, ("out_shift", "out_scale"))
        if self.has_frequencies:
            network.frequencies = nn.Parameter(torch.empty(self.head // 3 // 2))
        for name, tokens in zip(TEXTS.values(), self.texts, strict=True):
            network.register_parameter(name, nn.Parameter(torch.empty(tokens, self.text_width)))
        return network

    def own_texts(self, network: Any) -> Mapping[str, Tensor]:
        return {role: getattr(network, name).float()[None] for role, name in TEXTS.items()}

    def needed_options(self, latents: Tensor) -> Mapping[str, Any]:
        return {CONDITION: latents.new_empty(len(latents), latents.shape[1] + 1, *latents.shape[2:])}

    def inputs(
        self,
        cond: Tensor,
        options: Mapping[str, Any],
        role: str,
        canvas: Canvas,
        device: torch.device,
        trained_as: Training,
    ) -> SeedVr2Inputs:
        """Return the text and the latents of what is enlarged.

        Errors: NodeError for another family's text, without latents, or with those of a video of another size.
        """
        check_text(cond, self.text_width, self.title)
        condition: Tensor | None = options.get(CONDITION)
        wanted = (self.latent_format.channels + 1, *canvas.latents.shape[2:])
        if condition is None:
            raise NodeError(
                f"{self.title} goes by latents, and the conditioning has none; SeedVR2Conditioning adds them"
            )
        if tuple(condition.shape[1:]) != wanted:
            raise NodeError(
                f"the conditioning's video is {tuple(condition.shape[1:])} channels, latent frames, rows and columns, "
                f"and the latents to sample take {wanted}: both are to be of one video"
            )
        rows = canvas.rows
        return SeedVr2Inputs(
            to_batch(to_device(cond, device).float(), rows), to_batch(to_device(condition, device).float(), rows)
        )

    def group_key(self, x: Tensor, inputs: Any) -> Hashable:
        """Return the shape of x and the length of the text, which is in every window."""
        return tuple(x.shape[1:]), inputs.text.shape[1]

    def call_inputs(self, network: Any, rows: Sequence[Rows]) -> Mapping[Any, Tensor | None]:
        """Return the call's input tensors. Rows may differ in level, text and LoRAs."""
        dtype, device = network.vid_out.proj.weight.dtype, rows[0].x.device
        size, tokens = self._size(rows[0].x), rows[0].inputs.text.shape[1]
        frequencies = network.frequencies if self.has_frequencies else to_device(frequencies_of(self.head), device)
        given: dict[Any, Tensor] = {
            "x": torch.cat([r.x for r in rows]).to(dtype),
            "condition": torch.cat([r.inputs.condition for r in rows]).to(dtype),
            "level": torch.cat([r.timestep for r in rows]),
            "text": torch.cat([r.inputs.text for r in rows]).to(dtype),
        }
        if self.normed:
            given["text turns"] = turns_of(text_angles(tokens, frequencies, self.head))
        for moved in (False, True):
            order = []
            for number, (shape, starts) in enumerate(cut(size, moved)):
                at = tokens_of(size, shape, starts)
                order.append(at.flatten())
                if self.normed:
                    angles = grid_angles(shape, tokens, frequencies, self.head)
                else:
                    angles = to_device(pixel_angles(shape, self.head), device)
                given[OfGroup("at", moved, number)] = to_device(at, device)
                given[OfGroup("turns", moved, number)] = turns_of(angles)
            given[Back(moved)] = to_device(torch.cat(order).argsort(), device)
        return given | passed(rows)

    def run(self, network: Any, rows: Sequence[Rows], given: Inputs) -> Tensor:
        x = torch.cat([given["x"], given["condition"]], dim=1)
        size = self._size(x)
        windows = [self._windows(given, size, moved) for moved in (False, True)]
        video = network.vid_in(_by_video(x))
        text = network.txt_in(given["text"])
        waves = get_timestep_embedding(given["level"], WAVES, flip_sin_to_cos=False, downscale_freq_shift=0)
        time = torch.unflatten(network.emb_in(waves.to(x.dtype)), 1, (-1, 2, 3))
        passing = Passing(rows, DOUBLES, given)
        for number, block in enumerate(network.blocks):
            tell = partial(block, time=time, windows=windows[number % 2], text_turns=given.get("text turns"))
            video, text = passing.through(number, partial(tell, video, text), video, text)
        if self.normed:
            # The last norm has the times of the blocks' attention: in the published network too.
            ends, of_attn = network.vid_out_ada, time[:, None, :, 0]
            scale = of_attn[..., 1] + ends.out_scale
            video = addcmul(of_attn[..., 0] + ends.out_shift, network.vid_out_norm(video), scale)
        made = torch.unflatten(network.vid_out(video), 1, (size[0], -1)).flatten(0, 1)
        frames = from_tokens(made, *x.shape[-2:], channels_last=True)
        return frames.view(-1, size[0], *frames.shape[1:]).movedim(1, 2)

    def _size(self, x: Tensor) -> Size:
        """Return the frames, rows and columns of tokens of latents (R,C,F,h,w)."""
        return x.shape[2], *grid(*x.shape[-2:])

    def _windows(self, given: Inputs, size: Size, moved: bool) -> Windows:
        groups = [
            Group(given[OfGroup("at", moved, number)], given[OfGroup("turns", moved, number)])
            for number in range(len(cut(size, moved)))
        ]
        return Windows(groups, given[Back(moved)])


def _by_video(x: Tensor) -> Tensor:
    """Return latents (R,C,F,h,w) as tokens (R,F·n,4C), frame by frame."""
    frames = to_tokens(x.movedim(2, 1).flatten(0, 1), channels_last=True)
    return frames.reshape(len(x), -1, frames.shape[2])
