"""Whole sampling runs of every family beside ComfyUI's, all of a family's in shared forwards.

golden/family_runs.npz holds what comfy.sample.sample made of the small models of families.py.
"""

import asyncio

import pytest
import torch

from serve_app.engine.engine import Engine
from serve_app.engine.runtime import EngineRuntime
from serve_app.engine.timeline import HostTimeline
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.training import ContinuousEdm, ContinuousV, Discrete, Training
from serve_app.sampling.request import SamplingRequest, Steps
from serve_app.store.models.catalog import Catalog
from serve_app.values import Cfg, Guider, Noise, SamplerChoice
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


GIVEN = families.run_inputs()


def request(figure):
    name, case, sampler, schedule, cfg = figure.split("|")
    recipe = Recipe("backbone", "diffusion_models", f"{name}.safetensors")
    if case in TRAININGS:
        recipe = recipe.with_patch(TRAININGS[case])

    def conditioning(role):
        told = {key: GIVEN.get(value, value) for key, value in families.OPTIONS.get(case, {}).items()}
        return [(GIVEN[f"{name}|{role}"], {"pooled_output": GIVEN[f"{role} pooled"], **told})]

    conds = {role: conditioning(role) for role in ("positive", "negative")}
    masked = case == "masked"
    return SamplingRequest(
        Guider(recipe, conds, Cfg(float(cfg))),
        GIVEN["latent"] if masked else torch.zeros(1, 4, 8, 8),
        SamplerChoice(sampler),
        Steps(schedule, families.STEPS),
        Noise(families.SEED),
        noise_mask=GIVEN["mask"] if masked else None,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Every figure's run, all submitted at once."""
    root = tmp_path_factory.mktemp("models")
    (root / "diffusion_models").mkdir()
    families.write(root / "diffusion_models")
    runtime = EngineRuntime(Engine(MAX_CELLS, HostTimeline()), cpu_weights(Catalog(root)))

    async def sample():
        bound = [runtime.bind(lambda done, steps: None) for _ in families.RUNS]
        asked = zip(bound, map(request, families.RUNS), strict=True)
        return await asyncio.gather(*(one.sample(what) for one, what in asked))

    return dict(zip(families.RUNS, asyncio.run(asyncio.wait_for(sample(), 60)), strict=True))


@pytest.mark.parametrize("figure", families.RUNS)
def test_a_run_batched_with_others_matches_comfyui(runs, figure):
    FIGURES.assert_agrees(runs[figure].latents, figure, ZSNR_TOLERANCE if "|zsnr|" in figure else TOLERANCE)
