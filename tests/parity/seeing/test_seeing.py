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
from serve_app.models.families.vision.birefnet import BiRefNet
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.image_model import ImageModel
from serve_app.nodes.geometry import moge
from serve_app.nodes.geometry.depth_anything3 import da3_inference, da3_render
from serve_app.nodes.geometry.moge import (
    moge_geometry_to_fov,
    moge_inference,
    moge_panorama_inference,
    moge_point_map_to_mesh,
    moge_render,
)
from serve_app.nodes.image.background import remove_background
from serve_app.nodes.video.interpolation import frame_interpolate
from serve_app.recipe.recipe import Part, Recipe
from tests.parity.figures import GOLDEN, MODULE_TOLERANCE, Figures, thinned
from tests.parity.seeing import cases

FIGURES = Figures("seeing")
KEYS = json.loads((GOLDEN / "seeing_keys.json").read_text())
PARTS: dict[str, Part] = {
    "da3": "depth_estimator",
    "moge": "geometry_estimator",
    "birefnet": "background_remover",
    "film": "frame_interpolator",
    "rife": "frame_interpolator",
}
"""By the first word of a network's name."""


@lru_cache
def loaded(folder: Path, name: str) -> ImageModel:
    path = folder / f"{name}.safetensors"
    save_file(cases.positive(cases.weights(KEYS[name])), path)
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


@pytest.fixture(autouse=True)
def _few_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moge, "TOKENS", dict.fromkeys((1, 2), cases.TOKENS))


@pytest.mark.parametrize("name", cases.MOGE)
async def test_what_networks_say_of_geometry_is_comfyuis(name: str, runtime: Any) -> None:
    pixels = cases.pictures(2).movedim(-1, 1).contiguous()
    model = Recipe("geometry_estimator", "", name)
    [found] = await runtime.ask_image_model(model, [pixels], tokens=cases.TOKENS[0])
    for part, ours in found.items():
        agrees(ours, f"raw {name}|{'metric_scale' if part == 'scale' else part}")


async def geometry(name: str, runtime: Any) -> dict[str, Any]:
    net, inputs = cases.MOGE_ASKED[name]
    model = Recipe("geometry_estimator", "", net)
    return await moge_inference(model, cases.pictures(2), 0, batch_size=1, **inputs, runtime=runtime)


def close(ours: Tensor, name: str, tolerance: float = 1e-4) -> None:
    """Hold ours to the tolerance, and to be infinite where theirs are."""
    flat, theirs = torch.from_numpy(thinned(ours.float().numpy())), FIGURES[name]
    assert torch.equal(flat.isfinite(), theirs.isfinite())
    there = theirs.isfinite()
    assert there.any()
    error = float((flat[there] - theirs[there]).norm() / theirs[there].norm())
    assert error <= tolerance, f"{name}: relative error {error:.2e}"


@pytest.mark.parametrize("name", cases.MOGE_ASKED)
async def test_geometry_is_comfyuis(name: str, runtime: Any) -> None:
    found = await geometry(name, runtime)
    assert ("normal" in found) == name.startswith("moge 2")
    for part in found.keys() - {"image"}:
        close(found[part], f"{name}|{part}")


@pytest.mark.parametrize(("name", "output"), cases.MOGE_DRAWN)
async def test_geometry_is_drawn_as_by_comfyui(name: str, output: str, runtime: Any) -> None:
    close(moge_render(await geometry(name, runtime), output), f"{name}|drawn {output}")


@pytest.mark.parametrize("name", cases.MESHES)
async def test_surfaces_are_comfyuis(name: str, runtime: Any) -> None:
    mesh = moge_point_map_to_mesh(await geometry(name, runtime), 1, *cases.MESHES[name], True)
    assert mesh.picture is not None
    for part in ("vertices", "faces", "uvs"):
        close(getattr(mesh, part), f"{name}|mesh {part}")


async def test_an_angle_of_view_is_comfyuis(runtime: Any) -> None:
    found = moge_geometry_to_fov(await geometry("moge 2|known", runtime), "diagonal", "degrees")
    assert found == pytest.approx(FIGURES["fov"].tolist(), rel=1e-5)


async def test_the_geometry_of_a_panorama_is_comfyuis(runtime: Any) -> None:
    model = Recipe("geometry_estimator", "", "moge 2")
    found = await moge_panorama_inference(model, cases.panorama(), **cases.PANORAMA, runtime=runtime)
    for part in ("mask", "depth", "points"):
        close(found[part], f"panorama|{part}", 1e-3)
    close(moge_point_map_to_mesh(found, 0, 4, 0.0, False).vertices, "panorama|mesh", 1e-3)


async def test_the_foreground_is_comfyuis(runtime: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BiRefNet, "image_size", cases.BIREFNET_SIDE)
    mask = await remove_background(Recipe("background_remover", "", "birefnet"), cases.pictures(2), runtime)
    agrees(mask, "birefnet|mask")


@pytest.mark.parametrize(("name", "multiplier"), cases.INTERPOLATED.items())
async def test_frames_between_are_comfyuis(name: str, multiplier: int, runtime: Any) -> None:
    frames = cases.frames()
    made = await frame_interpolate(Recipe("frame_interpolator", "", name), frames, multiplier, runtime)
    assert torch.equal(made[::multiplier], frames)
    agrees(made, f"{name}|frames")
