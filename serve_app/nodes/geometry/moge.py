"""The nodes of MoGe: where in space each pixel of an image is, pictures of it, and a surface of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from math import atan, degrees, hypot
from typing import Annotated, Any, TypeAlias

import torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.nodes.declare import node
from serve_app.nodes.geometry.depth_anything3 import CATEGORY
from serve_app.nodes.geometry.maps import LEAST, grey, quantiles, stretched, turbo
from serve_app.nodes.geometry.meshes import MESH, Mesh, triangulated
from serve_app.nodes.geometry.panorama import LEAST_SIDE, VIEW_DEGREES, directions_of, filled, merged, split
from serve_app.nodes.geometry.points import focal_of, intrinsics_of, normals_of, placed, unprojected
from serve_app.nodes.inputs import Bool, Combo, File, Float, InputType, Int
from serve_app.nodes.sockets import FLOAT, IMAGE, RUNTIME
from serve_app.recipe.recipe import Recipe

MOGE_MODEL: TypeAlias = Annotated[Recipe, InputType("MOGE_MODEL")]
MOGE_GEOMETRY: TypeAlias = Annotated[dict[str, Any], InputType("MOGE_GEOMETRY")]
"""image and points (B,H,W,3), depth and mask (B,H,W), intrinsics (B,3,3) of an image whose sides are 1, which a
panorama lacks, and of some networks normal (B,H,W,3). x is right, y down, z forwards; of a panorama z is up."""

TOKENS = {1: (1200, 2500), 2: (1200, 3600)}
"""The fewest and the most patches that each edition looks at."""
FINEST = 9
THERE = 0.5
"""The value of the network's mask from which a pixel has a place."""
EXTREMES = 0.001

_NORMALS = ("normal_opengl", "normal_directx")


@node("LoadMoGeModel", "Load MoGe Model", category="model/loaders")
def load_moge_model(model_name: Annotated[str, File("geometry_estimation")]) -> MOGE_MODEL:
    """A MoGe in a file of its own."""
    return Recipe("geometry_estimator", "geometry_estimation", model_name)


@node(
    "MoGeInference",
    "Run MoGe Inference",
    category=CATEGORY,
    return_names=("moge_geometry",),
    description="Estimates where in space each pixel of an image is.",
    search_aliases=("moge", "depth", "geometry", "depth estimation", "geometry estimation"),
)
async def moge_inference(
    moge_model: MOGE_MODEL,
    image: IMAGE,
    resolution_level: Annotated[int, Int(FINEST, min=0, max=FINEST)],
    fov_x_degrees: Annotated[float, Float(0.0, min=0.0, max=170.0, step=0.1, advanced=True)],
    batch_size: Annotated[int, Int(4, min=1, max=64)],
    force_projection: Annotated[bool, Bool(True, advanced=True)],
    apply_mask: Annotated[bool, Bool(True, advanced=True)],
    runtime: RUNTIME,
) -> MOGE_GEOMETRY:
    """The geometry of images.

    resolution_level: how fine, up to 9. fov_x_degrees: the camera's angle of view, 0 to estimate it. force_projection:
    points lie on the rays of their pixels. apply_mask: points without a place are infinitely far.
    """
    images = image[..., :3]
    pixels = images.movedim(-1, 1).contiguous().float()
    tokens = tokens_of((await runtime.family(moge_model)).edition, resolution_level)
    found = await runtime.ask_image_model(moge_model, torch.split(pixels, batch_size), tokens=tokens)
    raw = {name: torch.cat([one[name] for one in found]) for name in found[0]}
    made = []
    for i in range(len(images)):
        own = {name: one[i] for name, one in raw.items()}
        made.append(
            await asyncio.to_thread(_placed, own, fov_x_degrees or None, on_rays=force_projection, masked=apply_mask)
        )
    return {"image": images, **{name: torch.stack([one[name] for one in made]) for name in made[0]}}


@node(
    "MoGePanoramaInference",
    "Run MoGe Panorama Inference",
    category=CATEGORY,
    return_names=("moge_geometry",),
    description="Estimates the geometry of a panorama by twelve views of it, which are merged.",
    search_aliases=("moge", "panorama", "depth", "geometry", "depth estimation", "geometry estimation"),
)
async def moge_panorama_inference(
    moge_model: MOGE_MODEL,
    image: IMAGE,
    resolution_level: Annotated[int, Int(FINEST, min=0, max=FINEST)],
    split_resolution: Annotated[int, Int(512, min=256, max=1024, tooltip="The sides of a view in pixels.")],
    merge_resolution: Annotated[int, Int(1920, min=256, max=8192, tooltip="The longest side of what is merged.")],
    batch_size: Annotated[int, Int(4, min=1, max=12)],
    runtime: RUNTIME,
) -> MOGE_GEOMETRY:
    """The geometry of one panorama, equirectangular, with z up. Errors: NodeError for several images."""
    if len(image) != 1:
        raise NodeError(f"image has {len(image)} images; one panorama is taken")
    panorama = image[..., :3]
    height, width = panorama.shape[1:3]
    scale = min(merge_resolution / max(height, width), 1.0)
    size = (max(int(height * scale), LEAST_SIDE), max(int(width * scale), LEAST_SIDE))
    tokens = tokens_of((await runtime.family(moge_model)).edition, resolution_level)
    views = await asyncio.to_thread(split, panorama[0], split_resolution)
    found = await runtime.ask_image_model(moge_model, torch.split(views, batch_size), tokens=tokens)
    raw = [{name: one[name][i] for name in one} for one in found for i in range(len(one["mask"]))]
    distances, masks = [], []
    for one in raw:
        # Scales in metres of views do not agree with each other.
        view = await asyncio.to_thread(_placed, one, VIEW_DEGREES, on_rays=True, masked=False, metric=False)
        distances.append(view["points"].norm(dim=-1))
        masks.append(view["mask"])
    depth, mask = await asyncio.to_thread(merged, size, distances, masks)
    depth, mask = await asyncio.to_thread(filled, depth, mask, (height, width))
    points = directions_of(height, width) * depth[..., None]
    return {"image": panorama, "points": points[None], "depth": depth[None], "mask": mask[None]}


def tokens_of(edition: int, level: int) -> int:
    """Return how many patches a network looks at."""
    fewest, most = TOKENS[edition]
    return int(fewest + level / FINEST * (most - fewest))


def _placed(
    found: Mapping[str, Tensor], angle: float | None, *, on_rays: bool, masked: bool, metric: bool = True
) -> dict[str, Tensor]:
    """Return the geometry of one image, from what the network says of it: `points`, `mask`, `scale` and `normal`.

    metric: in metres, where the network says the scale.
    """
    points, there = found["points"], found["mask"] > THERE
    aspect = there.shape[1] / there.shape[0]
    focal, shift = placed(points, there, None if angle is None else focal_of(angle, aspect))
    points = points + torch.tensor([0.0, 0.0, shift])
    if "scale" in found:
        # What is behind the camera is no place.
        there = there & (points[..., 2] > 0)
    depth, intrinsics = points[..., 2], intrinsics_of(focal, aspect)
    if on_rays:
        points = unprojected(depth, intrinsics)
    if metric and "scale" in found:
        points, depth = points * found["scale"], depth * found["scale"]
    normal = found.get("normal")
    if masked:
        far = torch.tensor(torch.inf)
        points, depth = torch.where(there[..., None], points, far), torch.where(there, depth, far)
        normal = None if normal is None else normal * there[..., None]
    made = {"points": points, "depth": depth, "intrinsics": intrinsics, "mask": there}
    return made if normal is None else {**made, "normal": normal}


@node(
    "MoGeRender",
    "Render MoGe Geometry",
    category=CATEGORY,
    description="Draws the depths, the normals or the mask of a geometry.",
)
def moge_render(
    moge_geometry: MOGE_GEOMETRY,
    output: Annotated[
        str,
        Combo(
            ["depth", "depth_colored", *_NORMALS, "mask"],
            default="depth",
            tooltip="Normals of OpenGL have green upwards (Blender, Unity, glTF), of DirectX downwards (Unreal).",
        ),
    ],
) -> IMAGE:
    """A picture of depths, near ones bright, of normals, or of the mask."""
    if output == "mask":
        return grey(moge_geometry["mask"].float())
    if output in _NORMALS:
        found = moge_geometry.get("normal")
        normals = torch.stack([*map(normals_of, moge_geometry["points"])]) if found is None else found
        upwards = -1.0 if output == "normal_opengl" else 1.0
        # A picture's blue is out of the surface, while z is into the scene.
        return (normals * torch.tensor([1.0, upwards, -1.0]) * 0.5 + 0.5).clamp(0, 1)
    near = torch.stack([*map(_near_bright, moge_geometry["depth"])])
    return turbo(near) if output == "depth_colored" else grey(near)


def _near_bright(depth: Tensor) -> Tensor:
    """Return how near each pixel is, 0…1, by the reciprocals of depths (H,W) but the most extreme; 0 without one."""
    there = depth.isfinite() & (depth > 0)
    if not there.any():
        return torch.zeros_like(depth)
    near = torch.where(there, 1 / depth.clamp(min=LEAST), torch.zeros_like(depth))
    return torch.where(there, stretched(near, *quantiles(near[there], EXTREMES, 1 - EXTREMES)), torch.zeros_like(near))


@node(
    "MoGePointMapToMesh",
    "Convert MoGe Point Map to Mesh",
    category=CATEGORY,
    description="Makes a surface of the points of one image.",
    search_aliases=("moge", "mesh", "geometry", "point map"),
)
def moge_point_map_to_mesh(
    moge_geometry: MOGE_GEOMETRY,
    batch_index: Annotated[int, Int(0, min=0, max=4096)],
    decimation: Annotated[int, Int(1, min=1, max=8, tooltip="The stride of pixels that become vertices.")],
    discontinuity_threshold: Annotated[
        float,
        Float(
            0.04,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="The share of its depth by which the pixels around one may differ in it. 0 for any.",
        ),
    ],
    texture: Annotated[bool, Bool(True, tooltip="Paints the surface with the image.")],
) -> MESH:
    """The surface of one image. Errors: NodeError for an image that is not there, or of which no surface is left."""
    points: Tensor = moge_geometry["points"]
    if batch_index >= len(points):
        raise NodeError(f"batch_index is {batch_index}; moge_geometry has {len(points)} images, counted from 0")
    depth = moge_geometry["depth"][batch_index]
    made = triangulated(points[batch_index], depth, decimation, discontinuity_threshold)
    if not len(made.faces):
        raise NodeError(
            "no surface is left of the points; raise discontinuity_threshold, set it to 0, or infer without apply_mask"
        )
    picture = moge_geometry["image"][batch_index] if texture else None
    if "intrinsics" not in moge_geometry:
        # A panorama is seen from its inside.
        return Mesh(made.vertices[:, [1, 2, 0]], made.faces, made.uvs, picture)
    # Two axes change their signs, and with that the side of a face that is seen.
    return Mesh(made.vertices * torch.tensor([1.0, -1.0, -1.0]), made.faces[:, [0, 2, 1]], made.uvs, picture)


@node(
    "MoGeGeometryToFOV",
    "Get FoV from MoGe Geometry",
    category=CATEGORY,
    return_names=("fov", "focal_pixels"),
    description="Gives the angle of view and the focal length of a geometry's camera.",
    search_aliases=("moge", "fov", "geometry", "intrinsics", "field of view"),
)
def moge_geometry_to_fov(
    moge_geometry: MOGE_GEOMETRY,
    axis: Annotated[str, Combo(["vertical", "horizontal", "diagonal"], default="vertical")],
    unit: Annotated[str, Combo(["degrees", "radians"], default="degrees")],
) -> tuple[FLOAT, FLOAT]:
    """The angle of view over an axis, and the focal length in pixels. Errors: NodeError for a panorama."""
    if "intrinsics" not in moge_geometry:
        raise NodeError("moge_geometry is of a panorama, which no camera of one angle of view sees")
    first: Tensor = moge_geometry["intrinsics"][0]
    across, down = 0.5 / float(first[0, 0]), 0.5 / float(first[1, 1])
    half = {"horizontal": across, "vertical": down, "diagonal": hypot(across, down)}[axis]
    angle = 2 * atan(half)
    height = moge_geometry["image"].shape[1]
    return (angle if unit == "radians" else degrees(angle)), float(first[1, 1]) * height
