"""Stable Video Diffusion against ComfyUI's modules, with the same weights (golden/svd.npz, by `svd_figures`)."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from serve_app.engine.engine import Engine
from serve_app.engine.runtime import EngineRuntime
from serve_app.engine.timeline import HostTimeline
from serve_app.models.families.family import Rows
from serve_app.models.families.unet.svd import Svd
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.vae import Vae
from serve_app.recipe.guidance import CfgByFrame
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.training import Discrete
from serve_app.sampling.forward import Canvas
from serve_app.sampling.request import SamplingRequest, Steps
from serve_app.store.models.catalog import Catalog
from serve_app.values import Cfg, Guider, Noise, SamplerChoice
from tests.parity import svd_cases
from tests.parity.dit_cases import noise
from tests.parity.figures import GOLDEN, MODULE_TOLERANCE, Figures, thinned
from tests.parity.svd_cases import CFG, FRAMES, LOWEST, RUNS, SAID, SEED, SIZE, STEPS
from tests.unit.engine.mixes import MAX_CELLS
from tests.unit.models.sample import cpu_weights

FIGURES = Figures("svd")
KEYS = json.loads((GOLDEN / "svd_keys.json").read_text())
GUIDED = {"linear": CfgByFrame(LOWEST), "triangle": CfgByFrame(LOWEST, triangle=True)}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of models with one checkpoint, named as the published ones are."""
    folder = tmp_path_factory.mktemp("models")
    unet = {f"model.diffusion_model.{name}": t for name, t in svd_cases.weights(KEYS["unet"]).items()}
    vae = {f"first_stage_model.{name}": t for name, t in svd_cases.weights(KEYS["vae"]).items()}
    (folder / "checkpoints").mkdir()
    save_file(unet | vae, folder / "checkpoints" / "svd.safetensors")
    return folder


def conditionings() -> dict[str, list[tuple[Tensor, dict[str, object]]]]:
    images = svd_cases.images()
    return {role: [(text, {**SAID, "concat_latent_image": images[role]})] for role, text in svd_cases.texts().items()}


@torch.inference_mode()
def test_the_network_answers_as_comfyuis_does_for_several_videos_at_once(root: Path) -> None:
    family, network = Checkpoint(root / "checkpoints" / "svd.safetensors").load("backbone")
    assert isinstance(family, Svd)
    x = noise("x", (FRAMES, 8, *SIZE))
    text = svd_cases.texts()["positive"]
    rows = []
    for latents, image in ((x[:, :4], x[:, 4:]), (x[:, 4:], x[:, :4])):
        options = {**SAID, "concat_latent_image": image}
        inputs = family.inputs(text, options, "positive", Canvas(latents, latents), CPU, Discrete())
        rows.append(Rows(latents, 1.0, torch.full((FRAMES,), 0.7), inputs))
    made, other = family.forward(network, rows)
    FIGURES.assert_agrees(made, "unet", MODULE_TOLERANCE)
    assert other.shape == made.shape
    assert not torch.allclose(other, made)


@torch.inference_mode()
def test_frames_are_decoded_together_and_images_encoded_as_by_comfyui(root: Path) -> None:
    family, network = Checkpoint(root / "checkpoints" / "svd.safetensors").load("vae")
    vae = Vae(family, network)  # type: ignore[arg-type]
    decoded = vae.decode(noise("latents", (FRAMES, 4, *SIZE)))
    unclamped = FIGURES["decoded"]
    theirs = ((unclamped + 1) / 2).clamp(0, 1)
    ours = torch.from_numpy(thinned(decoded.movedim(-1, 1).contiguous().numpy()))
    assert float((ours - theirs).norm() / theirs.norm()) <= MODULE_TOLERANCE
    pixels = (noise("pixels", (2, 3, 16, 24)) + 1) / 2
    FIGURES.assert_agrees(vae.encode(pixels.movedim(1, -1)), "encoded", MODULE_TOLERANCE)


@pytest.fixture(scope="module")
def runs(root: Path) -> dict[str, Tensor]:
    """Return every run's latents, all submitted at once."""
    runtime = EngineRuntime(Engine(MAX_CELLS, HostTimeline()), cpu_weights(Catalog(root)))

    def request(figure: str) -> SamplingRequest:
        guidance, sampler, schedule = figure.split("|")
        recipe = Recipe("backbone", "checkpoints", "svd.safetensors")
        if guidance in GUIDED:
            recipe = recipe.with_patch(GUIDED[guidance])
        guider = Guider(recipe, conditionings(), Cfg(CFG))
        latents = torch.zeros(FRAMES, 4, *SIZE)
        return SamplingRequest(guider, latents, SamplerChoice(sampler), Steps(schedule, STEPS), Noise(SEED))

    async def sample() -> list[Tensor]:
        bound = [runtime.bind(lambda done, steps: None) for _ in RUNS]
        made = await asyncio.gather(*(one.sample(request(name)) for one, name in zip(bound, RUNS, strict=True)))
        return [each.latents for each in made]

    return dict(zip(RUNS, asyncio.run(asyncio.wait_for(sample(), 60)), strict=True))


@pytest.mark.parametrize("figure", RUNS)
def test_a_run_batched_with_others_matches_comfyui(runs: dict[str, Tensor], figure: str) -> None:
    FIGURES.assert_agrees(runs[figure], figure)
