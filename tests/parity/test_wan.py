"""Whole sampling runs of Wan's editions beside ComfyUI's, all of an edition's in shared forwards where they may."""

import asyncio

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from serve_app.engine.engine import Engine
from serve_app.engine.runtime import EngineRuntime
from serve_app.engine.timeline import HostTimeline
from serve_app.models.families import Taehv
from serve_app.recipe.recipe import Recipe, tiny_video_vae
from serve_app.sampling.request import SamplingRequest, Steps
from serve_app.store.models.catalog import Catalog
from serve_app.values import Cfg, ClipVisionOutput, Guider, Noise, SamplerChoice
from tests.parity import wan_cases
from tests.parity.figures import Figures
from tests.unit.engine.mixes import MAX_CELLS
from tests.unit.models.sample import cpu_weights

FIGURES = Figures("wan")


def request(run):
    options = wan_cases.options(run)
    if (seen := options.get("clip_vision_output")) is not None:
        options["clip_vision_output"] = ClipVisionOutput(torch.zeros_like(seen), seen, torch.zeros(1, 8))
    conds = {role: [(wan_cases.text(role), options)] for role in ("positive", "negative")}
    return SamplingRequest(
        Guider(Recipe("backbone", "diffusion_models", f"{run.net}.safetensors"), conds, Cfg(wan_cases.CFG)),
        wan_cases.latents(run),
        SamplerChoice(wan_cases.SAMPLER),
        Steps(wan_cases.SCHEDULE, wan_cases.STEPS),
        Noise(wan_cases.SEED),
        noise_mask=wan_cases.noise_mask(run),
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Every figure's run, all submitted at once."""
    root = tmp_path_factory.mktemp("models")
    (root / "diffusion_models").mkdir()
    wan_cases.write(root / "diffusion_models")
    runtime = EngineRuntime(Engine(MAX_CELLS, HostTimeline()), cpu_weights(Catalog(root)))

    async def sample():
        bound = [runtime.bind(lambda done, steps: None) for _ in wan_cases.RUNS]
        asked = zip(bound, map(request, wan_cases.RUNS), strict=True)
        return await asyncio.gather(*(one.sample(what) for one, what in asked))

    made = asyncio.run(asyncio.wait_for(sample(), 120))
    return {run.name: sampled for run, sampled in zip(wan_cases.RUNS, made, strict=True)}


@pytest.mark.parametrize("run", wan_cases.RUNS, ids=lambda run: run.name)
def test_a_run_batched_with_others_matches_comfyui(runs, run):
    FIGURES.assert_agrees(runs[run.name].latents, run.name, 1e-5)


async def test_with_the_file_of_a_tiny_autoencoder_pictures_are_the_videos_first_image(tmp_path):
    for folder in ("diffusion_models", "vae_approx"):
        (tmp_path / folder).mkdir()
    wan_cases.write(tmp_path / "diffusion_models")
    save_file(Taehv(16, 1, (2, 2, 1), (1, 2, 2)).build().state_dict(), tmp_path / "vae_approx/lighttaew2_1.safetensors")
    engine = Engine(MAX_CELLS, HostTimeline())
    try:
        weights = cpu_weights(Catalog(tmp_path))
        pictures = []
        runtime = EngineRuntime(engine, weights).bind(lambda *_: None, show=pictures.append, previews="taesd")
        run = wan_cases.RUNS[0]
        sampled = await asyncio.wait_for(runtime.sample(request(run)), 120)
        await asyncio.sleep(0)
        height, width = sampled.latents.shape[-2:]
        assert [shown.shape for shown in pictures] == [(8 * height, 8 * width, 3)] * wan_cases.STEPS
        shown = weights.vae(tiny_video_vae("lighttaew2_1.safetensors")).decode(sampled.denoised)[0, 0] * 255
        assert np.abs(pictures[-1].astype(float) - shown.numpy()).max() <= 1
    finally:
        engine.close()
