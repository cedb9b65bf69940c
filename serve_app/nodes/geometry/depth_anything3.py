"""The nodes of Depth Anything 3: depths of images or of several views of a scene, and pictures of them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from serve_app.errors import NodeError
from serve_app.execution.size import allow
from serve_app.images import resize
from serve_app.nodes.declare import node
from serve_app.nodes.geometry.maps import grey, quantiles, stretched, turbo
from serve_app.nodes.inputs import Bool, Combo, DynamicCombo, File, InputType, Int
from serve_app.nodes.sockets import IMAGE, RUNTIME
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.weights import DEFAULT_DTYPE, ComputedIn

DA3_MODEL: TypeAlias = Annotated[Recipe, InputType("DA3_MODEL")]
DA3_GEOMETRY: TypeAlias = Annotated[dict[str, Any], InputType("DA3_GEOMETRY")]
"""depth (B,H,W), image (B,H,W,3) and mode, "mono" or "multiview"; of some networks sky, the share that is sky, and
confidence (B,H,W); of several views extrinsics (1,B,3,4), world to camera, and intrinsics (1,B,3,3) in pixels."""

CATEGORY = "image/geometry estimation"
PATCH = 14
"""The sides of what the network reads are multiples of this."""
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of colours in ImageNet, by which pixels are normalised."""
SKY = 0.3
"""The share of sky from which a pixel is sky."""
FEWEST = 10
"""Of pixels of sky and of others; with so few, nothing is cut."""
FAR = 0.99

_DEPTHS = {
    "normalization": Combo(
        ["v2_style", "min_max", "raw"],
        default="v2_style",
        tooltip="v2_style: from the 1st to the 99th percentile. min_max: all of it. raw: as the network says it.",
    ),
    "apply_sky_clip": Bool(False, tooltip="Gives the sky the depth of the farthest of the rest."),
}
_COLOURED = {"colored": Bool(False)}


@node("LoadDA3Model", "Load Depth Anything 3", category="model/loaders")
def load_da3_model(
    model_name: Annotated[str, File("geometry_estimation")],
    weight_dtype: Annotated[str, Combo([DEFAULT_DTYPE, "fp16", "bf16", "fp32"], default=DEFAULT_DTYPE)],
) -> DA3_MODEL:
    """A Depth Anything 3 in a file of its own."""
    recipe = Recipe("depth_estimator", "geometry_estimation", model_name)
    return recipe if weight_dtype == DEFAULT_DTYPE else recipe.with_patch(ComputedIn(weight_dtype))


@node(
    "DA3Inference",
    "Run Depth Anything 3",
    category=CATEGORY,
    return_names=("da3_geometry",),
    description="Estimates the depths of images; as multiview, of all images together as views of one scene.",
    search_aliases=(
        *("depth", "geometry", "da3", "depth anything", "monocular", "pointmap", "sky", "3d", "metric depth"),
        "disparity",
    ),
)
async def da3_inference(
    da3_model: DA3_MODEL,
    image: IMAGE,
    resolution: Annotated[int, Int(504, min=140, max=2520, step=14)],
    resize_method: Annotated[str, Combo(["upper_bound_resize", "lower_bound_resize"], default="upper_bound_resize")],
    mode: Annotated[
        Mapping[str, str],
        DynamicCombo(
            {
                "mono": {},
                "multiview": {
                    "ref_view_strategy": Combo(
                        ["saddle_balanced", "saddle_sim_range", "first", "middle"], default="saddle_balanced"
                    ),
                    "pose_method": Combo(["cam_dec", "ray_pose"], default="cam_dec"),
                },
            }
        ),
    ],
    runtime: RUNTIME,
) -> DA3_GEOMETRY:
    """The depths of images, and what else the network says of them.

    resolution: of the longer side as the network sees it, or with lower_bound_resize of the shorter. Errors: NodeError
    for several views of a network of single ones, and for ray_pose.
    """
    images = image[..., :3]
    count, height, width = images.shape[:3]
    together = mode["mode"] == "multiview"
    if together:
        await _check_views(da3_model, mode["pose_method"], runtime)
    longest = (max if resize_method == "upper_bound_resize" else min)(height, width)
    rows, columns = (_in_patches(side * resolution / longest) for side in (height, width))
    allow(count if together else 1, rows, columns, 3)
    pixels = await asyncio.to_thread(_pixels, images, rows, columns)
    if together:
        found = await runtime.ask_image_model(da3_model, [pixels], views=True, strategy=mode["ref_view_strategy"])
    else:
        found = await runtime.ask_image_model(da3_model, torch.split(pixels, 1))
    geometry: dict[str, Any] = {
        name: await asyncio.to_thread(_enlarged, [one[name] for one in found], height, width)
        for name in ("depth", "sky", "confidence")
        if name in found[0]
    }
    if together:
        # One view has no camera to be told from others'.
        unknown = {"extrinsics": torch.eye(4).repeat(count, 1, 1), "intrinsics": torch.eye(3).repeat(count, 1, 1)}
        geometry |= {name: found[0].get(name, default)[None] for name, default in unknown.items()}
    return {**geometry, "image": images, "mode": mode["mode"]}


@node(
    "DA3Render",
    "Render Depth Anything 3",
    category=CATEGORY,
    description="Draws the depths, the confidence or the sky that Depth Anything 3 found.",
)
def da3_render(
    da3_geometry: DA3_GEOMETRY,
    output: Annotated[
        Mapping[str, Any],
        DynamicCombo(
            {"depth": _DEPTHS, "depth_colored": _DEPTHS, "sky_mask": _COLOURED, "confidence": _COLOURED},
        ),
    ],
) -> IMAGE:
    """A picture of depths, near ones bright, or of the sky or the confidence. Errors: NodeError where there is none."""
    chosen = output["output"]
    if chosen in ("depth", "depth_colored"):
        depths = _drawn_depths(da3_geometry, output["normalization"], cuts_sky=output["apply_sky_clip"])
        return turbo(depths) if chosen == "depth_colored" else grey(depths)
    name = "sky" if chosen == "sky_mask" else chosen
    if name not in da3_geometry:
        raise _lacking(name)
    found: Tensor = da3_geometry[name]
    if name == "confidence":
        found = torch.stack([_whole_range(one) for one in found])
    return turbo(found) if output["colored"] else grey(found)


def _lacking(name: str) -> NodeError:
    of = "Mono and Metric" if name == "sky" else "Small, Base and Large"
    return NodeError(f"da3_geometry has no {name}; the {of} models of Depth Anything 3 find it")


async def _check_views(model: Recipe, pose_method: str, runtime: RUNTIME) -> None:
    """Errors: NodeError for a network that does not look at several views, or a way to find cameras that is not run."""
    family = await runtime.family(model)
    if not family.together:
        raise NodeError(
            f"'{model.name}' looks at single views; set mode to 'mono', or load a Small, Base or Large model"
        )
    if pose_method == "ray_pose" or not family.cameras:
        raise NodeError("pose_method 'ray_pose' is not supported here; set it to 'cam_dec', with a model that has one")


def _in_patches(side: float) -> int:
    """Return the nearest multiple of PATCH, of two the larger, and at least one."""
    return max(1, (round(side) + PATCH // 2) // PATCH) * PATCH


def _pixels(images: Tensor, rows: int, columns: int) -> Tensor:
    """Return images (B,H,W,3) as the network reads them, (B,3,rows,columns)."""
    if images.shape[1:3] != (rows, columns):
        images = resize(images.float(), columns, rows, "lanczos")
    return ((images.clamp(0, 1) - torch.tensor(MEAN)) / torch.tensor(SPREAD)).movedim(-1, 1).contiguous()


def _enlarged(maps: Sequence[Tensor], height: int, width: int) -> Tensor:
    """Return maps (B,h,w) at (ΣB,height,width)."""
    size = (height, width)
    return torch.cat([interpolate(one.unsqueeze(1), size=size, mode="bilinear").squeeze(1) for one in maps])


def _drawn_depths(geometry: Mapping[str, Any], normalization: str, *, cuts_sky: bool) -> Tensor:
    depths: Tensor = geometry["depth"]
    sky: Tensor | None = geometry.get("sky")
    if cuts_sky:
        if sky is None:
            raise _lacking("sky")
        depths = torch.stack([_without_sky(*pair) for pair in zip(depths, sky, strict=True)])
    if normalization == "raw":
        return depths
    if normalization == "min_max":
        return torch.stack([1 - stretched(one, one.min(), one.max()) for one in depths])
    if sky is None:
        return torch.stack([1 - stretched(one, *quantiles(one, 1 - FAR, FAR)) for one in depths])
    return torch.stack([_near_bright(*pair) for pair in zip(depths, sky, strict=True)])


def _near_bright(depth: Tensor, sky: Tensor) -> Tensor:
    """Return depths (H,W) between the percentiles of what is no sky, near ones bright; sky is black."""
    there = sky < SKY
    drawn = 1 - stretched(depth, *quantiles(depth[there] if there.any() else depth, 1 - FAR, FAR))
    return torch.where(there, drawn, torch.zeros_like(drawn))


def _without_sky(depth: Tensor, sky: Tensor) -> Tensor:
    """Return depths (H,W) where the sky is as far as the farthest of the rest."""
    there = sky < SKY
    if min(int(there.sum()), int((~there).sum())) <= FEWEST:
        return depth
    return torch.where(there, depth, quantiles(depth[there], FAR)[0])


def _whole_range(values: Tensor) -> Tensor:
    """Return values stretched to 0…1; 1 where all are equal."""
    least, most = values.min(), values.max()
    return (values - least) / (most - least) if most > least else torch.ones_like(values)
