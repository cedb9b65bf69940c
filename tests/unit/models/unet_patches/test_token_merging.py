"""Which tokens are merged, and that each gets back what became of it."""

from __future__ import annotations

import pytest
import torch

from serve_app.models.unet_patches.token_merging import merging


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("size", [(4, 6), (5, 7)])
def test_without_likeness_nothing_but_the_count_of_tokens_is_lost(size: tuple[int, int]) -> None:
    tokens, count = size[0] * size[1], 6
    features = torch.randn(2, tokens, 8, generator=seeded())
    merge = merging(size, count, seeded())
    assert merge is not None
    merged, back = merge(features, features)
    assert merged.shape == (2, tokens - count, 8)
    whole = back(merged)
    same = (whole == features).all(dim=-1)
    # What was merged, and what others were merged into, is now their mean; all the rest is as it was.
    assert bool((same.sum(dim=1) >= tokens - 2 * count).all())
    assert bool((~same).any())


def test_equal_tokens_are_merged_without_loss() -> None:
    features = torch.randn(1, 1, 8, generator=seeded()).expand(2, 16, -1).contiguous()
    merge = merging((4, 4), 9, seeded())
    assert merge is not None
    merged, back = merge(features, features)
    torch.testing.assert_close(back(merged), features)


def test_the_ones_most_alike_are_merged_first() -> None:
    features = torch.eye(16)[None].clone()
    into = merging((4, 4), 1, seeded())
    assert into is not None
    # One that is left as it is becomes equal to one that others may be merged into.
    probe, _ = into(features, features)
    left, drawn = probe[0, 0].argmax(), next(row.argmax() for row in probe[0, -4:] if row.max() == 1)
    features[0, left] = features[0, drawn]
    again = merging((4, 4), 1, seeded())
    assert again is not None
    merged, back = again(features, features)
    torch.testing.assert_close(back(merged), features)


@pytest.mark.parametrize(("size", "count"), [((4, 4), 0), ((1, 16), 5), ((16, 1), 5)])
def test_nothing_to_merge(size: tuple[int, int], count: int) -> None:
    assert merging(size, count, seeded()) is None
