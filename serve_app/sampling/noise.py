"""A job's noise: drawn on the CPU from its seed alone, so neither batching nor the device changes it.

How it is added to latents is the model's to say (`levels`).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.sampling.brownian import BrownianPath
from serve_app.sampling.evaluation import NoiseSource
from serve_app.values import Noise

SEEDS = 2**64
"""Seeds are taken modulo this."""


def noise(shape: Sequence[int], seed: int, batch_index: Sequence[int] | None = None) -> Tensor:
    """Return unit-variance noise of a shape (B,C,h,w), float32 on the CPU.

    batch_index: for each of the B latents, which noise of the seed's sequence it takes; indices may repeat. None draws
    the B at once, which for latents of a few values is another sequence. Source: ComfyUI's noise for a seed.
    """
    return _drawn(shape, torch.Generator().manual_seed(seed % SEEDS), batch_index)


def after_noise(shape: Sequence[int], seed: int, batch_index: Sequence[int] | None = None) -> torch.Generator:
    """Return the seed's generator as `noise` leaves it, from which a network's layers draw in ComfyUI."""
    generator = torch.Generator().manual_seed(seed % SEEDS)
    _drawn(shape, generator, batch_index)
    return generator


def _drawn(shape: Sequence[int], generator: torch.Generator, batch_index: Sequence[int] | None) -> Tensor:
    if batch_index is None:
        return torch.randn(tuple(shape), generator=generator)
    drawn = [torch.randn((1, *shape[1:]), generator=generator) for _ in range(max(batch_index) + 1)]
    return torch.cat([drawn[i] for i in batch_index])


def drawn(given: Noise, latents: Tensor, batch_index: Sequence[int] | None = None) -> Tensor:
    """Return what a NOISE is for latents, float32 on the CPU; zero where it adds none. Errors: NodeError.

    batch_index: as `noise`.
    """
    if given.draw is not None:
        made = given.draw(latents, batch_index)
        if made.shape[1:] != latents.shape[1:] or made.shape[0] not in (1, latents.shape[0]):
            of, to = ("×".join(map(str, t.shape)) for t in (made, latents))
            raise NodeError(f"a node pack made noise {of} for latents {to}; their shapes must agree")
        return made.to("cpu", torch.float32).expand_as(latents)
    return noise(latents.shape, given.seed, batch_index) if given.added else torch.zeros(latents.shape)


def gaussian_noise(x: Tensor, _sigmas: Tensor, seed: int) -> NoiseSource:
    """Return a source of independent noise shaped as x, the same on every device for a seed.

    It is that of the seed after the run's, as in ComfyUI on a CPU: the run's own begins with the noise that x has.
    """
    generator = torch.Generator().manual_seed((seed + 1) % SEEDS)

    def draw(_sigma: float, _following: float) -> Tensor:
        return torch.randn(x.shape, generator=generator).to(x.device)

    return draw


def brownian_noise(x: Tensor, sigmas: Tensor, seed: int) -> NoiseSource:
    """Return a source whose noise between two levels is the increment of one Brownian path over sigma, shaped as x.

    So a step and its stages meet the same noise, and so do runs of other step counts between the same levels.
    """
    path: BrownianPath | None = None

    def draw(sigma: float, following: float) -> Tensor:
        nonlocal path
        if path is None:
            path = BrownianPath(x.shape, float(sigmas[sigmas > 0].min()), float(sigmas.max()), seed % SEEDS)
        return ((path.at(following) - path.at(sigma)) / sqrt(abs(following - sigma))).to(x.device)

    return draw
