"""A backbone: one recipe's view of a network that several recipes may share."""

from __future__ import annotations

from collections.abc import Generator, Hashable, Iterator, Mapping
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
from serve_app.models.network import LoadedNetwork
from serve_app.models.split_batch import split_batch
from serve_app.models.unet_patches import gligen
from serve_app.recipe.layers import ReferenceMethod, ScaledPositions
from serve_app.recipe.pack_functions import PackFunctions
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.training import Training
from serve_app.sampling.denoiser import Prediction, trained
from serve_app.sampling.forward import Canvas, Injection, Inputs, Piece
from serve_app.sampling.latents.latents import LatentFormat
from serve_app.sampling.latents.layout import ONE_PART, LatentLayout
from serve_app.sampling.schedules.levels import Levels
from serve_app.sampling.transfer import to_device, to_host
from serve_app.values import Conditioning, Search


@dataclass(frozen=True, slots=True, eq=False)
class RecipeBackbone:
    """A network with the patches of one recipe; implements `sampling.forward.Backbone`.

    training: overrides the training that the file states. loras: applied to the rows of this recipe only. functions: of
    node packs; controls: model patches that read images. references: how reference images are placed where a
    conditioning does not say; None: the family's default. positions: changes of tokens' positions. own_key: if set, its
    rows share a forward with no others. sigmas: noise levels of the current run, for functions; run_levels: the same on
    the host. recipe: of the weights, for other ranks.
    """

    network: LoadedNetwork
    training: Training | None = None
    loras: LoraSet | None = None
    references: ReferenceMethod | None = None
    positions: ScaledPositions | None = None
    controls: tuple[ActiveModelControl, ...] = ()
    own_key: object | None = None
    functions: tuple[PackFunctions, ...] = ()
    sigmas: Tensor | None = None
    run_levels: tuple[float, ...] = ()
    recipe: Recipe | None = None
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
        return self.network.family.format_of(self.training or self.network.trained_as)

    @property
    def keeps_clean(self) -> bool:
        return self.network.family.keeps_clean

    def injection(self, canvas: Canvas) -> Injection | None:
        return self.network.family.injection(canvas, self.training or self.network.trained_as)

    def prepared(self, layout: LatentLayout = ONE_PART) -> Iterator[Any]:
        """Do the work that the first forward would otherwise wait for, yielding in between, as `LoraSet.prepared`.

        layout: of the run's latents, if they are a video and its sound: the videos of model controls are then encoded.
        """
        if self.loras is not None:
            yield from self.loras.prepared()
        if layout.joint:
            for control in self.controls:
                yield from control.prepared(*layout.shapes[0][1:])

    def exclusive(self) -> RecipeBackbone:
        """Return this backbone for one run alone: it shares no forward, and its LoRAs stay unmerged.

        Its outputs then do not depend, to the bit, on other runs.
        """
        return replace(self, own_key=object())

    def activated(
        self,
        conds: Mapping[str, Conditioning],
        nets: Mapping[Recipe, ControlNet],
        vaes: Mapping[Recipe, Autoencoder] | None = None,
        patches: Mapping[Recipe, ModelPatch] = MappingProxyType({}),
    ) -> dict[str, Conditioning]:
        """Return conditionings with their controls and grounding boxes bound to this backbone.

        patches: the GLIGEN patches that read the boxes. See `control.activated`.
        """
        network = self.network
        controlled = control.activated(conds, nets, network.family, self.levels, vaes)
        return gligen.activated(controlled, patches, network.family, network.module) if patches else controlled

    def own_texts(self) -> dict[str, Tensor]:
        """Return the texts that its file holds, as `BackboneFamily.own_texts`, on the host by `to_host`."""
        return {role: to_host(text) for role, text in self.network.family.own_texts(self.network.module).items()}

    def searched(self, request: Search) -> Generator[tuple[int, int], None, Any]:
        """Search images or a video, as `BackboneFamily.searched`. Errors: NodeError."""
        return self.network.family.searched(self.network.module, request)

    def inputs(self, cond: Tensor, options: Mapping[str, Any], role: str, canvas: Canvas) -> Inputs:
        """Return an entry's conditioning inputs for the network.

        Errors: NodeError for a conditioning of another family's text encoder.
        """
        network = self.network
        if self.references is not None:
            options = {"reference_latents_method": self.references.name, **options}
        if self.positions is not None:
            options = {**options, ScaledPositions.OPTION: self.positions}
        return network.family.inputs(cond, options, role, canvas, self.device, network.trained_as)

    def rows(self, piece: Piece, fed: Tensor, timestep: Tensor) -> Rows:
        """Return the rows of a batch for a piece. fed: x times c_in; timestep: (B,)."""
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
            training=self.training,
            recipe=self.recipe,
            steps_left=sum(level < piece.sigma for level in self.run_levels),
        )

    @property
    def takes_rows_together(self) -> bool:
        return bool(self.functions or self.controls or self.network.family.rows_are_frames)

    def apart(self, piece: Piece) -> list[Piece]:
        """Return one piece for each row, in order, or the piece itself where its rows depend on each other."""
        return [piece] if self.takes_rows_together else split_batch(piece)

    def fed(self, piece: Piece) -> Tensor:
        """Return the piece's x as the network reads it, times c_in, float32."""
        return piece.x * self.prediction.scaling(piece.sigma).c_in

    def denoised(self, piece: Piece, output: Tensor) -> Tensor:
        """Return D(x, sigma) from the network's output for a piece, float32."""
        scaling = self.prediction.scaling(piece.sigma)
        return piece.x * scaling.c_skip + output * scaling.c_out

    def output(self, piece: Piece, denoised: Tensor) -> Tensor:
        """Return the network's output for a piece that gave D(x, sigma): undo `denoised`."""
        scaling = self.prediction.scaling(piece.sigma)
        return (denoised - piece.x * scaling.c_skip) / scaling.c_out

    def during(self, sigmas: Tensor) -> RecipeBackbone:
        """Return a copy for a run over these noise levels."""
        return replace(self, sigmas=to_device(sigmas, self.device), run_levels=tuple(sigmas.tolist()))

    def with_functions(self, functions: PackFunctions) -> RecipeBackbone:
        """Return a copy whose rows call these functions of a node pack instead.

        Errors: NodeError where the family calls none.
        """
        return replace(self, functions=(functions,))

    def _check(self, functions: PackFunctions) -> None:
        family = self.network.family
        named = names_of(functions.network or {})
        if unknown := sorted(named - family.functions):
            known = ", ".join(sorted(family.functions)) or "none"
            raise NodeError(f"a node pack sets {unknown[0]} on this model; {family.title} supports {known}")


def names_of(network: Mapping[str, Any]) -> set[str]:
    """Return the names of the functions in `PackFunctions.network`, as in ComfyUI; replacements end in _replace."""
    places = network.get("patches_replace", {})
    return {name for name, functions in network.get("patches", {}).items() if functions} | {
        f"{name}_replace" for name, functions in places.items() if functions
    }
