"""The tiled VAE and upscale models against ComfyUI's nodes on the same latents, images and weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from serve_app.engine.engine import Engine
from serve_app.engine.runtime import EngineRuntime
from serve_app.engine.timeline import HostTimeline
from serve_app.execution.runtime import Runtime
from serve_app.nodes.registry import BUILTIN
from serve_app.recipe.recipe import Recipe
from serve_app.store.models.catalog import Catalog
from tests.parity import tiled_cases
from tests.parity.checkpoints import models_dir
from tests.parity.figures import Figures
from tests.parity.mini15_cases import value
from tests.unit.engine.mixes import MAX_CELLS
from tests.unit.models.sample import cpu_weights

FIGURES = Figures("nodes_tiled")
VAE = Recipe("vae", "checkpoints", "mini15.safetensors")


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine(MAX_CELLS, HostTimeline())
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def mini15(engine: Engine) -> EngineRuntime:
    return EngineRuntime(engine, cpu_weights(Catalog(models_dir("mini15"))))


@pytest.fixture(scope="module", params=["a.safetensors", "a.pth"])
def upscaled(request: Any, engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> tuple[EngineRuntime, Recipe]:
    """A runtime with the tiny ESRGAN, and its recipe."""
    root: Path = tmp_path_factory.mktemp("models")
    (root / "upscale_models").mkdir()
    path = root / "upscale_models" / request.param
    if path.suffix == ".pth":
        torch.save({"params_ema": tiled_cases.esrgan()}, path)
    else:
        save_file(tiled_cases.esrgan(), path)
    (recipe,) = BUILTIN["UpscaleModelLoader"]().load_model(request.param)
    return EngineRuntime(engine, cpu_weights(Catalog(root))), recipe


def watched(shared: EngineRuntime) -> tuple[Runtime, list[tuple[int, int]]]:
    seen: list[tuple[int, int]] = []
    return shared.bind(lambda done, of: seen.append((done, of))), seen


def first(sizes: Sequence[tuple[int, int]]) -> list[Any]:
    """Return parameters for the first of these; the others are for long tests, since the rule of the tiles is one."""
    return [sizes[0], *(pytest.param(*size, marks=pytest.mark.long) for size in sizes[1:])]


@pytest.mark.parametrize(("size", "overlap"), first(tiled_cases.DECODES))
async def test_latents_are_decoded_in_tiles_as_by_comfyui(mini15: EngineRuntime, size: int, overlap: int) -> None:
    runtime, seen = watched(mini15)
    node = BUILTIN["VAEDecodeTiled"]()
    (images,) = await node.decode(VAE, {"samples": value(tiled_cases.LATENTS)}, size, overlap, runtime=runtime)
    FIGURES.assert_agrees(images[:, ::4, ::4], f"decode|{size}|{overlap}")
    assert seen == [(done, len(seen)) for done in range(1, len(seen) + 1)]


@pytest.mark.parametrize(("size", "overlap"), first(tiled_cases.ENCODES))
async def test_images_are_encoded_in_tiles_as_by_comfyui(mini15: EngineRuntime, size: int, overlap: int) -> None:
    runtime, _ = watched(mini15)
    node = BUILTIN["VAEEncodeTiled"]()
    (latent,) = await node.encode(VAE, value(tiled_cases.PIXELS), size, overlap, runtime=runtime)
    FIGURES.assert_agrees(latent["samples"], f"encode|{size}|{overlap}")


async def test_an_upscale_model_makes_what_it_makes_in_comfyui(upscaled: tuple[EngineRuntime, Recipe]) -> None:
    shared, recipe = upscaled
    runtime, seen = watched(shared)
    (images,) = await BUILTIN["ImageUpscaleWithModel"]().upscale(recipe, value(tiled_cases.STRIP), runtime)
    assert images.shape == (2, 24, 1120, 3)
    FIGURES.assert_agrees(images[:, :, tiled_cases.LAST_COLUMNS :], "upscale", 1e-6)
    assert seen == [(done, 4) for done in (1, 2, 3, 4)]


async def test_tiles_leave_no_seam_that_the_whole_image_has_not(upscaled: tuple[EngineRuntime, Recipe]) -> None:
    shared, recipe = upscaled
    runtime, _ = watched(shared)
    whole: Any = shared.weights.upscaler(recipe)
    with torch.no_grad():
        expected: Tensor = whole.network(value(tiled_cases.STRIP).movedim(-1, 1)).movedim(1, -1)
    images = await runtime.upscale(recipe, value(tiled_cases.STRIP))
    # A tile's last columns are made without what is beyond them; the weights leave a thirty-second of that.
    assert (images - expected).abs().max() <= 0.008
    far_from_seams = torch.cat([images[:, :, :900], images[:, :, 1060:]], 2)
    there = torch.cat([expected[:, :, :900], expected[:, :, 1060:]], 2)
    assert (far_from_seams - there).abs().max() <= 1e-6
