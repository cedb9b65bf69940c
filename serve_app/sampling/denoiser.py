"""How a network's output becomes D(x, sigma), the denoised latents every sampler works with.

One class a kind of prediction; σ_data is 1, as latent diffusion models are trained. No network is known here.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Prediction(Protocol):
    """What a network was trained to predict. x and output are (R,C,h,w); sigma is (R,), one level a row."""

    def scale_input(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return what the network is fed for x at sigma."""
        ...

    def denoised(self, x: Tensor, output: Tensor, sigma: Tensor) -> Tensor:
        """Return D(x, sigma) from the network's output for the scaled x."""
        ...


def per_row(sigma: Tensor, x: Tensor) -> Tensor:
    """Return sigma (R,) shaped to multiply the rows of x."""
    return sigma.view(-1, *(1,) * (x.ndim - 1))


class EPS:
    """The network predicts the noise: x = denoised + sigma·eps. Its input has unit variance.

    Source: Ho et al. 2020, arXiv:2006.11239, with the scaling of Karras et al. 2022, arXiv:2206.00364, Table 1 (VE).
    """

    @staticmethod
    def scale_input(x: Tensor, sigma: Tensor) -> Tensor:
        """Return x divided by √(sigma² + 1)."""
        return x / per_row((sigma**2 + 1).sqrt(), x)

    @staticmethod
    def denoised(x: Tensor, output: Tensor, sigma: Tensor) -> Tensor:
        """Return x − sigma·eps."""
        return x - output * per_row(sigma, x)
