"""Making one value fit another: as many in the batch, as large. How ComfyUI's nodes meet inputs that differ."""

from __future__ import annotations

from torch import Tensor, arange
from torch.nn.functional import interpolate

from serve_app.images import Crop, resize


def fit_batch(x: Tensor, count: int) -> Tensor:
    """Return (count,…): the batch from its start, and from its start again as often as needed."""
    return x if x.shape[0] == count else x[arange(count, device=x.device) % x.shape[0]]


def fit_latents(latents: Tensor, width: int, height: int, method: str, crop: Crop = "disabled") -> Tensor:
    """Return the latents (B,C,h,w) at (B,C,height,width). method, crop: as `images.resize` has them."""
    return resize(latents.movedim(1, -1), width, height, method, crop).movedim(-1, 1)


def fit_mask(mask: Tensor, height: int, width: int) -> Tensor:
    """Return a mask (H,W), (N,H,W) or (N,1,H,W) as (N,1,height,width), bilinear."""
    return interpolate(as_planes(mask).unsqueeze(1), size=(height, width), mode="bilinear")


def as_planes(mask: Tensor) -> Tensor:
    """Return a mask (H,W), (N,H,W) or (N,1,H,W) as (N,H,W)."""
    return mask.reshape(-1, mask.shape[-2], mask.shape[-1])
