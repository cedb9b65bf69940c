"""How a network's output becomes D(x, sigma), the denoised latents that samplers work with.

One class for each kind of prediction, and the mapping from training to prediction and noise levels. σ_data is 1 unless
stated, as latent diffusion models are trained. No network is known here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from typing import NamedTuple, Protocol

import torch

from serve_app.errors import NodeError
from serve_app.recipe.training import ContinuousEdm, ContinuousV, Discrete, Flow, FluxFlow, Training
from serve_app.sampling.schedules.levels import (
    AngleLevels,
    EdmLevels,
    FlowLevels,
    FluxLevels,
    ImageToImageLevels,
    Levels,
    TableLevels,
)


class Scaling(NamedTuple):
    """Preconditioning at one level: D(x, sigma) = c_skip·x + c_out·F(c_in·x) for a network F.

    Source: Karras et al. 2022, arXiv:2206.00364, equation 7, for any prediction.
    """

    c_in: float
    c_skip: float
    c_out: float


class Prediction(Protocol):
    """What a network was trained to predict."""

    def scaling(self, sigma: float) -> Scaling:
        """Return the coefficients of D(x, sigma) at a level."""
        ...


class EPS:
    """The network predicts the noise: x = denoised + sigma·eps. Its input has unit variance.

    Source: Ho et al. 2020, arXiv:2006.11239, with the scaling of Karras et al. 2022, arXiv:2206.00364, Table 1 (VE).
    """

    @staticmethod
    def scaling(sigma: float) -> Scaling:
        return Scaling(1 / sqrt(sigma**2 + 1), 1.0, -sigma)


@dataclass(frozen=True, slots=True)
class V:
    """The network predicts v, a mixture of noise and image of unit variance at every level.

    Source: Salimans and Ho 2022, arXiv:2202.00512, Appendix D, written for x = denoised + sigma·eps.
    """

    sigma_data: float = 1.0

    def scaling(self, sigma: float) -> Scaling:
        total = sigma**2 + self.sigma_data**2
        return Scaling(1 / sqrt(total), self.sigma_data**2 / total, -sigma * self.sigma_data / sqrt(total))


class Edm(V):
    """The network predicts what c_skip·x lacks to be the image: −v.

    Source: Karras et al. 2022, arXiv:2206.00364, Table 1.
    """

    def scaling(self, sigma: float) -> Scaling:
        of_v = V(self.sigma_data).scaling(sigma)
        return of_v._replace(c_out=-of_v.c_out)


class X0:
    """The network predicts the denoised latents; its input is scaled as for a noise prediction."""

    @staticmethod
    def scaling(sigma: float) -> Scaling:
        return Scaling(EPS.scaling(sigma).c_in, 0.0, 1.0)


class ImgToImg:
    """The network maps latents to latents, without scaling."""

    @staticmethod
    def scaling(sigma: float) -> Scaling:
        return Scaling(1.0, 0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Lcm:
    """A noise prediction adjusted so that D(x, 0) = x, as latent consistency models are distilled.

    Source: Luo et al. 2023, arXiv:2310.04378, equation 9 with σ_data = 0.5 and timesteps scaled by 10.
    """

    levels: Levels

    def scaling(self, sigma: float) -> Scaling:
        t = float(self.levels.timestep(torch.tensor(sigma, dtype=torch.float32))) * 10.0
        total = t**2 + 0.25
        of_eps, bent = EPS.scaling(sigma), t / sqrt(total)
        return Scaling(of_eps.c_in, bent + 0.25 / total, bent * of_eps.c_out)


class Velocity:
    """The network predicts the velocity noise − latents from unscaled x.

    Source: Liu et al. 2022, arXiv:2209.03003, equation 1, with time running towards noise.
    """

    @staticmethod
    def scaling(sigma: float) -> Scaling:
        return Scaling(1.0, 1.0, -sigma)


_LCM_STRIDE = 20
"""Latent consistency models are distilled on 50 of the 1000 timesteps."""


@lru_cache(maxsize=64)
def trained(training: Training) -> tuple[Levels, Prediction]:
    """Return the noise levels and the prediction of a kind of training.

    Errors: NodeError for an unknown prediction, or invalid levels.
    """
    match training:
        case Discrete("lcm", zsnr, even):
            levels = TableLevels(zsnr=zsnr, stride=_LCM_STRIDE, even=even)
            return levels, Lcm(levels)
        case Discrete("img_to_img_flow", zsnr, even):
            return ImageToImageLevels(zsnr=zsnr, even=even), ImgToImg()
        case Discrete(name, zsnr, even) if (prediction := _DISCRETE.get(name)) is not None:
            return TableLevels(zsnr=zsnr, even=even), prediction
        case ContinuousEdm(name, high, low) if (prediction := _CONTINUOUS.get(name)) is not None:
            return EdmLevels(*_between(high, low)), prediction
        case ContinuousV(high, low):
            return AngleLevels(*_between(high, low)), V()
        case Flow(shift, multiplier):
            if not (shift > 0 and multiplier > 0):
                raise NodeError(f"shift {shift:g} and multiplier {multiplier:g} of a flow must be above 0")
            return FlowLevels(shift, multiplier), Velocity()
        case FluxFlow(mu):
            return FluxLevels(mu), Velocity()
    known = ", ".join(("lcm", "img_to_img_flow", *_DISCRETE) if isinstance(training, Discrete) else _CONTINUOUS)
    raise NodeError(f"prediction '{training.prediction}' is not supported; supported are {known}")


def _between(sigma_max: float, sigma_min: float) -> tuple[float, float]:
    if not 0 < sigma_min <= sigma_max:
        raise NodeError(f"sigma_min {sigma_min} and sigma_max {sigma_max} leave no levels: 0 < sigma_min <= sigma_max")
    return sigma_max, sigma_min


_DISCRETE: dict[str, Prediction] = {"eps": EPS(), "v_prediction": V(), "x0": X0(), "img_to_img": ImgToImg()}
_CONTINUOUS: dict[str, Prediction] = {
    "v_prediction": V(),
    "edm": Edm(0.5),
    "edm_playground_v2.5": Edm(0.5),
    "eps": EPS(),
}
