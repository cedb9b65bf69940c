"""The nodes that lay one picture over another, where the answer is known without ComfyUI."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from serve_app.errors import NodeError
from serve_app.nodes.image.alpha import join_image_with_alpha, porter_duff_image_composite, split_image_with_alpha
from serve_app.nodes.image.compositing import image_composite_masked, latent_composite, latent_composite_masked


def over(above: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
    """Lay one image with alpha over another."""
    (a, a_mask), (b, b_mask) = (split_image_with_alpha(x) for x in (above, below))
    seen, mask = porter_duff_image_composite(a, a_mask, b, b_mask, "SRC_OVER")
    return join_image_with_alpha(seen, mask)


def test_laying_over_is_associative() -> None:
    a, b, c = torch.rand(3, 2, 5, 7, 4) * 0.9 + 0.1
    torch.testing.assert_close(over(over(a, b), c), over(a, over(b, c)), rtol=0, atol=2e-6)


@pytest.mark.parametrize("mode", ["ADD", "DST", "DST_OUT", "DST_OVER", "SCREEN", "SRC_ATOP", "SRC_OVER", "XOR"])
def test_a_transparent_source_leaves_the_destination(mode: str) -> None:
    source, destination = torch.rand(2, 1, 4, 5, 3)
    mask = torch.rand(1, 4, 5) * 0.9
    seen, out = porter_duff_image_composite(source, torch.ones(1, 4, 5), destination, mask, mode)
    torch.testing.assert_close(seen, destination)
    torch.testing.assert_close(out, mask)


@pytest.mark.parametrize("mode", ["CLEAR", "DST_IN", "MULTIPLY", "SRC", "SRC_IN", "SRC_OUT"])
def test_a_transparent_source_leaves_nothing(mode: str) -> None:
    source, destination = torch.rand(2, 1, 4, 5, 3)
    seen, out = porter_duff_image_composite(source, torch.ones(1, 4, 5), destination, torch.rand(1, 4, 5), mode)
    assert not seen.any()
    assert torch.equal(out, torch.ones(1, 4, 5))


def test_images_of_which_one_has_alpha_are_refused_with_their_channels() -> None:
    rgb, rgba, mask = torch.rand(1, 2, 2, 3), torch.rand(1, 2, 2, 4), torch.zeros(1, 2, 2)
    with pytest.raises(NodeError, match="source has 3 channels and destination 4: they must be equal"):
        porter_duff_image_composite(rgb, mask, rgba, mask, "SRC")


def test_an_image_split_from_its_alpha_joins_it_again() -> None:
    image = torch.rand(2, 5, 7, 4)
    joined = join_image_with_alpha(*split_image_with_alpha(image))
    torch.testing.assert_close(joined, image, rtol=0, atol=1e-6)


def test_a_source_without_alpha_is_opaque_on_a_destination_with() -> None:
    below, above = torch.rand(1, 4, 4, 4), torch.rand(1, 2, 2, 3)
    out = image_composite_masked(below, above, 1, 1, False)
    assert torch.equal(out[:, 1:3, 1:3, :3], above)
    assert torch.equal(out[:, 1:3, 1:3, 3], torch.ones(1, 2, 2))
    assert torch.equal(out[:, 0], below[:, 0])


@pytest.mark.parametrize(("x", "y"), [(88, 0), (0, 72), (800, 800)])
def test_a_latent_laid_outside_another_changes_nothing(x: int, y: int) -> None:
    below: dict[str, Any] = {"samples": torch.rand(2, 4, 9, 11), "batch_index": [4, 5]}
    above = {"samples": torch.rand(1, 4, 3, 3)}
    for out in (
        latent_composite(below, above, x, y, 16),
        latent_composite(below, above, x, y, 0),
        latent_composite_masked(below, above, x, y, False, torch.ones(3, 3)),
    ):
        assert torch.equal(out["samples"], below["samples"])
        assert out["batch_index"] == [4, 5]


def test_a_latent_fades_in_at_the_edges_that_lie_inside_the_other() -> None:
    below, above = {"samples": torch.zeros(1, 1, 1, 8)}, {"samples": torch.ones(1, 1, 1, 8)}
    out = latent_composite(below, above, 16, 0, 32)
    assert out["samples"].flatten().tolist() == [0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
