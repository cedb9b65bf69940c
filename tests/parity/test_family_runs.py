"""Whole sampling runs of every family beside ComfyUI's, all of a family's in shared forwards.

golden/family_runs.npz holds what comfy.sample.sample made of the small models of families.py in four steps with seed 7:
name|case|sampler|schedule|cfg. The conditionings are drawn here by name, as they were there.
"""

import asyncio
from zlib import crc32

import pytest
import torch
from safetensors.torch import save_file

from serve_app.engine.engine import Engine
from serve_app.engine.runtime import EngineRuntime
from serve_app.sampling.request import SamplingRequest, Steps
from serve_app.store.catalog import Catalog
from serve_app.values import Cfg, ContinuousEdm, ContinuousV, Discrete, Guider, Noise, Recipe, SamplerChoice, Training
from tests.parity import families
from tests.parity.figures import TOLERANCE, Figures
from tests.unit.engine.mixes import MAX_CELLS
from tests.unit.models.sample import cpu_weights

FIGURES = Figures("family_runs")
TRAININGS: dict[str, Training] = {
    "zsnr": Discrete("v_prediction", zsnr=True),
    "edm": ContinuousEdm("edm", 80.0, 0.002),
    "angle": ContinuousV(500.0, 0.03),
    "v": Discrete("v_prediction"),
}

ZSNR_TOLERANCE = 3e-4
"""At its first level of 4519 one float32 step of x is 5e-4, of latents that end eight wide."""


def drawn(name, shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(crc32(name.encode())))


MASK = (drawn("mask", (1, 1, 64, 64)) > 0).float()
IMAGE = drawn("image", (1, 4, 8, 8)) * 5
OPTIONS = {
    "sizes": {
        "width": 1000,
        "height": 1200,
        "crop_w": 3,
        "crop_h": 5,
        "target_width": 700,
        "target_height": 640,
    },
    "conditioned": {"concat_latent_image": IMAGE, "concat_mask": MASK},
    "image": {"concat_latent_image": IMAGE},
}


def request(figure):
    name, case, sampler, schedule, cfg = figure.split("|")
    recipe = Recipe("backbone", "diffusion_models", f"{name}.safetensors")
    if case in TRAININGS:
        recipe = recipe.with_patch(TRAININGS[case])

    def conditioning(role):
        options = {"pooled_output": drawn(f"{role} pooled", (1, 64)), **OPTIONS.get(case, {})}
        return [(drawn(role, (1, 77, families.UNETS[name].context_dim)), options)]

    conds = {role: conditioning(role) for role in ("positive", "negative")}
    masked = case == "masked"
    return SamplingRequest(
        Guider(recipe, conds, Cfg(float(cfg))),
        drawn("latent", (1, 4, 8, 8)) * 5 if masked else torch.zeros(1, 4, 8, 8),
        SamplerChoice(sampler),
        Steps(schedule, 4),
        Noise(7),
        noise_mask=MASK if masked else None,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Every figure's run, all submitted at once."""
    root = tmp_path_factory.mktemp("models")
    (root / "diffusion_models").mkdir()
    for name in families.UNETS:
        save_file(families.unet(name), root / "diffusion_models" / f"{name}.safetensors")
    runtime = EngineRuntime(Engine(MAX_CELLS), cpu_weights(Catalog(root)))

    async def sample():
        bound = [runtime.bind(lambda done, steps: None) for _ in FIGURES.names]
        asked = zip(bound, map(request, FIGURES.names), strict=True)
        return await asyncio.gather(*(one.sample(what) for one, what in asked))

    return dict(zip(FIGURES.names, asyncio.run(asyncio.wait_for(sample(), 60)), strict=True))


@pytest.mark.parametrize("figure", FIGURES.names)
def test_a_run_beside_others_ends_where_comfyuis_does(runs, figure):
    FIGURES.assert_agrees(runs[figure].latents, figure, ZSNR_TOLERANCE if "|zsnr|" in figure else TOLERANCE)
