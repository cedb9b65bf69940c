"""Patches of a UNet's layers on rows that share a forward: each row gets what it gets alone, and nothing stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from serve_app.models.unet_patches.unet_layers import with_layers
from serve_app.recipe.guidance import NormalizedAttention
from serve_app.recipe.layers import DeepShrink, FreeU, HyperTile, TokenMerging
from serve_app.sampling.guidance.layers import AttentionMap, Drawn, Opposed, WithoutAttention

SIDE = 16
NAG = NormalizedAttention(4.0, 0.5, 2.0)


@pytest.fixture(scope="module")
def network() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=SIDE,
        block_out_channels=(8, 16, 32),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
        layers_per_block=1,
    ).eval()


def run(network: Any, x: torch.Tensor, rows: Any) -> torch.Tensor:
    context = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(2)).expand(len(x), -1, -1)
    with torch.no_grad(), with_layers(network, rows, (x.shape[-2], x.shape[-1])):
        out: torch.Tensor = network(x, torch.tensor(500), context, return_dict=False)[0]
    return out


def latents(rows: int, height: int = SIDE, width: int = SIDE) -> torch.Tensor:
    return torch.randn(rows, 4, height, width, generator=torch.Generator().manual_seed(1))


def drawn(patch: HyperTile | TokenMerging, seed: int = 5) -> Drawn:
    return Drawn(patch, torch.Generator().manual_seed(seed))


def patches() -> list[tuple[Any, ...]]:
    """Return sets of patches, with generators as they are at a run's beginning."""
    return [
        (),
        (drawn(HyperTile(4, 4, 1, False)),),
        (drawn(TokenMerging(0.5), 6),),
        (WithoutAttention(),),
        (FreeU(1.4, 1.6, 0.9, 0.2), WithoutAttention()),
    ]


def test_rows_with_unequal_patches_get_in_one_forward_what_each_gets_alone(network: Any) -> None:
    x = latents(len(patches()))
    together = run(network, x, [(1, own) for own in patches()])
    plain = run(network, x, [(len(x), ())])
    for i in range(len(x)):
        alone = run(network, x[i : i + 1], [(1, patches()[i])])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-5)
        assert (i == 0) == torch.allclose(together[i], plain[i], atol=1e-3), patches()[i]


def test_nothing_stays_on_the_network(network: Any) -> None:
    x = latents(2)
    before = run(network, x, [(2, ())])
    run(network, x, [(2, (*(patch for own in patches() for patch in own), DeepShrink(2, 2.0, 0, 1, True, *BICUBIC)))])
    assert torch.equal(run(network, x, [(2, ())]), before)
    for module in network.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert "forward" not in module.__dict__


def test_rows_of_one_run_draw_together_though_anothers_lie_between_them(network: Any) -> None:
    x = latents(1).expand(3, -1, -1, -1)
    tiled, other = drawn(HyperTile(4, 4, 0, False)), drawn(HyperTile(4, 4, 0, False), 8)
    first, _, last = run(network, x, [(1, (tiled,)), (1, (other,)), (1, (tiled,))])
    torch.testing.assert_close(first, last, rtol=1e-5, atol=1e-6)


def test_no_latents_have_more_resolutions_to_tile_than_their_size_can_be_halved(network: Any) -> None:
    x = latents(1)
    deep, deeper = (run(network, x, [(1, (drawn(HyperTile(4, 4, depth, False)),))]) for depth in (5, 10**12))
    assert torch.equal(deep, deeper)


def test_a_map_is_of_the_rows_that_leave_it_and_adds_up_to_their_tokens(network: Any) -> None:
    x, alone, shared = latents(3), AttentionMap(), AttentionMap()
    run(network, x, [(1, ()), (2, (shared,))])
    run(network, x[1:], [(2, (alone,))])
    assert shared.received is not None
    assert alone.received is not None
    torch.testing.assert_close(shared.received, alone.received, rtol=1e-4, atol=1e-5)
    tokens = (SIDE // 4) ** 2
    torch.testing.assert_close(shared.received.sum(dim=1), torch.full((2,), float(tokens)), rtol=1e-4, atol=1e-4)


def test_a_positive_is_led_from_the_negative_of_its_own_run_alone(network: Any) -> None:
    x = latents(4)
    mine, others = object(), object()
    led = [(1, (Opposed(NAG, tie, positive),)) for tie, positive in ((mine, True), (others, True))]
    away = [(1, (Opposed(NAG, tie, False),)) for tie in (mine, others)]
    together = run(network, x, [*led, *away])
    for i in (0, 1):
        pair = run(network, x[[i, i + 2]], [led[i], away[i]])
        torch.testing.assert_close(together[[i, i + 2]], pair, rtol=1e-4, atol=1e-5)
        # The negative stays as it is, and so does a positive whose negative is not there.
        torch.testing.assert_close(pair[1:], run(network, x[i + 2 : i + 3], [(1, ())]), rtol=1e-4, atol=1e-5)
        plain = run(network, x[i : i + 1], [(1, ())])
        torch.testing.assert_close(run(network, x[i : i + 1], [led[i]]), plain, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(pair[:1], plain, atol=1e-3)


BICUBIC = ("bicubic", "bicubic")


@pytest.mark.parametrize("block", [-1, *range(1, 8)])
@pytest.mark.parametrize("after_skip", [True, False])
@pytest.mark.parametrize("size", [(16, 16), (24, 8)])
def test_features_that_shrink_grow_again(network: Any, block: int, after_skip: bool, size: tuple[int, int]) -> None:
    x = latents(2, *size)
    shrunk = run(network, x, [(2, (DeepShrink(block, 1.7, 0, 1, after_skip, *BICUBIC),))])
    assert shrunk.shape == x.shape
    # The encoder has 6 blocks: outside of them nothing shrinks.
    assert torch.equal(shrunk, run(network, x, [(2, ())])) == (not 0 <= block <= 5)
