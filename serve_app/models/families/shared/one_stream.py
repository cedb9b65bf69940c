"""Single-stream transformers: text and image tokens attend to each other, as in Lumina 2 and Z-Image.

Text and image go through a few layers separately, and then through the others together; their lengths differ by row.
Source: Qin et al. 2025, arXiv:2503.21758.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from serve_app.models.control.model_control import AtWork, all_at_work
from serve_app.models.families.family import Rows
from serve_app.models.families.shared.dit import (
    Transformer,
    angles,
    by_heads,
    check_text,
    from_tokens,
    grid,
    lengths,
    positions,
    stacked,
    to_tokens,
    within,
)
from serve_app.models.forward import Inputs
from serve_app.models.kernels.attention import attention_over
from serve_app.models.ranks.sharding import Sharding, sharding
from serve_app.recipe.training import Training
from serve_app.sampling.forward import Area, Canvas, to_batch
from serve_app.sampling.latents.latent_formats import FLUX
from serve_app.sampling.transfer import to_device

REFINERS, LAYERS = "refiners", "layers"
"""The stacks of layers that model controls add to: the image's own, and those of both."""


@dataclass(frozen=True, slots=True, eq=False)
class StreamCall:
    """Inputs of model controls in a forward of R rows. time: the modulation input, (R,W).

    turns: rotary positions of the image's tokens, (R,S,…), as its layers take them.
    """

    time: Tensor
    turns: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class TextInputs:
    """Conditioning inputs for B rows. text: (B,T,D)."""

    text: Tensor

    def within(self, area: Area | None) -> TextInputs:
        return self


class OneStream(Transformer):
    """A family of single-stream backbones.

    Rows with any text may share a forward, as may rows of any size whose cells, rounded up to a power of two, are equal
    in number. theta: of the positions; multiple: text and image are padded to multiples of it.
    """

    latent_format = FLUX
    dtypes = (torch.bfloat16,)
    theta: ClassVar[float]
    multiple: ClassVar[int] = 1

    text_width: int

    @property
    @abstractmethod
    def axes(self) -> tuple[int, ...]:
        """Numbers of a head rotated by the text's token, by row and by column."""

    @abstractmethod
    def time(self, network: Any, time: Tensor) -> Tensor:
        """Return the modulation input for times 0…1 from noise to image, (R,) float32."""

    @abstractmethod
    def embedded_image(self, network: Any) -> tuple[nn.Module, Tensor | None]:
        """Return the embedder of the image's tokens, and their padding token."""

    @abstractmethod
    def embedded_text(self, network: Any) -> tuple[nn.Module, Tensor | None]:
        """Return the embedder of the text's tokens, and their padding token."""

    @abstractmethod
    def last(self, network: Any, tokens: Tensor, time: Tensor) -> Tensor:
        """Return the output's tokens."""

    def turns(self, turned: Tensor) -> Tensor:
        """Return rotary positions as the layers take them, from angles (R,S,d/2): complex numbers by default."""
        return torch.polar(torch.ones_like(turned), turned).to(torch.complex64)

    def text_at(self, count: int) -> Tensor:
        """Return the positions (n,3) of a text's tokens and their padding, from 1 on."""
        return pad(torch.arange(1.0, padded_length(count, self.multiple) + 1)[:, None], (0, 2))

    def image_at(self, x: Tensor, inputs: Any) -> Tensor:
        """Return the positions (n,3) of an image's tokens, which come after the text's."""
        return positions(x.shape[-2:], padded_length(inputs.text.shape[1], self.multiple) + 1)

    def reference_tokens(self, network: Any, given: Inputs, time: Tensor) -> Stream | None:
        """Return further tokens that image and text attend to; None by default."""
        return None

    def together(self, network: Any, image: Stream, text: Stream, time: Tensor, shards: Sharding) -> Stream:
        """Return this rank's shard of image and references, and the text, as one stream; unchanged by default.

        shards: of the image, the references and the text.
        """
        return image.followed_by(text).sharded(shards)

    def inputs(
        self,
        cond: Tensor,
        options: Mapping[str, Any],
        role: str,
        canvas: Canvas,
        device: torch.device,
        trained_as: Training,
    ) -> TextInputs:
        check_text(cond, self.text_width, self.title)
        return TextInputs(to_batch(to_device(cond, device).float(), canvas.rows))

    def group_key(self, x: Tensor, inputs: Any) -> Hashable:
        """Return the power of two that contains the cells: smaller ones are padded, by less than half."""
        return x.shape[1], (x.shape[-2] * x.shape[-1] - 1).bit_length()

    def call_inputs(self, network: Any, rows: Sequence[Rows]) -> Mapping[Any, Tensor | None]:
        """Return the call's input tensors. Rows may differ in all but their number of channels."""
        dtype = next(network.parameters()).dtype
        texts = [r.inputs.text.to(dtype) for r in rows]
        images = [to_tokens(r.x.to(dtype), channels_last=True) for r in rows]
        return {
            # The network's time runs from noise to image; rounded to half precision first, it would be another one.
            "time": 1 - torch.cat([r.timestep for r in rows]),
            **self.token_inputs("image", images, [self.image_at(r.x, r.inputs) for r in rows]),
            **self.token_inputs("text", texts, [self.text_at(text.shape[1]) for text in texts]),
        }

    def run(self, network: Any, rows: Sequence[Rows], given: Inputs) -> Tensor:
        """Return the tokens of all rows, (R,S,F), the image's first."""
        time = self.time(network, given["time"])
        image = self.stream(given, "image", *self.embedded_image(network))
        controls = all_at_work(rows, StreamCall(time, image.turns))
        image = image.through_all(network.noise_refiner, time, REFINERS, controls)
        text = self.stream(given, "text", *self.embedded_text(network))
        for layer in network.context_refiner:
            text = text.through(layer)
        reference_tokens = self.reference_tokens(network, given, time)
        count = image.tokens.shape[1]
        images = image if reference_tokens is None else image.followed_by(reference_tokens)
        shards = sharding(count, images.tokens.shape[1] - count, text.tokens.shape[1])
        whole = self.together(network, images, text, time, shards)
        with attention_over(shards.of_attention):
            whole = whole.through_all(network.layers, time, LAYERS, controls)
        made = self.last(network, whole.tokens, time)
        return made if shards.of_attention is None else shards.gather(made[:, : shards.count(0)], 0)

    def split_output(self, made: Tensor, rows: Sequence[Rows]) -> list[Tensor]:
        split_output, counts = [], [r.count for r in rows]
        for tokens, r in zip(torch.split(made, counts), rows, strict=True):
            size = r.x.shape[-2:]
            split_output.append(-from_tokens(tokens[:, : prod(grid(*size))], *size, channels_last=True))
        return split_output

    def token_inputs(self, name: str, pieces: Sequence[Tensor], at: Sequence[Tensor]) -> dict[str, Tensor | None]:
        """Return a call's inputs for one stream, for `stream`.

        Pieces (B_i,n_i,F) are each padded, with positions (≥n_i,3); padding is at 0.
        """
        counts = lengths(pieces)
        padded_lengths = [padded_length(count, self.multiple) for count in counts]
        longest, device = max(padded_lengths), pieces[0].device
        padded = (pad(a, (0, 0, 0, longest - len(a))) for a in at)
        placed = torch.cat([a.expand(len(piece), -1, -1) for a, piece in zip(padded, pieces, strict=True)])
        return {
            name: stacked(pieces),
            f"{name} at": to_device(placed, device),
            f"{name} its own": within(counts, longest, device) if min(counts) < longest else None,
            # Without a mask attention can use its faster kernels.
            f"{name} there": None if min(padded_lengths) == longest else within(padded_lengths, longest, device),
        }

    def stream(
        self, given: Inputs, name: str, embed: Callable[[Tensor], Tensor], padding: Tensor | None = None
    ) -> Stream:
        """Return a stream of a call's inputs, embedded. padding: its padding token; None: zeros."""
        at, own = given[f"{name} at"], given.get(f"{name} its own")
        tokens = embed(given[name])
        tokens = pad(tokens, (0, 0, 0, at.shape[1] - tokens.shape[1]))
        if padding is not None and own is not None:
            tokens = torch.where(own[..., None], tokens, padding)
        return Stream(tokens, self.turns(angles(at, self.axes, self.theta)), given.get(f"{name} there"))


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """Tokens (R,S,D), their rotary positions (R,S,…), and the mask of real ones (R,S); None: all."""

    tokens: Tensor
    turns: Tensor
    there: Tensor | None

    def through(self, layer: Any, time: Tensor | None = None) -> Stream:
        return replace(self, tokens=layer(self.tokens, self.there, self.turns, time))

    def through_all(self, layers: Iterable[Any], time: Tensor, stack: str, controls: Sequence[AtWork]) -> Stream:
        """Return the output of a stack of layers. controls: act on the image's tokens, which come first."""
        for control in controls:
            control.before(stack, self.tokens)
        stream = self
        for number, layer in enumerate(layers):
            stream = stream.through(layer, time)
            for control in controls:
                control.after(stack, number, stream.tokens)
        return stream

    def sharded(self, shards: Sharding) -> Stream:
        """Return a rank's shard of the tokens; the mask stays that of all, as attention over the ranks takes it."""
        if shards.of_attention is None:
            return self
        known = shards.mask(by_heads(self.there))
        return Stream(shards.shard(self.tokens), shards.shard(self.turns), None if known is None else known[:, 0, 0])

    def followed_by(self, other: Stream) -> Stream:
        tokens, turns = (torch.cat(pair, dim=1) for pair in ((self.tokens, other.tokens), (self.turns, other.turns)))
        if self.there is None and other.there is None:
            return Stream(tokens, turns, None)
        there = [
            tokens.new_ones(s.tokens.shape[:2], dtype=torch.bool) if s.there is None else s.there for s in (self, other)
        ]
        return Stream(tokens, turns, torch.cat(there, dim=1))


def padded_length(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
