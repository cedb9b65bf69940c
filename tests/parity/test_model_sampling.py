"""Every kind of training beside ComfyUI's model_sampling classes.

golden/model_sampling.npz holds what they answer for three levels each (a little above the lowest, the middle, the
highest): the network's timestep and input, D(x, sigma) for a random output, levels by progress, and six schedules.
"""

import pytest
import torch

from serve_app.recipe.training import ContinuousEdm, ContinuousV, Discrete
from serve_app.sampling.denoiser import trained
from serve_app.sampling.request import Steps
from serve_app.sampling.samplers.evaluation import SamplerSpec
from serve_app.sampling.samplers.samplers import euler
from serve_app.sampling.schedules.sigmas import sigmas_for
from tests.parity.figures import Figures

TOLERANCE = 1e-6
FIGURES = Figures("model_sampling")
DISCRETE = ("eps", "v_prediction", "x0", "img_to_img", "lcm")
CONTINUOUS = ("eps", "v_prediction", "edm", "edm_playground_v2.5")
TRAININGS = {
    **{f"discrete {name} {zsnr}": Discrete(name, zsnr) for name in DISCRETE for zsnr in (False, True)},
    **{f"edm {name}": ContinuousEdm(name, 120.0, 0.002) for name in CONTINUOUS},
    "v v_prediction": ContinuousV(500.0, 0.03),
}


def agree(ours, name):
    FIGURES.assert_agrees(ours.to(FIGURES[name].dtype), name, TOLERANCE)


@pytest.mark.parametrize("name", TRAININGS)
def test_levels_inputs_and_denoised_are_comfyuis(name):
    levels, prediction = trained(TRAININGS[name])
    x, output, sigma = FIGURES["x"], FIGURES["output"], FIGURES[f"{name}|sigma"]
    agree(levels.sigmas[::37] if len(levels.sigmas) > 100 else levels.sigmas, f"{name}|sigmas")
    torch.testing.assert_close(levels.timestep(sigma), FIGURES[f"{name}|timestep"], rtol=TOLERANCE, atol=0)
    scalings = [prediction.scaling(level) for level in sigma.tolist()]
    c_in, c_skip, c_out = (torch.tensor(each).view(-1, 1, 1, 1) for each in zip(*scalings, strict=True))
    agree(x * c_in, f"{name}|input")
    agree(x * c_skip + output * c_out, f"{name}|denoised")
    agree(torch.tensor([levels.at_progress(share) for share in (0.1, 0.35, 0.9)]), f"{name}|progress")


@pytest.mark.parametrize("schedule", ["simple", "sgm_uniform", "karras", "normal", "beta", "ddim_uniform"])
@pytest.mark.parametrize("name", TRAININGS)
def test_schedules_on_any_levels_are_comfyuis(name, schedule):
    levels, _ = trained(TRAININGS[name])
    agree(sigmas_for(levels, Steps(schedule, 7), SamplerSpec(euler)), f"{name}|{schedule}")
