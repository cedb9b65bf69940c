"""Networks that look at pictures, and their nodes, against ComfyUI's (golden/seeing.npz, by `figures`), in float32."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from serve_app.models.families.family import Family, ImageModelFamily
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.image_model import ImageModel
from serve_app.nodes.geometry.depth_anything3 import da3_inference, da3_render
from serve_app.recipe.recipe import Part, Recipe
from tests.parity.figures import GOLDEN, MODULE_TOLERANCE, Figures, thinned
from tests.parity.seeing import cases

FIGURES = Figures("seeing")
KEYS = json.loads((GOLDEN / "seeing_keys.json").read_text())
PARTS: dict[str, Part] = {"da3": "depth_estimator"}
"""By the first word of a network's name."""


@lru_cache
def loaded(folder: Path, name: str) -> ImageModel:
    path = folder / f"{name}.safetensors"
    save_file(cases.weights(KEYS[name]), path)
    family, network = Checkpoint(path).load(PARTS[name.partition(" ")[0]])
    assert isinstance(family, ImageModelFamily)
    return ImageModel(family, network)


class Runtime:
    """RUNTIME of the nodes here: networks of files in a folder, as recipes name them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def family(self, recipe: Recipe) -> Family:
        return loaded(self.folder, recipe.name).family

    async def ask_image_model(self, model: Recipe, batches: Sequence[Tensor], **asked: Any) -> list[dict[str, Tensor]]:
        with torch.inference_mode():
            return [loaded(self.folder, model.name).answer(batch, **asked) for batch in batches]


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    yield Runtime(tmp_path_factory.mktemp("seeing"))
    loaded.cache_clear()


def agrees(ours: Tensor, name: str, tolerance: float = MODULE_TOLERANCE) -> None:
    FIGURES.assert_agrees(torch.from_numpy(thinned(ours.numpy())), name, tolerance)


async def depths(name: str, runtime: Any) -> dict[str, Any]:
    net, inputs = cases.DEPTHS[name]
    return await da3_inference(Recipe("depth_estimator", "", net), cases.pictures(), **inputs, runtime=runtime)


@pytest.mark.parametrize("name", cases.DEPTHS)
async def test_depths_are_comfyuis(name: str, runtime: Any) -> None:
    found = await depths(name, runtime)
    parts = [figure.removeprefix(f"{name}|") for figure in FIGURES.names if figure.startswith(f"{name}|")]
    parts = [part for part in parts if f"{name}|{part}" not in cases.DA3_DRAWN]
    assert {*parts, "image", "mode"} == found.keys()
    for part in parts:
        agrees(found[part], f"{name}|{part}")


@pytest.mark.parametrize("name", cases.DA3_DRAWN)
async def test_depths_are_drawn_as_by_comfyui(name: str, runtime: Any) -> None:
    case, output = cases.DA3_DRAWN[name]
    agrees(da3_render(await depths(case, runtime), output), name, 1e-4)
