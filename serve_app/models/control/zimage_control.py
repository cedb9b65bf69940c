"""Model patches of Z-Image: the Fun union ControlNets, for many kinds of hint, version 2 also for inpainting.

Layers of the backbone's kind run alongside it, on the hint's tokens and the input of the backbone's layers; their
outputs are added after every n-th of the backbone's layers, in version 2 after its refiners too. Source: the published
weights, Z-Image-Turbo-Fun-Controlnet-Union; the numbers are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from serve_app.errors import NodeError
from serve_app.images import resize
from serve_app.models.control.dit_control import SideFamily, check_family
from serve_app.models.control.model_control import AtWork, BlockwiseNetwork, ControlImages, SomeRows, fitted
from serve_app.models.families.dit.zimage import SIZES, ZImage, attention_names
from serve_app.models.families.shared.dit import PATCH, WHOLE_EPS, lengths, stacked, to_tokens, within
from serve_app.models.families.shared.fused_blocks import ZImageBlock
from serve_app.models.families.shared.one_stream import LAYERS, REFINERS, StreamCall
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.files.layout import Place, Table
from serve_app.models.files.tensors import Tensors
from serve_app.sampling.forward import to_batch
from serve_app.sampling.latents.latent_formats import FLUX
from serve_app.sampling.transfer import to_device

BACKBONE_LAYERS = 30
"""Number of backbone layers that the outputs are spread over: as many as the published one has."""
FED = {FLUX.channels: "a hint", 2 * FLUX.channels + 1: "a hint, a mask and a masked image"}
"""The inputs, by number of channels."""
REFINING_LAYERS = 6
"""Files with more layers than this have refiners with zero outputs, published by mistake."""
GREY = 0.5

_MARK = f"control_all_x_embedder.{SIZES}.weight"
_STACKS = ("control_layers", "control_noise_refiner")
_EPS = 1e-5


@dataclass(frozen=True, slots=True)
class ZImageControl(SideFamily):
    """A network. width: of a token; layers, refiners: number of each; paints: it also reads a masked image.

    refines: its refiners add to the backbone's. by_layers: its layers do that instead, as 2.0 was trained by mistake.
    """

    width: int
    heads: int
    layers: int
    refiners: int
    paints: bool = False
    refines: bool = False
    by_layers: bool = False

    @classmethod
    def find(cls, file: Checkpoint) -> Self | None:
        if _MARK not in file.shapes:
            return None
        tensors = Tensors(file.shapes, file.where)
        width, columns = tensors.shape(_MARK)
        norms = (f"control_layers.0.attention.{name}.weight" for name in ("norm_q", "q_norm"))
        head = next((file.shapes[name][0] for name in norms if name in file.shapes), 0)
        channels = columns // PATCH**2
        if channels not in FED or not head or width % head:
            known = " or ".join(f"{number} ({what})" for number, what in FED.items())
            raise tensors.unsupported(
                f"is a model patch of Z-Image {width} wide with heads of {head} that reads {channels} channels; "
                f"supported are {known}"
            )
        layers, answer = tensors.count("control_layers."), "control_noise_refiner.0.after_proj.weight"
        refines = answer in file.shapes
        return cls(
            width,
            width // head,
            layers,
            tensors.count("control_noise_refiner."),
            channels > FLUX.channels,
            refines,
            refines and layers > REFINING_LAYERS and not file.tensor(answer).any(),
        )

    def table(self) -> Table:
        table: dict[str, str | tuple[Place, ...]] = {name: name for name in ("control_all_x_embedder", *_STACKS)}
        for stack, count in zip(_STACKS, (self.layers, self.refiners), strict=True):
            for number in range(count):
                table |= attention_names(f"{stack}.{number}.attention", self.width)
        return table

    def build(self) -> nn.Module:
        return ZImageControlNetwork(self)


class _Layer(ZImageBlock):
    """A layer with an output. first: of its stack; it adds its input to the backbone's tokens."""

    def __init__(self, width: int, heads: int, *, first: bool) -> None:
        super().__init__(0, width, heads, heads, _EPS, True)
        self.before_proj = nn.Linear(width, width) if first else None
        self.after_proj = nn.Linear(width, width)


class ZImageControlNetwork(BlockwiseNetwork):
    """A network with the file's names."""

    def __init__(self, family: ZImageControl) -> None:
        super().__init__()
        self.family = family
        width, heads = family.width, family.heads
        channels = 2 * FLUX.channels + 1 if family.paints else FLUX.channels
        self.control_all_x_embedder = nn.ModuleDict({SIZES: nn.Linear(channels * PATCH**2, width)})
        self.control_layers = nn.ModuleList(_Layer(width, heads, first=not i) for i in range(family.layers))
        self.control_noise_refiner = nn.ModuleList(
            _Layer(width, heads, first=not i) if family.refines else ZImageBlock(0, width, heads, heads, _EPS, True)
            for i in range(family.refiners)
        )
        for name, module in self.named_modules():
            if name.endswith(("norm_q", "norm_k")):
                module.eps = WHOLE_EPS

    def check(self, name: str, images: ControlImages, backbone: Any) -> None:
        check_family(name, ZImage(self.family.width, 1, 1, 1, 1), backbone)
        if images.image is None and (images.inpaint_image is None or not self.family.paints):
            also = " or an image to paint into" if self.family.paints else ""
            raise NodeError(f"'{name}' follows an image{also}: connect one to the node that applies it")

    def read(self, images: ControlImages, size: Sequence[int]) -> Tensor:
        """Return the hint as embedded tokens (N,n,D)."""
        rows, columns = ((side + side % PATCH) * images.vae.factor for side in size)
        image, inpaint = (
            None if pixels is None else fitted(pixels, rows, columns) for pixels in (images.image, images.inpaint_image)
        )
        latents = _encoded(images, torch.full_like(inpaint, GREY) if image is None and inpaint is not None else image)
        if self.family.paints:
            latents = torch.cat([latents, *self._painted(images, inpaint, (rows, columns), latents)], dim=1)
        embed: Any = self.control_all_x_embedder[SIZES]
        tokens: Tensor = embed(to_tokens(latents.to(embed.bias.device, embed.bias.dtype), channels_last=True))
        return tokens

    def _painted(
        self, images: ControlImages, inpaint: Tensor | None, size: tuple[int, int], latents: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the channels of the mask, 1 where to keep the image, and of the masked image, grey elsewhere."""
        rows, columns = size
        kept = images.kept
        if inpaint is None:
            inpaint = torch.full((len(latents), rows, columns, 3), GREY)
        if kept is None:
            mask = torch.zeros_like(latents[:, :1])
        else:
            seen = resize(kept, columns, rows, "bilinear", "center").round()
            inpaint = (inpaint - GREY) * seen + GREY
            small = resize(kept, latents.shape[-1], latents.shape[-2], "nearest", "center")
            mask = to_device(to_batch(small.movedim(-1, 1), len(latents)), latents.device)
        return mask, to_batch(_encoded(images, inpaint), len(latents))

    def at_work(self, rows: SomeRows, call: StreamCall) -> AtWork:
        return _AtWork(self, rows, call)


def _encoded(images: ControlImages, pixels: Tensor | None) -> Tensor:
    assert pixels is not None, "check is to be called first"
    latents = images.vae.encode(pixels)
    FLUX.check(latents.shape)
    return FLUX.to_model(latents)


class _AtWork(AtWork):
    def __init__(self, network: ZImageControlNetwork, rows: SomeRows, call: StreamCall) -> None:
        self._network, self._rows = network, rows
        self._tokens = stacked(rows.read)
        counts, longest = lengths(rows.read), self._tokens.shape[1]
        # Without a mask attention can use its faster kernels.
        self._there = None if min(counts) == longest else within(counts, longest, self._tokens.device)
        self._turns, self._time = call.turns[rows.index, :longest], call.time[rows.index]
        self._given = self._tokens
        if not network.family.refines:
            for layer in network.control_noise_refiner:
                self._tokens = layer(self._tokens, self._there, self._turns, self._time)

    def before(self, stack: str, tokens: Tensor) -> None:
        self._given = tokens[:, : self._tokens.shape[1]][self._rows.index]

    def after(self, stack: str, number: int, tokens: Tensor) -> None:
        if (answers := self._answers(stack, number)) is None:
            return
        answer = answers[0]
        if self._there is not None:
            answer = answer * self._there[..., None]
        self._rows.add(tokens, answer)

    def _answers(self, stack: str, number: int) -> list[Tensor] | None:
        """Return the outputs to add after a layer of the backbone, or None."""
        network, family = self._network, self._network.family
        if stack == LAYERS:
            apart = round(BACKBONE_LAYERS / family.layers)
            which, over = divmod(number, apart)
            return None if over or which >= family.layers else self._through([network.control_layers[which]])
        if stack != REFINERS or not family.refines or number >= family.refiners:
            return None
        if not family.by_layers:
            return self._through([network.control_noise_refiner[number]])
        return self._through(network.control_layers[1:] if number else network.control_layers[:1])

    def _through(self, layers: Iterable[Any]) -> list[Tensor]:
        answers = []
        for layer in layers:
            if layer.before_proj is not None:
                self._tokens = layer.before_proj(self._tokens) + self._given
            self._tokens = layer(self._tokens, self._there, self._turns, self._time)
            answers.append(layer.after_proj(self._tokens))
        return answers
