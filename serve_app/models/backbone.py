"""A backbone: one recipe's view of a network, which other recipes may share."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.models.control import control
from serve_app.models.control.control import Autoencoder, ControlNet
from serve_app.models.control.model_control import ActiveModelControl, ModelPatch
from serve_app.models.families.family import Rows
from serve_app.models.lora.layers import LoraSet
from serve_app.models.network import Network
from serve_app.models.split_batch import rows_apart
from serve_app.models.unet_patches import gligen
from serve_app.recipe import PackFunctions, Recipe, ReferenceMethod, Training
from serve_app.sampling.denoiser import Prediction, trained
from serve_app.sampling.forward import Canvas, Inputs, Piece
from serve_app.sampling.latents.latents import LatentFormat
from serve_app.sampling.schedules.levels import Levels
from serve_app.sampling.transfer import sent
from serve_app.values import Conditioning


@dataclass(frozen=True, slots=True, eq=False)
class Backbone:
    """A network as one recipe has it; as `sampling.forward.Backbone`.

    training: what is taken instead of what the network's file says. loras: what the recipe's LoRAs change in its rows.
    functions: its patches of that kind; controls: those that show its network images. references: how they are placed
    where a conditioning does not say it; None as the family has it. own_key: makes its rows share no forward, if it is
    set. sigmas: of the run that it is of, for functions.
    """

    network: Network
    training: Training | None = None
    loras: LoraSet | None = None
    references: ReferenceMethod | None = None
    controls: tuple[ActiveModelControl, ...] = ()
    own_key: object | None = None
    functions: tuple[PackFunctions, ...] = ()
    sigmas: Tensor | None = None
    levels: Levels = field(init=False)
    prediction: Prediction = field(init=False)

    def __post_init__(self) -> None:
        levels, prediction = trained(self.training or self.network.trained_as)
        object.__setattr__(self, "levels", levels)
        object.__setattr__(self, "prediction", prediction)
        for functions in self.functions:
            self._check(functions)

    @property
    def key(self) -> Hashable:
        """Equal for backbones whose rows may share a forward."""
        return self.network.key if self.own_key is None else self.own_key

    @property
    def device(self) -> torch.device:
        return self.network.device

    @property
    def latent_format(self) -> LatentFormat:
        return self.network.family.latent_format

    @property
    def keeps_clean(self) -> bool:
        return self.network.family.keeps_clean

    def prepared(self) -> Iterator[None]:
        """Make ready what its first forward would have to wait for, yielding in between; as `LoraSet.prepared`."""
        if self.loras is not None:
            yield from self.loras.prepared()

    def exclusive(self) -> Backbone:
        """Return this backbone for one run alone: nothing shares its forwards, and its LoRAs stay unmerged.

        So what it answers does not depend, to the bit, on other runs.
        """
        return replace(self, own_key=object())

    def activated(
        self,
        conds: Mapping[str, Conditioning],
        nets: Mapping[Recipe, ControlNet],
        vaes: Mapping[Recipe, Autoencoder] | None = None,
        patches: Mapping[Recipe, ModelPatch] = MappingProxyType({}),
    ) -> dict[str, Conditioning]:
        """Return conditionings whose controls act on it, as `control.activated`, and whose boxes it is told of.

        patches: of the boxes.
        """
        network = self.network
        controlled = control.activated(conds, nets, network.family, self.levels, vaes)
        return gligen.activated(controlled, patches, network.family, network.module) if patches else controlled

    def inputs(self, cond: Tensor, options: Mapping[str, Any], role: str, canvas: Canvas) -> Inputs:
        """Return what an entry of a conditioning tells the network.

        Errors: NodeError for a conditioning of another family's text encoder.
        """
        network = self.network
        if self.references is not None:
            options = {"reference_latents_method": self.references.name, **options}
        return network.family.inputs(cond, options, role, canvas, self.device, network.trained_as)

    def rows(self, piece: Piece, fed: Tensor, timestep: Tensor) -> Rows:
        """Return what the network is asked for a piece. fed: its x as the network is fed it; timestep: (B,)."""
        return Rows(
            fed,
            piece.sigma,
            timestep,
            piece.inputs,
            self.loras,
            piece.layers,
            self.controls,
            exclusive=self.own_key is not None,
            role=piece.role,
            functions=tuple(functions.network for functions in self.functions if functions.network),
            sigmas=self.sigmas,
        )

    def apart(self, piece: Piece) -> list[Piece]:
        """Return a piece for each row of a piece, in order, or the piece alone where its rows depend on each other."""
        return [piece] if self.functions or self.controls else rows_apart(piece)

    def fed(self, piece: Piece) -> Tensor:
        """Return what the network is fed for a piece's x, float32."""
        return piece.x * self.prediction.scaling(piece.sigma).c_in

    def denoised(self, piece: Piece, output: Tensor) -> Tensor:
        """Return D(x, sigma) from the network's output for a piece, float32."""
        scaling = self.prediction.scaling(piece.sigma)
        return piece.x * scaling.c_skip + output * scaling.c_out

    def output(self, piece: Piece, denoised: Tensor) -> Tensor:
        """Return the network's output for a piece that gave D(x, sigma): undo `denoised`."""
        scaling = self.prediction.scaling(piece.sigma)
        return (denoised - piece.x * scaling.c_skip) / scaling.c_out

    def during(self, sigmas: Tensor) -> Backbone:
        """Return it for a run over these levels."""
        return replace(self, sigmas=sent(sigmas, self.device))

    def with_functions(self, functions: PackFunctions) -> Backbone:
        """Return it with functions of a node pack in place of its own, for its rows.

        Errors: NodeError where the family runs none.
        """
        return replace(self, functions=(functions,))

    def _check(self, functions: PackFunctions) -> None:
        family = self.network.family
        named = names_of(functions.network or {})
        if unknown := sorted(named - family.functions):
            known = ", ".join(sorted(family.functions)) or "none"
            raise NodeError(
                f"a node pack sets {unknown[0]} on this model; of such functions {family.title} runs {known}"
            )


def names_of(network: Mapping[str, Any]) -> set[str]:
    """Return which functions `PackFunctions.network` has, by ComfyUI's names; those that replace end in _replace."""
    places = network.get("patches_replace", {})
    return {name for name, functions in network.get("patches", {}).items() if functions} | {
        f"{name}_replace" for name, functions in places.items() if functions
    }
