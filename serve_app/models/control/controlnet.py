"""A ControlNet of a UNet: the encoder half of a backbone that also reads a hint, with 1×1 convolutions as outputs.

Its outputs are added to the backbone's own encoder outputs. It knows neither files nor jobs: `controlnet_file` loads
it, `control` runs it. Source: Zhang et al. 2023, arXiv:2302.05543; union ControlNets: the published weights of
ControlNet++ (xinsir), whose names are kept.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn
from torch.nn.functional import silu

from serve_app.errors import NodeError
from serve_app.models.control.control import ControlNet, Hint, RowIndex, of_another_family, resized
from serve_app.models.control.one_call_net import OneCallNet
from serve_app.models.families.unet.unet import CELL, SKIPS, Unet, UnetCall
from serve_app.models.forward import Inputs
from serve_app.sampling.transfer import to_device

Residuals: TypeAlias = list[Tensor]
"""Additions to the outputs of an encoder, finest first, (R,C,h,w) each; the last to the output of the middle."""

HALVINGS = (2, 4, 6)
"""The convolutions of the hint encoder that halve the resolution: from pixels to the eightfold smaller latents."""

KIND_WIDTH = 256
"""Width of the embedding that marks each hint kind present or absent."""


class ControlNetwork(nn.Module):
    """A ControlNet on its device.

    family: of its backbone. hint_channels: of the hint's convolutions, in to out. kinds: number of hint kinds of a
    union ControlNet; 0 for one kind. pooled: its outputs are averaged over the image (for hints about content and not
    position).
    """

    pooled = False

    def __init__(
        self,
        family: Unet,
        backbone: nn.Module,
        hint_channels: Sequence[int],
        *,
        kinds: int = 0,
        kind_channels: int = 0,
    ) -> None:
        super().__init__()
        network: Any = backbone
        self.family = family
        self.hint_channels = hint_channels[0]
        self.time_proj = network.time_proj
        self.time_embedding = network.time_embedding
        self.class_embedding = network.class_embedding
        self.conv_in = network.conv_in
        self.down_blocks = network.down_blocks
        self.mid_block = network.mid_block
        self.hint_block = _hint_block(hint_channels)
        self.zero_convs = nn.ModuleList(nn.Conv2d(width, width, 1) for width in family.skip_widths)
        self.middle_out = nn.Conv2d(family.channels[-1], family.channels[-1], 1)
        self.union = Union(kinds, kind_channels, 4 * family.channels[0]) if kinds else None

    def check_kind(self, kind: int | None) -> None:
        """Errors: NodeError for an unknown kind of hint."""
        if self.union is not None and kind is not None and kind >= self.union.kinds:
            raise NodeError(
                f"the ControlNet knows {self.union.kinds} kinds of hint, and kind {kind} is not one of them; "
                "the ProMax version of ControlNet Union knows more"
            )

    def embed(self, hint: Tensor, kind: int | None) -> Tensor:
        """Return a hint (N,C,8h,8w) in 0…1 as an addition to the first convolution, (N,width,h,w), for a whole run.

        kind: of the hint, for a union ControlNet; None: unspecified.
        """
        embedded: Tensor = self.hint_block(hint.to(self._dtype))
        return embedded if self.union is None or kind is None else self.union.shifted(embedded, kind)

    def kind_embedding(self, kind: int | None) -> Tensor | None:
        """Return the addition of a kind to the time embedding, (1,E); None if there is only one kind."""
        return None if self.union is None else self.union.kind_embedding(kind)

    def control_net(self, key: Hashable, name: str) -> ControlNet:
        """Return the ControlNet interface of this network."""
        return UnetControlNet(key, name, self)

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        embedded: Tensor,
        context_mask: Tensor | None = None,
        vector: Tensor | None = None,
        kinds: Tensor | None = None,
    ) -> Residuals:
        """Return the residuals of R rows.

        x: (R,C,h,w), scaled as the backbone's input. timestep: (R,). context: (R,T,D); context_mask: (R,T), True for
        real tokens. embedded: (R,width,h,w), from `embed`. vector: (R,A), extra input of the time embedding. kinds:
        (R,E), from `kind_embedding`.
        """
        dtype = self._dtype
        time: Tensor = self.time_embedding(self.time_proj(timestep).to(dtype))
        if kinds is not None:
            time = time + kinds
        if self.class_embedding is not None and vector is not None:
            time = time + self.class_embedding(vector.to(dtype))
        # The blocks get the time embedding after its activation.
        time = silu(time)
        bias = None if context_mask is None else ((1 - context_mask.to(dtype)) * -10000.0).unsqueeze(1)
        text = {"encoder_hidden_states": context.to(dtype), "encoder_attention_mask": bias}
        h: Tensor = self.conv_in(x.to(dtype)) + embedded
        outputs = [h]
        for block in self.down_blocks:
            h, made = block(hidden_states=h, temb=time, **(text if hasattr(block, "attentions") else {}))
            outputs += made
        h = self.mid_block(h, time, **text)
        residuals = [zero(output) for zero, output in zip(self.zero_convs, outputs, strict=True)]
        residuals.append(self.middle_out(h))
        return [r.mean((2, 3), keepdim=True).expand_as(r) for r in residuals] if self.pooled else residuals

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype


class Union(nn.Module):
    """The hint-kind module of a union ControlNet.

    Only one of several hints is read, so attention among them has one token: it is its value projection.
    """

    def __init__(self, kinds: int, width: int, time_width: int) -> None:
        super().__init__()
        self.kinds = kinds
        self.task_embedding = nn.Parameter(torch.zeros(kinds, width))
        self.attention_in = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.wide = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        self.shift = nn.Linear(width, width)
        self.linear_1 = nn.Linear(KIND_WIDTH * kinds, time_width)
        self.linear_2 = nn.Linear(time_width, time_width)

    def shifted(self, embedded: Tensor, kind: int) -> Tensor:
        """Return an embedded hint (N,width,h,w) shifted for its kind."""
        token = embedded.mean((2, 3)) + self.task_embedding[kind].to(embedded.dtype)
        token = token + self.attention_out(self.attention_in(self.norm1(token)).chunk(3, dim=-1)[2])
        h = self.wide(self.norm2(token))
        token = token + self.narrow(h * torch.sigmoid(1.702 * h))
        shifted: Tensor = embedded + self.shift(token)[:, :, None, None]
        return shifted

    def kind_embedding(self, kind: int | None) -> Tensor:
        """Return the addition of the kind to the time embedding, (1,E)."""
        given = torch.zeros(self.kinds, device=self.task_embedding.device)
        if kind is not None:
            given[kind] = 1.0
        flags = get_timestep_embedding(given, KIND_WIDTH, flip_sin_to_cos=True, downscale_freq_shift=0)
        embedding: Tensor = self.linear_2(silu(self.linear_1(flags.flatten()[None].to(self.task_embedding.dtype))))
        return embedding


class UnetControlNet(OneCallNet):
    """A ControlNet of a UNet, as `control` uses it."""

    adds_to = SKIPS

    def __init__(self, key: Hashable, name: str, network: ControlNetwork) -> None:
        super().__init__(key, name, network)
        self.network = network

    def check(self, hint: Hint, backbone: Any) -> None:
        wanted, made_for, given = self.network.hint_channels, self.network.family, hint.image.shape[-1]
        if given != wanted:
            raise NodeError(f"the hint has {given} channels; '{self.name}' takes {wanted}")
        self.network.check_kind(hint.kind)
        if not isinstance(backbone, Unet):
            raise of_another_family(self.name, made_for.title, backbone)
        theirs, ours = _widths(made_for), _widths(backbone)
        if theirs != ours or made_for.res_blocks != backbone.res_blocks:
            raise NodeError(
                f"'{self.name}' is made for another family than the model: its widths are {theirs}, the model's {ours}"
            )

    def read(self, hint: Hint, height: int, width: int) -> list[Tensor]:
        """Return the embedded hint and, for a union ControlNet, the kind."""
        network = self.network
        device = next(network.parameters()).device
        embedded = network.embed(to_device(resized(hint.image, height * CELL, width * CELL), device), hint.kind)
        of_kind = network.kind_embedding(hint.kind)
        return [embedded] if of_kind is None else [embedded, of_kind]

    def call_inputs(self, call: UnetCall, index: RowIndex, read: Sequence[Tensor]) -> Mapping[Any, Tensor | None]:
        arguments = {
            "x": call.x[index],
            "timestep": call.timestep[index],
            "context": call.context[index],
            "context_mask": None if call.mask is None else call.mask[index],
            "vector": None if call.vector is None else call.vector[index],
        }
        return arguments | dict(zip(("embedded", "kinds"), read, strict=False))

    def run(self, given: Inputs) -> Residuals:
        arguments = dict(given)
        made: Residuals = self.network(arguments.pop("x"), **arguments)
        return made


def _widths(backbone: Unet) -> tuple[int, ...]:
    return (*backbone.channels, backbone.context_dim, backbone.vector_dim)


def _hint_block(channels: Sequence[int]) -> nn.Sequential:
    block = nn.Sequential()
    for i, (before, after) in enumerate(pairwise(channels)):
        if i:
            block.append(nn.SiLU())
        block.append(nn.Conv2d(before, after, 3, padding=1, stride=2 if i in HALVINGS else 1))
    return block
