"""Nodes of custom sampling that need no network."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
import torch

from serve_app.execution.runtime import Runtime
from serve_app.nodes.registry import BUILTIN
from serve_app.nodes.sampling.custom import add_noise
from serve_app.recipe.recipe import Recipe
from serve_app.sampling.latents.latents import LatentFormat
from serve_app.sampling.noise import noise
from serve_app.sampling.schedules.levels import FlowLevels, Levels
from serve_app.values import Noise

FORMAT = LatentFormat(16, scale=0.5, shift=1.0)


class OfAFlow:
    """What AddNoise asks of a runtime whose only backbone is a flow's."""

    async def levels(self, backbone: Recipe) -> Levels:
        return FlowLevels(3.0, 1.0)

    async def latent_format(self, backbone: Recipe) -> LatentFormat:
        return FORMAT


def noisy(latent: dict[str, Any], sigmas: list[float], *, added: bool = True) -> torch.Tensor:
    """Return the samples that AddNoise makes with seed 3."""
    model, runtime = Recipe("backbone", "checkpoints", "a"), cast(Runtime, OfAFlow())
    node = add_noise(model, Noise(3, added), torch.tensor(sigmas), latent, runtime)
    samples: torch.Tensor = asyncio.run(node)["samples"]
    return samples


def test_on_a_flow_noise_takes_the_place_of_latents():
    latents = torch.full((1, 16, 2, 2), 3.0)
    expected = (0.6 * 1.0 + 0.4 * noise(latents.shape, 3)) / 0.5 + 1.0
    torch.testing.assert_close(noisy({"samples": latents}, [0.7, 0.5, 0.3]), expected)


@pytest.mark.parametrize("added", [True, False])
def test_on_a_flow_empty_latents_count_as_the_middle_of_those_of_images(added):
    empty = torch.zeros(1, 16, 2, 2)
    drawn = noise(empty.shape, 3) if added else empty
    torch.testing.assert_close(noisy({"samples": empty}, [1.0], added=added), drawn / 0.5 + 1.0)


@pytest.mark.parametrize(
    ("solver", "eta", "options"),
    [
        ("ER-SDE", 1.0, {"s_noise": 0.5, "power": 1.0}),
        ("ER-SDE", 0.4, {"s_noise": 0.5, "power": 0.4}),
        ("Reverse-time SDE", 0.4, {"s_noise": 0.5, "eta": 0.4}),
        ("ODE", 0.4, {"s_noise": 0.0, "eta": 0.0}),
        ("ER-SDE", 0.0, {"s_noise": 0.0, "eta": 0.0}),
    ],
)
def test_er_sdes_noise_is_scaled_by_eta_on_either_sde_and_none_makes_it_the_ode(solver, eta, options) -> None:
    node = BUILTIN["SamplerER_SDE"]()
    (choice,) = getattr(node, node.FUNCTION)(solver_type=solver, max_stage=2, eta=eta, s_noise=0.5)
    assert choice.options == {"stages": 2, **options}
