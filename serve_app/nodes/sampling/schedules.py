"""The nodes that make SIGMAS, by a schedule with its own numbers or for a model."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Annotated, Any, TypeAlias

import torch

from serve_app.execution.size import allow_levels
from serve_app.nested_tensor import parts_of
from serve_app.nodes.declare import node
from serve_app.nodes.inputs import MAX_RESOLUTION, Bool, Choice, Float, InputType, Int
from serve_app.nodes.sockets import JOINT_LATENT, MODEL, RUNTIME, SIGMAS
from serve_app.sampling.schedules.gits import picked
from serve_app.sampling.schedules.schedules import (
    ALIGN_YOUR_STEPS,
    LTX_TOKENS,
    OPTIMAL_STEPS,
    Ends,
    flux_2,
    from_table,
    ideogram4,
    laplace,
    ltx,
    polyexponential,
    turbo,
    variance_preserving,
)
from serve_app.sampling.schedules.sigmas import SCHEDULES, beta, exponential, karras
from serve_app.values import Latent

CATEGORY = "model/sampling/schedulers"

StepCount: TypeAlias = Annotated[int, Int(20, min=1, max=10000)]
Denoise: TypeAlias = Annotated[float, Float(1.0, min=0.0, max=1.0, step=0.01)]


def _number(default: float, most: float, step: float = 0.01, least: float = 0.0) -> InputType:
    return Float(default, min=least, max=most, step=step, round=False)


ENDS: Mapping[str, Any] = {"sigma_max": _number(14.614642, 5000.0), "sigma_min": _number(0.0291675, 5000.0)}


@node("SDTurboScheduler", category=CATEGORY, function="get_sigmas")
async def sd_turbo_scheduler(
    model: MODEL,
    steps: Annotated[int, Int(1, min=1, max=10)],
    denoise: Annotated[float, Float(1.0, min=0, max=1.0, step=0.01)],
    runtime: RUNTIME,
) -> SIGMAS:
    """Sigmas that the Turbo models are distilled on.

    Return the model's sigmas at tenths of its timesteps, then 0.
    """
    allow_levels(steps)
    return turbo(await runtime.levels(model), steps, denoise)


@node("BasicScheduler", category=CATEGORY, function="get_sigmas")
async def basic_scheduler(
    model: MODEL, scheduler: Annotated[str, Choice(SCHEDULES)], steps: StepCount, denoise: Denoise, runtime: RUNTIME
) -> SIGMAS:
    """Sigmas of one of KSampler's schedules.

    Return the last steps + 1 sigmas of a schedule that is longer by 1 / denoise.
    """
    if denoise <= 0.0:
        return torch.empty(0)
    allow_levels(steps, denoise)
    whole = int(steps / denoise) if denoise < 1.0 else steps
    return SCHEDULES[scheduler](await runtime.levels(model), whole)[-(steps + 1) :]


@node("Ideogram4Scheduler", "Ideogram 4 Scheduler", category=CATEGORY, function="get_sigmas")
def ideogram4_scheduler(
    steps: Annotated[int, Int(20, min=1, max=200)],
    width: Annotated[int, Int(1024, min=256, max=8192, step=16)],
    height: Annotated[int, Int(1024, min=256, max=8192, step=16)],
    mu: Annotated[float, Float(0.0, min=-10.0, max=10.0, step=0.05)],
    std: Annotated[float, Float(1.75, min=0.1, max=5.0, step=0.05)],
) -> SIGMAS:
    """Sigmas whose logits are spread normally, around a mean that grows with the picture.

    Return them at even quantiles, then 0. mu: the mean for 512×512 pixels; std: the deviation.
    """
    allow_levels(steps)
    return ideogram4(steps, width * height, mu, std)


SigmaMax: TypeAlias = Annotated[float, _number(14.614642, 5000.0)]
SigmaMin: TypeAlias = Annotated[float, _number(0.0291675, 5000.0)]


@node("KarrasScheduler", category=CATEGORY, function="get_sigmas")
def karras_scheduler(
    steps: StepCount, sigma_max: SigmaMax, sigma_min: SigmaMin, rho: Annotated[float, _number(7.0, 100.0)]
) -> SIGMAS:
    """Sigmas equally spaced in a root of sigma. Return sigmas from one end to the other, then 0."""
    allow_levels(steps)
    return karras(Ends(sigma_max, sigma_min), steps, rho)


@node("ExponentialScheduler", category=CATEGORY, function="get_sigmas")
def exponential_scheduler(steps: StepCount, sigma_max: SigmaMax, sigma_min: SigmaMin) -> SIGMAS:
    """Sigmas equally spaced in their logarithm. Return sigmas from one end to the other, then 0."""
    allow_levels(steps)
    return exponential(Ends(sigma_max, sigma_min).positive(), steps)


@node("PolyexponentialScheduler", category=CATEGORY, function="get_sigmas")
def polyexponential_scheduler(
    steps: StepCount, sigma_max: SigmaMax, sigma_min: SigmaMin, rho: Annotated[float, _number(1.0, 100.0)]
) -> SIGMAS:
    """Sigmas spaced by a power in their logarithm. Return sigmas from one end to the other, then 0."""
    allow_levels(steps)
    return polyexponential(Ends(sigma_max, sigma_min).positive(), steps, rho)


@node("LaplaceScheduler", category=CATEGORY, function="get_sigmas")
def laplace_scheduler(
    steps: StepCount,
    sigma_max: SigmaMax,
    sigma_min: SigmaMin,
    mu: Annotated[float, _number(0.0, 10.0, 0.1, -10.0)],
    beta: Annotated[float, _number(0.5, 10.0, 0.1)],
) -> SIGMAS:
    """Return a number of sigmas most of which lie near one level, without 0 at the end."""
    allow_levels(steps)
    return laplace(Ends(sigma_max, sigma_min), steps, mu, beta)


@node("VPScheduler", category=CATEGORY, function="get_sigmas")
def vp_scheduler(
    steps: StepCount,
    beta_d: Annotated[float, _number(19.9, 5000.0)],
    beta_min: Annotated[float, _number(0.1, 5000.0)],
    eps_s: Annotated[float, _number(0.001, 1.0, 0.0001)],
) -> SIGMAS:
    """Sigmas of the variance-preserving process. Return sigmas of the times from 1 to eps_s, then 0."""
    allow_levels(steps)
    return variance_preserving(steps, beta_d, beta_min, eps_s)


Alpha: TypeAlias = Annotated[float, _number(0.6, 50.0)]


@node("BetaSamplingScheduler", category=CATEGORY, function="get_sigmas")
async def beta_sampling_scheduler(
    model: MODEL, steps: StepCount, alpha: Alpha, beta: Alpha, runtime: RUNTIME
) -> SIGMAS:
    """Sigmas spaced as quantiles of a beta distribution. Return the model's sigmas, equal ones once, then 0."""
    allow_levels(steps)
    return _quantiles(await runtime.levels(model), steps, alpha, beta)


# The node's own input of that name would hide the schedule.
_quantiles = beta


@node("AlignYourStepsScheduler", category=CATEGORY, function="get_sigmas")
def align_your_steps_scheduler(
    model_type: Annotated[str, Choice(ALIGN_YOUR_STEPS)],
    steps: Annotated[int, Int(10, min=1, max=10000)],
    denoise: Denoise,
) -> SIGMAS:
    """Sigmas that were optimised for a kind of model.

    Return the table's sigmas for ten steps, interpolated for other numbers.
    """
    allow_levels(steps)
    return from_table(ALIGN_YOUR_STEPS[model_type], steps, denoise)


@node("GITSScheduler", category=CATEGORY, function="get_sigmas")
def gits_scheduler(
    coeff: Annotated[float, Float(1.2, min=0.8, max=1.5, step=0.05)],
    steps: Annotated[int, Int(10, min=2, max=1000)],
    denoise: Denoise,
) -> SIGMAS:
    """Sigmas that follow where sampling's path bends.

    Return the table's sigmas for up to twenty steps, interpolated for more.
    """
    allow_levels(steps)
    return from_table(picked(coeff, steps), steps, denoise)


@node("OptimalStepsScheduler", category=CATEGORY)
def optimal_steps_scheduler(
    model_type: Annotated[str, InputType("COMBO", {"options": list(OPTIMAL_STEPS)})],
    steps: Annotated[int, Int(20, min=3, max=1000)],
    denoise: Denoise,
) -> SIGMAS:
    """Sigmas that were searched for a kind of model that samples a flow.

    Return the table's sigmas, interpolated for other numbers of steps.
    """
    allow_levels(steps)
    return from_table(OPTIMAL_STEPS[model_type], steps, denoise)


Side: TypeAlias = Annotated[int, Int(1024, min=16, max=MAX_RESOLUTION, step=1)]


@node("Flux2Scheduler", category=CATEGORY)
def flux2_scheduler(steps: Annotated[int, Int(20, min=1, max=4096)], width: Side, height: Side) -> SIGMAS:
    """Sigmas that FLUX.2 was tuned for, by the size of the image. Return the sigmas, then 0."""
    allow_levels(steps)
    return flux_2(steps, round(width * height / (16 * 16)))


@node("LTXVScheduler", category="model/sampling/schedulers")
def ltxv_scheduler(
    steps: Annotated[int, Int(20, min=1, max=10000)],
    max_shift: Annotated[float, Float(2.05, min=0.0, max=100.0, step=0.01)],
    base_shift: Annotated[float, Float(0.95, min=0.0, max=100.0, step=0.01)],
    stretch: Annotated[bool, Bool(True, advanced=True, tooltip="Stretch the sigmas to be in the range [terminal, 1].")],
    terminal: Annotated[float, Float(0.1, min=0.0, max=0.99, step=0.01, advanced=True)],
    latent: JOINT_LATENT | None = None,
) -> SIGMAS:
    """Sigmas shifted the further, the larger the video, which is LTX's largest without one. Return them, then 0."""
    allow_levels(steps)
    return ltx(steps, video_tokens(latent), max_shift, base_shift, terminal if stretch else None)


def video_tokens(latent: Latent | None) -> int:
    """Return the tokens of LTX's video of a latent; without one, of the largest that it was trained on."""
    return LTX_TOKENS[1] if latent is None else prod(parts_of(latent["samples"])[0].shape[2:])
