"""MESH, a surface of triangles, the grids of points that are made into one, and its files in GLB.

Source of the format: Khronos, glTF 2.0.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from serve_app.images import to_png
from serve_app.nodes.geometry.maps import LEAST
from serve_app.nodes.inputs import InputType

FLOAT, UNSIGNED = 5126, 5125
VERTICES, INDICES = 34962, 34963
LINEAR, TO_EDGE = 9729, 33071
PLAIN = 0.22
"""The grey of a surface without a picture."""


@dataclass(frozen=True, slots=True, eq=False)
class Mesh:
    """A surface. vertices: (N,3), y up and z towards who looks; faces: (F,3) numbers of vertices.

    uvs: (N,2), where each vertex is in the picture (H,W,3); None without one.
    """

    vertices: Tensor
    faces: Tensor
    uvs: Tensor
    picture: Tensor | None = None


MESH: TypeAlias = Annotated[Mesh, InputType("MESH")]


def triangulated(points: Tensor, depth: Tensor, stride: int, gap: float) -> Mesh:
    """Return the surface of a grid of points (H,W,3), without those that are infinite.

    stride: of the points that become vertices. gap: the share of its depth by which the neighbourhood of a point may
    differ in it, beyond which the surface has a hole there; 0 for any. depth: (H,W).
    """
    there = points.isfinite().all(-1)
    if gap > 0:
        known = torch.where(there, depth, torch.zeros_like(depth))[None, None]
        span = max_pool2d(known, 3, stride=1, padding=1) + max_pool2d(-known, 3, stride=1, padding=1)
        there = there & ~((span / known.clamp(min=LEAST)).nan_to_num() > gap)[0, 0]
    points, there = points[::stride, ::stride], there[::stride, ::stride]
    height, width = there.shape
    numbers = torch.full((height, width), -1)
    numbers[there] = torch.arange(int(there.sum()))
    across, down = torch.arange(width) / max(width - 1, 1), torch.arange(height) / max(height - 1, 1)
    uvs = torch.stack(torch.meshgrid(across, down, indexing="xy"), dim=-1)
    corners = (numbers[:-1, :-1], numbers[:-1, 1:], numbers[1:, 1:], numbers[1:, :-1])
    squares = torch.stack([corner.flatten() for corner in corners], dim=-1)
    squares = squares[(squares >= 0).all(-1)]
    return Mesh(points[there], torch.cat([squares[:, [0, 1, 2]], squares[:, [0, 2, 3]]]), uvs[there])


def to_glb(mesh: Mesh, texts: Mapping[str, str]) -> bytes:
    """Return a GLB file of a surface, with texts among its extras, as ComfyUI keeps a workflow there."""
    least, most = mesh.vertices.amin(0).tolist(), mesh.vertices.amax(0).tolist()
    file = _Buffers()
    attributes = {
        "POSITION": file.accessor(mesh.vertices.float(), "VEC3", FLOAT, VERTICES, min=least, max=most),
    }
    triangles = file.accessor(mesh.faces.to(torch.int32).flatten(), "SCALAR", UNSIGNED, INDICES)
    attributes["TEXCOORD_0"] = file.accessor(mesh.uvs.float(), "VEC2", FLOAT, VERTICES)
    surface: dict[str, Any] = {"metallicFactor": 0.0, "roughnessFactor": 0.5, "baseColorFactor": [PLAIN] * 3 + [1.0]}
    pictures: dict[str, Any] = {}
    if mesh.picture is not None:
        view = file.view(to_png(mesh.picture, {}, 4))
        pictures = {
            "images": [{"bufferView": view, "mimeType": "image/png"}],
            "samplers": [{"magFilter": LINEAR, "minFilter": LINEAR, "wrapS": TO_EDGE, "wrapT": TO_EDGE}],
            "textures": [{"source": 0, "sampler": 0}],
        }
        surface |= {"baseColorTexture": {"index": 0, "texCoord": 0}, "baseColorFactor": [1.0] * 4}
        surface["roughnessFactor"] = 1.0
    scene = {
        "asset": {"version": "2.0", "generator": "serve-app", **({"extras": dict(texts)} if texts else {})},
        "buffers": [{"byteLength": len(file.data)}],
        "bufferViews": file.views,
        "accessors": file.accessors,
        "materials": [{"pbrMetallicRoughness": surface, "doubleSided": True}],
        "meshes": [{"primitives": [{"attributes": attributes, "indices": triangles, "mode": 4, "material": 0}]}],
        "nodes": [{"mesh": 0}],
        "scenes": [{"nodes": [0]}],
        "scene": 0,
        **pictures,
    }
    described = json.dumps(scene).encode()
    described += b" " * (-len(described) % 4)
    chunks = [(b"JSON", described), (b"BIN\0", bytes(file.data))]
    whole = b"".join(struct.pack("<I4s", len(data), kind) + data for kind, data in chunks)
    return struct.pack("<4sII", b"glTF", 2, 12 + len(whole)) + whole


class _Buffers:
    """The binary part of a file, and what it says is where in it."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.views: list[dict[str, int]] = []
        self.accessors: list[dict[str, Any]] = []

    def view(self, content: bytes, **more: int) -> int:
        """Add content, filled up to whole words, and return its view's number."""
        self.views.append({"buffer": 0, "byteOffset": len(self.data), "byteLength": len(content), **more})
        self.data += content + b"\0" * (-len(content) % 4)
        return len(self.views) - 1

    def accessor(self, values: Tensor, kind: str, component: int, target: int, **more: Any) -> int:
        """Add numbers, a row an element, and return their accessor's number."""
        view = self.view(values.contiguous().numpy().tobytes(), target=target)
        self.accessors.append(
            {"bufferView": view, "componentType": component, "count": len(values), "type": kind, **more}
        )
        return len(self.accessors) - 1
