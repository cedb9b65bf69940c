"""The deterministic one-step samplers, in their papers' symbols, and SAMPLERS, the table of all samplers.

Levels are read into Python floats: scalar arithmetic is then in double precision, and never synchronises with a GPU. d
is the slope (x − denoised) / sigma of the probability flow ODE, so x = denoised + d·sigma at every level.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from math import sqrt

from torch import Tensor

from serve_app.sampling.choices import Choices
from serve_app.sampling.lazy_sum import Latents
from serve_app.sampling.noise import brownian_noise, gaussian_noise
from serve_app.sampling.samplers.adams import cfgpp_ud10_ab, deis, ipndm, ipndm_v, lms, with_less_signal
from serve_app.sampling.samplers.dpm_solver import dpm_adaptive, dpm_fast
from serve_app.sampling.samplers.evaluation import Evaluation, Sampler, SamplerSpec, guided
from serve_app.sampling.samplers.flow import ancestral_cfg_pp_on_flow, by_ratio, halfway, renoised
from serve_app.sampling.samplers.multistep import dpmpp_2m, res_multistep
from serve_app.sampling.samplers.sa_solver import sa_solver, sa_solver_on_flow, stochastic_interval
from serve_app.sampling.samplers.sde import dpmpp_2m_sde, dpmpp_3m_sde, dpmpp_sde, er_sde, sde_on_flow
from serve_app.sampling.samplers.seeds import seeds_2, seeds_3
from serve_app.sampling.samplers.stochastic import dpm_2_ancestral, dpmpp_2s_ancestral, euler_ancestral, lcm, noising
from serve_app.sampling.samplers.unipc import uni_pc, unipc_on_flow
from serve_app.sampling.schedules.levels import Interpolation


def euler(x: Latents, sigmas: Tensor, *, cfg_pp: bool = False, alternative: bool = False) -> Sampler:
    """Euler's first-order method on the probability flow ODE; one evaluation a step.

    x: latents (B,C,h,w) already at sigmas[0]. Yields Evaluation; is sent `denoised`, shaped as x; returns the final
    latents. alternative: ComfyUI's other CFG++, whose slope leads away from the guided image twice. Source: Karras et
    al. 2022, arXiv:2206.00364, Algorithm 2 with s_churn = 0 and no correction.
    """
    for i, (sigma, following) in enumerate(pairwise(sigmas.tolist())):
        denoised, unguided = yield from guided(Evaluation(x, sigma, step=i), cfg_pp)
        if alternative:
            x = x + (x - denoised + unguided - denoised) * ((following - sigma) / sigma)
        else:
            # Schedules that end at zero may have a further zero: a step from zero to zero returns the image.
            x = denoised + (x - unguided) * (following / sigma if following else 0.0)
    return x


def cfg_pp_on_flow(function: Callable[..., Sampler], levels: Interpolation) -> Callable[..., Sampler]:
    """Return `euler` with CFG++ on a flow: by ratio, except the alternative, which ComfyUI runs unchanged."""

    def run(x: Latents, sigmas: Tensor, *, alternative: bool = False) -> Sampler:
        chosen = partial(function, alternative=True) if alternative else by_ratio(function, levels, top=0.0)
        return chosen(x, sigmas)

    return run


def heun(x: Latents, sigmas: Tensor) -> Sampler:
    """Heun's second-order method; two evaluations a step, one on a step to zero.

    Arguments and results as `euler`. Source: Karras et al. 2022, arXiv:2206.00364, Algorithm 2 with s_churn = 0.
    """
    for i, (sigma, following) in enumerate(pairwise(sigmas.tolist())):
        denoised: Latents = yield Evaluation(x, sigma, step=i)
        d = (x - denoised) / sigma
        predicted = x + d * (following - sigma)
        if following > 0:
            denoised = yield Evaluation(predicted, following, step=i)
            x = x + (d + (predicted - denoised) / following) * ((following - sigma) / 2)
        else:
            x = predicted
    return x


def heunpp2(x: Latents, sigmas: Tensor) -> Sampler:
    """Heun++: slopes at up to two levels ahead; three evaluations a step, two on the last but one, one on the last.

    A slope ahead has the weight of its level over three (or two) times the top level, so late steps are nearly Euler's.
    Arguments and results as `euler`. Source: Carzit's sd-webui-samplers-scheduler, as ComfyUI has it.
    """
    levels = sigmas.tolist()
    for i, (sigma, following) in enumerate(pairwise(levels)):
        denoised: Latents = yield Evaluation(x, sigma, step=i)
        first = slope = mean = (x - denoised) / sigma
        ahead = levels[i + 1 : -1][:2]
        u, reached = x, sigma
        for level in ahead:
            u = u + slope * (level - reached)
            denoised = yield Evaluation(u, level, step=i)
            slope, reached = (u - denoised) / level, level
            mean = mean + (slope - first) * (level / (levels[0] * (len(ahead) + 1)))
        x = x + mean * (following - sigma)
    return x


def dpm_2(x: Latents, sigmas: Tensor) -> Sampler:
    """The midpoint method in log sigma; two evaluations a step, one on a step to zero.

    Arguments and results as `euler`. Source: Lu et al. 2022, arXiv:2206.00927 (DPM-Solver-2's midpoint), with the step
    of Karras et al. 2022, arXiv:2206.00364, Algorithm 2.
    """
    for i, (sigma, following) in enumerate(pairwise(sigmas.tolist())):
        denoised: Latents = yield Evaluation(x, sigma, step=i)
        if following == 0:
            return denoised
        middle = sqrt(sigma * following)
        u = denoised + (x - denoised) * (middle / sigma)
        denoised = yield Evaluation(u, middle, step=i)
        x = x + (u - denoised) * ((following - sigma) / middle)
    return x


def gradient_estimation(x: Latents, sigmas: Tensor, *, gamma: float = 2.0, cfg_pp: bool = False) -> Sampler:
    """Euler's step along gamma times the new slope and 1 − gamma times the previous one; one evaluation a step.

    Arguments and results as `euler`. Source: Permenter and Yuan 2024, arXiv:2306.04848, Algorithm 2.
    """
    previous: Latents | None = None
    for i, (sigma, following) in enumerate(pairwise(sigmas.tolist())):
        denoised, unguided = yield from guided(Evaluation(x, sigma, step=i), cfg_pp)
        d = (x - unguided) / sigma
        x = denoised + d * following
        if previous is not None and following > 0:
            x = x + (d - previous) * ((gamma - 1) * (following - sigma))
        previous = d
    return x


_ON_DEVICE = partial(brownian_noise, on_device=True)

SAMPLERS: Choices[SamplerSpec] = Choices(
    "sampler",
    {
        "euler": SamplerSpec(euler),
        "euler_cfg_pp": SamplerSpec(partial(euler, cfg_pp=True), on_flow=cfg_pp_on_flow),
        "euler_ancestral": SamplerSpec(euler_ancestral, gaussian_noise, on_flow=renoised),
        "euler_ancestral_cfg_pp": SamplerSpec(
            partial(euler_ancestral, cfg_pp=True), gaussian_noise, on_flow=ancestral_cfg_pp_on_flow
        ),
        "heun": SamplerSpec(heun),
        "heunpp2": SamplerSpec(heunpp2),
        "exp_heun_2_x0": SamplerSpec(
            partial(seeds_2, eta=0.0, r=1.0, solver="phi_2"), gaussian_noise, on_flow=by_ratio
        ),
        "exp_heun_2_x0_sde": SamplerSpec(partial(seeds_2, r=1.0, solver="phi_2"), gaussian_noise, on_flow=by_ratio),
        "dpm_2": SamplerSpec(dpm_2, discards_penultimate=True),
        "dpm_2_ancestral": SamplerSpec(dpm_2_ancestral, gaussian_noise, discards_penultimate=True, on_flow=renoised),
        "lms": SamplerSpec(lms),
        "dpm_fast": SamplerSpec(dpm_fast),
        "dpm_adaptive": SamplerSpec(dpm_adaptive, gaussian_noise),
        "dpmpp_2s_ancestral": SamplerSpec(
            dpmpp_2s_ancestral, gaussian_noise, on_flow=partial(renoised, halfway=halfway)
        ),
        "dpmpp_2s_ancestral_cfg_pp": SamplerSpec(partial(dpmpp_2s_ancestral, cfg_pp=True), gaussian_noise),
        # The GPU variants draw their path on the run's device.
        "dpmpp_sde": SamplerSpec(dpmpp_sde, brownian_noise, on_flow=sde_on_flow),
        "dpmpp_sde_gpu": SamplerSpec(dpmpp_sde, _ON_DEVICE, on_flow=sde_on_flow),
        "dpmpp_2m": SamplerSpec(dpmpp_2m),
        "dpmpp_2m_cfg_pp": SamplerSpec(partial(dpmpp_2m, cfg_pp=True)),
        "dpmpp_2m_sde": SamplerSpec(dpmpp_2m_sde, brownian_noise, on_flow=by_ratio),
        "dpmpp_2m_sde_gpu": SamplerSpec(dpmpp_2m_sde, _ON_DEVICE, on_flow=by_ratio),
        "dpmpp_2m_sde_heun": SamplerSpec(partial(dpmpp_2m_sde, solver="heun"), brownian_noise, on_flow=by_ratio),
        "dpmpp_2m_sde_heun_gpu": SamplerSpec(partial(dpmpp_2m_sde, solver="heun"), _ON_DEVICE, on_flow=by_ratio),
        "dpmpp_3m_sde": SamplerSpec(dpmpp_3m_sde, brownian_noise, on_flow=by_ratio),
        "dpmpp_3m_sde_gpu": SamplerSpec(dpmpp_3m_sde, _ON_DEVICE, on_flow=by_ratio),
        # DDPM's posterior step is Euler's ancestral one once x is divided by √ᾱ: Ho et al. 2020, arXiv:2006.11239, (7).
        "ddpm": SamplerSpec(euler_ancestral, gaussian_noise),
        "lcm": SamplerSpec(lcm, gaussian_noise, for_levels=noising),
        "ipndm": SamplerSpec(ipndm),
        "ipndm_v": SamplerSpec(ipndm_v),
        "deis": SamplerSpec(deis),
        "cfgpp_ud10_ab": SamplerSpec(cfgpp_ud10_ab, on_flow=with_less_signal),
        "res_multistep": SamplerSpec(res_multistep),
        "res_multistep_cfg_pp": SamplerSpec(partial(res_multistep, cfg_pp=True)),
        "res_multistep_ancestral": SamplerSpec(res_multistep, gaussian_noise),
        "res_multistep_ancestral_cfg_pp": SamplerSpec(partial(res_multistep, cfg_pp=True), gaussian_noise),
        "gradient_estimation": SamplerSpec(gradient_estimation),
        "gradient_estimation_cfg_pp": SamplerSpec(partial(gradient_estimation, cfg_pp=True)),
        "er_sde": SamplerSpec(er_sde, gaussian_noise, on_flow=by_ratio),
        "seeds_2": SamplerSpec(seeds_2, gaussian_noise, on_flow=by_ratio),
        "seeds_3": SamplerSpec(seeds_3, gaussian_noise, on_flow=by_ratio),
        "sa_solver": SamplerSpec(sa_solver, gaussian_noise, for_levels=stochastic_interval, on_flow=sa_solver_on_flow),
        "sa_solver_pece": SamplerSpec(
            partial(sa_solver, evaluate_corrected=True),
            gaussian_noise,
            for_levels=stochastic_interval,
            on_flow=sa_solver_on_flow,
        ),
        # DDIM with η = 0 is Euler's method once x is divided by √ᾱ: Song et al. 2020, arXiv:2010.02502, section 4.3.
        "ddim": SamplerSpec(euler, fresh_inpaint_noise=True),
        "uni_pc": SamplerSpec(partial(uni_pc, variant="bh1"), discards_penultimate=True, on_flow=unipc_on_flow),
        "uni_pc_bh2": SamplerSpec(partial(uni_pc, variant="bh2"), discards_penultimate=True, on_flow=unipc_on_flow),
    },
)
"""Every sampler by the name clients use, in the order ComfyUI's KSampler lists them."""
