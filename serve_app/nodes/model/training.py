"""The nodes that say what a diffusion model was trained to predict, and on which noise levels."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from serve_app.errors import NodeError
from serve_app.nodes.declare import node
from serve_app.nodes.inputs import MAX_RESOLUTION, Bool, Choice, Float, InputType, Int
from serve_app.nodes.sampling.schedules import video_tokens
from serve_app.nodes.sockets import JOINT_LATENT, MODEL
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.training import ContinuousEdm, ContinuousV, Discrete, Flow, FluxFlow, Training
from serve_app.sampling.denoiser import trained
from serve_app.sampling.schedules.schedules import ltx_shift

_OTHER_FAMILIES = {
    "cosmos_rflow": "Cosmos models, which are not supported",
    "edm_playground_v2.5": "Playground v2.5, whose latents are not supported",
}


def _level(default: float) -> InputType:
    return Float(default, min=0.0, max=1000.0, step=0.001, round=False)


def _shift(default: float) -> InputType:
    return Float(default, min=0.0, max=100.0, step=0.01)


def patched(model: Recipe, training: Training) -> Recipe:
    """Return a model with another training. Errors: NodeError for levels that are none."""
    # Levels that are none are refused here, where the node is known, rather than when the model is loaded.
    trained(training)
    return model.with_patch(training)


@node("ModelSamplingDiscrete", category="model/patch", function="patch")
def model_sampling_discrete(
    model: MODEL,
    sampling: Annotated[str, Choice(["eps", "v_prediction", "lcm", "x0", "img_to_img", "img_to_img_flow"])],
    zsnr: Annotated[bool, Bool(False)],
) -> MODEL:
    """Training on a table of noise levels. Return the model's recipe with the training."""
    return patched(model, Discrete(sampling, zsnr))


@node("ModelSamplingContinuousEDM", category="model/patch", function="patch")
def model_sampling_continuous_edm(
    model: MODEL,
    sampling: Annotated[str, Choice(["v_prediction", "edm", "edm_playground_v2.5", "eps", "cosmos_rflow"])],
    sigma_max: Annotated[float, _level(120.0)],
    sigma_min: Annotated[float, _level(0.002)],
) -> MODEL:
    """Training on any noise level between two, with its logarithm as the network's input.

    Return the model's recipe with the training. Errors: NodeError for one of a family that is not supported.
    """
    if (family := _OTHER_FAMILIES.get(sampling)) is not None:
        raise NodeError(f"sampling '{sampling}' is for {family}; supported are v_prediction, edm, eps")
    return patched(model, ContinuousEdm(sampling, sigma_max, sigma_min))


@node("ModelSamplingContinuousV", category="model/patch", function="patch")
def model_sampling_continuous_v(
    model: MODEL,
    sampling: Annotated[str, Choice(["v_prediction"])],
    sigma_max: Annotated[float, _level(500.0)],
    sigma_min: Annotated[float, _level(0.03)],
) -> MODEL:
    """Training on any noise level between two, with an angle as the network's input."""
    return patched(model, ContinuousV(sigma_max, sigma_min))


@node("ModelSamplingSD3", category="model/patch/stable diffusion", function="patch")
def model_sampling_sd3(model: MODEL, shift: Annotated[float, _shift(3.0)]) -> MODEL:
    """Training on a flow, with thousandths of the level as the network's input.

    Errors: NodeError for a shift of 0, which leaves no levels.
    """
    return patched(model, Flow(shift, 1000.0))


@node("ModelSamplingAuraFlow", category="model/patch", function="patch")
def model_sampling_aura_flow(model: MODEL, shift: Annotated[float, _shift(1.73)]) -> MODEL:
    """Training on a flow, with the level itself as the network's input.

    Errors: NodeError for a shift of 0, which leaves no levels.
    """
    return patched(model, Flow(shift, 1.0))


Side: TypeAlias = Annotated[int, Int(1024, min=16, max=MAX_RESOLUTION, step=8)]


@node("ModelSamplingFlux", category="model/patch/flux", function="patch")
def model_sampling_flux(
    model: MODEL,
    max_shift: Annotated[float, _shift(1.15)],
    base_shift: Annotated[float, _shift(0.5)],
    width: Side,
    height: Side,
) -> MODEL:
    """Training on a flow that is shifted the further, the larger the image.

    Return the model's recipe with the training: its mu is a line through both shifts' numbers of tokens.
    """
    slope = (max_shift - base_shift) / (_MAX_TOKENS - _BASE_TOKENS)
    mu = (width * height / _PIXELS_A_TOKEN) * slope + (base_shift - slope * _BASE_TOKENS)
    return patched(model, FluxFlow(mu))


_BASE_TOKENS, _MAX_TOKENS = 256, 4096
"""Of images of 256×256 and 1024×1024 pixels, on which FLUX.1 was trained with base_shift and max_shift."""
_PIXELS_A_TOKEN = 16 * 16


@node("ModelSamplingLTXV", category="model/patch/ltxv")
def model_sampling_ltxv(
    model: MODEL,
    max_shift: Annotated[float, _shift(2.05)],
    base_shift: Annotated[float, _shift(0.95)],
    latent: JOINT_LATENT | None = None,
) -> MODEL:
    """Training on a flow that is shifted the further, the larger the video, which is LTX's largest without one."""
    return patched(model, FluxFlow(ltx_shift(video_tokens(latent), max_shift, base_shift)))
