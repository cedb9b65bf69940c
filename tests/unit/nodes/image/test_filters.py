"""The nodes that filter images, where their numbers are known without ComfyUI."""

from __future__ import annotations

import torch

from serve_app.nodes.image.filters import marigold_v2_post_process


def test_estimates_become_pictures() -> None:
    image = torch.tensor([[[[0.2, 0.2, 0.2], [0.6, 0.6, 0.6], [1.0, 1.0, 1.0]]]])
    depth = marigold_v2_post_process(image, "depth")
    torch.testing.assert_close(depth[0, 0, :, 0], torch.tensor([1.0, 0.5, 0.0]))
    assert depth.shape == image.shape
    torch.testing.assert_close(marigold_v2_post_process(image, "disparity"), 1 - depth)
    normals = marigold_v2_post_process(torch.tensor([[[[1.0, 0.5, 0.5], [1.0, 1.0, 0.5]]]]), "normals")
    torch.testing.assert_close(normals[0, 0, 0], torch.tensor([1.0, 0.5, 0.5]))
    torch.testing.assert_close((normals * 2 - 1).norm(dim=-1), torch.ones(1, 1, 2))
    albedo = marigold_v2_post_process(torch.tensor([[[[0.0, 0.001, 1.0]]]]), "albedo")
    torch.testing.assert_close(albedo[0, 0, 0], torch.tensor([0.0, 0.01292, 1.0]))
