"""How the rows of many jobs become one forward."""

import torch
from torch.nn.functional import scaled_dot_product_attention as attention

from serve_app.models.families.unet import stack_contexts


def test_contexts_of_one_length_are_stacked_without_a_mask():
    stacked, mask = stack_contexts([torch.ones(2, 3, 4), torch.zeros(1, 3, 4)])
    assert stacked.shape == (3, 3, 4)
    assert mask is None


def test_unequal_contexts_are_repeated_to_a_common_length_which_leaves_attention_as_it_is():
    generator = torch.Generator().manual_seed(1)
    query, short, longer = (torch.randn(1, n, 8, generator=generator) for n in (5, 4, 6))
    stacked, mask = stack_contexts([short, longer])
    assert stacked.shape == (2, 12, 8)
    assert mask is None
    for one, own in zip(stacked.split(1), (short, longer), strict=True):
        assert torch.allclose(attention(query, one, one), attention(query, own, own), atol=1e-6)


def test_contexts_whose_common_length_is_too_long_are_padded_to_the_longest_and_masked():
    stacked, mask = stack_contexts([torch.ones(2, 2, 4), torch.ones(1, 5, 4), torch.ones(1, 4, 4)])
    assert mask is not None
    assert mask.sum(dim=1).tolist() == [2, 2, 5, 4]
    assert torch.equal(stacked.bool().all(dim=2), mask)
