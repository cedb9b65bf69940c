"""Workflows that sample a flow beside ComfyUI 0.33.0's, with a network that is one formula on both sides.

golden/flow_runs.npz holds what ComfyUI's own nodes and samplers make of the workflows in `flow_cases`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from serve_app.models.backbone import RecipeBackbone
from serve_app.models.families.family import BackboneFamily, File, Rows
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.models.network import LoadedNetwork
from serve_app.models.weights.recipes import Need
from serve_app.models.weights.residency import Hold, Residency
from serve_app.models.weights.weights import Weights
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.training import Flow, FluxFlow, Training
from serve_app.sampling.denoiser import trained
from serve_app.sampling.forward import Area, Canvas, to_batch
from serve_app.sampling.latents.latent_formats import FLUX, FLUX2, WAN
from serve_app.sampling.latents.latents import LatentFormat
from serve_app.sampling.latents.layout import LatentLayout
from serve_app.sampling.schedules.levels import Levels
from tests.parity.beside import Fixed, ours
from tests.parity.figures import GOLDEN, TOLERANCE, thinned
from tests.parity.flow_cases import FLOW_CASES
from tests.parity.stack import Stack

FIGURES = dict(np.load(GOLDEN / "flow_runs.npz"))
KINDS: dict[str, tuple[Training, LatentFormat]] = {
    "flux": (FluxFlow(1.15), FLUX),
    "z": (Flow(3.0, 1.0), FLUX),
    "flux 2": (FluxFlow(2.02), FLUX2),
    "wan": (Flow(8.0, 1000.0), WAN),
    "joint": (FluxFlow(2.37), LatentFormat(4, 32, frames=8, others=(LatentFormat(3),))),
}


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """What the formula is told. context: (B,T,D). layout: of x."""

    context: Tensor
    layout: LatentLayout

    def within(self, area: Area | None) -> Text:
        return self


class Formula(BackboneFamily):
    """A family whose network is one formula of x, the told timestep and the mean of the text."""

    def __init__(self, latent_format: LatentFormat) -> None:
        self.latent_format = latent_format  # type: ignore[misc]

    @classmethod
    def probe(cls, tensors: Tensors) -> BackboneFamily:
        raise NotImplementedError

    def table(self, tensors: Tensors | None = None) -> Table:
        return {}

    def build(self) -> nn.Module:
        return nn.Linear(1, 1)

    def training(self, file: File, names: Mapping[str, str]) -> Training:
        raise NotImplementedError

    def inputs(
        self, cond: Tensor, options: Any, role: str, canvas: Canvas, device: torch.device, trained_as: Training
    ) -> Text:
        return Text(to_batch(cond, canvas.rows), canvas.layout)

    def group_key(self, x: Tensor, inputs: Text) -> Hashable:
        return tuple(x.shape[1:]), inputs.context.shape[1], inputs.layout

    def forward(self, network: Any, rows: Sequence[Rows]) -> list[Tensor]:
        x = torch.cat([row.x for row in rows])
        each = (-1, *(1,) * (x.ndim - 1))
        told = torch.cat([row.timestep for row in rows]).view(each)
        read = torch.cat([row.inputs.context for row in rows]).mean(dim=(1, 2)).view(each)

        def formula(x: Tensor) -> Tensor:
            each = (-1, *(1,) * (x.ndim - 1))
            return x * (0.8 + 0.2 * torch.sin(told.view(each) * 0.01)) - 0.5 * torch.cos(1.5 * x) + read.view(each)

        layout = rows[0].inputs.layout
        parts = [partial(_times, formula, 1 + number) for number in range(max(1, len(layout.shapes)))]
        velocity = layout.map(parts, x)
        return list(velocity.split([row.count for row in rows]))


def _times(formula: Callable[[Tensor], Tensor], factor: int, part: Tensor) -> Tensor:
    return formula(part * factor)


class NoNeeds:
    """Recipes that need no weights."""

    def activation_bytes(self, backbone: Recipe, *run: Any) -> int:
        return 0

    def fitted(self, backbone: Recipe, *others: Recipe, activation_bytes: int = 0) -> Recipe:
        return backbone

    def of(self, *recipes: Recipe, activation_bytes: int = 0) -> Need:
        return Need({})


class FlowWeights:
    """Weights of no file: a recipe's name is the kind of its backbone."""

    device = torch.device("cpu")
    needs = NoNeeds()

    def __init__(self) -> None:
        self._networks = {
            kind: LoadedNetwork(kind, Formula(latents), nn.Linear(1, 1), training)
            for kind, (training, latents) in KINDS.items()
        }

    def backbone(self, recipe: Recipe, hold: Hold | None = None) -> RecipeBackbone:
        return RecipeBackbone(self._networks[recipe.name], recipe.last(Training))

    def levels(self, recipe: Recipe) -> Levels:
        return trained(recipe.last(Training) or KINDS[recipe.name][0])[0]

    def latent_format(self, recipe: Recipe) -> LatentFormat:
        return KINDS[recipe.name][1]

    def remarks(self, recipe: Recipe) -> tuple[str, ...]:
        return ()

    def hold(self, need: Need) -> Hold:
        return Hold(need, Residency(0))

    def is_loaded(self, hold: Hold) -> bool:
        return True


class FlowModel:
    """A MODEL that samples a flow, of a kind."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "get"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"kind": ("*",)}}

    def get(self, kind: str) -> tuple[Recipe]:
        return (Recipe("backbone", "flows", kind),)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    nothing: Path = tmp_path_factory.mktemp("models")
    classes = {"Fixed": Fixed, "FlowModel": FlowModel}
    stack = Stack(nothing, tmp_path_factory.mktemp("files"), classes, cast(Weights, FlowWeights()))
    yield stack
    stack.engine.close()


def test_every_workflow_has_its_figure() -> None:
    assert FLOW_CASES.keys() == FIGURES.keys()


@pytest.mark.parametrize("name", FLOW_CASES)
async def test_a_workflow_on_a_flow_gives_comfyuis_value(stack: Stack, name: str) -> None:
    found, theirs = thinned((await ours(stack, FLOW_CASES[name])).numpy()), FIGURES[name]
    assert found.shape == theirs.shape
    assert np.linalg.norm(found - theirs) / np.linalg.norm(theirs) < TOLERANCE
