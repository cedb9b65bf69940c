"""What Depth Anything 3's nodes refuse and choose; what they compute is in `tests/parity/seeing`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from serve_app.errors import NodeError
from serve_app.nodes.geometry.depth_anything3 import da3_inference, da3_render, load_da3_model
from serve_app.recipe.weights import ComputedIn
from tests.parity.seeing.cases import views

IMAGES = torch.zeros(2, 28, 42, 3)


class Runtime:
    """RUNTIME of a network that is never loaded."""

    def __init__(self, *, together: bool = True, cameras: bool = True) -> None:
        self.found = SimpleNamespace(together=together, cameras=cameras)

    async def family(self, recipe: Any) -> Any:
        return self.found

    async def ask_image_model(self, model: Any, batches: Any, **asked: Any) -> Any:
        raise AssertionError("the network was asked")


async def asked(mode: dict[str, str], runtime: Any) -> Any:
    model = load_da3_model("a.safetensors", "default")
    return await da3_inference(model, IMAGES, 140, "upper_bound_resize", mode, runtime)


def test_a_dtype_is_a_change_of_the_recipe() -> None:
    assert load_da3_model("a.safetensors", "default").patches == ()
    assert load_da3_model("a.safetensors", "bf16").patches == (ComputedIn("bf16"),)


async def test_a_network_of_single_views_is_refused_several_before_it_is_loaded() -> None:
    with pytest.raises(NodeError, match=r"'a\.safetensors' looks at single views"):
        await asked(views("first"), Runtime(together=False))


async def test_cameras_by_rays_are_refused() -> None:
    for mode, cameras in (({**views("first"), "pose_method": "ray_pose"}, True), (views("first"), False)):
        with pytest.raises(NodeError, match="ray_pose"):
            await asked(mode, Runtime(cameras=cameras))


@pytest.mark.parametrize(("output", "lacking"), [("sky_mask", "sky"), ("confidence", "confidence")])
def test_what_a_network_did_not_find_is_not_drawn(output: str, lacking: str) -> None:
    with pytest.raises(NodeError, match=f"no {lacking}; the .* models"):
        da3_render({"depth": torch.ones(1, 4, 4)}, {"output": output, "colored": False})
    sky = {"output": "depth", "normalization": "raw", "apply_sky_clip": True}
    with pytest.raises(NodeError, match="no sky"):
        da3_render({"depth": torch.ones(1, 4, 4)}, sky)


def test_depths_without_sky_are_drawn_from_percentile_to_percentile_near_ones_bright() -> None:
    depth = torch.arange(101.0).view(1, 1, 101)
    drawn = da3_render({"depth": depth}, {"output": "depth", "normalization": "v2_style", "apply_sky_clip": False})
    assert drawn.shape == (1, 1, 101, 3)
    assert torch.allclose(drawn[0, 0, [0, 1, 50, 99, 100], 0], torch.tensor([1.0, 1.0, 0.5, 0.0, 0.0]))
