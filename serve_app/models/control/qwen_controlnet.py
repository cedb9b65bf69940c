"""ControlNets of Qwen-Image: InstantX's, for many kinds of hint or for inpainting, and Alibaba's Fun.

InstantX's has blocks of the backbone's kind with embedders of their own; Fun's blocks read the backbone's embeddings.
Layouts: diffusers' QwenImageControlNetModel, and the single file of Fun. Sources: Zhang et al. 2023, arXiv:2302.05543;
the published weights; the numbers are ComfyUI's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar, Self

from torch import Tensor, nn
from torch.nn.functional import pad

from serve_app.models.control.control import ControlNet, Hint, RowIndex, Spread
from serve_app.models.control.dit_control import (
    DitControlFamily,
    DitControlNetwork,
    check_family,
    check_latents,
    hint_latents,
)
from serve_app.models.control.model_control import one_image
from serve_app.models.control.one_call_net import OneCallNet
from serve_app.models.families.dit.qwen_image import BLOCKS, QwenImage, QwenImageCall
from serve_app.models.families.shared.dit import PATCH, attended, by_heads, to_tokens
from serve_app.models.families.shared.fused_blocks import QwenImageBlock
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.models.forward import Inputs
from serve_app.sampling.latents.latent_formats import WAN

BACKBONE_BLOCKS = 60
"""Number of backbone blocks that the outputs are spread over: as many as the published one has."""
FUN_APART = 12
"""An output of Fun's is added after every twelfth of them."""
FUN_CHANNELS = 2 * WAN.channels + 1
"""Fun's input channels: a hint, a mask and a masked image. Only the hint is used; the others are zeros."""

_MARKS = ("transformer_blocks.0.img_mlp.net.0.proj.weight", "controlnet_x_embedder.weight")
_FUN_MARKS = ("control_blocks.0.after_proj.weight", "control_img_in.weight")
_MODULES = ("img_in", "txt_in", "txt_norm", "time_text_embed", "transformer_blocks")


@dataclass(frozen=True, slots=True)
class QwenControlFamily(DitControlFamily):
    """A ControlNet by InstantX. family: of its backbone, with as many blocks as it has. masked: it reads a mask."""

    family: QwenImage
    masked: bool = False

    @classmethod
    def find(cls, file: Checkpoint) -> Self | None:
        if any(mark not in file.shapes for mark in _MARKS):
            return None
        tensors = Tensors(file.shapes, file.where)
        columns, channels = tensors.shape("img_in.weight")[1], file.shapes[_MARKS[1]][1] // PATCH**2
        if channels not in (WAN.channels, WAN.channels + 1):
            raise tensors.unsupported(
                f"is a ControlNet of Qwen-Image that reads {channels} channels; supported are {WAN.channels}, and "
                f"{WAN.channels + 1} with a mask"
            )
        # The file has no output layer to show its channels: they equal the input's.
        family = QwenImage.probe(Tensors({**file.shapes, "proj_out.weight": (columns, 0)}, file.where))
        return cls(family, channels > WAN.channels)

    @property
    def reads_latents(self) -> bool:
        return True

    def table(self) -> Table:
        return {name: name for name in (*_MODULES, "controlnet_blocks", "controlnet_x_embedder")}

    def build(self) -> DitControlNetwork:
        return QwenControlNetwork(self)


class QwenControlNetwork(DitControlNetwork):
    """A network with diffusers' names."""

    def __init__(self, control: QwenControlFamily) -> None:
        super().__init__()
        self.control = control
        family, network = control.family, control.family.build()
        for name in _MODULES:
            setattr(self, name, getattr(network, name))
        self.controlnet_x_embedder = nn.Linear((WAN.channels + control.masked) * PATCH**2, family.width)
        self.controlnet_blocks = nn.ModuleList(nn.Linear(family.width, family.width) for _ in range(family.layers))

    def control_net(self, key: Hashable, name: str) -> ControlNet:
        return QwenControlNet(key, name, self)

    def forward(self, given: Inputs, turns: tuple[Tensor, Tensor]) -> list[Tensor]:
        """Return the outputs (R,n,D) for rows. given: of a `QwenImageCall`, and the hint as tokens (R,n,columns)."""
        own: Any = self
        hint, there = given["hint"], given.get("there")
        time = self.control.family.time(own, given["level"], hint.dtype)
        text = own.txt_in(own.txt_norm(given["text"].to(hint.dtype)))
        image = own.img_in(to_tokens(given["x"][:, :, 0].to(hint.dtype))) + self.controlnet_x_embedder(hint)
        mask, time, answers = by_heads(attended(there, image.shape[1])), nn.functional.silu(time), []
        for block, answer in zip(own.transformer_blocks, self.controlnet_blocks, strict=True):
            text, image = block(image, text, mask, time, turns)
            answers.append(answer(image))
        return answers


@dataclass(frozen=True, slots=True)
class QwenFunControlFamily(DitControlFamily):
    """A ControlNet of Fun. width: of a token; layers: how many blocks."""

    width: int
    heads: int
    layers: int

    @classmethod
    def find(cls, file: Checkpoint) -> Self | None:
        if any(mark not in file.shapes for mark in _FUN_MARKS):
            return None
        tensors = Tensors(file.shapes, file.where)
        width, columns = file.shapes[_FUN_MARKS[1]]
        head = tensors.shape("control_blocks.0.attn.norm_q.weight")[0]
        if columns != FUN_CHANNELS * PATCH**2 or not head or width % head:
            raise tensors.unsupported(
                f"is a Fun ControlNet of Qwen-Image {width} wide with heads of {head} that reads {columns // PATCH**2} "
                f"channels; supported are {FUN_CHANNELS}"
            )
        return cls(width, width // head, tensors.count("control_blocks."))

    @property
    def reads_latents(self) -> bool:
        return True

    def table(self) -> Table:
        return {name: name for name in ("control_img_in", "control_blocks")}

    def build(self) -> DitControlNetwork:
        return QwenFunControlNetwork(self)


class _FunBlock(QwenImageBlock):
    """A block with an output. first: it adds its input to the backbone's tokens."""

    def __init__(self, width: int, heads: int, *, first: bool) -> None:
        super().__init__(width, heads, width // heads)
        self.before_proj = nn.Linear(width, width) if first else None
        self.after_proj = nn.Linear(width, width)


class QwenFunControlNetwork(DitControlNetwork):
    """A network with the file's names."""

    def __init__(self, control: QwenFunControlFamily) -> None:
        super().__init__()
        self.control = control
        self.control_img_in = nn.Linear(FUN_CHANNELS * PATCH**2, control.width)
        self.control_blocks = nn.ModuleList(
            _FunBlock(control.width, control.heads, first=not number) for number in range(control.layers)
        )

    def control_net(self, key: Hashable, name: str) -> ControlNet:
        return QwenFunControlNet(key, name, self)

    def forward(self, given: Inputs, turns: tuple[Tensor, Tensor]) -> list[Tensor]:
        """Return the outputs (R,n,D) for rows. given: of a `QwenImageCall`, and the hint as tokens (R,n,columns)."""
        blocks: Any = self.control_blocks
        image, text, answers = self.control_img_in(given["hint"]), given["embedded"], []
        mask, time = by_heads(attended(given.get("there"), image.shape[1])), nn.functional.silu(given["time"])
        for block in blocks:
            if block.before_proj is not None:
                image = block.before_proj(image) + given["image"]
            text, image = block(image, text, mask, time, turns)
            answers.append(block.after_proj(image))
        return answers


class _Applied(OneCallNet):
    """A ControlNet of either kind, as `control` uses it. call_fields: the `QwenImageCall` fields that it reads."""

    call_fields: ClassVar[Sequence[str]]

    def __init__(self, key: Hashable, name: str, network: DitControlNetwork, width: int) -> None:
        super().__init__(key, name, network)
        self.network, self._width = network, width

    def check(self, hint: Hint, backbone: Any) -> None:
        check_family(self.name, QwenImage(self._width, 1, 1, 1), backbone)
        check_latents(self.name, hint, WAN)

    @abstractmethod
    def tokens(self, hint: Hint, height: int, width: int) -> Tensor:
        """Return a hint as tokens (N,n,columns)."""

    def read(self, hint: Hint, height: int, width: int) -> list[Tensor]:
        parameter = next(self.network.parameters())
        return [self.tokens(hint, height, width).to(parameter.device, parameter.dtype)]

    def call_inputs(self, call: QwenImageCall, index: RowIndex, read: Sequence[Tensor]) -> Mapping[Any, Tensor | None]:
        fields = {name: getattr(call, name) for name in self.call_fields}
        of_rows = {name: None if tensor is None else tensor[index] for name, tensor in fields.items()}
        return {**of_rows, "hint": read[0], "image turns": call.turns[0], "text turns": call.turns[1]}

    def run(self, given: Inputs) -> list[Tensor]:
        made: list[Tensor] = self.network(given, (given["image turns"], given["text turns"]))
        return made


class QwenControlNet(_Applied):
    call_fields = ("x", "level", "text", "there")

    def __init__(self, key: Hashable, name: str, network: QwenControlNetwork) -> None:
        super().__init__(key, name, network, network.control.family.width)
        self._masked = network.control.masked
        layers = network.control.family.layers
        self.adds_to = (Spread(BLOCKS, range(layers), BACKBONE_BLOCKS, -(-BACKBONE_BLOCKS // layers)),)

    def tokens(self, hint: Hint, height: int, width: int) -> Tensor:
        return to_tokens(one_image(hint_latents(hint, height, width, WAN, masked=self._masked), self.name))


class QwenFunControlNet(_Applied):
    call_fields = ("image", "embedded", "time", "there")

    def __init__(self, key: Hashable, name: str, network: QwenFunControlNetwork) -> None:
        super().__init__(key, name, network, network.control.width)
        self.adds_to = (Spread(BLOCKS, range(network.control.layers), BACKBONE_BLOCKS, FUN_APART, once=True),)

    def strength(self, asked: float) -> float:
        """Return ComfyUI's strength: damped above 1, raised below, 0 below 0."""
        return sqrt(max(asked, 0.0))

    def tokens(self, hint: Hint, height: int, width: int) -> Tensor:
        latents = one_image(hint_latents(hint, height, width, WAN, masked=False), self.name)
        # An odd side is padded with zeros here, as absent inputs are zeros too.
        return to_tokens(pad(latents, (0, width % PATCH, 0, height % PATCH, 0, FUN_CHANNELS - WAN.channels)))
