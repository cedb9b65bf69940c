"""How the rows of many jobs become one forward."""

import torch

from serve_app.models.families.unet import stack_contexts


def test_contexts_of_one_length_are_stacked_without_a_mask():
    stacked, mask = stack_contexts([torch.ones(2, 3, 4), torch.zeros(1, 3, 4)])
    assert stacked.shape == (3, 3, 4)
    assert mask is None


def test_shorter_contexts_are_padded_to_the_longest_and_masked():
    stacked, mask = stack_contexts([torch.ones(2, 1, 4), torch.ones(1, 3, 4)])
    assert mask is not None
    assert mask.tolist() == [[True, False, False], [True, False, False], [True, True, True]]
    assert torch.equal(stacked.bool().all(dim=2), mask)
