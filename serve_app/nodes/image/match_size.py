"""Making one value fit another: as many in the batch, as large. How ComfyUI's nodes meet inputs that differ.

What would be too large is refused before memory is taken for it.
"""

from __future__ import annotations

from torch import Tensor, arange, split
from torch.nn.functional import interpolate

from serve_app import images
from serve_app.errors import NodeError
from serve_app.execution.executing import check_cancelled
from serve_app.execution.runtime import Runtime
from serve_app.execution.size import allow
from serve_app.images import Crop
from serve_app.recipe.recipe import Recipe

PIXELS_PER_LATENT = 8
AT_ONCE = 1 << 24
"""How many numbers are made at a time of a batch that is resized: in between it can stop."""


def fit_batch(x: Tensor, count: int) -> Tensor:
    """Return (count,…): the batch from its start, and from its start again as often as needed."""
    if x.shape[0] == count:
        return x
    allow(count, *x.shape[1:])
    return x[arange(count, device=x.device) % x.shape[0]]


def resize(x: Tensor, width: int, height: int, method: str, crop: Crop = "disabled") -> Tensor:
    """Return images (B,H,W,C) at (B,height,width,C), as `images.resize` does. Errors: NodeError."""
    allow(x.shape[0], height, width, x.shape[-1])
    parts = split(x, max(1, AT_ONCE // max(1, height * width * x.shape[-1])))
    if len(parts) <= 1:
        return images.resize(x, width, height, method, crop)
    made, done = x.new_empty(x.shape[0], height, width, x.shape[-1]), 0
    for part in parts:
        check_cancelled()
        made[done : done + len(part)] = images.resize(part, width, height, method, crop)
        done += len(part)
    return made


async def allow_decoded(latents: Tensor, vae: Recipe, runtime: Runtime) -> None:
    """Refuse latents (B,C,…,h,w) whose images would be too large, or of a sound. Errors: NodeError."""
    if latents.ndim == 3:
        raise NodeError(f"the latents are of a sound, {tuple(latents.shape)}; VAEDecodeAudio decodes these")
    factor, images = PIXELS_PER_LATENT, latents.shape[0]
    if latents.ndim == 5:
        # Of images alone the file is not looked at, for the sake of the time that takes.
        family = await runtime.family(vae)
        factor, images = family.factor, images * ((latents.shape[2] - 1) * family.frames + 1)
    height, width = latents.shape[-2:]
    allow(images, height * factor, width * factor, 3)


def fit_latents(latents: Tensor, width: int, height: int, method: str, crop: Crop = "disabled") -> Tensor:
    """Return the latents (B,C,…,h,w) at (B,C,…,height,width). method, crop: as `images.resize` has them."""
    if latents.ndim == 5:
        planes = fit_latents(latents.movedim(2, 1).flatten(0, 1), width, height, method, crop)
        return planes.reshape(latents.shape[0], latents.shape[2], *planes.shape[1:]).movedim(1, 2)
    return resize(latents.movedim(1, -1), width, height, method, crop).movedim(-1, 1)


def fit_mask(mask: Tensor, height: int, width: int) -> Tensor:
    """Return a mask (H,W), (N,H,W) or (N,1,H,W) as (N,1,height,width), bilinear."""
    planes = as_planes(mask)
    allow(planes.shape[0], height, width)
    return interpolate(planes.unsqueeze(1), size=(height, width), mode="bilinear")


def as_planes(mask: Tensor) -> Tensor:
    """Return a mask (H,W), (N,H,W) or (N,1,H,W) as (N,H,W)."""
    return mask.reshape(-1, mask.shape[-2], mask.shape[-1])
