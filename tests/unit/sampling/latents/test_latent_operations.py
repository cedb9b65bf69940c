"""What the operations on latents keep, and what they change."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch.nn.functional import cosine_similarity

from serve_app.sampling.latents.latent_operations import ReinhardTonemap, Sharpening


def test_tonemapping_keeps_directions_and_the_order_of_lengths() -> None:
    torch.manual_seed(0)
    latents = torch.randn(2, 4, 6, 7) * torch.rand(2, 1, 6, 7) * 9
    out = ReinhardTonemap(0.7)(latent=latents, sigma=3)
    torch.testing.assert_close(cosine_similarity(latents, out, dim=1), torch.ones(2, 6, 7))
    before, after = latents.norm(dim=1).flatten(1), out.norm(dim=1).flatten(1)
    assert torch.equal(before.argsort(), after.argsort())
    assert (after < before).all()


def test_a_tonemap_with_a_far_top_changes_nothing() -> None:
    latents = torch.randn(2, 4, 6, 7)
    torch.testing.assert_close(ReinhardTonemap(1e6)(latent=latents), latents, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 5.0])
def test_sharpening_changes_nothing_where_all_points_the_same_way(alpha: float) -> None:
    latents = torch.randn(2, 4, 1, 1) * (torch.rand(2, 1, 9, 11) + 0.5)
    torch.testing.assert_close(Sharpening(3, 1.0, alpha)(latent=latents), latents, rtol=1e-4, atol=1e-4)


def test_sharpening_widens_the_step_at_an_edge() -> None:
    latents = torch.ones(1, 2, 8, 8)
    latents[:, 0, :, 4:] = -1
    row = Sharpening(1, 1.0, 0.1)(latent=latents)[0, 0, 4]
    assert row[3] > row[0] > 0
    assert row[4] < row[7] < 0


def test_an_operation_travels_to_another_process() -> None:
    latents = torch.randn(1, 4, 9, 9)
    for operation in (Sharpening(2, 1.0, 0.1), ReinhardTonemap(1.0)):
        assert torch.equal(pickle.loads(pickle.dumps(operation))(latent=latents), operation(latent=latents))
