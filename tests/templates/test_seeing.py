"""Templates of networks that look at pictures, over HTTP, with tiny files under the published names."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from serve_app.models.families.unet.sdpose import SdPose
from serve_app.models.families.vision.birefnet import BiRefNet
from serve_app.models.families.vision.rt_detr import RtDetr4
from serve_app.nodes.video.value import VideoFromFile
from tests.parity.seeing.cases import BIREFNET_SIDE
from tests.parity.seeing.found_cases import RT_DETR_QUERIES, RT_DETR_SIDE, SDPOSE_SIZE
from tests.templates.test_templates import prompt_of, ran, saved_of

PICTURES = {
    "utility_depth_anything3_image_depth_estimation": 1,
    "utility_moge_depth_estimation": 3,
    "utility_birefnet_remove_background": 2,
}
"""Templates that make pictures, and how many."""


@contextmanager
def looking_small() -> Iterator[None]:
    """Have networks that look at pictures of one large size look at small ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BiRefNet, "image_size", BIREFNET_SIDE)
        patch.setattr(SdPose, "image_size", SDPOSE_SIZE)
        patch.setattr(RtDetr4, "image_size", RT_DETR_SIDE)
        patch.setattr(RtDetr4, "queries", RT_DETR_QUERIES)
        yield


@pytest.fixture(autouse=True)
def _small() -> Iterator[None]:
    with looking_small():
        yield


def finding_all() -> dict[str, Any]:
    """Return a template's workflow of poses, in which networks that know nothing are sure enough of what they find."""
    prompt = prompt_of("utility_sdpose_multi_person")
    for node in prompt.values():
        if node["class_type"] == "RTDETR_detect":
            node["inputs"].update(threshold=0.0, class_name="all")
        if node["class_type"] == "SDPoseDrawKeypoints":
            node["inputs"]["score_threshold"] = 0.0
    return prompt


@pytest.mark.parametrize("name", PICTURES)
async def test_a_template_draws_what_a_network_sees_in_a_picture(name: str, tmp_path: Path) -> None:
    async with ran(prompt_of(name), tmp_path) as (client, outputs):
        drawn = [image for output in outputs.values() for image in output.get("images", ())]
        assert len(drawn) == PICTURES[name]
        for one in drawn:
            picture = await client.get("/api/view", params=one)
            with Image.open(io.BytesIO(picture.content)) as image:
                assert image.size == (256, 256)
                assert len(image.convert("L").getcolors(256) or ()) > 1, "it is of one colour"


@pytest.mark.long  # twenty times what the picture above is
async def test_a_template_draws_the_depths_of_a_video(tmp_path: Path) -> None:
    prompt = prompt_of("utility_depth_anything3_video_depth_estimation")
    for node in prompt.values():
        if node["class_type"] == "DA3Inference":
            node["inputs"]["resolution"] = 140
    async with ran(prompt, tmp_path) as (client, outputs):
        [saved] = saved_of(outputs)
        made = VideoFromFile((await client.get("/api/view", params=saved)).content).get_components()
    assert len(made.images) == 20
    assert made.images.std() > 0.01, "it is of one colour"


async def test_a_template_saves_the_surface_of_a_picture(tmp_path: Path) -> None:
    prompt = prompt_of("3d_moge_perspective_to_mesh")
    for node in prompt.values():
        if node["class_type"] == "MoGeInference":
            node["inputs"]["resolution_level"] = 0
        if node["class_type"] == "MoGePointMapToMesh":
            # The surface of a network that knows nothing is all jumps.
            node["inputs"]["discontinuity_threshold"] = 0.0
    async with ran(prompt, tmp_path) as (client, outputs):
        [saved] = [one for output in outputs.values() for one in output.get("3d", ())]
        made = (await client.get("/api/view", params=saved)).content
    assert made[:4] == b"glTF"


async def test_a_template_makes_frames_between_those_of_a_video(tmp_path: Path) -> None:
    async with ran(prompt_of("utility_video_frame_interpolation"), tmp_path) as (client, outputs):
        [saved] = saved_of(outputs)
        made = VideoFromFile((await client.get("/api/view", params=saved)).content).get_components()
    assert len(made.images) == 2 * 20 - 1
    assert made.images.std() > 0.01, "it is of one colour"


async def test_a_template_draws_the_poses_of_people_that_are_found_in_a_picture(tmp_path: Path) -> None:
    async with ran(finding_all(), tmp_path) as (client, outputs):
        drawn = [image for output in outputs.values() for image in output.get("images", ())]
        assert drawn
        picture = await client.get("/api/view", params=drawn[0])
        with Image.open(io.BytesIO(picture.content)) as image:
            assert len(image.convert("L").getcolors(1 << 16) or ()) > 1, "it is of one colour"


@pytest.mark.long  # twenty times what the picture above is
async def test_a_template_draws_poses_of_a_video(tmp_path: Path) -> None:
    async with ran(prompt_of("utility_sdpose_ood_video_to_pose_map"), tmp_path) as (client, outputs):
        [saved] = saved_of(outputs)
        made = VideoFromFile((await client.get("/api/view", params=saved)).content).get_components()
    assert len(made.images) == 20
