"""FreeU on rows that share a forward, with a small network of diffusers' kind."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel

from serve_app.models.unet_patches.freeu import with_freeu
from serve_app.recipe.layers import FreeU

FIRST, SECOND = FreeU(1.4, 1.6, 0.9, 0.2), FreeU(1.3, 1.4, 0.8, 0.4, adaptive=True)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
        layers_per_block=1,
    ).eval()


def run(network, x, features):
    generator = torch.Generator().manual_seed(2)
    context = torch.randn(1, 3, 8, generator=generator).expand(len(x), -1, -1)
    with torch.no_grad(), with_freeu(network, features):
        return network(x, torch.tensor(500), context, return_dict=False)[0]


def test_rows_with_unequal_freeu_get_in_one_forward_what_each_gets_alone(network):
    x = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    sets = [(FIRST,), (), (SECOND,), (FIRST, SECOND)]
    together = run(network, x, [(1, patches) for patches in sets])
    for i, patches in enumerate(sets):
        torch.testing.assert_close(
            together[i : i + 1], run(network, x[i : i + 1], [(1, patches)]), rtol=1e-4, atol=1e-5
        )
    assert not torch.allclose(together[0], run(network, x[:1], [(1, ())])[0], atol=1e-3)


def test_factors_of_one_change_nothing_and_nothing_stays_on_the_network(network):
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    plain = run(network, x, [(2, ())])
    torch.testing.assert_close(run(network, x, [(2, (FreeU(1, 1, 1, 1),))]), plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(run(network, x, [(2, ())]), plain, rtol=0, atol=0)
    assert not any(module._forward_pre_hooks for module in network.modules())
