"""What MoGe's nodes refuse, where points are, and the files of surfaces; their figures are in `tests/parity/seeing`."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.nodes.geometry.files import save_glb
from serve_app.nodes.geometry.meshes import Mesh, triangulated
from serve_app.nodes.geometry.moge import (
    load_moge_model,
    moge_geometry_to_fov,
    moge_panorama_inference,
    moge_point_map_to_mesh,
)
from serve_app.nodes.geometry.points import focal_of, intrinsics_of, placed, unprojected

HEIGHT, WIDTH = 48, 64


def surface() -> Tensor:
    """Return the depths of a wavy wall."""
    down, across = torch.meshgrid(torch.linspace(0, 3, HEIGHT), torch.linspace(0, 3, WIDTH), indexing="ij")
    return 4 + down.sin() + (2 * across).cos()


def geometry(depth: Tensor) -> dict[str, Any]:
    intrinsics = intrinsics_of(1.5, WIDTH / HEIGHT)
    points = unprojected(depth, intrinsics)
    image = torch.rand(1, HEIGHT, WIDTH, 3)
    return {"image": image, "points": points[None], "depth": depth[None], "intrinsics": intrinsics[None]}


def test_the_focal_length_and_the_distance_of_points_are_found() -> None:
    points = unprojected(surface(), intrinsics_of(1.5, WIDTH / HEIGHT)) - torch.tensor([0, 0, 1.25])
    mask = torch.ones(HEIGHT, WIDTH, dtype=torch.bool)
    assert placed(points, mask, None) == pytest.approx((1.5, 1.25), rel=1e-2)
    assert placed(points, mask, 1.5) == pytest.approx((1.5, 1.25), rel=1e-2)


def test_an_angle_of_view_is_that_of_its_focal_length() -> None:
    found = geometry(surface()) | {"intrinsics": intrinsics_of(focal_of(60.0, WIDTH / HEIGHT), WIDTH / HEIGHT)[None]}
    degrees, pixels = moge_geometry_to_fov(found, "horizontal", "degrees")
    assert degrees == pytest.approx(60)
    assert pixels == pytest.approx(WIDTH / 2 * 3**0.5)
    del found["intrinsics"]
    with pytest.raises(NodeError, match="panorama"):
        moge_geometry_to_fov(found, "horizontal", "degrees")


def test_a_surface_has_holes_where_depths_jump_and_where_none_is() -> None:
    depth = torch.ones(8, 8)
    points = unprojected(depth, intrinsics_of(1.0, 1.0))
    whole = triangulated(points, depth, 1, 0.04)
    assert len(whole.faces) == 2 * 7 * 7
    depth[4:, 4:] = 9
    assert len(triangulated(points, depth, 1, 0.0).faces) == 2 * 7 * 7
    assert 0 < len(triangulated(points, depth, 1, 0.04).faces) < 2 * 7 * 7
    assert len(triangulated(points, depth, 7, 0.0).faces) == 2
    points[0, 0] = torch.inf
    assert len(triangulated(points, depth, 1, 0.0).faces) == 2 * 7 * 7 - 2


def test_an_image_that_is_not_there_and_a_surface_of_nothing_are_refused() -> None:
    found = geometry(surface())
    with pytest.raises(NodeError, match="batch_index is 1; moge_geometry has 1 images"):
        moge_point_map_to_mesh(found, 1, 1, 0.0, True)
    with pytest.raises(NodeError, match="no surface is left"):
        moge_point_map_to_mesh(found | {"points": found["points"] * torch.inf}, 0, 1, 0.0, True)


async def test_several_panoramas_are_refused() -> None:
    with pytest.raises(NodeError, match="2 images; one panorama"):
        await moge_panorama_inference(
            load_moge_model("a.safetensors"),
            torch.zeros(2, 8, 16, 3),
            9,
            512,
            1920,
            4,
            None,  # type: ignore[arg-type]
        )


class Store:
    """STORE that keeps what it is given."""

    def __init__(self) -> None:
        self.saved: list[bytes] = []

    async def save(self, area: str, prefix: str, suffix: str, contents: Sequence[bytes]) -> list[dict[str, str]]:
        self.saved += contents
        return [{"filename": f"{prefix}_00001_{suffix}", "type": area}]


async def test_a_surface_is_saved_as_glb_with_its_picture_and_workflow() -> None:
    found, store = geometry(surface()), Store()
    mesh = moge_point_map_to_mesh(found, 0, 1, 0.0, True)
    shown = await save_glb(mesh, "3d/a", {"1": {}}, None, store)  # type: ignore[arg-type]
    assert shown == {"ui": {"3d": [{"filename": "3d/a_00001_.glb", "type": "output"}]}}
    [data] = store.saved
    assert struct.unpack("<4sII", data[:12]) == (b"glTF", 2, len(data))
    length, kind = struct.unpack("<I4s", data[12:20])
    scene, binary = json.loads(data[20 : 20 + length]), data[28 + length :]
    assert (kind, len(binary)) == (b"JSON", scene["buffers"][0]["byteLength"])
    assert scene["asset"]["extras"] == {"prompt": '{"1": {}}'}

    def view(number: int) -> bytes:
        where = scene["bufferViews"][number]
        return binary[where["byteOffset"] : where["byteOffset"] + where["byteLength"]]

    [part] = scene["meshes"][0]["primitives"]
    position = scene["accessors"][part["attributes"]["POSITION"]]
    vertices = torch.frombuffer(bytearray(view(position["bufferView"])), dtype=torch.float32).view(-1, 3)
    assert torch.equal(vertices, mesh.vertices)
    assert position["max"] == pytest.approx(vertices.amax(0).tolist())
    indices = torch.frombuffer(bytearray(view(scene["accessors"][part["indices"]]["bufferView"])), dtype=torch.int32)
    assert torch.equal(indices.view(-1, 3).long(), mesh.faces)
    with Image.open(io.BytesIO(view(scene["images"][0]["bufferView"]))) as picture:
        assert picture.size == (WIDTH, HEIGHT)


async def test_what_is_no_surface_is_not_saved() -> None:
    with pytest.raises(NodeError, match="mesh is a dict"):
        await save_glb({}, "a", {}, None, Store())  # type: ignore[arg-type]


def test_a_surface_without_a_picture_has_none_in_its_file() -> None:
    mesh = moge_point_map_to_mesh(geometry(surface()), 0, 4, 0.0, False)
    assert isinstance(mesh, Mesh)
    assert mesh.picture is None
