"""Z-Image, turbo and base: one stream of tokens in which text and image attend to each other.

Read off the single file's names or diffusers'; run by the layers of diffusers' ZImageTransformer2DModel.
Source: Z-Image Team 2025, arXiv:2511.22699; the numbers are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.models.transformers.transformer_z_image import TimestepEmbedder, ZImageTransformer2DModel
from torch import Tensor, nn
from torch.nn.functional import pad

from serve_app.models.families.dit import (
    PATCH,
    WHOLE_EPS,
    angles,
    check_text,
    from_tokens,
    lengths,
    lora_names,
    positions,
    stacked,
    thirds,
    to_tokens,
    within,
)
from serve_app.models.families.family import BACKBONE_PREFIXES, BackboneFamily, File, Located, Rows, marked
from serve_app.models.families.flux_latents import LATENTS
from serve_app.models.layout import Place, Table
from serve_app.models.tensors import Tensors
from serve_app.sampling.forward import Area, Canvas, to_batch
from serve_app.values import Flow, Training

SHIFT = 3.0
MULTIPLE = 32
"""Text and image are filled up to so many tokens each, with a learned one."""
THETA = 256.0
AXES = (2, 3, 3)
"""Eighths of a head that turn by the number of the text's token, by row and by column."""
TIME_WIDTH = 256
TIMES = 1000.0
"""Time runs to this in the network."""

SIZES = f"{PATCH}-1"
"""What diffusers calls the layers around the others, which it can hold for several sizes of tokens."""

_MARKS = ("layers.0.adaLN_modulation.0.weight",)
_EMBEDDER, _LAST = f"all_x_embedder.{SIZES}", f"all_final_layer.{SIZES}"
_OTHERS = {"siglip_embedder.": "the omni edition", "dec_net.": "the edition in pixels"}
_ATTENTION = {"out": "to_out.0", "q_norm": "norm_q", "k_norm": "norm_k"}
_REST = ("cap_embedder", "t_embedder", "x_pad_token", "cap_pad_token", "layers", "noise_refiner", "context_refiner")


@dataclass(frozen=True, slots=True, eq=False)
class ZImageInputs:
    """What a network is told beside x and time, for B rows. text: (B,T,D)."""

    text: Tensor

    def within(self, area: Area | None) -> ZImageInputs:
        return self


@dataclass(frozen=True, slots=True)
class ZImage(BackboneFamily):
    """A backbone. width: of a token in the network; text_width: of a row of text; time_width: inside the time's layers.

    Rows of any text may share a forward, and rows of any size whose cells, rounded up to a power of two, are as many.
    """

    title = "Z-Image"
    latent_format = LATENTS
    dtypes = (torch.bfloat16,)

    width: int
    heads: int
    layers: int
    refiners: int
    text_width: int
    latent_channels: int = 16
    time_width: int = 1024

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        if (found := marked(files[0], BACKBONE_PREFIXES, _MARKS)) is not None:
            prefix, tensors = found
            yield Located(cls.probe(tensors), tensors, prefix=prefix)

    @classmethod
    def probe(cls, tensors: Tensors) -> ZImage:
        """Read the network off its tensors. Errors: ModelFileError for one of another edition or build."""
        for mark, edition in _OTHERS.items():
            if tensors.has(mark):
                raise tensors.unsupported(f"is {edition} of Z-Image, which is not supported")
        theirs = _by_diffusers(tensors)
        width, text_width = tensors.shape("cap_embedder.1.weight")
        head = tensors.shape(f"layers.0.attention.{'norm_q' if theirs else 'q_norm'}.weight")[0]
        inside = tensors.shape("layers.0.feed_forward.w1.weight")[0]
        if head % 16 or width % head or inside != int(width / 3 * 8):
            raise tensors.unsupported(
                f"has a Z-Image backbone {width} wide with heads of {head} and {inside} inside; supported are heads of "
                f"a multiple of 16 and {int(width / 3 * 8)} inside"
            )
        return cls(
            width,
            width // head,
            tensors.count("layers."),
            tensors.count("noise_refiner."),
            text_width,
            tensors.shape(f"{_EMBEDDER if theirs else 'x_embedder'}.weight")[1] // PATCH**2,
            tensors.shape("t_embedder.mlp.0.weight")[0],
        )

    def table(self, tensors: Tensors | None = None) -> Table:
        if tensors is not None and _by_diffusers(tensors):
            return {name: name for name in (_EMBEDDER, _LAST, *_REST)}
        table: dict[str, str | tuple[Place, ...]] = {name: name for name in _REST}
        table |= {"x_embedder": _EMBEDDER, "final_layer": _LAST}
        for stack, count in (
            ("layers", self.layers),
            ("noise_refiner", self.refiners),
            ("context_refiner", self.refiners),
        ):
            for layer in range(count):
                attention = f"{stack}.{layer}.attention"
                table |= {f"{attention}.{theirs}": f"{attention}.{ours}" for theirs, ours in _ATTENTION.items()}
                table[f"{attention}.qkv"] = thirds(self.width, *(f"{attention}.to_{kind}" for kind in "qkv"))
        return table

    @property
    def axes(self) -> tuple[int, ...]:
        """How many numbers of a head turn by each coordinate."""
        return tuple(self.width // self.heads // 8 * share for share in AXES)

    def build(self) -> nn.Module:
        network = ZImageTransformer2DModel(
            in_channels=self.latent_channels,
            dim=self.width,
            n_layers=self.layers,
            n_refiner_layers=self.refiners,
            n_heads=self.heads,
            n_kv_heads=self.heads,
            cap_feat_dim=self.text_width,
            rope_theta=THETA,
            axes_dims=list(self.axes),
        )
        network.t_embedder = TimestepEmbedder(min(self.width, TIME_WIDTH), mid_size=self.time_width)
        for name, module in network.named_modules():
            if name.endswith(("norm_q", "norm_k")):
                module.eps = WHOLE_EPS
        built: nn.Module = network
        return built

    def lora_names(self, parameters: Sequence[str]) -> Table:
        return lora_names(parameters, self.table())

    def training(self, file: File, names: Mapping[str, str]) -> Training:
        return Flow(SHIFT, 1.0)

    def inputs(
        self,
        cond: Tensor,
        options: Mapping[str, Any],
        role: str,
        canvas: Canvas,
        device: torch.device,
        trained_as: Training,
    ) -> ZImageInputs:
        check_text(cond, self.text_width, self.title)
        return ZImageInputs(to_batch(cond.to(device, torch.float32), canvas.rows))

    def group_key(self, x: Tensor, inputs: Any) -> Hashable:
        """Return the power of two that holds the cells: smaller ones are filled up, so less than half is in vain."""
        return x.shape[1], (x.shape[-2] * x.shape[-1] - 1).bit_length()

    def forward(self, network: Any, rows: Sequence[Rows]) -> list[Tensor]:
        """Return the network's output for each of the rows, which may differ in all but their number of channels."""
        dtype, counts = network.x_pad_token.dtype, [r.count for r in rows]
        texts = [r.inputs.text.to(dtype) for r in rows]
        images = [to_tokens(r.x.to(dtype), channels_last=True) for r in rows]
        starts = [_filled(text.shape[1]) + 1 for text in texts]
        image_at = [positions(r.x.shape[-2:], start) for r, start in zip(rows, starts, strict=True)]
        text_at = [pad(torch.arange(1.0, start)[:, None], (0, 2)) for start in starts]
        # The network counts time from noise to image; told it in half precision, it would hear another one.
        time = (1 - torch.cat([r.timestep for r in rows])) * TIMES
        time = network.t_embedder.mlp(TimestepEmbedder.timestep_embedding(time, TIME_WIDTH).to(dtype))
        image = _stream(images, image_at, network.all_x_embedder[SIZES], network.x_pad_token, self.axes)
        for layer in network.noise_refiner:
            image = image.through(layer, time)
        text = _stream(texts, text_at, network.cap_embedder, network.cap_pad_token, self.axes)
        for layer in network.context_refiner:
            text = text.through(layer)
        both = image.followed_by(text)
        for layer in network.layers:
            both = both.through(layer, time)
        outputs = torch.split(network.all_final_layer[SIZES](both.tokens, c=time), counts)
        return [
            -from_tokens(output[:, : image.shape[1]], *r.x.shape[-2:], channels_last=True).float()
            for output, image, r in zip(outputs, images, rows, strict=True)
        ]


@dataclass(frozen=True, slots=True, eq=False)
class _Stream:
    """Tokens (R,S,D), how each turns queries and keys (R,S,d/2), and which of them there are (R,S); None: all."""

    tokens: Tensor
    turns: Tensor
    there: Tensor | None

    def through(self, layer: Any, time: Tensor | None = None) -> _Stream:
        return replace(self, tokens=layer(self.tokens, self.there, self.turns, time))

    def followed_by(self, other: _Stream) -> _Stream:
        tokens, turns = (torch.cat(pair, dim=1) for pair in ((self.tokens, other.tokens), (self.turns, other.turns)))
        if self.there is None and other.there is None:
            return _Stream(tokens, turns, None)
        there = [
            tokens.new_ones(s.tokens.shape[:2], dtype=torch.bool) if s.there is None else s.there for s in (self, other)
        ]
        return _Stream(tokens, turns, torch.cat(there, dim=1))


def _stream(
    pieces: Sequence[Tensor], at: Sequence[Tensor], embed: nn.Module, filling: Tensor, axes: Sequence[int]
) -> _Stream:
    """Return pieces (B_i,n_i,F), embedded and each filled up, at positions (≥n_i,3); what is filled in is at 0."""
    counts = lengths(pieces)
    filled = [_filled(count) for count in counts]
    longest, device = max(filled), pieces[0].device
    tokens = embed(stacked(pieces))
    tokens = pad(tokens, (0, 0, 0, longest - tokens.shape[1]))
    tokens = torch.where(within(counts, longest, device)[..., None], tokens, filling)
    placed = torch.cat(
        [pad(a, (0, 0, 0, longest - len(a))).expand(len(piece), -1, -1) for a, piece in zip(at, pieces, strict=True)]
    )
    turns = angles(placed.to(device), axes, THETA)
    turns = torch.polar(torch.ones_like(turns), turns).to(torch.complex64)
    # Without a mask attention takes its faster kernels.
    there = None if min(filled) == longest else within(filled, longest, device)
    return _Stream(tokens, turns, there)


def _filled(count: int) -> int:
    return -(-count // MULTIPLE) * MULTIPLE


def _by_diffusers(tensors: Tensors) -> bool:
    return tensors.has("layers.0.attention.to_q.")
